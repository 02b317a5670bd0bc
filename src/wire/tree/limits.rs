//! The limits of a tree's entries, which both ends check.

use super::super::code::DecodeError;
use super::{Entry, Kind, TreeNote};

/// The longest path in bytes, as in Linux.
pub const MAX_PATH: usize = 4096;

/// The longest name, in bytes.
const MAX_NAME: usize = 255;

/// The most bytes that all extended attributes of one entry may take, encoded. Linux allows 64 KiB for one value.
pub const MAX_XATTRS: usize = 128 * 1024;

/// The longest text of a note, in bytes.
pub const MAX_NOTE: usize = 1000;

/// Checks the limits of one note, for both ends.
pub(super) fn check_note(note: &TreeNote) -> Result<(), DecodeError> {
    if note.text.len() > MAX_NOTE {
        return Err(DecodeError::Range("note"));
    }
    check_path(&note.path)
}

/// Checks the limits of one entry, for both ends.
pub(super) fn check(entry: &Entry) -> Result<(), DecodeError> {
    check_path(&entry.path)?;
    let xattrs: usize = entry.xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len() + 8).sum();
    if xattrs > MAX_XATTRS || entry.xattrs.iter().any(|xattr| xattr.name.is_empty() || xattr.name.contains(&0)) {
        return Err(DecodeError::Range("extended attributes"));
    }
    if entry.mode & !0o7777 != 0 {
        return Err(DecodeError::Range("mode"));
    }
    match &entry.kind {
        Kind::Hardlink { target } if target.is_empty() => Err(DecodeError::Range("hard link")),
        Kind::Hardlink { target } => check_path(target),
        Kind::Symlink { target } if target.is_empty() || target.len() >= MAX_PATH || target.contains(&0) => {
            Err(DecodeError::Range("symbolic link"))
        }
        Kind::File { size } if i64::try_from(*size).is_err() => Err(DecodeError::Range("size")),
        _ => Ok(()),
    }
}

/// Returns whether a file can have this name in a folder.
#[must_use]
pub fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && name.len() <= MAX_NAME && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// Returns how many folders of the tree contain `path`, besides its root.
#[must_use]
pub fn folders_above(path: &[u8]) -> usize {
    path.split(|byte| *byte == b'/').count() - 1
}

/// Returns the target of a symbolic link as names below the tree's root that contains `path`, if it leads to something in
/// that tree. It may have leading `..` that stay within real folders, then names: however such links are chained, none leads
/// out.
#[must_use]
pub fn inner_target(path: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let depth = folders_above(path);
    let parts: Vec<&[u8]> = target.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    let ups = parts.iter().take_while(|part| **part == b"..").count();
    let leads_out = target.starts_with(b"/") || ups > depth || parts[ups..].contains(&&b".."[..]);
    if leads_out || parts.is_empty() { None } else { Some(parts.join(&b'/')) }
}

fn check_path(path: &[u8]) -> Result<(), DecodeError> {
    if path.len() >= MAX_PATH || (!path.is_empty() && !path.split(|byte| *byte == b'/').all(is_name)) {
        return Err(DecodeError::Range("path"));
    }
    Ok(())
}
