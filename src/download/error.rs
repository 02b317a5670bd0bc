//! Why there is no file: what each place said, or what is wrong with this host.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::checksum::Checksum;
use super::unpack::UnpackError;
use super::watch::Stopped;
use crate::error::{Fault, Kind};
use crate::sign::SignError;
use crate::sign::openpgp::OpenPgpError;
use crate::size::{ByteSize, format_duration};
use crate::url::Url;

/// What is wrong with one place.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// No connection, no such host, a broken one, no trust, or nonsense.
    #[error("{0}")]
    Exchange(String),
    /// Nothing that could be tried again.
    #[error("{0}")]
    Refused(String),
    /// The server's answer.
    #[error("the server answers {}", status_text(*.0))]
    Status(u16),
    /// The connection ended early.
    #[error("the transfer broke off at byte {got} of {announced}: {why}")]
    Truncated {
        /// Bytes that are there.
        got: u64,
        /// Bytes that were announced.
        announced: u64,
        /// What was seen.
        why: String,
    },
    /// Bytes come, but hardly any.
    #[error("no more than {} came in {}", .0, format_duration(*.1))]
    Slow(ByteSize, Duration),
    /// The server sends another part of the file than was asked for.
    #[error("the server sends another range than was asked for: {0}")]
    Range(String),
    /// The partial file did not lead to the right file.
    #[error("what was there of the file does not fit the rest")]
    Stale,
    /// More than anybody wants.
    #[error("the file is larger than {0}")]
    TooLarge(ByteSize),
    /// The whole file came, and it is another.
    #[error("the digest is wrong: expected {expected}, found {}", .found.hex())]
    Digest {
        /// What it must be.
        expected: Checksum,
        /// What it is.
        found: Checksum,
    },
    /// A file of this host.
    #[error("{0}")]
    File(#[from] io::Error),
}

fn status_text(status: u16) -> String {
    let text = ureq::http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    text.map_or_else(|| status.to_string(), |text| format!("{status} ({text})"))
}

impl Problem {
    /// Whether trying again at the same place is of no use.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Problem::Status(status) => !matches!(status, 408 | 425 | 429 | 500..=599),
            Problem::Refused(_) | Problem::TooLarge(_) | Problem::Digest { .. } | Problem::File(_) => true,
            _ => false,
        }
    }
}

/// What went wrong at a place.
#[derive(Debug)]
pub struct Tried {
    /// The place.
    pub url: Url,
    /// What went wrong last.
    pub problem: Problem,
}

/// There is no file.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// None of the places has it.
    #[error("{}", failed(.file, .tried))]
    Failed {
        /// What the file is called at the first place.
        file: String,
        /// Every place, in the order in which they were tried.
        tried: Vec<Tried>,
    },
    /// The right file came, and cannot be unpacked.
    #[error("{file}: {source}")]
    Unpack {
        /// What the file is called.
        file: String,
        /// Why.
        source: UnpackError,
    },
    /// There may be no network, and the cache does not have it.
    #[error("{0} is not in the download cache, and --offline allows nothing else")]
    Offline(String),
    /// A list of checksums lacks the file, or says two things of it.
    #[error("{sums} {what} {file}")]
    Sums {
        /// The list.
        sums: Url,
        /// The file.
        file: String,
        /// What it does.
        what: &'static str,
    },
    /// A list of checksums is too long, or not text.
    #[error("{0} is no list of checksums")]
    NoSums(Url),
    /// Nobody who is trusted signed the list.
    #[error("{sums} is not signed by {}", key.display())]
    Signature {
        /// The list.
        sums: Url,
        /// Whose signature was wanted.
        key: PathBuf,
        /// Why.
        source: SignatureError,
    },
    /// The cache cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Cache {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

/// A signature does not hold.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// Of OpenSSH or minisign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// Of `OpenPGP`.
    #[error(transparent)]
    OpenPgp(#[from] OpenPgpError),
}

impl SignatureError {
    fn fault(&self) -> &dyn Fault {
        match self {
            Self::Sign(error) => error,
            Self::OpenPgp(error) => error,
        }
    }
}

