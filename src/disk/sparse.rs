//! Detects zeroes, leaves them out of files, and hashes them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

/// The smallest hole in bytes: a block of nearly every file system.
const BLOCK: usize = 4 << 10;
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Returns whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    // Comparing memory is the fastest check, even in builds without optimisation.
    bytes.chunks(ZEROES.len()).all(|chunk| chunk == &ZEROES[..chunk.len()])
}

/// Writes bytes to a file that is zero there so far, and leaves holes for whole blocks of zeroes.
pub(super) fn write_at(file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    let mut blocks = bytes.chunks(BLOCK).enumerate();
    while let Some((first, _)) = blocks.find(|(_, block)| !is_zero(block)) {
        // One write for all blocks up to the next hole.
        let end = blocks.find(|(_, block)| is_zero(block)).map_or(bytes.len(), |(end, _)| end * BLOCK);
        file.write_all_at(&bytes[first * BLOCK..end], at + (first * BLOCK) as u64)?;
    }
    Ok(())
}

/// Hashes this many zeroes.
pub(super) fn hash_zeroes(sha: &mut Sha256, mut count: u64) {
    while count > 0 {
        let now = usize::try_from(count).unwrap_or(ZEROES.len()).min(ZEROES.len());
        sha.update(&ZEROES[..now]);
        count -= now as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn only_blocks_with_data_are_written() {
        for pattern in ["", "x", ".x", "x.", "x.x", ".xx.", "xx..x..xxx"] {
            let file = tempfile::tempfile().unwrap();
            let bytes: Vec<u8> = pattern.bytes().flat_map(|c| [if c == b'x' { 7 } else { 0 }; BLOCK]).collect();
            write_at(&file, 1 << 20, &bytes).unwrap();
            let mut read = vec![0; bytes.len() + (1 << 20)];
            file.set_len(read.len() as u64).unwrap();
            file.read_exact_at(&mut read, 0).unwrap();
            assert!(is_zero(&read[..1 << 20]) && read[1 << 20..] == bytes, "{pattern}");
            let written = pattern.matches('x').count() as u64;
            assert_eq!(file.metadata().unwrap().blocks() * 512, written * BLOCK as u64, "{pattern}");
        }
        // A last block may be incomplete.
        let file = tempfile::tempfile().unwrap();
        write_at(&file, 0, &[&[0; BLOCK][..], b"end"].concat()).unwrap();
        assert_eq!(file.metadata().unwrap().len(), BLOCK as u64 + 3);
    }
}
