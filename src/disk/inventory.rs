//! Lists the content of each partition of a disk, and the names by which a guest may mount it.

use std::mem;

use super::chain::Chain;
use super::gap::{PartitionContent, VolumeKind};
use super::partition::{Partition, PartitionRole};
use super::partition_table::partitions;
use super::probe::{ProbedContent, ProbedVolume, is_strong, probe};
use super::tree::{Tree, TreeError};
use super::volume::{Volume, VolumeError};
use crate::wire::device_name::DeviceName;

/// The most partitions with data that are read: as many as a GPT has room for by default.
const MAX_VOLUMES: usize = 128;

/// A partition that is not empty.
#[derive(Debug)]
pub(super) struct DiskVolume<'c> {
    pub(super) partition: Partition,
    pub(super) kind: VolumeKind,
    /// The UUID as in `UUID=` of fstab(5); empty if it is not known.
    pub(super) uuid: String,
    /// The label as in `LABEL=` of fstab(5); may be empty.
    pub(super) label: Vec<u8>,
    pub(super) access: VolumeAccess<'c>,
}

/// The state of a file system: whether kiln can read it.
#[derive(Debug)]
pub(super) enum VolumeAccess<'c> {
    /// kiln reads it: its files, without what is mounted on them.
    Readable(Tree<'c>),
    /// kiln knows this file system, but cannot read it: it is damaged, or has unknown features.
    Refused(VolumeError),
    /// kiln does not read file systems of this kind.
    Foreign,
    /// It is already a part of the view, or a gap in it.
    Used,
}

impl<'c> DiskVolume<'c> {
    /// Returns whether a guest's name for a device refers to this volume. Case is ignored in a UUID (libmount).
    pub(super) fn answers(&self, name: &DeviceName) -> bool {
        match name {
            DeviceName::Uuid(uuid) => !uuid.is_empty() && uuid.eq_ignore_ascii_case(&self.uuid),
            DeviceName::Label(label) => !label.is_empty() && *label == String::from_utf8_lossy(&self.label),
            DeviceName::PartUuid(uuid) => !uuid.is_empty() && uuid.eq_ignore_ascii_case(&self.partition.uuid),
            DeviceName::PartLabel(label) => !label.is_empty() && *label == self.partition.label,
            DeviceName::Partition(number) => *number == self.partition.number,
            DeviceName::Device(_) => false,
        }
    }

    /// Returns the files, if kiln can read them and they are not in use.
    pub(super) fn tree(&self) -> Option<&Tree<'c>> {
        match &self.access {
            VolumeAccess::Readable(tree) => Some(tree),
            VolumeAccess::Refused(_) | VolumeAccess::Foreign | VolumeAccess::Used => None,
        }
    }

    /// Returns whether it is already a part of the view, or a gap in it.
    pub(super) fn is_used(&self) -> bool {
        matches!(self.access, VolumeAccess::Used)
    }

    /// Takes the files, if any, and marks the volume as used.
    pub(super) fn take(&mut self) -> VolumeAccess<'c> {
        mem::replace(&mut self.access, VolumeAccess::Used)
    }

    /// Describes the volume for messages.
    pub(super) fn describe(&self) -> PartitionContent {
        PartitionContent::new(&self.partition, self.kind, &self.label)
    }

    /// Returns whether a guest may mount it, or a file system inside it.
    pub(super) fn is_mountable(&self) -> bool {
        !self.kind.is_auxiliary() && self.partition.role() != PartitionRole::BiosBoot
    }

    /// Returns whether it may contain other file systems, under names that are not visible here.
    pub(super) fn may_contain_others(&self) -> bool {
        self.is_mountable() && self.kind.may_contain_others()
    }
}

/// Lists the volumes on the partitions of a disk, in the order of its table.
///
/// # Errors
/// When the disk cannot be read, or has more partitions than kiln reads.
pub(super) fn take_inventory(disk: &Chain) -> Result<Vec<DiskVolume<'_>>, TreeError> {
    let mut found = Vec::new();
    for partition in partitions(disk)? {
        found.extend(identify(disk, partition)?);
        if found.len() > MAX_VOLUMES {
            return Err(TreeError::TooMuch("more partitions"));
        }
    }
    Ok(found)
}

/// Returns whether a device that is on no partition may be inside a volume.
pub(super) fn may_be_hidden(volumes: &[DiskVolume<'_>]) -> bool {
    volumes.iter().any(DiskVolume::may_contain_others)
}

fn identify(disk: &Chain, partition: Partition) -> Result<Option<DiskVolume<'_>>, TreeError> {
    let probed = probe(disk, &partition)?;
    if let ProbedContent::Known(volume) = &probed
        && is_strong(volume.kind)
    {
        return Ok(Some(foreign(partition, volume.clone())));
    }
    Ok(match Volume::open(disk, &partition) {
        Ok(Some(volume)) => Some(readable(partition, volume)),
        Ok(None) => match probed {
            ProbedContent::Known(volume) => Some(foreign(partition, volume)),
            ProbedContent::Unknown => Some(foreign(partition, ProbedVolume::unnamed(VolumeKind::Unknown))),
            ProbedContent::Empty => None,
        },
        Err(error) => Some(refused(partition, probed, error)),
    })
}

fn readable(partition: Partition, volume: Volume<'_>) -> DiskVolume<'_> {
    DiskVolume {
        kind: volume.kind(),
        uuid: volume.uuid(),
        label: volume.label().to_vec(),
        access: VolumeAccess::Readable(Tree::new(volume, &partition)),
        partition,
    }
}

fn foreign<'c>(partition: Partition, ProbedVolume { kind, uuid, label }: ProbedVolume) -> DiskVolume<'c> {
    DiskVolume { partition, kind, uuid, label, access: VolumeAccess::Foreign }
}

fn refused<'c>(partition: Partition, probed: ProbedContent, error: VolumeError) -> DiskVolume<'c> {
    let kind = if matches!(error, VolumeError::Fat(_)) { VolumeKind::Fat } else { VolumeKind::Ext4 };
    let names = match probed {
        ProbedContent::Known(names) => names,
        ProbedContent::Empty | ProbedContent::Unknown => ProbedVolume::unnamed(kind),
    };
    DiskVolume { access: VolumeAccess::Refused(error), ..foreign(partition, ProbedVolume { kind, ..names }) }
}
