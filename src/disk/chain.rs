//! A disk as the guest sees it: a chain of opened image files, read only and in this process.
//!
//! The caller gives the files, top first; the names in their headers are never used. If the top has no data at an offset,
//! the next file is read, and so on; beyond the end of a shorter file, and below the last one, everything is zero.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::error::{Failure, Fault, Kind};
use crate::specfile::DiskFormat;

use super::byte_ranges::ByteRanges;
use super::source::{DataLocation, DataRun, DiskSource, LayerError};
use super::{qcow2, vdi, vhd, vhdx, vmdk};

/// The memory for the L2 tables of a whole chain, in bytes. Each file of 64 KiB clusters needs 64 KiB for every 512 MiB.
const TABLE_MEMORY: u64 = 12 << 20;

/// One file of a chain.
#[derive(Debug)]
pub struct ChainFile {
    /// The file, opened for reading.
    pub file: File,
    /// The format, as stated by the caller; it is never guessed.
    pub format: DiskFormat,
}

/// The disk as the guest sees it. Several threads can read it at once.
#[derive(Debug)]
pub struct Chain {
    layers: Vec<Box<dyn DiskSource>>,
    size: u64,
    file_bytes: u64,
}

/// The files of a disk, top first.
pub(crate) type DiskFiles = Vec<(PathBuf, DiskFormat)>;

/// A file of a disk does not exist, or cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot open a file of the disk ({})", path.display())]
struct UnreadableFileError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Fault for UnreadableFileError {
    fn kind(&self) -> Kind {
        Kind::Host
    }
}

/// Opens a disk by the paths of its files.
///
/// # Errors
/// When a file cannot be opened, or the files are no chain.
pub(crate) fn open_files(files: DiskFiles) -> Result<Chain, Failure> {
    let opened = files.into_iter().map(|(path, format)| {
        let file = File::open(&path).map_err(|source| UnreadableFileError { path, source })?;
        Ok::<_, Failure>(ChainFile { file, format })
    });
    Ok(Chain::open(opened.collect::<Result<_, _>>()?)?)
}

/// A part of the disk that has data, or that is known to be zero without being read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// The range of its bytes on the disk.
    pub range: Range<u64>,
    /// `false` if all bytes are zero; `true` if they have to be read, and may be zero nevertheless.
    pub data: bool,
}

/// The error of reading a chain.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// One of the files cannot be read.
    #[error("cannot read layer {layer} of the disk (0 is the top)")]
    Layer {
        /// The index of the file, from the top.
        layer: usize,
        /// The error of the file.
        source: LayerError,
    },
    /// The range to read exceeds the disk.
    #[error("bytes {}..{} are beyond the end of a disk of {size} bytes", .range.start, .range.end)]
    Beyond {
        /// The range to read.
        range: Range<u64>,
        /// The disk's size.
        size: u64,
    },
    /// The chain has no files.
    #[error("a disk needs at least one file")]
    NoLayers,
}

impl Fault for ChainError {
    fn kind(&self) -> Kind {
        match self {
            ChainError::Layer { source: LayerError::Io(_), .. } => Kind::Host,
            ChainError::Layer { .. } | ChainError::Beyond { .. } => Kind::Base,
            ChainError::NoLayers => Kind::Bug,
        }
    }
}

/// Opens one file of a chain; its tables take at most `memory` bytes at a time.
fn open(layer: ChainFile, memory: u64) -> Result<Box<dyn DiskSource>, LayerError> {
    let file = layer.file;
    Ok(match layer.format {
        DiskFormat::Qcow2 => Box::new(qcow2::reader::Qcow2Reader::open(file, memory)?),
        DiskFormat::Raw => Box::new(RawReader { size: file.metadata()?.len(), file }),
        DiskFormat::Vmdk => Box::new(vmdk::reader::VmdkReader::open(file, memory)?),
        DiskFormat::Vdi => Box::new(vdi::reader::VdiReader::open(file, memory)?),
        DiskFormat::Vhdx => Box::new(vhdx::reader::VhdxReader::open(file, memory)?),
        DiskFormat::Vhd => Box::new(RawReader { size: vhd::disk_size(&file)?, file }),
    })
}

