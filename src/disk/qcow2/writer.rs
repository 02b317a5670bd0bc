//! Writes one qcow2 file, from its first cluster to its last.
//!
//! Source: `docs/interop/qcow2.rst`: "Header", "Cluster mapping", "Host cluster management". The file consists of
//!
//! ```text
//! header | stripes, in the order of the disk | L2 tables | L1 table | refcount table | refcount blocks
//! ```
//! and depends only on the clusters: the same clusters in the same order give the same bytes. A stripe holds the clusters of
//! 4 MiB of the disk, compressed ones packed. It begins with a block of the host's file system, so that two files in which it
//! is the same can share its blocks.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;

use zerocopy::IntoBytes;
use zerocopy::big_endian::{U32, U64};

use super::header::{Codec, HEADER_LENGTH, MAGIC, RawHeader};
use super::layout::{CLUSTER, CLUSTER_BITS, alignment};
use super::reader::{COMPRESSED, OFFSET, READS_AS_ZERO, SECTOR, offset_bits, packed_span};
use super::stripe::Stripe;
use crate::fs::copy_range::copy_range;

const REFCOUNT_ORDER: u32 = 4;
/// The number of entries of an L2 table, and of a refcount block.
const L2_ENTRIES: usize = CLUSTER / 8;
const BLOCK_ENTRIES: usize = CLUSTER / 2;
/// The flag of an entry that is the only reference to its cluster.
const COPIED: u64 = 1 << 63;
const BUFFER: usize = 1 << 20;

/// Returns an empty overlay: header, refcount table, one refcount block, L1 table.
///
/// Its clusters are as small as the blocks of the guest's file system, so that what the guest discards is freed completely:
/// in larger clusters a freed block beside one in use would stay, with all its content. Nor has QEMU to copy the data around
/// a block that is written. Clusters are only larger if the L1 table would become too large.
pub(super) fn empty(size: u64) -> io::Result<Vec<u8>> {
    const BLOCK_BITS: u32 = 12;
    const LARGEST_OF_BLOCKS: u64 = 1 << 40;
    let bits = if size <= LARGEST_OF_BLOCKS { BLOCK_BITS } else { CLUSTER_BITS };
    let cluster = 1_usize << bits;
    let covered = (cluster / 8 * cluster) as u64;
    let l1_entries = usize::try_from(size.div_ceil(covered).max(1)).map_err(io::Error::other)?;
    let clusters = 3 + (l1_entries * 8).div_ceil(cluster);
    let tables = TablePlaces { l1_offset: 3 << bits, l1_entries, refcount_offset: 1 << bits, refcount_clusters: 1 };
    let mut file = header(size, bits, Codec::Zstd, &tables)?;
    file.resize(cluster, 0);
    file.extend((2_u64 << bits).to_be_bytes());
    file.resize(2 * cluster, 0);
    // More than enough for any L1 table: a refcount block counts half as many clusters as it has bytes.
    file.extend(1_u16.to_be_bytes().repeat(clusters));
    file.resize(clusters * cluster, 0);
    Ok(file)
}

/// The writer of a file.
pub(in crate::disk) struct Qcow2Writer {
    out: BufWriter<File>,
    size: u64,
    codec: Codec,
    /// The offset of the next byte.
    end: u64,
    tables: BTreeMap<u64, Vec<u64>>,
    /// The number of references to each cluster of the file.
    counts: Vec<u16>,
}

impl Qcow2Writer {
    /// Creates the writer of a disk of `size` bytes, which is all zero so far. `file` is empty.
    pub fn new(mut file: File, size: u64, codec: Codec) -> io::Result<Self> {
        file.seek(SeekFrom::Start(CLUSTER as u64))?;
        let out = BufWriter::with_capacity(BUFFER, file);
        Ok(Self { out, size, codec, end: CLUSTER as u64, tables: BTreeMap::new(), counts: vec![1] })
    }

