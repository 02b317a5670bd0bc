//! The digest of a file that has more zeroes than can be hashed in reasonable time. Both ends use this code, since both list
//! files.
//!
//! A file that is longer than [`LIMIT`], and whose blocks of zeroes have more than [`LIMIT`] bytes together, is listed with
//! the SHA-256 of its other blocks: for each block of 4096 bytes that is not all zero, in order, its offset in the file as
//! eight bytes, the lowest first, and its bytes; the last block of a file may be shorter. It does not matter whether zeroes
//! are a hole or were written.

/// Up to this number of bytes, zeroes are hashed like other content.
pub const LIMIT: u64 = 1 << 30;

const BLOCK: usize = 4096;

/// Splits a file into blocks and passes on those that are hashed.
pub struct BlockFilter<S: FnMut(&[u8])> {
    sink: S,
    /// The offset of `block` in the file.
    at: u64,
    /// The block that is not complete yet.
    block: Vec<u8>,
    zeroes: u64,
}

impl<S: FnMut(&[u8])> BlockFilter<S> {
    /// Begins a file whose bytes to hash are passed to `sink`.
    pub fn new(sink: S) -> Self {
        Self { sink, at: 0, block: Vec::with_capacity(BLOCK), zeroes: 0 }
    }

    /// Adds the next bytes of the file.
    pub fn add_data(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = BLOCK - self.block.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.block.extend_from_slice(now);
            self.end_full_block();
            rest = later;
        }
    }

    /// Adds zeroes, in a time that does not depend on their number.
    pub fn add_zeroes(&mut self, count: u64) {
        let missing = (BLOCK - self.block.len()) % BLOCK;
        let filled = usize::try_from(count).unwrap_or(BLOCK).min(missing);
        self.block.resize(self.block.len() + filled, 0);
        self.end_full_block();
        let left = count - filled as u64;
        let tail = left % BLOCK as u64;
        self.at += left - tail;
        self.zeroes += left - tail;
        self.block.resize(self.block.len() + usize::try_from(tail).unwrap_or(0), 0);
    }

    fn end_full_block(&mut self) {
        if self.block.len() == BLOCK {
            self.end_block();
        }
    }

    fn end_block(&mut self) {
        if self.block.iter().all(|byte| *byte == 0) {
            self.zeroes += self.block.len() as u64;
        } else {
            (self.sink)(&self.at.to_le_bytes());
            (self.sink)(&self.block);
        }
        self.at += self.block.len() as u64;
        self.block.clear();
    }

    /// Ends the file. Returns whether it is listed with this digest.
    #[must_use]
    pub fn is_sparse(mut self) -> bool {
        self.end_block();
        self.zeroes > LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the bytes that are hashed for a file of these parts, and whether it is sparse.
    fn hashed(parts: &[(u64, &[u8])]) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        let mut filter = BlockFilter::new(|piece| bytes.extend_from_slice(piece));
        for (zeroes, data) in parts {
            filter.add_zeroes(*zeroes);
            filter.add_data(data);
        }
        let is_sparse = filter.is_sparse();
        (bytes, is_sparse)
    }

    #[test]
    fn only_blocks_with_data_count_wherever_holes_are() {
        let block = |at: u64, bytes: &[u8]| [&at.to_le_bytes()[..], bytes].concat();
        let tail = [&[0; 96][..], b"end"].concat();
        let expected = [block(4096, &[&[0; 4][..], &[7; 4092]].concat()), block(1 << 40, &tail)].concat();
        let whole = hashed(&[(4100, &[7; 4092]), ((1 << 40) - 8192 + 96, b"end")]);
        assert_eq!(whole, (expected.clone(), true));
        let written =
            hashed(&[(0, &[0; 4100]), (0, &[7; 2000]), (0, &[7; 2092]), ((1 << 40) - 8192, &[0; 96]), (0, b"end")]);
        assert_eq!(written, (expected, true));
        assert_eq!(hashed(&[(LIMIT, b"")]), (Vec::new(), false));
        assert_eq!(hashed(&[(LIMIT + 1, b"")]), (Vec::new(), true));
        assert_eq!(hashed(&[(1, b""), (1, b""), (4094, b"x")]), (block(4096, b"x"), false));
    }
}
