//! SHA-256 of files, and digests in hex.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};

/// Size of reads, bytes.
const PIECE: usize = 256 << 10;

/// Returns the SHA-256 of an open file from its first byte to its last, whatever its position. Blocks the calling thread.
///
/// # Errors
/// When reading fails.
pub fn sha256_file(file: &File) -> io::Result<[u8; 32]> {
    let mut sha = Sha256::new();
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at) {
            Ok(0) => return Ok(sha.finalize().into()),
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
pub fn sha256_data(file: &File) -> io::Result<[u8; 32]> {
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
    Ok(sha.finalize().into())
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

#[cfg(test)]
mod tests {
    use super::*;

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
            hex(&sha256_data(&file).unwrap())
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
