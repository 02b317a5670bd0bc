//! The stream-optimised VMDK: compressed grains one after the other, and tables after them.
//!
//! Source: `VMware`'s "Virtual Disk Format 5.0", "Stream-Optimized Compressed Sparse Extents".
//!
//! ```text
//! header | descriptor | grain, grain, ... table | grain, ... table | directory | footer | end
//! ```
//! Each grain is preceded by its place on the disk, so that the file can be imported as a stream; a reader with random
//! access begins at the footer, a second header with the place of the directory.

pub(super) mod reader;
pub(super) mod writer;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const MAGIC: &[u8; 4] = b"KDMV";
const SECTOR: usize = 512;
/// The number of sectors of a grain.
const GRAIN_SECTORS: u64 = 128;
/// The number of grains of a table.
const TABLE_GRAINS: u32 = 512;
/// The number of sectors of the disk that a table covers.
const TABLE_SECTORS: u64 = GRAIN_SECTORS * TABLE_GRAINS as u64;
/// The flags of the header: newlines are intact; grains are compressed; grains and tables have markers.
const FLAGS: u32 = 1 | 1 << 16 | 1 << 17;
const DEFLATE: U16 = U16::new(1);
/// The place of the directory in the header if only the footer contains it.
const AT_END: U64 = U64::MAX_VALUE;
/// The kinds of markers that precede whole sectors of something.
const TABLE: U32 = U32::new(1);
const DIRECTORY: U32 = U32::new(2);
const FOOTER: U32 = U32::new(3);
/// The length of the marker that precedes a grain: it has no kind.
const GRAIN_MARKER: usize = 12;

/// `SparseExtentHeader`.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct SparseExtentHeader {
    magic_number: [u8; 4],
    version: U32,
    flags: U32,
    capacity: U64,
    grain_size: U64,
    descriptor_offset: U64,
    descriptor_size: U64,
    num_gtes_per_gt: U32,
    rgd_offset: U64,
    gd_offset: U64,
    over_head: U64,
    unclean_shutdown: u8,
    end_line_chars: [u8; 4],
    compress_algorithm: U16,
    pad: [u8; 433],
}

/// `Marker`: the place of a grain on the disk and its length, or how many sectors of something follow, 0 and the kind.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct SparseMarker {
    val: U64,
    size: U32,
    kind: U32,
}
