//! `VirtualBox`'s VDI, dynamic: a map of blocks, and those blocks that have data.
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
/// Bytes of a block, and of what the map and the first block are aligned to.
const BLOCK: u64 = 1 << 20;
/// In the map, a block that is nowhere. The number below it is one that is known to be zero.
const FREE: u32 = u32::MAX;
