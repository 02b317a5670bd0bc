//! `kiln.lock`: the base images that the specs of a folder were last locked to, and what their steps downloaded, so that
//! others build on the same ones.
//!
//! It is TOML beside the specs, to be kept in git. `kiln lock` writes the base images; such an entry applies as long as the
//! spec names the same base image as when the entry was written. Builds write the downloads of specs with a locked network.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::digest::Sha256Digest;
use crate::error::{Fault, FileError, Kind};
use crate::fs::{FileLock, OnConflict, publish};
use crate::network_record::NetworkRecord;
use crate::specfile::{BaseSource, HostPattern, Spec, SumsVerification};

use super::network_lock::NetworkEntry;

/// The name of the lock file in a spec's folder.
pub const FILE: &str = "kiln.lock";
/// The schema version that this kiln writes, and the newest it reads.
const SCHEMA: u32 = 1;
/// The size of the largest lock file that is read or written, bytes: enough for thirty specs with a thousand downloads each.
const LARGEST: u64 = 16 << 20;
/// The comment at the beginning of the lock file.
const HEADER: &str =
    "# The base images and downloads of the specs in this folder. Written by `kiln lock` and builds: keep it in git.\n";
/// The number of URLs that an error names.
const NAMED_URLS: usize = 5;
/// The interval between attempts to lock a folder, and their number. A lock file is written in milliseconds, but anybody
/// who can read the folder could hold its lock for ever.
const TURN: Duration = Duration::from_millis(20);
const MOST_TURNS: usize = 500;

/// The lock file is not usable, or lacks what is required of it.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The lock file cannot be read or written.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The content is not what kiln writes.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        path: PathBuf,
        /// The error in the content.
        why: String,
    },
    /// The downloads of a build cannot be recorded.
    #[error("{} cannot record the downloads of {spec}: {why}", path.display())]
    Unrecordable {
        path: PathBuf,
        /// Name of the spec, with its variant.
        spec: String,
        /// The value that cannot be recorded.
        why: String,
    },
    /// `--locked` was given, and steps made requests without a recorded answer.
    #[error(
        "{} has no answer to {} of the steps of {spec}, and --locked asks for one",
        path.display(),
        if urls.len() == 1 { "a request".to_owned() } else { format!("{} requests", urls.len()) }
    )]
    NotRecorded {
        path: PathBuf,
        /// Name of the spec, with its variant.
        spec: String,
        /// The URLs of the requests.
        urls: Vec<String>,
    },
    /// `--locked` was given, and there is no entry.
    #[error("{} has no entry for {spec} under [[base]], and --locked asks for one", path.display())]
    Missing {
        path: PathBuf,
        /// Name of the spec, with its variant.
        spec: String,
    },
    /// `--locked` was given, and the spec's base image has changed since.
    #[error("{} is stale: it was written for `{locked}`, and {spec} is built on `{now}`", path.display())]
    Stale {
        path: PathBuf,
        /// Name of the spec, with its variant.
        spec: String,
        /// The base image that the entry was written for.
        locked: String,
        /// The base image that the spec names now.
        now: String,
    },
}

impl PinError {
    fn damaged(path: &Path, why: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), why: why.into() }
    }
}

impl Fault for PinError {
    fn kind(&self) -> Kind {
        match self {
            PinError::Io(error) => error.kind(),
            _ => Kind::Spec,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            PinError::Io(_) | PinError::Unrecordable { .. } => Vec::new(),
            PinError::NotRecorded { .. } => vec!["`kiln build` without --locked records them".into()],
            PinError::Damaged { .. } => {
                vec!["restore it from git, or delete it: `kiln lock` and builds write a new one".into()]
            }
            _ => vec!["`kiln lock` updates it".into()],
        }
    }

    fn evidence(&self) -> Vec<String> {
        let PinError::NotRecorded { urls, .. } = self else { return Vec::new() };
        let more = urls.len().saturating_sub(NAMED_URLS);
        let more = (more > 0).then(|| format!("and {more} more"));
        urls.iter().take(NAMED_URLS).cloned().chain(more).collect()
    }
}

