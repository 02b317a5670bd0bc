//! Writes a disk to files of several formats at once: the disk is read a single time, and each piece goes to all files.
//!
//! ```text
//! disk --pieces with data--> threads: read, deflate if a format needs it --in order--> vmdk, vdi, vhdx, vhd, raw
//! ```
//! The same disk gives the same bytes, whatever the number of threads. qcow2 files are written elsewhere: they may take most
//! of their bytes from the base's twin ([`super::write_qcow2`]).

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use libdeflater::{CompressionLvl, Compressor};

use crate::error::{Fault, Kind};
use crate::progress::{CancelledError, Progress};
use crate::size::ByteSize;
use crate::specfile::DiskFormat;

use super::chain::{Chain, ChainError};
use super::file_writer::{FileWriter, GRAIN, Piece};
use super::identity::DiskIdentity;
use super::ordered_jobs::{in_order, threads};
use super::pieces::{PIECE, PieceStarts};
use super::source::LayerError;
use super::{sparse, vdi, vhd, vhdx, vmdk};

/// The error of an output.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The disk cannot be read.
    #[error(transparent)]
    Read(#[from] ChainError),
    /// The base's twin cannot be read.
    #[error("cannot read the compressed base")]
    Twin(#[from] LayerError),
    /// The output cannot be written.
    #[error("{} the output", if is_shortage(.0) { "no space for" } else { "cannot write" })]
    Write(#[source] io::Error),
    /// The file system does not allow files as large as the disk.
    #[error("a raw disk of {size} is larger than any file can be in {}", folder.display())]
    TooLarge {
        /// The folder of the file.
        folder: PathBuf,
        /// The size of the disk.
        size: ByteSize,
    },
    /// The compressor failed.
    #[error("cannot compress")]
    Compress(#[source] io::Error),
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] CancelledError),
}

/// Returns whether an error is due to a full disk, a quota, or a limit on the size of files.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), FileTooLarge | QuotaExceeded | StorageFull)
}

impl Fault for WriteError {
    fn kind(&self) -> Kind {
        match self {
            WriteError::Read(error) => error.kind(),
            WriteError::Twin(_) => Kind::Host,
            WriteError::Write(error) if is_shortage(error) => Kind::Host,
            WriteError::Write(_) | WriteError::TooLarge { .. } => Kind::Output,
            WriteError::Compress(_) => Kind::Bug,
            WriteError::Cancelled(_) => Kind::Interrupted,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            WriteError::Write(error) if is_shortage(error) => vec![
                "free some space there: outputs are written where the store is, those of `kiln export` where they go"
                    .into(),
            ],
            WriteError::TooLarge { .. } => {
                vec!["write qcow2, which takes only what the disk holds, or use another file system".into()]
            }
            _ => Vec::new(),
        }
    }
}

/// Refuses a raw disk that is larger than any file can be in this folder (4 GiB on FAT, 16 TiB on ext4). Nothing is written:
/// beyond that size a file cannot even be positioned. Other errors of the folder are reported when it is used.
///
/// # Errors
/// When the disk is too large.
pub fn check_fits(folder: &Path, size: u64) -> Result<(), WriteError> {
    match tempfile::tempfile_in(folder).and_then(|mut file| file.seek(SeekFrom::Start(size))) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            Err(WriteError::TooLarge { folder: folder.to_owned(), size: ByteSize(size) })
        }
        _ => Ok(()),
    }
}

/// The compression level: libdeflate's default, with output a sixth larger than its best, and several times as fast. The
/// output depends only on the level and on libdeflate's version.
const LEVEL: i32 = 6;

/// The writer of a raw file with holes.
struct RawWriter {
    file: File,
    size: u64,
}

impl FileWriter for RawWriter {
    fn put(&mut self, piece: &Piece) -> io::Result<()> {
        sparse::write_at(&self.file, piece.at, &piece.bytes)
    }

    fn finish(self: Box<Self>, _: &DiskIdentity) -> io::Result<()> {
        self.file.set_len(self.size)
    }
}

