//! The file systems of the image's disk that are mounted in the guest, and their mount points.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::leftovers::Leftovers;
use super::mount_table::{Devices, Location, MountLine, read_table, visible};
use super::{RequestFailure, next_boot};
use crate::wire::mounts::{self, GuestMount, RPM_DATABASES};
use crate::wire::{Class, Message};

/// The offsets in bytes of an ext file system's magic number and of its incompatible features (the kernel's "Super Block").
const EXT_MAGIC: u64 = 1024 + 0x38;
const EXT_FEATURES: u64 = 1024 + 0x60;

/// Describes the mounts of the image's disk.
///
/// # Errors
/// When the table cannot be read, or is larger than an answer may be.
pub fn describe(left: &Leftovers) -> Result<Message, RequestFailure> {
    let lines = read_table()?;
    let mut devices = Devices::default();
    let locations: Vec<Location> = lines.iter().map(|line| devices.locate(line)).collect();
    let on_disk: Vec<bool> = locations.iter().map(|location| *location != Location::Elsewhere).collect();
    let found = visible(&lines, &on_disk);
    let boot = next_boot::describe()?;
    let planned: Vec<&[u8]> = boot.mounts.iter().map(|mount| mount.target.as_slice()).collect();
    // One probe of a device answers for all of its subvolumes that are mounted.
    let mut default_roots = HashMap::new();
    let mut mounts = Vec::new();
    for index in found {
        let line = &lines[index];
        let mut mount = describe_mount(line, &locations[index]);
        mount.is_original = left.is_original(line, &planned);
        if line.kind == "btrfs" {
            let known = default_roots.entry(line.source.clone());
            mount.default_root.clone_from(known.or_insert_with_key(|device| next_boot::default_root(device)));
        }
        mounts.push(mount);
    }
    let is_sound = mounts::check(&mounts, &boot).is_ok();
    let has_rpm = RPM_DATABASES.iter().any(|path| Path::new(path).exists());
    let answer = Message::Mounted { mounts, boot, has_rpm };
    if is_sound && mounts::fits(&answer) {
        return Ok(answer);
    }
    Err(RequestFailure::new(Class::System {}, "the mount table is too large"))
}

fn describe_mount(line: &MountLine, location: &Location) -> GuestMount {
    let (partitions, is_plain) = match location {
        Location::Elsewhere => (Vec::new(), false),
        Location::Disk { partitions, is_plain } => (partitions.clone(), *is_plain),
    };
    GuestMount {
        target: line.target.clone(),
        kind: line.kind.clone(),
        root: line.root.clone(),
        source: line.source.clone(),
        partitions,
        is_plain,
        is_original: false,
        subvolume: line.subvolume().unwrap_or(0),
        default_root: None,
        features: if is_plain { ext_features(Path::new(OsStr::from_bytes(&line.source))).unwrap_or(0) } else { 0 },
    }
}

/// Reads the incompatible features of an ext file system from its superblock; `None` if the device has no such file system.
fn ext_features(device: &Path) -> Option<u32> {
    let file = fs::File::open(device).ok()?;
    let mut magic = [0; 2];
    let mut features = [0; 4];
    file.read_exact_at(&mut magic, EXT_MAGIC).ok()?;
    file.read_exact_at(&mut features, EXT_FEATURES).ok()?;
    (u16::from_le_bytes(magic) == 0xef53).then_some(u32::from_le_bytes(features))
}
