//! Reads the whole tree of a sealed file system, and says what it contains in one digest.
//!
//! Entries come depth first: a directory before what is in it, names sorted by their bytes within each directory. Hard
//! links are entries of their own with the same inode number. Memory does not grow with the size of files.
//!
//! # The canonical text
//! `content_sha256` is the SHA-256 of a text that depends on what the tree contains and on nothing else. Its first line
//! is `kiln tree 1`; then each entry has one line of fields in this order, one space between them:
//!
//! ```text
//! path=/etc/motd type=file mode=0644 owner=0:0 size=12 sha256=<64 hex digits>
//! path=/bin type=link mode=0777 owner=0:0 to=usr/bin
//! path=/dev/null type=char mode=0666 owner=0:0 device=1:3
//! path=/usr/bin/ping type=file mode=0755 owner=0:0 size=90568 sha256=<...> xattr:security.capability=<hex>
//! ```
//!
//! `type` is file, dir, link, char, block, fifo or socket. In paths, link targets and attribute names every byte that is
//! not a visible ASCII character, and the backslash, is written `\xNN`. Attributes follow in the order of their names,
//! values in hexadecimal as the file system stores them.
//!
//! Left out on purpose: times, because two builds of the same thing differ in nothing else; inode numbers, link counts,
//! the size of directories and where blocks lie, because they are the file system's business.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::ops::ControlFlow;

use sha2::{Digest, Sha256};

use super::chain::{Chain, ChainError};
use super::digest::hash_zeroes;
use super::ext4::{Chunk, DirectoryEntry, Ext4, Ext4Error, FileKind, Inode, ROOT, Time, Xattr};
use super::partition::partitions;
use crate::digest::hex;
use crate::error::{self, Fault};

