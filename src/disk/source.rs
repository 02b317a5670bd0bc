//! One opened file that holds a disk: the interface of each format's reader, and the errors of a file.

use std::fmt;
use std::io;

use super::header_error::HeaderError;

/// The error of one file of a chain.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The qcow2 header is refused.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The file has another format, or an unsupported variant.
    #[error("this is no {format} file that kiln reads: {why}")]
    Unknown {
        /// The expected format.
        format: &'static str,
        /// Why the file is not accepted.
        why: String,
    },
    /// A table entry points outside the file.
    #[error("{what} should be at byte {at} of a file of {file_size} bytes: the file is truncated or damaged")]
    Entry {
        /// The object that the entry should point to.
        what: &'static str,
        /// The offset in the file.
        at: u64,
        /// The size of the file.
        file_size: u64,
    },
    /// Something is used twice, by which a small file would be a huge disk.
    #[error(
        "tables and clusters in use take {claimed} bytes of a file of {file_size} bytes: the file is damaged or hostile"
    )]
    Claims {
        /// How many bytes the tables read so far use.
        claimed: u64,
        /// The size of the file.
        file_size: u64,
    },
    /// A compressed cluster cannot be unpacked.
    #[error("a compressed cluster at byte {at} cannot be unpacked")]
    Unpack {
        /// The offset in the file.
        at: u64,
        /// The error of unpacking it.
        source: io::Error,
    },
}

/// The place of some bytes of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataLocation {
    /// Not in this file, but in the one below.
    Below,
    /// In no file: the bytes are zero.
    Zero,
    /// In the file, from this offset on.
    At(u64),
    /// In a compressed part of the file, which the format identifies by this number.
    Packed(u64),
}

/// Bytes of the disk that are in one contiguous place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DataRun {
    /// The place of the first byte.
    pub place: DataLocation,
    /// How many bytes they are; never 0.
    pub length: u64,
}

/// One opened file that holds a disk, in any format.
pub(super) trait DiskSource: fmt::Debug + Send + Sync {
    /// Returns the size of the disk in bytes.
    fn size(&self) -> u64;

    /// Returns the place of the byte at `offset` of the disk, and how many bytes are contiguous there; searches no farther
    /// than `enough` bytes require. `offset` is below the size.
    fn run_at(&self, offset: u64, enough: u64) -> Result<DataRun, LayerError>;

    /// Fills `bytes` with those at `offset` of the disk, for which [`DiskSource::run_at`] returned `place`.
    fn read(&self, place: DataLocation, offset: u64, bytes: &mut [u8]) -> Result<(), LayerError>;
}
