//! One opened file that holds a disk: what each format's reader has to answer, and what can be wrong with the file.

use std::fmt;
use std::io;

use super::qcow2::header::HeaderError;

/// What can be wrong with one file of a chain.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Reading failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The qcow2 header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A file of another format, or of a kind of it that is not read here.
    #[error("this is no {format} file that kiln reads: {why}")]
    Unknown {
        /// Which format it should have.
        format: &'static str,
        /// What is not as it should be.
        why: String,
    },
    /// A table entry that leads nowhere.
    #[error("{what} should be at byte {at} of a file of {file_size} bytes: the file is truncated or damaged")]
    Entry {
        /// What should be there.
        what: &'static str,
        /// Where, in the file.
        at: u64,
        /// Size of the file.
        file_size: u64,
    },
    /// Something is in use twice, which is how a small file would be an endless disk.
    #[error(
        "tables and clusters in use take {claimed} bytes of a file of {file_size} bytes: the file is damaged or hostile"
    )]
    Claims {
        /// What the tables read so far claim.
        claimed: u64,
        /// Size of the file.
        file_size: u64,
    },
    /// A compressed cluster that is none.
    #[error("a compressed cluster at byte {at} cannot be unpacked")]
    Unpack {
        /// Where, in the file.
        at: u64,
        /// What is wrong with it.
        source: io::Error,
    },
}

/// Where the bytes at some place of the disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Not in this file: ask the one below.
    Below,
    /// Nowhere: they are zero.
    Zero,
    /// In the file, from this byte on.
    At(u64),
    /// In a compressed part of the file, which the format knows by this number.
    Packed(u64),
}

/// Bytes of the disk that are all in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Where the first byte is.
    pub place: Place,
    /// How many bytes; never 0.
    pub length: u64,
}

/// One opened file that holds a disk, in any format.
pub(super) trait Source: fmt::Debug + Send + Sync {
    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// The place of the byte at `offset` of the disk, and how far it goes on like that; looks no farther than `enough`
    /// bytes need. `offset` is below the size.
    fn run_at(&self, offset: u64, enough: u64) -> Result<Run, LayerError>;

    /// Fills `bytes` with what is at `offset` of the disk, which [`Source::run_at`] said is at `place`.
    fn read(&self, place: Place, offset: u64, bytes: &mut [u8]) -> Result<(), LayerError>;
}
