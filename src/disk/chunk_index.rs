//! The digests of a disk's chunks, from which the digest of the disk is made: `disk.chunks`, beside the image.
//!
//! It is a text. Its first line names the size of the disk and of a chunk in bytes; then each aligned chunk has a line with
//! the SHA-256 of its bytes, or `zero` if all of them are zero. The last chunk ends with the disk.
//!
//! ```text
//! kiln chunks 1 disk=2147483648 chunk=4194304
//! 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//! zero
//! ```
//!
//! The SHA-256 of the text is the digest of the disk: two disks have the same one exactly if they have the same bytes. It is
//! updated by hashing the chunks that changed, which SHA-256 of the whole disk does not allow.

use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::digest::Sha256Digest;

use super::sparse::{hash_zeroes, is_zero};

/// The name of the index inside a version's folder.
pub const FILE: &str = "disk.chunks";
/// The size of the largest index in bytes, with room to spare.
pub const LARGEST: u64 = 128 << 10;

const VERSION: &str = "kiln chunks 1";
const ZERO: &str = "zero";
const UNKNOWN: &str = "unknown";
/// The size of the smallest chunks in bytes.
const LEAST_CHUNK: u64 = 4 << 20;
/// The most chunks of a disk.
const MOST_CHUNKS: u64 = 1024;

/// The SHA-256 of a chunk; `None` if all of its bytes are zero.
pub type ChunkDigest = Option<Sha256Digest>;

/// Returns the size of the chunks of a disk in bytes: as small as possible, but not too many of them.
#[must_use]
pub fn chunk_size(disk: u64) -> u64 {
    disk.div_ceil(MOST_CHUNKS).next_power_of_two().max(LEAST_CHUNK)
}

/// Returns the ranges of the chunks of a disk, in order.
#[must_use]
pub fn chunks(disk: u64) -> impl ExactSizeIterator<Item = Range<u64>> {
    let size = chunk_size(disk);
    let count = usize::try_from(disk.div_ceil(size)).unwrap_or(0);
    (0..count).map(move |index| {
        let start = index as u64 * size;
        start..(start + size).min(disk)
    })
}

/// The digests of all chunks of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkIndex {
    disk: u64,
    digests: Vec<ChunkDigest>,
}

impl ChunkIndex {
    /// Begins the index of a disk of this size, all of it zero.
    #[must_use]
    pub fn new(disk: u64) -> Self {
        Self { disk, digests: vec![None; chunks(disk).len()] }
    }

    /// Sets the digest of a chunk.
    ///
    /// # Panics
    /// When the disk has no such chunk.
    pub fn set(&mut self, index: usize, digest: ChunkDigest) {
        self.digests[index] = digest;
    }

    /// Formats the index.
    #[must_use]
    pub fn to_text(&self) -> String {
        to_text(self.disk, self.digests.iter().map(Some))
    }

    /// Returns the digest of the disk.
    #[must_use]
    pub fn sha256(&self) -> Sha256Digest {
        Sha256Digest::of(self.to_text())
    }
}

/// The digests of some of the chunks of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownChunks {
    disk: u64,
    digests: Vec<Option<ChunkDigest>>,
}

impl KnownChunks {
    /// Begins with no digest of a disk of this size.
    #[must_use]
    pub fn new(disk: u64) -> Self {
        Self { disk, digests: vec![None; chunks(disk).len()] }
    }

    /// Returns the size of the disk in bytes.
    #[must_use]
    pub fn disk_size(&self) -> u64 {
        self.disk
    }

    /// Returns the digest of a chunk, if it is known.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<ChunkDigest> {
        self.digests.get(index).copied().flatten()
    }

    /// Takes the digests of the chunks for which `is_same` returns true from the index of a disk of the same size.
    pub(super) fn learn(&mut self, index: &ChunkIndex, is_same: impl Fn(&Range<u64>) -> bool) {
        if index.disk != self.disk {
            return;
        }
        for ((known, digest), range) in self.digests.iter_mut().zip(&index.digests).zip(chunks(self.disk)) {
            if is_same(&range) {
                *known = Some(*digest);
            }
        }
    }

    /// Formats the digests, with a line for each unknown one as well.
    #[must_use]
    pub fn to_text(&self) -> String {
        to_text(self.disk, self.digests.iter().map(Option::as_ref))
    }

    /// Parses digests; `None` if kiln does not write such a text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (head, lines) = text.split_once('\n')?;
        let (disk, _) = head.strip_prefix(VERSION)?.strip_prefix(" disk=")?.split_once(" chunk=")?;
        let disk: u64 = disk.parse().ok()?;
        let mut digests = Vec::new();
        for line in lines.split_terminator('\n') {
            digests.push(if line == UNKNOWN { None } else { Some(parse_digest(line)?) });
        }
        let known = Self { disk, digests };
        // Sizes and digests that are written in another way are not accepted either.
        (known.digests.len() == chunks(disk).len() && known.to_text() == text).then_some(known)
    }
}

fn to_text<'a>(disk: u64, digests: impl Iterator<Item = Option<&'a ChunkDigest>>) -> String {
    let mut text = format!("{VERSION} disk={disk} chunk={}\n", chunk_size(disk));
    for digest in digests {
        text += &match digest {
            Some(Some(digest)) => digest.to_string(),
            Some(None) => ZERO.to_owned(),
            None => UNKNOWN.to_owned(),
        };
        text.push('\n');
    }
    text
}

fn parse_digest(line: &str) -> Option<ChunkDigest> {
    if line == ZERO {
        return Some(None);
    }
    Some(Some(line.parse().ok()?))
}

