//! Where a base image is: a file of this host, a download, an image of the store, or what another spec makes.
//!
//! ```text
//! Spec (+ kiln.lock) -> locate -> Located -> survey -> Plan
//! ```
//!
//! A located base is a file and what is expected of it. It is looked into, and hashed, by the survey alone.

use std::any::Any;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::digest_cache::Memo;
use crate::download::{
    self, ChecksumError, DownloadError, Downloads, Location, Packing, Progress, Reach, Request, SumsTrust, Watch,
};
use crate::error::{Failure, Fault, Kind};
use crate::event::{Event, Events, Level, Stage};
use crate::plan::StoredBase;
use crate::plan::machine::format_name;
use crate::specfile::{BaseFormat, Remote, Source, Spec, Sums, Trust};
use crate::store::{Artifact, Reference, Store, StoreError};

use super::pins::{self, Pin, PinError, Pins};
use super::reach::{FileReach, check_base};

/// A base image on this host, not looked into yet.
#[derive(Debug, Clone)]
pub struct Located {
    /// The file.
    pub file: PathBuf,
    /// Its format.
    pub format: BaseFormat,
    /// The digest it must have, and who says so.
    pub expected: Option<(String, &'static str)>,
    /// Where it came from, as manifests say it.
    pub source: String,
    /// Which image of the store it is.
    pub image: Option<StoredBase>,
    /// Digest of what was downloaded, which may be packed.
    pub downloaded: Option<String>,
    /// An image of the store, or a download, is not removed while it is read.
    _held: Option<Arc<dyn Any + Send + Sync>>,
}

/// What `kiln.lock` is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locking {
    /// An entry that counts is followed; a stale one is told.
    Follow,
    /// There must be an entry that counts.
    Require,
    /// What is there is not looked at.
    Ignore,
}

/// Where base images are looked for.
#[derive(Clone)]
pub struct Bases {
    /// The store's folder.
    pub store: PathBuf,
    /// The cache, where downloads are.
    pub cache: PathBuf,
    /// Digests of what did not change.
    pub memo: Arc<Memo>,
    /// Who hears of stale locks and downloads.
    pub events: Events,
    /// What `kiln.lock` is good for.
    pub locking: Locking,
    /// Whether what is not here may be downloaded.
    pub reach: Reach,
    /// Which files of this host they may be.
    pub files: FileReach,
    /// Ends a download.
    pub cancel: CancellationToken,
}

/// There is no base image.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// An image of the store has no file in the format that was stated.
    #[error("the base image {id} has no {format} file")]
    NoFile {
        /// `name@version`
        id: String,
        /// `qcow2` or `raw`
        format: &'static str,
    },
    /// An image of the store is not there, or damaged.
    #[error("{source}")]
    Stored {
        /// What the store says.
        source: StoreError,
        /// Whether `kiln.lock` says which one it is.
        is_locked: bool,
    },
    /// What is downloaded is not what `kiln.lock` says.
    #[error(transparent)]
    NotLocked(DownloadError),
    /// A digest of `kiln.lock` is none.
    #[error(transparent)]
    Checksum(ChecksumError),
    /// The image of another spec is not in the store, or is of other inputs.
    #[error("the base image is not built yet, or out of date: {}", spec.display())]
    NotBuilt {
        /// The spec that makes it.
        spec: PathBuf,
    },
}

impl Fault for BaseError {
    fn kind(&self) -> Kind {
        Kind::Base
    }

    fn hints(&self) -> Vec<String> {
        let pinned = || format!("pinned by {}; `kiln lock` writes it anew", pins::FILE);
        match self {
            BaseError::Stored { source, is_locked } => {
                source.hints().into_iter().chain(is_locked.then(pinned)).collect()
            }
            BaseError::NotLocked(error) => error.hints().into_iter().chain([pinned()]).collect(),
            BaseError::NoFile { .. } => vec!["say with `base.format` which of its files is meant".into()],
            BaseError::NotBuilt { .. } => vec!["`kiln build` builds it first".into()],
            BaseError::Checksum(_) => vec!["`kiln lock` writes kiln.lock anew".into()],
        }
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            BaseError::NotLocked(error) => error.evidence(),
            _ => Vec::new(),
        }
    }
}

