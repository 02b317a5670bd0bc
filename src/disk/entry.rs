//! One file of a tree, whichever reader produced it, and its line in the canonical text.
//!
//! # The canonical text
//! `content_sha256` is the SHA-256 of a text that depends on what the tree contains and on nothing else. Its first line is
//! `kiln tree 1`; then each entry has one line of fields in this order, one space between them:
//!
//! ```text
//! path=/etc/motd type=file mode=0644 owner=0:0 size=12 sha256=<64 hex digits>
//! path=/bin type=link mode=0777 owner=0:0 to=usr/bin
//! path=/dev/null type=char mode=0666 owner=0:0 device=1:3
//! path=/usr/bin/ping type=file mode=0755 owner=0:0 size=90568 sha256=<...> xattr:security.capability=<hex>
//! ```
//!
//! A file with more than 1 GiB of zeroes has `sparse_sha256=` instead of `sha256=` ([`crate::wire::sparse_blocks`]).
//!
//! `type` is file, dir, link, char, block, fifo or socket. In paths, link targets and attribute names every byte that is not
//! a visible ASCII character, and the backslash, is written `\xNN`. Attributes follow in the order of their names, values in
//! hexadecimal as getxattr(2) gives them.
//!
//! Left out on purpose: times, because two builds of the same thing differ in nothing else; inode numbers, link counts, the
//! size of directories and where blocks lie, because they are the file system's business.
//!
//! FAT has neither owners nor modes nor links nor attributes. Its files have what Linux shows in a mount without options:
//! owner 0:0, mode 0755, and 0555 for a file marked as read-only. Its times count as UTC.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::digest::{Sha256Digest, hex};

/// The first line of the canonical text.
pub(super) const VERSION: &str = "kiln tree 1\n";

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A point in time as the file system has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanoseconds: u32,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// The name with its namespace, such as `security.capability`.
    pub name: Vec<u8>,
    /// The value as getxattr(2) returns it.
    pub value: Vec<u8>,
}

/// The digest of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileDigest {
    /// The SHA-256 of its content.
    Content(Sha256Digest),
    /// For a file with more than 1 GiB of zeroes: the SHA-256 of its other blocks ([`crate::wire::sparse_blocks`]).
    Sparse(Sha256Digest),
}

/// One name in the tree and the file that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskEntry {
    /// The absolute path; `/` for the root directory itself.
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
    /// The digest of a regular file's content.
    pub digest: Option<FileDigest>,
    /// The target of a symbolic link.
    pub target: Option<Vec<u8>>,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
    /// The extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
    /// The time of the last change of its content. Not part of the canonical text.
    pub modified: Time,
    /// The time of the last change of the file or its attributes, by the guest's clock. Not part of the canonical text.
    pub changed: Time,
    /// File system and inode: the same pair is the same file. Not part of the canonical text.
    pub file: (u64, u64),
}

/// Hashes the canonical text of entries, for a walk that has other things to do as well.
#[derive(Debug, Default)]
pub struct ContentDigest(Sha256);

impl ContentDigest {
    /// Creates the digest of a text that has only its first line, the version.
    #[must_use]
    pub fn new() -> Self {
        Self(Sha256::new_with_prefix(VERSION))
    }

    /// Adds an entry. Entries are added in the order of [`super::tree::Tree::walk`].
    pub fn add(&mut self, entry: &DiskEntry) {
        self.0.update(canonical(entry));
    }

    /// Adds an entry by its line in the canonical text, without the newline.
    pub(super) fn add_line(&mut self, line: &str) {
        self.0.update(line);
        self.0.update("\n");
    }

    /// Returns the digest of all entries.
    #[must_use]
    pub fn finish(self) -> Sha256Digest {
        self.0.into()
    }
}

/// Formats the line of an entry in the canonical text, with its newline.
#[must_use]
pub fn canonical(entry: &DiskEntry) -> String {
    let path = escaped(&entry.path);
    let kind = type_name(entry.kind);
    let mut line = format!("path={path} type={kind} mode={:04o} owner={}:{}", entry.mode, entry.uid, entry.gid);
    let _ = match &entry.digest {
        Some(FileDigest::Content(digest)) => write!(line, " size={} sha256={digest}", entry.size),
        Some(FileDigest::Sparse(digest)) => write!(line, " size={} sparse_sha256={digest}", entry.size),
        None => Ok(()),
    };
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

/// A part of a file's content, in order.
#[derive(Debug, Clone, Copy)]
pub enum Chunk<'b> {
    /// Bytes.
    Data(&'b [u8]),
    /// This many zeroes.
    Zeroes(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_everything_once() {
        let entry = DiskEntry {
            path: b"/a b\\\xff".to_vec(),
            kind: FileKind::File,
            mode: 0o4755,
            uid: 0,
            gid: 70_000,
            size: 1,
            digest: Some(FileDigest::Content(Sha256Digest::new([0xab; 32]))),
            target: None,
            device: None,
            xattrs: vec![Xattr { name: b"user.x=".to_vec(), value: vec![1, 0xff] }],
            modified: Time { seconds: 1, nanoseconds: 2 },
            changed: Time { seconds: 3, nanoseconds: 4 },
            file: (0, 12),
        };
        let digest = "ab".repeat(32);
        let expected = format!(
            "path=/a\\x20b\\x5c\\xff type=file mode=4755 owner=0:70000 size=1 sha256={digest} xattr:user.x==01ff\n"
        );
        assert_eq!(canonical(&entry), expected);
    }
}
