//! The values of a spec's secrets: read when a build begins, given to the steps that name them, kept out of all else.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::PathBuf;

use crate::error::{Fault, Kind};
use crate::spec::{Action, SecretSource, Spec};

/// What stands in the log for a secret.
const MASK: &str = "[secret]";
/// Shorter values would mask half of the log's words.
const SHORTEST_MASKED: usize = 4;
/// A secret is a token or a key, bytes.
const LARGEST: u64 = 64 << 10;

/// The values, by name. Its `Debug` shows the names alone.
#[derive(Clone, Default)]
pub struct Secrets(BTreeMap<String, Vec<u8>>);

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
        source: std::io::Error,
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
        f.debug_set().entries(self.0.keys()).finish()
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
        used.into_iter()
            .map(|name| Ok((name.clone(), read(name, &spec.secrets[name])?)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Those that a step names.
    #[must_use]
    pub fn pick(&self, names: &BTreeSet<String>) -> Vec<(String, Vec<u8>)> {
        names.iter().filter_map(|name| Some((name.clone(), self.0.get(name)?.clone()))).collect()
    }

    /// All of them, with their names.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// The line with every secret, or line of one, replaced.
    #[must_use]
    pub fn redact(&self, line: &str) -> String {
        let mut line = line.to_owned();
        for value in self.0.values() {
            let value = String::from_utf8_lossy(value);
            for part in value.lines().map(str::trim).filter(|part| part.len() >= SHORTEST_MASKED) {
                if line.contains(part) {
                    line = line.replace(part, MASK);
                }
            }
        }
        line
    }
}

fn read(name: &str, source: &SecretSource) -> Result<Vec<u8>, SecretError> {
    match source {
        SecretSource::Env(variable) => std::env::var_os(variable)
            .map(std::os::unix::ffi::OsStringExt::into_vec)
            .ok_or_else(|| SecretError::Unset { name: name.to_owned(), variable: variable.clone() }),
        SecretSource::File(path) => {
            let unreadable = |source| SecretError::Unreadable { name: name.to_owned(), path: path.clone(), source };
            let mut value = Vec::new();
            let file = std::fs::File::open(path).map_err(unreadable)?;
            file.take(LARGEST + 1).read_to_end(&mut value).map_err(unreadable)?;
            if value.len() as u64 > LARGEST {
                return Err(SecretError::TooLarge { name: name.to_owned() });
            }
            Ok(value)
        }
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &[u8]); N]> for Secrets {
    fn from(secrets: [(&str, &[u8]); N]) -> Self {
        Self(secrets.into_iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_line_by_line_and_never_shown() {
        let value = b"-----BEGIN-----\nabcdefgh\n-----END-----\n".to_vec();
        let secrets = Secrets(BTreeMap::from([("key".into(), value), ("pin".into(), b"12".to_vec())]));
        assert_eq!(secrets.redact("token=abcdefgh; 12 apples"), "token=[secret]; 12 apples");
        assert_eq!(format!("{secrets:?}"), r#"{"key", "pin"}"#);
    }
}
