//! Copies a file cheaply: holes stay holes, and where the file system can, both files share their blocks.
//!
//! `copy_file_range` makes reflinks by itself on file systems that have them (see its man page), so no ioctl is needed.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek};

/// Bytes copied by one call; a whole number of blocks on every file system, as reflinks need.
const CHUNK: u64 = 16 << 20;
/// Bytes copied by one call where the kernel cannot copy by itself.
const BUFFER: usize = 1 << 20;

/// Copies all of `from` into the empty file `to`. `copied` is called with the number of bytes of each piece, holes included.
pub(super) fn copy<E: From<io::Error>>(
    from: &File,
    to: &File,
    mut copied: impl FnMut(u64) -> Result<(), E>,
) -> Result<(), E> {
    let length = from.metadata()?.len();
    let mut at = 0;
    while let Some(data) = next_data(from, at..length)? {
        copied(data.start - at)?;
        at = data.start;
        while at < data.end {
            let n = copy_some(from, to, at..data.end.min(at + CHUNK))?;
            at += n;
            copied(n)?;
        }
    }
    to.set_len(length)?;
    copied(length - at)
}

/// Returns the first extent of data in the range. A file system without holes reports all of it as data (lseek(2)).
fn next_data(file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    if range.is_empty() {
        return Ok(None);
    }
    let start = match lseek(file, range.start.cast_signed(), Whence::SeekData) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = lseek(file, start, Whence::SeekHole)?.cast_unsigned();
    let start = start.cast_unsigned();
    Ok((start < range.end).then(|| start..end.min(range.end)))
}

/// Copies at least one byte from the start of the range, and returns how many.
fn copy_some(from: &File, to: &File, range: Range<u64>) -> io::Result<u64> {
    let mut source = range.start.cast_signed();
    let mut target = source;
    let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let copied = match copy_file_range(from, Some(&mut source), to, Some(&mut target), length) {
        Ok(n) => n,
        // Other file systems, old kernels, seccomp filters: copy by hand.
        Err(Errno::EXDEV | Errno::ENOSYS | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPERM) => {
            copy_by_hand(from, to, &range)?
        }
        Err(Errno::EINTR) => return copy_some(from, to, range),
        Err(error) => return Err(error.into()),
    };
    if copied == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(copied as u64) }
}

fn copy_by_hand(from: &File, to: &File, range: &Range<u64>) -> io::Result<usize> {
    let length = usize::try_from(range.end - range.start).map_or(BUFFER, |length| length.min(BUFFER));
    let mut buffer = vec![0; length];
    let n = from.read_at(&mut buffer, range.start)?;
    to.write_all_at(&buffer[..n], range.start)?;
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    fn pattern(n: usize) -> Vec<u8> {
        (0..n).map(|i| u8::try_from(i % 251).unwrap()).collect()
    }

    fn sparse() -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&pattern(100_000), 8 << 20).unwrap();
        file.write_all_at(b"tail", 40 << 20).unwrap();
        file.set_len(64 << 20).unwrap();
        file
    }

    fn content(file: &File) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    #[test]
    fn content_and_holes_are_copied() {
        let (from, to) = (sparse(), tempfile::tempfile().unwrap());
        let mut told = 0;
        copy::<io::Error>(&from, &to, |n| {
            told += n;
            Ok(())
        })
        .unwrap();
        assert_eq!(told, 64 << 20);
        assert!(content(&from) == content(&to));
        let blocks = |file: &File| file.metadata().unwrap().blocks();
        assert!(blocks(&to) <= blocks(&from) + 64, "{} {}", blocks(&to), blocks(&from));
    }

    #[test]
    fn files_of_odd_length_and_no_length_are_copied() {
        for length in [0, 1, 4095, 4097, 3 * BUFFER + 7] {
            let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            from.write_all_at(&pattern(length), 0).unwrap();
            copy::<io::Error>(&from, &to, |_| Ok(())).unwrap();
            assert!(content(&to) == pattern(length), "{length}");
        }
    }

    #[test]
    fn copying_by_hand_moves_the_same_bytes() {
        let (from, mut to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(&pattern(5000), 0).unwrap();
        assert_eq!(copy_by_hand(&from, &to, &(1000..5000)).unwrap(), 4000);
        let mut copied = Vec::new();
        to.read_to_end(&mut copied).unwrap();
        assert_eq!(copied[1000..], pattern(5000)[1000..]);
    }

    #[test]
    fn a_copy_can_be_stopped() {
        let stop = |_| Err(io::Error::other("stop"));
        assert_eq!(copy(&sparse(), &tempfile::tempfile().unwrap(), stop).unwrap_err().to_string(), "stop");
    }
}
