//! Reads guest data of one qcow2 file: the place of each cluster, and its bytes.
//!
//! Source: `docs/interop/qcow2.rst`, "Cluster mapping". Entries are checked when they are used: they come from an untrusted
//! base, or from an overlay that an untrusted guest has written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::bytes::{be64_table, read_up_to};
use crate::disk::slot_cache::SlotCache;
use crate::disk::source::{DataLocation, DataRun, DiskSource, LayerError};

use super::header::{Codec, HEAD_LIMIT, Qcow2Header};
use super::unpack::unpack;

pub(in crate::disk) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
pub(super) const COMPRESSED: u64 = 1 << 62;
pub(super) const READS_AS_ZERO: u64 = 1;
/// The unit in which the length of a compressed cluster is counted, in bytes.
pub(super) const SECTOR: u64 = 512;
/// The memory for unpacked clusters in bytes: readers of a file system read the same cluster many times.
const UNPACKED_BYTES: u64 = 4 << 20;

/// Returns how many bits of a compressed cluster's entry are its offset; the count of additional sectors follows.
pub(super) const fn offset_bits(cluster_bits: u32) -> u32 {
    62 - (cluster_bits - 8)
}

/// Returns the bytes of a file that a compressed cluster's entry names, to the end of its last sector.
pub(super) fn packed_span(entry: u64, cluster_bits: u32) -> Range<u64> {
    let offset_bits = offset_bits(cluster_bits);
    let entry = entry & (COMPRESSED - 1);
    let at = entry & ((1 << offset_bits) - 1);
    at..(at / SECTOR + (entry >> offset_bits) + 1) * SECTOR
}

/// One opened qcow2 file.
#[derive(Debug)]
pub(in crate::disk) struct Qcow2Reader {
    file: File,
    file_size: u64,
    header: Qcow2Header,
    l1: Vec<u64>,
    tables: SlotCache<Vec<u64>>,
    claims: Mutex<ClusterUsage>,
    unpacked: SlotCache<Vec<u8>>,
}

impl Qcow2Reader {
    /// Reads the header and the L1 table. L2 tables take at most `memory` bytes at a time, but at least one is kept.
    pub fn open(file: File, memory: u64) -> Result<Self, LayerError> {
        let file_size = file.metadata()?.len();
        let header = Qcow2Header::parse(&read_up_to(&file, 0, HEAD_LIMIT)?, file_size)?;
        let length = usize::try_from(header.l1.end - header.l1.start).unwrap_or(0);
        let l1 = be64_table(&read_up_to(&file, header.l1.start, length)?);
        let tables = SlotCache::new(memory / header.cluster_size());
        let unpacked = SlotCache::new(UNPACKED_BYTES / header.cluster_size());
        let claims = Mutex::new(ClusterUsage { counted: vec![false; l1.len()], bytes: 0 });
        Ok(Self { file, file_size, header, l1, tables, claims, unpacked })
    }

    /// Returns whether clusters have this size, and this compression if they are compressed.
    pub fn is_packed(&self, codec: Codec, cluster_bits: u32) -> bool {
        self.header.codec == codec && self.has_cluster_bits(cluster_bits)
    }

    pub(super) fn has_cluster_bits(&self, cluster_bits: u32) -> bool {
        self.header.cluster_bits == cluster_bits
    }

    /// Returns the file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the L2 entries of these clusters, which are in one table; none of them if nothing is allocated.
    pub(super) fn entries(&self, clusters: Range<u64>) -> Result<Vec<u64>, LayerError> {
        let per_table = self.header.cluster_size() / 8;
        let Some(table) = self.table(clusters.start / per_table)? else { return Ok(Vec::new()) };
        let first = usize::try_from(clusters.start % per_table).unwrap_or(usize::MAX);
        let count = usize::try_from(clusters.end - clusters.start).unwrap_or(usize::MAX);
        Ok(table.iter().skip(first).take(count).copied().collect())
    }

    /// Returns the bytes of the file that an allocated cluster takes, in whole sectors.
    pub(super) fn span(&self, entry: u64) -> Result<Range<u64>, LayerError> {
        match self.place(entry)? {
            DataLocation::Packed(entry) => Ok(packed_span(entry, self.header.cluster_bits)),
            DataLocation::At(at) => Ok(at..at + self.header.cluster_size()),
            DataLocation::Below | DataLocation::Zero => Ok(0..0),
        }
    }

    /// Returns the place of the first entry's cluster, and how many clusters are contiguous there.
    fn same_place(&self, entries: &[u64]) -> Result<(DataLocation, u64), LayerError> {
        let first = self.place(entries[0])?;
        let mut count = 1;
        for entry in &entries[1..] {
            let continued = match (first, self.place(*entry)) {
                (DataLocation::At(start), Ok(DataLocation::At(next))) => {
                    next == start + count * self.header.cluster_size()
                }
                (DataLocation::Below, Ok(DataLocation::Below)) | (DataLocation::Zero, Ok(DataLocation::Zero)) => true,
                _ => false,
            };
            if !continued {
                break;
            }
            count += 1;
        }
        Ok((first, count))
    }

    fn place(&self, entry: u64) -> Result<DataLocation, LayerError> {
        if entry & COMPRESSED != 0 {
            return Ok(DataLocation::Packed(entry & (COMPRESSED - 1)));
        }
        // Version 2 has no zero flag; the bit is reserved there.
        if entry & READS_AS_ZERO != 0 && self.header.version > 2 {
            return Ok(DataLocation::Zero);
        }
        match entry & OFFSET {
            0 => Ok(DataLocation::Below),
            at => self.check_cluster("a data cluster", at).map(|()| DataLocation::At(at)),
        }
    }

