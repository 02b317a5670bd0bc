//! Writes a VMDK from its first byte to its last.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use super::{
    AT_END, DEFLATE, DIRECTORY, FLAGS, FOOTER, GRAIN_SECTORS, MAGIC, SECTOR, TABLE, TABLE_GRAINS, TABLE_SECTORS,
};
use crate::disk::file_writer::{FileWriter, GRAIN, Piece};
use crate::disk::identity::DiskIdentity;

/// The version that ESX and oslo.utils expect of a file with compressed grains.
const VERSION: u32 = 3;
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
    directory: Vec<u32>,
    /// The unfinished table, and its number.
    table: (usize, Vec<u32>),
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
            directory: vec![0; usize::try_from(tables).map_err(io::Error::other)?],
            table: (0, Vec::new()),
        })
    }

    fn put_grain(&mut self, grain: u64, packed: &[u8]) -> io::Result<()> {
        let (table, slot) = (grain / u64::from(TABLE_GRAINS), grain % u64::from(TABLE_GRAINS));
        let (table, slot) = (usize::try_from(table).unwrap_or(0), usize::try_from(slot).unwrap_or(0));
        if table != self.table.0 {
            self.put_table()?;
        }
        if self.table.1.is_empty() {
            self.table = (table, vec![0; TABLE_GRAINS as usize]);
        }
        self.table.1[slot] = self.sector()?;
        let length = u32::try_from(packed.len()).map_err(io::Error::other)?;
        let marker = [&(grain * GRAIN_SECTORS).to_le_bytes()[..], &length.to_le_bytes()].concat();
        self.append(&[&marker, packed])
    }

    /// Writes the unfinished table, unless it is empty: a missing table counts as all zero.
    fn put_table(&mut self) -> io::Result<()> {
        let (number, table) = std::mem::take(&mut self.table);
        if !table.is_empty() {
            self.directory[number] = self.put_marked(TABLE, &little_endian(&table))?;
        }
        Ok(())
    }

    /// Appends bytes in whole sectors, preceded by a marker. Returns the number of the first sector.
    fn put_marked(&mut self, kind: u32, bytes: &[u8]) -> io::Result<u32> {
        let sectors = bytes.len().div_ceil(SECTOR) as u64;
        let marker = [&sectors.to_le_bytes()[..], &0_u32.to_le_bytes(), &kind.to_le_bytes()].concat();
        self.append(&[&marker])?;
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
    fn sector(&self) -> io::Result<u32> {
        u32::try_from(self.end).map_err(|_| io::Error::other("a vmdk file ends at 2 TiB"))
    }

    fn header(&self, directory: u64) -> [u8; SECTOR] {
        let mut header = [0; SECTOR];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(4, &VERSION.to_le_bytes());
        put(8, &FLAGS.to_le_bytes());
        put(12, &self.capacity.to_le_bytes());
        put(20, &GRAIN_SECTORS.to_le_bytes());
        put(28, &1_u64.to_le_bytes()); // sector of the descriptor
        put(36, &DESCRIPTOR_SECTORS.to_le_bytes());
        put(44, &TABLE_GRAINS.to_le_bytes());
        put(56, &directory.to_le_bytes());
        put(64, &OVERHEAD.to_le_bytes());
        put(73, b"\n \r\n");
        put(77, &DEFLATE.to_le_bytes());
        header
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
        let directory = little_endian(&self.directory);
        let directory = self.put_marked(DIRECTORY, &directory)?;
        let footer = self.header(directory.into());
        self.put_marked(FOOTER, &footer)?;
        self.append(&[&[0; SECTOR]])?; // the end of the stream
        self.out.seek(SeekFrom::Start(0))?;
        let header = self.header(AT_END);
        self.out.write_all(&header)?;
        let descriptor = self.descriptor(identity);
        self.out.write_all(descriptor.as_bytes())?;
        self.out.flush()
    }
}

fn little_endian(entries: &[u32]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}
