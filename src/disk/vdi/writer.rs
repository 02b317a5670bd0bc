//! Writes a VDI: blocks as they come, map and header at the end.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use zerocopy::little_endian::U32;
use zerocopy::{FromZeros, IntoBytes};

use super::{BLOCK, DYNAMIC, FREE, SIGNATURE, VERSION, VdiHeader};
use crate::disk::bytes::field32;
use crate::disk::file_writer::{FileWriter, Piece};
use crate::disk::identity::DiskIdentity;
use crate::disk::sparse;

/// The offset of the map.
const MAP: u64 = BLOCK;
const FILE_INFO: &[u8] = b"<<< Oracle VM VirtualBox Disk Image >>>\n";
/// Cylinders, heads, sectors, and the length of a sector. All but the length may be zero.
const GEOMETRY: [U32; 4] = [U32::ZERO, U32::ZERO, U32::ZERO, U32::new(512)];
/// The length of the header, from the field with this length on.
const HEADER_LENGTH: U32 = U32::new(400);

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

    fn header(&self, identity: &DiskIdentity) -> io::Result<VdiHeader> {
        let mut header = VdiHeader {
            u32_signature: SIGNATURE,
            u32_version: VERSION,
            cb_header: HEADER_LENGTH,
            u32_type: DYNAMIC,
            off_blocks: field32(MAP)?,
            off_data: field32(self.data())?,
            legacy_geometry: GEOMETRY,
            cb_disk: self.size.into(),
            cb_block: field32(BLOCK)?,
            c_blocks: field32(self.blocks())?,
            c_blocks_allocated: field32(self.there.len())?,
            uuid_create: identity.guid("vdi"),
            uuid_modify: identity.guid("vdi, last change"),
            // VirtualBox refuses the file if the sectors of this geometry have another length.
            lchs_geometry: GEOMETRY,
            ..VdiHeader::new_zeroed()
        };
        header.sz_file_info[..FILE_INFO.len()].copy_from_slice(FILE_INFO);
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
        self.file.write_all_at(self.header(identity)?.as_bytes(), 0)?;
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
        let writer = VdiWriter::new(tempfile::tempfile().unwrap(), 4 * BLOCK);
        let header = writer.header(&DiskIdentity::new(&["web"])).unwrap();
        let header = header.as_bytes();
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!((number(72), number(72 + 400 - 4)), (400, 512), "the last number of what the header counts");
        assert_eq!((number(360), header[456..468].iter().all(|byte| *byte == 0)), (512, true));
    }
}