    fn check_cluster(&self, what: &'static str, at: u64) -> Result<(), LayerError> {
        if at.is_multiple_of(self.header.cluster_size()) && at < self.file_size {
            return Ok(());
        }
        Err(LayerError::Entry { what, at, file_size: self.file_size })
    }

    /// Returns the L2 table of an L1 entry; `None` if nothing is allocated.
    fn table(&self, index: u64) -> Result<Option<Arc<Vec<u64>>>, LayerError> {
        let slot = usize::try_from(index).unwrap_or(usize::MAX);
        let entry = self.l1.get(slot).copied().unwrap_or(0);
        let at = entry & OFFSET;
        if at == 0 {
            return Ok(None);
        }
        let read = || {
            self.check_cluster("an L2 table", at)?;
            let mut bytes = vec![0; 1 << self.header.cluster_bits];
            self.read_file(at, &mut bytes)?;
            let table = be64_table(&bytes);
            self.claim(slot, &table)?;
            Ok(table)
        };
        self.tables.get(index, read).map(Some)
    }

    /// Counts the clusters that the L2 table of this slot uses. No two entries share a table or an uncompressed cluster in a
    /// disk without snapshots, so all of them have to fit into the file. Compressed clusters are limited by their entries.
    fn claim(&self, slot: usize, table: &[u64]) -> Result<(), LayerError> {
        let cluster = self.header.cluster_size();
        let plain = table.iter().filter(|entry| matches!(self.place(**entry), Ok(DataLocation::At(_)))).count();
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut claims.counted[slot], true) {
            claims.bytes = claims.bytes.saturating_add(cluster.saturating_mul(1 + plain as u64));
        }
        if claims.bytes <= self.file_size.next_multiple_of(cluster) {
            return Ok(());
        }
        Err(LayerError::Claims { claimed: claims.bytes, file_size: self.file_size })
    }

    /// Reads bytes of the file. Bytes beyond its end are zero, as in QEMU: the last cluster of a file may be incomplete.
    fn read_file(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let there = usize::try_from(self.file_size.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
        let (inside, beyond) = bytes.split_at_mut(there);
        beyond.fill(0);
        self.file.read_exact_at(inside, at)
    }

    /// Unpacks the cluster of an L2 entry.
    fn unpack(&self, entry: u64) -> Result<Vec<u8>, LayerError> {
        let (at, packed) = self.packed(entry)?;
        unpack(self.header.codec, &packed, 1 << self.header.cluster_bits)
            .map_err(|source| LayerError::Unpack { at, source })
    }

    /// Returns the offset in the file of an L2 entry's compressed cluster, and its sectors ("Compressed Clusters
    /// Descriptor").
    pub fn packed(&self, entry: u64) -> Result<(u64, Vec<u8>), LayerError> {
        let Range { start: at, end } = packed_span(entry, self.header.cluster_bits);
        if at >= self.file_size {
            return Err(LayerError::Entry { what: "a compressed cluster", at, file_size: self.file_size });
        }
        // At most two clusters: the count of sectors has cluster_bits - 8 bits.
        let length = end.min(self.file_size) - at;
        let mut packed = vec![0; usize::try_from(length).unwrap_or(0)];
        self.read_file(at, &mut packed)?;
        Ok((at, packed))
    }
}

impl DiskSource for Qcow2Reader {
    fn size(&self) -> u64 {
        self.header.virtual_size
    }

    fn run_at(&self, offset: u64, enough: u64) -> Result<DataRun, LayerError> {
        let bits = self.header.cluster_bits;
        let cluster = offset >> bits;
        let per_table = self.header.cluster_size() / 8;
        let (table_index, first) = (cluster / per_table, cluster % per_table);
        let (place, clusters) = match self.table(table_index)? {
            None => (DataLocation::Below, per_table - first),
            Some(table) => {
                let entries = &table[usize::try_from(first).unwrap_or(0)..];
                // One more than that many whole clusters, for the partial ones at both ends.
                let enough = usize::try_from(enough >> bits).unwrap_or(usize::MAX).saturating_add(2);
                self.same_place(&entries[..entries.len().min(enough)])?
            }
        };
        let end = ((cluster + clusters) << bits).min(self.size());
        let inside = offset & (self.header.cluster_size() - 1);
        let place = if let DataLocation::At(start) = place { DataLocation::At(start + inside) } else { place };
        Ok(DataRun { place, length: end - offset })
    }

    fn read(&self, place: DataLocation, offset: u64, bytes: &mut [u8]) -> Result<(), LayerError> {
        match place {
            DataLocation::Below | DataLocation::Zero => bytes.fill(0),
            DataLocation::At(at) => self.read_file(at, bytes)?,
            DataLocation::Packed(entry) => {
                let inside = usize::try_from(offset & (self.header.cluster_size() - 1)).unwrap_or(0);
                let cluster = self.unpacked.get(offset >> self.header.cluster_bits, || self.unpack(entry))?;
                bytes.copy_from_slice(&cluster[inside..inside + bytes.len()]);
            }
        }
        Ok(())
    }
}

/// The clusters that the L2 tables read so far use.
#[derive(Debug)]
struct ClusterUsage {
    /// The tables that are in the sum; a table that was dropped from the cache is read again.
    counted: Vec<bool>,
    bytes: u64,
}