    /// Begins a stripe that has data.
    pub fn begin_stripe(&mut self, has_plain: bool) -> io::Result<()> {
        self.align(alignment(has_plain))
    }

    /// Copies a whole stripe from a file that another writer has written.
    pub fn copy_stripe(&mut self, number: u64, stripe: &Stripe, from: &File) -> io::Result<()> {
        let Some(span) = stripe.span() else { return Ok(()) };
        self.begin_stripe(stripe.has_plain())?;
        let at = self.end;
        self.out.flush()?;
        copy_range(from, span.clone(), self.out.get_ref(), at)?;
        self.end += span.end - span.start;
        self.out.seek(SeekFrom::Start(self.end))?;
        for (cluster, entry) in stripe.moved_to(at).allocated(number) {
            self.map(cluster, entry);
            self.count_entry(entry)?;
        }
        Ok(())
    }

    /// Counts the reference of an entry to each cluster of the file in which it has data.
    fn count_entry(&mut self, entry: u64) -> io::Result<()> {
        let (start, end) = if entry & COMPRESSED == 0 {
            let start = (entry & OFFSET) >> CLUSTER_BITS;
            (start, start + 1)
        } else {
            let span = packed_span(entry, CLUSTER_BITS);
            (span.start >> CLUSTER_BITS, span.end.div_ceil(CLUSTER as u64))
        };
        self.count(start..end)
    }

    /// Writes a compressed cluster: a zstd frame or a raw deflate stream, by the writer's codec.
    pub fn put_packed(&mut self, cluster: u64, frame: &[u8]) -> io::Result<()> {
        debug_assert!((1..CLUSTER).contains(&frame.len()));
        let at = self.end;
        let last = at + frame.len() as u64 - 1;
        self.append(frame)?;
        let further_sectors = last / SECTOR - at / SECTOR;
        self.map(cluster, COMPRESSED | further_sectors << offset_bits(CLUSTER_BITS) | at);
        self.count(at >> CLUSTER_BITS..(last >> CLUSTER_BITS) + 1)
    }

    /// Writes a cluster uncompressed.
    pub fn put_plain(&mut self, cluster: u64, bytes: &[u8]) -> io::Result<()> {
        debug_assert_eq!(bytes.len(), CLUSTER);
        let at = self.append_aligned(bytes)?;
        self.map(cluster, COPIED | at);
        Ok(())
    }

    /// Makes a cluster zero, whatever a file below has there.
    pub fn put_zeroes(&mut self, cluster: u64) {
        self.map(cluster, READS_AS_ZERO);
    }

