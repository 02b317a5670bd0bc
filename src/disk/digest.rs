//! Computes the digests of a disk, and compares its copies with it, in one reading.
//!
//! ```text
//! chunk of the disk -- as in the base, which is known and in the twin -> its digest, places in the copies are compared
//!                   `- anything else                                  -> read, hashed and compared
//! ```
//! The digests of a disk are those of the bytes that its guest sees, so they are the same for every format and compression
//! the disk is stored in. Chunks are read, unpacked, compared and hashed on all processors; the SHA-256 of the whole disk
//! ([`disk_sha256`]) can only be hashed in order.

use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::digest::Sha256Digest;
use crate::error::{Fault, Kind};
use crate::progress::{CancelledError, Progress};
use crate::specfile::DiskFormat;

use super::base_twin::{PreparedBase, STRIPE_BYTES, TwinReader, UnchangedParts};
use super::byte_ranges::ByteRanges;
use super::chain::{Chain, ChainError};
use super::chunk_index::{ChunkDigest, ChunkHasher, ChunkIndex, KnownChunks, chunks};
use super::ordered_jobs::{in_order, threads};
use super::pieces::{PIECE, PieceStarts};
use super::source::LayerError;
use super::sparse::{hash_zeroes, is_zero};
use super::write::length_at;

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
    /// The base's twin, or what a copy has of it, cannot be read.
    #[error("cannot read {name} back, or the compressed base that it was made from")]
    Twin {
        /// The name of the file.
        name: String,
        /// The error of reading it.
        source: LayerError,
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
    #[error("{name} differs from the sealed disk between bytes {} and {}", .range.start, .range.end)]
    Differs {
        /// The name of the file.
        name: String,
        /// The part of the disk that differs.
        range: Range<u64>,
    },
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] CancelledError),
}

