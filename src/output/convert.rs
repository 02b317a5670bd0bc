//! Converts the sealed disk to output files, and reads them back for their digests.

use std::fs::File;
use std::iter;
use std::path::{Path, PathBuf};

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::try_join;

use crate::cache::base_files::BaseFileDigests;
use crate::cache::base_twin::BaseTwin;
use crate::context::{BuildContext, ScratchError};
use crate::digest::Sha256Digest;
use crate::disk::chunk_index::{self, ChunkIndex};
use crate::disk::identity::DiskIdentity;
use crate::disk::journal_eraser::erase_journals;
use crate::error::{Failure, Fault, Kind};
use crate::event::NoticeLevel;
use crate::output::contents::SealedDisk;
use crate::plan::Plan;
use crate::plan::output::DiskFile;
use crate::resolve::facts::{check_base, remember_base};
use crate::secret_scan::{SecretLeakError, SecretLeaks, SecretScan};
use crate::specfile::DiskFormat;
use crate::try_join::all;

use super::contents::{self, Contents, GuestEvidence, SealedView};
use super::disk_files::{DiskFileWriter, look_through};
use super::package::{facts, package};
use super::seal_audit::{self, planted::find_agent};
use crate::disk::chain::{DiskFiles, open_files};

/// Name of the overlay without journals, in the scratch folder.
const ERASED: &str = "erased.qcow2";

/// The outputs in the staging folder, and the properties of the disk that they all hold.
#[derive(Debug)]
pub struct Converted {
    /// Digest of the disk that the guest sees: that of the list of its chunks' digests.
    pub disk_chunks_sha256: Sha256Digest,
    /// The contents of the disk, which are read meanwhile.
    pub contents: JoinHandle<Result<Contents, Failure>>,
}

/// The reason why the sealed disk is not as it should be.
#[derive(Debug, thiserror::Error)]
enum SealedDiskError {
    #[error("the sealed guest left its root file system unclean")]
    Unclean,
}

impl Fault for SealedDiskError {
    fn kind(&self) -> Kind {
        Kind::Output
    }
}

/// Writes every disk file and reads it back, searches the disk for secrets, and reads its files meanwhile.
pub(crate) async fn convert(
    build: &BuildContext<'_>,
    sealed: SealedDisk,
    twin: Option<&mut BaseTwin>,
    known_files: BaseFileDigests,
    staging: &Path,
) -> Result<Converted, Failure> {
    check_base(build.plan)?;
    remember_base(build.plan, &build.memo);
    let layers = without_journals(build, sealed.disk.chain).await?;
    check_sealed(build, &layers, &sealed.evidence)?;
    let contents = contents::read(build, layers.clone(), sealed.evidence, known_files, staging)?;
    let files = build.plan.outputs.disks.iter().map(|disk| (disk.clone(), place(build, disk, staging))).collect();
    let disks = DiskFileWriter::new((layers.clone(), None), files, identity_of(build.recorded_plan()), &build.events)?;
    let base = async { twin?.ready().await };
    let written = async {
        let base = disks.write(base).await?;
        let chunks = disks.read_back(base).await?;
        let packaged = build.plan.outputs.disks.iter().enumerate().map(async |(index, disk)| {
            let (path, facts) = (place(build, disk, staging), facts(build, disk));
            package(&build.plan.outputs, index, &path, &facts, staging).await
        });
        all(packaged.collect()).await?;
        Ok::<_, Failure>(chunks)
    };
    let done = async { try_join!(written, scan(build, layers)) };
    let (chunks, leaks) = build.limits.hold(done).await?;
    if leaks.is_empty() {
        write_index(&chunks, staging)?;
        return Ok(Converted { disk_chunks_sha256: chunks.sha256(), contents });
    }
    // A file that contains a secret says more than its place on the disk.
    let contents = async { contents.await.expect("reading the tree does not panic") };
    Err(with_disk_leaks(build.limits.hold(contents).await.err(), leaks))
}

/// Adds an overlay without the journals of the disk's file systems to the files of a sealed disk.
async fn without_journals(build: &BuildContext<'_>, layers: DiskFiles) -> Result<DiskFiles, Failure> {
    let path = build.work.join(ERASED);
    let overlay = File::create_new(&path).map_err(ScratchError::at("an overlay", &path))?;
    let disk = open_files(layers.clone())?;
    let erasing = spawn_blocking(move || erase_journals(&disk, overlay));
    build.limits.hold(async { erasing.await.expect("erasing does not panic") }).await?;
    Ok(iter::once((path, DiskFormat::Qcow2)).chain(layers).collect())
}

/// Writes the digests of the disk's chunks to the staging folder.
fn write_index(chunks: &ChunkIndex, staging: &Path) -> Result<(), ScratchError> {
    let path = staging.join(chunk_index::FILE);
    std::fs::write(&path, chunks.to_text()).map_err(ScratchError::at("the digests of the disk", &path))
}

/// Searches the whole disk for secrets, if there are any.
async fn scan(build: &BuildContext<'_>, layers: DiskFiles) -> Result<Vec<SecretLeakError>, Failure> {
    let Some(searched) = build.secrets.searched() else { return Ok(Vec::new()) };
    Ok(look_through(layers, searched.scan(), SecretScan::look).await?.take_leaks())
}

/// Adds secrets that were found on the disk alone to those that were found in its files.
fn with_disk_leaks(failure: Option<Failure>, on_disk: Vec<SecretLeakError>) -> Failure {
    let in_files = failure.as_ref().and_then(Failure::fault::<SecretLeaks>);
    let mut leaks = in_files.cloned().unwrap_or_default();
    match failure {
        // An interruption or a deadline takes precedence over what was found so far.
        Some(failure) if in_files.is_none() => failure,
        _ => {
            leaks.add_unnamed(on_disk);
            leaks.into()
        }
    }
}

fn identity_of(plan: &Plan) -> DiskIdentity {
    let image = &plan.spec.image;
    DiskIdentity::new(&[&image.name, &image.version, &plan.build_key.to_string()])
}

/// Checks the sealed disk itself: it must have been unmounted cleanly, and must hold no identity. The guest's own report is
/// not sufficient.
fn check_sealed(build: &BuildContext<'_>, layers: &DiskFiles, evidence: &GuestEvidence) -> Result<(), Failure> {
    let chain = open_files(layers.clone())?;
    let view = SealedView::open(&chain, evidence)?;
    if !view.is_clean() {
        return Err(SealedDiskError::Unclean.into());
    }
    if let Some(error) = find_agent(&view)? {
        return Err(error.into());
    }
    let report = seal_audit::look(&view, &build.plan.spec.seal.skip)?;
    if let Some(error) = report.error {
        return Err(error.into());
    }
    for warning in report.warnings {
        build.events.notice(NoticeLevel::Warning, warning);
    }
    if !report.is_known {
        let text = "sealing was not verified for machine-id, host keys and the like: not all files are known";
        build.events.notice(NoticeLevel::Warning, text);
    }
    Ok(())
}

/// Returns the path that a disk file is written to: an unpublished one is in the scratch folder, and removed with it.
pub(crate) fn place(build: &BuildContext<'_>, disk: &DiskFile, staging: &Path) -> PathBuf {
    if disk.published { staging.join(&disk.file) } else { build.work.join(&disk.file) }
}
