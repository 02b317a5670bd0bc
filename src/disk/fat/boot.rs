//! The boot sector ("Boot Sector and BPB"), reduced to what reading needs.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::FatError;
use crate::disk::bytes::struct_at;

/// The boot sector, whose fields from offset 36 on have this meaning in FAT32 only.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawBootSector {
    bs_jmp_boot: [u8; 3],
    bs_oem_name: [u8; 8],
    bpb_byts_per_sec: U16,
    bpb_sec_per_clus: u8,
    bpb_rsvd_sec_cnt: U16,
    bpb_num_fats: u8,
    bpb_root_ent_cnt: U16,
    bpb_tot_sec16: U16,
    bpb_media: u8,
    bpb_fat_sz16: U16,
    _18: [u8; 8],
    bpb_tot_sec32: U32,
    bpb_fat_sz32: U32,
    _28: [u8; 4],
    bpb_root_clus: U32,
    _30: [u8; 16],
    extended: ExtendedBpb,
    _52: [u8; 428],
    signature_word: [u8; 2],
}

/// The fields of the volume: at offset 36 in FAT12 and FAT16, at 64 in FAT32.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ExtendedBpb {
    bs_drv_num: u8,
    bs_reserved1: u8,
    bs_boot_sig: u8,
    bs_vol_id: U32,
    bs_vol_lab: [u8; 11],
}

/// The number of bits of an entry in the allocation table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Twelve = 12,
    Sixteen = 16,
    ThirtyTwo = 32,
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

impl RawBootSector {
    /// Returns whether these may be the numbers of a FAT file system.
    fn is_plausible(&self) -> bool {
        matches!(self.bs_jmp_boot, [0xeb, _, 0x90] | [0xe9, ..])
            && self.signature_word == [0x55, 0xaa]
            && matches!(self.bpb_byts_per_sec.get(), 512 | 1024 | 2048 | 4096)
            && self.bpb_sec_per_clus.is_power_of_two()
            && self.bpb_rsvd_sec_cnt.get() > 0
            && (1..=2).contains(&self.bpb_num_fats)
            && matches!(self.bpb_media, 0xf0 | 0xf8..)
    }
}

impl FatBootSector {
    /// Parses the first 512 bytes of a file system that has room for `available`. `None` if it is not FAT: the sector has no
    /// reliable magic number, so that any inconsistency means that it is something else.
    pub fn parse(sector: &[u8], available: u64) -> Option<Self> {
        let raw = struct_at::<RawBootSector>(sector, 0).filter(|raw| raw.is_plausible())?;
        let bytes = u64::from(raw.bpb_byts_per_sec);
        let per_cluster = u64::from(raw.bpb_sec_per_clus);
        let reserved = u64::from(raw.bpb_rsvd_sec_cnt);
        let root_bytes = u64::from(raw.bpb_root_ent_cnt) * 32;
        let is_wide = raw.bpb_fat_sz16.get() == 0;
        let table_sectors = wider(raw.bpb_fat_sz16, raw.bpb_fat_sz32);
        let sectors = wider(raw.bpb_tot_sec16, raw.bpb_tot_sec32);
        let root = reserved + u64::from(raw.bpb_num_fats) * table_sectors;
        let data = root + root_bytes.div_ceil(bytes);
        let clusters = u32::try_from(sectors.checked_sub(data)? / per_cluster).ok()?;
        let width = match clusters {
            _ if is_wide => Width::ThirtyTwo,
            0..4085 => Width::Twelve,
            _ => Width::Sixteen,
        };
        let fits = (1..0x0fff_fff5).contains(&clusters)
            && table_sectors * bytes >= (u64::from(clusters) + 2) * width as u64 / 8
            && (is_wide || root_bytes > 0)
            && sectors * bytes <= available;
        // "Extended BPB": a signature says that serial number and label are there.
        let extended = if is_wide { &raw.extended } else { struct_at(sector, 36)? };
        let names = Some(extended).filter(|extended| matches!(extended.bs_boot_sig, 0x28 | 0x29));
        fits.then(|| Self {
            width,
            size: sectors * bytes,
            cluster: per_cluster * bytes,
            table: reserved * bytes,
            table_bytes: table_sectors * bytes,
            root: root * bytes,
            root_bytes: if is_wide { 0 } else { root_bytes },
            root_cluster: if is_wide { raw.bpb_root_clus.get() } else { 0 },
            data: data * bytes,
            clusters,
            serial: names.map_or(0, |names| names.bs_vol_id.get()),
            label: names.map(|names| trimmed(&names.bs_vol_lab)).unwrap_or_default(),
        })
    }

    /// Returns the offset of a cluster in bytes.
    pub fn place(&self, cluster: u32) -> Result<u64, FatError> {
        let index = cluster.checked_sub(2).filter(|index| *index < self.clusters);
        let index = index.ok_or(FatError::Damaged("a cluster's number is out of range"))?;
        Ok(self.data + u64::from(index) * self.cluster)
    }
}

/// Returns the number of a field of 16 bits, or of the field of 32 bits that replaces it if it is 0.
fn wider(short: U16, long: U32) -> u64 {
    if short.get() == 0 { long.into() } else { short.into() }
}

/// Returns a label without its padding; `NO NAME` means that there is none.
pub(super) fn trimmed(label: &[u8]) -> Vec<u8> {
    let label = label.trim_ascii_end();
    if label == b"NO NAME" { Vec::new() } else { label.to_vec() }
}
