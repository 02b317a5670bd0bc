//! The root of a direct boot: its drivers, its partition, `/usr`, and its growth.

use std::env::set_current_dir;
use std::fs;
use std::os::unix::fs::chroot;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::boot_console::{report, run_program};
use super::login::SYSTEM_PATH;
use super::{RequestFailure, device, silent_program, sys};
use crate::wire::device_name::DeviceName;
use crate::wire::direct_boot::{BootInstructions, MODULES};
use crate::wire::fstab;
use crate::wire::{Class, DISK_SERIAL};

/// Where the guest's root is mounted before it becomes the root.
const NEW_ROOT: &str = "/root";
/// The type of a `/usr` that the host found.
const READABLE_USR: &str = "ext4";

/// The guest's disk.
pub struct DiskDevice(PathBuf);

impl DiskDevice {
    /// Waits until the disk appears.
    pub fn find() -> Result<Self, RequestFailure> {
        device::find(DISK_SERIAL).map(Self)
    }

    /// Returns the device of a partition; 0 is the whole disk.
    fn partition(&self, number: u32) -> PathBuf {
        let disk = self.0.display();
        if number == 0 { self.0.clone() } else { PathBuf::from(format!("{disk}{number}")) }
    }
}

/// Loads the modules of the initramfs. The kernel refuses those that do not belong to this machine, such as the driver of
/// another processor; what is missing then shows when the root is not found.
pub fn load_modules() -> Result<(), RequestFailure> {
    let entries = fs::read_dir(MODULES).map_err(|error| RequestFailure::io(MODULES, &error))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let module = fs::read(&path).map_err(|error| RequestFailure::io(path.display(), &error))?;
        if let Err(error) = sys::load_module(&module) {
            report(&format!("cannot load {}: {error}", path.display()));
        }
    }
    Ok(())
}

/// Loads drivers with the modprobe(8) of the initrd, or of the guest once its root is entered. Those that are missing are
/// built into the kernel, or are not needed.
pub fn load_drivers(drivers: &[String]) {
    for driver in drivers {
        silent_program::succeeds("modprobe", &["-q", driver]);
    }
}

/// Mounts the guest's root file system and its `/usr`, and makes it the root of this process and of the kernel's helpers.
pub fn enter_root(disk: &DiskDevice, instructions: &BootInstructions) -> Result<(), RequestFailure> {
    let root = Path::new(NEW_ROOT);
    mount(&disk.partition(instructions.partition), root, &instructions.file_system)?;
    match instructions.usr {
        Some(partition) => mount(&disk.partition(partition), &root.join("usr"), READABLE_USR)?,
        None => mount_usr_of_table(disk, root)?,
    }
    for folder in ["dev", "proc", "sys"] {
        let on = root.join(folder);
        sys::move_mount(&Path::new("/").join(folder), &on).map_err(|error| RequestFailure::io(on.display(), &error))?;
    }
    let moved = set_current_dir(root)
        .and_then(|()| sys::move_mount(Path::new("."), Path::new("/")))
        .and_then(|()| chroot("."))
        .and_then(|()| set_current_dir("/"));
    moved.map_err(|error| RequestFailure::io("the new root", &error))
}

fn mount(device: &Path, on: &Path, file_system: &str) -> Result<(), RequestFailure> {
    let failed = |error| RequestFailure::io(format!("cannot mount {}", device.display()), &error);
    sys::mount_root(device, on, file_system).map_err(failed)
}

/// Mounts a `/usr` that only the guest's `/etc/fstab` names. It is mounted before the guest's own programs can run, which are
/// in it.
fn mount_usr_of_table(disk: &DiskDevice, root: &Path) -> Result<(), RequestFailure> {
    let table = fs::read(root.join("etc/fstab")).unwrap_or_default();
    let Some(usr) = fstab::lines(&table).into_iter().find(|mount| mount.target == b"/usr") else { return Ok(()) };
    let Some(name) = usr.device() else { return Ok(()) };
    let missing = || RequestFailure::new(Class::NotFound {}, format!("no device is {name}, which has /usr"));
    let device = resolve(disk, &name).ok_or_else(missing)?;
    mount(&device, &root.join("usr"), &usr.kind)
}

/// Returns the device of a name, which the blkid(8) of the initrd knows.
fn resolve(disk: &DiskDevice, name: &DeviceName) -> Option<PathBuf> {
    let token = match name {
        DeviceName::Partition(number) => return Some(disk.partition(*number)),
        DeviceName::Device(path) => return Some(PathBuf::from(path)),
        other => other.to_string(),
    };
    let output = Command::new("blkid").args(["-o", "device", "-t", &token]).env("PATH", SYSTEM_PATH).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(PathBuf::from)
}

/// Grows the root's partition and its file system, with the programs that cloud images have for this.
pub fn grow_root(disk: &DiskDevice, instructions: &BootInstructions) {
    if instructions.partition != 0 {
        run_program("growpart", &[&disk.0.to_string_lossy(), &instructions.partition.to_string()]);
    }
    match instructions.file_system.as_str() {
        "xfs" => run_program("xfs_growfs", &["/"]),
        "btrfs" => run_program("btrfs", &["filesystem", "resize", "max", "/"]),
        _ => run_program("resize2fs", &[&disk.partition(instructions.partition).to_string_lossy()]),
    }
}
