//! The file systems of a guest at the end of its build, by its own mount table, and the choice of who lists the files in
//! them.
//!
//! ```text
//! guest's mount table ──> all on partitions, whole, of kinds that kiln reads? ──yes──> the host reads the sealed disk
//!                                                                         └──no───> the guest lists its files
//! ```
//!
//! The host is faster, and does not depend on answers that may be wrong. It mounts in its view what the guest had mounted,
//! and nothing else.

use std::time::Duration;

use crate::context::BuildContext;
use crate::disk::chain::Chain;
use crate::disk::ext4::are_features_read;
use crate::disk::gap::TreeMount;
use crate::disk::tree::TreeError;
use crate::error::Failure;
use crate::session::{DiskReport, GuestError};
use crate::wire::boot_mounts::BootReport;
use crate::wire::mounts::{DiskPartition, GuestMount};

use super::boot::Guest;
use super::mount_agreement::{MountAgreement, check_agreement, shown};

/// The deadline for reading the mount table, which takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// The types of file systems that kiln reads, as the kernel names them.
const EXT: [&str; 3] = ["ext2", "ext3", "ext4"];
const FAT: [&str; 2] = ["vfat", "msdos"];

/// The guest's answer about its disk. It is not trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskSurvey {
    /// Every file system of the disk in the order in which they nest, or the reason why the guest could not list them.
    mounts: Result<Vec<GuestMount>, String>,
    /// What the next boot mounts, according to the guest's files.
    boot: BootReport,
    /// Whether there is a database of rpm.
    pub(crate) has_rpm: bool,
}

/// Asks the guest what is mounted from the image's disk.
pub(crate) async fn survey(build: &BuildContext<'_>, guest: &mut Guest) -> Result<DiskSurvey, Failure> {
    let request = async {
        match guest.session.describe_disk().await {
            Ok(DiskReport { mounts, boot, has_rpm }) => Ok(DiskSurvey { mounts: Ok(mounts), boot, has_rpm }),
            Err(GuestError::Refused { text, .. }) => Ok(DiskSurvey::unknown(text)),
            Err(error) => Err(error),
        }
    };
    build.limits.call(&guest.machine, PATIENCE, request).await
}

impl DiskSurvey {
    /// Returns the answer of a guest that could not list its mounts.
    fn unknown(why: String) -> Self {
        let boot = BootReport { mounts: Vec::new(), root_options: Vec::new() };
        Self { mounts: Err(why), boot, has_rpm: true }
    }

    /// Compares what the guest had mounted with what a boot of its disk mounts.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub(crate) fn check_agreement(&self, disk: &Chain) -> Result<MountAgreement, TreeError> {
        match &self.mounts {
            Ok(mounts) => check_agreement(disk, mounts, &self.boot),
            Err(why) => Ok(MountAgreement {
                differences: vec![format!("the guest failed to report its mounts: {why}")],
                ..MountAgreement::default()
            }),
        }
    }

    /// Returns the mounts of the host's view of the sealed disk.
    ///
    /// # Errors
    /// The reason why the host cannot read a file system.
    pub(crate) fn for_host(&self) -> Result<Vec<TreeMount>, String> {
        let mounts = self.mounts.as_ref().map_err(|why| format!("the guest failed to report its mounts: {why}"))?;
        if mounts.first().is_none_or(|root| root.target != b"/") {
            return Err("the guest's root file system is not on the disk of the image".to_owned());
        }
        let readable = mounts.iter().map(readable_mount).collect::<Result<Vec<TreeMount>, String>>()?;
        let twice = readable.iter().enumerate().find(|(index, mount)| {
            readable[..*index].iter().any(|other| other.start == mount.start || other.target == mount.target)
        });
        match twice {
            Some((_, mount)) => Err(format!("{} is mounted twice", shown(&mount.target))),
            None => Ok(readable),
        }
    }

    /// Returns the mounts that the host can make in its view, the root first; none where it cannot read the root.
    pub(crate) fn readable(&self) -> Vec<TreeMount> {
        let readable: Vec<TreeMount> =
            self.mounts.iter().flatten().filter_map(|mount| readable_mount(mount).ok()).collect();
        let has_root = readable.first().is_some_and(|root| root.target == b"/");
        if has_root { readable } else { Vec::new() }
    }

    /// Returns the partition of the root file system, if it is on one partition itself.
    pub(super) fn root_partition(&self) -> Option<&DiskPartition> {
        let root = self.mounts.as_ref().ok()?.iter().find(|mount| mount.target == b"/" && mount.is_plain)?;
        let [partition] = &root.partitions[..] else { return None };
        Some(partition)
    }

    /// Returns the first byte of every partition in use, if they are known.
    pub(crate) fn partitions(&self) -> Option<Vec<u64>> {
        let mounts = self.mounts.as_ref().ok().filter(|mounts| mounts.iter().all(|mount| !mount.partitions.is_empty()));
        let partitions = mounts?.iter().flat_map(|mount| &mount.partitions);
        Some(partitions.map(|partition| partition.start).collect())
    }
}

