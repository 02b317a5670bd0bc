//! Gaps in kiln's view of a disk: files that it lacks, or that may differ from the running guest's.

use std::fmt::{self, Display, Formatter};

use super::partition::Partition;

/// The content of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeKind {
    /// ext2, ext3 or ext4.
    Ext4,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// F2FS.
    F2fs,
    /// A physical volume of LVM2.
    Lvm,
    /// An encrypted container, LUKS1 or LUKS2.
    Luks,
    /// A member of a Linux software RAID.
    Raid,
    /// Swap space or a hibernation image.
    Swap,
    /// Squashfs.
    Squashfs,
    /// EROFS.
    Erofs,
    /// ISO 9660.
    Iso9660,
    /// NTFS.
    Ntfs,
    /// exFAT.
    Exfat,
    /// Bcachefs.
    Bcachefs,
    /// A member of a ZFS pool.
    Zfs,
    /// The hashes of a verified file system, which is on another partition.
    Verity,
    /// The journal of an ext4 file system, which is on another partition.
    ExternalJournal,
    /// A table of partitions that Linux does not use, since it is damaged.
    DamagedTable,
    /// Data that kiln does not recognize.
    Unknown,
}

impl VolumeKind {
    /// Returns whether it may contain file systems that have devices of their own.
    pub(super) fn may_contain_others(self) -> bool {
        use VolumeKind::{Bcachefs, Luks, Lvm, Raid, Unknown, Zfs};
        matches!(self, Lvm | Luks | Raid | Zfs | Bcachefs | Unknown)
    }

    /// Returns whether a guest uses it in another way than by mounting it.
    pub(super) fn is_auxiliary(self) -> bool {
        matches!(self, VolumeKind::Swap | VolumeKind::Verity | VolumeKind::ExternalJournal)
    }
}

impl Display for VolumeKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VolumeKind::Ext4 => "ext4",
            VolumeKind::Fat => "FAT",
            VolumeKind::Xfs => "xfs",
            VolumeKind::Btrfs => "btrfs",
            VolumeKind::F2fs => "f2fs",
            VolumeKind::Lvm => "an LVM physical volume",
            VolumeKind::Luks => "LUKS",
            VolumeKind::Raid => "a RAID member",
            VolumeKind::Swap => "swap",
            VolumeKind::Squashfs => "squashfs",
            VolumeKind::Erofs => "erofs",
            VolumeKind::Iso9660 => "ISO 9660",
            VolumeKind::Ntfs => "NTFS",
            VolumeKind::Exfat => "exFAT",
            VolumeKind::Bcachefs => "bcachefs",
            VolumeKind::Zfs => "a ZFS pool member",
            VolumeKind::Verity => "dm-verity hashes",
            VolumeKind::ExternalJournal => "the journal of an ext4 file system",
            VolumeKind::DamagedTable => "a partition table (GPT) with a wrong checksum",
            VolumeKind::Unknown => "unknown data",
        })
    }
}

/// A partition and its content, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionContent {
    /// The number of the partition as in Linux; 0 for the whole disk.
    pub partition: u32,
    /// The content of the partition.
    pub kind: VolumeKind,
    /// The label of the file system, else of the partition; may be empty.
    pub label: String,
}

impl PartitionContent {
    /// Describes a partition that has a file system with this label.
    pub(super) fn new(partition: &Partition, kind: VolumeKind, label: &[u8]) -> Self {
        let label = String::from_utf8_lossy(label).into_owned();
        let label = if label.is_empty() { partition.label.clone() } else { label };
        Self { partition: partition.number, kind, label }
    }
}

/// Writes `xfs on partition 3 (label "data")`. The label is escaped: a guest has written it.
impl Display for PartitionContent {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.partition {
            0 => write!(f, "{} on the whole disk", self.kind)?,
            number => write!(f, "{} on partition {number}", self.kind)?,
        }
        if self.label.is_empty() { Ok(()) } else { write!(f, " (label {:?})", self.label) }
    }
}

/// The reason why the guest may change a file system when it mounts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UncleanReason {
    /// Its journal is not empty.
    Journal,
    /// It is marked as mounted, and has no journal.
    Mounted,
    /// Files that were deleted while they were open take up space.
    Orphans,
    /// The kernel has found errors in it.
    Errors,
}

impl Display for UncleanReason {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UncleanReason::Journal => "was not unmounted: its journal is not replayed",
            UncleanReason::Mounted => "was not unmounted: it is marked as mounted, and the guest checks it",
            UncleanReason::Orphans => "was not unmounted: the guest deletes its orphaned files",
            UncleanReason::Errors => "is marked as having errors: the guest checks it and may repair it",
        })
    }
}

