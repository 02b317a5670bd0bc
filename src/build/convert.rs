//! The sealed disk becomes output files, and is read once more for its digests.

use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;

use crate::disk::identity::Identity;
use crate::error::{Failure, Fault, Kind};
use crate::event::Level;
use crate::plan::Plan;
use crate::plan::output::DiskFile;

use super::contents::{self, Contents, GuestEvidence, SealedView};
use super::disks::{Disks, Layers, open};
use super::identity;
use super::lanes::all;
use super::package::{facts, package};
use super::secret_scan::SearchedSecrets;
use super::survey::{check_base, remember_base};
use super::twin::BaseTwin;
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
    build: &Build<'_>,
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
    let disks = Disks::new((layers, None), files, identity_of(build.plan), &build.events)?;
    let twin = async { twin?.ready().await };
    let done = async {
        disks.write(twin).await?;
        let disk_sha256 = disks.read_back(search(build)).await?;
        let packaged = build.plan.outputs.disks.iter().enumerate().map(async |(index, disk)| {
            let (path, facts) = (place(build, disk, staging), facts(build, disk));
            package(&build.plan.outputs, index, &path, &facts, staging).await
        });
        all(packaged.collect()).await?;
        Ok::<_, Failure>(disk_sha256)
    };
    let disk_sha256 = build.limits.hold(done).await?;
    Ok(Converted { disk_sha256, contents })
}

fn identity_of(plan: &Plan) -> Identity {
    let image = &plan.spec.image;
    Identity::new(&[&image.name, &image.version, &plan.build_key.to_string()])
}

/// The guest's word is not enough: its root file system has to say the same.
fn check_sealed(build: &Build<'_>, layers: &Layers, evidence: &GuestEvidence) -> Result<(), Failure> {
    let chain = open(layers.clone())?;
    let view = SealedView::open(&chain, evidence)?;
    if !view.is_clean() {
        return Err(SealedDiskError::Unclean.into());
    }
    let report = identity::look(&view, &build.plan.spec.seal.skip)?;
    if let Some(error) = report.error {
        return Err(error.into());
    }
    for warning in report.warnings {
        build.events.notice(Level::Warning, warning);
    }
    if !report.is_known {
        let text =
            "whether sealing took away machine-id, host keys and the like was not checked: not all files are known";
        build.events.notice(Level::Warning, text);
    }
    Ok(())
}

/// Where a disk file is written: what is not published goes with the scratch folder.
pub(crate) fn place(build: &Build<'_>, disk: &DiskFile, staging: &Path) -> PathBuf {
    if disk.published { staging.join(&disk.file) } else { build.work.join(&disk.file) }
}

/// Looks for secrets in what it is shown, if there are any.
fn search(build: &Build<'_>) -> impl FnMut(u64, &[u8]) -> Result<(), Failure> + Send + 'static {
    let mut scan = build.secrets.searched().map(SearchedSecrets::scan);
    move |at, bytes| {
        let leak = scan.as_mut().and_then(|scan| scan.look(at, bytes));
        leak.map_or(Ok(()), |leak| Err(leak.into()))
    }
}
