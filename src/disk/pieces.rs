//! Cuts disks into pieces, and selects those that have data in any of the disks.

use std::ops::Range;

use super::chain::{Chain, ChainError};

/// The size of a piece in bytes: a block of the formats with the largest blocks.
pub(super) const PIECE: usize = 1 << 20;

/// The offsets of the pieces with data, in order.
pub(super) struct PieceStarts<'a> {
    disks: Vec<NextExtent<'a>>,
    at: u64,
}

/// The next part of a disk that has data.
struct NextExtent<'a> {
    disk: &'a Chain,
    data: Range<u64>,
}

impl<'a> PieceStarts<'a> {
    /// Creates the pieces of these disks.
    pub fn new(disks: &[&'a Chain]) -> Self {
        Self { disks: disks.iter().map(|disk| NextExtent { disk, data: 0..0 }).collect(), at: 0 }
    }
}

impl Iterator for PieceStarts<'_> {
    /// The offset of a piece, or the index of the disk that cannot be read, and the error.
    type Item = Result<u64, (usize, ChainError)>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut next = None;
        for (index, ahead) in self.disks.iter_mut().enumerate() {
            if ahead.data.end <= self.at {
                match ahead.disk.next_data(self.at) {
                    Ok(data) => ahead.data = data.unwrap_or(u64::MAX..u64::MAX),
                    Err(error) => return Some(Err((index, error))),
                }
            }
            let start = ahead.data.start.max(self.at);
            if start < ahead.data.end {
                next = Some(next.unwrap_or(u64::MAX).min(start));
            }
        }
        let start = next? / PIECE as u64 * PIECE as u64;
        self.at = start + PIECE as u64;
        Some(Ok(start))
    }
}
