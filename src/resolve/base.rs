//! Locates a base image: a file of this host, a download, an image of the store, or the image of another spec.
//!
//! ```text
//! Spec (+ kiln.lock) -> locate -> Located -> survey -> Plan
//! ```
//!
//! A located base image is a file and the digest that it is expected to have. It is inspected and hashed by the survey
//! alone.

use std::any::Any;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::digest::Sha256Digest;
use crate::digest_cache::DigestCache;
use crate::download::{
    self, DownloadCache, DownloadError, DownloadProgress, DownloadRequest, DownloadWatch, FileCompression, Location,
    NetworkMode, SumsTrust,
};
use crate::error::{Failure, Fault, Kind};
use crate::event::{Event, Events, NoticeLevel, Stage};
use crate::plan::StoredBase;
use crate::plan::machine::format_name;
use crate::specfile::{BaseFormat, BaseSource, KernelSpec, RemoteBase, Spec, SumsSpec, SumsVerification};
use crate::store::manifest::{ManifestKernel, StoredFile};
use crate::store::{Artifact, Reference, Store, StoreError};
use crate::url::Url;

use super::lockfile::{self, LockEntry, LockFile, PinError};
use super::path_policy::{FileReach, check_base};

/// A base image on this host, not inspected yet.
#[derive(Debug, Clone)]
pub struct LocatedBase {
    /// Path of the image file.
    pub file: PathBuf,
    /// Format of the file.
    pub format: BaseFormat,
    /// The digest that the file must have, and the origin of that digest.
    pub expected: Option<(Sha256Digest, DigestOrigin)>,
    /// Origin of the base image, as manifests record it.
    pub source: String,
    /// The image of the store that it is, if it is one.
    pub image: Option<StoredBase>,
    /// Digest of the downloaded file, which may be compressed.
    pub downloaded: Option<Sha256Digest>,
    /// The kernel beside it: that of the spec, or of the image of the store.
    pub kernel: Option<KernelSpec>,
    /// Keeps an image of the store, or a download, from being removed while it is read.
    _held: Option<Arc<dyn Any + Send + Sync>>,
}

/// The origin of the digest that a base image must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigestOrigin {
    Spec,
    Lockfile,
    Download,
}

impl fmt::Display for DigestOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DigestOrigin::Spec => "spec",
            DigestOrigin::Lockfile => lockfile::FILE,
            DigestOrigin::Download => "download",
        })
    }
}

/// The way in which `kiln.lock` is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockfileMode {
    /// An entry that applies is followed; a stale one is reported.
    Follow,
    /// An entry that applies is required.
    Require,
    /// Existing entries are ignored.
    Ignore,
}

/// The places where base images are located, and the rules for that.
#[derive(Clone)]
pub struct BaseResolver {
    /// Path of the store.
    pub store: PathBuf,
    /// Path of the cache, which holds downloads.
    pub cache: PathBuf,
    /// The digest cache, for unchanged files.
    pub memo: Arc<DigestCache>,
    /// Receives warnings about stale locks, and the progress of downloads.
    pub events: Events,
    /// How `kiln.lock` is used.
    pub locking: LockfileMode,
    /// Whether missing files may be downloaded.
    pub reach: NetworkMode,
    /// The files of this host that base images may be.
    pub files: FileReach,
    /// Cancels a download.
    pub cancel: CancellationToken,
}

/// The reason why there is no base image.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// An image of the store has no file in the format that the spec states.
    #[error("the base image {id} has no {format} file")]
    NoFile {
        /// The image, `name@version`.
        id: String,
        /// Name of the format, `qcow2` or `raw`.
        format: &'static str,
    },
    /// An image of the store is missing or damaged.
    #[error("{source}")]
    Stored {
        /// The error of the store.
        source: StoreError,
        /// Whether `kiln.lock` names the image.
        is_locked: bool,
    },
    /// A downloaded file is not the one that `kiln.lock` records.
    #[error(transparent)]
    NotLocked(DownloadError),
    /// Nothing verifies a download.
    #[error("the download {0} cannot be verified: its digest is not known")]
    Unverified(Url),
    /// The image of another spec is not in the store, or was built from other inputs.
    #[error("the base image is not built yet, or out of date: {}", spec.display())]
    NotBuilt { spec: PathBuf },
}

impl Fault for BaseError {
    fn kind(&self) -> Kind {
        Kind::Base
    }

    fn hints(&self) -> Vec<String> {
        let pinned = format!("pinned by {}; `kiln lock` updates it", lockfile::FILE);
        match self {
            BaseError::Stored { source, is_locked } => {
                source.hints().into_iter().chain(is_locked.then_some(pinned)).collect()
            }
            BaseError::NotLocked(error) => error.hints().into_iter().chain([pinned]).collect(),
            BaseError::NoFile { .. } => vec!["say with `base.format` which of its files is meant".into()],
            BaseError::NotBuilt { .. } => vec!["`kiln build` builds it first".into()],
            BaseError::Unverified(_) => vec!["set `base.sha256` or `base.sums`".into()],
        }
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            BaseError::NotLocked(error) => error.evidence(),
            _ => Vec::new(),
        }
    }
}

