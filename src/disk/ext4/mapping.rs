//! Locates and reads the content of a file ("Block and Inode Allocation", "The Contents of `inode.i_block`").

use std::ops::ControlFlow;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Ext4, Ext4Error, Inode, damaged, join};
use crate::disk::bytes::{slice_at, struct_at};
use crate::disk::entry::{Chunk, FileKind};
use crate::disk::known_files::FileLayout;

/// The most runs of a file. One run is one extent or more; no real file has a million of them.
const MAX_RUNS: usize = 1 << 20;
/// The most tables and extent nodes of one file; with blocks of 4 KiB they map a terabyte even in the old, flat form.
/// Without this limit, tables that point at each other would keep kiln busy for days.
const MAX_TABLES: u32 = 1 << 18;
/// The kernel's own limit: five levels address all possible blocks.
const MAX_DEPTH: u16 = 5;
/// The most blocks that a file can have: their numbers in it have 32 bits.
const MAX_BLOCKS: u64 = 1 << 32;
const EXTENT_MAGIC: u16 = 0xf30a;
/// The offset of the entries of a node.
const EXTENTS_AT: usize = size_of::<ExtentHeader>();
const CUT: &str = "an extent node is cut";
/// The longest written extent. A longer one is allocated but not written: it reads as zero.
const MAX_WRITTEN: u16 = 0x8000;
const PIECE: u64 = 256 << 10;

/// `struct ext4_extent_header`, the beginning of a node.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ExtentHeader {
    eh_magic: U16,
    eh_entries: U16,
    _04: U16,
    eh_depth: U16,
    _08: U32,
}

/// `struct ext4_extent_idx`, an entry of an inner node.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ExtentIndex {
    _00: U32,
    ei_leaf_lo: U32,
    ei_leaf_hi: U16,
    _0a: U16,
}

/// `struct ext4_extent`, an entry of a leaf.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Extent {
    ee_block: U32,
    ee_len: U16,
    ee_start_hi: U16,
    ee_start_lo: U32,
}

/// Blocks of a file that are contiguous on the disk. Blocks in no run are zero.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockRun {
    pub(super) logical: u64,
    pub(super) physical: u64,
    pub(super) count: u64,
}

