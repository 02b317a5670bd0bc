//! A disk becomes a compressed qcow2 file, at a cost that follows what changed rather than how large the disk is.
//!
//! ```text
//! cluster of the disk -- zero             -> nothing
//!                     |- as in the base   -> the frame from the base's twin, as it is
//!                     `- anything else    -> read and compressed
//! ```
//! The twin is the base alone, converted once by the same code ([`Twin`]). A cluster that no overlay touches is the same
//! in both, by the rules of backing files: nothing has to be read to know it. With a twin and without one the same
//! disk gives the same bytes, since compression depends on a cluster's content alone.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::thread;

use zstd::bulk::Compressor;
use zstd::zstd_safe::find_frame_compressed_size;

use super::chain::{Chain, ChainError, LayerError};
use super::qcow2::header::Codec;
use super::qcow2::reader::{Place, Reader};
use super::qcow2::writer::{CLUSTER, CLUSTER_BITS, Writer};
use crate::error::{Fault, Kind};
use crate::spec::BaseFormat;

/// zstd's own default, which is QEMU's.
const LEVEL: i32 = 3;
/// Clusters a thread handles before they are written: 2 MiB.
const SHARE: u64 = 32;
/// More threads than this would need more memory than kiln may have.
const MOST_THREADS: usize = 8;
/// Memory for the twin's L2 tables, bytes.
const TABLE_MEMORY: u64 = 1 << 20;

/// What the bytes of an output depend on besides its disk: the compressor, its version and its level.
#[must_use]
pub fn codec() -> String {
    format!("zstd {} level {LEVEL}", zstd::zstd_safe::version_string())
}

/// The base image, compressed as the output will be.
#[derive(Debug)]
pub struct Twin(Reader);

impl Twin {
    /// Opens what [`compress`] made of the base alone.
    ///
    /// # Errors
    /// When it is no such file.
    pub fn open(file: File) -> Result<Self, LayerError> {
        Reader::open(file, TABLE_MEMORY).map(Self)
    }

    /// A base that is such a file is its own twin.
    #[must_use]
    pub fn itself(base: File, format: BaseFormat) -> Option<Self> {
        let reader = if format == BaseFormat::Qcow2 { Reader::open(base, TABLE_MEMORY).ok()? } else { return None };
        reader.is_packed(Codec::Zstd, CLUSTER_BITS).then_some(Self(reader))
    }

    fn piece(&self, cluster: u64) -> Result<Piece, LayerError> {
        let at = cluster << CLUSTER_BITS;
        let run = self.0.run_at(at, CLUSTER as u64)?;
        match run.place {
            Place::Below | Place::Zero => Ok(Piece::Zero),
            Place::At(_) => {
                let mut bytes = vec![0; CLUSTER];
                self.0.read(run.place, at, &mut bytes)?;
                Ok(Piece::Plain(bytes))
            }
            Place::Packed(entry) => {
                let (at, mut sectors) = self.0.packed(entry)?;
                // The last sector may hold the beginning of the next frame.
                let length = find_frame_compressed_size(&sectors);
                let length =
                    length.map_err(|_| LayerError::Unpack { at, source: io::ErrorKind::InvalidData.into() })?;
                sectors.truncate(length);
                Ok(Piece::Packed(sectors))
            }
        }
    }
}

