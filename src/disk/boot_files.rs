//! Finds what a direct boot of a disk needs: a kernel, the drivers through which it reaches its root, and the root itself.
//!
//! Where kiln reads the root, the drivers are modules of it. Where it does not, as with xfs, the kernel is looked for on the
//! file systems that kiln reads, such as the one of `/boot`, and the drivers come with the initrd beside it.

use super::chain::Chain;
use super::gap::VolumeKind;
use super::inventory::{DiskVolume, take_inventory};
use super::linux_kernel::{KernelError, KernelModule, LinuxKernel, read_kernel, read_kernel_with_initrd};
use super::root::locate_root;
use super::tree::{Tree, TreeError};

/// The driver of a root that kiln reads.
const READABLE_ROOT: &str = "ext4";

/// The files of a direct boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: LinuxKernel,
    /// What the kernel needs to reach the root.
    pub drivers: BootDrivers,
    /// The root.
    pub root: RootPartition,
}

/// The source of a kernel's drivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootDrivers {
    /// Modules, to be loaded in this order.
    Modules(Vec<KernelModule>),
    /// The initrd of the kernel, with its modules and a modprobe(8).
    Initrd(Vec<u8>),
}

/// The place of a root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootPartition {
    /// The number of the partition as in Linux; 0 for the whole disk.
    pub number: u32,
    /// The type of the file system, as mount(2) takes it.
    pub file_system: &'static str,
    /// The number of the partition with `/usr`; `None` if it is in the root, or kiln cannot read the root.
    pub usr: Option<u32>,
}

/// Finds the newest kernel of a disk. `drivers` are those of the machine's devices; one of `optional` may be missing.
///
/// # Errors
/// When there is no kernel or no root, a driver is missing, or the disk cannot be read.
pub fn find_boot_files(disk: &Chain, drivers: &[&str], optional: &[&str]) -> Result<BootFiles, KernelError> {
    match Tree::open(disk) {
        Ok(tree) => {
            let needed = [drivers, &[READABLE_ROOT]].concat();
            let (kernel, modules) = read_kernel(&tree, &needed, optional)?;
            let mounts = tree.mounts();
            let usr = mounts.iter().find(|mount| mount.target == b"/usr").map(|mount| mount.partition);
            let root = RootPartition { number: mounts[0].partition, file_system: READABLE_ROOT, usr };
            Ok(BootFiles { kernel, drivers: BootDrivers::Modules(modules), root })
        }
        Err(TreeError::UnreadableRoot(about)) => {
            let volumes = take_inventory(disk)?;
            let root = mountable_root(&volumes).ok_or(TreeError::UnreadableRoot(about))?;
            let trees: Vec<&Tree<'_>> = volumes.iter().filter_map(DiskVolume::tree).collect();
            let (kernel, initrd) = read_kernel_with_initrd(&trees)?;
            Ok(BootFiles { kernel, drivers: BootDrivers::Initrd(initrd), root })
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns a root that the kernel mounts by itself, although kiln cannot read it.
fn mountable_root(volumes: &[DiskVolume<'_>]) -> Option<RootPartition> {
    let root = volumes.get(locate_root(volumes).ok()?.index)?;
    let file_system = match root.kind {
        VolumeKind::Xfs => "xfs",
        VolumeKind::Btrfs => "btrfs",
        VolumeKind::F2fs => "f2fs",
        VolumeKind::Ext4 => "ext4",
        _ => return None,
    };
    Some(RootPartition { number: root.partition.number, file_system, usr: None })
}
