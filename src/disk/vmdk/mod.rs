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
const DEFLATE: u16 = 1;
/// The place of the directory in the header if only the footer contains it.
const AT_END: u64 = u64::MAX;
/// The kinds of markers that precede whole sectors of something.
const TABLE: u32 = 1;
const DIRECTORY: u32 = 2;
const FOOTER: u32 = 3;