/// Whether a build would get over a failure by making or downloading the base image.
#[must_use]
pub fn is_yet_to_come(failure: &Failure) -> bool {
    matches!(failure.fault(), Some(BaseError::NotBuilt { .. }))
        || matches!(failure.fault(), Some(DownloadError::Offline(_)))
}

impl Bases {
    /// Finds the base image of a spec. `parent` is the image that its base's spec makes, if it is built on one.
    ///
    /// # Errors
    /// When there is none, when it leads out of the project and may not, or `kiln.lock` does not say what it has to.
    pub async fn locate(&self, spec: &Spec, parent: Option<Arc<Artifact>>) -> Result<Located, Failure> {
        check_base(spec, self.files, &self.events)?;
        let (pins, pin) = self.pin(spec)?;
        let mut located = match &spec.base.source {
            Source::File(file) => local(file, spec),
            Source::Url(remote) => self.download(remote, spec, pin.as_ref()).await?,
            Source::Image(image) => {
                let locked = pin.as_ref().and_then(|pin| pin.image.as_ref());
                let artifact = self.artifact(&locked.unwrap_or(image).parse()?, locked.is_some())?;
                stored(Arc::new(artifact), image.clone(), spec)?
            }
            Source::Spec { file, .. } => {
                let parent = parent.ok_or_else(|| BaseError::NotBuilt { spec: file.clone() })?;
                if let Some(pin) = pin.as_ref().filter(|_| self.locking == Locking::Require) {
                    pins.check_made(spec, pin, &parent.id().to_string())?;
                }
                stored(parent, pins::source(spec), spec)?
            }
        };
        if let Some(locked) = pin.and_then(|pin| pin.sha256).filter(|_| located.downloaded.is_none()) {
            located.expected.get_or_insert((locked, pins::FILE));
        }
        Ok(located)
    }

    /// An image of the store.
    fn artifact(&self, reference: &Reference, is_locked: bool) -> Result<Artifact, Failure> {
        Store::open(&self.store)?.artifact(reference).map_err(|error| match error {
            StoreError::NoImage { .. }
            | StoreError::NoVersion { .. }
            | StoreError::Dangling { .. }
            | StoreError::Damaged { .. }
            | StoreError::Malformed { .. }
            | StoreError::NewerSchema { .. }
            | StoreError::TooLarge { .. } => BaseError::Stored { source: error, is_locked }.into(),
            // The store itself is not as it should be, or this host.
            _ => error.into(),
        })
    }

    /// A download, from the cache or from elsewhere. What `kiln.lock` says of it is the digest of what is downloaded.
    async fn download(&self, remote: &Remote, spec: &Spec, pin: Option<&Pin>) -> Result<Located, Failure> {
        let locked = pin.and_then(|pin| pin.sha256.as_ref());
        let request = request(remote, spec.base.sha256.as_ref().or(locked)).map_err(BaseError::Checksum)?;
        let downloads = Downloads::open(&self.cache, Arc::clone(&self.memo), self.reach)?;
        let (teller, cancel) = (Teller::new(&self.events, remote.urls[0].as_str()), self.cancel.clone());
        let found = spawn_blocking(move || teller.watch(&cancel, |watch| downloads.fetch(&request, watch)));
        let is_locked = spec.base.sha256.is_none() && locked.is_some();
        let found = found.await.expect("downloading does not panic").map_err(|error| match error {
            error if is_locked && error.is_wrong_digest() => Failure::from(BaseError::NotLocked(error)),
            error => error.into(),
        })?;
        Ok(Located {
            file: found.path.clone(),
            format: spec.base.format,
            expected: Some((found.sha256.clone(), "download")),
            source: remote.urls[0].to_string(),
            image: None,
            downloaded: Some(found.source_sha256.clone()),
            _held: Some(Arc::new(found)),
        })
    }

    /// What `kiln.lock` says, and the entry that is followed.
    fn pin(&self, spec: &Spec) -> Result<(Pins, Option<Pin>), PinError> {
        if self.locking == Locking::Ignore {
            return Ok((Pins::default(), None));
        }
        let pins = Pins::beside(spec)?;
        let pin = match pins.find(spec) {
            Ok(pin) => Some(pin.clone()),
            Err(error) if self.locking == Locking::Require => return Err(error),
            Err(error @ PinError::Stale { .. }) => {
                self.events.notice(Level::Warning, format!("not followed: {error}"));
                None
            }
            Err(_) => None,
        };
        Ok((pins, pin))
    }
}

