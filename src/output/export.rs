//! Exports of a published image: a format that it lacks, produced from one that it has.

use std::fs::File;
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::context::in_stage;
use crate::deadline::Deadline;
use crate::digest::Sha256Digest;
use crate::disk::chunk_index::ChunkIndex;
use crate::disk::identity::DiskIdentity;
use crate::error::{Failure, Fault, Kind};
use crate::event::{Events, NoticeLevel, Stage};
use crate::package::content::PackageContent;
use crate::package::{PackageError, PackageFacts, simplestreams};
use crate::plan::check_size;
use crate::plan::output::Outputs;
use crate::plan::output::without_kernel;
use crate::progress::run_blocking;
use crate::size::ByteSize;
use crate::specfile::{self, DiskFormat, FirmwareKind, OutputFormat};
use crate::store::manifest::{Manifest, ManifestOutput};
use crate::store::{Artifact, OnConflict, StoreError, give_names};

use super::disk_files::{DiskFileWriter, chunks_of, sha256_of};
use super::package::package;
use super::publish::staged_outputs;
use crate::disk::chain::{DiskFiles, open_files};

/// The reason why a format cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The image has no output that is a disk file by itself.
    #[error("{0} has no disk image, only packages")]
    NoDisk(String),
    /// The manifest has no digest of the disk.
    #[error("the manifest has neither disk_chunks_sha256 nor disk_sha256, so that the disk cannot be checked")]
    NoDigest,
    /// A file in the store holds another disk than the manifest records.
    #[error("the disk in {file} has the {digest} {found}, and the manifest says {expected}")]
    OtherDisk {
        /// Name of the file.
        file: String,
        /// Name of the digest in the manifest.
        digest: &'static str,
        /// Digest of the disk in the file.
        found: Sha256Digest,
        /// Digest that the manifest records.
        expected: Sha256Digest,
    },
}

impl Fault for ExportError {
    fn kind(&self) -> Kind {
        Kind::Output
    }

    fn hints(&self) -> Vec<String> {
        match self {
            ExportError::NoDisk(_) => {
                vec!["build it with an `[[output]]` of the format qcow2 beside its packages".into()]
            }
            ExportError::NoDigest | ExportError::OtherDisk { .. } => Vec::new(),
        }
    }
}

/// The export that the user asks for.
pub struct ExportOptions<'a> {
    /// The format, and a compression that it accepts.
    pub output: specfile::OutputSpec,
    /// A folder that exists or ends with a slash; otherwise the name of the file, if the format consists of a single one.
    pub target: &'a Path,
    /// What to do with an existing file that differs.
    pub conflict: OnConflict,
}

/// Exports a published image to a format: checks the file that is converted, writes under a temporary name, reads that
/// back, and renames it. An existing file with the same bytes is kept. Returns the files as a manifest lists them, with
/// their paths.
///
/// # Errors
/// When the image is damaged, the disk does not fit into the format, an existing file differs, or a call fails.
pub async fn export(
    artifact: &Artifact,
    wanted: &ExportOptions<'_>,
    events: &Events,
    cancel: CancellationToken,
) -> Result<Vec<ManifestOutput>, Failure> {
    let wish = absolute(wanted.target).unwrap_or_else(|_| wanted.target.to_owned());
    let is_folder = wish.is_dir()
        || wanted.target.as_os_str().as_encoded_bytes().ends_with(b"/")
        || wanted.output.format.besides().len() + usize::from(wanted.output.format.keeps_disk()) > 1;
    let folder = if is_folder { &wish } else { wish.parent().unwrap_or(Path::new("/")) };
    let scratch = scratch(folder)?;
    let limits = Deadline::new(cancel, Duration::MAX);
    if let Some(note) = without_kernel(wanted.output.format).filter(|_| artifact.manifest().kernel.is_some()) {
        events.notice(NoticeLevel::Warning, note);
    }
    let made = make(artifact, &wanted.output, scratch.path(), events);
    let mut made = limits.hold(in_stage(events, Stage::Convert, made)).await?;
    let names = made.iter().map(|output| {
        let target = if is_folder { wish.join(&output.file) } else { wish.clone() };
        (scratch.path().join(&output.file), target)
    });
    let names: Vec<_> = names.collect();
    let conflict = wanted.conflict;
    let named = run_blocking(move |_| Ok::<_, StoreError>((give_names(&names, conflict)?, names)));
    let (digests, names) = limits.hold(named).await?;
    for ((output, digest), (_, target)) in made.iter_mut().zip(digests).zip(names) {
        output.file = target.to_string_lossy().into_owned();
        (output.bytes, output.sha256) = (digest.bytes, digest.sha256);
    }
    Ok(made)
}

