//! Digests of files that are as in the base image, by the places of their content on the disk.
//!
//! A file's content is known without reading it if the base decides every byte of it, and if a file with the same size and
//! the same places on a disk with that base was hashed before. Its name, its inode and its file system do not matter.

use std::collections::HashMap;
use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::digest::Sha256Digest;

use super::byte_ranges::ByteRanges;
use super::chain::{Chain, ChainError};

/// The most files of a base whose digests are kept: 64 MiB of them.
const MOST_FILES: usize = 1 << 20;
/// The size of a file's layout and of its digest together, in bytes.
const RECORD: usize = 64;
/// The largest text of [`KnownFiles::to_bytes`], in bytes.
pub const LARGEST: u64 = (MOST_FILES * RECORD) as u64;

/// The places of a file's content on a disk, in the order of the content. What is in none of them is zero.
#[derive(Debug, Clone)]
pub(super) struct FileLayout {
    ranges: Vec<Range<u64>>,
    id: Sha256Digest,
}

impl FileLayout {
    /// Describes a file of this size. Each part has its offset in the file and its range on the disk.
    pub fn new(size: u64, parts: impl IntoIterator<Item = (u64, Range<u64>)>) -> Self {
        let mut id = Sha256::new_with_prefix(size.to_le_bytes());
        let mut ranges = Vec::new();
        for (offset, range) in parts {
            for number in [offset, range.start, range.end] {
                id.update(number.to_le_bytes());
            }
            ranges.push(range);
        }
        Self { ranges, id: id.into() }
    }
}

/// The digests of files of a base image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownFiles(HashMap<Sha256Digest, Sha256Digest>);

impl KnownFiles {
    /// Writes the digests in an order that depends on nothing else.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut records: Vec<_> = self.0.iter().collect();
        records.sort_unstable();
        records.into_iter().flat_map(|(layout, digest)| [*layout.as_bytes(), *digest.as_bytes()]).flatten().collect()
    }

    /// Reads what [`KnownFiles::to_bytes`] wrote; `None` for bytes of another length.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (halves, []) = bytes.as_chunks::<{ RECORD / 2 }>() else { return None };
        let (records, []) = halves.as_chunks::<2>() else { return None };
        let digests = records.iter().map(|[layout, digest]| (Sha256Digest::new(*layout), Sha256Digest::new(*digest)));
        Some(Self(digests.collect()))
    }
}

/// The digests of files that one walk over a disk uses, and those that it adds.
#[derive(Debug)]
pub struct UnchangedFiles {
    /// The parts of the disk that the base does not decide; `None` if no file counts as unchanged.
    changed: Option<ByteRanges>,
    known: KnownFiles,
    has_learned: bool,
}

impl UnchangedFiles {
    /// Begins with what is known of the last file of the disk's chain, the base.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn new(disk: &Chain, known: KnownFiles) -> Result<Self, ChainError> {
        Ok(Self { changed: Some(disk.changed_ranges()?), known, has_learned: false })
    }

    /// Knows nothing and learns nothing.
    #[must_use]
    pub fn none() -> Self {
        Self { changed: None, known: KnownFiles::default(), has_learned: false }
    }

    /// Returns whether any file may count as unchanged.
    pub(super) fn are_sought(&self) -> bool {
        self.changed.is_some()
    }

    /// Returns the digests that are known now, if there are more than before.
    #[must_use]
    pub fn learned(&self) -> Option<&KnownFiles> {
        self.has_learned.then_some(&self.known)
    }

    /// Returns the digest of a file, if it is known.
    pub(super) fn find(&self, file: &FileLayout) -> Option<Sha256Digest> {
        self.known.0.get(&file.id).copied().filter(|_| self.is_unchanged(file))
    }

    /// Takes the digest of a file that was read.
    pub(super) fn learn(&mut self, file: &FileLayout, digest: Sha256Digest) {
        if self.known.0.len() < MOST_FILES && self.is_unchanged(file) {
            self.has_learned |= self.known.0.insert(file.id, digest).is_none();
        }
    }

    fn is_unchanged(&self, file: &FileLayout) -> bool {
        let Some(changed) = &self.changed else { return false };
        !file.ranges.iter().any(|range| changed.overlap(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: u64, at: u64) -> FileLayout {
        FileLayout::new(size, [(0, at..at + size)])
    }

    fn unchanged(known: KnownFiles) -> UnchangedFiles {
        UnchangedFiles { changed: Some(ByteRanges::new(vec![100..150, 150..200])), known, has_learned: false }
    }

    #[test]
    fn only_files_that_the_base_decides_are_learned_and_found() {
        let mut files = unchanged(KnownFiles::default());
        let [inside, before, after] = [layout(10, 195), layout(10, 90), layout(10, 200)];
        for (file, name) in [(&inside, "inside"), (&before, "before"), (&after, "after")] {
            files.learn(file, Sha256Digest::of(name));
        }
        assert_eq!(files.find(&before), Some(Sha256Digest::of("before")));
        assert_eq!(files.find(&after), Some(Sha256Digest::of("after")));
        assert_eq!(files.find(&inside), None);
        // The same places on a disk that has changed there.
        files.changed = Some(ByteRanges::new(vec![99..100, 300..301]));
        assert_eq!(files.find(&before), None);
        assert_eq!(files.find(&after), Some(Sha256Digest::of("after")));
    }

    #[test]
    fn size_places_and_holes_identify_a_file() {
        let mut files = unchanged(KnownFiles::default());
        files.learn(&FileLayout::new(20, [(0, 0..10)]), Sha256Digest::of("a"));
        let others = [
            FileLayout::new(21, [(0, 0..10)]),
            FileLayout::new(20, [(10, 0..10)]),
            FileLayout::new(20, [(0, 1..11)]),
            FileLayout::new(20, [(0, 0..5), (5, 5..10)]),
            FileLayout::new(20, []),
        ];
        assert!(others.iter().all(|other| files.find(other).is_none()));
        assert!(files.find(&FileLayout::new(20, [(0, 0..10)])).is_some());
    }

    #[test]
    fn digests_are_written_and_read() {
        let mut files = unchanged(KnownFiles::default());
        assert_eq!(files.learned(), None);
        for at in 0..50 {
            files.learn(&layout(1, at), Sha256Digest::of([at.to_le_bytes()[0]]));
        }
        let known = files.learned().unwrap().clone();
        let bytes = known.to_bytes();
        assert_eq!(KnownFiles::parse(&bytes).as_ref(), Some(&known));
        assert_eq!(KnownFiles::parse(&bytes[1..]), None);
        assert_eq!(KnownFiles::parse(&bytes[32..]), None);
        assert_eq!(unchanged(known).learned(), None, "nothing new");
        assert!(UnchangedFiles::none().find(&layout(1, 0)).is_none());
    }
}