/// Hashes the bytes of a chunk, in order.
pub(super) struct ChunkHasher {
    sha: Sha256,
    /// The offset on the disk of the first byte that is not hashed yet.
    hashed: u64,
    has_data: bool,
}

impl ChunkHasher {
    /// Begins the chunk that begins at this offset of the disk.
    pub fn new(start: u64) -> Self {
        Self { sha: Sha256::new(), hashed: start, has_data: false }
    }

    /// Adds bytes at this offset of the disk; those before it that were not added are zero.
    pub fn add(&mut self, at: u64, bytes: &[u8]) {
        // Zeroes are hashed when others follow: a chunk of zeroes needs no digest.
        if is_zero(bytes) {
            return;
        }
        hash_zeroes(&mut self.sha, at - self.hashed);
        self.sha.update(bytes);
        self.hashed = at + bytes.len() as u64;
        self.has_data = true;
    }

    /// Returns the digest of the chunk, which ends at this offset.
    pub fn finish(mut self, end: u64) -> ChunkDigest {
        if !self.has_data {
            return None;
        }
        hash_zeroes(&mut self.sha, end - self.hashed);
        Some(self.sha.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_a_disk_and_are_not_too_many() {
        for disk in [0, 1, LEAST_CHUNK, LEAST_CHUNK + 1, 4 << 30, (4 << 30) + 512, 6 << 30, 64 << 40] {
            let ranges: Vec<_> = chunks(disk).collect();
            assert!(ranges.len() as u64 <= MOST_CHUNKS, "{disk}");
            assert_eq!(ranges.last().map_or(0, |last| last.end), disk);
            assert!(ranges.windows(2).all(|two| two[0].end == two[1].start), "{disk}");
        }
        assert_eq!([1, 4 << 30, (4 << 30) + 1, 1 << 40].map(chunk_size), [4 << 20, 4 << 20, 8 << 20, 1 << 30]);
    }

    #[test]
    fn a_chunk_has_the_digest_of_its_bytes_however_they_come() {
        let mut bytes = vec![0; 79_013];
        bytes[9000..9004].copy_from_slice(b"data");
        bytes[79_004..79_008].copy_from_slice(b"more");
        let expected = Sha256Digest::of(&bytes);
        let (start, end) = (1 << 40, (1 << 40) + bytes.len() as u64);
        for piece in [1, 4096, 9002, 100_000] {
            let mut hasher = ChunkHasher::new(start);
            for (at, bytes) in (start..).step_by(piece).zip(bytes.chunks(piece)) {
                hasher.add(at, bytes);
            }
            assert_eq!(hasher.finish(end), Some(expected), "{piece}");
        }
        let mut holes = ChunkHasher::new(start);
        holes.add(start + 9000, b"data");
        holes.add(start + 79_004, b"more");
        assert_eq!(holes.finish(end), Some(expected));
        let mut zeroes = ChunkHasher::new(start);
        zeroes.add(start, &[0; 5000]);
        assert_eq!(zeroes.finish(1 << 60), None);
    }

    fn sample() -> ChunkIndex {
        let mut index = ChunkIndex::new((12 << 20) + 512);
        index.set(1, Some(Sha256Digest::new([0xab; 32])));
        index.set(3, Some(Sha256Digest::new([1; 32])));
        index
    }

    #[test]
    fn the_text_is_what_the_documentation_says() {
        let (one, other) = ("ab".repeat(32), "01".repeat(32));
        let text = format!("kiln chunks 1 disk=12583424 chunk=4194304\nzero\n{one}\nzero\n{other}\n");
        assert_eq!(sample().to_text(), text);
        assert_eq!(sample().sha256(), Sha256Digest::of(text));
    }

    fn known() -> KnownChunks {
        let mut known = KnownChunks::new((12 << 20) + 512);
        known.learn(&sample(), |range| range.start != 4 << 20);
        known
    }

    #[test]
    fn digests_are_learned_where_the_disks_are_the_same() {
        assert_eq!(
            [0, 1, 2, 3, 4].map(|index| known().get(index)),
            [Some(None), None, Some(None), Some(Some(Sha256Digest::new([1; 32]))), None]
        );
        let mut other = KnownChunks::new(12 << 20);
        other.learn(&sample(), |_| true);
        assert_eq!(other, KnownChunks::new(12 << 20), "a disk of another size has other chunks");
        let mut full = ChunkIndex::new(64 << 40);
        (0..1024).for_each(|index| full.set(index, Some(Sha256Digest::new([0xff; 32]))));
        let mut all = KnownChunks::new(64 << 40);
        all.learn(&full, |_| true);
        assert_eq!(all.to_text(), full.to_text());
        assert!(all.to_text().len() as u64 <= LARGEST);
        assert_eq!(KnownChunks::parse(&all.to_text()), Some(all));
    }

    #[test]
    fn only_texts_that_kiln_writes_are_read() {
        let text = known().to_text();
        assert_eq!(KnownChunks::parse(&text), Some(known()));
        for length in 0..text.len() {
            assert_eq!(KnownChunks::parse(&text[..length]), None, "{length}");
        }
        let others = [
            text.replace("chunks 1", "chunks 2"),
            text.replace("disk=", "disk=+"),
            text.replace("disk=12583424", "disk=18446744073709551615"),
            text.replace("chunk=4194304", "chunk=0"),
            text.replace("chunk=4194304", "chunk=8388608"),
            text.replacen("01", "0A", 1),
            text.replace("01", "+1"),
            text.replace("zero", ""),
            text.replacen("zero\n", "", 1),
            text.replace('\n', "\r\n"),
            format!("{text}zero\n"),
            format!("{text}\n"),
        ];
        for other in others {
            assert_eq!(KnownChunks::parse(&other), None, "{other}");
        }
    }
}
