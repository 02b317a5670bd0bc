//! Errors of a download: at each place, or on this host.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::checksum::Checksum;
use super::unpack::UnpackError;
use crate::error::{Fault, Kind};
use crate::progress::CancelledError;
use crate::sign::SignError;
use crate::sign::openpgp::OpenPgpError;
use crate::size::{ByteSize, format_duration};
use crate::url::Url;

/// An error at one place.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// No connection, no such host, a broken or untrusted connection, or an invalid response.
    #[error("{0}")]
    Exchange(String),
    /// An error that no retry can change.
    #[error("{0}")]
    Refused(String),
    /// An HTTP status of the server.
    #[error("the server answers {}", status_text(*.0))]
    Status(u16),
    /// The connection ended early.
    #[error("the transfer broke off at byte {got} of {announced}: {why}")]
    Truncated {
        /// Number of received bytes.
        got: u64,
        /// Number of announced bytes.
        announced: u64,
        /// The observed error.
        why: String,
    },
    /// The transfer is too slow: fewer bytes than this in this time.
    #[error("no more than {} came in {}", .0, format_duration(*.1))]
    Slow(ByteSize, Duration),
    /// The server sends another part of the file than was requested.
    #[error("the server sends another range than was asked for: {0}")]
    Range(String),
    /// Continuing the partial file did not produce the right file.
    #[error("what was there of the file does not fit the rest")]
    Stale,
    /// The file is larger than the limit.
    #[error("the file is larger than {0}")]
    TooLarge(ByteSize),
    /// The complete file is not the expected one.
    #[error("the digest is wrong: expected {expected}, found {}", .found.hex())]
    Digest {
        /// The expected checksum.
        expected: Checksum,
        /// The actual checksum.
        found: Checksum,
    },
    /// A file of this host cannot be read.
    #[error("{0}")]
    File(#[from] io::Error),
}

fn status_text(status: u16) -> String {
    let text = ureq::http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    text.map_or_else(|| status.to_string(), |text| format!("{status} ({text})"))
}

impl TransferError {
    /// Returns whether a retry at the same place is useless.
    pub(super) fn is_final(&self) -> bool {
        match self {
            TransferError::Status(status) => !matches!(status, 408 | 425 | 429 | 500..=599),
            TransferError::Refused(_)
            | TransferError::TooLarge(_)
            | TransferError::Digest { .. }
            | TransferError::File(_) => true,
            _ => false,
        }
    }
}

/// A place, and its error.
#[derive(Debug)]
pub struct FailedAttempt {
    /// URL of the place.
    pub url: Url,
    /// The last error.
    pub problem: TransferError,
}

/// A failed download.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// No place has the file.
    #[error("{}", failed(.file, .tried))]
    Failed {
        /// Name of the file at the first place.
        file: String,
        /// Every place, in the order in which they were tried.
        tried: Vec<FailedAttempt>,
    },
    /// The right file was downloaded, but cannot be unpacked.
    #[error("{file}: {source}")]
    Unpack {
        /// Name of the file.
        file: String,
        /// The underlying error.
        source: UnpackError,
    },
    /// The file is not in the cache, and downloads are not allowed.
    #[error("{0} is not in the download cache, and --offline allows nothing else")]
    Offline(String),
    /// A list of checksums lacks the file, or has contradictory lines about it.
    #[error("{sums} {what} {file}")]
    Sums {
        /// URL of the list.
        sums: Url,
        /// Name of the file.
        file: String,
        /// Description of the problem.
        what: &'static str,
    },
    /// A list of checksums is too long, or not text.
    #[error("{0} is no list of checksums")]
    NoSums(Url),
    /// The list is not signed by a trusted key.
    #[error("{sums} is not signed by {}", key.display())]
    Signature {
        /// URL of the list.
        sums: Url,
        /// Path of the trusted key.
        key: PathBuf,
        /// The underlying error.
        source: SignatureError,
    },
    /// The cache cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Cache {
        /// The action that failed.
        action: &'static str,
        /// Path of the file or folder.
        path: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// The download was cancelled.
    #[error(transparent)]
    Cancelled(#[from] CancelledError),
}

/// A signature is not valid.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// A signature of OpenSSH or minisign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// A signature of `OpenPGP`.
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

fn failed(file: &str, tried: &[FailedAttempt]) -> String {
    match tried {
        [FailedAttempt { url, problem }] => format!("cannot download {url}: {problem}"),
        _ => format!("cannot download {file} from any of {} places", tried.len()),
    }
}

impl DownloadError {
    /// Returns whether some place had another file than the expected one.
    #[must_use]
    pub fn is_wrong_digest(&self) -> bool {
        matches!(self, DownloadError::Failed { tried, .. } if has_wrong_digest(tried))
    }

    /// Returns whether the file would have had to be downloaded, which is not allowed.
    pub(crate) fn is_offline(&self) -> bool {
        matches!(self, DownloadError::Offline(_))
    }

    /// Returns the HTTP status with which the only place refused, if it did.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            DownloadError::Failed { tried, .. } => match &tried[..] {
                [FailedAttempt { problem: TransferError::Status(status), .. }] => Some(*status),
                _ => None,
            },
            _ => None,
        }
    }

    /// Returns whether no place answers as a working server does, so that nothing is known about its files.
    pub(super) fn is_down(&self) -> bool {
        let DownloadError::Failed { tried, .. } = self else { return false };
        !tried.is_empty() && !tried.iter().any(|tried| tried.problem.is_final())
    }

    /// Returns the error of a file that has one place.
    pub(super) fn of_place(url: &Url, problem: TransferError) -> Self {
        let tried = vec![FailedAttempt { url: url.clone(), problem }];
        Self::Failed { file: url.file_name(), tried }
    }

    /// Returns an adapter for the error of a failed call: `.map_err(DownloadError::cache("read", path))`.
    pub(super) fn cache(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| DownloadError::Cache { action, path, source }
    }
}

impl Fault for DownloadError {
    fn kind(&self) -> Kind {
        match self {
            DownloadError::Cache { .. } => Kind::Host,
            DownloadError::Signature { source, .. } if source.fault().kind() == Kind::Host => Kind::Host,
            DownloadError::Cancelled(_) => Kind::Interrupted,
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
                tried.iter().map(|FailedAttempt { url, problem }| format!("{url}: {problem}")).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn has_wrong_digest(tried: &[FailedAttempt]) -> bool {
    tried.iter().any(|tried| matches!(tried.problem, TransferError::Digest { .. }))
}

fn tried_hints(tried: &[FailedAttempt]) -> Vec<String> {
    let hint = if has_wrong_digest(tried) {
        "the source has another file now, or it was changed on the way: compare with what its makers publish"
    } else if tried.iter().any(|tried| matches!(tried.problem, TransferError::Status(404 | 410))) {
        "look whether the file is still there: makers of images remove old ones"
    } else {
        return Vec::new();
    };
    vec![hint.into()]
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

/// The reason for the end of an attempt.
#[derive(Debug)]
pub(super) enum AttemptError {
    /// Another attempt or place may succeed.
    Problem(TransferError),
    /// No retry can succeed.
    Error(DownloadError),
}

impl From<TransferError> for AttemptError {
    fn from(problem: TransferError) -> Self {
        AttemptError::Problem(problem)
    }
}

impl From<DownloadError> for AttemptError {
    fn from(error: DownloadError) -> Self {
        AttemptError::Error(error)
    }
}

impl From<CancelledError> for AttemptError {
    fn from(cancelled: CancelledError) -> Self {
        AttemptError::Error(cancelled.into())
    }
}
