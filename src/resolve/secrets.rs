//! The values of a spec's secrets: read when a build begins, passed to the steps that name them, kept out of everything
//! else.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{Fault, Kind};
use crate::event::{Events, NoticeLevel};
use crate::masking::{SHORTEST_MASKED, SecretMask, SecretParts};
use crate::plan::host_paths::PathOwner;
use crate::project::FileReach;
use crate::secret_scan::{self, SearchedSecrets};
use crate::specfile::{SecretSource, Spec, StepSpec};

use super::host_variables;
use super::inputs::open_regular;
use super::path_policy::RefusedPath;
use super::source_errors::{SourceErrors, SourceProblem};

/// The size of the largest secret, bytes: it is a token or a key.
const LARGEST: u64 = 64 << 10;

/// The values of secrets by name, with what masks and finds them. `Debug` shows the names alone.
#[derive(Clone, Default)]
pub struct SecretValues {
    values: BTreeMap<String, Vec<u8>>,
    mask: SecretMask,
    searched: Option<SearchedSecrets>,
}

/// A secret that a spec declares and that is not available to its steps.
#[derive(Debug, thiserror::Error)]
#[error("the secret `{name}` {problem}")]
pub(crate) struct SecretError {
    /// Name of the secret.
    pub(crate) name: String,
    /// The reason why it is not available.
    problem: SecretLookupError,
}

/// The reason why a secret is not available.
#[derive(Debug, thiserror::Error)]
enum SecretLookupError {
    /// The user has not allowed specs to take this environment variable.
    #[error("comes from the environment variable {0}, which specs are not allowed to take")]
    NotAllowed(String),
    /// The environment variable is not set.
    #[error("comes from the environment variable {0}, which is not set")]
    Unset(String),
    /// The file cannot be read.
    #[error("cannot be read from {}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: io::Error },
    /// The value is too large to be a secret.
    #[error("is larger than 64 KiB")]
    TooLarge,
}

impl Fault for SecretError {
    fn kind(&self) -> Kind {
        Kind::Spec
    }

    fn hints(&self) -> Vec<String> {
        match &self.problem {
            SecretLookupError::NotAllowed(variable) => vec![
                format!("if you trust the spec with it, allow it with --secret-env {variable}"),
                format!("or for every spec, with `secret-env = [\"{variable}\"]` in ~/.config/kiln/config.toml"),
            ],
            _ => Vec::new(),
        }
    }
}

/// The environment variables that specs may read. The user names them: a spec may come from somebody else, and a step can send
/// anywhere what it is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedVariables {
    /// Those that specs may take as secrets.
    pub secrets: BTreeSet<String>,
    /// Those that steps may take with `env-from-host`.
    pub plain: BTreeSet<String>,
}

impl AllowedVariables {
    /// Checks that a spec reads no other variables.
    ///
    /// # Errors
    /// When a secret or a step takes another variable.
    pub fn check(&self, spec: &Spec) -> Result<(), SourceErrors> {
        let mut errors = Vec::new();
        for (name, secret) in &spec.secrets {
            match &secret.source {
                SecretSource::Env(variable) if !self.secrets.contains(variable) => {
                    let problem = SecretLookupError::NotAllowed(variable.clone());
                    errors.push(SecretError { name: name.clone(), problem });
                }
                SecretSource::Env(_) | SecretSource::File(_) => {}
            }
        }
        let of_steps = host_variables::find_refused(spec, |name| self.plain.contains(name));
        let problems = errors.iter().map(SourceProblem::from).chain(of_steps.iter().map(SourceProblem::from));
        // The spec was read before; this read is for its text.
        SourceErrors::check(spec, FileReach::Host, problems.collect())
    }
}

/// Fails with the errors, each with its place in the spec, if there are any.
fn check_none(spec: &Spec, errors: &[SecretError]) -> Result<(), SourceErrors> {
    // The spec was read before; this read is for its text.
    SourceErrors::check(spec, FileReach::Host, errors.iter().map(SourceProblem::from).collect())
}

/// Finds errors in the secrets that some step reads, except those that must not be read.
pub(crate) fn find_errors(spec: &Spec, refused: &[RefusedPath]) -> Vec<SecretError> {
    let mut errors = Vec::new();
    for name in used_names(spec) {
        let owner = PathOwner::Secret(name.clone());
        if refused.iter().all(|(refused, _)| *refused != owner) {
            errors.extend(read_declared(spec, name).err());
        }
    }
    errors
}

