//! `SHA256SUMS` and `SHA512SUMS`: returns the checksum of a file in a list, after the list itself was verified.
//!
//! A list is verified by its own digest, or by a signature beside it: of OpenSSH, minisign or `OpenPGP`. A signed list may
//! change, so it is downloaded each time; without a network, or while its server is down, the last good one is used, and
//! verified again. A list that is gone, or not signed by a trusted key, is an error nevertheless.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::slice;

use crate::digest::Sha256Digest;
use crate::digest_cache;
use crate::fs::{FileLock, read_up_to};
use crate::sign::{self, SignatureTrust, openpgp};
use crate::size::ByteSize;
use crate::url::Url;

use super::cache::DownloadFolder;
use super::checksum::{Algorithm, Checksum};
use super::error::{AttemptError, DownloadError, SignatureError};
use super::transfer::{TransferOrigin, TransferStart, TransferTarget};
use super::watch::DownloadWatch;
use super::{DownloadCache, DownloadLimits, DownloadPin, DownloadRequest, NetworkMode, places};

/// Size limit of a list.
const LARGEST: ByteSize = ByteSize::mib(16);
const LARGEST_SIGNATURE: ByteSize = ByteSize(sign::LARGEST);

/// A list of checksums.
#[derive(Debug, Clone)]
pub struct ChecksumList {
    /// URLs of the list, in the order in which they are tried.
    pub urls: Vec<Url>,
    /// How the list is verified.
    pub trust: SumsTrust,
    /// Name of the file in the list; `None` means the name in the file's first URL.
    pub file: Option<String>,
}

/// How a list is verified.
#[derive(Debug, Clone)]
pub enum SumsTrust {
    /// By its own checksum.
    Checksum(Checksum),
    /// By a signature.
    Signature {
        /// Location of the detached signature.
        signature: Location,
        /// Path of the trusted key: a public key of OpenSSH, minisign or `OpenPGP`, or a keyring of the last.
        key: PathBuf,
    },
}

/// Location of a small file.
#[derive(Debug, Clone)]
pub enum Location {
    /// At a URL.
    Url(Url),
    /// A file of the project.
    File(PathBuf),
}

impl DownloadCache {
    pub(super) fn look_up(
        &self,
        sums: &ChecksumList,
        request: &DownloadRequest,
        watch: &mut DownloadWatch<'_>,
    ) -> Result<Checksum, DownloadError> {
        let list = first(sums)?;
        let text = match &sums.trust {
            SumsTrust::Checksum(checksum) => self.pinned(sums, checksum, &request.limits, watch)?,
            SumsTrust::Signature { signature, key } => self.signed(sums, signature, key, &request.limits, watch)?,
        };
        let text = String::from_utf8(text).map_err(|_| DownloadError::NoSums(list.clone()))?;
        let file = sums.file.clone().or_else(|| request.urls.first().map(Url::file_name)).unwrap_or_default();
        match find(&text, &file) {
            ChecksumMatch::One(checksum) => Ok(checksum),
            ChecksumMatch::None => Err(DownloadError::Sums { sums: list.clone(), file, what: "does not name" }),
            ChecksumMatch::Several => {
                Err(DownloadError::Sums { sums: list.clone(), file, what: "has several checksums for" })
            }
        }
    }

    /// Downloads a list with a known checksum like any other file.
    fn pinned(
        &self,
        sums: &ChecksumList,
        checksum: &Checksum,
        limits: &DownloadLimits,
        watch: &mut DownloadWatch<'_>,
    ) -> Result<Vec<u8>, DownloadError> {
        let limits = DownloadLimits { download: LARGEST, ..limits.clone() };
        let pin = DownloadPin::Checksum(checksum.clone());
        let list = self.fetch(&DownloadRequest { urls: sums.urls.clone(), pin, packing: None, limits }, watch)?;
        fs::read(&list.path).map_err(DownloadError::cache("read", &list.path))
    }

    fn signed(
        &self,
        sums: &ChecksumList,
        signature: &Location,
        key: &Path,
        limits: &DownloadLimits,
        watch: &mut DownloadWatch<'_>,
    ) -> Result<Vec<u8>, DownloadError> {
        let list = first(sums)?;
        let kept = CachedSums::of(list, self.root.join("sums"));
        if self.reach == NetworkMode::Offline {
            return kept.verified(signature, key);
        }
        match current(sums, signature, limits, watch) {
            Err(error) if error.is_down() => {
                let Ok(text) = kept.verified(signature, key) else { return Err(error) };
                watch.warning(format!("{error}; going on with the list that was good the last time"));
                Ok(text)
            }
            Err(error) => Err(error),
            Ok((text, signature)) => {
                verify(list, key, &text, &signature)?;
                kept.write(&text, &signature)?;
                Ok(text)
            }
        }
    }
}

/// Returns the current list and its signature.
fn current(
    sums: &ChecksumList,
    signature: &Location,
    limits: &DownloadLimits,
    watch: &mut DownloadWatch<'_>,
) -> Result<(Vec<u8>, Vec<u8>), DownloadError> {
    let text = document(&sums.urls, LARGEST, limits, watch)?;
    let signature = match signature {
        Location::File(path) => read_signature(path)?,
        Location::Url(url) => document(slice::from_ref(url), LARGEST_SIGNATURE, limits, watch)?,
    };
    Ok((text, signature))
}

fn read_signature(path: &Path) -> Result<Vec<u8>, DownloadError> {
    read_up_to(path, LARGEST_SIGNATURE.bytes()).map_err(DownloadError::cache("read", path))
}

fn first(sums: &ChecksumList) -> Result<&Url, DownloadError> {
    sums.urls.first().ok_or_else(|| DownloadError::Failed { file: "a list of checksums".into(), tried: Vec::new() })
}