    /// Writes the tables and the header. The file is then complete, but not synced.
    pub fn finish(mut self) -> io::Result<()> {
        let mut l1 =
            vec![0; self.size.div_ceil((L2_ENTRIES * CLUSTER) as u64).max(1).try_into().map_err(io::Error::other)?];
        for (index, table) in std::mem::take(&mut self.tables) {
            let at = self.append_aligned(&big_endian(&table))?;
            l1[usize::try_from(index).map_err(io::Error::other)?] = COPIED | at;
        }
        let l1_offset = self.append_aligned(&big_endian(&l1))?;
        let (refcount_offset, refcount_clusters) = self.put_refcounts()?;
        let tables = TablePlaces { l1_offset, l1_entries: l1.len(), refcount_offset, refcount_clusters };
        let header = header(self.size, CLUSTER_BITS, self.codec, &tables)?;
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header)?;
        self.out.flush()
    }

    /// Writes the refcount table and its blocks, which count themselves too. Returns the table's offset and its length in
    /// clusters.
    fn put_refcounts(&mut self) -> io::Result<(u64, u64)> {
        self.align(CLUSTER as u64)?;
        let before = self.end >> CLUSTER_BITS;
        let (mut blocks, mut table) = (1, 1);
        while before + table + blocks > blocks * BLOCK_ENTRIES as u64 {
            blocks += 1;
            table = (blocks * 8).div_ceil(CLUSTER as u64);
        }
        let table_at = self.end;
        let first_block = table_at + (table << CLUSTER_BITS);
        let entries: Vec<u64> = (0..blocks).map(|block| first_block + (block << CLUSTER_BITS)).collect();
        self.append_aligned(&big_endian(&entries))?;
        let last = before + table + blocks;
        self.count(self.end >> CLUSTER_BITS..last)?;
        for block in std::mem::take(&mut self.counts).chunks(BLOCK_ENTRIES) {
            let mut bytes: Vec<u8> = block.iter().flat_map(|count| count.to_be_bytes()).collect();
            bytes.resize(CLUSTER, 0);
            self.append(&bytes)?;
        }
        Ok((table_at, table))
    }

    fn map(&mut self, cluster: u64, entry: u64) {
        let entries = L2_ENTRIES as u64;
        let table = self.tables.entry(cluster / entries).or_insert_with(|| vec![0; L2_ENTRIES]);
        table[usize::try_from(cluster % entries).unwrap_or(0)] = entry;
    }

    /// Counts one more reference to each of these clusters of the file.
    fn count(&mut self, clusters: Range<u64>) -> io::Result<()> {
        let start = usize::try_from(clusters.start).map_err(io::Error::other)?;
        let end = usize::try_from(clusters.end).map_err(io::Error::other)?;
        if end > self.counts.len() {
            self.counts.resize(end, 0);
        }
        self.counts[start..end].iter_mut().for_each(|count| *count += 1);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.end += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Appends bytes from a cluster's start on and pads the last cluster; each of them is referenced once. Returns the
    /// offset.
    fn append_aligned(&mut self, bytes: &[u8]) -> io::Result<u64> {
        self.align(CLUSTER as u64)?;
        let at = self.end;
        self.append(bytes)?;
        self.align(CLUSTER as u64)?;
        self.count(at >> CLUSTER_BITS..self.end >> CLUSTER_BITS)?;
        Ok(at)
    }

    fn align(&mut self, to: u64) -> io::Result<()> {
        static ZEROES: [u8; CLUSTER] = [0; CLUSTER];
        let missing = self.end.next_multiple_of(to) - self.end;
        self.append(&ZEROES[..usize::try_from(missing).unwrap_or(0)])
    }
}

fn big_endian(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

/// The places of the tables that a header names.
struct TablePlaces {
    l1_offset: u64,
    l1_entries: usize,
    refcount_offset: u64,
    refcount_clusters: u64,
}

/// Builds the header, and the empty extension that ends the list of extensions.
fn header(size: u64, cluster_bits: u32, codec: Codec, tables: &TablePlaces) -> io::Result<Vec<u8>> {
    let (incompatible_features, compression_type) = codec.declaration();
    let header = RawHeader {
        magic: *MAGIC,
        version: U32::new(3),
        backing_file_offset: U64::ZERO,
        backing_file_size: U32::ZERO,
        cluster_bits: U32::new(cluster_bits),
        size: U64::new(size),
        crypt_method: U32::ZERO,
        l1_size: U32::new(u32::try_from(tables.l1_entries).map_err(io::Error::other)?),
        l1_table_offset: U64::new(tables.l1_offset),
        refcount_table_offset: U64::new(tables.refcount_offset),
        refcount_table_clusters: U32::new(u32::try_from(tables.refcount_clusters).map_err(io::Error::other)?),
        nb_snapshots: U32::ZERO,
        snapshots_offset: U64::ZERO,
        incompatible_features: U64::new(incompatible_features),
        compatible_features: U64::ZERO,
        autoclear_features: U64::ZERO,
        refcount_order: U32::new(REFCOUNT_ORDER),
        header_length: U32::new(HEADER_LENGTH),
        compression_type,
        padding: [0; 7],
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend([0; 8]);
    Ok(bytes)
}
