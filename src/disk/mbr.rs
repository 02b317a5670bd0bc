//! Recognizes the master boot record and parses its entries.
//!
//! Source: UEFI specification 2.10, section 5.2.

use super::bytes::le32;
use super::partition::{Partition, PartitionKind};

/// The possible sizes of a sector in bytes.
pub(super) const SECTOR_SIZES: [u64; 2] = [512, 4096];
/// The first bytes of a GPT header (5.3.2).
pub(super) const GPT_SIGNATURE: &[u8] = b"EFI PART";
/// The types of a partition that contains logical ones (`is_extended_partition` in Linux's `msdos.c`).
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The type of the one partition of a protective MBR (5.2.3).
const PROTECTIVE: u8 = 0xee;

/// Returns whether this sector ends as an MBR does, and its four entries have valid flags. The boot sector of a file system
/// ends in the same way, but has code in place of the entries.
pub(super) fn has_mbr(sector: &[u8]) -> bool {
    let is_flag = |index: usize| matches!(sector.get(446 + 16 * index), Some(0 | 0x80));
    sector.get(510..512) == Some(b"\x55\xaa") && (0..4).all(is_flag)
}

/// Returns whether an MBR has an entry that announces a GPT (5.2.3).
pub(super) fn has_protective_entry(sector: &[u8]) -> bool {
    let entries = (0..4).filter_map(|index| MbrEntry::parse(sector, index));
    has_mbr(sector) && entries.into_iter().any(|entry| entry.kind == PROTECTIVE && entry.first == 1)
}

/// Returns whether the beginning of a disk contains the header of a GPT.
pub(super) fn has_gpt(head: &[u8]) -> bool {
    let headers = SECTOR_SIZES.iter().filter_map(|sector| head.get(usize::try_from(*sector).ok()?..));
    has_protective_entry(head) || headers.into_iter().any(|header| header.starts_with(GPT_SIGNATURE))
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
    pub(super) fn parse(sector: &[u8], index: usize) -> Option<Self> {
        let entry = sector.get(446 + 16 * index..)?;
        let kind = *entry.get(4)?;
        let length = le32(entry, 12)?.into();
        (kind != 0 && length != 0).then_some(Self { kind, first: le32(entry, 8)?.into(), length })
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
