//! The interface of the writers of all formats, which get a disk piece by piece.

use std::io;

use super::identity::DiskIdentity;

/// The size in bytes of a VMDK's grains, which are compressed one by one.
pub(super) const GRAIN: usize = 64 << 10;

/// A part of the disk with some data in it.
pub(super) struct Piece {
    /// The offset of its first byte, a multiple of the size of a piece.
    pub at: u64,
    /// All bytes of the piece. Bytes beyond the end of the disk are zero.
    pub bytes: Vec<u8>,
    /// Its grains as zlib streams. The stream of a grain of zeroes is empty; the list is empty if no format needs grains.
    pub grains: Vec<Vec<u8>>,
}

/// A file of one format that is being written.
pub(super) trait FileWriter: Send {
    /// Writes the next piece with data. Pieces come in the order of the disk.
    fn put(&mut self, piece: &Piece) -> io::Result<()>;

    /// Writes the rest of the file, which is then complete, but not synced.
    fn finish(self: Box<Self>, identity: &DiskIdentity) -> io::Result<()>;
}
