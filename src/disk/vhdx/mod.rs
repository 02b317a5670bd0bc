//! Hyper-V's VHDX, dynamic, without a log to replay.
//!
//! Source: Microsoft's \[MS-VHDX\], version 8.0. Numbers are little-endian, and so are the first three parts of a GUID.
//!
//! ```text
//! MiB 0: identifier, two headers, two region tables | 1: the log, empty | 2: metadata | 3: block table | blocks
//! ```
//! The block table has an entry for each block of the disk, and after so many of them one for a bitmap, which only a disk
//! with a parent has.

pub(super) mod reader;
pub(super) mod writer;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MIB: u64 = 1 << 20;
const IDENTIFIER: &[u8; 8] = b"vhdxfile";
/// The offsets of the two headers and the two region tables, and their lengths.
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_LENGTH: usize = 4 << 10;
const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
const REGIONS_LENGTH: usize = 64 << 10;
const HEADER: &[u8; 4] = b"head";
const REGION: &[u8; 4] = b"regi";
const METADATA: &[u8; 8] = b"metadata";
/// The length of the metadata's own table; the items follow it.
const METADATA_TABLE: usize = 64 << 10;
/// The offsets of the first entries of region tables (2.2.3.1) and of the metadata's (2.6.1.1).
const REGION_ENTRIES: usize = 16;
const METADATA_ENTRIES: usize = 32;
/// The offset of the checksum of headers and region tables.
const CHECKSUM: usize = 4;

/// The GUIDs of regions and metadata items, as stored in the file.
const BLOCK_TABLE: [u8; 16] = guid(0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08);
const METADATA_REGION: [u8; 16] = guid(0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e);
const FILE_PARAMETERS: [u8; 16] = guid(0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b);
const DISK_SIZE: [u8; 16] = guid(0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8);
const PAGE_83: [u8; 16] = guid(0xbeca_12ab_b2e6_4523_93ef_c309_e000_c746);
const LOGICAL_SECTOR: [u8; 16] = guid(0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f);
const PHYSICAL_SECTOR: [u8; 16] = guid(0xcda3_48c7_445d_4471_9cc9_e988_5251_c556);

/// The states of a block: it reads as zero, or is in the file.
const ZERO: u64 = 2;
const PRESENT: u64 = 6;
/// The bits of a block table's entry that are the state. The other bits are the offset, a multiple of 1 MiB.
const STATE: u64 = 7;

/// The header (2.2.2), without the reserved space after it.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct VhdxHeader {
    signature: [u8; 4],
    checksum: U32,
    sequence_number: U64,
    file_write_guid: [u8; 16],
    data_write_guid: [u8; 16],
    log_guid: [u8; 16],
    log_version: U16,
    version: U16,
    log_length: U32,
    log_offset: U64,
}

/// An entry of a region table (2.2.3.2).
#[derive(FromBytes, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct RegionTableEntry {
    guid: [u8; 16],
    file_offset: U64,
    length: U32,
    required: U32,
}

/// An entry of the metadata's table (2.6.1.2). The offset counts from the beginning of the table.
#[derive(FromBytes, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct MetadataTableEntry {
    item_id: [u8; 16],
    offset: U32,
    length: U32,
    flags: U32,
    reserved2: U32,
}

/// Converts a GUID to the form in a file: its first three parts are little-endian.
const fn guid(id: u128) -> [u8; 16] {
    let b = id.to_be_bytes();
    [b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]
}

/// Returns how many blocks share a bitmap, which has a bit for each sector and is 1 MiB long.
const fn blocks_of_a_bitmap(block: u64, sector: u64) -> u64 {
    (sector << 23) / block
}

/// Returns the CRC-32C (RFC 3720, appendix B.4) of bytes in which the four of the checksum count as zero.
fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for (at, byte) in bytes.iter().enumerate() {
        crc ^= if (CHECKSUM..CHECKSUM + 4).contains(&at) { 0 } else { u32::from(*byte) };
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc_32c() {
        // RFC 3720, appendix B.4: 32 bytes of zero.
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(checksum(&[[0; 4], [9; 4], [0; 4]].concat()), checksum(&[0; 12]));
        assert_ne!(checksum(&[1; 32]), checksum(&[0; 32]));
    }
}
