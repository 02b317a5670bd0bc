//! The tree of a disk as a guest had it mounted, by the guest's own mount table: units of systemd, partitions that are found
//! by their type, and mounts that a step has made itself are in no table on the disk.

use super::chain::Chain;
use super::gap::{TreeGap, TreeMount, VolumeKind};
use super::inventory::{DiskVolume, VolumeAccess, take_inventory};

use super::tree::{Tree, TreeError};

impl<'c> Tree<'c> {
    /// Mounts these file systems in their order, the root first, and no others. Each contradiction to the disk becomes a
    /// gap.
    ///
    /// # Errors
    /// When the disk or the root file system cannot be read, or the disk has no such root.
    pub fn open_as_mounted(disk: &'c Chain, mounts: &[TreeMount]) -> Result<Self, TreeError> {
        let mut volumes = take_inventory(disk)?;
        let (root, mounts) = mounts.split_first().ok_or(TreeError::NoRoot)?;
        let volume = find(&mut volumes, root).ok_or(TreeError::NoRoot)?;
        let mut tree = match volume.take() {
            VolumeAccess::Readable(tree) => tree,
            VolumeAccess::Refused(error) => return Err(error.into()),
            VolumeAccess::Foreign | VolumeAccess::Used => {
                return Err(TreeError::UnreadableRoot(vec![volume.describe()]));
            }
        };
        for mount in mounts {
            match find(&mut volumes, mount) {
                Some(volume) => tree.mount_volume(volume, &mount.target),
                None => tree.add_gaps([not_found(mount)]),
            }
        }
        tree.find_unclean();
        Ok(tree)
    }

    fn mount_volume(&mut self, volume: &mut DiskVolume<'c>, target: &[u8]) {
        let about = volume.describe();
        let is_directory = self.canonical(target).is_some_and(|path| path == target);
        match volume.take() {
            VolumeAccess::Readable(tree) if is_directory => self.mount(target, tree),
            VolumeAccess::Readable(_) => {
                self.add_gaps([TreeGap::NoMountPoint { volume: about, target: target.to_vec() }]);
            }
            _ => self.add_gaps([TreeGap::Unreadable { volume: about, target: Some(target.to_vec()) }]),
        }
    }
}

/// Returns the file systems of a disk, except those on partitions that begin at one of the offsets `used`.
///
/// # Errors
/// When the disk cannot be read.
pub fn left_over(disk: &Chain, used: &[u64]) -> Result<Vec<TreeGap>, TreeError> {
    let volumes = take_inventory(disk)?.into_iter();
    let unused = volumes.filter(|volume| volume.is_mountable() && !used.contains(&volume.partition.start));
    let known = unused.filter(|volume| volume.kind != VolumeKind::Unknown);
    Ok(known.map(|volume| TreeGap::LeftOver { volume: volume.describe() }).collect())
}

/// Returns every file system of a disk that kiln can read, each as a tree of its own, whether the guest mounts it or not.
///
/// # Errors
/// When the disk cannot be read.
pub(crate) fn readable_volumes(disk: &Chain) -> Result<Vec<Tree<'_>>, TreeError> {
    let accesses = take_inventory(disk)?.into_iter().map(|mut volume| volume.take());
    Ok(accesses
        .filter_map(|access| match access {
            VolumeAccess::Readable(tree) => Some(tree),
            VolumeAccess::Refused(_) | VolumeAccess::Foreign | VolumeAccess::Used => None,
        })
        .collect())
}

/// Returns the volume of a guest's mount, if the disk has one in the same place.
fn find<'v, 'c>(volumes: &'v mut [DiskVolume<'c>], mount: &TreeMount) -> Option<&'v mut DiskVolume<'c>> {
    let &TreeMount { partition: number, start, length, .. } = mount;
    volumes.iter_mut().find(|DiskVolume { partition, .. }| {
        (partition.number, partition.start, partition.length) == (number, start, length)
    })
}

fn not_found(mount: &TreeMount) -> TreeGap {
    let source = format!("partition {} at byte {}", mount.partition, mount.start);
    TreeGap::Unanswered { source, target: mount.target.clone() }
}
