//! The ignore file of a spec: `.kilnignore` in the spec's folder, with patterns of what copies leave out.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::ignore_patterns::{IgnoreRules, PatternError};
use crate::specfile::{Action, Spec};

/// Name of the file.
const FILE: &str = ".kilnignore";
/// Size of the largest file that is read, bytes.
const LARGEST: u64 = 64 << 10;

/// The patterns of a spec's ignore file.
#[derive(Debug, Default)]
pub(crate) struct IgnoreFile {
    /// The folder that the patterns are relative to.
    pub(crate) folder: PathBuf,
    /// The patterns; none without a file.
    pub(crate) rules: IgnoreRules,
}

/// The reason why an ignore file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IgnoreFileError {
    /// The file cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: io::Error },
    /// A line is no pattern.
    #[error("{}:{line}: {reason}", path.display())]
    Pattern {
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        reason: PatternError,
    },
}

impl IgnoreFile {
    /// Reads the ignore file beside a spec. It is not needed, and not read, for a spec that copies nothing.
    ///
    /// # Errors
    /// When the file cannot be read, or has a line that is no pattern.
    pub(crate) fn beside(spec: &Spec) -> Result<Self, IgnoreFileError> {
        if !spec.steps.iter().any(|step| matches!(step.action, Action::Copy(_))) {
            return Ok(Self::default());
        }
        let path = spec.path.with_file_name(FILE);
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let text = read(&path).map_err(|reason| IgnoreFileError::Unreadable { path: path.clone(), reason })?;
        let parsed = IgnoreRules::parse(&text);
        let rules = parsed.map_err(|(line, reason)| IgnoreFileError::Pattern { path, line, reason })?;
        Ok(Self { folder, rules })
    }
}

/// Reads the file; a missing one is empty. It must not be a link: the author of a spec may have made a link to somebody else's
/// file, and errors are about its content.
fn read(path: &Path) -> io::Result<String> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
            return Err(io::Error::other("it is a symbolic link, and must be a regular file"));
        }
        opened => opened?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    if file.take(LARGEST + 1).read_to_string(&mut text)? as u64 > LARGEST {
        return Err(io::Error::other("it is larger than 64 KiB"));
    }
    Ok(text)
}
