//! Reads the disk in a VHDX that has no parent, and nothing in its log. Numbers in the file are checked when they are used.

use std::fs::File;
use std::os::unix::fs::FileExt;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::disk::bytes::{check_within, le16, le32, read_exact, slice_at, struct_at};
use crate::disk::slot_cache::SlotCache;
use crate::disk::source::{DataLocation, DataRun, DiskSource, LayerError};

use super::{
    BLOCK_TABLE, CHECKSUM, DISK_SIZE, FILE_PARAMETERS, HEADER, HEADER_LENGTH, HEADERS, IDENTIFIER, LOGICAL_SECTOR,
    METADATA, METADATA_ENTRIES, METADATA_REGION, METADATA_TABLE, MIB, MetadataTableEntry, PRESENT, REGION,
    REGION_ENTRIES, REGIONS, REGIONS_LENGTH, RegionTableEntry, STATE, VhdxHeader, blocks_of_a_bitmap, checksum,
};

/// How many entries of the block table are read at a time.
const PAGE: usize = 4096;
/// The state that only blocks of disks with a parent have.
const PARTLY_PRESENT: u64 = 7;
/// The flag in the file's parameters that the disk has a parent.
const HAS_PARENT: u32 = 2;

/// An opened VHDX file.
#[derive(Debug)]
pub(in crate::disk) struct VhdxReader {
    file: File,
    file_size: u64,
    disk: VhdxMetadata,
    /// The offset of the block table.
    table: u64,
    pages: SlotCache<Vec<U64>>,
}

/// The fields of the metadata.
#[derive(Debug)]
struct VhdxMetadata {
    size: u64,
    block: u64,
    /// How many blocks share a bitmap.
    chunk: u64,
}

impl VhdxReader {
    /// Reads headers and metadata; the block table takes at most `memory` bytes at a time.
    pub fn open(file: File, memory: u64) -> Result<Self, LayerError> {
        let file_size = file.metadata()?.len();
        if read(&file, 0, IDENTIFIER.len())? != IDENTIFIER {
            return Err(unknown("it has no identifier"));
        }
        check_log(&file)?;
        let regions = regions(&file)?;
        let metadata = region(&regions, METADATA_REGION).ok_or_else(|| unknown("it has no metadata"))?;
        let table_region = region(&regions, BLOCK_TABLE).ok_or_else(|| unknown("it has no block table"))?;
        let table = table_region.file_offset.get();
        let metadata = read(&file, metadata.file_offset.get(), METADATA_TABLE + (64 << 10))?;
        let disk =
            VhdxMetadata::parse(&metadata).ok_or_else(|| unknown("its metadata are not those of a disk of its own"))?;
        let length = (disk.entry_of(disk.size.div_ceil(disk.block) - 1) + 1) * 8;
        let is_within = table.checked_add(length).is_some_and(|end| end <= file_size);
        if length > u64::from(table_region.length) || !is_within {
            return Err(LayerError::Entry { what: "the block table", at: table, file_size });
        }
        Ok(Self { file, file_size, disk, table, pages: SlotCache::new(memory / (PAGE as u64 * 8)) })
    }

    fn entry(&self, block: u64) -> Result<u64, LayerError> {
        let entry = self.disk.entry_of(block);
        let number = entry / PAGE as u64;
        let page = self.pages.get(number, || self.read_page(number))?;
        Ok(page[usize::try_from(entry % PAGE as u64).unwrap_or(0)].get())
    }

    fn read_page(&self, number: u64) -> Result<Vec<U64>, LayerError> {
        // Regions are whole MiB, pages a part of that.
        let mut page = vec![U64::ZERO; PAGE];
        read_exact(&self.file, self.table + number * PAGE as u64 * 8, page.as_mut_bytes(), "vhdx")?;
        Ok(page)
    }
}