impl Ext4<'_> {
    /// Passes the content of a file to `visit`, piece by piece, until it breaks. Returns whether the end was reached.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub fn read_chunks(
        &self,
        inode: &Inode,
        visit: &mut dyn FnMut(Chunk<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Ext4Error> {
        if inode.is_inline() {
            return Ok(visit(Chunk::Data(&self.inline_content(inode)?)));
        }
        // Visiting a hole of exabytes would take hours.
        if inode.size.div_ceil(self.block_size()) > MAX_BLOCKS {
            return Err(damaged(inode.number, "its size is more than its blocks can have"));
        }
        let mut at = 0;
        let mut buffer = Vec::new();
        for run in self.runs(inode)? {
            let start = (run.logical << self.superblock.block_bits).min(inode.size);
            let end = ((run.logical + run.count) << self.superblock.block_bits).min(inode.size);
            let physical = run.physical << self.superblock.block_bits;
            if zeroes(at, start, visit).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            for piece in (start..end).step_by(usize::try_from(PIECE).unwrap_or(1)) {
                let length = (end - piece).min(PIECE);
                buffer.resize(usize::try_from(length).unwrap_or(0), 0);
                self.read_at(physical + (piece - start), &mut buffer, inode.number)?;
                if visit(Chunk::Data(&buffer)).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            at = end;
        }
        Ok(zeroes(at, inode.size, visit))
    }

    /// Returns the places of a file's content on the disk; `None` where the content is in the inode.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub(in crate::disk) fn layout(&self, inode: &Inode) -> Result<Option<FileLayout>, Ext4Error> {
        if inode.is_inline() {
            return Ok(None);
        }
        let bits = self.superblock.block_bits;
        let parts = self.runs(inode)?.into_iter().map(|run| {
            let start = self.start + (run.physical << bits);
            (run.logical << bits, start..start + (run.count << bits))
        });
        Ok(Some(FileLayout::new(inode.size, parts)))
    }

    /// Reads the whole content of a small file.
    ///
    /// # Errors
    /// When it has more than `limit` bytes, or cannot be read.
    pub fn read(&self, inode: &Inode, limit: u64) -> Result<Vec<u8>, Ext4Error> {
        if inode.size > limit {
            return Err(Ext4Error::TooMuch { what: "its size", inode: inode.number });
        }
        let mut content = Vec::with_capacity(usize::try_from(inode.size).unwrap_or(0));
        let _ = self.read_chunks(inode, &mut |chunk| {
            match chunk {
                Chunk::Data(bytes) => content.extend_from_slice(bytes),
                Chunk::Zeroes(count) => content.resize(content.len() + usize::try_from(count).unwrap_or(0), 0),
            }
            ControlFlow::Continue(())
        })?;
        Ok(content)
    }

    /// Reads the target of a symbolic link. Up to 59 bytes are in the inode itself ("Symbolic Links").
    ///
    /// # Errors
    /// When it cannot be read, or is longer than any path.
    pub fn link_target(&self, inode: &Inode) -> Result<Vec<u8>, Ext4Error> {
        if inode.kind == FileKind::Link && inode.size < 60 && !inode.is_inline() {
            return Ok(inode.block_area()[..usize::try_from(inode.size).unwrap_or(0)].to_vec());
        }
        self.read(inode, 4096)
    }

    /// Reads content in the inode: 60 bytes of `i_block`, the rest in an attribute ("Inline Data").
    fn inline_content(&self, inode: &Inode) -> Result<Vec<u8>, Ext4Error> {
        let mut content = inode.block_area().to_vec();
        content.extend(self.inline_rest(inode)?);
        if inode.size > content.len() as u64 {
            return Err(damaged(inode.number, "its inline data is shorter than its size"));
        }
        content.truncate(usize::try_from(inode.size).unwrap_or(0));
        Ok(content)
    }

    /// Returns the runs of a file, in order, without overlaps.
    pub(super) fn runs(&self, inode: &Inode) -> Result<Vec<BlockRun>, Ext4Error> {
        let mut runs =
            BlockRuns { found: Vec::new(), next: 0, tables: 0, inode: inode.number, blocks: self.superblock.blocks };
        let end = inode.size.div_ceil(self.block_size());
        if inode.has_extents() {
            self.walk_extents(inode.block_area(), MAX_DEPTH, &mut runs)?;
        } else {
            self.walk_block_map(inode, end, &mut runs)?;
        }
        Ok(runs.found)
    }

    /// Collects the runs below a node ("Extent Tree"). The depth decreases at every level and every node has entries, so the
    /// walk ends.
    fn walk_extents(&self, node: &[u8], deepest: u16, runs: &mut BlockRuns) -> Result<(), Ext4Error> {
        let inode = runs.inode;
        let header = struct_at::<ExtentHeader>(node, 0).ok_or(damaged(inode, CUT))?;
        let count = usize::from(header.eh_entries);
        let depth = header.eh_depth.get();
        if header.eh_magic.get() != EXTENT_MAGIC || depth > deepest {
            return Err(damaged(inode, "an extent node is none"));
        }
        if depth == 0 {
            for extent in slice_at::<Extent>(node, EXTENTS_AT, count).ok_or(damaged(inode, CUT))? {
                let physical = join(extent.ee_start_hi, extent.ee_start_lo);
                runs.add(extent.ee_block.into(), physical, extent.ee_len.get())?;
            }
            return Ok(());
        }
        for index in slice_at::<ExtentIndex>(node, EXTENTS_AT, count).ok_or(damaged(inode, CUT))? {
            let child = self.read_table(join(index.ei_leaf_hi, index.ei_leaf_lo), runs)?;
            let below = struct_at::<ExtentHeader>(&child, 0);
            if below.is_none_or(|below| below.eh_entries.get() == 0 || below.eh_depth.get() != depth - 1) {
                return Err(damaged(inode, "an extent node does not belong below its parent"));
            }
            self.walk_extents(&child, depth - 1, runs)?;
        }
        Ok(())
    }

    fn read_table(&self, block: u64, runs: &mut BlockRuns) -> Result<Vec<u8>, Ext4Error> {
        runs.tables += 1;
        // No block is a table in two places.
        if u64::from(runs.tables) > u64::from(MAX_TABLES).min(runs.blocks) {
            return Err(Ext4Error::TooMuch { what: "the number of tables", inode: runs.inode });
        }
        self.read_block(block, runs.inode)
    }

    /// Collects the runs of a block map ("Direct/Indirect Block Addressing"): twelve blocks, then tables one, two and three
    /// levels deep.
    fn walk_block_map(&self, inode: &Inode, end: u64, runs: &mut BlockRuns) -> Result<(), Ext4Error> {
        let mut logical = 0;
        for (block, level) in inode.block_map().into_iter().zip([0; 12].into_iter().chain([1, 2, 3])) {
            self.walk_block(block, level, &mut logical, end, runs)?;
        }
        Ok(())
    }

    /// Adds the blocks below one entry of the map; `logical` is advanced by the number of blocks that the entry stands for.
    fn walk_block(
        &self,
        block: u32,
        level: u32,
        logical: &mut u64,
        end: u64,
        runs: &mut BlockRuns,
    ) -> Result<(), Ext4Error> {
        if block == 0 || *logical >= end {
            *logical += 1 << ((self.superblock.block_bits - 2) * level);
            return Ok(());
        }
        if level == 0 {
            runs.add(*logical, block.into(), 1)?;
            *logical += 1;
            return Ok(());
        }
        let table = self.read_table(block.into(), runs)?;
        for block in table.as_chunks().0 {
            self.walk_block(u32::from_le_bytes(*block), level - 1, logical, end, runs)?;
        }
        Ok(())
    }
}

