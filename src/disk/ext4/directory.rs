//! Directories ("Directory Entries").
//!
//! A hashed directory is read from its first block to its last like any other: its index blocks look like one unused
//! entry each, by design of the format.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Ext4, Ext4Error, Inode, damaged};
use crate::disk::entry::FileKind;

/// The largest directory in bytes: more than a million names.
const MAX_BYTES: u64 = 64 << 20;

/// `struct ext4_dir_entry_2` without the name, which follows.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawDirectoryEntry {
    inode: U32,
    rec_len: U16,
    name_len: u8,
    _07: u8,
}

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
        let sound = if inode.is_inline() {
            // Four bytes for `..`, then entries; the attribute holds more entries.
            let rest = self.inline_rest(inode)?;
            [&inode.block_area()[4..], rest.as_slice()].into_iter().try_for_each(|area| add_entries(area, &mut entries))
        } else {
            // A directory has no holes and shares no blocks.
            let content = self.read(inode, MAX_BYTES.min(self.size()))?;
            content.chunks(1 << self.superblock.block_bits).try_for_each(|block| add_entries(block, &mut entries))
        };
        sound.ok_or_else(|| damaged(inode.number, "a directory entry is damaged"))?;
        entries.sort_unstable();
        if entries.windows(2).any(|pair| pair[0].name == pair[1].name) {
            return Err(damaged(inode.number, "a directory has a name twice"));
        }
        Ok(entries)
    }
}

/// Adds the entries of one block; `None` if one is damaged. Every entry advances by at least 8 bytes, so this ends.
fn add_entries(block: &[u8], entries: &mut Vec<DirectoryEntry>) -> Option<()> {
    let mut rest = block;
    while !rest.is_empty() {
        let (entry, _) = RawDirectoryEntry::ref_from_prefix(rest).ok()?;
        let length = match entry.rec_len.get() {
            // A length of 64 KiB does not fit into 16 bits.
            0 | u16::MAX => 0x1_0000,
            length => usize::from(length),
        };
        let area = rest.get(size_of::<RawDirectoryEntry>()..length)?;
        rest = &rest[length..];
        let inode = entry.inode.get();
        if inode == 0 {
            continue;
        }
        let name = area.get(..usize::from(entry.name_len))?;
        if name == b"." || name == b".." {
            continue;
        }
        if name.is_empty() || name.contains(&0) || name.contains(&b'/') {
            return None;
        }
        entries.push(DirectoryEntry { name: name.to_vec(), inode });
    }
    Some(())
}