fn readable_mount(mount: &GuestMount) -> Result<TreeMount, String> {
    let target = shown(&mount.target);
    let kind = mount.kind.as_str();
    let has_kind = EXT.contains(&kind) && are_features_read(mount.features) || FAT.contains(&kind);
    let &[DiskPartition { number, start, length }] = &mount.partitions[..] else {
        return Err(format!("{target} is not on a single partition"));
    };
    match mount {
        _ if !EXT.contains(&kind) && !FAT.contains(&kind) => Err(format!("{target} is {}", kind.escape_debug())),
        GuestMount { is_plain: false, .. } => Err(format!("{target} is on a device that is made of partitions")),
        GuestMount { root, .. } if root != b"/" => Err(format!("{target} is a part of a file system")),
        _ if !has_kind => Err(format!("{target} is {}", kind.escape_debug())),
        GuestMount { target, .. } => Ok(TreeMount { target: target.clone(), partition: number, start, length }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(target: &str, number: u32) -> GuestMount {
        GuestMount {
            target: target.into(),
            kind: "ext4".into(),
            root: b"/".to_vec(),
            source: b"/dev/vda1".to_vec(),
            partitions: vec![DiskPartition { number, start: u64::from(number) << 20, length: 1 << 20 }],
            is_plain: true,
            is_original: true,
            subvolume: 0,
            default_root: None,
            features: 0x2c2,
        }
    }

    fn survey(mounts: &[GuestMount]) -> DiskSurvey {
        DiskSurvey { mounts: Ok(mounts.to_vec()), ..DiskSurvey::unknown(String::new()) }
    }

    #[test]
    fn whole_file_systems_on_partitions_are_read_by_the_host() {
        let esp = GuestMount { kind: "vfat".into(), features: 0, ..mount("/boot/efi", 15) };
        let found = survey(&[mount("/", 1), esp, mount("/srv", 14)]).for_host().unwrap();
        let found: Vec<_> = found.iter().map(|mount| (mount.partition, mount.target.as_slice())).collect();
        assert_eq!(found, [(1, &b"/"[..]), (15, b"/boot/efi"), (14, b"/srv")]);
    }

    #[test]
    fn all_else_is_listed_by_the_guest() {
        let root = || mount("/", 1);
        let whole = DiskPartition { number: 0, start: 0, length: 0 };
        let cases = [
            (vec![], "not on the disk"),
            (vec![mount("/srv", 1)], "not on the disk"),
            (vec![GuestMount { kind: "xfs".into(), ..root() }], "/ is xfs"),
            (vec![root(), GuestMount { features: 0x1_0000, ..mount("/srv", 2) }], "/srv is ext4"),
            (vec![root(), GuestMount { root: b"/a".to_vec(), ..mount("/srv", 2) }], "/srv is a part"),
            (vec![root(), GuestMount { is_plain: false, ..mount("/srv", 2) }], "made of partitions"),
            (vec![GuestMount { kind: "btrfs".into(), is_plain: false, ..root() }], "/ is btrfs"),
            (vec![root(), GuestMount { partitions: vec![], ..mount("/srv", 2) }], "single partition"),
            (
                vec![root(), GuestMount { partitions: vec![whole.clone(), whole], ..mount("/srv", 2) }],
                "single partition",
            ),
            (vec![root(), mount("/mnt", 1)], "/mnt is mounted twice"),
            (vec![root(), mount("/srv", 2), mount("/srv", 3)], "/srv is mounted twice"),
            (vec![GuestMount { kind: "a\n::error::".into(), ..root() }], "/ is a\\n::error::"),
        ];
        for (mounts, expected) in cases {
            let why = survey(&mounts).for_host().unwrap_err();
            assert!(why.contains(expected) && !why.contains('\n'), "{why}");
        }
        let unknown = DiskSurvey::unknown("too many mounts".into());
        assert!(unknown.for_host().unwrap_err().contains("too many mounts"));
        assert!(unknown.partitions().is_none() && unknown.readable().is_empty());
        let part = survey(&[root(), GuestMount { kind: "xfs".into(), ..mount("/srv", 2) }]);
        assert_eq!((part.readable().len(), part.partitions()), (1, Some(vec![1 << 20, 2 << 20])));
    }
}
