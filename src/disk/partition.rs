//! Where the partitions of a disk are: GPT, else MBR, else the whole disk as one.
//!
//! Sources: UEFI specification 2.10, sections 5.2 (MBR) and 5.3 (GPT). Sectors are 512 bytes. Logical partitions of an
//! MBR are not looked for: no image for virtual machines that we know has its root there.

use super::bytes::{le32, le64, uuid};
use super::chain::{Chain, ChainError};

const SECTOR: u64 = 512;
/// The specification asks for room for 128; `sgdisk` makes more when told to.
const MAX_ENTRIES: u32 = 1024;

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
}

/// The type of an EFI system partition (5.3.3), in the byte order of the disk, and in an MBR (5.2.2).
const ESP: [PartitionKind; 2] = [
    PartitionKind::Gpt([0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b]),
    PartitionKind::Mbr(0xef),
];

impl Partition {
    /// Whether firmware looks for boot loaders in it.
    #[must_use]
    pub fn is_esp(&self) -> bool {
        ESP.contains(&self.kind)
    }
}

/// The partitions of a disk, in the order of the table. Entries that lie outside the disk are left out.
///
/// # Errors
/// When the disk cannot be read.
pub fn partitions(disk: &Chain) -> Result<Vec<Partition>, ChainError> {
    let mut start = vec![0; 1024.min(usize::try_from(disk.virtual_size()).unwrap_or(1024))];
    disk.read_at(0, &mut start)?;
    if let Some(table) = gpt(disk, &start)? {
        return Ok(table);
    }
    let table: Vec<_> = (0..4).filter_map(|index| mbr_entry(&start, index, disk.virtual_size())).collect();
    let signed = start.get(510..512) == Some(b"\x55\xaa");
    if signed && !table.is_empty() {
        return Ok(table);
    }
    let (kind, length) = (PartitionKind::WholeDisk, disk.virtual_size());
    Ok(vec![Partition { number: 0, kind, start: 0, length, uuid: String::new(), label: String::new() }])
}

/// The GPT, or `None` where there is none that makes sense.
fn gpt(disk: &Chain, start: &[u8]) -> Result<Option<Vec<Partition>>, ChainError> {
    let Some(header) = start.get(512..).filter(|header| header.starts_with(b"EFI PART")) else { return Ok(None) };
    let (Some(first), Some(count), Some(size)) = (le64(header, 72), le32(header, 80), le32(header, 84)) else {
        return Ok(None);
    };
    let sensible = count <= MAX_ENTRIES && (128..=4096).contains(&size) && size.is_multiple_of(8);
    let Some(at) = first.checked_mul(SECTOR).filter(|_| sensible) else { return Ok(None) };
    let mut entries = vec![0; count as usize * size as usize];
    if at.checked_add(entries.len() as u64).is_none_or(|end| end > disk.virtual_size()) {
        return Ok(None);
    }
    disk.read_at(at, &mut entries)?;
    let numbered = (1..).zip(entries.chunks_exact(size as usize));
    Ok(Some(numbered.filter_map(|(number, entry)| gpt_entry(number, entry, disk.virtual_size())).collect()))
}

fn gpt_entry(number: u32, entry: &[u8], size: u64) -> Option<Partition> {
    let kind: [u8; 16] = entry.get(..16)?.try_into().ok()?;
    let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
    let sectors = last.checked_sub(first)?.checked_add(1)?;
    (kind != [0; 16]).then_some(())?;
    let units = entry.get(56..128)?.as_chunks().0.iter().map(|unit| u16::from_le_bytes(*unit));
    let label = char::decode_utf16(units.take_while(|unit| *unit != 0)).map(|c| c.unwrap_or('\u{fffd}')).collect();
    let uuid = guid(entry.get(16..32)?.try_into().ok()?);
    within(Partition { number, kind: PartitionKind::Gpt(kind), start: first, length: sectors, uuid, label }, size)
}

fn mbr_entry(start: &[u8], index: u32, size: u64) -> Option<Partition> {
    let entry = start.get(446 + 16 * index as usize..)?;
    let (kind, first, sectors) = (*entry.get(4)?, le32(entry, 8)?, le32(entry, 12)?);
    (kind != 0).then_some(())?;
    let (kind, number) = (PartitionKind::Mbr(kind), index + 1);
    // As Linux makes one up: the disk's signature and the number.
    let uuid = format!("{:08x}-{number:02x}", le32(start, 440)?);
    within(Partition { number, kind, start: first.into(), length: sectors.into(), uuid, label: String::new() }, size)
}

/// A GUID as text: its first three fields are little-endian (appendix A).
fn guid(mut bytes: [u8; 16]) -> String {
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    uuid(bytes)
}

/// Turns sectors into bytes, for a partition that is not empty and ends within the disk.
fn within(partition: Partition, size: u64) -> Option<Partition> {
    let start = partition.start.checked_mul(SECTOR)?;
    let length = partition.length.checked_mul(SECTOR)?;
    let fits = length > 0 && start > 0 && start.checked_add(length)? <= size;
    fits.then_some(Partition { start, length, ..partition })
}
