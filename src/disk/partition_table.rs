//! Finds the partitions of a disk: GPT, else MBR, else the whole disk as one.
//!
//! Sources: UEFI specification 2.10, sections 5.2 (MBR) and 5.3 (GPT); where it is not specific, Linux,
//! `block/partitions/efi.c` and `msdos.c`. As there, a GPT counts only with a protective MBR, so that a GPT that an MBR has
//! replaced is not taken for the table, and only if its checksums are right. The backup GPT does not count: Linux uses it
//! only if its command line has `gpt`. Sectors are 512 or 4096 bytes.

use std::collections::HashSet;

use flate2::Crc;

use super::bytes::{le32, le64};
use super::chain::{Chain, ChainError};
use super::mbr::{GPT_SIGNATURE, MbrEntry, SECTOR_SIZES, has_mbr, has_protective_entry};
use super::partition::{Partition, PartitionKind, guid};
use super::probe::probe;

/// The most entries of a GPT. The specification asks for room for 128; `sgdisk` makes more on request.
const MAX_ENTRIES: u32 = 1024;
/// The most logical partitions of an MBR disk, as in Linux (`DISK_MAX_PARTS`).
const MAX_LOGICAL: usize = 252;

/// Returns the partitions of a disk, in the order of the table. Entries that lie outside the disk are left out.
///
/// # Errors
/// When the disk cannot be read.
pub fn partitions(disk: &Chain) -> Result<Vec<Partition>, ChainError> {
    let start = read_sector(disk, 0)?;
    if has_protective_entry(&start) {
        for sector in SECTOR_SIZES {
            if let Some(table) = read_gpt(disk, sector)? {
                return Ok(table);
            }
        }
    } else if has_mbr(&start) {
        let table = read_mbr(disk, &start)?;
        if !table.is_empty() {
            return Ok(table);
        }
    }
    let kind = PartitionKind::WholeDisk;
    let (uuid, label) = (String::new(), String::new());
    Ok(vec![Partition { number: 0, kind, start: 0, length: disk.virtual_size(), uuid, label, attributes: 0 }])
}

/// Reads 512 bytes, fewer at the end of the disk.
fn read_sector(disk: &Chain, at: u64) -> Result<Vec<u8>, ChainError> {
    let length = disk.virtual_size().saturating_sub(at).min(512);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    disk.read_at(at, &mut bytes)?;
    Ok(bytes)
}

/// Returns whether this sector is a GPT header with the right checksum (5.3.2).
fn has_sound_header(sector: &[u8]) -> bool {
    let length = le32(sector, 12).and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let Some(header) = sector.get(..length).filter(|header| header.len() >= 92) else { return false };
    let without_checksum = [&header[..16], &[0; 4], &header[20..]].concat();
    header.starts_with(GPT_SIGNATURE)
        && le32(header, 16) == Some(checksum(&without_checksum))
        && le64(header, 24) == Some(1)
}

/// Returns whether the sectors for partitions are on the disk, which is not so if the disk was cut off.
fn lies_within(header: &[u8], sectors: u64) -> bool {
    [40, 48].iter().all(|at| le64(header, *at).is_some_and(|sector| sector < sectors))
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Reads the GPT; `None` if there is no valid one.
fn read_gpt(disk: &Chain, sector: u64) -> Result<Option<Vec<Partition>>, ChainError> {
    let header = read_sector(disk, sector)?;
    if !has_sound_header(&header) || !lies_within(&header, disk.virtual_size() / sector) {
        return Ok(None);
    }
    let (Some(first), Some(count), Some(size)) = (le64(&header, 72), le32(&header, 80), le32(&header, 84)) else {
        return Ok(None);
    };
    let sensible = count <= MAX_ENTRIES && (128..=4096).contains(&size) && size.is_multiple_of(8);
    let Some(at) = first.checked_mul(sector).filter(|_| sensible) else { return Ok(None) };
    let mut entries = vec![0; count as usize * size as usize];
    if at.checked_add(entries.len() as u64).is_none_or(|end| end > disk.virtual_size()) {
        return Ok(None);
    }
    disk.read_at(at, &mut entries)?;
    if le32(&header, 88) != Some(checksum(&entries)) {
        return Ok(None);
    }
    let numbered = (1..).zip(entries.chunks_exact(size as usize));
    let limits = DiskLimits { sector, size: disk.virtual_size() };
    Ok(Some(numbered.filter_map(|(number, entry)| gpt_entry(number, entry, &limits)).collect()))
}

fn gpt_entry(number: u32, entry: &[u8], limits: &DiskLimits) -> Option<Partition> {
    let kind: [u8; 16] = entry.get(..16)?.try_into().ok()?;
    let first = le64(entry, 32)?;
    let length = le64(entry, 40)?.checked_sub(first)?.checked_add(1)?;
    let attributes = le64(entry, 48)?;
    (kind != [0; 16]).then_some(())?;
    let units = entry.get(56..128)?.as_chunks().0.iter().map(|unit| u16::from_le_bytes(*unit));
    let label = char::decode_utf16(units.take_while(|unit| *unit != 0)).map(|c| c.unwrap_or('\u{fffd}')).collect();
    let uuid = guid(entry.get(16..32)?.try_into().ok()?);
    let kind = PartitionKind::Gpt(kind);
    limits.locate(Partition { number, kind, start: first, length, uuid, label, attributes })
}

/// Reads an MBR. It does not contain the size of its sectors: 512 bytes, unless only 4096 lead to data that kiln recognizes.
fn read_mbr(disk: &Chain, start: &[u8]) -> Result<Vec<Partition>, ChainError> {
    let tables = SECTOR_SIZES.map(|sector| read_mbr_with(disk, start, sector));
    let [small, large] = tables;
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

fn read_mbr_with(disk: &Chain, start: &[u8], sector: u64) -> Result<Vec<Partition>, ChainError> {
    let limits = DiskLimits { sector, size: disk.virtual_size() };
    let signature = le32(start, 440).unwrap_or(0);
    let mut table = Vec::new();
    let mut logical = Vec::new();
    for (number, index) in (1..).zip(0..4) {
        match MbrEntry::parse(start, index) {
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
        if bytes.get(510..512) != Some(b"\x55\xaa") {
            break;
        }
        let entries: Vec<MbrEntry> = (0..4).filter_map(|index| MbrEntry::parse(&bytes, index)).collect();
        let (chained, data): (Vec<_>, Vec<_>) = entries.into_iter().partition(MbrEntry::is_extended);
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
