//! Converts the sealed disk to output files, and reads them back for their digests.

use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;

use crate::cache::base_twin::BaseTwin;
use crate::context::BuildContext;
use crate::digest::Sha256Digest;
use crate::disk::identity::DiskIdentity;
use crate::error::{Failure, Fault, Kind};
use crate::event::NoticeLevel;
use crate::output::contents::SealedDisk;
use crate::plan::Plan;
use crate::plan::output::DiskFile;
use crate::resolve::facts::{check_base, remember_base};
use crate::secret_scan::{SearchedSecrets, SecretLeakError, SecretLeaks, SecretScan};
use crate::try_join::all;

use super::contents::{self, Contents, GuestEvidence, SealedView};
use super::disk_files::DiskFileWriter;
use super::package::{facts, package};
use super::seal_audit::{self, planted::find_agent};
use crate::disk::chain::{DiskFiles, open_files};

/// The outputs in the staging folder, and the properties of the disk that they all hold.
#[derive(Debug)]
pub struct Converted {
    /// Digest of the disk that the guest sees.
    pub disk_sha256: Sha256Digest,
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
    staging: &Path,
) -> Result<Converted, Failure> {
    let layers = sealed.disk.chain;
    check_base(build.plan)?;
    remember_base(build.plan, &build.memo);
    check_sealed(build, &layers, &sealed.evidence)?;
    let contents = contents::read(build, layers.clone(), sealed.evidence, staging)?;
    let files = build.plan.outputs.disks.iter().map(|disk| (disk.clone(), place(build, disk, staging))).collect();
    let disks = DiskFileWriter::new((layers, None), files, identity_of(build.plan), &build.events)?;
    let scan = build.secrets.searched().map(SearchedSecrets::scan);
    let twin = async { twin?.ready().await };
    let done = async {
        disks.write(twin).await?;
        let (disk_sha256, scan) = disks.read_back(scan, look).await?;
        let packaged = build.plan.outputs.disks.iter().enumerate().map(async |(index, disk)| {
            let (path, facts) = (place(build, disk, staging), facts(build, disk));
            package(&build.plan.outputs, index, &path, &facts, staging).await
        });
        all(packaged.collect()).await?;
        Ok::<_, Failure>((disk_sha256, scan))
    };
    let (disk_sha256, scan) = build.limits.hold(done).await?;
    let leaks = scan.map(|mut scan| scan.take_leaks()).unwrap_or_default();
    if leaks.is_empty() {
        return Ok(Converted { disk_sha256, contents });
    }
    // A file that contains a secret says more than its place on the disk.
    let contents = async { contents.await.expect("reading the tree does not panic") };
    Err(with_disk_leaks(build.limits.hold(contents).await.err(), leaks))
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

/// Searches a piece of the disk for secrets, if there are any.
fn look(scan: &mut Option<SecretScan>, at: u64, bytes: &[u8]) {
    if let Some(scan) = scan {
        scan.look(at, bytes);
    }
}
