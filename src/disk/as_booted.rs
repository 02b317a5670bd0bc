//! The tree of a disk as a guest mounts it when it boots, derived from the disk's content.

use super::chain::Chain;
use super::inventory::{VolumeAccess, take_inventory};
use super::mount::mount_all;
use super::root::{RootChoice, choose_root};
use super::tree::{Tree, TreeError};

impl<'c> Tree<'c> {
    /// Finds the root file system by evidence and mounts on it what the guest mounts when it boots from it: the file systems
    /// of its `/etc/fstab`, of its enabled `.mount` units, and those that the types of their partitions imply.
    ///
    /// # Errors
    /// When the disk cannot be read, kiln cannot read the root, or nothing decides which of several file systems it is.
    pub fn open(disk: &'c Chain) -> Result<Self, TreeError> {
        let mut volumes = take_inventory(disk)?;
        let RootChoice { index, effects } = choose_root(&mut volumes)?;
        let VolumeAccess::Readable(mut tree) = volumes[index].take() else { return Err(TreeError::NoRoot) };
        mount_all(&mut tree, &mut volumes, &effects)?;
        Ok(tree)
    }
}
