//! Cuts a disk into pieces, and selects those that have data.

use std::ops::Range;

use super::chain::{Chain, ChainError};

/// The size of a piece in bytes: a block of the formats with the largest blocks.
pub(super) const PIECE: usize = 1 << 20;

/// The offsets of the pieces with data, in order.
pub(super) struct PieceStarts<'a> {
    disk: &'a Chain,
    /// The next part of the disk that has data.
    data: Range<u64>,
    at: u64,
}

impl<'a> PieceStarts<'a> {
    /// Creates the pieces of a disk.
    pub fn new(disk: &'a Chain) -> Self {
        Self { disk, data: 0..0, at: 0 }
    }
}

impl Iterator for PieceStarts<'_> {
    type Item = Result<u64, ChainError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.data.end <= self.at {
            match self.disk.next_data(self.at).transpose()? {
                Ok(data) => self.data = data,
                Err(error) => return Some(Err(error)),
            }
        }
        let start = self.data.start.max(self.at) / PIECE as u64 * PIECE as u64;
        self.at = start + PIECE as u64;
        Some(Ok(start))
    }
}
