//! The superblock ("Super Block"), reduced to what reading needs.

use super::{Ext4Error, damaged};
use crate::disk::bytes::{le16, le32};
use crate::disk::gap::UncleanReason;

const MAGIC: u16 = 0xef53;
const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;
const RECOVER: u32 = 0x4;
const BITS_64: u32 = 0x80;
const ORPHANS_PRESENT: u32 = 0x1_0000;

/// Incompatible features by bit, and whether the reader supports them. Those that only concern free space, checksums or
/// hashes do not matter to a reader.
const INCOMPATIBLE: [(u32, &str, bool); 16] = [
    (0x1, "compression", false),
    (0x2, "filetype", true),
    (RECOVER, "needs_recovery", true),
    (0x8, "journal_dev", false),
    (0x10, "meta_bg", false),
    (0x40, "extent", true),
    (BITS_64, "64bit", true),
    (0x100, "mmp", true),
    (0x200, "flex_bg", true),
    (0x400, "ea_inode", true),
    (0x1000, "dirdata", false),
    (0x2000, "metadata_csum_seed", true),
    (0x4000, "large_dir", true),
    (0x8000, "inline_data", true),
    (0x1_0000, "encrypt", false),
    (0x2_0000, "casefold", true),
];

/// A superblock whose numbers are consistent.
#[derive(Debug)]
pub(super) struct Ext4Superblock {
    /// log2 of the block size, 10 to 16.
    pub block_bits: u32,
    /// The number of blocks of the file system; all of them are on the disk.
    pub blocks: u64,
    /// The highest inode number.
    pub inodes: u32,
    pub inodes_per_group: u32,
    /// The size of an inode in bytes: 128 to the block size, a power of two.
    pub inode_size: u16,
    /// The size of a group descriptor in bytes: 32 to 1024.
    pub descriptor_size: u16,
    /// Why it is not clean; `None` if it is clean.
    pub unclean_reason: Option<UncleanReason>,
    pub uuid: [u8; 16],
    /// The label without trailing zeroes.
    pub label: Vec<u8>,
}

impl Ext4Superblock {
    /// Parses the 1024 bytes of a superblock; the file system has room for `available` bytes.
    pub fn parse(bytes: &[u8], available: u64) -> Result<Self, Ext4Error> {
        if le16(bytes, 0x38) != Some(MAGIC) {
            return Err(Ext4Error::NotExt4);
        }
        let word = |at| le32(bytes, at).unwrap_or(0);
        let half = |at| le16(bytes, at).unwrap_or(0);
        let incompatible = word(0x60);
        check_features(incompatible)?;
        let wide = incompatible & BITS_64 != 0;
        let high_blocks = if wide { u64::from(word(0x150)) << 32 } else { 0 };
        // Revision 0 has neither the inode size nor the feature words; the defaults are the format's.
        let inode_size = if word(0x4c) == 0 { 128 } else { half(0x58) };
        let state = half(0x3a);
        let has_orphans = word(0xe8) != 0 || word(0x64) & ORPHANS_PRESENT != 0;
        let superblock = Self {
            block_bits: word(0x18).saturating_add(10),
            blocks: high_blocks | u64::from(word(0x4)),
            inodes: word(0),
            inodes_per_group: word(0x28),
            inode_size,
            descriptor_size: if wide { half(0xfe) } else { 32 },
            unclean_reason: match () {
                () if incompatible & RECOVER != 0 => Some(UncleanReason::Journal),
                () if state & STATE_ERRORS != 0 => Some(UncleanReason::Errors),
                () if state & STATE_CLEAN == 0 => Some(UncleanReason::Mounted),
                () => has_orphans.then_some(UncleanReason::Orphans),
            },
            uuid: bytes.get(0x68..0x78).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default(),
            label: bytes
                .get(0x78..0x88)
                .and_then(|label| label.split(|byte| *byte == 0).next())
                .unwrap_or_default()
                .to_vec(),
        };
        superblock.check(available).map(|()| superblock)
    }

    fn check(&self, available: u64) -> Result<(), Ext4Error> {
        let checks = [
            ((10..=16).contains(&self.block_bits), "the block size is not 1 KiB to 64 KiB"),
            (self.blocks > 1, "it has no blocks"),
            (self.inodes > 0 && self.inodes_per_group > 0, "it has no inodes"),
            (self.inode_size >= 128 && self.inode_size.is_power_of_two(), "the inode size is invalid"),
            ((32..=1024).contains(&self.descriptor_size), "the group descriptor size is invalid"),
        ];
        if let Some((_, what)) = checks.iter().find(|(ok, _)| !ok) {
            return Err(damaged(0, what));
        }
        if u32::from(self.inode_size) > 1 << self.block_bits {
            return Err(damaged(0, "an inode is larger than a block"));
        }
        // A left shift would lose the high bits of a hostile count.
        if self.blocks > available >> self.block_bits {
            return Err(damaged(0, "it is larger than its partition"));
        }
        Ok(())
    }
}

/// Returns whether kiln can read a file system with these incompatible features.
pub(crate) fn are_features_read(bits: u32) -> bool {
    check_features(bits).is_ok()
}

fn check_features(bits: u32) -> Result<(), Ext4Error> {
    let known = INCOMPATIBLE.iter().fold(0, |known, (bit, ..)| known | bit);
    let unread = INCOMPATIBLE.iter().filter(|(bit, _, read)| bits & bit != 0 && !read);
    let mut names: Vec<String> = unread.map(|(_, name, _)| (*name).to_owned()).collect();
    if bits & !known != 0 {
        names.push(format!("unknown features {:#x}", bits & !known));
    }
    if names.is_empty() { Ok(()) } else { Err(Ext4Error::Features(names)) }
}
