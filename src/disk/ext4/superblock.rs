//! The superblock ("Super Block"), reduced to what reading needs.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Ext4Error, damaged, join};
use crate::disk::bytes::{struct_at, until_zero};
use crate::disk::gap::UncleanReason;

const MAGIC: u16 = 0xef53;
const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;
const HAS_JOURNAL: u32 = 0x4;
const RECOVER: u32 = 0x4;
const JOURNAL_DEV: u32 = 0x8;
const BITS_64: u32 = 0x80;
const ORPHANS_PRESENT: u32 = 0x1_0000;

/// Incompatible features by bit, and whether the reader supports them. Those that only concern free space, checksums or
/// hashes do not matter to a reader.
const INCOMPATIBLE: [(u32, &str, bool); 16] = [
    (0x1, "compression", false),
    (0x2, "filetype", true),
    (RECOVER, "needs_recovery", true),
    (JOURNAL_DEV, "journal_dev", false),
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

/// `struct ext4_super_block`, up to the last field that is used.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(in crate::disk) struct RawSuperblock {
    s_inodes_count: U32,
    s_blocks_count_lo: U32,
    _08: [U32; 4],
    s_log_block_size: U32,
    _1c: [U32; 3],
    s_inodes_per_group: U32,
    _2c: [U32; 3],
    s_magic: U16,
    s_state: U16,
    _3c: [U32; 4],
    s_rev_level: U32,
    _50: [U32; 2],
    s_inode_size: U16,
    _5a: U16,
    s_feature_compat: U32,
    s_feature_incompat: U32,
    s_feature_ro_compat: U32,
    pub(in crate::disk) s_uuid: [u8; 16],
    pub(in crate::disk) s_volume_name: [u8; 16],
    _88: [U32; 22],
    s_journal_inum: U32,
    _e4: U32,
    s_last_orphan: U32,
    _ec: [U16; 9],
    s_desc_size: U16,
    _100: [U32; 20],
    s_blocks_count_hi: U32,
}

impl RawSuperblock {
    /// Returns the superblock of an ext2, ext3 or ext4, whether kiln reads its features or not.
    pub(in crate::disk) fn find(bytes: &[u8]) -> Option<&Self> {
        struct_at::<Self>(bytes, 0).filter(|superblock| superblock.s_magic.get() == MAGIC)
    }

    /// Returns whether this is a journal that a file system has on a device of its own.
    pub(in crate::disk) fn is_external_journal(&self) -> bool {
        self.s_feature_incompat.get() & JOURNAL_DEV != 0
    }

    /// Returns the inode of the journal; `None` if there is no journal, or if it is on another device.
    fn journal_inode(&self) -> Option<u32> {
        let has_journal = self.s_feature_compat.get() & HAS_JOURNAL != 0;
        has_journal.then_some(self.s_journal_inum.get()).filter(|number| *number != 0)
    }

    fn unclean_reason(&self) -> Option<UncleanReason> {
        let state = self.s_state.get();
        let has_orphans = self.s_last_orphan.get() != 0 || self.s_feature_ro_compat.get() & ORPHANS_PRESENT != 0;
        match () {
            () if self.s_feature_incompat.get() & RECOVER != 0 => Some(UncleanReason::Journal),
            () if state & STATE_ERRORS != 0 => Some(UncleanReason::Errors),
            () if state & STATE_CLEAN == 0 => Some(UncleanReason::Mounted),
            () => has_orphans.then_some(UncleanReason::Orphans),
        }
    }
}

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
    /// The inode of the journal, if the file system has one.
    pub journal_inode: Option<u32>,
    pub uuid: [u8; 16],
    /// The label without trailing zeroes.
    pub label: Vec<u8>,
}

impl Ext4Superblock {
    /// Parses the 1024 bytes of a superblock; the file system has room for `available` bytes.
    pub fn parse(bytes: &[u8], available: u64) -> Result<Self, Ext4Error> {
        let raw = RawSuperblock::find(bytes).ok_or(Ext4Error::NotExt4)?;
        let incompatible = raw.s_feature_incompat.get();
        check_features(incompatible)?;
        let is_wide = incompatible & BITS_64 != 0;
        let superblock = Self {
            block_bits: raw.s_log_block_size.get().saturating_add(10),
            blocks: join(if is_wide { raw.s_blocks_count_hi } else { U32::ZERO }, raw.s_blocks_count_lo),
            inodes: raw.s_inodes_count.get(),
            inodes_per_group: raw.s_inodes_per_group.get(),
            // Revision 0 has neither the inode size nor the feature words; the defaults are the format's.
            inode_size: if raw.s_rev_level.get() == 0 { 128 } else { raw.s_inode_size.get() },
            descriptor_size: if is_wide { raw.s_desc_size.get() } else { 32 },
            unclean_reason: raw.unclean_reason(),
            journal_inode: raw.journal_inode(),
            uuid: raw.s_uuid,
            label: until_zero(&raw.s_volume_name).to_vec(),
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