impl Fault for DigestError {
    fn kind(&self) -> Kind {
        match self {
            DigestError::Read(error) => error.kind(),
            DigestError::Copy { .. }
            | DigestError::Twin { .. }
            | DigestError::Size { .. }
            | DigestError::Differs { .. } => Kind::Output,
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
    /// The base's twin, if the file was written with it.
    pub taken: Option<TakenClusters>,
}

/// The source of the clusters that a copy of a disk has in common with its base.
#[derive(Debug)]
pub struct TakenClusters {
    /// The base, with its twin.
    pub base: Arc<PreparedBase>,
    /// The copy.
    pub copy: TwinReader,
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

/// Reads a disk from its first byte to its last, and passes all of its data to `look`, in order. Blocks the calling thread;
/// uses all processors.
///
/// # Errors
/// When the disk cannot be read, or the work is cancelled.
pub fn read_through(disk: &Chain, look: &mut DataVisitor<'_>, progress: &Progress<'_>) -> Result<(), DigestError> {
    let pieces = PieceStarts::new(disk).map(|at| at.map_err(DigestError::Read));
    let workers = (0..threads()).map(|_| |at| read_piece(disk, at)).collect();
    progress.begin(disk.virtual_size());
    in_order(pieces, workers, |(at, bytes): (u64, Vec<u8>)| {
        look(at, &bytes);
        Ok(progress.advance_to(at + bytes.len() as u64)?)
    })
}

fn read_piece(disk: &Chain, at: u64) -> Result<(u64, Vec<u8>), DigestError> {
    let mut bytes = vec![0; length_at(disk, at)];
    if !bytes.is_empty() {
        disk.read_at(at, &mut bytes)?;
    }
    Ok((at, bytes))
}

/// Returns the SHA-256 of the raw disk. Blocks the calling thread.
///
/// # Errors
/// When the chain cannot be read, or the work is cancelled.
pub fn disk_sha256(disk: &Chain, progress: &Progress<'_>) -> Result<Sha256Digest, DigestError> {
    let pieces = PieceStarts::new(disk).map(|at| at.map_err(DigestError::Read));
    let workers = (0..threads()).map(|_| |at| read_piece(disk, at)).collect();
    progress.begin(disk.virtual_size());
    let mut hash = DiskHash { sha: Sha256::new(), at: 0, size: disk.virtual_size(), progress };
    in_order(pieces, workers, |(at, bytes): (u64, Vec<u8>)| {
        hash.zeroes_to(at)?;
        hash.data(&bytes)
    })?;
    hash.zeroes_to(disk.virtual_size())?;
    Ok(hash.sha.into())
}

/// Hashes the disk from its first byte to its last.
struct DiskHash<'a> {
    sha: Sha256,
    at: u64,
    size: u64,
    progress: &'a Progress<'a>,
}

impl DiskHash<'_> {
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

/// Reads the disk and every copy of it; bytes that a format adds at the end must be zero. Parts that are as in the `base`
/// are neither read nor hashed, if the copies have taken them from its twin. Returns the digests of the disk's chunks.
/// Blocks the calling thread; uses all processors.
///
/// # Errors
/// When a copy differs from the disk, something cannot be read, or the work is cancelled.
pub fn read_back(
    disk: &Chain,
    copies: &[DiskCopy],
    base: Option<&PreparedBase>,
    progress: &Progress<'_>,
) -> Result<ChunkIndex, DigestError> {
    let comparison = DiskComparison::new(disk, copies, base)?;
    let mut index = ChunkIndex::new(disk.virtual_size());
    let workers = (0..threads()).map(|_| |job| comparison.chunk(job)).collect();
    progress.begin(disk.virtual_size());
    in_order(chunks(disk.virtual_size()).enumerate().map(Ok), workers, |chunk: HashedChunk| {
        index.set(chunk.number, chunk.digest);
        Ok::<_, DigestError>(progress.advance_to(chunk.end)?)
    })?;
    Ok(index)
}

struct HashedChunk {
    number: usize,
    end: u64,
    digest: ChunkDigest,
}

/// A disk with its copies, which are compared chunk by chunk.
struct DiskComparison<'a> {
    disk: &'a Chain,
    copies: Vec<ComparedCopy<'a>>,
    /// The digests of the base's chunks, and where they are not those of the disk.
    base: Option<(KnownChunks, ByteRanges)>,
}

struct ComparedCopy<'a> {
    copy: &'a DiskCopy,
    /// The parts of the disk that are as in the base, and what the copy has of them.
    taken: Option<(UnchangedParts<'a>, &'a TwinReader)>,
}

impl<'a> DiskComparison<'a> {
    fn new(disk: &'a Chain, copies: &'a [DiskCopy], base: Option<&'a PreparedBase>) -> Result<Self, DigestError> {
        copies.iter().try_for_each(|copy| copy.check_size(disk))?;
        let copies = copies.iter().map(|copy| ComparedCopy::new(disk, copy)).collect::<Result<_, _>>()?;
        let base = base.map(PreparedBase::known_chunks).filter(|chunks| chunks.disk_size() == disk.virtual_size());
        let base = base.map(|chunks| Ok::<_, ChainError>((chunks, disk.changed_ranges()?))).transpose()?;
        Ok(Self { disk, copies, base })
    }

    /// Compares a chunk, and returns its digest.
    fn chunk(&self, (number, range): (usize, Range<u64>)) -> Result<HashedChunk, DigestError> {
        let known = self.known(number, &range);
        let mut hasher = known.is_none().then(|| ChunkHasher::new(range.start));
        // A format may have added bytes after the end of the disk.
        let end = range.end.next_multiple_of(PIECE as u64);
        let mut at = range.start;
        while let Some(data) = self.next_data(at..end)? {
            let stripe = data / STRIPE_BYTES;
            at = data / PIECE as u64 * PIECE as u64;
            let stripe_end = ((stripe + 1) * STRIPE_BYTES).min(end);
            let compared = self.compared_in(stripe, known.is_some())?;
            if hasher.is_some() || !compared.is_empty() {
                self.pieces(at..stripe_end, &compared, hasher.as_mut())?;
            }
            at = stripe_end;
        }
        let hashed = hasher.and_then(|hasher| hasher.finish(range.end));
        Ok(HashedChunk { number, end: range.end, digest: known.unwrap_or(hashed) })
    }

