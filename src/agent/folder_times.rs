//! Changes of files that their folders do not show.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::sys;

/// Creates, changes or removes a file, and gives its folder the modification time of before.
///
/// # Errors
/// Those of `change`, or when the time cannot be set.
pub fn keep_time_of_folder(file: &Path, change: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let Some(folder) = file.parent() else { return change(file) };
    keep_time(folder, || change(file))
}

/// Gives a file or folder the modification time that it had before a change.
///
/// # Errors
/// Those of `change`, or when the time cannot be set.
pub fn keep_time(path: &Path, change: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let before = fs::metadata(path)?;
    change()?;
    sys::set_mtime(path, before.mtime() * 1_000_000_000 + before.mtime_nsec())
}
