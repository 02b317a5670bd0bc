//! The files that hold a disk: all of them are written at once, then read back and compared with it.
//!
//! ```text
//! disk ─┬─> write_qcow2: each qcow2; with zstd most of it is from the base's twin ─┬─> read_back: every file, the disk, its chunks
//!       └─> write: raw, vmdk, vdi, vhdx, vhd in one reading ───────────────────────┘
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::try_join;

use crate::digest::Sha256Digest;
use crate::disk::base_twin::{PreparedBase, TwinReader};
use crate::disk::chain::{Chain, DiskFiles, open_files};
use crate::disk::chunk_index::ChunkIndex;
use crate::disk::digest::{DiskCopy, TakenClusters, disk_sha256, read_back, read_through};
use crate::disk::identity::DiskIdentity;
use crate::disk::write::{WriteError, check_fits, write, writes};
use crate::disk::write_qcow2::write_qcow2;
use crate::error::Failure;
use crate::event::{Event, Events, Stage};
use crate::plan::output::DiskFile;
use crate::progress::{Progress, run_blocking, run_reported};
use crate::specfile::DiskFormat;
use crate::try_join::all;

/// Opens the first bytes of a disk, up to an end.
fn open_to(layers: DiskFiles, end: Option<u64>) -> Result<Chain, Failure> {
    Ok(open_files(layers)?.up_to(end.unwrap_or(u64::MAX)))
}

/// The future that writes one file, or several.
type Lane<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + 'a>>;

/// The disk files to write from a disk.
pub(crate) struct DiskFileWriter {
    layers: DiskFiles,
    /// The end of the disk, where that is before the end of its files.
    end: Option<u64>,
    files: Vec<(DiskFile, PathBuf)>,
    identity: DiskIdentity,
    progress: Arc<ConversionProgress>,
}

impl DiskFileWriter {
    /// Prepares to write files, each at its path, where no file exists yet. The disk may end before its own files do.
    ///
    /// # Errors
    /// When the disk cannot be read, or is too large for one of the files.
    pub(crate) fn new(
        (layers, end): (DiskFiles, Option<u64>),
        files: Vec<(DiskFile, PathBuf)>,
        identity: DiskIdentity,
        events: &Events,
    ) -> Result<Self, Failure> {
        let size = open_to(layers.clone(), end)?.virtual_size();
        for (disk, path) in &files {
            // Only files of these formats are as long as the disk.
            if matches!(disk.format, DiskFormat::Raw | DiskFormat::Vhd) {
                check_fits(path.parent().unwrap_or(Path::new("/")), size)?;
            }
        }
        // Each file is written, and all are read back.
        let progress = Arc::new(ConversionProgress::new(files.len() + 1, size, events.clone()));
        Ok(Self { layers, end, files, identity, progress })
    }

    /// Writes every file. Only files that use the `base` wait for it. Returns it, if it was used.
    ///
    /// # Errors
    /// When a file cannot be written; the others are useless then.
    pub(crate) async fn write(
        &self,
        base: impl Future<Output = Option<Arc<PreparedBase>>>,
    ) -> Result<Option<Arc<PreparedBase>>, Failure> {
        let mut lanes: Vec<Lane<'_>> = Vec::new();
        let (mut together, mut on_base) = (Vec::new(), Vec::new());
        for (index, (disk, _)) in self.files.iter().enumerate() {
            if writes(disk.format) {
                together.push(index);
            } else if disk.uses_base_twin() {
                on_base.push(index);
            } else {
                lanes.push(Box::pin(self.write_qcow2(index, None)));
            }
        }
        if !together.is_empty() {
            lanes.push(Box::pin(self.write_together(together)));
        }
        let on_base = async {
            let base = if on_base.is_empty() { None } else { base.await };
            all(on_base.into_iter().map(|index| self.write_qcow2(index, base.clone())).collect()).await?;
            Ok(base)
        };
        let (base, ()) = try_join!(on_base, all(lanes))?;
        Ok(base)
    }

