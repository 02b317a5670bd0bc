//! SHA-256 digests, of bytes and of files, and digests in hex.

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::str::FromStr;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// Size of reads, bytes.
const PIECE: usize = 256 << 10;

/// A SHA-256 digest. It is written as 64 hex digits in lower case, and read in either case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256Digest([u8; 32]);

impl Sha256Digest {
    /// Returns the digest of bytes in memory.
    #[must_use]
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Sha256::new_with_prefix(bytes).into()
    }

    /// Returns the digest that has these bytes.
    #[must_use]
    pub(crate) const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes of the digest.
    #[must_use]
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<Sha256> for Sha256Digest {
    fn from(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex(&self.0))
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0).fmt(f)
    }
}

/// A string that is not a SHA-256 digest. It holds the beginning of the string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a SHA-256 digest, which has 64 hex digits")]
pub struct MalformedDigestError(String);

impl FromStr for Sha256Digest {
    type Err = MalformedDigestError;

    fn from_str(text: &str) -> Result<Self, MalformedDigestError> {
        parse_hex(text).map(Self).ok_or_else(|| MalformedDigestError(text.chars().take(80).collect()))
    }
}

impl Serialize for Sha256Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Returns the SHA-256 of an open file from its first byte to its last, whatever its position. Blocks the calling thread.
///
/// # Errors
/// When reading fails.
pub fn sha256_file(file: &File) -> io::Result<Sha256Digest> {
    let mut sha = Sha256::new();
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at) {
            Ok(0) => return Ok(sha.into()),
            Ok(count) => {
                sha.update(&buffer[..count]);
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Returns a SHA-256 over the blocks of an open file that are not zeros, each with its offset, and over the file's length.
/// It is the same for holes and for zeros, and only reads data. Blocks the calling thread.
///
/// # Errors
/// When reading fails.
pub fn sha256_data(file: &File) -> io::Result<Sha256Digest> {
    let length = file.metadata()?.len();
    let mut sha = Sha256::new();
    sha.update(length.to_le_bytes());
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < length {
        // ENXIO: the rest is a hole (lseek(2)).
        let data = match lseek(file, at.cast_signed(), Whence::SeekData) {
            Ok(data) => data.cast_unsigned(),
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = lseek(file, data.cast_signed(), Whence::SeekHole)?.cast_unsigned();
        // Aligned to pieces, so that they do not depend on the positions of holes.
        at = data / PIECE as u64 * PIECE as u64;
        while at < end {
            let n = usize::try_from(length - at).unwrap_or(PIECE).min(PIECE);
            file.read_exact_at(&mut buffer[..n], at)?;
            if buffer[..n].iter().any(|byte| *byte != 0) {
                sha.update(at.to_le_bytes());
                sha.update(&buffer[..n]);
            }
            at += n as u64;
        }
    }
    Ok(sha.into())
}

/// Identifies a state of a file, to detect that it was written, replaced or renamed meanwhile. No program can choose its
/// ctime, so a change that was undone is detected as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for FileStamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Formats bytes as lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

/// Returns the bytes that are written as `2 * N` hexadecimal digits, in either case.
#[must_use]
pub(crate) fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = hex_digit(digits[0])? << 4 | hex_digit(digits[1])?;
    }
    Some(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    u8::try_from(char::from(digit).to_digit(16)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The SHA-256 of `abc`: FIPS 180-4, the one-block example.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_digest_is_written_in_lower_case_and_read_in_either() {
        let digest = Sha256Digest::of("abc");
        assert_eq!((digest.to_string(), format!("{digest:.6}")), (ABC.into(), "ba7816".into()));
        assert_eq!(serde_json::to_value(digest).unwrap(), ABC);
        for text in [ABC.to_owned(), ABC.to_uppercase()] {
            assert_eq!(text.parse(), Ok(digest));
            assert_eq!(serde_json::from_value::<Sha256Digest>(text.into()).unwrap(), digest);
        }
    }

    #[test]
    fn a_malformed_digest_is_refused_with_its_value() {
        let multibyte = "\u{e9}".repeat(32);
        for bad in
            ["", "ba78", &ABC[1..], &format!("{ABC}0"), &ABC.replace('b', "g"), &ABC.replace("ba", "+1"), &multibyte]
        {
            let error = bad.parse::<Sha256Digest>().unwrap_err().to_string();
            assert_eq!(error, format!("{bad:?} is not a SHA-256 digest, which has 64 hex digits"));
        }
        let long = "x".repeat(1 << 20).parse::<Sha256Digest>().unwrap_err().to_string();
        assert!(long.len() < 200, "{long}");
        let read = serde_json::from_str::<Sha256Digest>("\"00\"").unwrap_err().to_string();
        assert!(read.starts_with("\"00\" is not a SHA-256 digest"), "{read}");
    }

    #[test]
    fn a_stamp_shows_a_change_that_was_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::write(&path, "one").unwrap();
        let stamp = || FileStamp::from(&std::fs::metadata(&path).unwrap());
        let before = stamp();
        assert_eq!(stamp(), before);
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        // Longer than a tick of the kernel's clock.
        std::thread::sleep(std::time::Duration::from_millis(30));
        std::fs::write(&path, "two").unwrap();
        std::fs::write(&path, "one").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        let rewritten = stamp();
        assert_ne!(rewritten, before);
        std::thread::sleep(std::time::Duration::from_millis(30));
        std::fs::rename(&path, &aside).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        assert_ne!(stamp(), rewritten);
    }

    #[test]
    fn holes_are_zeros_and_everything_else_counts() {
        let digest = |write: &dyn Fn(&File)| {
            let file = tempfile::tempfile().unwrap();
            write(&file);
            sha256_data(&file).unwrap()
        };
        let size = 3 * PIECE as u64 + 5;
        let put = |file: &File, at: u64, bytes: &[u8]| {
            file.set_len(size).unwrap();
            file.write_all_at(bytes, at).unwrap();
        };
        let sparse = digest(&|file| put(file, size - 2, b"x"));
        let dense = digest(&|file| {
            put(file, 0, &vec![0; 3 * PIECE]);
            put(file, size - 2, b"x");
        });
        assert_eq!(sparse, dense);
        let others = [
            digest(&|file| put(file, size - 1, b"x")),
            digest(&|file| put(file, 7, b"x")),
            digest(&|file| put(file, size - 2, b"y")),
            digest(&|file| file.set_len(size).unwrap()),
            digest(&|file| file.set_len(size + 1).unwrap()),
        ];
        for (index, other) in others.iter().enumerate() {
            assert!(*other != sparse && !others[..index].contains(other), "{index}");
        }
    }
}