impl VhdxMetadata {
    fn parse(metadata: &[u8]) -> Option<Self> {
        let [block_size, flags] = item::<[U32; 2]>(metadata, FILE_PARAMETERS)?.map(U32::get);
        let block = u64::from(block_size);
        let sector = u64::from(*item::<U32>(metadata, LOGICAL_SECTOR)?);
        let size = item::<U64>(metadata, DISK_SIZE)?.get();
        let known = metadata.starts_with(METADATA)
            && flags & HAS_PARENT == 0
            && block.is_power_of_two()
            && (MIB..=256 * MIB).contains(&block)
            && [512, 4096].contains(&sector)
            // The format allows no larger disk.
            && (1..=64 << 40).contains(&size);
        known.then(|| Self { size, block, chunk: blocks_of_a_bitmap(block, sector) })
    }

    /// Returns the index of a block's entry: bitmaps have entries too.
    fn entry_of(&self, block: u64) -> u64 {
        block + block / self.chunk
    }
}

impl DiskSource for VhdxReader {
    fn size(&self) -> u64 {
        self.disk.size
    }

    fn run_at(&self, offset: u64, _: u64) -> Result<DataRun, LayerError> {
        let block = offset / self.disk.block;
        let length = ((block + 1) * self.disk.block).min(self.disk.size) - offset;
        let entry = self.entry(block)?;
        let place = match entry & STATE {
            PRESENT => {
                let at = entry / MIB * MIB + offset % self.disk.block;
                check_within("a block", at, length, self.file_size)?;
                DataLocation::At(at)
            }
            PARTLY_PRESENT => return Err(unknown("a part of a block is in a parent file")),
            _ => DataLocation::Zero,
        };
        Ok(DataRun { place, length })
    }

    fn read(&self, place: DataLocation, _: u64, bytes: &mut [u8]) -> Result<(), LayerError> {
        match place {
            DataLocation::At(at) => self.file.read_exact_at(bytes, at)?,
            _ => bytes.fill(0),
        }
        Ok(())
    }
}

fn unknown(why: &str) -> LayerError {
    LayerError::Unknown { format: "vhdx", why: why.to_owned() }
}

fn read(file: &File, at: u64, length: usize) -> Result<Vec<u8>, LayerError> {
    let mut bytes = vec![0; length];
    read_exact(file, at, &mut bytes, "vhdx")?;
    Ok(bytes)
}

/// Reads a part of the file; `None` if its signature or checksum is wrong.
fn sound(file: &File, at: u64, length: usize, signature: &[u8]) -> Result<Option<Vec<u8>>, LayerError> {
    let bytes = read(file, at, length)?;
    let is_sound = bytes.starts_with(signature) && bytes[CHECKSUM..].starts_with(&checksum(&bytes).to_le_bytes());
    Ok(is_sound.then_some(bytes))
}

/// Checks that the newer of the valid headers has no log.
fn check_log(file: &File) -> Result<(), LayerError> {
    let headers = HEADERS.map(|at| sound(file, at, HEADER_LENGTH, HEADER));
    let sound = headers.into_iter().collect::<Result<Vec<_>, _>>()?;
    let sound = sound.iter().flatten().filter_map(|bytes| struct_at::<VhdxHeader>(bytes, 0));
    let newest = sound.max_by_key(|header| header.sequence_number);
    let newest = newest.ok_or_else(|| unknown("it has no sound header"))?;
    if newest.log_guid != [0; 16] || newest.version.get() != 1 {
        return Err(unknown("it was not closed"));
    }
    Ok(())
}

fn regions(file: &File) -> Result<Vec<u8>, LayerError> {
    for at in REGIONS {
        if let Some(regions) = sound(file, at, REGIONS_LENGTH, REGION)? {
            return Ok(regions);
        }
    }
    Err(unknown("it has no sound region table"))
}

fn region(regions: &[u8], id: [u8; 16]) -> Option<&RegionTableEntry> {
    let count = usize::try_from(le32(regions, 8)?).ok()?;
    slice_at::<RegionTableEntry>(regions, REGION_ENTRIES, count)?.iter().find(|entry| entry.guid == id)
}

/// Returns the value of a metadata item.
fn item<T: FromBytes + KnownLayout + Immutable + Unaligned>(metadata: &[u8], id: [u8; 16]) -> Option<&T> {
    let count = usize::from(le16(metadata, 10)?);
    let entries = slice_at::<MetadataTableEntry>(metadata, METADATA_ENTRIES, count)?;
    struct_at(metadata, entries.iter().find(|entry| entry.item_id == id)?.offset.get() as usize)
}
