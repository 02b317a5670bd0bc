//! Copies a file cheaply: holes stay holes, and where the file system can, both files share their blocks.

use std::fs::File;
use std::io;
use std::ops::Range;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::fs::copy_range::copy_some;

/// Bytes copied by one call; a whole number of blocks on every file system, as reflinks need.
const CHUNK: u64 = 16 << 20;

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
            let n = copy_some(from, at..data.end.min(at + CHUNK), to, at)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::copy_range::BUFFER;
    use std::os::unix::fs::{FileExt, MetadataExt};

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
    fn a_copy_can_be_stopped() {
        let stop = |_| Err(io::Error::other("stop"));
        assert_eq!(copy(&sparse(), &tempfile::tempfile().unwrap(), stop).unwrap_err().to_string(), "stop");
    }
}