/// Returns whether [`write`] supports this format.
#[must_use]
pub fn writes(format: DiskFormat) -> bool {
    format != DiskFormat::Qcow2
}

fn writer(format: DiskFormat, file: File, disk: u64) -> io::Result<Box<dyn FileWriter>> {
    let size = format.virtual_size(disk);
    Ok(match format {
        DiskFormat::Raw => Box::new(RawWriter { file, size }),
        DiskFormat::Vmdk => Box::new(vmdk::writer::VmdkWriter::new(file, size)?),
        DiskFormat::Vdi => Box::new(vdi::writer::VdiWriter::new(file, size)),
        DiskFormat::Vhdx => Box::new(vhdx::writer::VhdxWriter::new(file, size)),
        DiskFormat::Vhd => Box::new(vhd::writer::VhdWriter::new(file, size)),
        DiskFormat::Qcow2 => return Err(io::ErrorKind::Unsupported.into()),
    })
}

/// Writes the disk of `chain` to all of these empty files. Blocks the calling thread; uses all processors.
///
/// # Errors
/// When something cannot be read or written, or the work is cancelled. The files are then unusable.
pub fn write(
    chain: &Chain,
    outputs: Vec<(DiskFormat, File)>,
    identity: &DiskIdentity,
    progress: &Progress<'_>,
) -> Result<(), WriteError> {
    let packs = outputs.iter().any(|(format, _)| *format == DiskFormat::Vmdk);
    let writers = outputs.into_iter().map(|(format, file)| writer(format, file, chain.virtual_size()));
    let mut writers = writers.collect::<io::Result<Vec<_>>>().map_err(WriteError::Write)?;
    let workers = (0..threads()).map(|_| worker(chain, packs)).collect();
    progress.begin(chain.virtual_size());
    let jobs = PieceStarts::new(chain).map(|at| at.map_err(WriteError::Read));
    in_order(jobs, workers, |piece: Piece| {
        if !piece.bytes.is_empty() {
            writers.iter_mut().try_for_each(|writer| writer.put(&piece)).map_err(WriteError::Write)?;
        }
        let done = (piece.at + PIECE as u64).min(chain.virtual_size());
        Ok(progress.advance_to(done)?)
    })?;
    writers.into_iter().try_for_each(|writer| writer.finish(identity)).map_err(WriteError::Write)
}

/// Returns a function that reads a piece, and packs it if `packs` is set. A piece without data is returned without bytes.
fn worker(chain: &Chain, packs: bool) -> impl FnMut(u64) -> Result<Piece, WriteError> + Send {
    let mut compressor = Compressor::new(CompressionLvl::new(LEVEL).unwrap_or_default());
    move |at| {
        let mut bytes = vec![0; PIECE];
        chain.read_at(at, &mut bytes[..length_at(chain, at)])?;
        if sparse::is_zero(&bytes) {
            return Ok(Piece { at, bytes: Vec::new(), grains: Vec::new() });
        }
        let mut pack =
            |grain: &[u8]| if sparse::is_zero(grain) { Ok(Vec::new()) } else { deflate(&mut compressor, grain) };
        let grains = if packs { bytes.chunks(GRAIN).map(&mut pack).collect::<Result<_, _>>()? } else { Vec::new() };
        Ok(Piece { at, bytes, grains })
    }
}

/// Returns the length of the piece that begins at `at`: the last one may be shorter.
pub(super) fn length_at(chain: &Chain, at: u64) -> usize {
    usize::try_from(chain.virtual_size().saturating_sub(at)).unwrap_or(PIECE).min(PIECE)
}

/// Compresses bytes to a zlib stream (RFC 1950).
fn deflate(compressor: &mut Compressor, bytes: &[u8]) -> Result<Vec<u8>, WriteError> {
    let mut packed = vec![0; compressor.zlib_compress_bound(bytes.len())];
    let packing = compressor.zlib_compress(bytes, &mut packed);
    // The buffer is as large as the output may ever be.
    let length = packing.map_err(|error| WriteError::Compress(io::Error::other(error)))?;
    packed.truncate(length);
    Ok(packed)
}
