//! The mounts of the guest's next boot, by the files of the running guest.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use super::guest_files::RunningGuest;
use super::mount_table::{self, MountLine};
use super::sys::{major, minor};
use super::{RequestFailure, sys};
use crate::wire::Class;
use crate::wire::boot_mount::BootMount;
use crate::wire::boot_mount::without_slashes;
use crate::wire::boot_mounts::{BootReport, ESP_TARGETS, read_boot_plan, read_root_options};
use crate::wire::device_name::DeviceName;
use crate::wire::guest_files::GuestFiles;
use crate::wire::mount_unit::TooManyUnits;
use crate::wire::mount_unit::escape_path;

/// The folders with the units of systemd's generators.
const GENERATED: [&str; 2] = ["/run/systemd/generator", "/run/systemd/generator.late"];
/// The temporary mount point of a file system that is examined.
const PROBE: &str = "/run/kiln/probe";

/// Returns the mounts that the next boot may make, with symbolic links in their paths resolved.
///
/// # Errors
/// When there are too many units.
pub fn read_mounts() -> Result<Vec<BootMount>, RequestFailure> {
    let table = RunningGuest.read("/etc/fstab").unwrap_or_default();
    let plan = read_boot_plan(&RunningGuest, &table)
        .map_err(|TooManyUnits| RequestFailure::new(Class::System {}, "there are too many mount units"))?;
    Ok(plan.mounts.into_iter().map(resolve_links).collect())
}

/// Describes the next boot for the host.
///
/// # Errors
/// As [`read_mounts`].
pub fn describe() -> Result<BootReport, RequestFailure> {
    let mut mounts = read_mounts()?;
    mounts.retain(|mount| mount.is_bind() || mount.device().is_some() || mount.cover().is_some());
    Ok(BootReport { mounts, root_options: read_root_options(&RunningGuest) })
}

fn resolve_links(mount: BootMount) -> BootMount {
    let source = if mount.is_bind() { resolve_path(&mount.source) } else { mount.source.clone() };
    BootMount { target: resolve_path(&mount.target), source, ..mount }
}

/// Resolves links and needless slashes in a path, even if nothing exists there.
fn resolve_path(path: &[u8]) -> Vec<u8> {
    let resolved = fs::canonicalize(OsStr::from_bytes(path));
    resolved.map_or_else(|_| without_slashes(path), |path| path.into_os_string().into_vec())
}

/// Returns whether a generator has created a unit for this mount point, as for partitions of some types.
pub fn is_generated(target: &[u8]) -> bool {
    let name = format!("{}.mount", escape_path(target));
    GENERATED.iter().any(|folder| Path::new(folder).join(&name).exists())
}

/// Returns whether an EFI system partition is mounted here by convention.
pub fn is_esp(line: &MountLine) -> bool {
    line.kind == "vfat" && ESP_TARGETS.contains(&line.target.as_slice())
}

/// Returns the number of the device that a mount names; `None` if the device does not exist.
pub fn device_number(name: &DeviceName, source: &[u8]) -> Option<(u32, u32)> {
    let path = match name {
        DeviceName::Uuid(uuid) => udev_link("by-uuid", uuid),
        DeviceName::Label(label) => udev_link("by-label", label),
        DeviceName::PartUuid(uuid) => udev_link("by-partuuid", uuid),
        DeviceName::PartLabel(label) => udev_link("by-partlabel", label),
        DeviceName::Partition(_) | DeviceName::Device(_) => PathBuf::from(OsStr::from_bytes(source)),
    };
    let device = fs::metadata(path).ok()?.rdev();
    (device != 0).then(|| (major(device), minor(device)))
}

fn udev_link(folder: &str, value: &str) -> PathBuf {
    Path::new("/dev/disk").join(folder).join(encode_link(value))
}

/// Encodes a value as udev does in the name of a link.
fn encode_link(value: &str) -> String {
    let encoded = value.chars().map(|c| match c {
        _ if c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) || !c.is_ascii() => c.to_string(),
        _ => format!("\\x{:02x}", u32::from(c)),
    });
    encoded.collect()
}

/// Triggers the automounts of the next boot's devices: a boot mounts them for any process that accesses them.
pub fn trigger_automounts(table: &[MountLine], planned: &[BootMount]) {
    for line in table.iter().filter(|line| line.kind == "autofs") {
        let mut planned = planned.iter().filter(|mount| mount.target == line.target);
        if planned.any(|mount| mount.device().is_some_and(|name| device_number(&name, &mount.source).is_some())) {
            let _ = fs::read_dir(OsStr::from_bytes(&line.target));
        }
    }
}

/// Returns the directory of a btrfs file system that is mounted if no option names one: its default subvolume.
pub fn default_root(device: &[u8]) -> Option<Vec<u8>> {
    let device = PathBuf::from(OsStr::from_bytes(device));
    // The mount disappears with the thread's namespace.
    thread::spawn(move || probe_root(&device)).join().ok()?
}

fn probe_root(device: &Path) -> Option<Vec<u8>> {
    fs::create_dir_all(PROBE).ok()?;
    sys::unshare_mounts().ok()?;
    sys::mount_device(device, Path::new(PROBE), "btrfs").ok()?;
    let lines = mount_table::parse(&fs::read("/proc/thread-self/mountinfo").ok()?).ok()?;
    lines.into_iter().rfind(|line| line.target == PROBE.as_bytes()).map(|line| line.root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_udev_have_escapes() {
        assert_eq!(encode_link("my data"), "my\\x20data");
        assert_eq!(encode_link("EFI-1.a"), "EFI-1.a");
    }

    #[test]
    fn a_path_that_is_not_there_has_no_needless_slashes() {
        assert_eq!(resolve_path(b"//no/such//folder/"), b"/no/such/folder");
    }
}
