//! Finds what a direct boot of a disk needs: a kernel, the drivers through which it reaches its root, and the root itself.
//!
//! Where kiln reads the root, the drivers are modules of it. Where it does not, as with xfs, the kernel is looked for on the
//! file systems that kiln reads, such as the one of `/boot`, and the drivers come with the initrd beside it. A kernel that is
//! not on the disk at all brings its own initrd, or needs none.

use super::chain::Chain;
use super::gap::VolumeKind;
use super::inventory::{DiskVolume, take_inventory};
use super::linux_kernel::{KernelError, KernelModule, LinuxKernel, read_kernel, read_kernel_with_initrd, read_modules};
use super::root::locate_root;
use super::tree::{Tree, TreeError};

/// The driver of a root that kiln reads.
const READABLE_ROOT: &str = "ext4";

/// The files of a direct boot with a kernel of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: LinuxKernel,
    /// How it reaches the root.
    pub access: RootAccess,
}

/// The root of a direct boot, and how a kernel reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootAccess {
    /// What the kernel needs to reach the root.
    pub drivers: BootDrivers,
    /// The root.
    pub root: RootPartition,
}

/// A kernel that is not on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeparateKernel {
    /// Its release, if the file shows it.
    pub release: Option<String>,
    /// Its initrd, if it has one.
    pub initrd: Option<Vec<u8>>,
}

/// The source of a kernel's drivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootDrivers {
    /// Modules, to be loaded in this order.
    Modules(Vec<KernelModule>),
    /// The initrd of the kernel, with its modules and a modprobe(8).
    Initrd(Vec<u8>),
}

impl BootDrivers {
    /// Returns the drivers of an initrd; without one, those that are built into the kernel.
    fn of_initrd(initrd: Option<Vec<u8>>) -> Self {
        initrd.map_or_else(|| Self::Modules(Vec::new()), Self::Initrd)
    }
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
            let access = RootAccess { drivers: BootDrivers::Modules(modules), root: root_of_tree(&tree) };
            Ok(BootFiles { kernel, access })
        }
        Err(TreeError::UnreadableRoot(about)) => {
            let volumes = take_inventory(disk)?;
            let root = mountable_root(&volumes).ok_or(TreeError::UnreadableRoot(about))?;
            let trees: Vec<&Tree<'_>> = volumes.iter().filter_map(DiskVolume::tree).collect();
            let (kernel, initrd) = read_kernel_with_initrd(&trees)?;
            Ok(BootFiles { kernel, access: RootAccess { drivers: BootDrivers::Initrd(initrd), root } })
        }
        Err(error) => Err(error.into()),
    }
}

/// Finds the root for a kernel that is not on the disk, and its drivers: modules of its release on the disk, else its initrd,
/// else those that are built in.
///
/// # Errors
/// When there is no root, a driver is missing, or the disk cannot be read.
pub fn find_root_access(
    disk: &Chain,
    kernel: SeparateKernel,
    drivers: &[&str],
    optional: &[&str],
) -> Result<RootAccess, KernelError> {
    match Tree::open(disk) {
        Ok(tree) => {
            let needed = [drivers, &[READABLE_ROOT]].concat();
            let drivers = find_drivers(&tree, kernel, &needed, optional)?;
            Ok(RootAccess { drivers, root: root_of_tree(&tree) })
        }
        Err(TreeError::UnreadableRoot(about)) => {
            let root = mountable_root(&take_inventory(disk)?).ok_or(TreeError::UnreadableRoot(about))?;
            Ok(RootAccess { drivers: BootDrivers::of_initrd(kernel.initrd), root })
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns the number of the partition with the root, 0 for the whole disk; `None` if it is not known, or is not on a file
/// system that a kernel mounts by itself.
#[must_use]
pub fn find_root_partition(disk: &Chain) -> Option<u32> {
    match Tree::open(disk) {
        Ok(tree) => Some(root_of_tree(&tree).number),
        Err(_) => mountable_root(&take_inventory(disk).ok()?).map(|root| root.number),
    }
}

fn find_drivers(
    tree: &Tree<'_>,
    kernel: SeparateKernel,
    needed: &[&str],
    optional: &[&str],
) -> Result<BootDrivers, KernelError> {
    let Some(release) = &kernel.release else { return Ok(BootDrivers::of_initrd(kernel.initrd)) };
    match read_modules(tree, release, needed, optional) {
        Ok(Some(modules)) => Ok(BootDrivers::Modules(modules)),
        Ok(None) => Ok(BootDrivers::of_initrd(kernel.initrd)),
        Err(KernelError::NoDriver { .. }) if kernel.initrd.is_some() => Ok(BootDrivers::of_initrd(kernel.initrd)),
        Err(KernelError::NoDriver { release, driver }) => Err(KernelError::NoDriverBeside { release, driver }),
        Err(error) => Err(error),
    }
}

fn root_of_tree(tree: &Tree<'_>) -> RootPartition {
    let mounts = tree.mounts();
    let usr = mounts.iter().find(|mount| mount.target == b"/usr").map(|mount| mount.partition);
    RootPartition { number: mounts[0].partition, file_system: READABLE_ROOT, usr }
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