    /// Returns the digest of a chunk that is as in the base.
    fn known(&self, number: usize, range: &Range<u64>) -> Option<ChunkDigest> {
        let (chunks, changed) = self.base.as_ref()?;
        if changed.overlap(range) { None } else { chunks.get(number) }
    }

    /// Returns the first offset at which the disk or a copy may have data.
    fn next_data(&self, range: Range<u64>) -> Result<Option<u64>, DigestError> {
        let mut next = self.disk.first_data(range.clone())?;
        for compared in &self.copies {
            let data = compared.copy.disk.first_data(range.clone()).map_err(|error| compared.failed(error))?;
            next = next.into_iter().chain(data).min();
        }
        Ok(next)
    }

    /// Returns the copies whose bytes have to be compared in this stripe: the others have it from the base's twin, if that is
    /// known to be as the base.
    fn compared_in(&self, stripe: u64, is_known: bool) -> Result<Vec<&ComparedCopy<'a>>, DigestError> {
        let mut compared = Vec::new();
        for copy in &self.copies {
            if !(is_known && copy.has_taken(stripe)?) {
                compared.push(copy);
            }
        }
        Ok(compared)
    }

    /// Reads and hashes the pieces of a part of the disk, and checks that the copies have the same bytes.
    fn pieces(
        &self,
        range: Range<u64>,
        copies: &[&ComparedCopy<'a>],
        mut hasher: Option<&mut ChunkHasher>,
    ) -> Result<(), DigestError> {
        for at in range.step_by(PIECE) {
            let (_, bytes) = read_piece(self.disk, at)?;
            if let Some(hasher) = &mut hasher {
                hasher.add(at, &bytes);
            }
            copies.iter().try_for_each(|copy| copy.compare(at, &bytes))?;
        }
        Ok(())
    }
}

impl<'a> ComparedCopy<'a> {
    fn new(disk: &Chain, copy: &'a DiskCopy) -> Result<Self, DigestError> {
        let taken = copy.taken.as_ref().map(|taken| {
            let unchanged = UnchangedParts::of(disk, &taken.base.twin)?;
            Ok::<_, ChainError>((unchanged, &taken.copy))
        });
        Ok(Self { copy, taken: taken.transpose()? })
    }

    /// Returns the error of reading the copy.
    fn failed(&self, source: ChainError) -> DigestError {
        DigestError::Copy { name: self.copy.name.clone(), source }
    }

    fn differs(&self, range: Range<u64>) -> DigestError {
        DigestError::Differs { name: self.copy.name.clone(), range }
    }

    /// Returns whether the copy has taken this stripe from the base's twin, and checks that it has the same clusters.
    fn has_taken(&self, stripe: u64) -> Result<bool, DigestError> {
        let Some((unchanged, copy)) = &self.taken else { return Ok(false) };
        let is_there = unchanged.are_in(copy, stripe);
        match is_there.map_err(|source| DigestError::Twin { name: self.copy.name.clone(), source })? {
            Some(true) => Ok(true),
            Some(false) => Err(self.differs(stripe * STRIPE_BYTES..(stripe + 1) * STRIPE_BYTES)),
            None => Ok(false),
        }
    }

    fn compare(&self, at: u64, bytes: &[u8]) -> Result<(), DigestError> {
        let disk = &self.copy.disk;
        let mut copied = vec![0; length_at(disk, at)];
        disk.read_at(at, &mut copied).map_err(|error| self.failed(error))?;
        let (same, beyond) = copied.split_at(bytes.len().min(copied.len()));
        if same == bytes && is_zero(beyond) { Ok(()) } else { Err(self.differs(at..at + PIECE as u64)) }
    }
}
