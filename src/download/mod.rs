//! Files from elsewhere: downloaded once, verified by a digest that is known before, and kept under it.
//!
//! ```text
//! CACHE/downloads/sha256/HEX/data            as downloaded, mode 0444; a folder of this name is complete
//! CACHE/downloads/sha256/HEX/unpacked.HEX    its unpacked form, with its own SHA-256
//! CACHE/downloads/sha512/HEX                 a link to the SHA-256 that belongs to a SHA-512
//! CACHE/downloads/part/HEX/                  a download that is running or was killed: see `part`
//! CACHE/downloads/sums/HEX                   a signed list of checksums and its signature, by the digest of its URL
//! ```
//!
//! ```text
//! Request -- sums: which checksum? --> find it in the cache --> claim it --> places: transfer over http | from a file
//!                                                                              `-> part: hashed and unpacked on the way
//! ```
//!
//! Nothing is trusted: a file is taken from the cache only after its digest was compared ([`DigestCache`] remembers it), a partial
//! file is hashed again from its first byte, and the digest takes precedence over anything that a server sends. A process
//! that uses a file holds a shared flock(2) on its folder, and it is only removed under an exclusive one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::digest_cache::DigestCache;
use crate::fs::Fs;
use crate::size::ByteSize;
use crate::url::Url;

mod cache;
mod checksum;
mod error;
mod evict;
mod http;
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
mod name_lookup;
mod partial_file;
mod places;
mod recording;
mod sums;
mod transfer;
mod unpack;
mod watch;

#[cfg(test)]
mod tests;

pub use cache::Download;
pub use checksum::{Algorithm, Checksum, ChecksumError};
pub use error::{DownloadError, FailedAttempt, SignatureError, TransferError};
pub use evict::DownloadEviction;
pub(crate) use http::{AddressGuard, GuestClient, GuestMethod, GuestRequest};
pub(crate) use recording::{AnswerHead, IncomingAnswer};
pub use sums::{ChecksumList, Location, SumsTrust};
pub use unpack::{FileCompression, UnpackError};
pub use watch::{DownloadProgress, DownloadWatch};

/// Mode of the files, which are never written again.
const FILE_MODE: u32 = 0o444;
/// Mode of the folders.
const FOLDER_MODE: u32 = 0o700;

/// A file to download.
#[derive(Debug, Clone)]
pub struct DownloadRequest {
    /// URLs of the file, in the order in which they are tried; the same file at each.
    pub urls: Vec<Url>,
    /// The checksum of the file as it is downloaded, or the source of it.
    pub pin: DownloadPin,
    /// How the file is compressed, if it is to be unpacked: see [`FileCompression::of`].
    pub packing: Option<FileCompression>,
    /// Limits of size and time.
    pub limits: DownloadLimits,
}

/// The source of a file's checksum.
#[derive(Debug, Clone)]
pub enum DownloadPin {
    /// Its checksum is known.
    Checksum(Checksum),
    /// A list of checksums names it.
    Sums(ChecksumList),
}

/// Limits of size and time of a download.
#[derive(Debug, Clone)]
pub struct DownloadLimits {
    /// Size limit of the file as it is downloaded.
    pub download: ByteSize,
    /// Size limit of the unpacked file.
    pub unpacked: ByteSize,
    /// Time limit for resolving a server's name, and for connecting to it.
    pub connect: Duration,
    /// Time limit for a server that sends nothing.
    pub silence: Duration,
    /// Minimum speed of a server.
    pub pace: MinimumRate,
    /// Number of consecutive attempts without progress at each place.
    pub attempts: u32,
    /// Pause before the second attempt; twice as long before each further one, half a minute at most.
    pub pause: Duration,
}

/// A minimum speed.
#[derive(Debug, Clone, Copy)]
pub struct MinimumRate {
    /// The amount of data.
    pub least: ByteSize,
    /// The time in which it must arrive.
    pub within: Duration,
}

impl Default for DownloadLimits {
    fn default() -> Self {
        Self {
            download: ByteSize::gib(64),
            unpacked: ByteSize::gib(64),
            connect: Duration::from_secs(20),
            silence: Duration::from_secs(30),
            pace: MinimumRate { least: ByteSize::mib(1), within: Duration::from_secs(60) },
            attempts: 5,
            pause: Duration::from_secs(1),
        }
    }
}

/// Whether downloads may use the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// The network may be used.
    Online,
    /// Only files in the cache are used.
    Offline,
}

/// The downloads of one cache folder.
#[derive(Debug, Clone)]
pub struct DownloadCache {
    root: PathBuf,
    fs: Fs,
    memo: Arc<DigestCache>,
    reach: NetworkMode,
}

impl DownloadCache {
    /// Opens the downloads below a cache folder, which is created if missing.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn open(cache: &Path, memo: Arc<DigestCache>, reach: NetworkMode) -> Result<Self, DownloadError> {
        Self::open_on(cache, memo, reach, Fs::default())
    }

    fn open_on(cache: &Path, memo: Arc<DigestCache>, reach: NetworkMode, fs: Fs) -> Result<Self, DownloadError> {
        let downloads = Self { root: cache.join("downloads"), fs, memo, reach };
        let folders = [Algorithm::Sha256.name(), Algorithm::Sha512.name(), "part", "sums"];
        for folder in folders.map(|name| downloads.root.join(name)) {
            downloads.fs.ensure_path(&folder, FOLDER_MODE).map_err(DownloadError::cache("make", &folder))?;
        }
        Ok(downloads)
    }

    /// Returns the checksum of a request: its own, or that of a list. Downloads a list that is not in the cache, and a
    /// signed one always. Blocks the calling thread.
    ///
    /// # Errors
    /// When the list cannot be downloaded, is not to be trusted, or does not name the file.
    pub fn resolve(&self, request: &DownloadRequest, watch: &mut DownloadWatch<'_>) -> Result<Checksum, DownloadError> {
        match &request.pin {
            DownloadPin::Checksum(checksum) => Ok(checksum.clone()),
            DownloadPin::Sums(sums) => watch.beside(|watch| self.look_up(sums, request, watch)),
        }
    }
}
