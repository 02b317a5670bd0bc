//! Every file of a guest as a stream of records, for a disk that the host cannot read itself.
//!
//! ```text
//! stream = record ...            the root directory first, then depth first, names sorted by their bytes
//! record = length: u32 LE, a Listed of that length
//! ```
//!
//! The message `Done` contains their number.

use std::io::{self, Read, Write};

use super::code::{Code, DecodeError, coded_enum, coded_struct};
use super::tree::Xattr;

/// The longest path in bytes: the kernel takes 4096 in one call, but trees can be deeper.
pub const MAX_PATH: usize = 64 << 10;

/// The longest record in bytes. Each attribute may have 64 KiB.
const MAX_RECORD: usize = 1 << 20;

coded_struct! {
    /// A point in time as a file system has it.
    Moment {
        /// Seconds since 1970-01-01T00:00:00Z.
        seconds: i64,
        /// Nanoseconds within the second.
        nanoseconds: u32,
    }
}

coded_enum! {
    /// The type of a file, and the fields that only files of this type have.
    Kind as "kind of file" {
        /// A regular file.
        1 File {
            /// The length in bytes.
            size: u64,
            /// The SHA-256 of its content, 32 bytes.
            sha256: Vec<u8>,
        }
        /// A directory.
        2 Dir {}
        /// A symbolic link.
        3 Symlink {
            /// The target of the link.
            target: Vec<u8>,
        }
        /// A character device.
        4 CharDevice {
            /// Major number.
            major: u32,
            /// Minor number.
            minor: u32,
        }
        /// A block device.
        5 BlockDevice {
            /// Major number.
            major: u32,
            /// Minor number.
            minor: u32,
        }
        /// A named pipe.
        6 Fifo {}
        /// A socket.
        7 Socket {}
        /// A regular file with more zeroes than are hashed ([`super::sparse_blocks`]).
        8 SparseFile {
            /// The length in bytes.
            size: u64,
            /// The SHA-256 of the blocks that are not zero, 32 bytes.
            sha256: Vec<u8>,
        }
    }
}

coded_struct! {
    /// The record of one file.
    Listed {
        /// The absolute path; `/` for the root directory.
        path: Vec<u8>,
        /// Permission bits, with setuid, setgid and sticky.
        mode: u16,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// The type of the file.
        kind: Kind,
        /// Extended attributes, sorted by name.
        xattrs: Vec<Xattr>,
        /// The time of the last change of its content.
        modified: Moment,
        /// The time of the last change of the file or its attributes.
        changed: Moment,
        /// The file system that contains it.
        device: u64,
        /// Its number in the file system: the same pair is the same file.
        inode: u64,
    }
}

/// Writes a record.
///
/// # Errors
/// When it cannot be written, or exceeds the limits.
pub fn put(listed: &Listed, out: &mut impl Write) -> io::Result<()> {
    check(listed)?;
    let mut record = Vec::new();
    listed.put(&mut record);
    let length = u32::try_from(record.len()).ok().filter(|_| record.len() <= MAX_RECORD);
    let length = length.ok_or(DecodeError::Length(record.len()))?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&record)
}

/// Reads the next record; `None` at the end of the input.
///
/// # Errors
/// When it cannot be read, or is not a record.
pub fn get(input: &mut impl Read) -> io::Result<Option<Listed>> {
    let mut length = [0; 4];
    if input.by_ref().take(1).read(&mut length[..1])? == 0 {
        return Ok(None);
    }
    input.read_exact(&mut length[1..])?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_RECORD {
        return Err(DecodeError::Length(length).into());
    }
    let mut record = vec![0; length];
    input.read_exact(&mut record)?;
    let listed = Listed::decode(&record)?;
    check(&listed)?;
    Ok(Some(listed))
}

/// Checks the limits of one record, for both ends.
fn check(listed: &Listed) -> Result<(), DecodeError> {
    if !is_path(&listed.path) {
        return Err(DecodeError::Range("path"));
    }
    let times = [&listed.modified, &listed.changed];
    if listed.mode & !0o7777 != 0 || times.iter().any(|time| time.nanoseconds >= 1_000_000_000) {
        return Err(DecodeError::Range("mode or time"));
    }
    let has_names = listed.xattrs.iter().all(|xattr| !xattr.name.is_empty() && !xattr.name.contains(&0));
    if !has_names || !listed.xattrs.is_sorted_by(|one, other| one.name < other.name) {
        return Err(DecodeError::Range("extended attributes"));
    }
    match &listed.kind {
        Kind::File { sha256, .. } | Kind::SparseFile { sha256, .. } if sha256.len() != 32 => {
            Err(DecodeError::Range("digest"))
        }
        Kind::Symlink { target } if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) => {
            Err(DecodeError::Range("symbolic link"))
        }
        _ => Ok(()),
    }
}

