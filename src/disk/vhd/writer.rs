//! Writes a fixed VHD: the pieces of the disk where they belong, and the footer when all are there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::footer;
use crate::disk::identity::Identity;
use crate::disk::sparse;
use crate::disk::write::{self, Piece};

/// A file that is being written.
pub(in crate::disk) struct Writer {
    file: File,
    size: u64,
}

impl Writer {
    /// A disk of `size` bytes in an empty file.
    pub fn new(file: File, size: u64) -> Self {
        Self { file, size }
    }
}

impl write::Writer for Writer {
    fn put(&mut self, piece: &Piece) -> io::Result<()> {
        sparse::write_at(&self.file, piece.at, &piece.bytes)
    }

    fn finish(self: Box<Self>, identity: &Identity) -> io::Result<()> {
        self.file.write_all_at(&footer(self.size, &identity.uuid("vhd")), self.size)
    }
}
