//! Writes a VMDK from its first byte to its last.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::{
    AT_END, DEFLATE, DIRECTORY, FLAGS, FOOTER, GRAIN_MARKER, GRAIN_SECTORS, MAGIC, SECTOR, SparseExtentHeader,
    SparseMarker, TABLE, TABLE_GRAINS, TABLE_SECTORS,
};
use crate::disk::bytes::field32;
use crate::disk::file_writer::{FileWriter, GRAIN, Piece};
use crate::disk::identity::DiskIdentity;

/// The version that ESX and oslo.utils expect of a file with compressed grains.
const VERSION: U32 = U32::new(3);
/// The number of sectors of the descriptor, which follows the header, and of everything before the first grain.
const DESCRIPTOR_SECTORS: u64 = 20;
const OVERHEAD: u64 = 128;
const BUFFER: usize = 1 << 20;
/// The geometry of a disk on an LSI Logic adapter.
const HEADS: u64 = 255;
const TRACK: u64 = 63;

/// The writer of a file.
pub(in crate::disk) struct VmdkWriter {
    out: BufWriter<File>,
    /// The size of the disk in sectors.
    capacity: u64,
    /// The number of the next sector.
    end: u64,
    directory: Vec<U32>,
    /// The unfinished table, and its number.
    table: (usize, Vec<U32>),
}

impl VmdkWriter {
    /// Creates the writer of a disk of `size` bytes, whole grains, in an empty file.
    pub fn new(mut file: File, size: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(OVERHEAD * SECTOR as u64))?;
        let capacity = size / SECTOR as u64;
        let tables = capacity.div_ceil(TABLE_SECTORS);
        Ok(Self {
            out: BufWriter::with_capacity(BUFFER, file),
            capacity,
            end: OVERHEAD,
            directory: vec![U32::ZERO; usize::try_from(tables).map_err(io::Error::other)?],
            table: (0, Vec::new()),
        })
    }

    fn put_grain(&mut self, grain: u64, packed: &[u8]) -> io::Result<()> {
        let number = usize::try_from(grain).map_err(io::Error::other)?;
        let table = number / TABLE_GRAINS as usize;
        if table != self.table.0 {
            self.put_table()?;
        }
        if self.table.1.is_empty() {
            self.table = (table, vec![U32::ZERO; TABLE_GRAINS as usize]);
        }
        self.table.1[number % TABLE_GRAINS as usize] = self.sector()?;
        let marker =
            SparseMarker { val: (grain * GRAIN_SECTORS).into(), size: field32(packed.len())?, kind: U32::ZERO };
        self.append(&[&marker.as_bytes()[..GRAIN_MARKER], packed])
    }

    /// Writes the unfinished table, unless it is empty: a missing table counts as all zero.
    fn put_table(&mut self) -> io::Result<()> {
        let (number, table) = std::mem::take(&mut self.table);
        if !table.is_empty() {
            self.directory[number] = self.put_marked(TABLE, table.as_bytes())?;
        }
        Ok(())
    }

    /// Appends bytes in whole sectors, preceded by a marker. Returns the number of the first sector.
    fn put_marked(&mut self, kind: U32, bytes: &[u8]) -> io::Result<U32> {
        let sectors = bytes.len().div_ceil(SECTOR) as u64;
        self.append(&[SparseMarker { val: sectors.into(), size: U32::ZERO, kind }.as_bytes()])?;
        let first = self.sector()?;
        self.append(&[bytes])?;
        Ok(first)
    }

    /// Appends bytes, padded to whole sectors.
    fn append(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        parts.iter().try_for_each(|part| self.out.write_all(part))?;
        let sectors = length.div_ceil(SECTOR);
        self.end += sectors as u64;
        self.out.write_all(&[0; SECTOR][..sectors * SECTOR - length])
    }

    /// Returns the number of the next sector, for which tables have room up to 2 TiB of file.
    fn sector(&self) -> io::Result<U32> {
        U32::try_from(self.end).map_err(|_| io::Error::other("a vmdk file ends at 2 TiB"))
    }

    fn header(&self, directory: U64) -> SparseExtentHeader {
        SparseExtentHeader {
            magic_number: *MAGIC,
            version: VERSION,
            flags: FLAGS.into(),
            capacity: self.capacity.into(),
            grain_size: GRAIN_SECTORS.into(),
            descriptor_offset: U64::new(1),
            descriptor_size: DESCRIPTOR_SECTORS.into(),
            num_gtes_per_gt: TABLE_GRAINS.into(),
            gd_offset: directory,
            over_head: OVERHEAD.into(),
            end_line_chars: *b"\n \r\n",
            compress_algorithm: DEFLATE,
            ..SparseExtentHeader::new_zeroed()
        }
    }

    fn descriptor(&self, identity: &DiskIdentity) -> String {
        let [a, b, c, d, ..] = identity.uuid("vmdk");
        // The UUID's version and variant are not in its first four bytes; all ones would mean that there is no parent.
        let content = u32::from_be_bytes([a & 0x7f, b, c, d]);
        let cylinders = self.capacity.div_ceil(HEADS * TRACK).min(65535);
        format!(
            "# Disk DescriptorFile\nversion=1\nCID={content:08x}\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n\n\
             # Extent description\nRW {} SPARSE \"disk.vmdk\"\n\n\
             # The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\nddb.adapterType = \"lsilogic\"\n\
             ddb.geometry.cylinders = \"{cylinders}\"\nddb.geometry.heads = \"{HEADS}\"\nddb.geometry.sectors = \"{TRACK}\"\n\
             ddb.toolsVersion = \"2147483647\"\n",
            self.capacity
        )
    }
}

impl FileWriter for VmdkWriter {
    fn put(&mut self, piece: &Piece) -> io::Result<()> {
        for (grain, packed) in (piece.at / GRAIN as u64..).zip(&piece.grains).filter(|(_, packed)| !packed.is_empty()) {
            self.put_grain(grain, packed)?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>, identity: &DiskIdentity) -> io::Result<()> {
        self.put_table()?;
        let directory = std::mem::take(&mut self.directory);
        let directory = self.put_marked(DIRECTORY, directory.as_bytes())?;
        let footer = self.header(directory.into());
        self.put_marked(FOOTER, footer.as_bytes())?;
        self.append(&[&[0; SECTOR]])?; // the end of the stream
        self.out.seek(SeekFrom::Start(0))?;
        let header = self.header(AT_END);
        self.out.write_all(header.as_bytes())?;
        let descriptor = self.descriptor(identity);
        self.out.write_all(descriptor.as_bytes())?;
        self.out.flush()
    }
}
