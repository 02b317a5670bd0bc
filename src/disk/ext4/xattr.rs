//! Extended attributes ("Extended Attributes"): in the inode, in a block of their own, large values in inodes.

use super::{Ext4, Ext4Error, Inode, damaged};
use crate::disk::bytes::{le16, le32};
use crate::disk::entry::Xattr;

const MAGIC: u32 = 0xea02_0000;
/// The longest value, as limited by the VFS (linux/limits.h, `XATTR_SIZE_MAX`).
const MAX_VALUE: u64 = 64 << 10;
/// The memory for all attributes of one inode. Several may name one value, so that a few bytes could claim all memory.
const MAX_TOTAL: usize = 1 << 20;
/// The overhead of an attribute besides its name and value.
const ENTRY_SIZE: usize = 64;
/// The attribute with inline data beyond 60 bytes, which only the file system itself uses.
const INLINE_DATA: &[u8] = b"system.data";

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
        let area = inode.xattr_area();
        if le32(area, 0) == Some(MAGIC) {
            // Offsets of values count from the first entry on.
            self.add_xattrs(&area[4..], 0, inode.number, &mut xattrs)?;
        }
        if inode.xattr_block() != 0 {
            let block = self.read_block(inode.xattr_block(), inode.number)?;
            if le32(&block, 0) != Some(MAGIC) {
                return Err(damaged(inode.number, "its attribute block is none"));
            }
            self.add_xattrs(&block, 32, inode.number, &mut xattrs)?;
        }
        Ok(xattrs)
    }

    /// Reads entries from `first` on. Every entry advances by at least 16 bytes, so this ends.
    fn add_xattrs(&self, area: &[u8], first: usize, inode: u32, xattrs: &mut Vec<Xattr>) -> Result<(), Ext4Error> {
        let bad = || damaged(inode, "an extended attribute is damaged");
        let mut total: usize = xattrs.iter().map(memory_of).sum();
        let mut at = first;
        // Four zero bytes end the list; in a full area they may be missing.
        while le32(area, at).is_some_and(|start| start != 0) {
            let entry = area.get(at..at + 16).ok_or_else(bad)?;
            let name_length = usize::from(entry[0]);
            let suffix = area.get(at + 16..at + 16 + name_length).ok_or_else(bad)?;
            let prefix = prefix(entry[1]).ok_or_else(bad)?;
            let size = le32(entry, 8).ok_or_else(bad)?;
            let value = match le32(entry, 4).ok_or_else(bad)? {
                0 => value_within(area, le16(entry, 2).unwrap_or(0), size).ok_or_else(bad)?,
                holder => self.value_of(holder, inode)?,
            };
            if value.len() as u64 > MAX_VALUE {
                return Err(bad());
            }
            let name = [prefix, suffix].concat();
            let value = if matches!(entry[1], 2 | 3) { acl(&value).ok_or_else(bad)? } else { value };
            let xattr = Xattr { name, value };
            total += memory_of(&xattr);
            if total > MAX_TOTAL {
                return Err(Ext4Error::TooMuch { what: "the size of its attributes", inode });
            }
            xattrs.push(xattr);
            at += 16 + name_length.next_multiple_of(4);
        }
        Ok(())
    }
}

impl Ext4<'_> {
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

fn value_within(area: &[u8], offset: u16, size: u32) -> Option<Vec<u8>> {
    let start = usize::from(offset);
    area.get(start..start.checked_add(size as usize)?).map(<[u8]>::to_vec)
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
    let mut told = 2_u32.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let length = if NAMED.contains(&le16(rest, 0)?) { 8 } else { 4 };
        let (entry, behind) = rest.split_at_checked(length)?;
        told.extend_from_slice(&entry[..4]);
        told.extend_from_slice(entry.get(4..).filter(|id| !id.is_empty()).unwrap_or(&[0xff; 4]));
        rest = behind;
    }
    Some(told)
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
