//! Writes a VDI: blocks as they come, map and header at the end.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use super::{BLOCK, DYNAMIC, FREE, SIGNATURE, VERSION};
use crate::disk::file_writer::{FileWriter, Piece};
use crate::disk::identity::DiskIdentity;
use crate::disk::sparse;

/// The offset of the map.
const MAP: u64 = BLOCK;
const SECTOR: u32 = 512;
const LENGTH: usize = 512;
/// The length of the header, from the field with this length on.
const HEADER_LENGTH: u32 = 400;
/// The offset of the geometry for a BIOS: cylinders, heads, sectors, and the length of a sector. All but the length may be
/// zero.
const LOGICAL_GEOMETRY: usize = 456;

/// The writer of a file.
pub(in crate::disk) struct VdiWriter {
    file: File,
    size: u64,
    /// The blocks of the disk that have data, in their order in the file.
    there: Vec<u32>,
}

impl VdiWriter {
    /// Creates the writer of a disk of `size` bytes, whole blocks, in an empty file.
    pub fn new(file: File, size: u64) -> Self {
        Self { file, size, there: Vec::new() }
    }

    fn blocks(&self) -> u64 {
        self.size / BLOCK
    }

    /// Returns the offset of the first block.
    fn data(&self) -> u64 {
        (MAP + self.blocks() * 4).next_multiple_of(BLOCK)
    }

    fn header(&self, identity: &DiskIdentity) -> io::Result<[u8; LENGTH]> {
        let small = |n: u64| u32::try_from(n).map(u32::to_le_bytes).map_err(io::Error::other);
        let mut header = [0; LENGTH];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"<<< Oracle VM VirtualBox Disk Image >>>\n");
        put(64, &SIGNATURE.to_le_bytes());
        put(68, &VERSION.to_le_bytes());
        put(72, &HEADER_LENGTH.to_le_bytes());
        put(76, &DYNAMIC.to_le_bytes());
        put(340, &small(MAP)?);
        put(344, &small(self.data())?);
        put(360, &SECTOR.to_le_bytes());
        put(368, &self.size.to_le_bytes());
        put(376, &small(BLOCK)?);
        put(384, &small(self.blocks())?);
        put(388, &small(self.there.len() as u64)?);
        put(392, &identity.guid("vdi"));
        put(408, &identity.guid("vdi, last change"));
        // VirtualBox checks the last number of the second geometry: its sectors must have this length, or the file is
        // refused.
        put(LOGICAL_GEOMETRY + 12, &SECTOR.to_le_bytes());
        Ok(header)
    }
}

impl FileWriter for VdiWriter {
    fn put(&mut self, piece: &Piece) -> io::Result<()> {
        let at = self.data() + self.there.len() as u64 * BLOCK;
        self.there.push(u32::try_from(piece.at / BLOCK).map_err(io::Error::other)?);
        sparse::write_at(&self.file, at, &piece.bytes)
    }

    fn finish(mut self: Box<Self>, identity: &DiskIdentity) -> io::Result<()> {
        self.file.write_all_at(&self.header(identity)?, 0)?;
        self.file.set_len(self.data() + self.there.len() as u64 * BLOCK)?;
        self.file.seek(SeekFrom::Start(MAP))?;
        let mut map = BufWriter::new(&self.file);
        let mut there = (0_u32..).zip(&self.there).peekable();
        for block in 0..self.blocks() {
            let place = there.next_if(|(_, there)| u64::from(**there) == block).map_or(FREE, |(place, _)| place);
            map.write_all(&place.to_le_bytes())?;
        }
        map.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a field that `VirtualBox` requires (`VDICore.h`), and QEMU does not.
    #[test]
    fn the_geometry_of_the_bios_has_sectors_of_512_bytes() {
        let header =
            VdiWriter::new(tempfile::tempfile().unwrap(), 4 * BLOCK).header(&DiskIdentity::new(&["web"])).unwrap();
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!((number(72), number(72 + 400 - 4)), (400, SECTOR), "the last number of what the header counts");
        assert_eq!((number(360), header[456..468].iter().all(|byte| *byte == 0)), (SECTOR, true));
    }
}
