//! Erases the journals of a sealed disk. A journal holds what its file system has written lately: names of files that were
//! deleted since, and old blocks of directories. Nobody reads them after a clean unmount, but they would be published.
//!
//! The disk itself is not changed: one more overlay on top of it has zeroes there. Whatever is read from the disk afterwards,
//! to be checked, converted or hashed, is read without the journals.

use std::fs::File;
use std::io;
use std::ops::Range;

use super::byte_ranges::ByteRanges;
use super::chain::{Chain, ChainError};
use super::ext4::{Ext4, Ext4Error};
use super::partition::Partition;
use super::partition_table::partitions;
use super::qcow2::header::Codec;
use super::qcow2::layout::CLUSTER;
use super::qcow2::writer::Qcow2Writer;
use super::sparse;
use crate::error::{Fault, Kind};

/// The error of erasing journals.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// The disk cannot be read.
    #[error(transparent)]
    Read(#[from] ChainError),
    /// The overlay cannot be written.
    #[error("cannot write the overlay that erases journals")]
    Write(#[from] io::Error),
}

impl Fault for EraseError {
    fn kind(&self) -> Kind {
        match self {
            EraseError::Read(error) => error.kind(),
            EraseError::Write(_) => Kind::Host,
        }
    }
}

/// Writes an overlay for this disk to an empty file, in which the journals of its ext4 file systems are zero. A file system
/// that kiln cannot read, or that was not unmounted cleanly, keeps its journal. Blocks the calling thread.
///
/// # Errors
/// When the disk cannot be read, or the file cannot be written.
pub fn erase_journals(disk: &Chain, overlay: File) -> Result<(), EraseError> {
    let mut journals = Vec::new();
    for partition in partitions(disk)? {
        journals.extend(find_journal(disk, &partition)?);
    }
    let journals = ByteRanges::new(journals);
    let mut writer = Qcow2Writer::new(overlay, disk.virtual_size(), Codec::Zstd)?;
    for cluster in journals.clusters(CLUSTER as u64) {
        let bytes = read_erased(disk, cluster * CLUSTER as u64, &journals)?;
        if sparse::is_zero(&bytes) {
            writer.put_zeroes(cluster);
        } else {
            writer.put_plain(cluster, &bytes)?;
        }
    }
    Ok(writer.finish()?)
}

fn find_journal(disk: &Chain, partition: &Partition) -> Result<Vec<Range<u64>>, ChainError> {
    match Ext4::open(disk, partition.start, partition.length).and_then(|ext4| ext4.idle_journal()) {
        Err(Ext4Error::Read(error)) => Err(error),
        found => Ok(found.unwrap_or_default()),
    }
}

/// Reads a cluster, with zeroes for journals, and beyond the end of the disk.
fn read_erased(disk: &Chain, at: u64, journals: &ByteRanges) -> Result<Vec<u8>, ChainError> {
    let mut bytes = vec![0; CLUSTER];
    let length = inside(at, disk.virtual_size());
    disk.read_at(at, &mut bytes[..length])?;
    for range in journals.overlapping(&(at..at + CLUSTER as u64)) {
        let (start, end) = (inside(at, range.start), inside(at, range.end));
        bytes[start..end].fill(0);
    }
    Ok(bytes)
}

/// Returns the place of a byte of the disk in the cluster that begins at `at`: the cluster's start or end, if it is outside.
fn inside(at: u64, byte: u64) -> usize {
    usize::try_from(byte.saturating_sub(at)).unwrap_or(CLUSTER).min(CLUSTER)
}
