//! `kiln.lock`: the base images that the specs of a folder were last locked to, so that others build on the same ones.
//!
//! `kiln lock` writes it beside the specs, as TOML, to be kept in git. An entry applies as long as the spec names the same
//! base image as when the entry was written.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::digest::Sha256Digest;
use crate::error::{Fault, FileError, Kind};
use crate::fs::{OnConflict, publish};
use crate::specfile::{BaseSource, Spec, SumsVerification};

/// The name of the lock file in a spec's folder.
pub const FILE: &str = "kiln.lock";
/// The schema version that this kiln writes, and the newest it reads.
const SCHEMA: u32 = 1;
/// The size of the largest lock file that is read, bytes: enough for a thousand specs.
const LARGEST: u64 = 1 << 20;

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
    /// `--locked` was given, and there is no entry.
    #[error("{} has no entry for {spec}, and --locked asks for one", path.display())]
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
            PinError::Io(_) => Vec::new(),
            PinError::Damaged { .. } => vec!["delete it, and `kiln lock` writes a new one".into()],
            _ => vec!["`kiln lock` updates it".into()],
        }
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
    #[serde(default)]
    base: Vec<LockEntry>,
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
        let Some(text) = read(&path)? else { return Ok(Self { schema: SCHEMA, base: Vec::new(), path }) };
        let pins: Self = toml::from_str(&text).map_err(|error| PinError::damaged(&path, error.message()))?;
        if pins.schema > SCHEMA {
            let why = format!("it has schema {}, and this kiln reads {SCHEMA}", pins.schema);
            return Err(PinError::damaged(&path, why));
        }
        Ok(Self { path, ..pins })
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

    /// Writes the lock file; returns its path, and whether it has changed.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self) -> Result<(&Path, bool), PinError> {
        let body =
            toml::to_string(self).map_err(io::Error::other).map_err(FileError::of(Kind::Host, "write", &self.path))?;
        let text =
            format!("# The base images of the specs in this folder. Written by `kiln lock`: keep it in git.\n{body}");
        if read(&self.path).is_ok_and(|old| old.as_ref() == Some(&text)) {
            return Ok((&self.path, false));
        }
        replace(&self.path, text.as_bytes()).map_err(FileError::of(Kind::Host, "write", &self.path))?;
        Ok((&self.path, true))
    }
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
mod tests {
    use super::*;
    use crate::project::FileReach;
    use crate::specfile::Overrides;

    fn spec(folder: &Path, base: &str) -> Spec {
        let path = folder.join("kiln.toml");
        fs::write(&path, format!("[image]\nname = 'web'\nversion = '1'\n[base]\n{base}\n")).unwrap();
        Spec::load(&path, FileReach::Project, &Overrides::default()).unwrap()
    }

    #[test]
    fn an_entry_counts_for_the_base_it_was_written_for() {
        let folder = tempfile::tempdir().unwrap();
        let first = spec(folder.path(), "image = 'debian@stable'");
        let mut pins = LockFile::beside(&first).unwrap();
        assert!(pins.base.is_empty());
        assert!(matches!(pins.find(&first), Err(PinError::Missing { .. })));
        pins.enter(&first, Some("debian@12".into()), Some(Sha256Digest::new([0xab; 32])));
        assert!(pins.save().unwrap().1);
        let read = LockFile::beside(&first).unwrap();
        assert_eq!(read, pins);
        assert!(!read.save().unwrap().1, "nothing has changed");
        assert_eq!(read.find(&first).unwrap().image.as_deref(), Some("debian@12"));
        let other = spec(folder.path(), "image = 'debian@candidate'");
        let error = read.find(&other).unwrap_err();
        assert!(error.to_string().contains("`image debian@stable`"), "{error}");
        let pinned = spec(folder.path(), &format!("image = 'debian@stable'\nsha256 = '{}'", "cd".repeat(32)));
        assert!(matches!(read.find(&pinned), Err(PinError::Stale { .. })));
    }

    #[test]
    fn what_a_spec_says_is_the_same_on_every_host() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(source(&spec(folder.path(), "file = '../a/disk.qcow2'")), "file ../a/disk.qcow2");
        assert_eq!(source(&spec(folder.path(), "spec = '../a'\nvariant = 'small'")), "spec ../a variant small");
        let digest = "ab".repeat(32);
        let url = spec(folder.path(), &format!("url = 'https://example.org/a.qcow2'\nsha256 = '{digest}'"));
        assert_eq!(source(&url), "url https://example.org/a.qcow2");
    }

    #[test]
    fn a_download_is_locked_with_what_says_which_file_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let by = |trust: &str| {
            let base = format!("url = 'https://example.org/a.qcow2'\n{trust}").replace(' ', "");
            spec(folder.path(), &base)
        };
        let (one, two) = ("ab".repeat(32), "cd".repeat(32));
        let signed = |sums: &str, signature: &str, key: &str| {
            let sums = format!("sums = 'https://example.org/{sums}'");
            format!("{sums}\nsums-signature = 'https://example.org/{signature}'\nsums-key = '{key}'")
        };
        let listed =
            |sums: &str, sha256: &str| format!("sums = 'https://example.org/{sums}'\nsums-sha256 = '{sha256}'");
        let all = [
            format!("sha256 = '{one}'"),
            listed("SUMS", &one),
            listed("SUMS", &two),
            listed("OTHER", &one),
            signed("SUMS", "SUMS.sig", "a.pub"),
            signed("SUMS", "SUMS.asc", "a.pub"),
            signed("SUMS", "SUMS.sig", "b.pub"),
        ];
        for (locked, trust) in all.iter().enumerate() {
            let mut pins = LockFile::beside(&by(trust)).unwrap();
            pins.enter(&by(trust), None, Some(one.parse().unwrap()));
            for (now, trust) in all.iter().enumerate() {
                let found = pins.find(&by(trust));
                assert_eq!(found.is_ok(), locked == now, "{locked} {now}: {found:?}");
            }
            // An entry of an older kiln, without that field.
            pins.base[0].trust = None;
            assert!(all.iter().all(|trust| pins.find(&by(trust)).is_ok()), "{locked}");
        }
    }

    #[test]
    fn what_kiln_has_not_written_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let spec = spec(folder.path(), "image = 'debian'");
        let cut = "schema = 1\n[[base]]\nspec = 'kiln.toml'\nsource = 'image debian'\nsha256 = 'abab'";
        for text in ["schema = 2", "schema = 'x'", "base = []", "[[", "schema = 1\n[[base]]\nspec = 1", cut] {
            fs::write(folder.path().join(FILE), text).unwrap();
            assert!(matches!(LockFile::beside(&spec), Err(PinError::Damaged { .. })), "{text}");
        }
    }
}