fn is_path(path: &[u8]) -> bool {
    let Some(below) = path.strip_prefix(b"/").filter(|_| path.len() <= MAX_PATH) else { return false };
    let mut names = below.split(|byte| *byte == b'/');
    below.is_empty() || names.all(|name| !matches!(name, b"" | b"." | b"..") && !name.contains(&0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn listed(path: &[u8], kind: Kind) -> Listed {
        let moment = Moment { seconds: -1, nanoseconds: 5 };
        let xattrs = vec![Xattr { name: b"user.a".to_vec(), value: vec![0, 255] }];
        let (modified, changed) = (moment.clone(), moment);
        Listed { path: path.into(), mode: 0o644, uid: 1, gid: 2, kind, xattrs, modified, changed, device: 3, inode: 4 }
    }

    fn written(listed: &Listed) -> Vec<u8> {
        let mut bytes = Vec::new();
        put(listed, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_is_put_is_got() {
        let kinds = [
            Kind::File { size: 1 << 40, sha256: vec![7; 32] },
            Kind::SparseFile { size: 1 << 40, sha256: vec![7; 32] },
            Kind::Dir {},
            Kind::Symlink { target: b"../\xff".to_vec() },
            Kind::CharDevice { major: 1, minor: 3 },
            Kind::BlockDevice { major: 259, minor: 1 << 20 },
            Kind::Fifo {},
            Kind::Socket {},
        ];
        for kind in kinds {
            let (one, mut root) = (listed(b"/a/\xff", kind), listed(b"/", Kind::Dir {}));
            root.xattrs.clear();
            let bytes = [written(&one), written(&root)].concat();
            let mut rest = bytes.as_slice();
            assert_eq!(get(&mut rest).unwrap(), Some(one));
            assert_eq!(get(&mut rest).unwrap(), Some(root));
            assert_eq!(get(&mut rest).unwrap(), None);
            assert!(get(&mut &bytes[..bytes.len() - 1]).is_ok_and(|first| first.is_some()));
            assert!(get(&mut &bytes[..9]).is_err(), "a record cut short");
        }
    }

    #[test]
    fn what_no_file_is_is_refused_by_both_ends() {
        let plain = || listed(b"/a", Kind::Dir {});
        let xattr = |name: &[u8]| Xattr { name: name.into(), value: Vec::new() };
        let late = Moment { seconds: 0, nanoseconds: 1_000_000_000 };
        let mut bad: Vec<Listed> = [&b""[..], b"a", b"//", b"/a/", b"/a//b", b"/.", b"/a/../b", b"/a\0"]
            .map(|path| listed(path, Kind::Dir {}))
            .into();
        bad.push(listed(&[b"/", vec![b'x'; MAX_PATH].as_slice()].concat(), Kind::Dir {}));
        bad.push(Listed { mode: 0o10_000, ..plain() });
        bad.push(Listed { modified: late.clone(), ..plain() });
        bad.push(Listed { changed: late, ..plain() });
        bad.push(Listed { xattrs: vec![xattr(b"")], ..plain() });
        bad.push(Listed { xattrs: vec![xattr(b"b"), xattr(b"a")], ..plain() });
        bad.push(Listed { xattrs: vec![xattr(b"a"), xattr(b"a")], ..plain() });
        bad.push(listed(b"/a", Kind::File { size: 0, sha256: vec![0; 31] }));
        bad.push(listed(b"/a", Kind::Symlink { target: Vec::new() }));
        bad.push(listed(b"/a", Kind::Symlink { target: b"a\0".to_vec() }));
        for listed in bad {
            assert!(put(&listed, &mut Vec::new()).is_err(), "{listed:?}");
            let mut record = Vec::new();
            listed.put(&mut record);
            let bytes = [&u32::try_from(record.len()).unwrap().to_le_bytes()[..], &record].concat();
            assert!(get(&mut bytes.as_slice()).is_err(), "{listed:?}");
        }
        let many = (0..20).map(|n| Xattr { name: vec![b'a' + n], value: vec![0; 64 << 10] }).collect();
        assert!(put(&Listed { xattrs: many, ..plain() }, &mut Vec::new()).is_err());
        assert!(get(&mut &u32::MAX.to_le_bytes()[..]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in any::<Vec<u8>>(), flips in proptest::collection::vec(any::<(prop::sample::Index, u8)>(), 0..4)) {
            let _ = get(&mut bytes.as_slice());
            let mut record = written(&listed(b"/a/b", Kind::File { size: 1, sha256: vec![1; 32] }));
            for (at, flip) in flips {
                let at = at.index(record.len());
                record[at] ^= flip;
            }
            let _ = get(&mut record.as_slice());
        }
    }
}
