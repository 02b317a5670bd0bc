//! Copies a part of a file into another: where the file system can, both files share its blocks.
//!
//! A reflink needs offsets and lengths that are whole blocks (FICLONERANGE(2const)). Without one the bytes pass through kiln:
//! `copy_file_range` has returned wrong bytes on several file systems, and nothing reads the copy again.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::libc;

/// Bytes copied by one call where blocks cannot be shared.
pub(crate) const BUFFER: usize = 1 << 20;

/// Copies at least one byte from the start of the range to the offset `at`, and returns how many.
pub(crate) fn copy_some(from: &File, range: Range<u64>, to: &File, at: u64) -> io::Result<u64> {
    if share(from, &range, to, at) {
        return Ok(range.end - range.start);
    }
    let copied = copy_by_hand(from, range, to, at)?;
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

/// Lets a part of a file have the blocks of a part of another, and returns whether the file system can.
#[expect(unsafe_code, reason = "nix has no FICLONERANGE")]
fn share(from: &File, range: &Range<u64>, to: &File, at: u64) -> bool {
    let request = libc::file_clone_range {
        src_fd: from.as_raw_fd().into(),
        src_offset: range.start,
        src_length: range.end - range.start,
        dest_offset: at,
    };
    // A length of 0 means everything up to the end of the file.
    // SAFETY: the kernel reads the structure, which outlives the call.
    !range.is_empty() && unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const request) } == 0
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
