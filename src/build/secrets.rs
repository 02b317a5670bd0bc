//! The values of a spec's secrets: read when a build begins, given to the steps that name them, kept out of all else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::error::{Fault, Kind};
use crate::event::{Events, Level};
use crate::masking::{SHORTEST_MASKED, SecretMask};
use crate::spec::{Action, SecretSource, Spec};

use super::secret_scan::{self, SearchedSecrets};

/// A secret is a token or a key, bytes.
const LARGEST: u64 = 64 << 10;

/// The values, by name, and what finds them. Its `Debug` shows the names alone.
#[derive(Clone, Default)]
pub struct Secrets {
    values: BTreeMap<String, Vec<u8>>,
    mask: SecretMask,
    searched: Option<SearchedSecrets>,
}

/// A secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The environment variable is not there.
    #[error("the secret `{name}` comes from the environment variable {variable}, which is not set")]
    Unset {
        /// The secret.
        name: String,
        /// The variable.
        variable: String,
    },
    /// The file cannot be read.
    #[error("cannot read the secret `{name}` from {}", path.display())]
    Unreadable {
        /// The secret.
        name: String,
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is too large to be a secret.
    #[error("the secret `{name}` is larger than 64 KiB")]
    TooLarge {
        /// The secret.
        name: String,
    },
}

impl Fault for SecretError {
    fn kind(&self) -> Kind {
        Kind::Spec
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl Secrets {
    /// Reads those that some step uses.
    ///
    /// # Errors
    /// When one cannot be had.
    pub fn load(spec: &Spec) -> Result<Self, SecretError> {
        let used = spec.steps.iter().filter_map(|step| match &step.action {
            Action::Run { context, .. } | Action::Script { context, .. } => Some(&context.secrets),
            _ => None,
        });
        let used: BTreeSet<_> = used.flatten().collect();
        let values = used.into_iter().map(|name| Ok((name.clone(), read(name, &spec.secrets[name])?)));
        values.collect::<Result<_, _>>().map(Self::new)
    }

    fn new(values: BTreeMap<String, Vec<u8>>) -> Self {
        let mask = SecretMask::new(values.values().map(Vec::as_slice));
        let named = values.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        let searched = SearchedSecrets::new(named);
        Self { values, mask, searched }
    }

    /// Those that a step names.
    #[must_use]
    pub fn pick(&self, names: &BTreeSet<String>) -> Vec<(String, Vec<u8>)> {
        names.iter().filter_map(|name| Some((name.clone(), self.values.get(name)?.clone()))).collect()
    }

    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Returns what replaces them in texts and streams.
    #[must_use]
    pub fn mask(&self) -> &SecretMask {
        &self.mask
    }

    /// Returns what finds them on disks and in files, if any is long enough to be searched for.
    #[must_use]
    pub fn searched(&self) -> Option<&SearchedSecrets> {
        self.searched.as_ref()
    }

    /// Warns of each secret that is too short to be masked or searched for.
    pub fn warn_of_short_ones(&self, events: &Events) {
        for (name, value) in &self.values {
            let length = value.split(|byte| *byte == b'\n').map(|line| line.trim_ascii().len()).max().unwrap_or(0);
            let lack = match length {
                ..SHORTEST_MASKED => "masked in logs or searched for in the image",
                SHORTEST_MASKED..secret_scan::SHORTEST => "searched for in the image",
                _ => continue,
            };
            events.notice(Level::Warning, format!("the secret `{name}` is too short to be {lack}"));
        }
    }
}

fn read(name: &str, source: &SecretSource) -> Result<Vec<u8>, SecretError> {
    match source {
        SecretSource::Env(variable) => std::env::var_os(variable)
            .map(std::os::unix::ffi::OsStringExt::into_vec)
            .ok_or_else(|| SecretError::Unset { name: name.to_owned(), variable: variable.clone() }),
        SecretSource::File(path) => {
            let unreadable = |source| SecretError::Unreadable { name: name.to_owned(), path: path.clone(), source };
            let value = read_file(path).map_err(unreadable)?;
            if value.len() as u64 > LARGEST {
                return Err(SecretError::TooLarge { name: name.to_owned() });
            }
            Ok(value)
        }
    }
}

/// Reads the beginning of a regular file. Anything else, such as a FIFO that nobody writes to, is refused at once.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut value = Vec::new();
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    file.take(LARGEST + 1).read_to_end(&mut value)?;
    Ok(value)
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &[u8]); N]> for Secrets {
    fn from(secrets: [(&str, &[u8]); N]) -> Self {
        Self::new(secrets.into_iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_shown() {
        let secrets = Secrets::from([("key", &b"abcdefgh"[..]), ("pin", b"12")]);
        assert_eq!(format!("{secrets:?}"), r#"{"key", "pin"}"#);
    }

    #[test]
    fn o3_only_a_regular_file_is_read_as_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        for path in [fifo.as_path(), folder.path(), Path::new("/dev/zero")] {
            assert_eq!(read_file(path).unwrap_err().to_string(), "it is not a regular file");
        }
        let large = folder.path().join("large");
        std::fs::write(&large, vec![b'x'; 1 << 20]).unwrap();
        assert_eq!(read_file(&large).unwrap().len() as u64, LARGEST + 1);
    }
}
