//! `VirtualBox`'s VDI, dynamic: a map of blocks, and the blocks that have data.
//!
//! Source: `VirtualBox`'s `VDICore.h`, version 1.1 of the header, whose numbers are little-endian.
//!
//! ```text
//! header | map: a number for each MiB of the disk | blocks, in the order of the disk
//! ```

pub(super) mod reader;
pub(super) mod writer;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const SIGNATURE: U32 = U32::new(0xbeda_107f);
const VERSION: U32 = U32::new(0x0001_0001);
const DYNAMIC: U32 = U32::new(1);
/// The size of a block in bytes, and the alignment of the map and the first block.
const BLOCK: u64 = 1 << 20;
/// The entry of a block that is not in the file. The entry of a block that is known to be zero is one less.
const FREE: u32 = u32::MAX;

/// `VDIPREHEADER` and `VDIHEADER1PLUS`, and the rest of their sector.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct VdiHeader {
    sz_file_info: [u8; 64],
    u32_signature: U32,
    u32_version: U32,
    cb_header: U32,
    u32_type: U32,
    _50: [u8; 260],
    off_blocks: U32,
    off_data: U32,
    legacy_geometry: [U32; 4],
    _16c: U32,
    cb_disk: U64,
    cb_block: U32,
    cb_block_extra: U32,
    c_blocks: U32,
    c_blocks_allocated: U32,
    uuid_create: [u8; 16],
    uuid_modify: [u8; 16],
    _1a8: [u8; 32],
    lchs_geometry: [U32; 4],
    _1d8: [u8; 40],
}
