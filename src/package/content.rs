//! Content of a file that is to be written: bytes of kiln's own, files of this host and ranges of a disk, in order.
//!
//! A package is composed without reading anything: lengths are known, so headers are complete before the first byte of a
//! disk is read. Reading is possible at any offset and from several threads, so digests, copies and compression share it.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::PackageError;
use crate::digest::Sha256Digest;
use crate::disk::chain::Chain;
use crate::progress::Progress;

/// Size of reads, bytes.
const PIECE: usize = 256 << 10;

/// Content that can be read piece by piece.
#[derive(Debug, Clone, Default)]
pub struct PackageContent {
    /// Each piece with its offset. None is empty.
    pieces: Vec<(u64, ContentPiece)>,
    length: u64,
}

#[derive(Debug, Clone)]
enum ContentPiece {
    Bytes(Arc<[u8]>),
    Zeroes,
    /// A file from its beginning.
    File(Arc<File>),
    /// A disk from this offset.
    Disk(Arc<Chain>, u64),
}

impl From<Vec<u8>> for PackageContent {
    fn from(bytes: Vec<u8>) -> Self {
        let length = bytes.len() as u64;
        Self::of(ContentPiece::Bytes(bytes.into()), length)
    }
}

impl PackageContent {
    /// Creates content of a whole file, with its current length.
    ///
    /// # Errors
    /// When its length cannot be asked.
    pub fn file(file: File) -> Result<Self, PackageError> {
        let length = file.metadata().map_err(PackageError::Read)?.len();
        Ok(Self::of(ContentPiece::File(Arc::new(file)), length))
    }

    /// Creates content of a range of a disk.
    #[must_use]
    pub fn disk(chain: Arc<Chain>, range: Range<u64>) -> Self {
        Self::of(ContentPiece::Disk(chain, range.start), range.end - range.start)
    }

    /// Creates content of this many zeroes.
    #[must_use]
    pub fn zeroes(count: u64) -> Self {
        Self::of(ContentPiece::Zeroes, count)
    }

    /// Returns the length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Returns whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends more content at the end.
    pub fn push(&mut self, more: impl Into<PackageContent>) {
        let more = more.into();
        let start = self.length;
        self.pieces.extend(more.pieces.into_iter().map(|(at, piece)| (start + at, piece)));
        self.length += more.length;
    }

    fn of(piece: ContentPiece, length: u64) -> Self {
        let pieces = if length > 0 { vec![(0, piece)] } else { Vec::new() };
        Self { pieces, length }
    }

    /// Reads `bytes` at `offset`.
    ///
    /// # Errors
    /// When a file is shorter by now, or a disk cannot be read.
    ///
    /// # Panics
    /// When the range is beyond the end.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), PackageError> {
        assert!(offset + bytes.len() as u64 <= self.length, "a read beyond the end");
        let mut at = offset;
        let mut rest = bytes;
        let mut index = self.pieces.partition_point(|(start, _)| *start <= offset).saturating_sub(1);
        while !rest.is_empty() {
            let (start, piece) = &self.pieces[index];
            let end = self.pieces.get(index + 1).map_or(self.length, |(next, _)| *next);
            let count = usize::try_from(end - at).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            piece.read_at(at - start, now)?;
            at += count as u64;
            rest = later;
            index += 1;
        }
        Ok(())
    }

    /// Passes all content to `sink`, piece by piece.
    fn each(&self, sink: &mut dyn FnMut(&[u8]) -> Result<(), PackageError>) -> Result<(), PackageError> {
        let mut buffer = vec![0; PIECE];
        let mut at = 0;
        while at < self.length {
            let count = usize::try_from(self.length - at).unwrap_or(PIECE).min(PIECE);
            self.read_at(at, &mut buffer[..count])?;
            sink(&buffer[..count])?;
            at += count as u64;
        }
        Ok(())
    }

    /// Reads all content into memory, for small files.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn to_vec(&self) -> Result<Vec<u8>, PackageError> {
        let mut bytes = vec![0; usize::try_from(self.length).unwrap_or(usize::MAX)];
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Returns the SHA-256 of all content.
    ///
    /// # Errors
    /// When it cannot be read, or the work is cancelled.
    pub fn sha256(&self, progress: &Progress<'_>) -> Result<Sha256Digest, PackageError> {
        let mut sha = Sha256::new();
        self.each(&mut |bytes| {
            sha.update(bytes);
            Ok(progress.advance(bytes.len() as u64)?)
        })?;
        Ok(sha.into())
    }

    /// Writes all content.
    ///
    /// # Errors
    /// When it cannot be read or written, or the work is cancelled. What was written is then of no use.
    pub fn write(&self, out: &mut dyn Write, progress: &Progress<'_>) -> Result<(), PackageError> {
        self.each(&mut |bytes| {
            out.write_all(bytes).map_err(PackageError::Write)?;
            Ok(progress.advance(bytes.len() as u64)?)
        })
    }
}

impl ContentPiece {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), PackageError> {
        match self {
            ContentPiece::Bytes(own) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                bytes.copy_from_slice(&own[start..start + bytes.len()]);
                Ok(())
            }
            ContentPiece::Zeroes => {
                bytes.fill(0);
                Ok(())
            }
            ContentPiece::File(file) => file.read_exact_at(bytes, offset).map_err(PackageError::Read),
            ContentPiece::Disk(chain, start) => Ok(chain.read_at(start + offset, bytes)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn every_byte_is_where_it_was_put() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"file").unwrap();
        let mut content = PackageContent::from(b"own".to_vec());
        content.push(PackageContent::zeroes(2));
        content.push(Vec::new());
        content.push(PackageContent::file(file).unwrap());
        content.push(b"!".to_vec());
        let whole = b"own\0\0file!";
        assert_eq!(content.to_vec().unwrap(), whole);
        for from in 0..whole.len() {
            for to in from..=whole.len() {
                let mut part = vec![0xff; to - from];
                content.read_at(from as u64, &mut part).unwrap();
                assert_eq!(part, whole[from..to]);
            }
        }
    }

    #[test]
    fn digest_and_copy_are_of_the_same_bytes_and_can_be_stopped() {
        let content = PackageContent::zeroes(PIECE as u64 * 2 + 1);
        let (mut copy, seen) = (Vec::new(), AtomicU64::new(0));
        let cancel = CancellationToken::new();
        let progress = Progress::new(&cancel, |done, _| seen.store(done, Ordering::Relaxed));
        content.write(&mut copy, &progress).unwrap();
        assert_eq!(content.sha256(&progress).unwrap(), Sha256Digest::of(&copy));
        assert_eq!(seen.load(Ordering::Relaxed), content.len() * 2);
        cancel.cancel();
        assert!(matches!(content.write(&mut Vec::new(), &progress), Err(PackageError::Cancelled(_))));
    }

    #[test]
    fn a_file_that_was_cut_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10).unwrap();
        let content = PackageContent::file(file.try_clone().unwrap()).unwrap();
        file.set_len(9).unwrap();
        assert!(matches!(content.to_vec(), Err(PackageError::Read(_))));
    }
}
