//! Copies a part of a file into another: where the file system can, both files share its blocks.
//!
//! `copy_file_range` makes reflinks by itself on file systems that have them (see its man page), so no ioctl is needed. They
//! need offsets and lengths that are whole blocks.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;

/// Bytes copied by one call where the kernel cannot copy by itself.
pub(crate) const BUFFER: usize = 1 << 20;

/// Copies at least one byte from the start of the range to the offset `at`, and returns how many.
pub(crate) fn copy_some(from: &File, range: Range<u64>, to: &File, at: u64) -> io::Result<u64> {
    let (mut source, mut target) = (range.start.cast_signed(), at.cast_signed());
    let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let copied = match copy_file_range(from, Some(&mut source), to, Some(&mut target), length) {
        Ok(n) => n,
        // Other file systems, old kernels, seccomp filters: copy by hand.
        Err(Errno::EXDEV | Errno::ENOSYS | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPERM) => {
            copy_by_hand(from, range, to, at)?
        }
        Err(Errno::EINTR) => return copy_some(from, range, to, at),
        Err(error) => return Err(error.into()),
    };
    if copied == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(copied as u64) }
}

/// Copies all bytes of the range to the offset `at`.
pub(crate) fn copy_range(from: &File, range: Range<u64>, to: &File, at: u64) -> io::Result<()> {
    let mut done = range.start;
    while done < range.end {
        done += copy_some(from, done..range.end, to, at + (done - range.start))?;
    }
    Ok(())
}

fn copy_by_hand(from: &File, range: Range<u64>, to: &File, at: u64) -> io::Result<usize> {
    let length = usize::try_from(range.end - range.start).map_or(BUFFER, |length| length.min(BUFFER));
    let mut buffer = vec![0; length];
    let n = from.read_at(&mut buffer, range.start)?;
    to.write_all_at(&buffer[..n], at)?;
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(n: usize) -> Vec<u8> {
        (0..n).map(|i| u8::try_from(i % 251).unwrap()).collect()
    }

    /// Returns the bytes of a file from this offset on.
    fn content(file: &File, at: u64) -> Vec<u8> {
        let length = file.metadata().unwrap().len() - at;
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    #[test]
    fn copying_by_hand_moves_the_same_bytes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(&pattern(5000), 0).unwrap();
        assert_eq!(copy_by_hand(&from, 1000..5000, &to, 70).unwrap(), 4000);
        assert!(content(&to, 70) == pattern(5000)[1000..]);
    }

    #[test]
    fn a_range_is_copied_to_another_place() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let bytes = pattern(3 * BUFFER);
        from.write_all_at(&bytes, 0).unwrap();
        copy_range(&from, 4096..2 * BUFFER as u64, &to, 8192).unwrap();
        assert!(content(&to, 8192) == bytes[4096..2 * BUFFER]);
        copy_range(&from, 1..8, &to, 3).unwrap();
        assert_eq!(content(&to, 3)[..7], bytes[1..8]);
        copy_range(&from, 8..8, &to, 0).unwrap();
        let beyond = copy_range(&from, 0..bytes.len() as u64 + 1, &to, 0).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    }
}