/// An entry of the lock file: the base image of one spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockEntry {
    /// File name of the spec.
    pub spec: String,
    /// The spec's variant, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The base image as the spec names it, in the form that [`source`] writes.
    pub source: String,
    /// How a download is verified, in the form that [`trust`] writes. `None` for other base images, and in entries of older
    /// versions of kiln that did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<String>,
    /// The version of an image of the store or of another spec, `name@version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// SHA-256 digest of the file; for a download, of the downloaded file. `None` for another spec's image, which is built
    /// here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256Digest>,
}

/// The entries of one lock file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LockFile {
    schema: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    base: Vec<LockEntry>,
    #[serde(default, skip_serializing)]
    network: Vec<NetworkEntry>,
    #[serde(skip)]
    path: PathBuf,
}

/// Describes the base image that a spec names, in one line that is the same on every host.
pub fn source(spec: &Spec) -> String {
    match &spec.base.source {
        BaseSource::File(file) => format!("file {}", below(spec, file)),
        BaseSource::Url(remote) => format!("url {}", remote.urls[0]),
        BaseSource::Image(image) => format!("image {image}"),
        BaseSource::Spec { file, variant } => {
            let variant = variant.as_ref().map(|variant| format!(" variant {variant}")).unwrap_or_default();
            format!("spec {}{variant}", below(spec, file))
        }
    }
}

/// Describes how a download is verified: by the spec itself, or by a list of digests with its own digest or signature. One
/// line that is the same on every host; `None` for other base images.
fn trust(spec: &Spec) -> Option<String> {
    let BaseSource::Url(remote) = &spec.base.source else { return None };
    let Some(sums) = &remote.sums else { return Some("sha256".into()) };
    Some(match &sums.trust {
        SumsVerification::Sha256(sha256) => format!("sums {} sha256 {sha256}", sums.url),
        SumsVerification::Signature { url, key } => {
            format!("sums {} signature {url} key {}", sums.url, below(spec, key))
        }
    })
}

/// Returns a path relative to the spec's folder, as the spec has it.
fn below(spec: &Spec, path: &Path) -> String {
    let folder = spec.path.parent().unwrap_or(Path::new(""));
    path.strip_prefix(folder).unwrap_or(path).display().to_string()
}

/// Names a spec for messages, with its variant.
fn told(spec: &Spec) -> String {
    let variant = spec.variant.as_ref().map(|variant| format!(", variant {variant}")).unwrap_or_default();
    format!("{}{variant}", name(spec))
}

/// Appends a detail that tells two base images of the same source apart.
fn append(source: &mut String, word: &str, detail: Option<impl fmt::Display>) {
    if let Some(detail) = detail {
        *source = format!("{source} {word} {detail}");
    }
}

