//! Inodes: type, owner, size, times ("Index Nodes").

use crate::disk::bytes::{le16, le32};
use crate::disk::entry::{FileKind, Time};

const EXTENTS: u32 = 0x8_0000;
const INLINE_DATA: u32 = 0x1000_0000;

/// One inode.
#[derive(Debug, Clone)]
pub struct Inode {
    /// Its number.
    pub number: u32,
    /// Its type.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The size of its content in bytes; for a link, of its target.
    pub size: u64,
    /// How many names it has.
    pub links: u16,
    /// The time of the last change of its content.
    pub modified: Time,
    /// The time of the last change of anything in it, by the guest's clock; no program can set it.
    pub changed: Time,
    flags: u32,
    /// The whole inode: block map or extents, inline data and extended attributes are read from here.
    bytes: Vec<u8>,
}

impl Inode {
    /// Parses an inode of at least 128 bytes; `None` if its type is invalid.
    pub(super) fn parse(number: u32, bytes: Vec<u8>) -> Option<Self> {
        let mode = le16(&bytes, 0)?;
        let kind = kind(mode)?;
        let wide = |low: u16, high: u16| u32::from(high) << 16 | u32::from(low);
        // In types without long content the high half of the size has another meaning.
        let high_size = if matches!(kind, FileKind::File | FileKind::Directory) { le32(&bytes, 0x6c)? } else { 0 };
        Some(Self {
            number,
            kind,
            mode: mode & 0o7777,
            uid: wide(le16(&bytes, 2)?, le16(&bytes, 0x78)?),
            gid: wide(le16(&bytes, 0x18)?, le16(&bytes, 0x7a)?),
            size: u64::from(high_size) << 32 | u64::from(le32(&bytes, 4)?),
            links: le16(&bytes, 0x1a)?,
            modified: time(&bytes, 0x10, 0x88)?,
            changed: time(&bytes, 0x0c, 0x84)?,
            flags: le32(&bytes, 0x20)?,
            bytes,
        })
    }

    /// Returns whether `i_block` is the root of an extent tree; otherwise it is a block map.
    pub(super) fn has_extents(&self) -> bool {
        self.flags & EXTENTS != 0
    }

    /// Returns whether the content is in the inode itself.
    pub(super) fn is_inline(&self) -> bool {
        self.flags & INLINE_DATA != 0
    }

    /// Returns the 60 bytes of `i_block`, which map the content or contain it.
    pub(super) fn block_area(&self) -> &[u8] {
        &self.bytes[0x28..0x64]
    }

    /// Returns the number of the block with extended attributes; 0 for none.
    pub(super) fn xattr_block(&self) -> u64 {
        let high = le16(&self.bytes, 0x76).unwrap_or(0);
        u64::from(high) << 32 | u64::from(le32(&self.bytes, 0x68).unwrap_or(0))
    }

    /// Returns the bytes after the fields: extended attributes within the inode.
    pub(super) fn xattr_area(&self) -> &[u8] {
        let extra = le16(&self.bytes, 0x80).unwrap_or(0);
        self.bytes.get(128 + usize::from(extra)..).unwrap_or_default()
    }

    /// Returns the major and minor number of a device.
    #[must_use]
    pub fn device(&self) -> Option<(u32, u32)> {
        if !matches!(self.kind, FileKind::CharDevice | FileKind::BlockDevice) {
            return None;
        }
        let (old, new) = (le32(self.block_area(), 0)?, le32(self.block_area(), 4)?);
        // linux/kdev_t.h: old_decode_dev and new_decode_dev.
        if old != 0 {
            return Some((old >> 8 & 0xff, old & 0xff));
        }
        Some(((new & 0xf_ff00) >> 8, new & 0xff | new >> 12 & 0xf_ff00))
    }
}

fn kind(mode: u16) -> Option<FileKind> {
    Some(match mode >> 12 {
        0x1 => FileKind::Fifo,
        0x2 => FileKind::CharDevice,
        0x4 => FileKind::Directory,
        0x6 => FileKind::BlockDevice,
        0x8 => FileKind::File,
        0xa => FileKind::Link,
        0xc => FileKind::Socket,
        _ => return None,
    })
}

/// Reads a time ("Inode Timestamps"): two bits of the extra field extend the signed 32-bit seconds, the rest are
/// nanoseconds.
fn time(bytes: &[u8], at: usize, extra_at: usize) -> Option<Time> {
    let low = i64::from(le32(bytes, at)?.cast_signed());
    let reaches = le16(bytes, 0x80).is_some_and(|extra| 128 + usize::from(extra) >= extra_at + 4);
    let extra = le32(bytes, extra_at).filter(|_| reaches).unwrap_or(0);
    Some(Time { seconds: low + (i64::from(extra & 3) << 32), nanoseconds: extra >> 2 })
}
