//! The sizes of clusters and stripes in the files that kiln writes, and where they may begin.

/// The size of a cluster in bytes, and its log2, as in QEMU's default.
pub(in crate::disk) const CLUSTER: usize = 1 << CLUSTER_BITS;
pub(in crate::disk) const CLUSTER_BITS: u32 = 16;
/// The size of a stripe in clusters.
pub(in crate::disk) const STRIPE: u64 = 64;
/// The size of a block of nearly every file system, in bytes.
pub(super) const BLOCK: u64 = 4 << 10;

/// Returns where a stripe may begin: an uncompressed cluster begins with a cluster of the file.
pub(super) fn alignment(has_plain: bool) -> u64 {
    if has_plain { CLUSTER as u64 } else { BLOCK }
}