/// A raw file: the bytes of a disk from the first on.
#[derive(Debug)]
struct RawReader {
    file: File,
    size: u64,
}

impl DiskSource for RawReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64, _: u64) -> Result<DataRun, LayerError> {
        Ok(raw_run_at(&self.file, self.size, offset)?)
    }

    fn read(&self, _: DataLocation, offset: u64, bytes: &mut [u8]) -> Result<(), LayerError> {
        Ok(self.file.read_exact_at(bytes, offset)?)
    }
}

/// Returns the data or hole at an offset of a raw file, as reported by the file system (lseek(2), `SEEK_DATA`).
fn raw_run_at(file: &File, size: u64, offset: u64) -> io::Result<DataRun> {
    let seek = |whence| match lseek(file, i64::try_from(offset).unwrap_or(i64::MAX), whence) {
        Ok(at) => Ok(u64::try_from(at).unwrap_or(size).min(size)),
        Err(Errno::ENXIO) => Ok(size),
        Err(error) => Err(io::Error::from(error)),
    };
    let data = seek(Whence::SeekData)?;
    if data > offset {
        return Ok(DataRun { place: DataLocation::Zero, length: data - offset });
    }
    // A file that was truncated since it was opened has no hole here; the read that follows fails.
    let hole = seek(Whence::SeekHole)?;
    Ok(DataRun { place: DataLocation::At(offset), length: hole.saturating_sub(offset).max(1) })
}

impl Chain {
    /// Opens a chain; `layers` begins with the top, which determines the size.
    ///
    /// # Errors
    /// When there is no layer, or a header cannot be read or is refused.
    pub fn open(layers: Vec<ChainFile>) -> Result<Self, ChainError> {
        let memory = TABLE_MEMORY / layers.len().max(1) as u64;
        let mut sources = Vec::new();
        let mut file_bytes = 0;
        for (index, layer) in layers.into_iter().enumerate() {
            let length = layer.file.metadata().ok().filter(Metadata::is_file).map(|facts| facts.len());
            let opened = open(layer, memory).map_err(|source| ChainError::Layer { layer: index, source })?;
            file_bytes += length.unwrap_or_else(|| opened.size());
            sources.push(opened);
        }
        let size = sources.first().ok_or(ChainError::NoLayers)?.size();
        Ok(Self { layers: sources, size, file_bytes })
    }

    /// Limits the disk to this size, without the bytes that a format has added after it.
    #[must_use]
    pub fn up_to(self, size: u64) -> Self {
        Self { size: self.size.min(size), ..self }
    }

    /// Sets the size of the disk: what is beyond the end of its files is zero.
    #[must_use]
    pub fn of_size(self, size: u64) -> Self {
        Self { size, ..self }
    }