fn name(spec: &Spec) -> String {
    spec.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl LockFile {
    /// Reads the lock file beside a spec; without one there are no entries.
    ///
    /// # Errors
    /// When the file cannot be read, or is not what kiln writes.
    pub fn beside(spec: &Spec) -> Result<Self, PinError> {
        let path = spec.path.with_file_name(FILE);
        let Some(text) = read(&path)? else { return Ok(Self { schema: SCHEMA, path, ..Self::default() }) };
        let mut pins: Self = toml::from_str(&text).map_err(|error| PinError::damaged(&path, error.message()))?;
        if pins.schema > SCHEMA {
            let why = format!("it has schema {}, and this kiln reads {SCHEMA}", pins.schema);
            return Err(PinError::damaged(&path, why));
        }
        pins.network.iter_mut().try_for_each(NetworkEntry::check).map_err(|why| PinError::damaged(&path, why))?;
        Ok(Self { path, ..pins })
    }

    /// Changes the lock file beside a spec, and writes it if its content is another one then. Other processes that change it
    /// wait meanwhile. Returns its path, and whether it was written.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is not what kiln writes.
    pub fn update(spec: &Spec, change: impl FnOnce(&mut Self)) -> Result<(PathBuf, bool), PinError> {
        let _turn = lock_folder(spec)?;
        let mut pins = Self::beside(spec)?;
        change(&mut pins);
        let has_changed = pins.save(spec)?;
        Ok((pins.path, has_changed))
    }

    /// Returns what the steps of a spec were answered with, if that was recorded.
    #[must_use]
    pub fn network(&self, spec: &Spec) -> Option<NetworkRecord> {
        let name = name(spec);
        let entry = self.network.iter().find(|entry| entry.spec == name && entry.variant == spec.variant)?;
        Some(entry.record())
    }

    /// Drops the recorded downloads of a spec, or those of one host, and returns their number. The next build records them
    /// anew.
    pub fn refresh(&mut self, spec: &Spec, host: Option<&HostPattern>) -> usize {
        let name = name(spec);
        let mut of_spec = self.network.iter_mut().filter(|entry| entry.spec == name && entry.variant == spec.variant);
        let dropped = of_spec.next().map_or(0, |entry| entry.forget(host));
        self.network.retain(|entry| !entry.is_empty());
        dropped
    }

    /// Sets the downloads of a spec, in place of earlier ones.
    fn set_network(&mut self, entry: NetworkEntry) {
        self.network.retain(|other| (&other.spec, &other.variant) != (&entry.spec, &entry.variant));
        if !entry.is_empty() {
            self.network.push(entry);
        }
        self.network.sort_by(|one, other| (&one.spec, &one.variant).cmp(&(&other.spec, &other.variant)));
    }

    /// Returns the entry that applies to a spec. An entry that was written for another base image does not apply.
    ///
    /// # Errors
    /// When no entry applies.
    pub fn find(&self, spec: &Spec) -> Result<&LockEntry, PinError> {
        let name = name(spec);
        let path = self.path.clone();
        let Some(pin) = self.base.iter().find(|pin| pin.spec == name && pin.variant == spec.variant) else {
            return Err(PinError::Missing { path, spec: told(spec) });
        };
        // A digest in the spec takes precedence over the entry.
        let agrees = match (&spec.base.sha256, &pin.sha256) {
            (Some(asked), Some(locked)) => asked == locked,
            _ => true,
        };
        let trust = trust(spec);
        let is_trusted = pin.trust.is_none() || pin.trust == trust;
        let mut locked = pin.source.clone();
        let mut now = source(spec);
        if locked == now && agrees && is_trusted {
            return Ok(pin);
        }
        if !agrees {
            append(&mut locked, "sha256", pin.sha256);
            append(&mut now, "sha256", spec.base.sha256);
        } else if !is_trusted {
            append(&mut locked, "by", pin.trust.as_ref());
            append(&mut now, "by", trust.as_ref());
        }
        Err(PinError::Stale { path, spec: told(spec), locked, now })
    }

    /// Checks that the image that another spec makes, `name@version`, is the one that was locked. Unlike an image of the
    /// store, it cannot be followed to an older version: that spec makes what it describes now.
    ///
    /// # Errors
    /// When it is another version.
    pub fn check_made(&self, spec: &Spec, pin: &LockEntry, made: &str) -> Result<(), PinError> {
        let Some(image) = pin.image.as_ref().filter(|image| *image != made) else { return Ok(()) };
        let locked = format!("{}, which was {image}", pin.source);
        let now = format!("{}, which is {made}", source(spec));
        Err(PinError::Stale { path: self.path.clone(), spec: told(spec), locked, now })
    }

    /// Sets the entry of a spec, in place of an earlier one.
    pub fn enter(&mut self, spec: &Spec, image: Option<String>, sha256: Option<Sha256Digest>) {
        let pin = LockEntry {
            spec: name(spec),
            variant: spec.variant.clone(),
            source: source(spec),
            trust: trust(spec),
            image,
            sha256,
        };
        self.base.retain(|other| (&other.spec, &other.variant) != (&pin.spec, &pin.variant));
        self.base.push(pin);
        self.base.sort_by(|one, other| (&one.spec, &one.variant).cmp(&(&other.spec, &other.variant)));
    }

    /// Writes the lock file for a change of this spec; returns whether it has changed.
    fn save(&self, spec: &Spec) -> Result<bool, PinError> {
        let unwritable = FileError::of(Kind::Host, "write", &self.path);
        let text = self.to_toml().map_err(io::Error::other).map_err(&unwritable)?;
        if text.len() as u64 > LARGEST {
            let why = format!("the file would have {} bytes, and may have {LARGEST}", text.len());
            return Err(PinError::Unrecordable { path: self.path.clone(), spec: told(spec), why });
        }
        if read(&self.path).is_ok_and(|old| old.as_ref() == Some(&text)) {
            return Ok(false);
        }
        replace(&self.path, text.as_bytes()).map_err(unwritable)?;
        Ok(true)
    }

    fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let mut text = format!("{HEADER}{}", toml::to_string(self)?);
        for entry in &self.network {
            text.push_str(&entry.to_toml()?);
        }
        Ok(text)
    }
}

