//! Reads the disk in a VHDX that has no parent, and nothing in its log. Numbers in the file are checked when they are used.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::disk::bytes::{le16, le32, le64};
use crate::disk::slot_cache::SlotCache;
use crate::disk::source::{DataLocation, DataRun, DiskSource, LayerError};

use super::{
    BLOCK_TABLE, CHECKSUM, DISK_SIZE, FILE_PARAMETERS, HEADER, HEADER_LENGTH, HEADERS, IDENTIFIER, LOGICAL_SECTOR,
    METADATA, METADATA_REGION, METADATA_TABLE, MIB, PRESENT, REGION, REGIONS, REGIONS_LENGTH, STATE,
    blocks_of_a_bitmap, checksum,
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
    pages: SlotCache<Vec<u64>>,
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
        let (metadata, _) = region(&regions, METADATA_REGION).ok_or_else(|| unknown("it has no metadata"))?;
        let (table, length) = region(&regions, BLOCK_TABLE).ok_or_else(|| unknown("it has no block table"))?;
        let metadata = read(&file, metadata, METADATA_TABLE + (64 << 10))?;
        let disk =
            VhdxMetadata::parse(&metadata).ok_or_else(|| unknown("its metadata are not those of a disk of its own"))?;
        let entries = disk.entry_of(disk.size.div_ceil(disk.block).saturating_sub(1)) + 1;
        if entries * 8 > length || table.saturating_add(entries * 8) > file_size {
            return Err(LayerError::Entry { what: "the block table", at: table, file_size });
        }
        Ok(Self { file, file_size, disk, table, pages: SlotCache::new(memory / (PAGE as u64 * 8)) })
    }

    fn entry(&self, block: u64) -> Result<u64, LayerError> {
        let entry = self.disk.entry_of(block);
        let number = entry / PAGE as u64;
        let read = || {
            let at = self.table + number * PAGE as u64 * 8;
            // Regions are whole MiB, pages a part of that.
            let bytes = read(&self.file, at, PAGE * 8)?;
            let words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
            Ok::<_, LayerError>(words.collect())
        };
        Ok(self.pages.get(number, read)?[usize::try_from(entry % PAGE as u64).unwrap_or(0)])
    }
}

impl VhdxMetadata {
    fn parse(metadata: &[u8]) -> Option<Self> {
        let item = |id: [u8; 16]| {
            let count = usize::from(le16(metadata, 10)?).min(METADATA_TABLE / 32 - 1);
            let entry = (1..=count).map(|n| &metadata[n * 32..][..32]).find(|entry| entry.starts_with(&id))?;
            metadata.get(le32(entry, 16)? as usize..)
        };
        let parameters = item(FILE_PARAMETERS)?;
        let (block, flags) = (u64::from(le32(parameters, 0)?), le32(parameters, 4)?);
        let sector = u64::from(le32(item(LOGICAL_SECTOR)?, 0)?);
        let known = metadata.starts_with(METADATA)
            && flags & HAS_PARENT == 0
            && block.is_power_of_two()
            && (MIB..=256 * MIB).contains(&block)
            && [512, 4096].contains(&sector);
        let size = le64(item(DISK_SIZE)?, 0)?;
        // The format allows no larger disk.
        let known = known && (1..=64 << 40).contains(&size);
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
                if at.saturating_add(length) > self.file_size {
                    return Err(LayerError::Entry { what: "a block", at, file_size: self.file_size });
                }
                DataLocation::At(at)
            }
            PARTLY_PRESENT => return Err(unknown("a part of a block is said to be elsewhere")),
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
    match file.read_exact_at(&mut bytes, at) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(unknown("it is too short")),
        other => Ok(other.map(|()| bytes)?),
    }
}

/// Reads a part of the file; `None` if its signature or checksum is wrong.
fn sound(file: &File, at: u64, length: usize, signature: &[u8]) -> Result<Option<Vec<u8>>, LayerError> {
    let bytes = read(file, at, length)?;
    let is_sound = bytes.starts_with(signature) && le32(&bytes, CHECKSUM) == Some(checksum(&bytes));
    Ok(is_sound.then_some(bytes))
}

/// Checks that the newer of the valid headers has no log.
fn check_log(file: &File) -> Result<(), LayerError> {
    let headers = HEADERS.map(|at| sound(file, at, HEADER_LENGTH, HEADER));
    let sound = headers.into_iter().collect::<Result<Vec<_>, _>>()?;
    let newest = sound.into_iter().flatten().max_by_key(|header| le64(header, 8));
    let newest = newest.ok_or_else(|| unknown("it has no sound header"))?;
    if newest[48..64] != [0; 16] || le16(&newest, 66) != Some(1) {
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

/// Returns the offset and the length of a region.
fn region(regions: &[u8], id: [u8; 16]) -> Option<(u64, u64)> {
    let count = usize::try_from(le32(regions, 8)?).ok()?.min(2047);
    let entries = regions.get(16..)?.chunks_exact(32).take(count);
    let entry = entries.into_iter().find(|entry| entry.starts_with(&id))?;
    Some((le64(entry, 16)?, u64::from(le32(entry, 24)?)))
}
