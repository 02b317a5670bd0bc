//! Files from elsewhere: downloaded once, checked against a digest that is known before, and kept under it.
//!
//! ```text
//! CACHE/downloads/sha256/HEX/data            as it came, mode 0444; a folder of this name is whole
//! CACHE/downloads/sha256/HEX/unpacked.HEX    what it unpacks to, with its own SHA-256
//! CACHE/downloads/sha512/HEX                 a link that says which SHA-256 belongs to a SHA-512
//! CACHE/downloads/part/HEX/                  one being downloaded, or left behind by a kill: see `part`
//! CACHE/downloads/sums/HEX                   a signed list of checksums and its signature, by the digest of its URL
//! ```
//!
//! ```text
//! Request -- sums: which checksum? --> find it in the cache --> claim it --> places: transfer over http | from a file
//!                                                                              `-> part: hashed and unpacked on the way
//! ```
//!
//! Nothing is believed: a file is taken from the cache only after its digest was compared ([`Memo`] remembers it), a partial
//! file is hashed again from its first byte, and no server's word counts for more than the digest. Whoever uses a file
//! holds a shared flock(2) on its folder, and it is only removed under an exclusive one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::digest_cache::Memo;
use crate::fs::Fs;
use crate::size::ByteSize;
use crate::url::Url;

mod cache;
mod checksum;
mod error;
mod evict;
mod http;
mod part;
mod places;
mod sums;
mod transfer;
mod unpack;
mod watch;

#[cfg(test)]
mod tests;

pub use cache::Download;
pub use checksum::{Algorithm, Checksum, ChecksumError};
pub use error::{DownloadError, Problem, SignatureError, Tried};
pub use evict::Evicted;
pub use sums::{Location, Sums, SumsTrust};
pub use unpack::{Packing, UnpackError};
pub use watch::{Progress, Watch};

/// Mode of what is kept: it is never written again.
const FILE_MODE: u32 = 0o444;
/// Mode of the folders.
const FOLDER_MODE: u32 = 0o700;

/// A file that is wanted.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where it can be had, best place first; the same file at each.
    pub urls: Vec<Url>,
    /// What it must be, as it is downloaded.
    pub pin: Pin,
    /// How it is packed, if it is to be unpacked: see [`Packing::of`].
    pub packing: Option<Packing>,
    /// How large and how slow it may be.
    pub limits: Limits,
}

/// How it is known what a file must be.
#[derive(Debug, Clone)]
pub enum Pin {
    /// Its checksum is known.
    Checksum(Checksum),
    /// A list of checksums names it.
    Sums(Sums),
}

/// How large and how slow a download may be.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Of the file as it is downloaded.
    pub download: ByteSize,
    /// Of what it unpacks to.
    pub unpacked: ByteSize,
    /// For finding a server and connecting to it, each.
    pub connect: Duration,
    /// For a server that says nothing.
    pub silence: Duration,
    /// For a server that says little.
    pub pace: Pace,
    /// At each place, without any use.
    pub attempts: u32,
    /// Before the second attempt; twice as long before each further one, half a minute at most.
    pub pause: Duration,
}

/// The least that must come.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// So much.
    pub least: ByteSize,
    /// In so much time.
    pub within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            download: ByteSize::gib(64),
            unpacked: ByteSize::gib(64),
            connect: Duration::from_secs(20),
            silence: Duration::from_secs(30),
            pace: Pace { least: ByteSize::mib(1), within: Duration::from_secs(60) },
            attempts: 5,
            pause: Duration::from_secs(1),
        }
    }
}

/// Whether there may be a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// There may.
    Online,
    /// Only what is in the cache counts.
    Offline,
}

/// The downloads of one cache folder.
#[derive(Debug, Clone)]
pub struct Downloads {
    root: PathBuf,
    fs: Fs,
    memo: Arc<Memo>,
    reach: Reach,
}

impl Downloads {
    /// The downloads below a cache folder, which is made if missing.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn open(cache: &Path, memo: Arc<Memo>, reach: Reach) -> Result<Self, DownloadError> {
        Self::open_on(cache, memo, reach, Fs::default())
    }

    fn open_on(cache: &Path, memo: Arc<Memo>, reach: Reach, fs: Fs) -> Result<Self, DownloadError> {
        let downloads = Self { root: cache.join("downloads"), fs, memo, reach };
        let folders = [Algorithm::Sha256.name(), Algorithm::Sha512.name(), "part", "sums"];
        for folder in folders.map(|name| downloads.root.join(name)) {
            let made: io::Result<()> = downloads.fs.ensure_path(&folder, FOLDER_MODE);
            made.map_err(DownloadError::cache("make", &folder))?;
        }
        Ok(downloads)
    }

    /// What a request is for: its own checksum, or what a list says. For a list that is not in the cache, or a signed one,
    /// this asks the network. Blocks the calling thread.
    ///
    /// # Errors
    /// When the list cannot be had, is not to be trusted, or does not name the file.
    pub fn resolve(&self, request: &Request, watch: &mut Watch<'_>) -> Result<Checksum, DownloadError> {
        match &request.pin {
            Pin::Checksum(checksum) => Ok(checksum.clone()),
            Pin::Sums(sums) => watch.beside(|watch| self.look_up(sums, request, watch)),
        }
    }
}