/// The first line of the canonical text.
pub(super) const VERSION: &str = "kiln tree 1\n";
/// Ten times what the largest distributions install.
const MAX_ENTRIES: u64 = 20_000_000;
/// All content read in one walk, as a multiple of the file system's size. Holes count: a few bytes can claim terabytes
/// of them, and hashing those would keep us busy for hours.
const MAX_CONTENT: u64 = 64;
/// Longest path we follow; the kernel takes 4096 bytes in one call, but trees can be deeper.
const MAX_PATH: usize = 64 << 10;
/// As many links as Linux follows in one path (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// Reading a tree failed.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The disk.
    #[error(transparent)]
    Read(#[from] ChainError),
    /// The file system.
    #[error("cannot read the guest's file system")]
    FileSystem(#[from] Ext4Error),
    /// Nothing that could be the root.
    #[error("no partition of the disk has an ext4 file system")]
    NoRoot,
    /// A directory that contains itself.
    #[error("the guest's file system is damaged: directory inode {0} is in the tree twice")]
    Loop(u32),
    /// Beyond our limits.
    #[error("the guest's file system has {0} than kiln reads")]
    TooMuch(&'static str),
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

impl Fault for TreeError {
    fn kind(&self) -> error::Kind {
        match self {
            TreeError::Read(error) => error.kind(),
            TreeError::FileSystem(error) => error.kind(),
            TreeError::Stopped => error::Kind::Interrupted,
            _ => error::Kind::Output,
        }
    }
}

/// One name in the tree and what it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Absolute; `/` for the root directory itself.
    pub path: Vec<u8>,
    /// Its type.
    pub kind: FileKind,
    /// Permission bits, 0 to 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a regular file; 0 for everything else.
    pub size: u64,
    /// Of a regular file's content.
    pub sha256: Option<[u8; 32]>,
    /// Where a symbolic link points to.
    pub target: Option<Vec<u8>>,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
    /// Sorted by name.
    pub xattrs: Vec<Xattr>,
    /// When its content changed. Not part of the canonical text.
    pub modified: Time,
    /// When anything of it changed last, by the guest's clock. Not part of the canonical text.
    pub changed: Time,
    /// Same number, same file. Not part of the canonical text.
    pub inode: u32,
}

/// The guest's root file system.
#[derive(Debug)]
pub struct Tree<'c> {
    fs: Ext4<'c>,
}

impl<'c> Tree<'c> {
    /// Finds the root file system: the first ext4 with an `/etc/os-release`, else the largest ext4 of the disk.
    ///
    /// # Errors
    /// When there is no ext4, or the disk cannot be read. A file system that cannot be opened for another reason is
    /// an error only if nothing better is found.
    pub fn open(disk: &'c Chain) -> Result<Self, TreeError> {
        let mut best: Option<Self> = None;
        let mut refused = None;
        for partition in partitions(disk)? {
            let tree = match Ext4::open(disk, partition.start, partition.length) {
                Ok(fs) => Self { fs },
                Err(Ext4Error::NotExt4) => continue,
                Err(error) => {
                    refused.get_or_insert(error);
                    continue;
                }
            };
            // A file system too damaged to be looked into is not the root; reading it later would say why.
            if tree.find("/etc/os-release").is_ok_and(|found| found.is_some()) {
                return Ok(tree);
            }
            if best.as_ref().is_none_or(|best| tree.fs.size() > best.fs.size()) {
                best = Some(tree);
            }
        }
        match (best, refused) {
            (Some(tree), _) => Ok(tree),
            (None, Some(error)) => Err(error.into()),
            (None, None) => Err(TreeError::NoRoot),
        }
    }

    /// Whether the file system was unmounted as it should be.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.fs.is_clean()
    }

    /// The content of a regular file of at most `limit` bytes; symbolic links are followed within the guest. `None`
    /// where there is no such file.
    ///
    /// # Errors
    /// When it is longer, or the file system is damaged or cannot be read.
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, TreeError> {
        let found = self.find(path)?.filter(|inode| inode.kind == FileKind::File);
        Ok(found.map(|inode| self.fs.read(&inode, limit)).transpose()?)
    }

    /// Resolves an absolute path as the guest would, links included.
    fn find(&self, path: &str) -> Result<Option<Inode>, Ext4Error> {
        let mut parents: Vec<u32> = Vec::new();
        let mut at = self.fs.inode(ROOT)?;
        let mut left = components(path.as_bytes());
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == b".." {
                at = self.fs.inode(parents.pop().unwrap_or(ROOT))?;
                continue;
            }
            let Some(next) = self.child(&at, &name)? else { return Ok(None) };
            if next.kind != FileKind::Link {
                parents.push(at.number);
                at = next;
                continue;
            }
            let target = self.fs.link_target(&next)?;
            links += 1;
            if links > MAX_LINKS {
                return Ok(None);
            }
            if target.starts_with(b"/") {
                parents.clear();
                at = self.fs.inode(ROOT)?;
            }
            left.extend(components(&target));
        }
        Ok(Some(at))
    }

    fn child(&self, directory: &Inode, name: &[u8]) -> Result<Option<Inode>, Ext4Error> {
        if directory.kind != FileKind::Directory {
            return Ok(None);
        }
        let entries = self.fs.read_directory(directory)?;
        let found = entries.into_iter().find(|entry| entry.name == name);
        found.map(|entry| self.fs.inode(entry.inode)).transpose()
    }

    /// Gives every entry to `visit`, which may stop the walk. Blocks the calling thread: file contents are hashed.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read, or `visit` breaks.
    pub fn walk(&self, visit: &mut dyn FnMut(&Entry) -> ControlFlow<()>) -> Result<(), TreeError> {
        let budget = self.fs.size().saturating_mul(MAX_CONTENT);
        let mut walk = Walk { fs: &self.fs, budget, directories: HashSet::new(), digests: HashMap::new() };
        let root = walk.enter(ROOT)?;
        let mut open = vec![(Vec::new(), root.into_iter())];
        tell(visit, &walk.entry(b"/".to_vec(), &self.fs.inode(ROOT)?)?)?;
        let mut count = 0;
        while let Some((path, entries)) = open.last_mut() {
            let Some(next) = entries.next() else {
                open.pop();
                continue;
            };
            count += 1;
            let path = [path.as_slice(), b"/", &next.name].concat();
            if count > MAX_ENTRIES || path.len() > MAX_PATH {
                return Err(TreeError::TooMuch("more names or longer paths"));
            }
            let inode = self.fs.inode(next.inode)?;
            tell(visit, &walk.entry(path.clone(), &inode)?)?;
            if inode.kind == FileKind::Directory {
                open.push((path, walk.enter(inode.number)?.into_iter()));
            }
        }
        Ok(())
    }

    /// The digest of the canonical text of the whole tree.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub fn content_sha256(&self) -> Result<[u8; 32], TreeError> {
        let mut content = ContentDigest::new();
        self.walk(&mut |entry| {
            content.add(entry);
            ControlFlow::Continue(())
        })?;
        Ok(content.finish())
    }
}

/// The names in a path, last first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.rev().map(<[u8]>::to_vec).collect()
}

fn tell(visit: &mut dyn FnMut(&Entry) -> ControlFlow<()>, entry: &Entry) -> Result<(), TreeError> {
    if visit(entry).is_break() { Err(TreeError::Stopped) } else { Ok(()) }
}

