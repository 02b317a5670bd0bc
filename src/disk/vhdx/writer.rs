//! Writes a VHDX: blocks as they come, everything before them at the end.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::{
    BLOCK_TABLE, CHECKSUM, DISK_SIZE, FILE_PARAMETERS, HEADER, HEADER_LENGTH, HEADERS, IDENTIFIER, LOGICAL_SECTOR,
    METADATA, METADATA_REGION, METADATA_TABLE, MIB, MetadataTableEntry, PAGE_83, PHYSICAL_SECTOR, PRESENT, REGION,
    REGIONS, REGIONS_LENGTH, RegionTableEntry, VhdxHeader, ZERO, blocks_of_a_bitmap, checksum,
};
use crate::disk::bytes::field32;
use crate::disk::file_writer::{FileWriter, Piece};
use crate::disk::identity::DiskIdentity;
use crate::disk::sparse;

/// The offsets of the empty log, the metadata and the block table.
const LOG: U64 = U64::new(MIB);
const LOG_LENGTH: U32 = U32::new(1 << 20);
const METADATA_AT: u64 = 2 * MIB;
const TABLE: u64 = 3 * MIB;
const LOGICAL_BYTES: u32 = 512;
const PHYSICAL_BYTES: u32 = 4096;
/// The most blocks: they grow with the disk, so that the table stays small. The smallest blocks of the format waste the
/// least space.
const MOST_BLOCKS: u64 = 1 << 20;
/// The number of metadata items, and their flags: required, and those that belong to the disk, too.
const ITEMS: u16 = 5;
const REQUIRED: U32 = U32::new(4);
const OF_THE_DISK: U32 = U32::new(4 | 2);

/// The writer of a file.
pub(in crate::disk) struct VhdxWriter {
    file: File,
    size: u64,
    /// The size of a block in bytes.
    block: u64,
    /// The blocks of the disk that have data, in their order in the file.
    there: Vec<u64>,
}

impl VhdxWriter {
    /// Creates the writer of a disk of `size` bytes in an empty file.
    pub fn new(file: File, size: u64) -> Self {
        let block = size.div_ceil(MOST_BLOCKS).next_power_of_two().max(MIB);
        Self { file, size, block, there: Vec::new() }
    }

    /// Returns the length of the block table's region in bytes.
    fn table_length(&self) -> u64 {
        let blocks = self.size.div_ceil(self.block);
        let bitmaps = blocks.saturating_sub(1) / blocks_of_a_bitmap(self.block, LOGICAL_BYTES.into());
        ((blocks + bitmaps) * 8).next_multiple_of(MIB).max(MIB)
    }

    /// Returns the offset of a block, by its number in the file.
    fn place(&self, number: usize) -> u64 {
        TABLE + self.table_length() + number as u64 * self.block
    }

    fn put_table(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(TABLE))?;
        let mut table = BufWriter::new(&self.file);
        let mut there = self.there.iter().enumerate().peekable();
        let chunk = blocks_of_a_bitmap(self.block, LOGICAL_BYTES.into());
        for block in 0..self.size.div_ceil(self.block) {
            if block > 0 && block.is_multiple_of(chunk) {
                table.write_all(&[0; 8])?; // no bitmap
            }
            let number = there.next_if(|(_, there)| **there == block);
            let entry = number.map_or(ZERO, |(number, _)| self.place(number) | PRESENT);
            table.write_all(&entry.to_le_bytes())?;
        }
        table.flush()
    }
}

impl FileWriter for VhdxWriter {
    fn put(&mut self, piece: &Piece) -> io::Result<()> {
        let block = piece.at / self.block;
        if self.there.last() != Some(&block) {
            self.there.push(block);
        }
        sparse::write_at(&self.file, self.place(self.there.len() - 1) + piece.at % self.block, &piece.bytes)
    }

    fn finish(mut self: Box<Self>, identity: &DiskIdentity) -> io::Result<()> {
        self.file.set_len(self.place(self.there.len()))?;
        self.put_table()?;
        self.file.write_all_at(&metadata(self.size, self.block, identity)?, METADATA_AT)?;
        let regions = regions(self.table_length())?;
        REGIONS.iter().try_for_each(|at| self.file.write_all_at(&regions, *at))?;
        // The second header is the newer one.
        (0..).zip(HEADERS).try_for_each(|(number, at)| self.file.write_all_at(&header(number, identity), at))?;
        self.file.write_all_at(IDENTIFIER, 0)
    }
}

fn header(number: u64, identity: &DiskIdentity) -> Vec<u8> {
    let header = VhdxHeader {
        signature: *HEADER,
        sequence_number: number.into(),
        file_write_guid: identity.guid("vhdx, file write"),
        data_write_guid: identity.guid("vhdx, data write"),
        log_guid: [0; 16], // the log is empty
        version: U16::new(1),
        log_length: LOG_LENGTH,
        log_offset: LOG,
        ..VhdxHeader::new_zeroed()
    };
    sealed(header.as_bytes().to_vec(), HEADER_LENGTH)
}

fn regions(table_length: u64) -> io::Result<Vec<u8>> {
    let mut regions = [REGION.as_slice(), &[0; 4], &2_u32.to_le_bytes(), &[0; 4]].concat();
    for (guid, at, length) in [(BLOCK_TABLE, TABLE, table_length), (METADATA_REGION, METADATA_AT, MIB)] {
        let entry = RegionTableEntry { guid, file_offset: at.into(), length: field32(length)?, required: U32::new(1) };
        regions.extend(entry.as_bytes());
    }
    Ok(sealed(regions, REGIONS_LENGTH))
}

/// Returns the metadata's table and its items.
fn metadata(size: u64, block: u64, identity: &DiskIdentity) -> io::Result<Vec<u8>> {
    let items: [([u8; 16], U32, Vec<u8>); ITEMS as usize] = [
        (FILE_PARAMETERS, REQUIRED, [field32(block)?, U32::ZERO].as_bytes().to_vec()),
        (DISK_SIZE, OF_THE_DISK, size.to_le_bytes().to_vec()),
        (PAGE_83, OF_THE_DISK, identity.guid("vhdx, disk").to_vec()),
        (LOGICAL_SECTOR, OF_THE_DISK, LOGICAL_BYTES.to_le_bytes().to_vec()),
        (PHYSICAL_SECTOR, OF_THE_DISK, PHYSICAL_BYTES.to_le_bytes().to_vec()),
    ];
    let mut table = [METADATA.as_slice(), &[0; 2], &ITEMS.to_le_bytes(), &[0; 20]].concat();
    let mut values = Vec::new();
    for (item_id, flags, value) in items {
        let offset = field32(METADATA_TABLE + values.len())?;
        let entry = MetadataTableEntry { item_id, offset, length: field32(value.len())?, flags, reserved2: U32::ZERO };
        table.extend(entry.as_bytes());
        values.extend(value);
    }
    table.resize(METADATA_TABLE, 0);
    table.extend(values);
    Ok(table)
}

/// Extends a header or region table to its length, and sets its checksum.
fn sealed(mut bytes: Vec<u8>, length: usize) -> Vec<u8> {
    bytes.resize(length, 0);
    let sum = checksum(&bytes);
    bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_le_bytes());
    bytes
}
