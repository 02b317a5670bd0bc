//! Finds the partitions of a disk: GPT, else MBR, else the whole disk as one.
//!
//! Sources: UEFI specification 2.10, sections 5.2 (MBR) and 5.3 (GPT); where it is not specific, Linux,
//! `block/partitions/efi.c` and `msdos.c`. As there, a GPT counts only with a protective MBR, so that a GPT that an MBR has
//! replaced is not taken for the table, and only if its checksums are right. The backup GPT does not count: Linux uses it
//! only if its command line has `gpt`. Sectors are 512 or 4096 bytes.

use std::collections::HashSet;

use flate2::Crc;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::bytes::{struct_at, utf16};
use super::chain::{Chain, ChainError};
use super::mbr::{GPT_SIGNATURE, MasterBootRecord, MbrEntry, SECTOR_SIZES};
use super::partition::{Partition, PartitionKind, guid};
use super::probe::probe;

/// The most entries of a GPT. The specification asks for room for 128; `sgdisk` makes more on request.
const MAX_ENTRIES: u32 = 1024;
/// The most logical partitions of an MBR disk, as in Linux (`DISK_MAX_PARTS`).
const MAX_LOGICAL: usize = 252;

/// The header of a GPT (5.3.2).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GptHeader {
    signature: [u8; 8],
    revision: U32,
    header_size: U32,
    header_crc32: U32,
    reserved: U32,
    my_lba: U64,
    alternate_lba: U64,
    first_usable_lba: U64,
    last_usable_lba: U64,
    disk_guid: [u8; 16],
    partition_entry_lba: U64,
    number_of_partition_entries: U32,
    size_of_partition_entry: U32,
    partition_entry_array_crc32: U32,
}

/// An entry of a GPT (5.3.3).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GptEntry {
    partition_type_guid: [u8; 16],
    unique_partition_guid: [u8; 16],
    starting_lba: U64,
    ending_lba: U64,
    attributes: U64,
    partition_name: [U16; 36],
}

/// Returns the partitions of a disk, in the order of the table. Entries that lie outside the disk are left out.
///
/// # Errors
/// When the disk cannot be read.
pub fn partitions(disk: &Chain) -> Result<Vec<Partition>, ChainError> {
    let start = read_sector(disk, 0)?;
    let mbr = MasterBootRecord::find(&start);
    if mbr.is_some_and(MasterBootRecord::is_protective) {
        for sector in SECTOR_SIZES {
            if let Some(table) = read_gpt(disk, sector)? {
                return Ok(table);
            }
        }
    } else if let Some(mbr) = mbr {
        let table = read_mbr(disk, mbr)?;
        if !table.is_empty() {
            return Ok(table);
        }
    }
    let kind = PartitionKind::WholeDisk;
    let length = disk.virtual_size();
    Ok(vec![Partition { number: 0, kind, start: 0, length, uuid: String::new(), label: String::new(), attributes: 0 }])
}

/// Reads 512 bytes, fewer at the end of the disk.
fn read_sector(disk: &Chain, at: u64) -> Result<Vec<u8>, ChainError> {
    let length = disk.virtual_size().saturating_sub(at).min(512);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    disk.read_at(at, &mut bytes)?;
    Ok(bytes)
}

