//! The journal of a file system that was unmounted cleanly: nobody reads its blocks any more ("Journal (jbd2)").

use std::ops::Range;

use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::mapping::BlockRun;
use super::{Ext4, Ext4Error};
use crate::disk::bytes::struct_at;

const MAGIC: u32 = 0xc03b_3998;
/// The types of a journal's superblock: version 1 and version 2.
const SUPERBLOCK_TYPES: [u32; 2] = [3, 4];
/// The most blocks of a journal, as in mke2fs(8).
const MAX_BLOCKS: u64 = 10_240_000;

/// `struct journal_superblock_s`, up to the last field that is used.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct JournalSuperblock {
    h_magic: U32,
    h_blocktype: U32,
    _08: U32,
    s_blocksize: U32,
    _10: [U32; 3],
    s_start: U32,
}

impl Ext4<'_> {
    /// Returns the ranges of the disk with the blocks of the journal, except its superblock: they may be zero, as mke2fs(8)
    /// leaves them. Returns nothing unless the journal is empty and the file system was unmounted without errors.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub fn idle_journal(&self) -> Result<Vec<Range<u64>>, Ext4Error> {
        let Some(number) = self.superblock.journal_inode.filter(|_| self.unclean_reason().is_none()) else {
            return Ok(Vec::new());
        };
        let runs = self.runs(&self.inode(number)?)?;
        let Some(first) = runs.first().filter(|run| run.logical == 0) else { return Ok(Vec::new()) };
        let is_idle = self.is_idle(&self.read_block(first.physical, number)?);
        let blocks: u64 = runs.iter().map(|run| run.count).sum();
        let used = if is_idle && blocks <= MAX_BLOCKS { &runs[..] } else { &[] };
        Ok(used.iter().map(|run| self.range_after_superblock(run)).collect())
    }

    /// Returns whether this is the superblock of a journal without a transaction.
    fn is_idle(&self, block: &[u8]) -> bool {
        struct_at::<JournalSuperblock>(block, 0).is_some_and(|superblock| {
            superblock.h_magic.get() == MAGIC
                && SUPERBLOCK_TYPES.contains(&superblock.h_blocktype.get())
                && u64::from(superblock.s_blocksize.get()) == self.block_size()
                && superblock.s_start.get() == 0
        })
    }

    fn range_after_superblock(&self, run: &BlockRun) -> Range<u64> {
        let first = run.physical + u64::from(run.logical == 0);
        let end = run.physical + run.count;
        let at = |block: u64| self.start + (block << self.superblock.block_bits);
        at(first)..at(end)
    }
}
