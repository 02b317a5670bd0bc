//! Recognizes the volumes that kiln does not read by their superblocks: their kinds, and the names by which a guest mounts
//! them.
//!
//! The superblocks are not trusted beyond that: a guest may have written them.

use zerocopy::little_endian::{U16, U64};

use super::bytes::{struct_at, until_zero, utf16, uuid};
use super::chain::{Chain, ChainError};
use super::ext4::RawSuperblock;
use super::gap::VolumeKind;
use super::mbr::has_gpt;
use super::partition::{Partition, PartitionKind};
use super::sparse::is_zero;

/// How many bytes of a partition are examined: the last superblock, the uberblocks of ZFS, ends here.
const HEAD: u64 = 256 << 10;

/// The recognized content of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ProbedContent {
    /// Zeroes, at least at the beginning.
    Empty,
    /// Content that begins with a superblock of this kind.
    Known(ProbedVolume),
    /// Other data.
    Unknown,
}

/// A superblock's kind and the names in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbedVolume {
    pub(super) kind: VolumeKind,
    /// The UUID as in `UUID=` of fstab(5), in lower case; empty if it is not known.
    pub(super) uuid: String,
    /// `LABEL=` in fstab(5); may be empty.
    pub(super) label: Vec<u8>,
}

impl ProbedContent {
    pub(super) fn is_known(&self) -> bool {
        matches!(self, ProbedContent::Known(_))
    }
}

/// The description of a superblock: its offset and the fields in it.
struct SuperblockFormat {
    kind: VolumeKind,
    /// The offset of the magic bytes from the beginning of the partition.
    at: usize,
    magic: &'static [u8],
    /// The offset of the 16 bytes of the UUID.
    uuid: Option<usize>,
    /// The offset of the label and its longest length.
    label: Option<(usize, usize)>,
}

const fn plain(kind: VolumeKind, at: usize, magic: &'static [u8]) -> SuperblockFormat {
    SuperblockFormat { kind, at, magic, uuid: None, label: None }
}

