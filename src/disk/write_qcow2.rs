//! Writes a disk to a qcow2 file. With zstd, the cost depends on what changed rather than on the size of the disk.
//!
//! ```text
//! cluster of the disk -- zero             -> nothing
//!                     |- as in the base   -> the frame from the base's twin, as it is
//!                     `- anything else    -> read and compressed
//! ```
//! The twin is the base alone, converted once by the same code ([`TwinReader`]). A cluster that no overlay touches is the same in
//! both, by the rules of backing files, so that it need not be read. With a twin and without one the same disk gives the
//! same bytes, since compression depends on a cluster's content alone.

use std::fs::File;
use std::io;
use std::ops::Range;

use flate2::{Compress, FlushCompress, Status};
use zstd::bulk::Compressor;
use zstd::zstd_safe::find_frame_compressed_size;

use crate::progress::Progress;
use crate::specfile::{BaseFormat, Compression};

use super::chain::Chain;
use super::ordered_jobs::{in_order, threads};
use super::qcow2::header::Codec;
use super::qcow2::reader::Qcow2Reader;
use super::qcow2::writer::{CLUSTER, CLUSTER_BITS, Qcow2Writer};
use super::source::{DataLocation, DiskSource, LayerError};
use super::sparse;
use super::write::WriteError;

/// The compression level of zstd: its default, and QEMU's.
const ZSTD_LEVEL: i32 = 3;
/// log2 of the window of deflate in bytes. QEMU inflates with a window of 4 KiB (`qcow2_zlib_decompress`).
const DEFLATE_WINDOW_BITS: u8 = 12;
/// How many clusters a thread compresses before they are written: 2 MiB.
const SHARE: u64 = 32;
/// The memory for the twin's L2 tables, in bytes.
const TABLE_MEMORY: u64 = 1 << 20;

/// Describes what the bytes of a zstd output depend on besides its disk: the compressor, its version and its level.
#[must_use]
pub fn zstd_version() -> String {
    format!("zstd {} level {ZSTD_LEVEL}", zstd::zstd_safe::version_string())
}

/// The base image, compressed with zstd as the output will be.
#[derive(Debug)]
pub struct TwinReader(Qcow2Reader);

impl TwinReader {
    /// Opens a zstd file that [`write_qcow2`] produced from the base alone.
    ///
    /// # Errors
    /// When the file is not such a qcow2 file.
    pub fn open(file: File) -> Result<Self, LayerError> {
        Qcow2Reader::open(file, TABLE_MEMORY).map(Self)
    }

    /// Opens a base as its own twin, if its clusters are compressed in the same way.
    #[must_use]
    pub fn itself(base: File, format: BaseFormat) -> Option<Self> {
        let reader =
            if format == BaseFormat::Qcow2 { Qcow2Reader::open(base, TABLE_MEMORY).ok()? } else { return None };
        reader.is_packed(Codec::Zstd, CLUSTER_BITS).then_some(Self(reader))
    }

    fn cluster(&self, cluster: u64) -> Result<PackedCluster, LayerError> {
        let at = cluster << CLUSTER_BITS;
        let run = self.0.run_at(at, CLUSTER as u64)?;
        match run.place {
            DataLocation::Below | DataLocation::Zero => Ok(PackedCluster::Zero),
            DataLocation::At(_) => {
                let mut bytes = vec![0; CLUSTER];
                self.0.read(run.place, at, &mut bytes)?;
                Ok(PackedCluster::Plain(bytes))
            }
            DataLocation::Packed(entry) => {
                let (at, mut sectors) = self.0.packed(entry)?;
                // The last sector may contain the beginning of the next frame.
                let length = find_frame_compressed_size(&sectors);
                let length =
                    length.map_err(|_| LayerError::Unpack { at, source: io::ErrorKind::InvalidData.into() })?;
                sectors.truncate(length);
                Ok(PackedCluster::Packed(sectors))
            }
        }
    }
}

/// Writes the disk of `chain` to the empty `file`, as qcow2. A twin is used for zstd alone. Blocks the calling thread;
/// uses all processors.
///
/// # Errors
/// When something cannot be read or written, or the work is cancelled. The file is then unusable.
pub fn write_qcow2(
    chain: &Chain,
    compression: Compression,
    twin: Option<&TwinReader>,
    file: File,
    progress: &Progress<'_>,
) -> Result<(), WriteError> {
    let codec = if compression == Compression::Zstd { Codec::Zstd } else { Codec::Deflate };
    let twin = twin.filter(|_| codec == Codec::Zstd);
    let mut writer = Qcow2Writer::new(file, chain.virtual_size(), codec).map_err(WriteError::Write)?;
    let workers = (0..threads()).map(|_| Worker::new(chain, compression, twin)).collect::<Result<Vec<_>, _>>()?;
    let workers = workers.into_iter().map(|mut worker| move |share| worker.share(share)).collect();
    progress.begin(chain.virtual_size());
    in_order(shares(chain), workers, |pieces: Vec<(u64, PackedCluster)>| {
        let mut done = 0;
        for (cluster, piece) in pieces {
            let put = match piece {
                PackedCluster::Zero => Ok(()),
                PackedCluster::Packed(frame) => writer.put_packed(cluster, &frame),
                PackedCluster::Plain(bytes) => writer.put_plain(cluster, &bytes),
            };
            put.map_err(WriteError::Write)?;
            done = (cluster + 1) << CLUSTER_BITS;
        }
        Ok(progress.advance_to(done.min(chain.virtual_size()))?)
    })?;
    writer.finish().map_err(WriteError::Write)
}

