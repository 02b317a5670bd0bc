//! Finds the partitions of a disk: GPT, else MBR, else the whole disk as one.
//!
//! Sources: UEFI specification 2.10, sections 5.2 (MBR) and 5.3 (GPT); for what it leaves open, Linux,
//! `block/partitions/efi.c` and `msdos.c`. As there, a GPT counts only behind a protective MBR, so that one that an MBR
//! has replaced is not taken for the table, and only if its checksums are right. The backup GPT does not count: Linux looks
//! at it only where its command line has `gpt`. Sectors are 512 or 4096 bytes.

use std::collections::HashSet;

use flate2::Crc;

use super::bytes::{le32, le64, uuid};
use super::chain::{Chain, ChainError};
use super::probe::probe;

const SECTOR_SIZES: [u64; 2] = [512, 4096];
/// The specification asks for room for 128; `sgdisk` makes more when told to.
const MAX_ENTRIES: u32 = 1024;
/// Linux has no more partitions on an MBR disk (`DISK_MAX_PARTS`).
const MAX_LOGICAL: usize = 252;
/// Types of a partition that holds logical ones (`is_extended_partition` in `msdos.c`).
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// How the header of a GPT begins (5.3.2).
const GPT_SIGNATURE: &[u8] = b"EFI PART";
/// The type of the one partition of a protective MBR (5.2.3).
const PROTECTIVE: u8 = 0xee;

/// What the table says a partition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionKind {
    /// The type GUID, in the byte order of the disk.
    Gpt([u8; 16]),
    /// The type byte.
    Mbr(u8),
    /// The disk has no partition table.
    WholeDisk,
}

/// The purpose of a partition by its type, where that decides what is mounted.
///
/// Source: The Discoverable Partitions Specification (UAPI group).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PartitionRole {
    Root,
    Usr,
    Home,
    Srv,
    Var,
    VarTmp,
    ExtendedBoot,
    Esp,
    /// The image of GRUB for BIOS, which is no file system.
    BiosBoot,
    Other,
}

/// The types that have a role, those of root and /usr for x86-64, x86, arm64, arm and riscv64.
const ROLES: [(&str, PartitionRole); 18] = [
    ("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", PartitionRole::Root),
    ("44479540-f297-41b2-9af7-d131d5f0458a", PartitionRole::Root),
    ("b921b045-1df0-41c3-af44-4c6f280d3fae", PartitionRole::Root),
    ("69dad710-2ce4-4e3c-b16c-21a1d49abed3", PartitionRole::Root),
    ("72ec70a6-cf74-40e6-bd49-4bda08e8f224", PartitionRole::Root),
    ("8484680c-9521-48c6-9c11-b0720656f69e", PartitionRole::Usr),
    ("75250d76-8cc6-458e-bd66-bd47cc81a812", PartitionRole::Usr),
    ("b0e01050-ee5f-4390-949a-9101b17104e9", PartitionRole::Usr),
    ("7d0359a3-02b3-4f0a-865c-654403e70625", PartitionRole::Usr),
    ("beaec34b-8442-439b-a40b-984381ed097d", PartitionRole::Usr),
    ("933ac7e1-2eb4-4f13-b844-0e14e2aef915", PartitionRole::Home),
    ("3b8f8425-20e0-4f3b-907f-1a25a76f98e8", PartitionRole::Srv),
    ("4d21b016-b534-45c2-a9fb-5c16e091fd2d", PartitionRole::Var),
    ("7ec6f557-3bc5-4aca-b293-16ef5df639d1", PartitionRole::VarTmp),
    ("bc13c2ff-59e6-4262-a352-b275fd6f7172", PartitionRole::ExtendedBoot),
    ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", PartitionRole::Esp),
    ("21686148-6449-6e6f-744e-656564454649", PartitionRole::BiosBoot),
    ("9e1a2d38-c612-4316-aa26-8b49521e5a8b", PartitionRole::BiosBoot),
];
/// The attribute of a GPT partition that is not to be mounted unasked (Discoverable Partitions Specification).
const NO_AUTO: u64 = 1 << 63;

/// A partition; always within its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// As Linux numbers it, from 1; 0 for the whole disk.
    pub number: u32,
    /// What for.
    pub kind: PartitionKind,
    /// Its first byte on the disk.
    pub start: u64,
    /// Bytes; never 0.
    pub length: u64,
    /// `PARTUUID=` in fstab(5), in lower case; empty for the whole disk.
    pub uuid: String,
    /// `PARTLABEL=` in fstab(5); may be empty.
    pub label: String,
    /// Attributes of a GPT entry (5.3.3), else 0.
    pub attributes: u64,
}

impl Partition {
    /// Returns what the type of the partition says of its purpose.
    pub(super) fn role(&self) -> PartitionRole {
        match self.kind {
            PartitionKind::Gpt(kind) => {
                let kind = guid(kind);
                ROLES.iter().find(|(name, _)| *name == kind).map_or(PartitionRole::Other, |(_, role)| *role)
            }
            // UEFI specification, 5.2.2.
            PartitionKind::Mbr(0xef) => PartitionRole::Esp,
            PartitionKind::Mbr(_) | PartitionKind::WholeDisk => PartitionRole::Other,
        }
    }

