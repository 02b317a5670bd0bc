//! A read-only FAT (12, 16 and 32, with long names) over a partition of a [`Chain`]: no mount, no root, no kernel.
//!
//! Source: Microsoft's "FAT32 File System Specification" (fatgen103), each file here naming its sections; where Linux
//! differs, as Linux mounts it without options. The writer of a file system is not trusted: every number is checked before
//! it is used, every chain of clusters is bounded by its possible size, and damage is an error, not a guess.

mod boot;
mod directory;
mod name;

use std::ops::ControlFlow;

use super::chain::{Chain, ChainError};
use super::entry::{Chunk, FileKind, Time};
use crate::error::{Fault, Kind};
use boot::{FatBootSector, Width};

/// The number of the root directory, which has no entry of its own.
pub const ROOT: u64 = 0;
/// The largest directory in bytes ("FAT Directory Structure"): 65536 entries of 32 bytes.
const MAX_DIRECTORY: u64 = 2 << 20;
/// How many bytes of the table are read at once.
const PAGE: u64 = 4096;
const PIECE: u64 = 256 << 10;

/// The error of reading a file system.
#[derive(Debug, thiserror::Error)]
pub enum FatError {
    /// The disk cannot be read.
    #[error(transparent)]
    Read(#[from] ChainError),
    /// There is no valid boot sector.
    #[error("there is no FAT file system here")]
    NotFat,
    /// The file system contradicts itself.
    #[error("the FAT file system is damaged: {0}")]
    Damaged(&'static str),
    /// A file is longer than the caller's limit.
    #[error("a file of the FAT file system is longer than kiln reads")]
    TooMuch,
}

impl Fault for FatError {
    fn kind(&self) -> Kind {
        match self {
            FatError::Read(error) => error.kind(),
            _ => Kind::Output,
        }
    }
}

/// A FAT file system on a disk.
#[derive(Debug)]
pub struct Fat<'c> {
    disk: &'c Chain,
    start: u64,
    boot: FatBootSector,
    label: Vec<u8>,
}

/// A file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FatNode {
    /// The offset of its entry in bytes from the file system's first; [`ROOT`] for the root directory.
    pub number: u64,
    /// The type: a regular file or a directory.
    pub kind: FileKind,
    /// The mode that Linux shows when it mounts without options.
    pub mode: u16,
    /// The size of a file in bytes; 0 for a directory.
    pub size: u64,
    /// The time of the last change of its content, to two seconds, by a clock that counts as UTC.
    pub modified: Time,
    /// The later of `modified` and the time of creation: a copy that keeps the times of its source cannot hide the latter.
    pub changed: Time,
    first: u32,
}

impl<'c> Fat<'c> {
    /// Opens the file system whose first byte is at `start` and that may be up to `length` bytes long.
    ///
    /// # Errors
    /// When there is none, or it contradicts itself.
    pub fn open(disk: &'c Chain, start: u64, length: u64) -> Result<Self, FatError> {
        let available = length.min(disk.virtual_size().saturating_sub(start));
        if available < 512 {
            return Err(FatError::NotFat);
        }
        let mut sector = vec![0; 512];
        disk.read_at(start, &mut sector)?;
        let boot = FatBootSector::parse(&sector, available).ok_or(FatError::NotFat)?;
        let mut fat = Self { disk, start, boot, label: Vec::new() };
        // The label in the root directory takes precedence (blkid(8)). A damaged directory gives no label; reading it
        // reports the error.
        fat.label = fat.root_label().ok().flatten().unwrap_or_else(|| fat.boot.label.clone());
        Ok(fat)
    }

    /// Returns the serial number as blkid(8) writes it: `6B69-6C12`.
    #[must_use]
    pub fn uuid(&self) -> String {
        format!("{:04X}-{:04X}", self.boot.serial >> 16, self.boot.serial & 0xffff)
    }

    /// Returns the volume's label; may be empty.
    #[must_use]
    pub fn label(&self) -> &[u8] {
        &self.label
    }