fn read_declared(spec: &Spec, name: &str) -> Result<Vec<u8>, SecretError> {
    read(&spec.secrets[name].source).map_err(|problem| SecretError { name: name.to_owned(), problem })
}

/// Returns the names of the secrets that some step reads.
fn used_names(spec: &Spec) -> BTreeSet<&String> {
    spec.steps.iter().filter_map(names_of_step).flatten().collect()
}

fn names_of_step(step: &StepSpec) -> Option<&BTreeSet<String>> {
    step.action.context().map(|context| &context.secrets)
}

/// Returns a note about the secrets of an image that is up to date: their values are not compared.
pub(crate) fn staleness_note(spec: &Spec) -> Option<String> {
    let names: Vec<String> = used_names(spec).into_iter().map(|name| format!("`{name}`")).collect();
    (!names.is_empty()).then(|| {
        format!(
            "the values of secrets ({}) are not part of the build key: after a change of one, build again with `--replace \
             --no-cache`",
            names.join(", ")
        )
    })
}

impl std::fmt::Debug for SecretValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl SecretValues {
    /// Reads the secrets that some step uses.
    ///
    /// # Errors
    /// When secrets are not available: all of them are named.
    pub fn load(spec: &Spec) -> Result<Self, SourceErrors> {
        let mut values = BTreeMap::new();
        let mut errors = Vec::new();
        for name in used_names(spec) {
            match read_declared(spec, name) {
                Ok(value) => drop(values.insert(name.clone(), value)),
                Err(error) => errors.push(error),
            }
        }
        check_none(spec, &errors)?;
        Ok(Self::new(values))
    }

    fn new(values: BTreeMap<String, Vec<u8>>) -> Self {
        let mask = SecretMask::new(values.values().map(Vec::as_slice));
        let named = values.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        let searched = SearchedSecrets::new(named);
        Self { values, mask, searched }
    }

    /// Returns the secrets that a step names.
    pub fn pick(&self, names: &BTreeSet<String>) -> Vec<(String, Vec<u8>)> {
        names.iter().filter_map(|name| Some((name.clone(), self.values.get(name)?.clone()))).collect()
    }

    /// Returns whether there are no secrets.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Returns the mask that replaces secrets in strings and streams.
    pub fn mask(&self) -> &SecretMask {
        &self.mask
    }

    /// Returns the search for secrets on disks and in files, if any secret is long enough to be searched for.
    pub fn searched(&self) -> Option<&SearchedSecrets> {
        self.searched.as_ref()
    }

    /// Warns of each secret that is too short to be masked or searched for.
    pub fn warn_of_short_ones(&self, events: &Events) {
        for (name, value) in &self.values {
            let length = SecretParts::new(value).units().map(<[u8]>::len).max().unwrap_or(0);
            let lack = match length {
                ..SHORTEST_MASKED => "masked in logs or searched for in the image",
                SHORTEST_MASKED..secret_scan::SHORTEST => "searched for in the image",
                _ => continue,
            };
            events.notice(NoticeLevel::Warning, format!("the secret `{name}` is too short to be {lack}"));
        }
    }
}

fn read(source: &SecretSource) -> Result<Vec<u8>, SecretLookupError> {
    let value = match source {
        SecretSource::Env(variable) => {
            let value = std::env::var_os(variable).ok_or_else(|| SecretLookupError::Unset(variable.clone()))?;
            value.into_vec()
        }
        SecretSource::File(path) => {
            read_file(path).map_err(|reason| SecretLookupError::Unreadable { path: path.clone(), reason })?
        }
    };
    if value.len() as u64 > LARGEST { Err(SecretLookupError::TooLarge) } else { Ok(value) }
}

/// Reads the beginning of a regular file.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut value = Vec::new();
    open_regular(path)?.take(LARGEST + 1).read_to_end(&mut value)?;
    Ok(value)
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &[u8]); N]> for SecretValues {
    fn from(secrets: [(&str, &[u8]); N]) -> Self {
        Self::new(secrets.into_iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect())
    }
}

impl From<&SecretError> for SourceProblem {
    fn from(error: &SecretError) -> Self {
        Self::new(PathOwner::Secret(error.name.clone()), error, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_shown() {
        let secrets = SecretValues::from([("key", &b"abcdefgh"[..]), ("pin", b"12")]);
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