/// Returns all clusters that may have data, in order, in ranges of at most [`SHARE`].
fn shares(chain: &Chain) -> impl Iterator<Item = Result<Range<u64>, WriteError>> + Send {
    let mut extents = chain.extents();
    let mut left = 0..0;
    std::iter::from_fn(move || {
        while left.is_empty() {
            let extent = match extents.next()? {
                Ok(extent) => extent,
                Err(error) => return Some(Err(error.into())),
            };
            if extent.data {
                // Two extents may share a cluster: neither a raw file's holes nor a base's clusters need have our cluster
                // size.
                let start = left.end.max(extent.range.start >> CLUSTER_BITS);
                left = start..extent.range.end.div_ceil(CLUSTER as u64).max(start);
            }
        }
        let share = left.start..left.end.min(left.start + SHARE);
        left.start = share.end;
        Some(Ok(share))
    })
}

/// The output for one cluster.
enum PackedCluster {
    Zero,
    Packed(Vec<u8>),
    Plain(Vec<u8>),
}

/// The compressor of a thread.
enum ClusterCompressor {
    Zstd(Compressor<'static>),
    Deflate(Compress),
    None,
}

impl ClusterCompressor {
    fn new(compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::Zstd => Self::Zstd(Compressor::new(ZSTD_LEVEL)?),
            Compression::Zlib => Self::Deflate(Compress::new_with_window_bits(
                flate2::Compression::default(),
                false,
                DEFLATE_WINDOW_BITS,
            )),
            Compression::None => Self::None,
        })
    }

    /// Compresses a cluster into `packed`. Returns the length of the result, or `None` if it does not fit.
    fn compress(&mut self, cluster: &[u8], packed: &mut [u8]) -> Result<Option<usize>, WriteError> {
        match self {
            // zstd reports only "an error" if the frame does not fit.
            Self::Zstd(compressor) => Ok(compressor.compress_to_buffer(cluster, packed).ok()),
            Self::Deflate(compressor) => {
                compressor.reset();
                let status = compressor.compress(cluster, packed, FlushCompress::Finish);
                let status = status.map_err(|error| WriteError::Compress(io::Error::other(error)))?;
                let length = usize::try_from(compressor.total_out()).unwrap_or(usize::MAX);
                Ok((status == Status::StreamEnd).then_some(length))
            }
            Self::None => Ok(None),
        }
    }
}

struct Worker<'a> {
    chain: &'a Chain,
    twin: Option<&'a TwinReader>,
    compressor: ClusterCompressor,
    cluster: Vec<u8>,
    packed: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(chain: &'a Chain, compression: Compression, twin: Option<&'a TwinReader>) -> Result<Self, WriteError> {
        let compressor = ClusterCompressor::new(compression).map_err(WriteError::Compress)?;
        // A cluster that does not become smaller is stored uncompressed.
        Ok(Self { chain, twin, compressor, cluster: vec![0; CLUSTER], packed: vec![0; CLUSTER - 1] })
    }

    fn share(&mut self, clusters: Range<u64>) -> Result<Vec<(u64, PackedCluster)>, WriteError> {
        clusters.map(|cluster| Ok((cluster, self.cluster(cluster)?))).collect()
    }

    fn cluster(&mut self, cluster: u64) -> Result<PackedCluster, WriteError> {
        let at = cluster << CLUSTER_BITS;
        let length = (CLUSTER as u64).min(self.chain.virtual_size() - at);
        if let Some(twin) = self.twin
            && self.chain.is_of_the_base(at..at + length)?
        {
            return Ok(twin.cluster(cluster)?);
        }
        let (disk, beyond) = self.cluster.split_at_mut(usize::try_from(length).unwrap_or(CLUSTER));
        self.chain.read_at(at, disk)?;
        beyond.fill(0);
        if sparse::is_zero(&self.cluster) {
            return Ok(PackedCluster::Zero);
        }
        Ok(match self.compressor.compress(&self.cluster, &mut self.packed)? {
            Some(length) => PackedCluster::Packed(self.packed[..length].to_vec()),
            None => PackedCluster::Plain(self.cluster.clone()),
        })
    }
}