/// Returns whether a build would overcome a failure by building or downloading the base image itself.
pub fn is_yet_to_come(failure: &Failure) -> bool {
    matches!(failure.fault(), Some(BaseError::NotBuilt { .. }))
        || matches!(failure.fault(), Some(DownloadError::Offline(_)))
}

impl BaseResolver {
    /// Locates the base image of a spec. `parent` is the image of the spec that it is built on, if there is one.
    ///
    /// # Errors
    /// When there is no base image, when it is outside of the project and must not be, or when `kiln.lock` lacks a required
    /// entry.
    pub async fn locate(&self, spec: &Spec, parent: Option<Arc<Artifact>>) -> Result<LocatedBase, Failure> {
        check_base(spec, self.files, &self.events)?;
        let (pins, pin) = self.pin(spec)?;
        let mut located = match &spec.base.source {
            BaseSource::File(file) => local(file, spec),
            BaseSource::Url(remote) => self.download(remote, spec, pin.as_ref()).await?,
            BaseSource::Image(image) => {
                let locked = pin.as_ref().and_then(|pin| pin.image.as_ref());
                let artifact = self.artifact(&locked.unwrap_or(image).parse()?, locked.is_some())?;
                stored(Arc::new(artifact), image.clone(), spec)?
            }
            BaseSource::Spec { file, .. } => {
                let parent = parent.ok_or_else(|| BaseError::NotBuilt { spec: file.clone() })?;
                if let Some(pin) = pin.as_ref().filter(|_| self.locking == LockfileMode::Require) {
                    pins.check_made(spec, pin, &parent.id().to_string())?;
                }
                stored(parent, lockfile::source(spec), spec)?
            }
        };
        if let Some(locked) = pin.and_then(|pin| pin.sha256).filter(|_| located.downloaded.is_none()) {
            located.expected.get_or_insert((locked, DigestOrigin::Lockfile));
        }
        if spec.base.kernel.is_some() {
            located.kernel.clone_from(&spec.base.kernel);
        }
        Ok(located)
    }

    /// Returns an image of the store.
    fn artifact(&self, reference: &Reference, is_locked: bool) -> Result<Artifact, Failure> {
        Store::open(&self.store)?.artifact(reference).map_err(|error| match error {
            StoreError::NoImage { .. }
            | StoreError::NoVersion { .. }
            | StoreError::Dangling { .. }
            | StoreError::Damaged { .. }
            | StoreError::Malformed { .. }
            | StoreError::NewerSchema { .. }
            | StoreError::TooLarge { .. } => BaseError::Stored { source: error, is_locked }.into(),
            // The store itself, or this host, is not as it should be.
            _ => error.into(),
        })
    }

    /// Locates a download, in the cache or elsewhere. The digest in `kiln.lock` is that of the downloaded file.
    async fn download(
        &self,
        remote: &RemoteBase,
        spec: &Spec,
        pin: Option<&LockEntry>,
    ) -> Result<LocatedBase, Failure> {
        let locked = pin.and_then(|pin| pin.sha256);
        let request = request(remote, spec.base.sha256.or(locked))?;
        let downloads = DownloadCache::open(&self.cache, Arc::clone(&self.memo), self.reach)?;
        let reporter = DownloadReporter::new(&self.events, remote.urls[0].as_str());
        let cancel = self.cancel.clone();
        let found = spawn_blocking(move || reporter.watch(&cancel, |watch| downloads.fetch(&request, watch)));
        let is_locked = spec.base.sha256.is_none() && locked.is_some();
        let found = found.await.expect("downloading does not panic").map_err(|error| match error {
            error if is_locked && error.is_wrong_digest() => Failure::from(BaseError::NotLocked(error)),
            error => error.into(),
        })?;
        Ok(LocatedBase {
            file: found.path.clone(),
            format: spec.base.format,
            expected: Some((found.sha256, DigestOrigin::Download)),
            source: remote.urls[0].to_string(),
            image: None,
            downloaded: Some(found.source_sha256),
            kernel: None,
            _held: Some(Arc::new(found)),
        })
    }

    /// Returns the entries of `kiln.lock`, and the one that is followed.
    fn pin(&self, spec: &Spec) -> Result<(LockFile, Option<LockEntry>), PinError> {
        if self.locking == LockfileMode::Ignore {
            return Ok((LockFile::default(), None));
        }
        let pins = LockFile::beside(spec)?;
        let pin = match pins.find(spec) {
            Ok(pin) => Some(pin.clone()),
            Err(error) if self.locking == LockfileMode::Require => return Err(error),
            Err(error @ PinError::Stale { .. }) => {
                self.events.notice(NoticeLevel::Warning, format!("not followed: {error}"));
                None
            }
            Err(_) => None,
        };
        Ok((pins, pin))
    }
}

