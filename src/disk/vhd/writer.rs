//! Writes a fixed VHD: the pieces of the disk at their offsets, and the footer at the end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use zerocopy::IntoBytes;

use super::VhdFooter;
use crate::disk::file_writer::{FileWriter, Piece};
use crate::disk::identity::DiskIdentity;
use crate::disk::sparse;

/// The writer of a file.
pub(in crate::disk) struct VhdWriter {
    file: File,
    size: u64,
}

impl VhdWriter {
    /// Creates the writer of a disk of `size` bytes in an empty file.
    pub fn new(file: File, size: u64) -> Self {
        Self { file, size }
    }
}

impl FileWriter for VhdWriter {
    fn put(&mut self, piece: &Piece) -> io::Result<()> {
        sparse::write_at(&self.file, piece.at, &piece.bytes)
    }

    fn finish(self: Box<Self>, identity: &DiskIdentity) -> io::Result<()> {
        self.file.write_all_at(VhdFooter::new(self.size, identity.uuid("vhd")).as_bytes(), self.size)
    }
}