    async fn write_qcow2(&self, index: usize, base: Option<Arc<PreparedBase>>) -> Result<(), Failure> {
        let (DiskFile { compression, .. }, path) = &self.files[index];
        let (compression, file) = (*compression, create(path)?);
        let layers = self.layers.clone();
        let end = self.end;
        let progress = Arc::clone(&self.progress);
        let report = move |done, _| progress.at(&[index], done);
        let work = move |progress: &Progress<'_>| {
            let twin = base.as_ref().map(|base| &base.twin);
            Ok(write_qcow2(&open_to(layers, end)?, compression, twin, file, progress)?)
        };
        run_reported(report, work).await
    }

    async fn write_together(&self, indexes: Vec<usize>) -> Result<(), Failure> {
        let files = indexes.iter().map(|index| {
            let (disk, path) = &self.files[*index];
            Ok::<_, Failure>((disk.format, create(path)?))
        });
        let files = files.collect::<Result<_, _>>()?;
        let (layers, end, identity) = (self.layers.clone(), self.end, self.identity);
        let progress = Arc::clone(&self.progress);
        let report = move |done, _| progress.at(&indexes, done);
        let work = move |progress: &Progress<'_>| Ok(write(&open_to(layers, end)?, files, &identity, progress)?);
        run_reported(report, work).await
    }

    /// Reads every file back, compares it with the disk, and returns the digests of the disk's chunks. `base` is what the
    /// files were written with.
    ///
    /// # Errors
    /// When a file does not hold the disk or cannot be read.
    pub(crate) async fn read_back(&self, base: Option<Arc<PreparedBase>>) -> Result<ChunkIndex, Failure> {
        let (files, layers, end) = (self.files.clone(), self.layers.clone(), self.end);
        let progress = Arc::clone(&self.progress);
        let part = files.len();
        let report = move |done, _| progress.at(&[part], done);
        let work = move |progress: &Progress<'_>| {
            let copies = files.iter().map(|(disk, path)| copy(disk, path, base.as_ref()));
            let copies = copies.collect::<Result<Vec<_>, _>>()?;
            let disk = open_to(layers, end)?;
            let index = read_back(&disk, &copies, base.as_deref(), progress)?;
            if let Some(base) = base {
                base.check_unchanged()?;
                base.learn(&disk, &index)?;
            }
            Ok(index)
        };
        run_reported(report, work).await
    }
}

/// Returns the SHA-256 of a disk, or of its first bytes up to an end.
///
/// # Errors
/// When the disk cannot be read.
pub(crate) async fn sha256_of(layers: DiskFiles, end: Option<u64>) -> Result<Sha256Digest, Failure> {
    run_blocking(move |progress| Ok(disk_sha256(&open_to(layers, end)?, progress)?)).await
}

/// Returns the digests of the chunks of a disk, or of its first bytes up to an end.
///
/// # Errors
/// When the disk cannot be read.
pub(crate) async fn chunks_of(layers: DiskFiles, end: Option<u64>) -> Result<ChunkIndex, Failure> {
    run_blocking(move |progress| Ok(read_back(&open_to(layers, end)?, &[], None, progress)?)).await
}

/// Reads all data of a disk. `look` sees it with its places, in order, and keeps what it finds in `state`, which is returned.
///
/// # Errors
/// When the disk cannot be read.
pub(crate) async fn look_through<S: Send + 'static>(
    layers: DiskFiles,
    mut state: S,
    look: fn(&mut S, u64, &[u8]),
) -> Result<S, Failure> {
    run_blocking(move |progress| {
        read_through(&open_files(layers)?, &mut |at, bytes: &[u8]| look(&mut state, at, bytes), progress)?;
        Ok(state)
    })
    .await
}

fn create(path: &Path) -> Result<File, WriteError> {
    File::create_new(path).map_err(WriteError::Write)
}

fn copy(disk: &DiskFile, path: &Path, base: Option<&Arc<PreparedBase>>) -> Result<DiskCopy, Failure> {
    let DiskFile { file, format, .. } = disk;
    let base = base.filter(|_| disk.uses_base_twin());
    let taken = base.map(|base| taken(Arc::clone(base), path)).transpose()?;
    let opened = open_files(vec![(path.to_owned(), *format)])?;
    Ok(DiskCopy { name: file.clone(), format: *format, disk: opened, taken })
}

fn taken(base: Arc<PreparedBase>, path: &Path) -> Result<TakenClusters, WriteError> {
    let file = File::open(path).map_err(WriteError::Write)?;
    Ok(TakenClusters { base, copy: TwinReader::open(file)? })
}

/// The progress of all parts of the work, as a share of the disk: each part is as long as the disk.
struct ConversionProgress {
    done: Mutex<Vec<u64>>,
    size: u64,
    events: Events,
}

impl ConversionProgress {
    fn new(parts: usize, size: u64, events: Events) -> Self {
        Self { done: Mutex::new(vec![0; parts]), size, events }
    }

    /// Records that these parts are done up to this byte. Emits an event whenever the whole advances by a hundredth.
    fn at(&self, parts: &[usize], done: u64) {
        let mut all = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let parts_count = all.len() as u64;
        let before = all.iter().sum::<u64>() / parts_count;
        for part in parts {
            all[*part] = done;
        }
        let now = all.iter().sum::<u64>() / parts_count;
        drop(all);
        let step = (self.size / 100).max(1);
        if now / step > before / step {
            self.events.emit(&Event::Progress { stage: Stage::Convert, done: now, total: self.size });
        }
    }
}
