//! The base image, compressed as outputs are, and the parts of a disk that are as in it.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use zstd::zstd_safe::find_frame_compressed_size;

use crate::digest::FileStamp;
use crate::error::{Fault, Kind};
use crate::specfile::BaseFormat;

use super::byte_ranges::ByteRanges;
use super::chain::{Chain, ChainError};
use super::chunk_index::{ChunkIndex, KnownChunks};
use super::qcow2::header::Codec;
use super::qcow2::layout::{CLUSTER, CLUSTER_BITS, STRIPE};
use super::qcow2::reader::Qcow2Reader;
use super::qcow2::stripe::Stripe;

use super::source::{DataLocation, DiskSource, LayerError};

/// The memory for the L2 tables, in bytes.
const TABLE_MEMORY: u64 = 1 << 20;
/// The size of a stripe in bytes.
pub(super) const STRIPE_BYTES: u64 = STRIPE << CLUSTER_BITS;

/// A cluster of an output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PackedCluster {
    Zero,
    Packed(Vec<u8>),
    Plain(Vec<u8>),
}

/// The twin in the cache is another one than before.
#[derive(Debug, thiserror::Error)]
#[error("the compressed base in the cache was changed while it was copied")]
pub struct TwinChangedError;

impl Fault for TwinChangedError {
    fn kind(&self) -> Kind {
        Kind::Host
    }

    fn hints(&self) -> Vec<String> {
        vec!["build again: a damaged one is made anew; find out what writes to the cache".into()]
    }
}

/// A qcow2 file of clusters that outputs may have as well: the base image, compressed with zstd.
#[derive(Debug)]
pub struct TwinReader {
    file: Qcow2Reader,
    /// Whether kiln has written the file, so that whole stripes can be copied.
    has_stripes: bool,
    /// The state of the file when it was opened, if nobody may change it from then on.
    stamp: Option<FileStamp>,
}

/// The prepared base of a build: what a conversion takes from it, instead of reading it.
#[derive(Debug)]
pub struct PreparedBase {
    /// Its clusters.
    pub twin: TwinReader,
    /// The digests of its chunks, as a disk of the size that the build's disk has. They are known of those chunks for which
    /// an earlier conversion has compared the twin with the base.
    pub chunks: Mutex<KnownChunks>,
}

impl PreparedBase {
    /// Returns the digests that are known now.
    pub fn known_chunks(&self) -> KnownChunks {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Checks that the twin has not changed since it was opened: what was copied from it is not read again.
    ///
    /// # Errors
    /// When it has.
    pub fn check_unchanged(&self) -> Result<(), TwinChangedError> {
        if self.twin.is_unchanged() { Ok(()) } else { Err(TwinChangedError) }
    }

    /// Takes the digests of the chunks in which a disk is as the base. Its copies have been compared with it.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn learn(&self, disk: &Chain, index: &ChunkIndex) -> Result<(), ChainError> {
        let changed = disk.changed_ranges()?;
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.learn(index, |range| !changed.overlap(range));
        Ok(())
    }
}

impl TwinReader {
    /// Opens a zstd file that [`super::write_qcow2::write_qcow2`] produced.
    ///
    /// # Errors
    /// When the file is not a qcow2 file.
    pub fn open(file: File) -> Result<Self, LayerError> {
        Ok(Self { file: Qcow2Reader::open(file, TABLE_MEMORY)?, has_stripes: true, stamp: None })
    }

    /// Opens such a file that is in the cache: it is not to change from now on.
    ///
    /// # Errors
    /// When the file is not a qcow2 file.
    pub fn open_cached(file: File) -> Result<Self, LayerError> {
        let stamp = file.metadata().map_err(LayerError::Io)?;
        Ok(Self { stamp: Some(FileStamp::from(&stamp)), ..Self::open(file)? })
    }

    /// Returns whether the file is as it was when it was opened, as far as that was noted.
    pub(super) fn is_unchanged(&self) -> bool {
        let Some(stamp) = &self.stamp else { return true };
        self.file().metadata().is_ok_and(|now| FileStamp::from(&now) == *stamp)
    }