/// Adds a published image to a tree of images that Incus and LXD read over HTTPS, which is created if missing. Returns the
/// image's files in it.
///
/// # Errors
/// When the image is damaged, another one is listed in its place, or a call fails.
pub async fn add_to_tree(
    artifact: &Artifact,
    tree: &Path,
    conflict: OnConflict,
    events: &Events,
    cancel: CancellationToken,
) -> Result<Vec<PathBuf>, Failure> {
    // The disk is copied in that format; the files beside it are generated for the tree.
    let compression = OutputFormat::Incus.compressions()[0];
    let output = specfile::OutputSpec { format: OutputFormat::Qcow2, compression, platforms: Vec::new() };
    let tree = absolute(tree).unwrap_or_else(|_| tree.to_owned());
    let scratch = scratch(&tree)?;
    let limits = Deadline::new(cancel, Duration::MAX);
    let made = make(artifact, &output, scratch.path(), events);
    let disk = limits.hold(in_stage(events, Stage::Convert, made)).await?.remove(0);
    let facts = facts(artifact.manifest(), disk.virtual_bytes);
    let file = scratch.path().join(&disk.file);
    let added = run_blocking(move |progress| {
        let disk = PackageContent::file(File::open(&file).map_err(PackageError::Read)?)?;
        simplestreams::add(&tree, &facts, &disk, conflict, progress)
    });
    limits.hold(added).await
}

/// Copies an image's files, or one of them, into a folder, as [`Artifact::export`] does, until the command is interrupted.
/// Returns the paths of the image files.
///
/// # Errors
/// When an existing file differs, or a call fails.
pub async fn copy(
    artifact: &Arc<Artifact>,
    file: Option<String>,
    folder: &Path,
    conflict: OnConflict,
    cancel: CancellationToken,
) -> Result<Vec<PathBuf>, Failure> {
    let artifact = Arc::clone(artifact);
    let folder = folder.to_owned();
    let copied = run_blocking(move |progress| match file {
        Some(file) => Ok(vec![artifact.export_file(&file, &folder, conflict, progress)?]),
        None => artifact.export(&folder, conflict, progress),
    });
    Deadline::new(cancel, Duration::MAX).hold(copied).await
}

/// Returns the SHA-256 of an image's disk: the one in the manifest, or that of the disk in one of its files.
///
/// # Errors
/// When the image has no disk file, the file is damaged, or a call fails.
pub async fn disk_sha256(artifact: &Artifact, cancel: CancellationToken) -> Result<Sha256Digest, Failure> {
    if let Some(known) = artifact.manifest().disk_sha256 {
        return Ok(known);
    }
    let hashed = async {
        let (source, path, format) = source(artifact)?;
        check(artifact, &source.file).await?;
        let (layers, end) = (vec![(path, format)], artifact.manifest().disk_bytes);
        let chunks = chunks_of(layers.clone(), end).await?;
        check_disk(artifact.manifest(), &chunks, (layers.clone(), end), source.file).await?;
        sha256_of(layers, end).await
    };
    Deadline::new(cancel, Duration::MAX).hold(hashed).await
}

