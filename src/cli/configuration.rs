//! The user's configuration file, `$XDG_CONFIG_HOME/kiln/config.toml`: settings for every command and every spec.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Failure, Fault, FileError, Kind};
use crate::resolve::inputs::open_regular;
use crate::resolve::secrets::AllowedVariables;

use super::args::SpecArgs;
use super::folders::xdg;

/// Size limit of the configuration file, bytes.
const LARGEST: u64 = 1 << 20;

/// Content of the configuration file. Every key is optional, and so is the file.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(super) struct Configuration {
    /// Environment variables that specs may take as secrets.
    secret_env: Vec<String>,
    /// Environment variables that steps may take with `env-from-host`.
    host_env: Vec<String>,
}

/// An error in the configuration file.
#[derive(Debug, thiserror::Error)]
#[error("{}:{line}: {message}", path.display())]
struct ConfigurationError {
    path: PathBuf,
    line: usize,
    message: String,
}

impl Fault for ConfigurationError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

impl Configuration {
    /// Reads the file; a missing file is an empty configuration.
    pub(super) fn load() -> Result<Self, Failure> {
        let Some(path) = xdg("XDG_CONFIG_HOME", ".config").map(|folder| folder.join("kiln/config.toml")) else {
            return Ok(Self::default());
        };
        match read(&path) {
            Ok(text) => Ok(Self::parse(&text, &path)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(FileError::of(Kind::Usage, "read", &path)(error).into()),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigurationError> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            ConfigurationError { path: path.to_owned(), line, message: error.message().to_owned() }
        })
    }
}

/// Returns the environment variables that specs may read: those of the command line and those of the configuration.
pub(super) fn allowed_variables(reading: &SpecArgs) -> Result<AllowedVariables, Failure> {
    let Configuration { secret_env, host_env } = Configuration::load()?;
    Ok(AllowedVariables {
        secrets: reading.secret_env.iter().cloned().chain(secret_env).collect(),
        plain: reading.host_env.iter().cloned().chain(host_env).collect(),
    })
}

/// Reads a regular file of at most [`LARGEST`] bytes.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    if open_regular(path)?.take(LARGEST + 1).read_to_string(&mut text)? as u64 > LARGEST {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Configuration, String> {
        Configuration::parse(text, Path::new("config.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_configuration_names_variables_and_nothing_unknown() {
        assert_eq!(parse("").unwrap(), Configuration::default());
        assert_eq!(parse("secret-env = ['A', 'B']").unwrap().secret_env, ["A", "B"]);
        assert_eq!(parse("host-env = ['A']").unwrap().host_env, ["A"]);
        for (text, said) in [
            ("\nsecret-envs = []", "config.toml:2: unknown field `secret-envs`"),
            ("# one\n\nsecret-env = 'A'", "config.toml:3: invalid type: string"),
            ("secret-env = [", "config.toml:1: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
