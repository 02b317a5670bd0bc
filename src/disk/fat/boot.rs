//! The boot sector ("Boot Sector and BPB"), reduced to what reading needs.

use crate::disk::bytes::{le16, le32};

/// The number of bits of an entry in the allocation table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

/// Offsets and sizes of the parts in bytes; all parts are on the disk.
#[derive(Debug)]
pub(super) struct FatBootSector {
    pub width: Width,
    /// The size of the whole file system.
    pub size: u64,
    /// Size of a cluster, 512 to 128 KiB.
    pub cluster: u64,
    /// The offset of the first allocation table.
    pub table: u64,
    pub table_bytes: u64,
    /// The offset of the root directory if it is outside the clusters; it has 0 bytes on FAT32.
    pub root: u64,
    pub root_bytes: u64,
    /// The first cluster of the root directory on FAT32.
    pub root_cluster: u32,
    /// The offset of cluster 2, the first one.
    data: u64,
    /// How many clusters there are.
    clusters: u32,
    pub serial: u32,
    /// The label without trailing spaces.
    pub label: Vec<u8>,
}

impl FatBootSector {
    /// Parses the first 512 bytes of a file system that has room for `available`. `None` if it is not FAT: the sector has no
    /// reliable magic number, so that any inconsistency means that it is something else.
    pub fn parse(sector: &[u8], available: u64) -> Option<Self> {
        let half = |at| le16(sector, at).map(u64::from);
        let byte = |at: usize| sector.get(at).copied().map(u64::from);
        let (bytes, per_cluster) = (half(11)?, byte(13)?);
        let (reserved, tables, root_entries) = (half(14)?, byte(16)?, half(17)?);
        let jumps = matches!(sector, [0xeb, _, 0x90, ..] | [0xe9, ..]);
        let signed = sector.get(510..512) == Some(b"\x55\xaa");
        let sensible = matches!(bytes, 512 | 1024 | 2048 | 4096)
            && per_cluster.is_power_of_two()
            && reserved > 0
            && (1..=2).contains(&tables)
            && (sector.get(21) == Some(&0xf0) || sector.get(21)? >= &0xf8);
        if !(jumps && signed && sensible) {
            return None;
        }
        let either = |short: u64, long: u32| if short == 0 { u64::from(long) } else { short };
        let is_wide = half(22)? == 0;
        let table_sectors = either(half(22)?, le32(sector, 36)?);
        let sectors = either(half(19)?, le32(sector, 32)?);
        let root = reserved + tables * table_sectors;
        let data = root + (root_entries * 32).div_ceil(bytes);
        let clusters = u32::try_from(sectors.checked_sub(data)? / per_cluster).ok()?;
        let width = match clusters {
            _ if is_wide => Width::ThirtyTwo,
            0..4085 => Width::Twelve,
            _ => Width::Sixteen,
        };
        let needed = match width {
            Width::Twelve => (u64::from(clusters) + 2) * 3 / 2,
            Width::Sixteen => (u64::from(clusters) + 2) * 2,
            Width::ThirtyTwo => (u64::from(clusters) + 2) * 4,
        };
        let fits = clusters > 0
            && clusters < 0x0fff_fff5
            && table_sectors * bytes >= needed
            && (is_wide || root_entries > 0)
            && sectors * bytes <= available;
        // "Extended BPB": a signature says that serial number and label are there.
        let extended = if is_wide { 64 } else { 36 };
        let is_named = matches!(sector.get(extended + 2), Some(0x28 | 0x29));
        fits.then(|| Self {
            width,
            size: sectors * bytes,
            cluster: per_cluster * bytes,
            table: reserved * bytes,
            table_bytes: table_sectors * bytes,
            root: root * bytes,
            root_bytes: if is_wide { 0 } else { root_entries * 32 },
            root_cluster: if is_wide { le32(sector, 44).unwrap_or(0) } else { 0 },
            data: data * bytes,
            clusters,
            serial: if is_named { le32(sector, extended + 3).unwrap_or(0) } else { 0 },
            label: if is_named { trimmed(&sector[extended + 7..extended + 18]) } else { Vec::new() },
        })
    }

    /// Returns whether there is a cluster of this number.
    pub fn has(&self, cluster: u32) -> bool {
        (2..self.clusters + 2).contains(&cluster)
    }

    /// Returns the offset of a cluster in bytes.
    pub fn place(&self, cluster: u32) -> u64 {
        self.data + u64::from(cluster.saturating_sub(2)) * self.cluster
    }
}

/// Returns a label without its padding; `NO NAME` means that there is none.
pub(super) fn trimmed(label: &[u8]) -> Vec<u8> {
    let label = label.trim_ascii_end();
    if label == b"NO NAME" { Vec::new() } else { label.to_vec() }
}
