//! A format that a published image lacks, made from one that it has.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf, absolute};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::disk::identity::Identity;
use crate::error::{Failure, Fault, Kind};
use crate::event::{Event, Events, Stage};
use crate::plan::check_size;
use crate::plan::output::{DiskFile, Outputs};
use crate::spec::{self, DiskFormat};
use crate::store::manifest::Output;
use crate::store::{Artifact, OnConflict, StoreError, give_name};

use super::disks::{Disks, aside, open};
use super::limits::Limits;

/// It cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// No file that holds the disk by itself.
    #[error("{0} has no file that holds its disk and nothing else")]
    NoDisk(String),
    /// A file in the store holds another disk than the manifest says.
    #[error("the disk in {file} has the SHA-256 {found}, and the manifest says {expected}")]
    OtherDisk {
        /// The file.
        file: String,
        /// Digest of its disk.
        found: String,
        /// What it should be.
        expected: String,
    },
}

impl Fault for ExportError {
    fn kind(&self) -> Kind {
        Kind::Output
    }
}

/// What the user asks for.
pub struct Wanted<'a> {
    /// A format, and a compression that it takes.
    pub output: spec::Output,
    /// A folder that is there or ends with a slash, or else the name of the file.
    pub target: &'a Path,
    /// What to do with a file that is there and differs.
    pub conflict: OnConflict,
}

/// Makes a format of a published image: checks the file it is made from, writes under a temporary name, reads that back, and
/// gives it its name. A file that is there with the same bytes is left alone. Gives the path, and what a manifest says of
/// such a file.
///
/// # Errors
/// When the image is damaged, the format has no room for its disk, a file is there that differs, or a call fails.
pub async fn export(
    artifact: &Artifact,
    wanted: &Wanted<'_>,
    events: &Events,
    cancel: CancellationToken,
) -> Result<(PathBuf, Output), Failure> {
    let (limits, began) = (Limits::new(cancel, Duration::MAX), Instant::now());
    events.emit(&Event::StageStarted { stage: Stage::Convert });
    let made = limits.hold(make(artifact, wanted, events)).await?;
    events.emit(&Event::StageFinished { stage: Stage::Convert, seconds: began.elapsed().as_secs_f64() });
    Ok(made)
}

async fn make(artifact: &Artifact, wanted: &Wanted<'_>, events: &Events) -> Result<(PathBuf, Output), Failure> {
    let (source, path, format) = source(artifact)?;
    check(artifact, &source.file).await?;
    let layers = vec![(path, format)];
    // A format of whole MiB may have added zeros.
    let there = open(layers.clone())?.virtual_size();
    let end = artifact.manifest().disk_bytes.filter(|end| *end < there);
    let (size, format) = (end.unwrap_or(there), wanted.output.format.disk());
    check_size(format, size)?;
    let id = artifact.id();
    let disk =
        Outputs::new(&format!("{}-{}", id.name(), id.version()), std::slice::from_ref(&wanted.output)).disks.remove(0);
    let target = target(wanted.target, &disk);
    let folder = target.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
    let scratch = tempfile::Builder::new().prefix(".kiln-").tempdir_in(folder);
    let scratch = scratch.map_err(StoreError::io("write to", folder))?;
    let (made, name) = (scratch.path().join(&disk.file), target.to_string_lossy().into_owned());
    let disks = Disks::new((layers, end), vec![(disk, made.clone())], identity(artifact), events)?;
    disks.write(async { None }).await?;
    let found = disks.read_back(|_, _| Ok(())).await?;
    let expected = artifact.manifest().disk_sha256.clone();
    if found != expected {
        return Err(ExportError::OtherDisk { file: source.file, found, expected }.into());
    }
    let (path, conflict) = (target.clone(), wanted.conflict);
    let digest = aside(move |_| Ok(give_name(&made, &path, conflict)?)).await?;
    let staged = Output::staged(name, wanted.output.format.name(), format.virtual_size(size));
    Ok((target, Output { bytes: digest.bytes, sha256: digest.sha256, ..staged }))
}

/// The file of an image that its disk is read from.
fn source(artifact: &Artifact) -> Result<(Output, PathBuf, DiskFormat), ExportError> {
    let disk = |output: &Output| {
        let format = DiskFormat::named(&output.format)?;
        Some((output.clone(), artifact.folder().join(&output.file), format))
    };
    let found = artifact.manifest().outputs.iter().find_map(disk);
    found.ok_or_else(|| ExportError::NoDisk(artifact.id().to_string()))
}

/// Whether the file has the bytes that were published.
async fn check(artifact: &Artifact, file: &str) -> Result<(), Failure> {
    let check = artifact.file_check(file)?;
    let watched = move |stop: &CancellationToken| {
        let watch = |_, _| if stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        Ok(check.run(&watch)?)
    };
    aside(watched).await
}

/// The file to write, absolute.
fn target(wanted: &Path, disk: &DiskFile) -> PathBuf {
    let path = absolute(wanted).unwrap_or_else(|_| wanted.to_owned());
    let is_folder = path.is_dir() || wanted.as_os_str().as_encoded_bytes().ends_with(b"/");
    if is_folder { path.join(&disk.file) } else { path }
}

/// The same as when the image was built.
fn identity(artifact: &Artifact) -> Identity {
    let manifest = artifact.manifest();
    Identity::new(&[&manifest.image.name, &manifest.image.version, &manifest.build_key])
}
