//! A common interface to the file systems that kiln reads, for [`super::tree`].

use std::ops::ControlFlow;

use super::chain::Chain;
use super::entry::{Chunk, DiskEntry, FileKind, Time};
use super::ext4::{self, Ext4, Ext4Error};
use super::fat::{self, Fat, FatError};
use super::gap::{UncleanReason, VolumeKind};
use super::known_files::FileLayout;
use super::partition::Partition;
use crate::error::{self, Fault};

/// The error of reading a file system.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The error of an ext4 file system.
    #[error(transparent)]
    Ext4(#[from] Ext4Error),
    /// The error of a FAT file system.
    #[error(transparent)]
    Fat(#[from] FatError),
}

impl Fault for VolumeError {
    fn kind(&self) -> error::Kind {
        match self {
            VolumeError::Ext4(error) => error.kind(),
            VolumeError::Fat(error) => error.kind(),
        }
    }
}

/// A file system on a partition.
#[derive(Debug)]
pub(super) enum Volume<'c> {
    Ext4(Ext4<'c>),
    Fat(Fat<'c>),
}

/// A file or directory, and its file system.
#[derive(Debug)]
pub(super) enum VolumeNode<'v> {
    Ext4(&'v Ext4<'v>, ext4::Inode),
    Fat(&'v Fat<'v>, fat::FatNode),
}

impl<'c> Volume<'c> {
    /// Opens the file system of a partition; `None` if it is not one that kiln reads.
    pub(super) fn open(disk: &'c Chain, partition: &Partition) -> Result<Option<Self>, VolumeError> {
        match Ext4::open(disk, partition.start, partition.length) {
            Ok(ext4) => return Ok(Some(Volume::Ext4(ext4))),
            Err(Ext4Error::NotExt4) => {}
            Err(error) => return Err(error.into()),
        }
        match Fat::open(disk, partition.start, partition.length) {
            Ok(fat) => Ok(Some(Volume::Fat(fat))),
            Err(FatError::NotFat) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the UUID as in `UUID=` of fstab(5), written as by blkid(8).
    pub(super) fn uuid(&self) -> String {
        match self {
            Volume::Ext4(ext4) => ext4.uuid(),
            Volume::Fat(fat) => fat.uuid(),
        }
    }

    /// Returns the label as in `LABEL=` of fstab(5); may be empty.
    pub(super) fn label(&self) -> &[u8] {
        match self {
            Volume::Ext4(ext4) => ext4.label(),
            Volume::Fat(fat) => fat.label(),
        }
    }

    /// Returns the kind of the file system.
    pub(super) fn kind(&self) -> VolumeKind {
        match self {
            Volume::Ext4(_) => VolumeKind::Ext4,
            Volume::Fat(_) => VolumeKind::Fat,
        }
    }

    /// Returns why the guest may change the file system when it mounts it. FAT has a bit for this, but Linux does not clear
    /// it if it was already set.
    pub(super) fn unclean_reason(&self) -> Option<UncleanReason> {
        match self {
            Volume::Ext4(ext4) => ext4.unclean_reason(),
            Volume::Fat(_) => None,
        }
    }

    /// Returns the disk that contains the file system.
    pub(super) fn disk(&self) -> &'c Chain {
        match self {
            Volume::Ext4(ext4) => ext4.disk(),
            Volume::Fat(fat) => fat.disk(),
        }
    }

    /// Returns the size of the whole file system in bytes.
    pub(super) fn size(&self) -> u64 {
        match self {
            Volume::Ext4(ext4) => ext4.size(),
            Volume::Fat(fat) => fat.size(),
        }
    }

    /// Returns the number of the root directory.
    pub(super) fn root(&self) -> u64 {
        match self {
            Volume::Ext4(_) => ext4::ROOT.into(),
            Volume::Fat(_) => fat::ROOT,
        }
    }

    /// Returns the file or directory with this number.
    pub(super) fn node(&self, number: u64) -> Result<VolumeNode<'_>, VolumeError> {
        Ok(match self {
            Volume::Ext4(ext4) => VolumeNode::Ext4(ext4, ext4.inode(u32::try_from(number).unwrap_or(0))?),
            Volume::Fat(fat) => VolumeNode::Fat(fat, fat.node(number)?),
        })
    }
}

impl VolumeNode<'_> {
    /// Returns its number in its file system.
    pub(super) fn number(&self) -> u64 {
        match self {
            VolumeNode::Ext4(_, inode) => inode.number.into(),
            VolumeNode::Fat(_, node) => node.number,
        }
    }

    pub(super) fn kind(&self) -> FileKind {
        match self {
            VolumeNode::Ext4(_, inode) => inode.kind,
            VolumeNode::Fat(_, node) => node.kind,
        }
    }

    /// Returns the size of its content in bytes.
    pub(super) fn size(&self) -> u64 {
        match self {
            VolumeNode::Ext4(_, inode) => inode.size,
            VolumeNode::Fat(_, node) => node.size,
        }
    }

    /// Returns whether it may have several names.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, VolumeNode::Ext4(_, inode) if inode.links > 1)
    }

    /// Returns the names in a directory with their numbers, sorted by their bytes.
    pub(super) fn names(&self) -> Result<Vec<(Vec<u8>, u64)>, VolumeError> {
        Ok(match self {
            VolumeNode::Ext4(ext4, inode) => {
                let entries = ext4.read_directory(inode)?.into_iter();
                entries.map(|entry| (entry.name, entry.inode.into())).collect()
            }
            VolumeNode::Fat(fat, node) => fat.read_directory(node)?,
        })
    }

    /// Passes the content of a file to `visit`, piece by piece, until it breaks. Returns whether the end was reached.
    pub(super) fn read_chunks(
        &self,
        visit: &mut dyn FnMut(Chunk<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VolumeError> {
        Ok(match self {
            VolumeNode::Ext4(ext4, inode) => ext4.read_chunks(inode, visit)?,
            VolumeNode::Fat(fat, node) => fat.read_chunks(node, visit)?,
        })
    }

    /// Returns the places of a file's content on the disk, where they identify the content. The clusters of FAT are read
    /// as they are found.
    pub(super) fn layout(&self) -> Result<Option<FileLayout>, VolumeError> {
        Ok(match self {
            VolumeNode::Ext4(ext4, inode) => ext4.layout(inode)?,
            VolumeNode::Fat(..) => None,
        })
    }

    /// Reads the whole content of a file of at most `limit` bytes.
    pub(super) fn read(&self, limit: u64) -> Result<Vec<u8>, VolumeError> {
        Ok(match self {
            VolumeNode::Ext4(ext4, inode) => ext4.read(inode, limit)?,
            VolumeNode::Fat(fat, node) => fat.read(node, limit)?,
        })
    }

    /// Returns the target of a symbolic link; `None` for anything else.
    pub(super) fn link_target(&self) -> Result<Option<Vec<u8>>, VolumeError> {
        Ok(match self {
            VolumeNode::Ext4(ext4, inode) if inode.kind == FileKind::Link => Some(ext4.link_target(inode)?),
            _ => None,
        })
    }

    /// Creates the entry of a file, without the digest of its content, which takes time. `volume` identifies the file
    /// system.
    pub(super) fn entry(&self, path: Vec<u8>, volume: usize) -> Result<DiskEntry, VolumeError> {
        let kind = self.kind();
        let plain = DiskEntry {
            path,
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            size: if kind == FileKind::File { self.size() } else { 0 },
            digest: None,
            target: self.link_target()?,
            device: None,
            xattrs: Vec::new(),
            modified: Time { seconds: 0, nanoseconds: 0 },
            changed: Time { seconds: 0, nanoseconds: 0 },
            file: (volume as u64, self.number()),
        };
        Ok(match self {
            VolumeNode::Ext4(ext4, inode) => DiskEntry {
                mode: inode.mode,
                uid: inode.uid,
                gid: inode.gid,
                device: inode.device(),
                xattrs: ext4.xattrs(inode)?,
                modified: inode.modified,
                changed: inode.changed,
                ..plain
            },
            VolumeNode::Fat(_, node) => {
                DiskEntry { mode: node.mode, modified: node.modified, changed: node.changed, ..plain }
            }
        })
    }
}
