//! `VirtualBox`'s VDI, dynamic: a map of blocks, and the blocks that have data.
//!
//! Source: `VirtualBox`'s `VDICore.h`, version 1.1 of the header, whose numbers are little-endian.
//!
//! ```text
//! header | map: a number for each MiB of the disk | blocks, in the order of the disk
//! ```

pub(super) mod reader;
pub(super) mod writer;

const SIGNATURE: u32 = 0xbeda_107f;
const VERSION: u32 = 0x0001_0001;
const DYNAMIC: u32 = 1;
/// The size of a block in bytes, and the alignment of the map and the first block.
const BLOCK: u64 = 1 << 20;
/// The entry of a block that is not in the file. The entry of a block that is known to be zero is one less.
const FREE: u32 = u32::MAX;
