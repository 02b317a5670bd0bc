//! Recognizes the master boot record and parses its entries.
//!
//! Source: UEFI specification 2.10, section 5.2.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::bytes::struct_at;
use super::partition::{Partition, PartitionKind};

/// The possible sizes of a sector in bytes.
pub(super) const SECTOR_SIZES: [u64; 2] = [512, 4096];
/// The first bytes of a GPT header (5.3.2).
pub(super) const GPT_SIGNATURE: &[u8; 8] = b"EFI PART";
/// The types of a partition that contains logical ones (`is_extended_partition` in Linux's `msdos.c`).
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The type of the one partition of a protective MBR (5.2.3).
const PROTECTIVE: u8 = 0xee;

/// A master boot record, or a sector of an extended partition, which has the same form (5.2.1).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct MasterBootRecord {
    boot_code: [u8; 440],
    pub(super) unique_mbr_disk_signature: U32,
    unknown: [u8; 2],
    partition_record: [PartitionRecord; 4],
    signature: [u8; 2],
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PartitionRecord {
    boot_indicator: u8,
    starting_chs: [u8; 3],
    os_type: u8,
    ending_chs: [u8; 3],
    starting_lba: U32,
    size_in_lba: U32,
}

impl MasterBootRecord {
    /// Returns the record in a sector that ends as it does.
    pub(super) fn read(sector: &[u8]) -> Option<&Self> {
        struct_at::<Self>(sector, 0).filter(|record| record.signature == [0x55, 0xaa])
    }

    /// Returns the record in the first sector of a disk, if the flags of its entries are valid. The boot sector of a file
    /// system ends in the same way, but has code in place of the entries.
    pub(super) fn find(sector: &[u8]) -> Option<&Self> {
        Self::read(sector)
            .filter(|mbr| mbr.partition_record.iter().all(|entry| matches!(entry.boot_indicator, 0 | 0x80)))
    }

    /// Returns the four entries; `None` for one that is not used.
    pub(super) fn entries(&self) -> [Option<MbrEntry>; 4] {
        self.partition_record.each_ref().map(MbrEntry::parse)
    }

    /// Returns whether an entry announces a GPT (5.2.3).
    pub(super) fn is_protective(&self) -> bool {
        self.entries().into_iter().flatten().any(|entry| entry.kind == PROTECTIVE && entry.first == 1)
    }
}

/// Returns whether the beginning of a disk contains the header of a GPT.
pub(super) fn has_gpt(head: &[u8]) -> bool {
    let headers = SECTOR_SIZES.iter().filter_map(|sector| head.get(usize::try_from(*sector).ok()?..));
    MasterBootRecord::find(head).is_some_and(MasterBootRecord::is_protective)
        || headers.into_iter().any(|header| header.starts_with(GPT_SIGNATURE))
}

/// An entry of an MBR or of a sector of an extended partition (5.2.1).
#[derive(Debug, Clone, Copy)]
pub(super) struct MbrEntry {
    pub(super) kind: u8,
    /// The first sector.
    pub(super) first: u64,
    /// The number of sectors; never 0.
    pub(super) length: u64,
}

impl MbrEntry {
    fn parse(record: &PartitionRecord) -> Option<Self> {
        let entry = Self { kind: record.os_type, first: record.starting_lba.into(), length: record.size_in_lba.into() };
        (entry.kind != 0 && entry.length != 0).then_some(entry)
    }

    pub(super) fn is_extended(&self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    /// Creates a partition. Its UUID is generated as in Linux, from the disk's signature and the number.
    pub(super) fn partition(self, number: u32, signature: u32) -> Partition {
        let uuid = format!("{signature:08x}-{number:02x}");
        let kind = PartitionKind::Mbr(self.kind);
        Partition { number, kind, start: self.first, length: self.length, uuid, label: String::new(), attributes: 0 }
    }
}