/// Records in the lock file beside a spec what its steps were answered with, in place of an earlier record. Returns whether
/// the file has changed.
///
/// # Errors
/// When the file cannot be read or written, or the record has a value that must not be in it.
pub fn record_network(spec: &Spec, record: &NetworkRecord) -> Result<bool, PinError> {
    let mut entry = NetworkEntry::new(name(spec), spec.variant.clone(), record);
    if let Err(why) = entry.check() {
        return Err(PinError::Unrecordable { path: spec.path.with_file_name(FILE), spec: told(spec), why });
    }
    let (_, has_changed) = LockFile::update(spec, |pins| pins.set_network(entry))?;
    Ok(has_changed)
}

/// Checks that a record has nothing that the lock file beside a spec did not have when it was read.
///
/// # Errors
/// When it has other answers.
pub(crate) fn check_recorded(
    spec: &Spec,
    known: Option<&NetworkRecord>,
    record: &NetworkRecord,
) -> Result<(), PinError> {
    let missing = known.map_or_else(|| record.answers.iter().collect(), |known| known.lacks(record));
    if missing.is_empty() {
        return Ok(());
    }
    let urls = missing.into_iter().map(|answer| answer.request.url.clone()).collect();
    Err(PinError::NotRecorded { path: spec.path.with_file_name(FILE), spec: told(spec), urls })
}

/// Returns the present time in whole seconds, as it is recorded.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).expect("whole seconds of a valid time")
}

/// Locks a spec's folder, so that no other process changes its lock file.
fn lock_folder(spec: &Spec) -> Result<FileLock, PinError> {
    let folder = spec.path.parent().unwrap_or(Path::new("."));
    let locked = wait_for_lock(folder).map_err(FileError::of(Kind::Host, "lock the folder", folder))?;
    Ok(locked)
}

fn wait_for_lock(folder: &Path) -> io::Result<FileLock> {
    for _ in 0..MOST_TURNS {
        match FileLock::try_exclusive(File::open(folder)?) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(TURN),
            locked => return locked,
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "another process does not release its lock"))
}

/// Reads the lock file; returns `None` where there is none. It must be a regular file and not a link: errors quote its
/// content, and the author of the spec may have made a link to somebody else's file.
fn read(path: &Path) -> Result<Option<String>, PinError> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
            return Err(PinError::damaged(path, "it is a symbolic link"));
        }
        opened => opened.map_err(FileError::of(Kind::Host, "read", path))?,
    };
    let facts = file.metadata().map_err(FileError::of(Kind::Host, "read", path))?;
    if !facts.is_file() {
        return Err(PinError::damaged(path, "it is no file"));
    }
    let mut text = String::new();
    file.take(LARGEST + 1).read_to_string(&mut text).map_err(FileError::of(Kind::Host, "read", path))?;
    if text.len() as u64 > LARGEST {
        return Err(PinError::damaged(path, format!("it has {} bytes", facts.len())));
    }
    Ok(Some(text))
}

/// Writes the lock file atomically, with the modes of any other file of the project.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mode = fs::Permissions::from_mode(0o666);
    let folder = path.parent().unwrap_or(path);
    let mut file = tempfile::Builder::new().prefix(".kiln.lock.").permissions(mode).tempfile_in(folder)?;
    file.write_all(content)?;
    // The mode that the umask has left.
    let mode = file.as_file().metadata()?.permissions().mode();
    publish(file, path, mode, OnConflict::Replace)
}

#[cfg(test)]
mod tests;