/// Passes the hole from `at` to `until` to `visit`, if there is one.
fn zeroes(at: u64, until: u64, visit: &mut dyn FnMut(Chunk<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
    // The hole is passed in pieces, so that the visitor of a hole of terabytes can stop.
    for start in (at..until).step_by(64 << 20) {
        visit(Chunk::Zeroes((until - start).min(64 << 20)))?;
    }
    ControlFlow::Continue(())
}

/// Collects runs, and joins adjacent ones.
struct BlockRuns {
    found: Vec<BlockRun>,
    /// The first logical block that no extent has covered yet.
    next: u64,
    /// How many tables were read.
    tables: u32,
    inode: u32,
    blocks: u64,
}

impl BlockRuns {
    fn add(&mut self, logical: u64, physical: u64, length: u16) -> Result<(), Ext4Error> {
        let written = length <= MAX_WRITTEN;
        let count = u64::from(if written { length } else { length - MAX_WRITTEN });
        if count == 0 || logical < self.next {
            return Err(damaged(self.inode, "its extents are out of order"));
        }
        if physical == 0 || physical + count > self.blocks {
            return Err(damaged(self.inode, "an extent is out of range"));
        }
        self.next = logical + count;
        if written { self.push(BlockRun { logical, physical, count }) } else { Ok(()) }
    }

    fn push(&mut self, run: BlockRun) -> Result<(), Ext4Error> {
        if let Some(last) = self.found.last_mut() {
            let end = (last.logical + last.count, last.physical + last.count);
            if end == (run.logical, run.physical) {
                last.count += run.count;
                return Ok(());
            }
        }
        if self.found.len() >= MAX_RUNS {
            return Err(Ext4Error::TooMuch { what: "the number of extents", inode: self.inode });
        }
        self.found.push(run);
        Ok(())
    }
}