fn local(file: &Path, spec: &Spec) -> Located {
    Located {
        file: file.to_owned(),
        format: spec.base.format,
        expected: asked(spec),
        source: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        image: None,
        downloaded: None,
        _held: None,
    }
}

/// The file of a stored image that has the format the spec states.
fn stored(artifact: Arc<Artifact>, source: String, spec: &Spec) -> Result<Located, BaseError> {
    let manifest = artifact.manifest();
    let format = format_name(spec.base.format);
    let output = manifest.outputs.iter().find(|output| output.format == format);
    let output = output.ok_or_else(|| BaseError::NoFile { id: artifact.id().to_string(), format })?;
    let image = StoredBase {
        name: manifest.image.name.clone(),
        version: manifest.image.version.clone(),
        build_key: manifest.build_key.clone(),
        disk_sha256: manifest.disk_sha256.clone(),
    };
    Ok(Located {
        file: artifact.folder().join(&output.file),
        format: spec.base.format,
        expected: asked(spec),
        source,
        image: Some(image),
        downloaded: None,
        _held: Some(artifact),
    })
}

/// What a spec says of a download, with the digest that is known already.
fn request(remote: &Remote, sha256: Option<&String>) -> Result<Request, ChecksumError> {
    let pin = match (sha256, &remote.sums) {
        (None, Some(Sums { url: list, trust })) => {
            let trust = match trust {
                Trust::Sha256(sha256) => SumsTrust::Checksum(sha256.parse()?),
                Trust::Signature { url, key } => {
                    SumsTrust::Signature { signature: Location::Url(url.clone()), key: key.clone() }
                }
            };
            download::Pin::Sums(download::Sums { urls: vec![list.clone()], trust, file: None })
        }
        // A spec that has neither is refused when it is read.
        (sha256, _) => download::Pin::Checksum(sha256.map(String::as_str).unwrap_or_default().parse()?),
    };
    let packing = Packing::of(&remote.urls[0].file_name());
    Ok(Request { urls: remote.urls.clone(), pin, packing, limits: download::Limits::default() })
}

/// Tells of a download that takes place; of one that is there, nothing.
struct Teller {
    events: Events,
    url: String,
    began: Option<Instant>,
    bytes: u64,
}

impl Teller {
    fn new(events: &Events, url: &str) -> Self {
        Self { events: events.clone(), url: url.to_owned(), began: None, bytes: 0 }
    }

    fn watch<T, E>(
        mut self,
        cancel: &CancellationToken,
        work: impl FnOnce(&mut Watch<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let events = self.events.clone();
        let mut notice = |text| events.notice(Level::Info, text);
        let mut warning = |text| events.notice(Level::Warning, text);
        let mut progress = |progress| self.progress(progress, cancel);
        let done = work(&mut Watch::new(&mut progress, &mut notice).with_warnings(&mut warning))?;
        if let Some(began) = self.began {
            let (bytes, seconds) = (self.bytes, began.elapsed().as_secs_f64());
            self.events.emit(&Event::DownloadFinished { bytes, seconds });
        }
        Ok(done)
    }

    fn progress(
        &mut self,
        Progress { done, total, is_download }: Progress,
        cancel: &CancellationToken,
    ) -> ControlFlow<()> {
        if cancel.is_cancelled() {
            return ControlFlow::Break(());
        }
        if is_download && done > 0 {
            self.began.get_or_insert_with(|| {
                self.events.emit(&Event::DownloadStarted { url: self.url.clone() });
                Instant::now()
            });
            self.bytes = done;
            self.events.emit(&Event::Progress { stage: Stage::Base, done, total: total.unwrap_or(0) });
        }
        ControlFlow::Continue(())
    }
}

/// The digest that the spec asks for.
fn asked(spec: &Spec) -> Option<(String, &'static str)> {
    spec.base.sha256.clone().map(|sha256| (sha256, "spec"))
}
