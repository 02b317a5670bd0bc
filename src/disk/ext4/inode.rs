//! Inodes: type, owner, size, times ("Index Nodes").

use zerocopy::little_endian::{I32, U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Ext4Error, damaged, join};
use crate::disk::bytes::struct_at;
use crate::disk::entry::{FileKind, Time};

const EXTENTS: u32 = 0x8_0000;
const INLINE_DATA: u32 = 0x1000_0000;

/// The first 128 bytes of `struct ext4_inode`.
#[derive(Debug, Clone, FromBytes)]
#[repr(C)]
struct RawInode {
    i_mode: U16,
    i_uid: U16,
    i_size_lo: U32,
    _08: U32,
    i_ctime: I32,
    i_mtime: I32,
    _14: U32,
    i_gid: U16,
    i_links_count: U16,
    _1c: U32,
    i_flags: U32,
    _24: U32,
    i_block: [U32; 15],
    _64: U32,
    i_file_acl_lo: U32,
    i_size_high: U32,
    _70: [U16; 3],
    l_i_file_acl_high: U16,
    l_i_uid_high: U16,
    l_i_gid_high: U16,
    _7c: U32,
}

/// Further fields of `struct ext4_inode`. Only the first `i_extra_isize` bytes of them are there.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawInodeExtra {
    i_extra_isize: U16,
    _02: U16,
    i_ctime_extra: U32,
    i_mtime_extra: U32,
}

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
    raw: RawInode,
    /// The bytes after the fields: extended attributes within the inode.
    pub(super) xattr_area: Vec<u8>,
}

impl Inode {
    /// Parses an inode of at least 128 bytes.
    pub(super) fn parse(number: u32, bytes: &[u8]) -> Result<Self, Ext4Error> {
        let (raw, rest) = RawInode::read_from_prefix(bytes).map_err(|_| damaged(number, "it is cut"))?;
        let kind = kind(raw.i_mode.get()).ok_or_else(|| damaged(number, "it has no type"))?;
        // In types without long content the high half of the size has another meaning.
        let has_long_content = matches!(kind, FileKind::File | FileKind::Directory);
        let extra = struct_at::<RawInodeExtra>(rest, 0);
        let extra_size = extra.map_or(0, |extra| usize::from(extra.i_extra_isize));
        let xattr_area = rest.get(extra_size..).ok_or_else(|| damaged(number, "it has more fields than bytes"))?;
        Ok(Self {
            number,
            kind,
            mode: raw.i_mode.get() & 0o7777,
            uid: owner(raw.l_i_uid_high, raw.i_uid),
            gid: owner(raw.l_i_gid_high, raw.i_gid),
            size: join(if has_long_content { raw.i_size_high } else { U32::ZERO }, raw.i_size_lo),
            links: raw.i_links_count.get(),
            modified: time(raw.i_mtime, extra.filter(|_| extra_size >= 12).map(|extra| extra.i_mtime_extra)),
            changed: time(raw.i_ctime, extra.filter(|_| extra_size >= 8).map(|extra| extra.i_ctime_extra)),
            raw,
            xattr_area: xattr_area.to_vec(),
        })
    }

    /// Returns whether `i_block` is the root of an extent tree; otherwise it is a block map.
    pub(super) fn has_extents(&self) -> bool {
        self.raw.i_flags.get() & EXTENTS != 0
    }

    /// Returns whether the content is in the inode itself.
    pub(super) fn is_inline(&self) -> bool {
        self.raw.i_flags.get() & INLINE_DATA != 0
    }

    /// Returns `i_block` as a block map: twelve blocks, then tables one, two and three levels deep.
    pub(super) fn block_map(&self) -> [u32; 15] {
        self.raw.i_block.map(U32::get)
    }

    /// Returns the 60 bytes of `i_block`, which map the content or contain it.
    pub(super) fn block_area(&self) -> &[u8] {
        self.raw.i_block.as_bytes()
    }

    /// Returns the number of the block with extended attributes; 0 for none.
    pub(super) fn xattr_block(&self) -> u64 {
        join(self.raw.l_i_file_acl_high, self.raw.i_file_acl_lo)
    }

    /// Returns the major and minor number of a device.
    #[must_use]
    pub fn device(&self) -> Option<(u32, u32)> {
        if !matches!(self.kind, FileKind::CharDevice | FileKind::BlockDevice) {
            return None;
        }
        let [old, new, ..] = self.block_map();
        // linux/kdev_t.h: old_decode_dev and new_decode_dev.
        if old != 0 {
            return Some((old >> 8 & 0xff, old & 0xff));
        }
        Some(((new & 0xf_ff00) >> 8, new & 0xff | new >> 12 & 0xf_ff00))
    }
}

fn owner(high: U16, low: U16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
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

/// Decodes a time ("Inode Timestamps"): two bits of the extra field extend the signed 32-bit seconds, the rest are
/// nanoseconds.
fn time(seconds: I32, extra: Option<U32>) -> Time {
    let extra = extra.map_or(0, U32::get);
    Time { seconds: i64::from(seconds) + (i64::from(extra & 3) << 32), nanoseconds: extra >> 2 }
}
