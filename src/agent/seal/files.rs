//! File operations on the tree that is being sealed. Mount points are never removed, and `chattr +i` and `+a` are lifted for
//! each change.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::super::{RequestFailure, folder_names, sys};
use crate::wire::path_pattern::{self, FolderView};

/// `FS_IMMUTABLE_FL` and `FS_APPEND_FL`: `chattr +i` and `+a`.
const PROTECTING: u64 = 0x10 | 0x20;
/// The largest configuration file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// The root folder of a guest.
#[derive(Debug)]
pub struct SealRoot {
    root: PathBuf,
    mount_points: HashSet<PathBuf>,
    homes: Vec<String>,
    notes: RefCell<Vec<String>>,
}

impl SealRoot {
    /// Creates the root of a guest from a folder, with file systems mounted at these paths.
    pub fn new(root: PathBuf, mount_points: HashSet<PathBuf>) -> Self {
        let passwd = fs::read(root.join("etc/passwd")).unwrap_or_default();
        let homes = path_pattern::homes(&String::from_utf8_lossy(&passwd));
        Self { root, mount_points, homes, notes: RefCell::default() }
    }

    /// Returns the notes for the debug log, and clears them.
    pub fn take_notes(&self) -> Vec<String> {
        self.notes.take()
    }

    /// Returns the path on this machine of a path of the guest.
    pub fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Returns whether a path of the guest exists.
    pub fn exists(&self, path: &str) -> bool {
        self.place(path).exists()
    }

    /// Returns the existing paths that match a pattern.
    pub fn find(&self, pattern: &str) -> Result<Vec<PathBuf>, RequestFailure> {
        let mut found = Vec::new();
        for pattern in path_pattern::in_homes(pattern, &self.homes) {
            let paths = path_pattern::expand(&pattern, self)?;
            found.extend(paths.into_iter().map(|path| self.inner_place(&path)));
        }
        found.retain(|place| fs::symlink_metadata(place).is_ok());
        Ok(found)
    }

    fn inner_place(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsString::from_vec(path.strip_prefix(b"/").unwrap_or(path).to_vec()))
    }

    /// Removes a file, a link, or a folder with all its content, except for what is mounted there.
    pub fn remove(&self, place: &Path) -> Result<(), RequestFailure> {
        self.remove_all(place).map(|_| ())
    }

    /// Removes the entry at a path with all its content, and returns whether nothing is left.
    fn remove_all(&self, place: &Path) -> Result<bool, RequestFailure> {
        if self.mount_points.contains(place) {
            self.notes.borrow_mut().push(format!("{} is kept: a file system is mounted there", place.display()));
            return Ok(false);
        }
        let Some(about) = metadata(place)? else { return Ok(true) };
        if !about.is_dir() {
            return unprotected(place, || fs::remove_file(place)).map(|()| true).map_err(refusal(place));
        }
        let mut is_empty = true;
        for name in folder_names(place).map_err(refusal(place))? {
            is_empty &= self.remove_all(&place.join(name))?;
        }
        if is_empty {
            unprotected(place, || fs::remove_dir(place)).map_err(refusal(place))?;
        }
        Ok(is_empty)
    }

    /// Removes a regular file; anything else stays as it is.
    pub fn remove_file(&self, place: &Path) -> Result<(), RequestFailure> {
        match metadata(place)? {
            Some(about) if about.is_file() => self.remove(place),
            _ => Ok(()),
        }
    }

    /// Removes a folder if it is empty.
    pub fn remove_empty_folder(&self, place: &Path) -> Result<(), RequestFailure> {
        let is_folder = metadata(place)?.is_some_and(|about| about.is_dir());
        if is_folder && folder_names(place).map_err(refusal(place))?.is_empty() {
            return self.remove(place);
        }
        Ok(())
    }
}

/// Empties a regular file; anything else stays as it is.
pub fn empty_file(place: &Path) -> Result<(), RequestFailure> {
    match metadata(place)? {
        Some(about) if about.is_file() && about.len() > 0 => write_file(place, b""),
        _ => Ok(()),
    }
}