const fn named(
    kind: VolumeKind,
    magic: (usize, &'static [u8]),
    uuid: usize,
    label: Option<(usize, usize)>,
) -> SuperblockFormat {
    SuperblockFormat { kind, at: magic.0, magic: magic.1, uuid: Some(uuid), label }
}

/// Superblocks that a new ext4 or FAT file system overwrites: if one is found, the partition contains nothing else.
const STRONG: [SuperblockFormat; 14] = [
    // fs/xfs/libxfs/xfs_format.h: struct xfs_dsb.
    named(VolumeKind::Xfs, (0, b"XFSB"), 32, Some((108, 12))),
    // LUKS2 On-Disk Format Specification: both versions begin alike; the UUID is a string, which is read separately.
    plain(VolumeKind::Luks, 0, b"LUKS\xba\xbe"),
    // LVM2, lib/format_text/layout.h: struct label_header, in one of the first four sectors.
    plain(VolumeKind::Lvm, 0, b"LABELONE"),
    plain(VolumeKind::Lvm, 512, b"LABELONE"),
    plain(VolumeKind::Lvm, 1024, b"LABELONE"),
    plain(VolumeKind::Lvm, 1536, b"LABELONE"),
    // include/uapi/linux/raid/md_p.h: MD_SB_MAGIC, superblocks of version 1.1 and 1.2.
    plain(VolumeKind::Raid, 0, b"\xfc\x4e\x2b\xa9"),
    plain(VolumeKind::Raid, 4096, b"\xfc\x4e\x2b\xa9"),
    // veritysetup(8), lib/verity/verity.c: struct verity_sb.
    plain(VolumeKind::Verity, 0, b"verity\0\0"),
    // fs/squashfs/squashfs_fs.h: SQUASHFS_MAGIC.
    plain(VolumeKind::Squashfs, 0, b"hsqs"),
    // fs/ntfs3/ntfs.h and the exFAT specification, section 3.1: the name in the boot sector.
    plain(VolumeKind::Ntfs, 3, b"NTFS    "),
    plain(VolumeKind::Exfat, 3, b"EXFAT   "),
    // fs/erofs/erofs_fs.h: struct erofs_super_block at 1024.
    named(VolumeKind::Erofs, (1024, b"\xe2\xe1\xf5\xe0"), 1024 + 48, Some((1024 + 64, 16))),
    // include/linux/f2fs_fs.h: struct f2fs_super_block at 1024. Its label is UTF-16, which is read separately.
    named(VolumeKind::F2fs, (1024, b"\x10\x20\xf5\xf2"), 1024 + 108, None),
];

/// Superblocks that may be left over from earlier content: an ext4 or FAT file system takes precedence over them.
const WEAK: [SuperblockFormat; 9] = [
    // Btrfs on-disk format, "Superblock", at 64 KiB.
    named(VolumeKind::Btrfs, (0x1_0040, b"_BHRfS_M"), 0x1_0020, Some((0x1_012b, 256))),
    // include/linux/swap.h: union swap_header, at the end of a page of any size.
    named(VolumeKind::Swap, (4096 - 10, b"SWAPSPACE2"), 1036, Some((1052, 16))),
    named(VolumeKind::Swap, (8192 - 10, b"SWAPSPACE2"), 1036, Some((1052, 16))),
    named(VolumeKind::Swap, (16_384 - 10, b"SWAPSPACE2"), 1036, Some((1052, 16))),
    named(VolumeKind::Swap, (65_536 - 10, b"SWAPSPACE2"), 1036, Some((1052, 16))),
    // kernel/power/swap.c: HIBERNATE_SIG takes the place of the signature.
    plain(VolumeKind::Swap, 4096 - 10, b"S1SUSPEND"),
    // ECMA-119, 8.1: a volume descriptor in sector 16.
    plain(VolumeKind::Iso9660, 32_769, b"CD001"),
    // fs/bcachefs/bcachefs_format.h: struct bch_sb in sector 8, BCHFS_MAGIC and the older BCACHE_MAGIC. fstab has the
    // external UUID.
    named(
        VolumeKind::Bcachefs,
        (4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
        4152,
        Some((4168, 32)),
    ),
    named(
        VolumeKind::Bcachefs,
        (4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
        4152,
        Some((4168, 32)),
    ),
];

/// Recognizes the content of a partition. An ext4 or FAT file system is not recognized here, and takes precedence over kinds
/// for which [`is_strong`] is false.
///
/// # Errors
/// When the disk cannot be read.
pub(super) fn probe(disk: &Chain, partition: &Partition) -> Result<ProbedContent, ChainError> {
    let length = partition.length.min(HEAD);
    let mut head = vec![0; usize::try_from(length).unwrap_or(0)];
    disk.read_at(partition.start, &mut head)?;
    if has_raid_at_end(disk, partition)? {
        return Ok(ProbedContent::Known(ProbedVolume::unnamed(VolumeKind::Raid)));
    }
    let ext4 = head.get(1024..).and_then(RawSuperblock::find);
    let found = STRONG.iter().chain(&WEAK).find(|superblock| superblock.is_in(&head));
    Ok(ProbedContent::Known(match (ext4, found) {
        (Some(ext4), _) if ext4.is_external_journal() => ProbedVolume::unnamed(VolumeKind::ExternalJournal),
        (_, Some(superblock)) => superblock.read(&head),
        (Some(ext4), None) => ProbedVolume {
            kind: VolumeKind::Ext4,
            uuid: uuid(ext4.s_uuid),
            label: text(&ext4.s_volume_name).into_bytes(),
        },
        _ if has_uberblock(&head) => ProbedVolume::unnamed(VolumeKind::Zfs),
        _ if partition.kind == PartitionKind::WholeDisk && has_gpt(&head) => {
            ProbedVolume::unnamed(VolumeKind::DamagedTable)
        }
        _ if is_zero(&head) => return Ok(ProbedContent::Empty),
        _ => return Ok(ProbedContent::Unknown),
    }))
}

/// Returns whether a superblock of this kind is overwritten when an ext4 or FAT file system is created.
pub(super) fn is_strong(kind: VolumeKind) -> bool {
    kind == VolumeKind::ExternalJournal || STRONG.iter().any(|superblock| superblock.kind == kind)
}

impl SuperblockFormat {
    fn is_in(&self, head: &[u8]) -> bool {
        head.get(self.at..).is_some_and(|bytes| bytes.starts_with(self.magic))
    }

    fn read(&self, head: &[u8]) -> ProbedVolume {
        let uuid = match self.kind {
            VolumeKind::Luks => head.get(168..208).map(text),
            _ => self.uuid.and_then(|at| head.get(at..)?.first_chunk().copied()).map(uuid),
        };
        let label = match self.kind {
            VolumeKind::F2fs => struct_at::<[U16; 512]>(head, 1024 + 124).map(|units| utf16(units)),
            // Only LUKS2 has a label; in LUKS1 the name of the cipher begins at byte 8 and fills the place with zeroes.
            VolumeKind::Luks if head.get(6..8) == Some(&[0, 2]) => head.get(24..72).map(text),
            _ => self.label.and_then(|(at, length)| head.get(at..at + length)).map(text),
        };
        ProbedVolume { kind: self.kind, uuid: uuid.unwrap_or_default(), label: label.unwrap_or_default().into_bytes() }
    }
}

impl ProbedVolume {
    /// Creates a volume whose UUID and label are not known.
    pub(super) fn unnamed(kind: VolumeKind) -> Self {
        Self { kind, uuid: String::new(), label: Vec::new() }
    }
}

/// Returns the string in a field that is padded with zeroes.
fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(until_zero(field)).into_owned()
}

/// Returns whether the ring of uberblocks in the first label contains an uberblock (ZFS on-disk specification, 1.3;
/// `UBERBLOCK_MAGIC`), in either byte order.
fn has_uberblock(head: &[u8]) -> bool {
    const MAGIC: u64 = 0x00ba_b10c;
    let ring = (128 << 10..256 << 10).step_by(1024);
    let mut magics = ring.filter_map(|at| struct_at::<U64>(head, at)).map(|magic| magic.get());
    magics.any(|magic| magic == MAGIC || magic.swap_bytes() == MAGIC)
}

/// Returns whether a software RAID has its superblock at the end: version 1.0 8 to 12 KiB before it (`super_1_load` in
/// drivers/md/md.c), version 0.90 in the last whole 64 KiB (`MD_NEW_SIZE_SECTORS`).
fn has_raid_at_end(disk: &Chain, partition: &Partition) -> Result<bool, ChainError> {
    const MAGIC: u32 = 0xa92b_4efc;
    const RESERVED: u64 = 64 << 10;
    let newer = (partition.length / 512).checked_sub(16).map(|sectors| (sectors & !7) * 512);
    let older = (partition.length / RESERVED).checked_sub(1).map(|count| count * RESERVED);
    for at in [newer, older].into_iter().flatten() {
        let mut bytes = [0; 4];
        disk.read_at(partition.start + at, &mut bytes)?;
        if u32::from_le_bytes(bytes) == MAGIC {
            return Ok(true);
        }
    }
    Ok(false)
}
