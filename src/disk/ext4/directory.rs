//! Directories ("Directory Entries").
//!
//! A hashed directory is read from its first block to its last like any other: its index blocks look like one unused
//! entry each, by design of the format.

use super::{Ext4, Ext4Error, Inode, damaged};
use crate::disk::bytes::{le16, le32};
use crate::disk::entry::FileKind;

/// The largest directory in bytes: more than a million names.
const MAX_BYTES: u64 = 64 << 20;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirectoryEntry {
    /// The name: not empty, no slash, no NUL; any other bytes.
    pub name: Vec<u8>,
    /// The number of the named inode.
    pub inode: u32,
}

impl Ext4<'_> {
    /// Reads the names in a directory, without `.` and `..`, sorted by their bytes.
    ///
    /// # Errors
    /// When it is no directory, is damaged, has the same name twice, or cannot be read.
    pub fn read_directory(&self, inode: &Inode) -> Result<Vec<DirectoryEntry>, Ext4Error> {
        if inode.kind != FileKind::Directory {
            return Err(damaged(inode.number, "it is no directory"));
        }
        let mut entries = Vec::new();
        if inode.is_inline() {
            // Four bytes for `..`, then entries; the attribute holds more entries.
            add_entries(&inode.block_area()[4..], inode.number, &mut entries)?;
            add_entries(&self.inline_rest(inode)?, inode.number, &mut entries)?;
        } else {
            // A directory has no holes and shares no blocks.
            let content = self.read(inode, MAX_BYTES.min(self.superblock.blocks << self.superblock.block_bits))?;
            for block in content.chunks(1 << self.superblock.block_bits) {
                add_entries(block, inode.number, &mut entries)?;
            }
        }
        entries.sort_unstable();
        if entries.windows(2).any(|pair| pair[0].name == pair[1].name) {
            return Err(damaged(inode.number, "a directory has a name twice"));
        }
        Ok(entries)
    }
}

/// Reads the entries of one block. Every entry advances by at least 8 bytes, so this ends.
fn add_entries(block: &[u8], inode: u32, entries: &mut Vec<DirectoryEntry>) -> Result<(), Ext4Error> {
    let bad = || damaged(inode, "a directory entry is damaged");
    let mut rest = block;
    while !rest.is_empty() {
        let target = le32(rest, 0).ok_or_else(bad)?;
        let length = match le16(rest, 4).ok_or_else(bad)? {
            // A length of 64 KiB does not fit into 16 bits.
            0 | u16::MAX => 0x1_0000,
            length => usize::from(length),
        };
        let name_length = usize::from(*rest.get(6).ok_or_else(bad)?);
        let entry = rest.get(..length).filter(|_| length >= 8).ok_or_else(bad)?;
        rest = &rest[length..];
        if target == 0 {
            continue;
        }
        let name = entry.get(8..8 + name_length).ok_or_else(bad)?;
        if name == b"." || name == b".." {
            continue;
        }
        if name.is_empty() || name.contains(&0) || name.contains(&b'/') {
            return Err(bad());
        }
        entries.push(DirectoryEntry { name: name.to_vec(), inode: target });
    }
    Ok(())
}
