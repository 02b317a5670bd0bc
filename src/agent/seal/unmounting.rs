//! Unmounts what no boot mounts: sealing empties folders, and files behind a mount below them do not belong to the image.
//! The list of the image's files shows only what a boot mounts, too.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::super::leftovers::Leftovers;
use super::super::mount_table::{self, Devices, Location, MountLine};
use super::super::{RequestFailure, next_boot, sys};
use crate::wire::boot_mount::BootMount;

/// Folders whose content is never a part of the image.
const VOLATILE: [&str; 4] = ["/proc", "/sys", "/dev", "/run"];
/// The most mount points that are reported, and the longest of them in bytes.
const MOST_NAMED: usize = 16;
const LONGEST: usize = 1024;

/// Unmounts what steps have mounted and no boot mounts, and returns the mount points.
pub fn unmount_left(left: &Leftovers) -> Result<Vec<String>, RequestFailure> {
    let planned = next_boot::read_mounts()?;
    next_boot::trigger_automounts(&mount_table::read_table()?, &planned);
    let table = mount_table::read_table()?;
    let mut boot = PlannedBoot { planned: &planned, table: &table, devices: &mut Devices::default() };
    let targets: Vec<&[u8]> = planned.iter().map(|mount| mount.target.as_slice()).collect();
    let found = table.iter().filter(|line| {
        line.target != b"/" && !is_volatile(&line.target) && !left.is_original(line, &targets) && !boot.makes(line)
    });
    let found: Vec<&MountLine> = found.collect();
    // Otherwise unmounting a copy of `/dev/pts` would also unmount `/dev/pts` itself.
    for line in &found {
        let _ = sys::make_private(path(line));
    }
    // Nested mounts come later in the table. Only the topmost mount can be reached.
    let mut gone: Vec<u32> = Vec::new();
    for line in found.iter().rev() {
        let mut covers = table.iter().filter(|other| other.parent == line.id && other.target == line.target);
        if covers.all(|other| gone.contains(&other.id)) {
            let _ = sys::detach(path(line));
            gone.push(line.id);
        }
    }
    let shown = found.iter().map(|line| String::from_utf8_lossy(&line.target).chars().take(LONGEST).collect());
    Ok(shown.take(MOST_NAMED).collect())
}

/// Looks up the locations of devices and mounted file systems.
trait DeviceLookup {
    /// Returns the location of a mount's device, and `None` if there is no such device.
    fn locate_device(&mut self, mount: &BootMount) -> Option<Location>;

    /// Returns the location of a mounted file system.
    fn locate_mounted(&mut self, line: &MountLine) -> Location;
}

impl DeviceLookup for Devices {
    fn locate_device(&mut self, mount: &BootMount) -> Option<Location> {
        let number = next_boot::device_number(&mount.device()?, &mount.source)?;
        Some(self.locate_block(number))
    }

    fn locate_mounted(&mut self, line: &MountLine) -> Location {
        self.locate(line)
    }
}

/// The mounts of the next boot, and the present ones.
struct PlannedBoot<'p> {
    planned: &'p [BootMount],
    table: &'p [MountLine],
    devices: &'p mut dyn DeviceLookup,
}

impl PlannedBoot<'_> {
    /// Returns whether a boot makes this mount, as far as the guest can decide that: the host checks the remaining mounts.
    fn makes(&mut self, line: &MountLine) -> bool {
        match self.planned.iter().find(|mount| mount.target == line.target) {
            Some(mount) if !mount.policy.may_be_made() => false,
            Some(mount) if mount.is_bind() => self.binds(mount, line),
            Some(mount) if mount.device().is_some() => self.mounts_device(mount, line),
            Some(mount) => mount.kind.is_empty() || mount.kind == "auto" || mount.kind == line.kind,
            None => {
                next_boot::is_generated(&line.target) || self.planned.iter().any(|mount| mount.brings(&line.target))
            }
        }
    }

    /// Returns whether a mount shows the directory that a boot binds there.
    fn binds(&self, mount: &BootMount, line: &MountLine) -> bool {
        let source = Path::new(OsStr::from_bytes(&mount.source));
        let holders = self.table.iter().filter(|other| other.id != line.id && source.starts_with(path(other)));
        // Of several mounts on one directory the last is on top.
        let Some(holder) = holders.max_by_key(|other| other.target.len()) else { return false };
        let Ok(below) = source.strip_prefix(path(holder)) else { return false };
        let shown = Path::new(OsStr::from_bytes(&holder.root)).join(below);
        holder.device == line.device && shown == Path::new(OsStr::from_bytes(&line.root))
    }

    /// Returns whether a mount is of the device that a boot mounts there. If the device is not found, the host decides.
    fn mounts_device(&mut self, mount: &BootMount, line: &MountLine) -> bool {
        let is_whole = line.root == b"/" || mount.is_part() || line.kind == "btrfs";
        let Some(planned) = self.devices.locate_device(mount) else { return is_whole };
        is_whole && is_on(&planned, &self.devices.locate_mounted(line))
    }
}

