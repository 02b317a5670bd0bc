//! A read-only ext4 (and ext3, ext2) over a partition of a [`Chain`]: no mount, no root, no kernel.
//!
//! Source: the kernel's `Documentation/filesystems/ext4/`, each file here naming its chapters. The file system was written
//! by an untrusted guest: every number is checked before it is used, every loop is bounded, and damage is an error, not a
//! guess. The journal is not replayed; [`Ext4::unclean_reason`] returns whether it would have to be.

mod directory;
mod inode;
mod journal;
mod mapping;
mod superblock;
mod xattr;

use zerocopy::little_endian::U32;

use superblock::Ext4Superblock;
pub(super) use superblock::RawSuperblock;
pub(crate) use superblock::are_features_read;

pub use directory::DirectoryEntry;
pub use inode::Inode;

use super::bytes::{struct_at, uuid};
use super::chain::{Chain, ChainError};
use super::gap::UncleanReason;
use crate::error::Fault;

/// The inode of the root directory ("Special inodes").
pub const ROOT: u32 = 2;

/// The error of reading a file system.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// The disk cannot be read.
    #[error(transparent)]
    Read(#[from] ChainError),
    /// There is no superblock.
    #[error("there is no ext4 file system here")]
    NotExt4,
    /// The file system uses features that change how data is read and that kiln does not know.
    #[error("the file system uses {}, which kiln does not read", .0.join(", "))]
    Features(Vec<String>),
    /// The file system contradicts itself.
    #[error("the file system is damaged: {what} (inode {inode})")]
    Damaged {
        /// A description of the damage.
        what: &'static str,
        /// The damaged inode; 0 for the whole file system.
        inode: u32,
    },
    /// Something is larger than kiln is willing to hold in memory.
    #[error("inode {inode}: {what} is more than kiln reads")]
    TooMuch {
        /// A description of what is too large.
        what: &'static str,
        /// The inode that it belongs to.
        inode: u32,
    },
}

impl Fault for Ext4Error {
    fn kind(&self) -> crate::error::Kind {
        match self {
            Ext4Error::Read(error) => error.kind(),
            _ => crate::error::Kind::Output,
        }
    }
}

fn damaged(inode: u32, what: &'static str) -> Ext4Error {
    Ext4Error::Damaged { what, inode }
}

/// Joins the halves of a number, which are in different places of a structure.
fn join(high: impl Into<u64>, low: U32) -> u64 {
    high.into() << 32 | u64::from(low)
}

/// An ext4 file system on a disk.
#[derive(Debug)]
pub struct Ext4<'c> {
    disk: &'c Chain,
    start: u64,
    superblock: Ext4Superblock,
}

impl<'c> Ext4<'c> {
    /// Opens the file system whose first byte is at `start` and that may be up to `length` bytes long.
    ///
    /// # Errors
    /// When there is none, or it uses features that kiln does not know, or it contradicts itself.
    pub fn open(disk: &'c Chain, start: u64, length: u64) -> Result<Self, Ext4Error> {
        let available = length.min(disk.virtual_size().saturating_sub(start));
        if available < 2048 {
            return Err(Ext4Error::NotExt4);
        }
        let mut bytes = vec![0; 1024];
        disk.read_at(start + 1024, &mut bytes)?;
        let superblock = Ext4Superblock::parse(&bytes, available)?;
        Ok(Self { disk, start, superblock })
    }

    /// Returns why the guest may change the file system when it mounts it; `None` if it was unmounted without errors.
    #[must_use]
    pub fn unclean_reason(&self) -> Option<UncleanReason> {
        self.superblock.unclean_reason
    }

    /// Returns the UUID as in `UUID=` of fstab(5): lower case, with dashes.
    #[must_use]
    pub fn uuid(&self) -> String {
        uuid(self.superblock.uuid)
    }

    /// Returns the label as in `LABEL=` of fstab(5); may be empty.
    #[must_use]
    pub fn label(&self) -> &[u8] {
        &self.superblock.label
    }

    /// Returns the disk that contains the file system.
    pub(super) fn disk(&self) -> &'c Chain {
        self.disk
    }

    /// Returns the size of the whole file system in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.superblock.blocks * self.block_size()
    }

    fn block_size(&self) -> u64 {
        1 << self.superblock.block_bits
    }

    /// Reads bytes of the file system.
    fn read_at(&self, at: u64, bytes: &mut [u8], inode: u32) -> Result<(), Ext4Error> {
        if at.checked_add(bytes.len() as u64).is_none_or(|end| end > self.size()) {
            return Err(damaged(inode, "something lies beyond the end"));
        }
        Ok(self.disk.read_at(self.start + at, bytes)?)
    }

    /// Reads one block. Block 0 holds the boot sector, so a reference to it is an error.
    fn read_block(&self, block: u64, inode: u32) -> Result<Vec<u8>, Ext4Error> {
        if block == 0 || block >= self.superblock.blocks {
            return Err(damaged(inode, "a block number is out of range"));
        }
        let mut bytes = vec![0; 1 << self.superblock.block_bits];
        self.read_at(block << self.superblock.block_bits, &mut bytes, inode)?;
        Ok(bytes)
    }

    /// Reads an inode ("Index Nodes", "Block Group Descriptors").
    ///
    /// # Errors
    /// When there is no inode of this number, or it cannot be read.
    pub fn inode(&self, number: u32) -> Result<Inode, Ext4Error> {
        let superblock = &self.superblock;
        if number == 0 || number > superblock.inodes {
            return Err(damaged(number, "there is no such inode"));
        }
        let table = self.inode_table((number - 1) / superblock.inodes_per_group, number)?;
        let index = (number - 1) % superblock.inodes_per_group;
        let mut bytes = vec![0; usize::from(superblock.inode_size)];
        let inside = u64::from(index) * u64::from(superblock.inode_size);
        self.read_at((table << superblock.block_bits) + inside, &mut bytes, number)?;
        Inode::parse(number, &bytes)
    }

    /// Returns the first block of a group's inode table.
    fn inode_table(&self, group: u32, inode: u32) -> Result<u64, Ext4Error> {
        let superblock = &self.superblock;
        let mut descriptor = vec![0; usize::from(superblock.descriptor_size)];
        // The descriptors are in the block after the superblock's, which is block 1 if blocks are 1 KiB and block 0
        // otherwise. The superblock's own `s_first_data_block` is different if bigalloc is combined with blocks of 1 KiB.
        let at = ((1024 >> superblock.block_bits) + 1) << superblock.block_bits;
        let at = at + u64::from(group) * u64::from(superblock.descriptor_size);
        self.read_at(at, &mut descriptor, inode)?;
        // `bg_inode_table_lo`, and `bg_inode_table_hi`, which short descriptors lack.
        let high = struct_at::<U32>(&descriptor, 0x28).copied().unwrap_or_default();
        let block = struct_at::<U32>(&descriptor, 8).map_or(0, |low| join(high, *low));
        if block == 0 || block >= superblock.blocks {
            return Err(damaged(inode, "its inode table is out of range"));
        }
        Ok(block)
    }
}
