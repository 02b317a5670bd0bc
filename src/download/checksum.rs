//! Checksums of expected files: SHA-256 or SHA-512.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

use crate::digest::{Sha256Digest, hex, parse_hex};

/// Algorithm of a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256: 64 hex digits.
    Sha256,
    /// SHA-512: 128 hex digits.
    Sha512,
}

impl Algorithm {
    /// Returns its name, as in tools and folders.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

/// Checksum of an expected file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Checksum {
    /// A SHA-256 digest.
    Sha256(Sha256Digest),
    /// A SHA-512 digest.
    Sha512(Box<[u8; 64]>),
}

/// A string that is neither 64 nor 128 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a checksum has 64 (sha256) or 128 (sha512) hexadecimal digits")]
pub struct ChecksumError;

impl Checksum {
    /// Returns the algorithm of the checksum.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Returns its digits, in lower case.
    #[must_use]
    pub fn hex(&self) -> String {
        match self {
            Self::Sha256(sha256) => sha256.to_string(),
            Self::Sha512(sha512) => hex(&**sha512),
        }
    }
}

impl FromStr for Checksum {
    type Err = ChecksumError;

    fn from_str(text: &str) -> Result<Self, ChecksumError> {
        if let Ok(sha256) = text.parse() {
            return Ok(Self::Sha256(sha256));
        }
        parse_hex(text).map(|sha512| Self::Sha512(Box::new(sha512))).ok_or(ChecksumError)
    }
}

impl From<Sha256Digest> for Checksum {
    fn from(sha256: Sha256Digest) -> Self {
        Self::Sha256(sha256)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm().name(), self.hex())
    }
}

/// Hashes a stream: by SHA-256, under which files are kept, and by the algorithm of the checksum.
#[derive(Clone)]
pub(super) struct DownloadHasher {
    sha256: Sha256,
    sha512: Option<Sha512>,
}

impl DownloadHasher {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        Self { sha256: Sha256::new(), sha512: (algorithm == Algorithm::Sha512).then(Sha512::new) }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(bytes);
        }
    }

    /// Returns the SHA-256, and the checksum by the requested algorithm.
    pub(super) fn finish(self) -> (Sha256Digest, Checksum) {
        let sha256 = self.sha256.into();
        let found = match self.sha512 {
            Some(sha512) => Checksum::Sha512(Box::new(sha512.finalize().into())),
            None => Checksum::Sha256(sha256),
        };
        (sha256, found)
    }
}
