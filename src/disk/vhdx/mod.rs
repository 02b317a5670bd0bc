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
/// The offset of the checksum of headers and region tables.
const CHECKSUM: usize = 4;

/// The GUIDs of regions and metadata items, as stored in the file.
const BLOCK_TABLE: [u8; 16] = guid(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const METADATA_REGION: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
const FILE_PARAMETERS: [u8; 16] = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const DISK_SIZE: [u8; 16] = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
const PAGE_83: [u8; 16] = guid(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746);
const LOGICAL_SECTOR: [u8; 16] = guid(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);
const PHYSICAL_SECTOR: [u8; 16] = guid(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556);

/// The states of a block: it reads as zero, or is in the file.
const ZERO: u64 = 2;
const PRESENT: u64 = 6;
/// The bits of a block table's entry that are the state. The other bits are the offset, a multiple of 1 MiB.
const STATE: u64 = 7;

const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

/// Returns how many blocks share a bitmap, which has a bit for each sector and is 1 MiB long.
const fn blocks_of_a_bitmap(block: u64, sector: u64) -> u64 {
    (sector << 23) / block
}

/// Returns the CRC-32C (RFC 3720, appendix B.4) of bytes in which the four of the checksum count as zero.
fn checksum(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: u8| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    };
    let counted =
        bytes.iter().enumerate().map(|(at, byte)| if (CHECKSUM..CHECKSUM + 4).contains(&at) { 0 } else { *byte });
    !counted.fold(u32::MAX, step)
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