    /// Returns the size of the disk in bytes.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.size
    }

    /// Returns the total size of all layers' files in bytes.
    pub(super) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Fills `bytes` with what the guest reads at `offset`.
    ///
    /// # Errors
    /// When a part of it is beyond the end of the disk, or a file is damaged or cannot be read.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), ChainError> {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.size {
            return Err(ChainError::Beyond { range: offset..end, size: self.size });
        }
        let (mut offset, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (layer, run) = self.locate(offset, rest.len() as u64)?;
            let length = usize::try_from(run.length).unwrap_or(usize::MAX).min(rest.len());
            let (now, remaining) = rest.split_at_mut(length);
            match layer {
                None => now.fill(0),
                Some(index) => {
                    let read = self.layers[index].read(run.place, offset, now);
                    read.map_err(|source| ChainError::Layer { layer: index, source })?;
                }
            }
            (offset, rest) = (offset + length as u64, remaining);
        }
        Ok(())
    }

    /// Returns the layer that has the byte at `offset`, and the run of bytes there; no layer if the bytes are known to be
    /// zero. The run may stop at `enough` bytes though it could be longer.
    fn locate(&self, offset: u64, enough: u64) -> Result<(Option<usize>, DataRun), ChainError> {
        let mut length = self.size - offset;
        // Beyond the end of a layer the disk is zero, whatever lower layers contain.
        for (index, layer) in self.layers.iter().enumerate().take_while(|(_, layer)| offset < layer.size()) {
            let run = layer.run_at(offset, enough).map_err(|source| ChainError::Layer { layer: index, source })?;
            length = length.min(run.length);
            match run.place {
                DataLocation::Below => {}
                DataLocation::Zero => return Ok((None, DataRun { place: DataLocation::Zero, length })),
                DataLocation::At(_) | DataLocation::Packed(_) => {
                    return Ok((Some(index), DataRun { place: run.place, length }));
                }
            }
        }
        Ok((None, DataRun { place: DataLocation::Zero, length }))
    }

    /// Returns the parts of the disk that the last layer does not decide: it is as the last layer elsewhere, and zero beyond
    /// the end of that.
    ///
    /// # Errors
    /// When a file is damaged or cannot be read.
    pub(super) fn changed_ranges(&self) -> Result<ByteRanges, ChainError> {
        let mut changed = Vec::new();
        for (index, layer) in self.layers[..self.layers.len() - 1].iter().enumerate() {
            let end = layer.size().min(self.size);
            let mut at = 0;
            while at < end {
                let run = layer.run_at(at, u64::MAX).map_err(|source| ChainError::Layer { layer: index, source })?;
                if run.place != DataLocation::Below {
                    changed.push(at..at + run.length);
                }
                at += run.length;
            }
            // Beyond the end of a layer the disk is zero.
            if end < self.size {
                changed.push(end..self.size);
            }
        }
        Ok(ByteRanges::new(changed))
    }

    /// Returns the offset of the first byte in this range that may have data.
    ///
    /// # Errors
    /// When a file is damaged or cannot be read.
    pub(super) fn first_data(&self, range: Range<u64>) -> Result<Option<u64>, ChainError> {
        let end = range.end.min(self.size);
        let mut at = range.start;
        while at < end {
            let (layer, run) = self.locate(at, end - at)?;
            if layer.is_some() {
                return Ok(Some(at));
            }
            at += run.length;
        }
        Ok(None)
    }

    /// Returns the longest extent that begins at `offset`; `None` at the end of the disk.
    ///
    /// # Errors
    /// When a file is damaged or cannot be read.
    pub fn extent_at(&self, offset: u64) -> Result<Option<Extent>, ChainError> {
        let mut extent: Option<Extent> = None;
        let mut at = offset;
        while at < self.size {
            let (layer, run) = self.locate(at, u64::MAX)?;
            let data = layer.is_some();
            if extent.as_ref().is_some_and(|extent| extent.data != data) {
                break;
            }
            at += run.length;
            extent = Some(Extent { range: offset..at, data });
        }
        Ok(extent)
    }

    /// Returns all extents in order, without gaps.
    pub fn extents(&self) -> impl Iterator<Item = Result<Extent, ChainError>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let extent = self.extent_at(at).transpose()?;
            at = extent.as_ref().map_or(self.size, |extent| extent.range.end);
            Some(extent)
        })
    }

    /// Returns the first extent with data at or after `offset`; `None` if only zeroes follow.
    ///
    /// # Errors
    /// When a file is damaged or cannot be read.
    pub fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>, ChainError> {
        let first = self.extent_at(offset)?;
        let found = match first {
            Some(extent) if !extent.data => self.extent_at(extent.range.end)?,
            other => other,
        };
        Ok(found.map(|extent| extent.range))
    }
}
