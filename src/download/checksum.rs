//! Checksums of expected files: SHA-256 or SHA-512.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

use crate::digest::hex;

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
pub struct Checksum {
    algorithm: Algorithm,
    hex: String,
}

/// A string that is neither 64 nor 128 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a checksum has 64 (sha256) or 128 (sha512) hexadecimal digits")]
pub struct ChecksumError;

impl Checksum {
    /// Returns the algorithm of the checksum.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns its digits, in lower case.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl FromStr for Checksum {
    type Err = ChecksumError;

    fn from_str(text: &str) -> Result<Self, ChecksumError> {
        let algorithm = match text.len() {
            64 => Algorithm::Sha256,
            128 => Algorithm::Sha512,
            _ => return Err(ChecksumError),
        };
        if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ChecksumError);
        }
        Ok(Self { algorithm, hex: text.to_ascii_lowercase() })
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm.name(), self.hex)
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
    pub(super) fn finish(self) -> (String, Checksum) {
        let sha256 = hex(&self.sha256.finalize());
        let found = match self.sha512 {
            Some(sha512) => Checksum { algorithm: Algorithm::Sha512, hex: hex(&sha512.finalize()) },
            None => Checksum { algorithm: Algorithm::Sha256, hex: sha256.clone() },
        };
        (sha256, found)
    }
}