/// What a walk remembers.
struct Walk<'f, 'c> {
    fs: &'f Ext4<'c>,
    /// Bytes of content that may still be read.
    budget: u64,
    /// Directories entered: none may come again.
    directories: HashSet<u32>,
    /// Of files with several names, so that each is hashed once.
    digests: HashMap<u32, [u8; 32]>,
}

impl Walk<'_, '_> {
    fn enter(&mut self, directory: u32) -> Result<Vec<DirectoryEntry>, TreeError> {
        if !self.directories.insert(directory) {
            return Err(TreeError::Loop(directory));
        }
        Ok(self.fs.read_directory(&self.fs.inode(directory)?)?)
    }

    fn entry(&mut self, path: Vec<u8>, inode: &Inode) -> Result<Entry, TreeError> {
        let is_file = inode.kind == FileKind::File;
        let is_link = inode.kind == FileKind::Link;
        Ok(Entry {
            path,
            kind: inode.kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            size: if is_file { inode.size } else { 0 },
            sha256: is_file.then(|| self.digest(inode)).transpose()?,
            target: is_link.then(|| self.fs.link_target(inode)).transpose()?,
            device: inode.device(),
            xattrs: self.fs.xattrs(inode)?,
            modified: inode.modified,
            changed: inode.changed,
            inode: inode.number,
        })
    }

    fn digest(&mut self, inode: &Inode) -> Result<[u8; 32], TreeError> {
        if let Some(digest) = self.digests.get(&inode.number) {
            return Ok(*digest);
        }
        self.budget = self.budget.checked_sub(inode.size).ok_or(TreeError::TooMuch("larger files"))?;
        let mut sha = Sha256::new();
        let _ = self.fs.read_chunks(inode, &mut |chunk| {
            match chunk {
                Chunk::Data(bytes) => sha.update(bytes),
                Chunk::Zeroes(count) => hash_zeroes(&mut sha, count),
            }
            ControlFlow::Continue(())
        })?;
        let digest = sha.finalize().into();
        if inode.links > 1 {
            self.digests.insert(inode.number, digest);
        }
        Ok(digest)
    }
}

/// Collects the canonical text of entries into a digest, for a walk that has other things to do as well.
#[derive(Debug, Default)]
pub struct ContentDigest(Sha256);

impl ContentDigest {
    /// The text begins with its version.
    #[must_use]
    pub fn new() -> Self {
        Self(Sha256::new_with_prefix(VERSION))
    }

    /// Entries are added in the order of [`Tree::walk`].
    pub fn add(&mut self, entry: &Entry) {
        self.0.update(canonical(entry));
    }

    /// The digest of all of them.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// The line of an entry in the canonical text, with its newline.
#[must_use]
pub fn canonical(entry: &Entry) -> String {
    let (mode, uid, gid) = (entry.mode, entry.uid, entry.gid);
    let mut line =
        format!("path={} type={} mode={mode:04o} owner={uid}:{gid}", escaped(&entry.path), type_name(entry.kind));
    if let Some(digest) = &entry.sha256 {
        let _ = write!(line, " size={} sha256={}", entry.size, hex(digest));
    }
    if let Some(target) = &entry.target {
        let _ = write!(line, " to={}", escaped(target));
    }
    if let Some((major, minor)) = entry.device {
        let _ = write!(line, " device={major}:{minor}");
    }
    for xattr in &entry.xattrs {
        let _ = write!(line, " xattr:{}={}", escaped(&xattr.name), hex(&xattr.value));
    }
    line.push('\n');
    line
}

fn escaped(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        match byte {
            b'!'..=b'~' if *byte != b'\\' => text.push(char::from(*byte)),
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
        text
    })
}

fn type_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "dir",
        FileKind::Link => "link",
        FileKind::CharDevice => "char",
        FileKind::BlockDevice => "block",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_everything_once() {
        let entry = Entry {
            path: b"/a b\\\xff".to_vec(),
            kind: FileKind::File,
            mode: 0o4755,
            uid: 0,
            gid: 70_000,
            size: 1,
            sha256: Some([0xab; 32]),
            target: None,
            device: None,
            xattrs: vec![Xattr { name: b"user.x=".to_vec(), value: vec![1, 0xff] }],
            modified: Time { seconds: 1, nanoseconds: 2 },
            changed: Time { seconds: 3, nanoseconds: 4 },
            inode: 12,
        };
        let digest = "ab".repeat(32);
        let expected = format!(
            "path=/a\\x20b\\x5c\\xff type=file mode=4755 owner=0:70000 size=1 sha256={digest} xattr:user.x==01ff\n"
        );
        assert_eq!(canonical(&entry), expected);
    }
}