/// No file.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// The disk cannot be read.
    #[error(transparent)]
    Read(#[from] ChainError),
    /// The base's twin cannot be read.
    #[error("cannot read the compressed base")]
    Twin(#[from] LayerError),
    /// The output cannot be written.
    #[error("cannot write the output")]
    Write(#[source] io::Error),
    /// zstd failed.
    #[error("cannot compress")]
    Compress(#[source] io::Error),
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

/// A full disk, a quota, or a limit on the size of files.
fn is_shortage(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), FileTooLarge | QuotaExceeded | StorageFull)
}

impl Fault for CompressError {
    fn kind(&self) -> Kind {
        match self {
            CompressError::Read(error) => error.kind(),
            CompressError::Twin(_) => Kind::Host,
            CompressError::Write(error) if is_shortage(error) => Kind::Host,
            CompressError::Write(_) => Kind::Output,
            CompressError::Compress(_) => Kind::Bug,
            CompressError::Stopped => Kind::Interrupted,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            CompressError::Write(error) if is_shortage(error) => vec!["free some space where the store is".into()],
            _ => Vec::new(),
        }
    }
}

/// Writes the disk of `chain` to the empty `file`, as qcow2 with zstd. `progress` is told up to which byte of the disk
/// it is done, several times a second, and may stop the work. Blocks the calling thread; uses all processors.
///
/// # Errors
/// When something cannot be read or written, or `progress` breaks. The file is then of no use.
pub fn compress(
    chain: &Chain,
    twin: Option<&Twin>,
    file: File,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), CompressError> {
    let mut writer = Writer::new(file, chain.virtual_size()).map_err(CompressError::Write)?;
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let mut workers = (0..threads).map(|_| Worker::new(chain, twin)).collect::<Result<Vec<_>, _>>()?;
    let mut next = 0;
    for extent in chain.extents() {
        let extent = extent?;
        if !extent.data {
            continue;
        }
        // Two extents may share a cluster: neither a raw file's holes nor a base's clusters need be of our size.
        next = next.max(extent.range.start >> CLUSTER_BITS);
        let end = extent.range.end.div_ceil(CLUSTER as u64);
        while next < end {
            next = batch(&mut workers, next, end, &mut writer)?;
            if progress((next << CLUSTER_BITS).min(chain.virtual_size())).is_break() {
                return Err(CompressError::Stopped);
            }
        }
    }
    writer.finish().map_err(CompressError::Write)
}

/// Each worker takes the next clusters; what they make of them is written in order.
fn batch(workers: &mut [Worker<'_>], first: u64, end: u64, writer: &mut Writer) -> Result<u64, CompressError> {
    thread::scope(|scope| {
        let starts = (0..).map(|n| first + n * SHARE).take_while(|start| *start < end);
        let shares: Vec<_> = workers
            .iter_mut()
            .zip(starts)
            .map(|(worker, start)| {
                let share = start..end.min(start + SHARE);
                scope.spawn(move || {
                    share
                        .map(|cluster| Ok((cluster, worker.piece(cluster)?)))
                        .collect::<Result<Vec<_>, CompressError>>()
                })
            })
            .collect();
        let mut next = first;
        for share in shares {
            for (cluster, piece) in share.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))? {
                let put = match piece {
                    Piece::Zero => Ok(()),
                    Piece::Packed(frame) => writer.put_packed(cluster, &frame),
                    Piece::Plain(bytes) => writer.put_plain(cluster, &bytes),
                };
                put.map_err(CompressError::Write)?;
                next = cluster + 1;
            }
        }
        Ok(next)
    })
}

/// What becomes of one cluster.
enum Piece {
    Zero,
    Packed(Vec<u8>),
    Plain(Vec<u8>),
}

struct Worker<'a> {
    chain: &'a Chain,
    twin: Option<&'a Twin>,
    compressor: Compressor<'static>,
    cluster: Vec<u8>,
    packed: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(chain: &'a Chain, twin: Option<&'a Twin>) -> Result<Self, CompressError> {
        let compressor = Compressor::new(LEVEL).map_err(CompressError::Compress)?;
        // What does not become smaller stays as it is.
        Ok(Self { chain, twin, compressor, cluster: vec![0; CLUSTER], packed: vec![0; CLUSTER - 1] })
    }

    fn piece(&mut self, cluster: u64) -> Result<Piece, CompressError> {
        let at = cluster << CLUSTER_BITS;
        let length = (CLUSTER as u64).min(self.chain.virtual_size() - at);
        if let Some(twin) = self.twin
            && self.chain.is_of_the_base(at..at + length)?
        {
            return Ok(twin.piece(cluster)?);
        }
        let (disk, beyond) = self.cluster.split_at_mut(usize::try_from(length).unwrap_or(CLUSTER));
        self.chain.read_at(at, disk)?;
        beyond.fill(0);
        if self.cluster.iter().all(|byte| *byte == 0) {
            return Ok(Piece::Zero);
        }
        // zstd says nothing but "an error" when the frame does not fit.
        Ok(match self.compressor.compress_to_buffer(&self.cluster, &mut self.packed[..]) {
            Ok(length) => Piece::Packed(self.packed[..length].to_vec()),
            Err(_) => Piece::Plain(self.cluster.clone()),
        })
    }
}
