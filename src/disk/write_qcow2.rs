//! Writes a disk to a qcow2 file. With zstd, the cost depends on what changed rather than on the size of the disk.
//!
//! ```text
//! stripe of the disk -- as in the base    -> the stripe of the base's twin, as it is in its file
//!                    `- anything else     -> its clusters
//! cluster of the disk -- zero             -> nothing
//!                     |- as in the base   -> the frame from the base's twin, as it is
//!                     `- anything else    -> read and compressed
//! ```
//! The twin is the base alone, converted once by the same code ([`TwinReader`]). A cluster that no overlay touches is the same in
//! both, by the rules of backing files, so that it need not be read. With a twin and without one the same disk gives the
//! same bytes, since compression depends on a cluster's content alone, and the places of a stripe's clusters on the stripe.

use std::fs::File;
use std::io;

use flate2::{Compress, FlushCompress, Status};
use zstd::bulk::Compressor;

use crate::progress::Progress;
use crate::specfile::Compression;

use super::base_twin::{PackedCluster, STRIPE_BYTES, TwinReader, UnchangedParts};
use super::chain::Chain;
use super::ordered_jobs::{in_order, threads};
use super::qcow2::header::Codec;
use super::qcow2::layout::{CLUSTER, CLUSTER_BITS, STRIPE};
use super::qcow2::stripe::Stripe;
use super::qcow2::writer::Qcow2Writer;
use super::sparse;
use super::write::WriteError;

/// The compression level of zstd: its default, and QEMU's.
const ZSTD_LEVEL: i32 = 3;
/// log2 of the window of deflate in bytes. QEMU inflates with a window of 4 KiB (`qcow2_zlib_decompress`).
const DEFLATE_WINDOW_BITS: u8 = 12;
/// The version of the places of clusters in the file.
const LAYOUT: u32 = 2;

/// Describes what the bytes of a zstd output depend on besides its disk: the compressor, its version and its level, and the
/// layout of the file.
#[must_use]
pub fn zstd_version() -> String {
    format!("zstd {} level {ZSTD_LEVEL} layout {LAYOUT}", zstd::zstd_safe::version_string())
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
    let unchanged = twin.map(|twin| UnchangedParts::of(chain, twin)).transpose()?;
    let mut writer = Qcow2Writer::new(file, chain.virtual_size(), codec).map_err(WriteError::Write)?;
    let workers = (0..threads()).map(|_| Worker::new(chain, compression, unchanged.as_ref()));
    let workers = workers.collect::<Result<Vec<_>, _>>()?;
    let workers = workers.into_iter().map(|mut worker| move |number| worker.stripe(number)).collect();
    progress.begin(chain.virtual_size());
    in_order(stripes(chain), workers, |packed: PackedStripe<'_>| {
        packed.put(&mut writer).map_err(WriteError::Write)?;
        let done = (packed.number + 1) * STRIPE_BYTES;
        Ok(progress.advance_to(done.min(chain.virtual_size()))?)
    })?;
    writer.finish().map_err(WriteError::Write)
}

/// Returns the numbers of all stripes that may have data, in order.
fn stripes(chain: &Chain) -> impl Iterator<Item = Result<u64, WriteError>> + Send {
    let mut extents = chain.extents();
    let mut left = 0..0;
    std::iter::from_fn(move || {
        while left.is_empty() {
            let extent = match extents.next()? {
                Ok(extent) => extent,
                Err(error) => return Some(Err(error.into())),
            };
            if extent.data {
                // Two extents may share a stripe.
                let start = left.end.max(extent.range.start / STRIPE_BYTES);
                left = start..extent.range.end.div_ceil(STRIPE_BYTES).max(start);
            }
        }
        left.next().map(Ok)
    })
}

/// The output for one stripe.
struct PackedStripe<'t> {
    number: u64,
    clusters: PackedClusters<'t>,
}

/// The clusters of a stripe.
enum PackedClusters<'t> {
    /// They are in this file, contiguous.
    In(&'t TwinReader, Stripe),
    Each(Vec<(u64, PackedCluster)>),
}

impl PackedStripe<'_> {
    fn put(&self, writer: &mut Qcow2Writer) -> io::Result<()> {
        let clusters = match &self.clusters {
            PackedClusters::In(twin, stripe) => return writer.copy_stripe(self.number, stripe, twin.file()),
            PackedClusters::Each(clusters) => clusters,
        };
        if clusters.is_empty() {
            return Ok(());
        }
        writer.begin_stripe(clusters.iter().any(|(_, cluster)| matches!(cluster, PackedCluster::Plain(_))))?;
        clusters.iter().try_for_each(|(number, cluster)| match cluster {
            PackedCluster::Zero => Ok(()),
            PackedCluster::Packed(frame) => writer.put_packed(*number, frame),
            PackedCluster::Plain(bytes) => writer.put_plain(*number, bytes),
        })
    }
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
    unchanged: Option<&'a UnchangedParts<'a>>,
    compressor: ClusterCompressor,
    cluster: Vec<u8>,
    packed: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(
        chain: &'a Chain,
        compression: Compression,
        unchanged: Option<&'a UnchangedParts<'a>>,
    ) -> Result<Self, WriteError> {
        let compressor = ClusterCompressor::new(compression).map_err(WriteError::Compress)?;
        // A cluster that does not become smaller is stored uncompressed.
        Ok(Self { chain, unchanged, compressor, cluster: vec![0; CLUSTER], packed: vec![0; CLUSTER - 1] })
    }

    fn stripe(&mut self, number: u64) -> Result<PackedStripe<'a>, WriteError> {
        if let Some(unchanged) = self.unchanged
            && let Some(stripe) = unchanged.stripe(number)?
        {
            return Ok(PackedStripe { number, clusters: PackedClusters::In(unchanged.twin(), stripe) });
        }
        let end = self.chain.virtual_size().div_ceil(CLUSTER as u64).min((number + 1) * STRIPE);
        let mut clusters = Vec::new();
        for cluster in number * STRIPE..end {
            let packed = self.cluster(cluster)?;
            if packed != PackedCluster::Zero {
                clusters.push((cluster, packed));
            }
        }
        Ok(PackedStripe { number, clusters: PackedClusters::Each(clusters) })
    }

    fn cluster(&mut self, cluster: u64) -> Result<PackedCluster, WriteError> {
        if let Some(unchanged) = self.unchanged
            && let Some(packed) = unchanged.cluster(cluster)?
        {
            return Ok(packed);
        }
        let at = cluster << CLUSTER_BITS;
        let length = (CLUSTER as u64).min(self.chain.virtual_size() - at);
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
