//! A partition of a disk, and the purpose that its type implies.

use super::bytes::uuid;

/// The type of a partition in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionKind {
    /// The type GUID, in the byte order of the disk.
    Gpt([u8; 16]),
    /// The type byte.
    Mbr(u8),
    /// The disk has no partition table.
    WholeDisk,
}

/// The purpose of a partition by its type, if that affects what is mounted.
///
/// Source: The Discoverable Partitions Specification (UAPI group).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PartitionRole {
    Root,
    Usr,
    Home,
    Srv,
    Var,
    VarTmp,
    ExtendedBoot,
    Esp,
    /// The image of GRUB for BIOS, which is no file system.
    BiosBoot,
    Other,
}

/// The types that have a role; those of root and /usr are for x86-64, x86, arm64, arm and riscv64.
const ROLES: [(&str, PartitionRole); 18] = [
    ("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", PartitionRole::Root),
    ("44479540-f297-41b2-9af7-d131d5f0458a", PartitionRole::Root),
    ("b921b045-1df0-41c3-af44-4c6f280d3fae", PartitionRole::Root),
    ("69dad710-2ce4-4e3c-b16c-21a1d49abed3", PartitionRole::Root),
    ("72ec70a6-cf74-40e6-bd49-4bda08e8f224", PartitionRole::Root),
    ("8484680c-9521-48c6-9c11-b0720656f69e", PartitionRole::Usr),
    ("75250d76-8cc6-458e-bd66-bd47cc81a812", PartitionRole::Usr),
    ("b0e01050-ee5f-4390-949a-9101b17104e9", PartitionRole::Usr),
    ("7d0359a3-02b3-4f0a-865c-654403e70625", PartitionRole::Usr),
    ("beaec34b-8442-439b-a40b-984381ed097d", PartitionRole::Usr),
    ("933ac7e1-2eb4-4f13-b844-0e14e2aef915", PartitionRole::Home),
    ("3b8f8425-20e0-4f3b-907f-1a25a76f98e8", PartitionRole::Srv),
    ("4d21b016-b534-45c2-a9fb-5c16e091fd2d", PartitionRole::Var),
    ("7ec6f557-3bc5-4aca-b293-16ef5df639d1", PartitionRole::VarTmp),
    ("bc13c2ff-59e6-4262-a352-b275fd6f7172", PartitionRole::ExtendedBoot),
    ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", PartitionRole::Esp),
    ("21686148-6449-6e6f-744e-656564454649", PartitionRole::BiosBoot),
    ("9e1a2d38-c612-4316-aa26-8b49521e5a8b", PartitionRole::BiosBoot),
];
/// The attribute of a GPT partition that must not be mounted automatically (Discoverable Partitions Specification).
const NO_AUTO: u64 = 1 << 63;

/// A partition, which is always within its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The number as in Linux, from 1; 0 for the whole disk.
    pub number: u32,
    /// The type.
    pub kind: PartitionKind,
    /// Its first byte on the disk.
    pub start: u64,
    /// The length in bytes; never 0.
    pub length: u64,
    /// `PARTUUID=` in fstab(5), in lower case; empty for the whole disk.
    pub uuid: String,
    /// `PARTLABEL=` in fstab(5); may be empty.
    pub label: String,
    /// Attributes of a GPT entry (5.3.3), else 0.
    pub attributes: u64,
}

impl Partition {
    /// Returns the purpose that the type of the partition implies.
    pub(super) fn role(&self) -> PartitionRole {
        match self.kind {
            PartitionKind::Gpt(kind) => {
                let kind = guid(kind);
                ROLES.iter().find(|(name, _)| *name == kind).map_or(PartitionRole::Other, |(_, role)| *role)
            }
            // UEFI specification, 5.2.2.
            PartitionKind::Mbr(0xef) => PartitionRole::Esp,
            PartitionKind::Mbr(_) | PartitionKind::WholeDisk => PartitionRole::Other,
        }
    }

    /// Returns whether the partition may be mounted because of its type alone.
    pub(super) fn mounts_itself(&self) -> bool {
        self.attributes & NO_AUTO == 0
    }
}

/// Formats a GUID: its first three fields are little-endian (appendix A).
pub(super) fn guid(mut bytes: [u8; 16]) -> String {
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    uuid(bytes)
}