/// The last good list and its signature. A pair that was torn apart by a killed kiln is noticed: it is verified again.
struct CachedSums {
    list: Url,
    folder: PathBuf,
    text: PathBuf,
    signature: PathBuf,
}

impl CachedSums {
    fn of(list: &Url, folder: PathBuf) -> Self {
        let path = folder.join(Sha256Digest::of(list.as_str()).to_string());
        Self {
            list: list.clone(),
            folder,
            text: path.with_extension("text"),
            signature: path.with_extension("signature"),
        }
    }

    /// Returns the list from the last time, after verifying it again.
    fn verified(&self, signature: &Location, key: &Path) -> Result<Vec<u8>, DownloadError> {
        let text = self.read(&self.text, LARGEST)?;
        let signature = match signature {
            Location::File(path) => read_signature(path)?,
            Location::Url(_) => self.read(&self.signature, LARGEST_SIGNATURE)?,
        };
        verify(&self.list, key, &text, &signature)?;
        Ok(text)
    }

    fn read(&self, path: &Path, largest: ByteSize) -> Result<Vec<u8>, DownloadError> {
        read_up_to(path, largest.bytes()).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DownloadError::Offline(self.list.to_string()),
            _ => DownloadError::cache("read", path)(error),
        })
    }

    fn write(&self, text: &[u8], signature: &[u8]) -> Result<(), DownloadError> {
        // An eviction removes folders that nobody has locked.
        let _turn = DownloadFolder::open(&self.folder, FileLock::exclusive)?;
        for (path, content) in [(&self.text, text), (&self.signature, signature)] {
            digest_cache::replace(path, content).map_err(DownloadError::cache("write", path))?;
        }
        Ok(())
    }
}

/// Verifies the signature of a list.
fn verify(list: &Url, key: &Path, text: &[u8], signature: &[u8]) -> Result<(), DownloadError> {
    check(key, text, signature).map_err(|source| DownloadError::Signature {
        sums: list.clone(),
        key: key.to_owned(),
        source,
    })
}

/// Verifies a signature, with the tool that the key belongs to.
fn check(key: &Path, text: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
    let head = read_up_to(key, 64).unwrap_or_default();
    if openpgp::is_keyring(&head) {
        openpgp::check(key, text, signature)?;
    } else {
        SignatureTrust::Key(key.to_owned()).check(text, signature)?;
    }
    Ok(())
}

/// Downloads a small file into memory.
fn document(
    urls: &[Url],
    largest: ByteSize,
    limits: &DownloadLimits,
    watch: &mut DownloadWatch<'_>,
) -> Result<Vec<u8>, DownloadError> {
    let limits = DownloadLimits { download: largest, ..limits.clone() };
    places::fetch(urls, &mut MemoryTarget::default(), &limits, watch)
}

/// A file in memory, never continued.
#[derive(Default)]
struct MemoryTarget(Vec<u8>);

impl TransferTarget for MemoryTarget {
    type Whole = Vec<u8>;

    fn length(&self) -> u64 {
        self.0.len() as u64
    }

    fn origin(&self) -> Option<&TransferOrigin> {
        None
    }

    fn begin(&mut self, _: TransferOrigin, _: TransferStart) -> Result<(), DownloadError> {
        self.0.clear();
        Ok(())
    }

    fn accept(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<u8>, AttemptError> {
        Ok(std::mem::take(&mut self.0))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum ChecksumMatch {
    One(Checksum),
    None,
    Several,
}

/// Returns the checksum of a file in a list, in coreutils' form (`HEX  NAME`, `HEX *NAME`) or BSD's (`SHA256 (NAME) = HEX`).
/// Other lines are ignored, such as comments and the frame of a signed text. Escaped names are not supported.
fn find(text: &str, file: &str) -> ChecksumMatch {
    let named = text.lines().filter_map(|line| entry(line.trim_end())).filter(|(name, _)| *name == file);
    let mut found: BTreeSet<_> = named.map(|(_, checksum)| checksum).collect();
    // Some lists have both kinds. Files are kept under this one.
    if found.iter().any(|checksum| checksum.algorithm() == Algorithm::Sha256) {
        found.retain(|checksum| checksum.algorithm() == Algorithm::Sha256);
    }
    match (found.pop_first(), found.is_empty()) {
        (None, _) => ChecksumMatch::None,
        (Some(checksum), true) => ChecksumMatch::One(checksum),
        (Some(_), false) => ChecksumMatch::Several,
    }
}

fn entry(line: &str) -> Option<(&str, Checksum)> {
    let (name, digits) = match line.split_once(" = ") {
        Some((start, digits)) if start.ends_with(')') => (start.split_once(" (")?.1.strip_suffix(')')?, digits),
        _ => {
            let (digits, name) = line.split_once(' ')?;
            (name.strip_prefix([' ', '*'])?, digits)
        }
    };
    Some((name.strip_prefix("./").unwrap_or(name), digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_are_read_and_all_else_is_passed_over() {
        let (one, two) = ("1".repeat(64), "2".repeat(128));
        let text = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n# a (b).img: 5 bytes\r\n{one} *./a (b).img\r\n\
             SHA512 (a (b).img) = {two}\nSHA256 (c) = {two}x\n{one} d\n"
        );
        assert_eq!(find(&text, "a (b).img"), ChecksumMatch::One(one.parse().unwrap()));
        assert_eq!(find(&text.replace(&format!("{one} *"), ""), "a (b).img"), ChecksumMatch::One(two.parse().unwrap()));
        for missing in ["c", "d", "", "a"] {
            assert_eq!(find(&text, missing), ChecksumMatch::None, "{missing}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([ -~]|\n|\\PC){0,200}") {
            let _ = find(&text, "a");
        }
    }
}
