//! The files of a disk that kiln cannot read, as listed by the guest.
//!
//! The guest may list anything. Its list is only accepted if it is consistent: each file once, in order, below a directory
//! that was listed before.

use std::fs::File;
use std::io::{BufReader, Seek};
use std::ops::ControlFlow;

use super::entry::{DiskEntry, FileDigest, FileKind, Time, Xattr};
use super::listing::order;
use super::tree::{MAX_ENTRIES, TreeError};
use crate::digest::Sha256Digest;
use crate::wire::listing::{Kind, Listed, Moment, get};

/// A stream of records ([`crate::wire::listing`]) in a file.
#[derive(Debug)]
pub struct GuestListing {
    file: File,
    /// The number of entries that the guest has announced.
    entries: u64,
}

impl GuestListing {
    /// Creates the list from the records in a file, which is read from its beginning.
    #[must_use]
    pub fn new(file: File, entries: u64) -> Self {
        Self { file, entries }
    }

    /// Passes every entry to `visit`, as [`super::tree::Tree::walk`] does. Blocks the calling thread.
    ///
    /// # Errors
    /// When the file cannot be read, the guest's list is inconsistent, or `visit` breaks.
    pub fn walk(&self, visit: &mut dyn FnMut(&DiskEntry) -> ControlFlow<()>) -> Result<(), TreeError> {
        let mut input = BufReader::new(&self.file);
        input.rewind().map_err(TreeError::Told)?;
        let mut count = 0;
        let mut last = None;
        let mut directories = Vec::new();
        while let Some(listed) = get(&mut input).map_err(TreeError::Told)? {
            let path = listed.path.clone();
            check(&listed, last.as_deref(), &mut directories)?;
            count += 1;
            if count > MAX_ENTRIES {
                return Err(TreeError::TooMuch("more names or longer paths"));
            }
            if visit(&entry(listed)).is_break() {
                return Err(TreeError::Stopped);
            }
            last = Some(path);
        }
        if count == self.entries && count > 0 { Ok(()) } else { Err(impossible("other files than it counted")) }
    }
}

/// Checks that a path comes after the last one, and is below a directory that was listed.
fn check(listed: &Listed, last: Option<&[u8]>, directories: &mut Vec<Vec<u8>>) -> Result<(), TreeError> {
    let path = &listed.path;
    let is_directory = listed.kind == Kind::Dir {};
    let Some(last) = last else {
        directories.push(Vec::new());
        return if path == b"/" && is_directory { Ok(()) } else { Err(impossible("a tree without a root")) };
    };
    if order(last, path).is_ge() {
        return Err(impossible("files out of order"));
    }
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let folder = &path[..end];
    while directories.pop_if(|open| open != folder).is_some() {}
    if directories.is_empty() {
        return Err(impossible("a file without its directory"));
    }
    if is_directory {
        directories.push(path.clone());
    }
    Ok(())
}

fn impossible(what: &'static str) -> TreeError {
    TreeError::Told(std::io::Error::new(std::io::ErrorKind::InvalidData, what))
}

fn time(moment: &Moment) -> Time {
    Time { seconds: moment.seconds, nanoseconds: moment.nanoseconds }
}

fn entry(listed: Listed) -> DiskEntry {
    let mut entry = DiskEntry {
        path: listed.path,
        kind: FileKind::File,
        mode: listed.mode,
        uid: listed.uid,
        gid: listed.gid,
        size: 0,
        digest: None,
        target: None,
        device: None,
        xattrs: listed.xattrs.into_iter().map(|xattr| Xattr { name: xattr.name, value: xattr.value }).collect(),
        modified: time(&listed.modified),
        changed: time(&listed.changed),
        file: (listed.device, listed.inode),
    };
    match listed.kind {
        Kind::File { size, sha256 } => {
            entry.size = size;
            entry.digest = digest(sha256).map(FileDigest::Content);
        }
        Kind::SparseFile { size, sha256 } => {
            entry.size = size;
            entry.digest = digest(sha256).map(FileDigest::Sparse);
        }
        Kind::Dir {} => entry.kind = FileKind::Directory,
        Kind::Symlink { target } => {
            entry.kind = FileKind::Link;
            entry.target = Some(target);
        }
        Kind::CharDevice { major, minor } => {
            entry.kind = FileKind::CharDevice;
            entry.device = Some((major, minor));
        }
        Kind::BlockDevice { major, minor } => {
            entry.kind = FileKind::BlockDevice;
            entry.device = Some((major, minor));
        }
        Kind::Fifo {} => entry.kind = FileKind::Fifo,
        Kind::Socket {} => entry.kind = FileKind::Socket,
    }
    entry
}

fn digest(sha256: Vec<u8>) -> Option<Sha256Digest> {
    sha256.try_into().ok().map(Sha256Digest::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::listing::put;

    fn listed(path: &str, kind: Kind) -> Listed {
        let time = Moment { seconds: 1, nanoseconds: 2 };
        let (modified, changed) = (time.clone(), time);
        Listed {
            path: path.into(),
            mode: 0o755,
            uid: 0,
            gid: 0,
            kind,
            xattrs: Vec::new(),
            modified,
            changed,
            device: 1,
            inode: 2,
        }
    }

    /// Returns the paths read from records with these paths; one that ends in `/` is a directory.
    fn walked(paths: &[&str], entries: u64) -> Result<Vec<String>, TreeError> {
        let mut file = tempfile::tempfile().unwrap();
        for path in paths {
            let record = match path.strip_suffix('/') {
                Some("") => listed("/", Kind::Dir {}),
                Some(path) => listed(path, Kind::Dir {}),
                None => listed(path, Kind::File { size: 1, sha256: vec![7; 32] }),
            };
            put(&record, &mut file).unwrap();
        }
        let mut found = Vec::new();
        GuestListing::new(file, entries).walk(&mut |entry| {
            assert_eq!(entry.digest.is_some(), entry.kind == FileKind::File);
            found.push(String::from_utf8(entry.path.clone()).unwrap());
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    #[test]
    fn a_tree_that_makes_sense_is_believed() {
        let paths = ["/", "/a/", "/a/b/", "/a/b/c", "/a/d", "/a-b", "/e/"];
        assert_eq!(walked(&paths, 7).unwrap(), ["/", "/a", "/a/b", "/a/b/c", "/a/d", "/a-b", "/e"]);
    }

    #[test]
    fn a_tree_that_cannot_be_is_refused() {
        for (paths, why) in [
            (&[][..], "other files than it counted"),
            (&["/a"], "a tree without a root"),
            (&["/a/", "/"], "a tree without a root"),
            (&["/", "/b", "/a"], "files out of order"),
            (&["/", "/a", "/a"], "files out of order"),
            (&["/", "/"], "files out of order"),
            (&["/", "/a", "/a/b"], "a file without its directory"),
            (&["/", "/a/", "/b", "/b/c"], "a file without its directory"),
            (&["/", "/a/b"], "a file without its directory"),
        ] {
            let error = walked(paths, paths.len() as u64).unwrap_err();
            let TreeError::Told(source) = &error else { panic!("{error:?}") };
            assert_eq!(source.to_string(), why, "{paths:?}");
        }
        assert!(walked(&["/", "/a"], 3).is_err() && walked(&["/", "/a"], 1).is_err());
        let mut cut = tempfile::tempfile().unwrap();
        put(&listed("/", Kind::Dir {}), &mut cut).unwrap();
        cut.set_len(30).unwrap();
        assert!(matches!(GuestListing::new(cut, 1).walk(&mut |_| ControlFlow::Continue(())), Err(TreeError::Told(_))));
    }
}
