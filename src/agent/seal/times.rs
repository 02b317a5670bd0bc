//! Sets back modification times that are later than the build's epoch.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::mount_table::{Devices, Location, MountLine, visible};
use super::super::{RequestFailure, sys};

const SECOND: i64 = 1_000_000_000;

/// Returns the mount points of the image's disk.
pub fn disk_mounts(table: &[MountLine]) -> Vec<PathBuf> {
    let mut devices = Devices::default();
    let on_disk: Vec<bool> = table.iter().map(|line| devices.locate(line) != Location::Elsewhere).collect();
    let found = visible(table, &on_disk).into_iter();
    found.map(|index| OsString::from_vec(table[index].target.clone()).into()).collect()
}

/// Sets back the times in these file systems of a root folder, in seconds since the epoch. Each file is written to `records`
/// with its change time, since setting a time is a change itself.
///
/// # Errors
/// When `records` cannot be written. What cannot be read or set stays as it is.
pub fn set_back(root: &Path, mounts: &[PathBuf], epoch: i64, records: &mut impl Write) -> Result<(), RequestFailure> {
    let walk = TimeWalk { root, mounts: mounts.iter().collect(), epoch };
    let set = mounts.iter().try_for_each(|mount| walk.visit(mount, records));
    set.map_err(RequestFailure::at("the port"))
}

struct TimeWalk<'a> {
    root: &'a Path,
    mounts: HashSet<&'a PathBuf>,
    epoch: i64,
}

impl TimeWalk<'_> {
    fn visit(&self, start: &Path, records: &mut impl Write) -> io::Result<()> {
        let Ok(about) = fs::symlink_metadata(start) else { return Ok(()) };
        let device = about.dev();
        let mut open = vec![(start.to_owned(), about)];
        while let Some((path, about)) = open.pop() {
            if about.is_dir() {
                let names = fs::read_dir(&path).into_iter().flatten().flatten();
                let below = names.filter_map(|entry| Some((entry.path(), fs::symlink_metadata(entry.path()).ok()?)));
                open.extend(below.filter(|(path, about)| about.dev() == device && !self.mounts.contains(path)));
            }
            self.set(&path, &about, records)?;
        }
        Ok(())
    }

    fn set(&self, path: &Path, about: &Metadata, records: &mut impl Write) -> io::Result<()> {
        if (about.mtime(), about.mtime_nsec()) <= (self.epoch, 0) {
            return Ok(());
        }
        if sys::set_mtime(path, self.epoch.saturating_mul(SECOND)).is_err() {
            return Ok(());
        }
        let inner = Path::new("/").join(path.strip_prefix(self.root).unwrap_or(path));
        write!(records, "{}.{:09} ", about.ctime(), about.ctime_nsec())?;
        records.write_all(inner.as_os_str().as_bytes())?;
        records.write_all(b"\0")
    }
}
