//! Extended attributes ("Extended Attributes"): in the inode, in a block of their own, large values in inodes.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Ext4, Ext4Error, Inode, damaged};
use crate::disk::bytes::le16;
use crate::disk::entry::Xattr;

/// The beginning of an area of attributes.
const MAGIC: [u8; 4] = 0xea02_0000_u32.to_le_bytes();
/// The length of `struct ext4_xattr_header`, which begins a block; within an inode it is the magic number alone.
const BLOCK_HEADER: usize = 32;
/// The longest value, as limited by the VFS (linux/limits.h, `XATTR_SIZE_MAX`).
const MAX_VALUE: u64 = 64 << 10;
/// The memory for all attributes of one inode. Several may name one value, so that a few bytes could claim all memory.
const MAX_TOTAL: usize = 1 << 20;
/// The overhead of an attribute besides its name and value.
const ENTRY_SIZE: usize = 64;
/// The attribute with inline data beyond 60 bytes, which only the file system itself uses.
const INLINE_DATA: &[u8] = b"system.data";
const DAMAGED: &str = "an extended attribute is damaged";

/// `struct ext4_xattr_entry` without the name, which follows.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawXattr {
    e_name_len: u8,
    e_name_index: u8,
    e_value_offs: U16,
    e_value_inum: U32,
    e_value_size: U32,
    _0c: U32,
}

impl Ext4<'_> {
    /// Reads the attributes of an inode, sorted by name.
    ///
    /// # Errors
    /// When they are damaged or cannot be read.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, Ext4Error> {
        let mut xattrs = self.all_xattrs(inode)?;
        xattrs.retain(|xattr| xattr.name != INLINE_DATA);
        xattrs.sort_unstable();
        Ok(xattrs)
    }

    /// Reads the inline data that `i_block` does not hold.
    pub(super) fn inline_rest(&self, inode: &Inode) -> Result<Vec<u8>, Ext4Error> {
        let found = self.all_xattrs(inode)?.into_iter().find(|xattr| xattr.name == INLINE_DATA);
        Ok(found.map(|xattr| xattr.value).unwrap_or_default())
    }

    fn all_xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, Ext4Error> {
        let mut xattrs = Vec::new();
        if let Some(area) = inode.xattr_area.strip_prefix(&MAGIC) {
            // Offsets of values count from the first entry on.
            self.add_xattrs(area, area, inode.number, &mut xattrs)?;
        }
        if inode.xattr_block() != 0 {
            let block = self.read_block(inode.xattr_block(), inode.number)?;
            if !block.starts_with(&MAGIC) {
                return Err(damaged(inode.number, "its attribute block is none"));
            }
            self.add_xattrs(&block, &block[BLOCK_HEADER..], inode.number, &mut xattrs)?;
        }
        Ok(xattrs)
    }

    /// Adds the attributes of a list, whose values are in `area`. Every entry advances by at least 16 bytes, so this ends.
    fn add_xattrs(&self, area: &[u8], list: &[u8], inode: u32, xattrs: &mut Vec<Xattr>) -> Result<(), Ext4Error> {
        let mut total: usize = xattrs.iter().map(memory_of).sum();
        let mut rest = list;
        // Four zero bytes end the list; in a full area they may be missing.
        while rest.first_chunk::<4>().is_some_and(|start| *start != [0; 4]) {
            let (entry, name, behind) = split_entry(rest).ok_or_else(|| damaged(inode, DAMAGED))?;
            let xattr = Xattr { name, value: self.read_value(entry, area, inode)? };
            total += memory_of(&xattr);
            if total > MAX_TOTAL {
                return Err(Ext4Error::TooMuch { what: "the size of its attributes", inode });
            }
            xattrs.push(xattr);
            rest = behind;
        }
        Ok(())
    }

    fn read_value(&self, entry: &RawXattr, area: &[u8], inode: u32) -> Result<Vec<u8>, Ext4Error> {
        let value = match entry.e_value_inum.get() {
            0 => value_within(area, entry),
            holder => Some(self.value_of(holder, inode)?),
        };
        let value = value.filter(|value| value.len() as u64 <= MAX_VALUE);
        let value = if matches!(entry.e_name_index, 2 | 3) { value.and_then(|value| acl(&value)) } else { value };
        value.ok_or_else(|| damaged(inode, DAMAGED))
    }

    /// Reads a value that has an inode of its own (feature `ea_inode`).
    fn value_of(&self, holder: u32, inode: u32) -> Result<Vec<u8>, Ext4Error> {
        let holder = self.inode(holder)?;
        // Inline data may itself be in an attribute, whose value is in this inode again: that would never end.
        if holder.is_inline() {
            return Err(damaged(inode, "an attribute's inode holds its value inline"));
        }
        self.read(&holder, MAX_VALUE)
    }
}

fn memory_of(xattr: &Xattr) -> usize {
    ENTRY_SIZE + xattr.name.len() + xattr.value.len()
}

/// Splits the first entry and its name from a list; returns the rest, too.
fn split_entry(list: &[u8]) -> Option<(&RawXattr, Vec<u8>, &[u8])> {
    let (entry, rest) = RawXattr::ref_from_prefix(list).ok()?;
    let suffix = rest.get(..usize::from(entry.e_name_len))?;
    let name = [prefix(entry.e_name_index)?, suffix].concat();
    Some((entry, name, rest.get(suffix.len().next_multiple_of(4)..).unwrap_or_default()))
}

fn value_within(area: &[u8], entry: &RawXattr) -> Option<Vec<u8>> {
    let value = area.get(usize::from(entry.e_value_offs)..)?;
    value.get(..entry.e_value_size.get() as usize).map(<[u8]>::to_vec)
}

/// Returns the prefix of a name by its index ("Extended Attribute Name Prefixes").
fn prefix(index: u8) -> Option<&'static [u8]> {
    Some(match index {
        0 => b"",
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        7 => b"system.",
        8 => b"system.richacl",
        _ => return None,
    })
}

/// Converts an access control list from the file system's own form (fs/ext4/acl.h, version 1) to that of getxattr(2)
/// (`linux/posix_acl_xattr.h`, version 2). The former leaves out the number of entries that name no user or group.
fn acl(stored: &[u8]) -> Option<Vec<u8>> {
    const NAMED: [u16; 2] = [2, 8];
    let mut rest = stored.strip_prefix(&1_u32.to_le_bytes())?;
    let mut list = 2_u32.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let length = if NAMED.contains(&le16(rest, 0)?) { 8 } else { 4 };
        let (entry, behind) = rest.split_at_checked(length)?;
        list.extend_from_slice(&entry[..4]);
        list.extend_from_slice(entry.get(4..).filter(|id| !id.is_empty()).unwrap_or(&[0xff; 4]));
        rest = behind;
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::acl;

    #[test]
    fn a_list_of_rights_has_the_form_that_programs_see() {
        let stored = [1, 0, 0, 0, 1, 0, 7, 0, 8, 0, 5, 0, 4, 0, 0, 0, 0x20, 0, 5, 0];
        let told =
            [2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 8, 0, 5, 0, 4, 0, 0, 0, 0x20, 0, 5, 0, 255, 255, 255, 255];
        assert_eq!(acl(&stored).unwrap(), told);
        for bad in [&stored[..18], &stored[4..], &[][..]] {
            assert_eq!(acl(bad), None, "{bad:?}");
        }
    }
}