    /// Returns whether its type alone may have it mounted.
    pub(super) fn mounts_itself(&self) -> bool {
        self.attributes & NO_AUTO == 0
    }
}

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

/// Returns 512 bytes, fewer where the disk ends.
fn read_sector(disk: &Chain, at: u64) -> Result<Vec<u8>, ChainError> {
    let length = disk.virtual_size().saturating_sub(at).min(512);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    disk.read_at(at, &mut bytes)?;
    Ok(bytes)
}

/// Returns whether this sector ends as an MBR does, and its four entries have flags as partitions have them. The boot
/// sector of a file system ends in the same way, but has code where the entries are.
fn has_mbr(sector: &[u8]) -> bool {
    let is_flag = |index: usize| matches!(sector.get(446 + 16 * index), Some(0 | 0x80));
    sector.get(510..512) == Some(b"\x55\xaa") && (0..4).all(is_flag)
}

/// Returns whether an MBR says that a GPT follows (5.2.3).
fn has_protective_entry(sector: &[u8]) -> bool {
    let entries = (0..4).filter_map(|index| MbrEntry::parse(sector, index));
    has_mbr(sector) && entries.into_iter().any(|entry| entry.kind == PROTECTIVE && entry.first == 1)
}

/// Returns whether the beginning of a disk says that it has a GPT.
pub(super) fn has_gpt(head: &[u8]) -> bool {
    let headers = SECTOR_SIZES.iter().filter_map(|sector| head.get(usize::try_from(*sector).ok()?..));
    has_protective_entry(head) || headers.into_iter().any(|header| header.starts_with(GPT_SIGNATURE))
}

/// Returns whether the header in the second sector is one, and has the checksum that it says (5.3.2).
fn has_sound_header(sector: &[u8]) -> bool {
    let length = le32(sector, 12).and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let Some(header) = sector.get(..length).filter(|header| header.len() >= 92) else { return false };
    let without_checksum = [&header[..16], &[0; 4], &header[20..]].concat();
    header.starts_with(GPT_SIGNATURE)
        && le32(header, 16) == Some(checksum(&without_checksum))
        && le64(header, 24) == Some(1)
}

/// Returns whether the sectors for partitions are on the disk, which they are not on one that was cut off.
fn lies_within(header: &[u8], sectors: u64) -> bool {
    [40, 48].iter().all(|at| le64(header, *at).is_some_and(|sector| sector < sectors))
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Reads the GPT, or returns `None` where there is none that makes sense.
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

/// Reads an MBR. It does not say how long its sectors are: 512 bytes, unless only 4096 lead to data that is known.
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

/// Follows the chain of an extended partition: in each of its sectors a logical partition, counted from that sector, and
/// the next sector, counted from the first (`parse_extended` in `msdos.c`). Ends where the chain meets itself.
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
        // A table may have four entries, but what other systems write into the last two is not to be trusted.
        found.extend(data.into_iter().take(2).map(|entry| MbrEntry { first: at + entry.first, ..entry }));
        let Some(next) = chained.first() else { break };
        at = first + next.first;
    }
    Ok(found)
}

/// An entry of an MBR or of a sector of an extended partition (5.2.1).
#[derive(Debug, Clone, Copy)]
struct MbrEntry {
    kind: u8,
    /// In sectors.
    first: u64,
    /// In sectors; never 0.
    length: u64,
}

impl MbrEntry {
    fn parse(sector: &[u8], index: usize) -> Option<Self> {
        let entry = sector.get(446 + 16 * index..)?;
        let kind = *entry.get(4)?;
        let length = le32(entry, 12)?.into();
        (kind != 0 && length != 0).then_some(Self { kind, first: le32(entry, 8)?.into(), length })
    }

    fn is_extended(&self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    /// Makes up a UUID as Linux does: the disk's signature and the number.
    fn partition(self, number: u32, signature: u32) -> Partition {
        let uuid = format!("{signature:08x}-{number:02x}");
        let kind = PartitionKind::Mbr(self.kind);
        Partition { number, kind, start: self.first, length: self.length, uuid, label: String::new(), attributes: 0 }
    }
}

/// Returns a GUID as text: its first three fields are little-endian (appendix A).
fn guid(mut bytes: [u8; 16]) -> String {
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    uuid(bytes)
}

/// The disk that partitions must lie within.
struct DiskLimits {
    /// Bytes of a sector.
    sector: u64,
    /// Bytes of the disk.
    size: u64,
}

impl DiskLimits {
    /// Turns sectors into bytes, for a partition that is not empty and ends within the disk.
    fn locate(&self, partition: Partition) -> Option<Partition> {
        let start = partition.start.checked_mul(self.sector)?;
        let length = partition.length.checked_mul(self.sector)?;
        let fits = length > 0 && start > 0 && start.checked_add(length)? <= self.size;
        fits.then_some(Partition { start, length, ..partition })
    }
}