    /// Returns the disk that contains the file system.
    pub(super) fn disk(&self) -> &'c Chain {
        self.disk
    }

    /// Returns the size of the whole file system in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.boot.size
    }

    /// Reads bytes of the file system.
    fn read_at(&self, at: u64, bytes: &mut [u8]) -> Result<(), FatError> {
        if at.checked_add(bytes.len() as u64).is_none_or(|end| end > self.boot.size) {
            return Err(FatError::Damaged("something lies beyond its end"));
        }
        Ok(self.disk.read_at(self.start + at, bytes)?)
    }

    /// Passes the content of a file to `visit`, piece by piece, until it breaks. Returns whether the end was reached.
    ///
    /// # Errors
    /// When it is damaged or cannot be read.
    pub fn read_chunks(
        &self,
        file: &FatNode,
        visit: &mut dyn FnMut(Chunk<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, FatError> {
        let mut left = if file.kind == FileKind::File { file.size } else { 0 };
        let mut buffer = Vec::new();
        let (runs, _) = self.follow(file.first, left.div_ceil(self.boot.cluster))?;
        if runs.iter().map(|run| run.length).sum::<u64>() < left {
            return Err(FatError::Damaged("a file is longer than its clusters"));
        }
        for run in runs {
            let mut at = run.start;
            let mut here = left.min(run.length);
            left -= here;
            while here > 0 {
                let length = here.min(PIECE);
                buffer.resize(usize::try_from(length).unwrap_or(0), 0);
                self.read_at(at, &mut buffer)?;
                if visit(Chunk::Data(&buffer)).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                at += length;
                here -= length;
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads the whole content of a small file.
    ///
    /// # Errors
    /// When it has more than `limit` bytes, or cannot be read.
    pub fn read(&self, file: &FatNode, limit: u64) -> Result<Vec<u8>, FatError> {
        if file.size > limit {
            return Err(FatError::TooMuch);
        }
        let mut content = Vec::with_capacity(usize::try_from(file.size).unwrap_or(0));
        let _ = self.read_chunks(file, &mut |chunk| {
            if let Chunk::Data(bytes) = chunk {
                content.extend_from_slice(bytes);
            }
            ControlFlow::Continue(())
        })?;
        Ok(content)
    }

    /// Follows a chain up to a number of clusters, so that a cyclic chain ends too. Returns them, adjacent ones joined, and
    /// the number of the cluster after them.
    fn follow(&self, first: u32, count: u64) -> Result<(Vec<ClusterRun>, Option<u32>), FatError> {
        let mut table = AllocationTable { fat: self, page: Vec::new(), at: 0 };
        let mut runs: Vec<ClusterRun> = Vec::new();
        let mut next = Some(first);
        for _ in 0..count {
            let Some(cluster) = next else { break };
            let start = self.boot.place(cluster)?;
            match runs.last_mut() {
                Some(run) if run.start + run.length == start => run.length += self.boot.cluster,
                _ => runs.push(ClusterRun { start, length: self.boot.cluster }),
            }
            next = table.next(cluster)?;
        }
        Ok((runs, next))
    }
}

/// Contiguous clusters: their offset and length in bytes.
struct ClusterRun {
    start: u64,
    length: u64,
}

/// The allocation table ("FAT Data Structure") with one cached page.
struct AllocationTable<'f> {
    fat: &'f Fat<'f>,
    page: Vec<u8>,
    at: u64,
}

impl AllocationTable<'_> {
    /// Returns the next cluster of a chain; `None` after the last one.
    fn next(&mut self, cluster: u32) -> Result<Option<u32>, FatError> {
        let at = u64::from(cluster);
        let (value, last) = match self.fat.boot.width {
            Width::Twelve => {
                let pair = u16::from_le_bytes(self.bytes(at + at / 2)?);
                (u32::from(if cluster.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }), 0xff8)
            }
            Width::Sixteen => (u16::from_le_bytes(self.bytes(at * 2)?).into(), 0xfff8),
            Width::ThirtyTwo => (u32::from_le_bytes(self.bytes(at * 4)?) & 0x0fff_ffff, 0x0fff_fff8),
        };
        // The number of a free or a bad cluster in a chain is out of range, and is refused as such.
        Ok((value < last).then_some(value))
    }

    /// Reads a few bytes of the table through the cached page.
    fn bytes<const N: usize>(&mut self, at: u64) -> Result<[u8; N], FatError> {
        const SHORT: FatError = FatError::Damaged("its table is too short");
        if at < self.at || at + N as u64 > self.at + self.page.len() as u64 {
            self.at = at / PAGE * PAGE;
            // A number of 12 bits may lie across two pages.
            let length = self.fat.boot.table_bytes.checked_sub(self.at).ok_or(SHORT)?.min(PAGE + 2);
            self.page.resize(usize::try_from(length).unwrap_or(0), 0);
            self.fat.read_at(self.fat.boot.table + self.at, &mut self.page)?;
        }
        let start = usize::try_from(at - self.at).unwrap_or(usize::MAX);
        self.page.get(start..).and_then(|rest| rest.first_chunk().copied()).ok_or(SHORT)
    }
}