    /// Opens a base that kiln has written as its own twin, if its clusters are compressed in the same way.
    #[must_use]
    pub fn itself(base: File, format: BaseFormat) -> Option<Self> {
        let file = if format == BaseFormat::Qcow2 { Qcow2Reader::open(base, TABLE_MEMORY).ok()? } else { return None };
        file.is_packed(Codec::Zstd, CLUSTER_BITS).then_some(Self { file, has_stripes: false, stamp: None })
    }

    pub(super) fn file(&self) -> &File {
        self.file.file()
    }

    pub(super) fn stripe(&self, number: u64) -> Result<Option<Stripe>, LayerError> {
        if self.has_stripes { self.file.stripe(number) } else { Ok(None) }
    }

    pub(super) fn cluster(&self, cluster: u64) -> Result<PackedCluster, LayerError> {
        let at = cluster << CLUSTER_BITS;
        if at >= self.file.size() {
            return Ok(PackedCluster::Zero);
        }
        let run = self.file.run_at(at, CLUSTER as u64)?;
        match run.place {
            DataLocation::Below | DataLocation::Zero => Ok(PackedCluster::Zero),
            DataLocation::At(_) => {
                let mut bytes = vec![0; CLUSTER];
                self.file.read(run.place, at, &mut bytes)?;
                Ok(PackedCluster::Plain(bytes))
            }
            DataLocation::Packed(entry) => {
                let (at, mut sectors) = self.file.packed(entry)?;
                // The last sector may contain the beginning of the next frame.
                let length = find_frame_compressed_size(&sectors).unwrap_or(0);
                if !(1..CLUSTER).contains(&length) {
                    return Err(LayerError::Unpack { at, source: ErrorKind::InvalidData.into() });
                }
                sectors.truncate(length);
                Ok(PackedCluster::Packed(sectors))
            }
        }
    }
}

/// The parts of a disk that are as in its base.
#[derive(Debug)]
pub(super) struct UnchangedParts<'t> {
    twin: &'t TwinReader,
    changed: ByteRanges,
    disk_size: u64,
}

impl<'t> UnchangedParts<'t> {
    /// Finds the parts of a disk that no file above the base decides.
    pub fn of(disk: &Chain, twin: &'t TwinReader) -> Result<Self, ChainError> {
        Ok(Self { twin, changed: disk.changed_ranges()?, disk_size: disk.virtual_size() })
    }

    /// Returns the twin of the base.
    pub fn twin(&self) -> &'t TwinReader {
        self.twin
    }

    /// Returns the stripe of the twin that can be copied, if the disk has the same one.
    pub fn stripe(&self, number: u64) -> Result<Option<Stripe>, LayerError> {
        if self.include(stripe_range(number)) { self.twin.stripe(number) } else { Ok(None) }
    }

    /// Returns the cluster of the twin, if the disk has the same one.
    pub fn cluster(&self, cluster: u64) -> Result<Option<PackedCluster>, LayerError> {
        let at = cluster << CLUSTER_BITS;
        if self.include(at..at + CLUSTER as u64) { self.twin.cluster(cluster).map(Some) } else { Ok(None) }
    }

    /// Returns whether a copy of the disk has the clusters of the twin in this stripe; `None` if the disk has others. Whole
    /// stripes were copied as they are, so only their places are compared.
    pub fn are_in(&self, copy: &TwinReader, number: u64) -> Result<Option<bool>, LayerError> {
        if !self.include(stripe_range(number)) {
            return Ok(None);
        }
        if let (Some(stripe), Some(copied)) = (self.twin.stripe(number)?, copy.stripe(number)?) {
            return Ok(Some(stripe.is_placed_as(&copied)));
        }
        for cluster in number * STRIPE..(number + 1) * STRIPE {
            if self.twin.cluster(cluster)? != copy.cluster(cluster)? {
                return Ok(Some(false));
            }
        }
        Ok(Some(true))
    }

    /// Returns whether the twin has this range of the disk. What follows the end of the base in its last cluster is only the
    /// same if the disk ends there too.
    fn include(&self, range: Range<u64>) -> bool {
        let range = range.start..range.end.min(self.disk_size);
        range.end <= self.twin.file.size() && !self.changed.overlap(&range)
    }
}

/// Returns the bytes of the disk that a stripe holds.
fn stripe_range(number: u64) -> Range<u64> {
    number * STRIPE_BYTES..(number + 1) * STRIPE_BYTES
}