/// Returns whether a file system is on all partitions of a device.
fn is_on(device: &Location, mounted: &Location) -> bool {
    match (device, mounted) {
        (Location::Disk { partitions: device, .. }, Location::Disk { partitions: mounted, .. }) => {
            device.iter().all(|partition| mounted.contains(partition))
        }
        (device, mounted) => device == mounted,
    }
}

fn path(line: &MountLine) -> &Path {
    Path::new(OsStr::from_bytes(&line.target))
}

fn is_volatile(target: &[u8]) -> bool {
    VOLATILE.iter().any(|folder| Path::new(OsStr::from_bytes(target)).starts_with(folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::fstab;
    use crate::wire::mounts::DiskPartition;

    const TABLE: &str = "1 0 254:1 / / rw - ext4 /dev/vda1 rw\n2 1 254:15 / /boot/efi rw - vfat /dev/vda15 rw\n";

    /// A lookup of devices of the form `/dev/vdaN`, which have the numbers 254:N.
    struct NumberedDevices;

    impl NumberedDevices {
        fn locate(number: u32) -> Location {
            let partition = DiskPartition { number, start: u64::from(number), length: 1 };
            Location::Disk { partitions: vec![partition], is_plain: true }
        }
    }

    impl DeviceLookup for NumberedDevices {
        fn locate_device(&mut self, mount: &BootMount) -> Option<Location> {
            let source = String::from_utf8_lossy(&mount.source).into_owned();
            source.strip_prefix("/dev/vda")?.parse().ok().map(Self::locate)
        }

        fn locate_mounted(&mut self, line: &MountLine) -> Location {
            if line.device.0 == 0 { Location::Elsewhere } else { Self::locate(line.device.1) }
        }
    }

    #[test]
    fn a_mount_is_kept_if_a_boot_makes_it() {
        let esp = "/dev/vda15 /boot/efi vfat";
        for (fstab, line, is_made) in [
            ("/dev/vda2 /data ext4", "254:2 / /data - ext4 /dev/vda2", true),
            ("/dev/vda2 /data ext4 nofail", "254:2 / /data - ext4 /dev/vda2", true),
            ("/dev/vda2 /data ext4 noauto,x-systemd.automount", "254:2 / /data - ext4 /dev/vda2", true),
            ("/dev/vda2 /data ext4 noauto", "254:2 / /data - ext4 /dev/vda2", false),
            ("", "254:2 / /data - ext4 /dev/vda2", false),
            // Another device, a directory of it, or another kind of file system.
            ("/dev/vda3 /data ext4", "254:2 / /data - ext4 /dev/vda2", false),
            ("/dev/vda2 /data ext4", "254:2 /a /data - ext4 /dev/vda2", false),
            ("/dev/vda2 /data ext4", "0:40 / /data - tmpfs tmpfs", false),
            ("/dev/vda2 /data ext4", "0:41 / /data - overlay overlay", false),
            ("/dev/gone /data ext4", "254:2 / /data - ext4 /dev/vda2", true),
            // Bind mounts, from the root and from another file system.
            ("/srv/a /data none bind", "254:1 /srv/a /data - ext4 /dev/vda1", true),
            ("/srv/a /data none bind,noauto", "254:1 /srv/a /data - ext4 /dev/vda1", false),
            ("/srv/a /data none bind", "254:1 /srv/b /data - ext4 /dev/vda1", false),
            ("/boot/efi/EFI /data none bind", "254:15 /EFI /data - vfat /dev/vda15", true),
            (esp, "254:1 /srv/efi /boot/efi - ext4 /dev/vda1", false),
            ("tmpfs /data tmpfs", "0:40 / /data - tmpfs tmpfs", true),
            ("tmpfs /data tmpfs", "254:1 /srv /data - ext4 /dev/vda1", false),
        ] {
            let (device, rest) = line.split_once(' ').unwrap();
            let table =
                mount_table::parse(format!("{TABLE}9 1 {device} {} rw\n", rest.replace(" - ", " rw - ")).as_bytes())
                    .unwrap();
            let planned = fstab::lines(fstab.as_bytes());
            let mut boot = PlannedBoot { planned: &planned, table: &table, devices: &mut NumberedDevices };
            assert_eq!(boot.makes(table.last().unwrap()), is_made, "{fstab}: {line}");
        }
    }

    #[test]
    fn mounts_outside_the_image_are_left_alone() {
        assert!(is_volatile(b"/run/user/1000") && is_volatile(b"/dev"));
        assert!(!is_volatile(b"/running") && !is_volatile(b"/tmp/chroot/dev"));
    }
}
