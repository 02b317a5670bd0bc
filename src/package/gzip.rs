//! A gzip file with one member, compressed by all processors at once.
//!
//! Each block is deflated on its own and ends with a sync flush, so it ends at a whole byte, is not the last one of the
//! stream, and refers to nothing before itself: concatenated they are one deflate stream (RFC 1951, 3.2.3), which every
//! reader accepts. The same content gives the same bytes, however many processors there are.

use std::io::Write;
use std::thread;

use flate2::{Compress, Compression, Crc, FlushCompress};

use super::PackageError;
use super::content::PackageContent;
use crate::disk::ordered_jobs::threads;
use crate::progress::Progress;

/// Size of a block, bytes: its window starts empty, which costs less than a hundredth at this size.
const BLOCK: u64 = 1 << 20;
/// Header by RFC 1952, 2.3: deflate, no name, no time, extra flags 0, made on Unix.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
/// An empty deflate block that is the last one: fixed codes, end of block.
const LAST_BLOCK: [u8; 2] = [3, 0];

/// Level of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// No compression, for content that is compressed already.
    Stored,
    /// The default level of gzip.
    Default,
}

struct Block {
    packed: Vec<u8>,
    crc: Crc,
}

/// Writes `content` as a gzip file. Blocks the calling thread; uses all processors. `progress` counts bytes of the content.
///
/// # Errors
/// When it cannot be read or written, or the work is cancelled. What was written is then of no use.
pub fn write(
    content: &PackageContent,
    effort: Effort,
    out: &mut dyn Write,
    progress: &Progress<'_>,
) -> Result<(), PackageError> {
    let mut crc = Crc::new();
    out.write_all(&HEADER).map_err(PackageError::Write)?;
    let mut starts = (0..content.len()).step_by(usize::try_from(BLOCK).unwrap_or(usize::MAX)).peekable();
    while starts.peek().is_some() {
        let batch: Vec<_> = starts.by_ref().take(threads()).collect();
        for block in in_parallel(&batch, |start| deflate(content, *start, effort)) {
            let block = block?;
            out.write_all(&block.packed).map_err(PackageError::Write)?;
            crc.combine(&block.crc);
            progress.advance(block.crc.amount().into())?;
        }
    }
    let mut end = LAST_BLOCK.to_vec();
    end.extend(crc.sum().to_le_bytes());
    // Modulo 2^32, as RFC 1952, 2.3.1, has it.
    end.extend(crc.amount().to_le_bytes());
    out.write_all(&end).map_err(PackageError::Write)
}

/// Runs `work` on each job, in a thread of its own, and returns the results in order.
pub(super) fn in_parallel<T: Sync, R: Send>(jobs: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let threads: Vec<_> = jobs.iter().map(|job| scope.spawn(|| work(job))).collect();
        let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
        joined.map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

fn deflate(content: &PackageContent, start: u64, effort: Effort) -> Result<Block, PackageError> {
    let mut bytes = vec![0; usize::try_from((content.len() - start).min(BLOCK)).unwrap_or(usize::MAX)];
    content.read_at(start, &mut bytes)?;
    let mut crc = Crc::new();
    crc.update(&bytes);
    let level = match effort {
        Effort::Stored => Compression::none(),
        Effort::Default => Compression::default(),
    };
    let mut compress = Compress::new(level, false);
    // Incompressible data becomes larger by five bytes for every 16 KiB, and a few at the end.
    let mut packed = Vec::with_capacity(bytes.len() + bytes.len() / 1000 + 64);
    while compress.total_in() < bytes.len() as u64 || packed.len() == packed.capacity() {
        packed.reserve(64 << 10);
        let rest = &bytes[usize::try_from(compress.total_in()).unwrap_or(usize::MAX)..];
        compress
            .compress_vec(rest, &mut packed, FlushCompress::Sync)
            .map_err(|error| PackageError::Compress(error.into()))?;
    }
    Ok(Block { packed, crc })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use tokio_util::sync::CancellationToken;

    use flate2::read::GzDecoder;

    use super::*;

    fn packed(content: &PackageContent, effort: Effort) -> Vec<u8> {
        let mut out = Vec::new();
        write(content, effort, &mut out, &Progress::unwatched()).unwrap();
        out
    }

    /// Unpacks with a decoder that supports one member only, and checks that it reads to the last byte.
    fn unpacked(mut gzip: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        GzDecoder::new(&mut gzip).read_to_end(&mut bytes).unwrap();
        assert_eq!(gzip, b"", "something behind the member");
        bytes
    }

    /// Returns text, and incompressible data, over several blocks.
    fn mixed(length: u64) -> PackageContent {
        let mut state = 1_u32;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        });
        let mut content = PackageContent::from(b"text ".repeat(100_000));
        content.push(noise.take(usize::try_from(length).unwrap() - 500_000).collect::<Vec<u8>>());
        content
    }

    #[test]
    fn it_is_one_member_with_every_byte() {
        for length in [BLOCK, 3 * BLOCK, 3 * BLOCK + 1, 3 * BLOCK - 1] {
            let content = mixed(length);
            for effort in [Effort::Stored, Effort::Default] {
                assert!(unpacked(&packed(&content, effort)) == content.to_vec().unwrap(), "{length} {effort:?}");
            }
        }
        assert_eq!(unpacked(&packed(&PackageContent::default(), Effort::Default)), b"");
    }

    #[test]
    fn zeroes_vanish_and_noise_hardly_grows() {
        let zeroes = PackageContent::zeroes(64 << 20);
        assert!(packed(&zeroes, Effort::Default).len() < 80_000);
        let noise = mixed(8 << 20);
        assert!((packed(&noise, Effort::Stored).len() as u64) < noise.len() + noise.len() / 1000);
    }

    #[test]
    fn it_can_be_stopped() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        let progress = Progress::unreported(&cancel);
        let stopped = write(&mixed(BLOCK), Effort::Default, &mut Vec::new(), &progress);
        assert!(matches!(stopped, Err(PackageError::Cancelled(_))));
    }
}