/// Writes a file, in place if it exists. Does nothing if its folder does not exist, since then no program reads the file.
pub fn write_file(place: &Path, content: &[u8]) -> Result<(), RequestFailure> {
    match unprotected(place, || overwrite(place, content)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        written => written.map_err(refusal(place)),
    }
}

fn overwrite(place: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).custom_flags(sys::O_NOFOLLOW).open(place)?;
    io::Write::write_all(&mut file, content)
}

/// Reads a regular file, unless it is larger than any configuration file.
pub fn read_file(place: &Path) -> Result<Option<Vec<u8>>, RequestFailure> {
    match metadata(place)? {
        Some(about) if about.is_file() && about.len() <= LARGEST => fs::read(place).map(Some).map_err(refusal(place)),
        _ => Ok(None),
    }
}

impl FolderView for SealRoot {
    type Error = RequestFailure;

    fn names(&self, folder: &[u8]) -> Result<Vec<Vec<u8>>, RequestFailure> {
        let place = self.inner_place(folder);
        let names = existing(folder_names(&place)).map_err(refusal(&place))?;
        Ok(names.unwrap_or_default().into_iter().map(OsString::into_vec).collect())
    }

    fn entries(&self, folder: &[u8]) -> Result<Vec<(Vec<u8>, bool)>, RequestFailure> {
        let place = self.inner_place(folder);
        let entries = existing(fs::read_dir(&place)).map_err(refusal(&place))?;
        let entries = entries.into_iter().flatten().flatten().map(|entry| {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            (entry.file_name().into_vec(), is_folder && !self.mount_points.contains(&entry.path()))
        });
        Ok(entries.collect())
    }
}

fn refusal(place: &Path) -> impl FnOnce(io::Error) -> RequestFailure {
    RequestFailure::at(place.display())
}

/// Returns the metadata of the entry at a path; links are not followed.
fn metadata(place: &Path) -> Result<Option<Metadata>, RequestFailure> {
    existing(fs::symlink_metadata(place)).map_err(refusal(place))
}

/// Returns `None` if the error is that nothing exists there.
fn existing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        other => other.map(Some),
    }
}

/// Runs `act`. If permission is denied, clears the immutable and append-only attributes of the file and its folder, runs `act`
/// again, and restores the attributes of what still exists.
fn unprotected(place: &Path, act: impl Fn() -> io::Result<()>) -> io::Result<()> {
    match act() {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        other => return other,
    }
    let protected: Vec<(File, u64)> = place.parent().into_iter().chain([place]).filter_map(unprotect).collect();
    let done = act();
    for (file, flags) in protected {
        // A file that was removed needs no attributes.
        if file.metadata().is_ok_and(|about| about.nlink() > 0) {
            sys::set_inode_flags(&file, flags)?;
        }
    }
    done
}

/// Clears the immutable and append-only attributes of a file or folder. Returns the opened file with its former attributes, or
/// `None` if there was nothing to clear.
fn unprotect(place: &Path) -> Option<(File, u64)> {
    let is_plain = fs::symlink_metadata(place).is_ok_and(|about| about.is_file() || about.is_dir());
    let opened = OpenOptions::new().read(true).custom_flags(sys::O_NOFOLLOW | sys::O_NONBLOCK).open(place);
    let file = opened.ok().filter(|_| is_plain)?;
    let flags = sys::inode_flags(&file).ok().filter(|flags| flags & PROTECTING != 0)?;
    sys::set_inode_flags(&file, flags & !PROTECTING).ok()?;
    Some((file, flags))
}

/// Returns whether this is a link to the machine ID. Such a link is kept.
pub fn is_machine_id_link(place: &Path) -> bool {
    fs::read_link(place).is_ok_and(|target| target.as_os_str().as_bytes().ends_with(b"etc/machine-id"))
}