fn failed(file: &str, tried: &[Tried]) -> String {
    match tried {
        [Tried { url, problem }] => format!("cannot download {url}: {problem}"),
        _ => format!("cannot download {file} from any of {} places", tried.len()),
    }
}

impl DownloadError {
    /// Whether some place had another file than was asked for.
    #[must_use]
    pub fn is_wrong_digest(&self) -> bool {
        let is_wrong = |tried: &Tried| matches!(tried.problem, Problem::Digest { .. });
        matches!(self, DownloadError::Failed { tried, .. } if tried.iter().any(is_wrong))
    }

    /// Whether no place answers as a server that works does, so that nothing is known of what it has.
    pub(super) fn is_down(&self) -> bool {
        let is_down = |tried: &Tried| !tried.problem.is_final();
        matches!(self, DownloadError::Failed { tried, .. } if !tried.is_empty() && tried.iter().all(is_down))
    }

    /// The result adapter for a failed call: `.map_err(DownloadError::cache("read", path))`.
    pub(super) fn cache(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| DownloadError::Cache { action, path, source }
    }
}

impl From<Stopped> for DownloadError {
    fn from(_: Stopped) -> Self {
        DownloadError::Stopped
    }
}

impl Fault for DownloadError {
    fn kind(&self) -> Kind {
        match self {
            DownloadError::Cache { .. } => Kind::Host,
            DownloadError::Signature { source, .. } if source.fault().kind() == Kind::Host => Kind::Host,
            DownloadError::Stopped => Kind::Interrupted,
            _ => Kind::Base,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            DownloadError::Failed { tried, .. } => tried_hints(tried),
            DownloadError::Offline(_) => {
                vec!["`kiln lock SPEC` or `kiln build SPEC` without --offline fetches it".into()]
            }
            DownloadError::Unpack { source, .. } => match source {
                UnpackError::TooLarge(_) => vec!["if this is no attack, unpack it yourself and name the `file`".into()],
                _ => vec!["the digest is right: the file is damaged at its source, or its name is wrong".into()],
            },
            DownloadError::Signature { source, .. } => source.fault().hints(),
            DownloadError::Cache { source, .. } => cache_hints(source),
            _ => Vec::new(),
        }
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            DownloadError::Failed { tried, .. } if tried.len() > 1 => {
                tried.iter().map(|Tried { url, problem }| format!("{url}: {problem}")).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn tried_hints(tried: &[Tried]) -> Vec<String> {
    let any = |wanted: fn(&Problem) -> bool| tried.iter().any(|tried| wanted(&tried.problem));
    if any(|problem| matches!(problem, Problem::Digest { .. })) {
        vec![
            "the source has another file now, or it was changed on the way: compare with what its makers publish"
                .into(),
        ]
    } else if any(|problem| matches!(problem, Problem::Status(404 | 410))) {
        vec!["look whether the file is still there: makers of images remove old ones".into()]
    } else {
        Vec::new()
    }
}

fn cache_hints(error: &io::Error) -> Vec<String> {
    use io::ErrorKind::{FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => {
            vec!["make room with `kiln gc`, or name another cache with --cache or KILN_CACHE".into()]
        }
        PermissionDenied | ReadOnlyFilesystem => {
            vec!["name a folder you may write to with --cache or KILN_CACHE".into()]
        }
        _ => Vec::new(),
    }
}

/// Why an attempt ended.
#[derive(Debug)]
pub(super) enum Halt {
    /// Another attempt or place may do.
    Problem(Problem),
    /// Nothing will do.
    Error(DownloadError),
}

impl From<Problem> for Halt {
    fn from(problem: Problem) -> Self {
        Halt::Problem(problem)
    }
}

impl From<DownloadError> for Halt {
    fn from(error: DownloadError) -> Self {
        Halt::Error(error)
    }
}

impl From<Stopped> for Halt {
    fn from(stopped: Stopped) -> Self {
        Halt::Error(stopped.into())
    }
}
