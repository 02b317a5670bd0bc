//! Computes the SHA-256 of a whole disk, and compares its copies with it, in one reading.
//!
//! The digest of a disk is that of the bytes that its guest sees, so it is the same for every format and compression the
//! disk is stored in. Reading, unpacking and comparing happen on all processors, hashing in order.

use sha2::{Digest, Sha256};

use crate::digest::Sha256Digest;
use crate::error::{Fault, Kind};
use crate::progress::{CancelledError, Progress};
use crate::specfile::DiskFormat;

use super::chain::{Chain, ChainError};
use super::ordered_jobs::{in_order, threads};
use super::pieces::{PIECE, PieceStarts};
use super::sparse::is_zero;
use super::write::length_at;

static ZEROES: [u8; PIECE] = [0; PIECE];
/// How many bytes of zeroes are hashed between two checks whether to stop.
const STRETCH: u64 = 64 << 20;

/// The error of a disk's digest, or of a copy that differs from the disk.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// The disk cannot be read.
    #[error(transparent)]
    Read(#[from] ChainError),
    /// A copy cannot be read.
    #[error("cannot read {name} back")]
    Copy {
        /// The name of the file.
        name: String,
        /// The error of reading it.
        source: ChainError,
    },
    /// A copy has another size.
    #[error("{name} holds a disk of {found} bytes, not {expected}")]
    Size {
        /// The name of the file.
        name: String,
        /// The size of its disk in bytes.
        found: u64,
        /// The expected size in bytes.
        expected: u64,
    },
    /// A copy has other bytes.
    #[error("{name} differs from the sealed disk between bytes {at} and {}", .at + PIECE as u64)]
    Differs {
        /// The name of the file.
        name: String,
        /// The offset of the part that differs.
        at: u64,
    },
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] CancelledError),
}

impl Fault for DigestError {
    fn kind(&self) -> Kind {
        match self {
            DigestError::Read(error) => error.kind(),
            DigestError::Copy { .. } | DigestError::Size { .. } | DigestError::Differs { .. } => Kind::Output,
            DigestError::Cancelled(_) => Kind::Interrupted,
        }
    }
}

/// A copy of a disk, in a file of some format.
#[derive(Debug)]
pub struct DiskCopy {
    /// The name in messages.
    pub name: String,
    /// The format, which determines the expected size.
    pub format: DiskFormat,
    /// The opened file.
    pub disk: Chain,
}

impl DiskCopy {
    fn check_size(&self, disk: &Chain) -> Result<(), DigestError> {
        let found = self.disk.virtual_size();
        let expected = self.format.virtual_size(disk.virtual_size());
        if found == expected { Ok(()) } else { Err(DigestError::Size { name: self.name.clone(), found, expected }) }
    }
}

/// Called with each piece of data of a disk and its offset in bytes. Runs of zeroes are not passed on.
pub type DataVisitor<'a> = dyn FnMut(u64, &[u8]) + Send + 'a;

/// Returns the SHA-256 of the raw disk. Blocks the calling thread.
///
/// # Errors
/// When the chain cannot be read, or the work is cancelled.
pub fn disk_sha256(disk: &Chain, progress: &Progress<'_>) -> Result<Sha256Digest, DigestError> {
    read_back(disk, &[], &mut |_, _| {}, progress)
}

/// Reads the disk and every copy of it, from the first byte to the last; bytes that a format adds at the end must be zero.
/// Returns the SHA-256 of the raw disk. `look` is called with all of its data. Blocks the calling thread; uses all
/// processors.
///
/// # Errors
/// When a copy differs from the disk, something cannot be read, or the work is cancelled.
pub fn read_back(
    disk: &Chain,
    copies: &[DiskCopy],
    look: &mut DataVisitor<'_>,
    progress: &Progress<'_>,
) -> Result<Sha256Digest, DigestError> {
    copies.iter().try_for_each(|copy| copy.check_size(disk))?;
    let all: Vec<&Chain> = [disk].into_iter().chain(copies.iter().map(|copy| &copy.disk)).collect();
    let pieces = PieceStarts::new(&all).map(|at| at.map_err(|(index, error)| failed(copies, index, error)));
    let workers = (0..threads()).map(|_| |at| read_piece(disk, copies, at)).collect();
    progress.begin(disk.virtual_size());
    let mut hash = Hash { sha: Sha256::new(), at: 0, size: disk.virtual_size(), progress };
    in_order(pieces, workers, |(at, bytes): (u64, Vec<u8>)| {
        hash.zeroes_to(at)?;
        look(at, &bytes);
        hash.data(&bytes)
    })?;
    hash.zeroes_to(disk.virtual_size())?;
    Ok(hash.sha.into())
}

/// Returns the error of reading the disk, or one of its copies.
fn failed(copies: &[DiskCopy], index: usize, source: ChainError) -> DigestError {
    match index.checked_sub(1) {
        None => DigestError::Read(source),
        Some(index) => DigestError::Copy { name: copies[index].name.clone(), source },
    }
}

/// Reads the piece of the disk at this offset, and checks that the copies have the same bytes there.
fn read_piece(disk: &Chain, copies: &[DiskCopy], at: u64) -> Result<(u64, Vec<u8>), DigestError> {
    let mut bytes = vec![0; length_at(disk, at)];
    if !bytes.is_empty() {
        disk.read_at(at, &mut bytes)?;
    }
    let mut copied = Vec::new();
    for (index, copy) in copies.iter().enumerate() {
        copied.resize(length_at(&copy.disk, at), 0);
        copy.disk.read_at(at, &mut copied).map_err(|error| failed(copies, index + 1, error))?;
        let (same, beyond) = copied.split_at(bytes.len().min(copied.len()));
        if same != bytes || !is_zero(beyond) {
            return Err(DigestError::Differs { name: copy.name.clone(), at });
        }
    }
    Ok((at, bytes))
}

/// Hashes the disk from its first byte to its last.
struct Hash<'a> {
    sha: Sha256,
    at: u64,
    size: u64,
    progress: &'a Progress<'a>,
}

impl Hash<'_> {
    fn data(&mut self, bytes: &[u8]) -> Result<(), DigestError> {
        self.sha.update(bytes);
        self.advance(bytes.len() as u64)
    }

    /// Hashes zeroes up to this offset, or the end of the disk.
    fn zeroes_to(&mut self, end: u64) -> Result<(), DigestError> {
        while self.at < end.min(self.size) {
            let count = (end.min(self.size) - self.at).min(STRETCH);
            hash_zeroes(&mut self.sha, count);
            self.advance(count)?;
        }
        Ok(())
    }

    fn advance(&mut self, bytes: u64) -> Result<(), DigestError> {
        self.at += bytes;
        Ok(self.progress.advance_to(self.at)?)
    }
}

/// Hashes this many zeroes.
pub(super) fn hash_zeroes(sha: &mut Sha256, mut count: u64) {
    while count > 0 {
        let now = usize::try_from(count).unwrap_or(PIECE).min(PIECE);
        sha.update(&ZEROES[..now]);
        count -= now as u64;
    }
}