fn local(file: &Path, spec: &Spec) -> LocatedBase {
    LocatedBase {
        file: file.to_owned(),
        format: spec.base.format,
        expected: asked(spec),
        source: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        image: None,
        downloaded: None,
        kernel: None,
        _held: None,
    }
}

/// Locates the file of a stored image that has the format that the spec states.
fn stored(artifact: Arc<Artifact>, source: String, spec: &Spec) -> Result<LocatedBase, BaseError> {
    let manifest = artifact.manifest();
    let format = format_name(spec.base.format);
    let output = manifest.outputs.iter().find(|output| output.format == format);
    let output = output.ok_or_else(|| BaseError::NoFile { id: artifact.id().to_string(), format })?;
    let image = StoredBase {
        name: manifest.image.name.clone(),
        version: manifest.image.version.clone(),
        build_key: manifest.build_key.clone(),
        disk_sha256: manifest.disk_sha256,
        disk_chunks_sha256: manifest.disk_chunks_sha256,
        kiln: manifest.kiln.clone(),
    };
    Ok(LocatedBase {
        file: artifact.folder().join(&output.file),
        format: spec.base.format,
        expected: asked(spec),
        source,
        image: Some(image),
        downloaded: None,
        kernel: manifest.kernel.as_ref().map(|kernel| stored_kernel(&artifact, kernel)),
        _held: Some(artifact),
    })
}

/// Returns the kernel of a stored image by the paths of its files.
fn stored_kernel(artifact: &Artifact, kernel: &ManifestKernel) -> KernelSpec {
    let path = |file: &StoredFile| artifact.folder().join(&file.file);
    KernelSpec { file: path(&kernel.image), initrd: kernel.initrd.as_ref().map(path), cmdline: kernel.cmdline.clone() }
}

/// Returns the request for a download as the spec describes it, with the digest that is already known.
fn request(remote: &RemoteBase, sha256: Option<Sha256Digest>) -> Result<DownloadRequest, BaseError> {
    let pin = match (sha256, &remote.sums) {
        (None, Some(SumsSpec { url: list, trust })) => {
            let trust = match trust {
                SumsVerification::Sha256(sha256) => SumsTrust::Checksum((*sha256).into()),
                SumsVerification::Signature { url, key } => {
                    SumsTrust::Signature { signature: Location::Url(url.clone()), key: key.clone() }
                }
            };
            download::DownloadPin::Sums(download::ChecksumList { urls: vec![list.clone()], trust, file: None })
        }
        (Some(sha256), _) => download::DownloadPin::Checksum(sha256.into()),
        // Such a spec is refused when it is read.
        (None, None) => return Err(BaseError::Unverified(remote.urls[0].clone())),
    };
    let packing = FileCompression::of(&remote.urls[0].file_name());
    Ok(DownloadRequest { urls: remote.urls.clone(), pin, packing, limits: download::DownloadLimits::default() })
}

/// A listener that reports downloads that take place, and is silent about files that are in the cache.
struct DownloadReporter {
    events: Events,
    url: String,
    began: Option<Instant>,
    bytes: u64,
}

impl DownloadReporter {
    fn new(events: &Events, url: &str) -> Self {
        Self { events: events.clone(), url: url.to_owned(), began: None, bytes: 0 }
    }

    fn watch<T, E>(
        mut self,
        cancel: &CancellationToken,
        work: impl FnOnce(&mut DownloadWatch<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let events = self.events.clone();
        let done = work(
            &mut DownloadWatch::new(cancel, &mut |progress| self.progress(progress), &mut |text| {
                events.notice(NoticeLevel::Info, text);
            })
            .with_warnings(&mut |text| events.notice(NoticeLevel::Warning, text)),
        )?;
        if let Some(began) = self.began {
            let seconds = began.elapsed().as_secs_f64();
            self.events.emit(&Event::DownloadFinished { bytes: self.bytes, seconds });
        }
        Ok(done)
    }

    fn progress(&mut self, DownloadProgress { done, total, is_download }: DownloadProgress) {
        if is_download && done > 0 {
            self.began.get_or_insert_with(|| {
                self.events.emit(&Event::DownloadStarted { url: self.url.clone() });
                Instant::now()
            });
            self.bytes = done;
            self.events.emit(&Event::Progress { stage: Stage::Base, done, total: total.unwrap_or(0) });
        }
    }
}

/// Returns the digest that the spec requires.
fn asked(spec: &Spec) -> Option<(Sha256Digest, DigestOrigin)> {
    spec.base.sha256.map(|sha256| (sha256, DigestOrigin::Spec))
}
