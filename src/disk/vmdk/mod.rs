//! The stream-optimised VMDK: compressed grains one after the other, and tables behind them.
//!
//! Source: `VMware`'s "Virtual Disk Format 5.0", "Stream-Optimized Compressed Sparse Extents".
//!
//! ```text
//! header | descriptor | grain, grain, ... table | grain, ... table | directory | footer | end
//! ```
//! A grain has its place on the disk in front of it, so that the file can be imported as it streams by; who wants to look
//! something up begins at the footer, a second header that knows where the directory is.

pub(super) mod reader;
pub(super) mod writer;

const MAGIC: &[u8; 4] = b"KDMV";
const SECTOR: usize = 512;
/// Sectors of a grain.
const GRAIN_SECTORS: u64 = 128;
/// Grains of a table.
const TABLE_GRAINS: u32 = 512;
/// Sectors of the disk that a table is for.
const TABLE_SECTORS: u64 = GRAIN_SECTORS * TABLE_GRAINS as u64;
/// Newlines are as they should be; grains are compressed; grains and tables have markers.
const FLAGS: u32 = 1 | 1 << 16 | 1 << 17;
const DEFLATE: u16 = 1;
/// What the header says of the directory when only the footer knows.
const AT_END: u64 = u64::MAX;
/// Kinds of markers that stand before whole sectors of something.
const TABLE: u32 = 1;
const DIRECTORY: u32 = 2;
const FOOTER: u32 = 3;
