//! Discards the free blocks of the image's file systems.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::super::mount_table::{Devices, Location, MountLine};
use super::super::sys;

/// Discards the free blocks of each file system on the image's disk. A file system that does not support that is skipped.
pub fn trim(table: &[MountLine]) {
    let mut devices = Devices::default();
    let mut seen = HashSet::new();
    for line in table {
        if devices.locate(line) != Location::Elsewhere && seen.insert(line.device) {
            let folder = File::open(Path::new(OsStr::from_bytes(&line.target)));
            let _ = folder.and_then(|folder| sys::trim(&folder));
        }
    }
}