/// Returns the header of the GPT in a sector, if its checksum is right.
fn find_header(sector: &[u8]) -> Option<&GptHeader> {
    let header = struct_at::<GptHeader>(sector, 0)?;
    let rest = sector.get(size_of::<GptHeader>()..usize::try_from(header.header_size.get()).ok()?)?;
    let without_checksum = GptHeader { header_crc32: U32::ZERO, ..*header };
    let is_sound = header.signature == *GPT_SIGNATURE
        && header.header_crc32.get() == checksum(&[without_checksum.as_bytes(), rest].concat())
        && header.my_lba.get() == 1;
    is_sound.then_some(header)
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Reads the GPT; `None` if there is no valid one.
fn read_gpt(disk: &Chain, sector: u64) -> Result<Option<Vec<Partition>>, ChainError> {
    let bytes = read_sector(disk, sector)?;
    let Some(header) = find_header(&bytes) else { return Ok(None) };
    // The sectors for partitions are not on the disk if it was cut off.
    let last = header.first_usable_lba.max(header.last_usable_lba);
    let count = header.number_of_partition_entries.get();
    let size = header.size_of_partition_entry.get();
    let sensible = last.get() < disk.virtual_size() / sector
        && count <= MAX_ENTRIES
        && (128..=4096).contains(&size)
        && size.is_multiple_of(8);
    let at = header.partition_entry_lba.get().checked_mul(sector).filter(|_| sensible);
    let Some(at) = at else { return Ok(None) };
    let mut entries = vec![0; count as usize * size as usize];
    if at.checked_add(entries.len() as u64).is_none_or(|end| end > disk.virtual_size()) {
        return Ok(None);
    }
    disk.read_at(at, &mut entries)?;
    if header.partition_entry_array_crc32.get() != checksum(&entries) {
        return Ok(None);
    }
    let numbered = (1..).zip(entries.chunks_exact(size as usize));
    let limits = DiskLimits { sector, size: disk.virtual_size() };
    Ok(Some(numbered.filter_map(|(number, entry)| gpt_entry(number, entry, &limits)).collect()))
}

fn gpt_entry(number: u32, entry: &[u8], limits: &DiskLimits) -> Option<Partition> {
    let entry = struct_at::<GptEntry>(entry, 0).filter(|entry| entry.partition_type_guid != [0; 16])?;
    let start = entry.starting_lba.get();
    limits.locate(Partition {
        number,
        kind: PartitionKind::Gpt(entry.partition_type_guid),
        start,
        length: entry.ending_lba.get().checked_sub(start)?.checked_add(1)?,
        uuid: guid(entry.unique_partition_guid),
        label: utf16(&entry.partition_name),
        attributes: entry.attributes.get(),
    })
}

/// Reads an MBR. It does not contain the size of its sectors: 512 bytes, unless only 4096 lead to data that kiln recognizes.
fn read_mbr(disk: &Chain, mbr: &MasterBootRecord) -> Result<Vec<Partition>, ChainError> {
    let [small, large] = SECTOR_SIZES.map(|sector| read_mbr_with(disk, mbr, sector));
    let small = small?;
    let large = large?;
    let is_large = !has_known_content(disk, &small)? && has_known_content(disk, &large)?;
    Ok(if is_large { large } else { small })
}

fn has_known_content(disk: &Chain, table: &[Partition]) -> Result<bool, ChainError> {
    for partition in table {
        if probe(disk, partition)?.is_known() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read_mbr_with(disk: &Chain, mbr: &MasterBootRecord, sector: u64) -> Result<Vec<Partition>, ChainError> {
    let limits = DiskLimits { sector, size: disk.virtual_size() };
    let signature = mbr.unique_mbr_disk_signature.get();
    let mut table = Vec::new();
    let mut logical = Vec::new();
    for (number, entry) in (1..).zip(mbr.entries()) {
        match entry {
            Some(entry) if entry.is_extended() && logical.is_empty() => logical = read_logical(disk, entry, sector)?,
            Some(entry) if !entry.is_extended() => table.extend(limits.locate(entry.partition(number, signature))),
            _ => {}
        }
    }
    let numbered = (5..).zip(logical);
    table.extend(numbered.filter_map(|(number, entry)| limits.locate(entry.partition(number, signature))));
    Ok(table)
}

/// Follows the chain of an extended partition: each of its sectors has a logical partition, counted from that sector, and
/// the next sector, counted from the first (`parse_extended` in `msdos.c`). Ends when a sector is repeated.
fn read_logical(disk: &Chain, extended: MbrEntry, sector: u64) -> Result<Vec<MbrEntry>, ChainError> {
    let first = extended.first;
    let mut at = first;
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    while seen.insert(at) && seen.len() <= MAX_LOGICAL && at < disk.virtual_size() / sector {
        let bytes = read_sector(disk, at * sector)?;
        let Some(record) = MasterBootRecord::read(&bytes) else { break };
        let (chained, data): (Vec<_>, Vec<_>) = record.entries().into_iter().flatten().partition(MbrEntry::is_extended);
        // A table may have four entries, but the last two are unreliable in tables of other systems.
        found.extend(data.into_iter().take(2).map(|entry| MbrEntry { first: at + entry.first, ..entry }));
        let Some(next) = chained.first() else { break };
        at = first + next.first;
    }
    Ok(found)
}

/// The disk that partitions must lie within.
struct DiskLimits {
    /// The size of a sector in bytes.
    sector: u64,
    /// The size of the disk in bytes.
    size: u64,
}

impl DiskLimits {
    /// Converts sectors to bytes; `None` if the partition is empty or does not end within the disk.
    fn locate(&self, partition: Partition) -> Option<Partition> {
        let start = partition.start.checked_mul(self.sector)?;
        let length = partition.length.checked_mul(self.sector)?;
        let fits = length > 0 && start > 0 && start.checked_add(length)? <= self.size;
        fits.then_some(Partition { start, length, ..partition })
    }
}