/// Creates a folder for unfinished files, on the file system of the target.
fn scratch(folder: &Path) -> Result<TempDir, StoreError> {
    std::fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
    tempfile::Builder::new().prefix(".kiln-").tempdir_in(folder).map_err(StoreError::io("write to", folder))
}

/// Writes every file of an output in the folder, and reads the disk back. The files are not hashed yet.
async fn make(
    artifact: &Artifact,
    output: &specfile::OutputSpec,
    folder: &Path,
    events: &Events,
) -> Result<Vec<ManifestOutput>, Failure> {
    let (source, path, format) = source(artifact)?;
    check(artifact, &source.file).await?;
    let layers = vec![(path, format)];
    // A format that holds whole MiB may have added zeros.
    let there = open_files(layers.clone())?.virtual_size();
    let end = artifact.manifest().disk_bytes.filter(|end| *end < there);
    let size = end.unwrap_or(there);
    check_size(output.format, size)?;
    let id = artifact.id();
    let outputs = Outputs::new(&format!("{}-{}", id.name(), id.version()), std::slice::from_ref(output));
    let disk = &outputs.disks[0];
    let made = folder.join(&disk.file);
    let disks =
        DiskFileWriter::new((layers.clone(), end), vec![(disk.clone(), made.clone())], identity(artifact), events)?;
    disks.write(async { None }).await?;
    let chunks = disks.read_back(None).await?;
    check_disk(artifact.manifest(), &chunks, (layers, end), source.file).await?;
    let facts = facts(artifact.manifest(), disk.format.virtual_size(size));
    package(&outputs, 0, &made, &facts, folder).await?;
    Ok(staged_outputs(&outputs, size))
}

/// Checks that a disk is the one that the manifest describes, by one of the digests that it has.
async fn check_disk(
    manifest: &Manifest,
    chunks: &ChunkIndex,
    (layers, end): (DiskFiles, Option<u64>),
    file: String,
) -> Result<(), Failure> {
    let (digest, expected, found) = match (manifest.disk_chunks_sha256, manifest.disk_sha256) {
        (Some(expected), _) => ("disk_chunks_sha256", expected, chunks.sha256()),
        (None, Some(expected)) => ("disk_sha256", expected, sha256_of(layers, end).await?),
        (None, None) => return Err(ExportError::NoDigest.into()),
    };
    if found == expected {
        return Ok(());
    }
    Err(ExportError::OtherDisk { file, digest, found, expected }.into())
}

/// Returns the image's description for packages, the same as when it was built.
fn facts(manifest: &Manifest, disk_size: u64) -> PackageFacts {
    let image = &manifest.image;
    let machine = &manifest.machine;
    PackageFacts {
        name: image.name.clone(),
        version: image.version.clone(),
        description: image.description.clone(),
        disk_size,
        cpus: machine.cpus,
        memory: ByteSize(machine.memory),
        firmware: FirmwareKind::named(&machine.firmware).unwrap_or_default(),
        time: u64::try_from(manifest.source_date_epoch.unwrap_or(manifest.started.as_second())).unwrap_or(0),
    }
}

/// Returns the file of an image from which its disk is read.
fn source(artifact: &Artifact) -> Result<(ManifestOutput, PathBuf, DiskFormat), ExportError> {
    let disk = artifact.manifest().outputs.iter().find_map(|output| {
        let format = DiskFormat::named(&output.format)?;
        Some((output.clone(), artifact.folder().join(&output.file), format))
    });
    disk.ok_or_else(|| ExportError::NoDisk(artifact.id().to_string()))
}

/// Checks that a file has the bytes that were published.
async fn check(artifact: &Artifact, file: &str) -> Result<(), Failure> {
    let check = artifact.file_check(file)?;
    Ok(run_blocking(move |progress| check.run(progress)).await?)
}

/// Returns the image's identity for packages, the same as when it was built.
fn identity(artifact: &Artifact) -> DiskIdentity {
    let manifest = artifact.manifest();
    DiskIdentity::new(&[&manifest.image.name, &manifest.image.version, &manifest.build_key])
}