/// Something that is missing in the view of a disk, or doubtful.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeGap {
    /// The guest mounts a file system that kiln does not read.
    Unreadable {
        /// The partition of the file system.
        volume: PartitionContent,
        /// Its mount point, if known.
        target: Option<Vec<u8>>,
    },
    /// The guest mounts a device that kiln did not find on the disk.
    Unanswered {
        /// The device as the guest names it.
        source: String,
        /// Its mount point.
        target: Vec<u8>,
    },
    /// The guest mounts a file system on a directory that is not there before it boots.
    NoMountPoint {
        /// The partition of the file system.
        volume: PartitionContent,
        /// Its mount point.
        target: Vec<u8>,
    },
    /// The guest may change a file system when it mounts it.
    Unclean {
        /// The partition of the file system.
        volume: PartitionContent,
        /// Its mount point.
        target: Vec<u8>,
        /// Why the guest may change it.
        reason: UncleanReason,
    },
    /// The guest mounts a directory of a file system, not its root.
    Part {
        /// The partition of the file system.
        volume: PartitionContent,
        /// The mount point.
        target: Vec<u8>,
    },
    /// A bind mount or an overlay hides a directory.
    Covered {
        /// The directory that is bound there; `None` for an overlay.
        source: Option<Vec<u8>>,
        /// The directory that is hidden.
        target: Vec<u8>,
    },
    /// The boot entry has an option that changes the tree and that kiln does not apply.
    BootOption {
        /// The option of its command line.
        option: String,
    },
    /// The root is a directory below `/ostree/deploy`.
    Deployment,
    /// The disk does not determine whether the guest mounts a file system.
    Undecided {
        /// The partition of the file system.
        volume: PartitionContent,
        /// Its possible mount point.
        target: Vec<u8>,
        /// Why this is not certain.
        reason: &'static str,
    },
    /// Nothing mounts this file system.
    LeftOver {
        /// The partition of the file system.
        volume: PartitionContent,
    },
}

impl TreeGap {
    /// Returns the partition of a file system that nothing mounts.
    pub(crate) fn partition(&self) -> Option<u32> {
        match self {
            TreeGap::LeftOver { volume } => Some(volume.partition),
            _ => None,
        }
    }

    /// Returns whether files of the running guest may be missing or stale because of this gap.
    #[must_use]
    pub fn hides_files(&self) -> bool {
        !matches!(self, TreeGap::LeftOver { .. })
    }
}

impl Display for TreeGap {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            TreeGap::Unreadable { volume, target: Some(target) } => {
                write!(f, "{} is {volume}, which kiln cannot read", quoted(target))
            }
            TreeGap::Unreadable { volume, target: None } => {
                write!(f, "kiln cannot read {volume}, which the guest may mount")
            }
            TreeGap::Unanswered { source, target } => {
                write!(f, "{} is mounted from {}, which is on no partition", quoted(target), source.escape_debug())
            }
            TreeGap::NoMountPoint { volume, target } => {
                write!(f, "{volume} is mounted on {}, but there is no such directory", quoted(target))
            }
            TreeGap::Unclean { volume, target, reason } => {
                write!(f, "{} is {volume}, which {reason}", quoted(target))
            }
            TreeGap::Part { volume, target } => {
                write!(f, "{} is a directory of {volume}, which kiln does not follow", quoted(target))
            }
            TreeGap::Covered { source: Some(source), target } => {
                write!(f, "{} is bound to {}, and kiln sees what is below that mount", quoted(target), quoted(source))
            }
            TreeGap::Covered { source: None, target } => {
                write!(f, "an overlay is mounted on {}, and kiln sees what is below it", quoted(target))
            }
            TreeGap::BootOption { option } => {
                write!(f, "the boot entry has `{}`, which kiln does not apply to the tree", option.escape_debug())
            }
            TreeGap::Deployment => f.write_str(
                "the root is a deployment of OSTree in /ostree/deploy, and kiln sees the directories that hold it",
            ),
            TreeGap::Undecided { volume, target, reason } => {
                write!(f, "{volume} may be mounted on {}: {reason}", quoted(target))
            }
            TreeGap::LeftOver { volume } => write!(f, "nothing mounts {volume}"),
        }
    }
}

/// Escapes a path so that it is a part of one line.
pub(crate) fn quoted(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}

/// A file system in the tree, and its partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeMount {
    /// The mount point, with links resolved; `/` for the root.
    pub target: Vec<u8>,
    /// The number of the partition as in Linux; 0 for the whole disk.
    pub partition: u32,
    /// The first byte of the partition on the disk.
    pub start: u64,
    /// The length of the partition in bytes.
    pub length: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_one_line_whatever_the_guest_has_named_things() {
        let volume = PartitionContent { partition: 3, kind: VolumeKind::Xfs, label: "a\n\u{1b}[2J\"".into() };
        let target = b"/srv\n::error::x".to_vec();
        let gaps = [
            TreeGap::Unreadable { volume: volume.clone(), target: Some(target.clone()) },
            TreeGap::Unreadable { volume: volume.clone(), target: None },
            TreeGap::Unanswered { source: "LABEL=\n".into(), target: target.clone() },
            TreeGap::NoMountPoint { volume: volume.clone(), target: target.clone() },
            TreeGap::Unclean { volume: volume.clone(), target: target.clone(), reason: UncleanReason::Errors },
            TreeGap::Part { volume: volume.clone(), target: target.clone() },
            TreeGap::Covered { source: Some(b"/a\nb".to_vec()), target: target.clone() },
            TreeGap::Covered { source: None, target: target.clone() },
            TreeGap::BootOption { option: "ostree=\n".into() },
            TreeGap::Deployment,
            TreeGap::Undecided { volume: volume.clone(), target, reason: "why" },
            TreeGap::LeftOver { volume },
        ];
        for gap in &gaps {
            assert!(!gap.to_string().contains(|c: char| c.is_control()), "{gap}");
            assert_eq!(gap.hides_files(), !gap.to_string().starts_with("nothing mounts"), "{gap}");
        }
    }
}
