//! The sealed disk becomes output files, and is read once more for its digests.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::{JoinHandle, spawn_blocking};

use crate::digest::hex;
use crate::disk::chain::{Chain, Layer};
use crate::disk::compress::{CompressError, Twin, compress};
use crate::disk::digest::disk_sha256;
use crate::disk::qemu_img::{Image, Target, convert as run_convert};
use crate::disk::tree::Tree;
use crate::error::{Failure, Fault, Kind};
use crate::event::{Event, Level, Stage};
use crate::plan::output::DiskFile;
use crate::spec::BaseFormat;

use super::contents::{self, Contents};
use super::identity;
use super::leaks::Search;
use super::survey::check_base;
use super::twin::{BaseTwin, is_ours};
use super::{Build, SealedDisk};

/// The outputs are in the staging folder, and what is known of the disk they all hold.
#[derive(Debug)]
pub struct Converted {
    /// Digest of the disk the guest sees.
    pub disk_sha256: String,
    /// What is in it, being read meanwhile.
    pub contents: JoinHandle<Result<Contents, Failure>>,
}

/// The sealed disk is not what it should be.
#[derive(Debug, thiserror::Error)]
enum SealedDiskError {
    #[error("cannot open the sealed disk ({})", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the sealed guest left its root file system unclean")]
    Unclean,
}

impl Fault for SealedDiskError {
    fn kind(&self) -> Kind {
        match self {
            SealedDiskError::Unreadable { .. } => Kind::Host,
            SealedDiskError::Unclean => Kind::Output,
        }
    }
}

/// The files of the disk, top first.
type Layers = Vec<(PathBuf, BaseFormat)>;

/// Writes every output; the disk's digest is computed, it is searched for secrets, and its files are read meanwhile.
pub(crate) async fn convert(
    build: &Build<'_>,
    sealed: SealedDisk,
    twin: Option<&mut BaseTwin>,
    staging: &Path,
) -> Result<Converted, Failure> {
    let layers = sealed.disk.chain;
    check_base(build.plan, &build.memo)?;
    check_sealed(build, &layers)?;
    let contents = contents::read(build, layers.clone(), sealed.known, staging)?;
    let written = write_outputs(build, &layers, twin, staging);
    let digest = digest(build, layers.clone());
    let ((), disk_sha256) = build.limits.hold(async { tokio::try_join!(written, digest) }).await?;
    Ok(Converted { disk_sha256, contents })
}

pub(crate) fn open(layers: Layers) -> Result<Chain, Failure> {
    let opened = layers.into_iter().map(|(path, format)| {
        let file = File::open(&path).map_err(|source| SealedDiskError::Unreadable { path, source })?;
        Ok::<_, Failure>(Layer { file, format })
    });
    Ok(Chain::open(opened.collect::<Result<_, _>>()?)?)
}

/// The guest's word is not enough: its root file system has to say the same.
fn check_sealed(build: &Build<'_>, layers: &Layers) -> Result<(), Failure> {
    let chain = open(layers.clone())?;
    // Whoever reads the contents says why they cannot be read.
    let Ok(tree) = Tree::open(&chain) else { return Ok(()) };
    if !tree.is_clean() {
        return Err(SealedDiskError::Unclean.into());
    }
    Ok(identity::look(&tree, &build.plan.spec.seal.skip)?.map_or(Ok(()), Err)?)
}

async fn write_outputs(
    build: &Build<'_>,
    layers: &Layers,
    twin: Option<&mut BaseTwin>,
    staging: &Path,
) -> Result<(), Failure> {
    let twin = match twin {
        Some(twin) => twin.ready().await.map(Arc::new),
        None => None,
    };
    let chain: Vec<_> = layers.iter().map(|(path, format)| Image { path, format: *format }).collect();
    let disks = &build.plan.outputs.disks;
    let (count, size) = (disks.len() as u64, build.plan.disk_size());
    for (index, disk) in (0..).zip(disks) {
        let path = place(build, disk, staging);
        let events = build.events.clone();
        let progress = move |done: u64| {
            let (done, total) = (index * size + done, count * size);
            events.emit(&Event::Progress { stage: Stage::Convert, done, total });
        };
        if is_ours(disk) {
            write_packed(build, layers.clone(), twin.clone(), &path, progress).await?;
            continue;
        }
        let target = Target { path: &path, format: disk.format, compression: disk.compression };
        run_convert(&chain, target, |fraction| progress(share(size, fraction))).await?;
    }
    Ok(())
}

/// Where a disk file is written: what is not published goes with the scratch folder.
pub(crate) fn place(build: &Build<'_>, disk: &DiskFile, staging: &Path) -> PathBuf {
    if disk.published { staging.join(&disk.file) } else { build.work.join(&disk.file) }
}

/// The output that is ours from the first byte to the last.
async fn write_packed(
    build: &Build<'_>,
    layers: Layers,
    twin: Option<Arc<Twin>>,
    path: &Path,
    progress: impl Fn(u64) + Send + 'static,
) -> Result<(), Failure> {
    let file = File::create_new(path).map_err(CompressError::Write)?;
    let limits = build.limits.clone();
    let work = spawn_blocking(move || {
        let mut watch = |done| {
            progress(done);
            if limits.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        Ok(compress(&open(layers)?, twin.as_deref(), file, &mut watch)?)
    });
    work.await.expect("compressing does not panic")
}

/// A fraction of a size; only for showing.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "shown rounded"
)]
fn share(size: u64, fraction: f64) -> u64 {
    (size as f64 * fraction.clamp(0.0, 1.0)) as u64
}

async fn digest(build: &Build<'_>, layers: Layers) -> Result<String, Failure> {
    let limits = build.limits.clone();
    let mut too_short = |name: &str| {
        let text = format!("the secret `{name}` is too short to be looked for in the image");
        build.events.notice(Level::Warning, text);
    };
    let mut search = Search::new(&build.secrets, &mut too_short);
    let hashing = spawn_blocking(move || {
        let mut leak = None;
        let mut watch = |at, bytes: &[u8]| {
            leak = search.as_mut().and_then(|search| search.look(at, bytes));
            if leak.is_some() || limits.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let hashed = disk_sha256(&open(layers)?, &mut watch);
        leak.map_or(Ok(()), Err)?;
        Ok(hex(&hashed?))
    });
    hashing.await.expect("hashing does not panic")
}
