//! Unpacks a compressed file that arrives piece by piece, in bounded memory.
//!
//! ```text
//! (cpio archive, not compressed | gzip | xz | zstd)* ──> sink
//! a journal of systemd: its compressed objects       ──> sink
//! ```
//!
//! Initrds begin with archives that are not compressed, such as the processors' microcode; gzip and xz files may have
//! several streams with padding between them, zstd files frames to be skipped.

use std::io::Write;

use super::cpio::{ArchiveEnd, ArchiveSkip};
use super::decoder::{DecoderError, StreamDecoder, StreamEnd};
use super::journal::{self, JournalReader};
use super::unpacked_output::UnpackedOutput;

/// Length of the longest magic.
const MAGIC: usize = 8;
/// Limit of the zeroes of holes within compressed data that are unpacked, bytes.
const LONGEST_HOLES: u64 = 16 << 20;
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A file that may be compressed.
pub(super) struct ScanUnpacker<W: Write> {
    output: UnpackedOutput<W>,
    part: FilePart,
    /// Number of zeroes of holes so far.
    zeroes: u64,
}

/// The part of the file that the next bytes belong to.
enum FilePart {
    /// The beginning of a stream, as far as it was read.
    Head(Vec<u8>),
    Archive(ArchiveSkip),
    Stream(Box<StreamDecoder>),
    Journal(Box<JournalReader>),
    /// Content that is not compressed.
    Plain,
    /// Content that cannot be unpacked any further.
    Stopped(DecoderError),
}

impl<W: Write> ScanUnpacker<W> {
    pub(super) fn new(sink: W) -> Self {
        let output = UnpackedOutput { sink, buffer: Vec::new(), written: 0 };
        Self { output, part: FilePart::Head(Vec::new()), zeroes: 0 }
    }

    /// Takes the next bytes of the file. A damaged file is unpacked as far as possible.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = self.take(rest);
            rest = &rest[taken..];
        }
    }

    /// Takes the zeroes of a hole.
    pub(super) fn push_zeroes(&mut self, count: u64) {
        let mut left = count;
        while left > 0 && !self.is_indifferent_to_zeroes() {
            if self.zeroes > LONGEST_HOLES {
                self.part = FilePart::Stopped(DecoderError::TooLong);
                return;
            }
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROES.len());
            self.push(&ZEROES[..piece]);
            self.zeroes += piece as u64;
            left -= piece as u64;
        }
    }

    /// Returns the reason why a compressed file was not unpacked to its end.
    pub(super) fn error(&self) -> Option<DecoderError> {
        match &self.part {
            FilePart::Stopped(error) => Some(*error),
            FilePart::Journal(journal) => journal.error(),
            FilePart::Head(_) | FilePart::Archive(_) | FilePart::Stream(_) | FilePart::Plain => None,
        }
    }

    fn is_indifferent_to_zeroes(&self) -> bool {
        match &self.part {
            FilePart::Head(head) => head.is_empty(),
            FilePart::Journal(journal) => journal.is_over(),
            FilePart::Plain | FilePart::Stopped(_) => true,
            FilePart::Archive(_) | FilePart::Stream(_) => false,
        }
    }

    /// Takes some of the bytes, and returns how many.
    fn take(&mut self, bytes: &[u8]) -> usize {
        match &mut self.part {
            FilePart::Plain | FilePart::Stopped(_) => bytes.len(),
            FilePart::Head(_) => self.take_head(bytes),
            FilePart::Journal(journal) => journal.take(bytes, &mut self.output),
            FilePart::Archive(skip) => {
                let (part, taken) = match skip.push(bytes) {
                    ArchiveEnd::Within => return bytes.len(),
                    ArchiveEnd::After(rest) => (FilePart::Head(Vec::new()), bytes.len() - rest.len()),
                    ArchiveEnd::Damaged => (FilePart::Plain, bytes.len()),
                };
                self.part = part;
                taken
            }
            FilePart::Stream(decoder) => {
                let (taken, end) = self.output.unpack(decoder, bytes);
                match end {
                    Ok(StreamEnd::Within) => {}
                    Ok(StreamEnd::Over) => self.part = FilePart::Head(Vec::new()),
                    Err(error) => self.part = FilePart::Stopped(error),
                }
                taken
            }
        }
    }

    /// Takes bytes of the beginning of a stream; zeroes before it are padding.
    fn take_head(&mut self, bytes: &[u8]) -> usize {
        let FilePart::Head(head) = &mut self.part else { return 0 };
        let padding = if head.is_empty() { bytes.iter().take_while(|byte| **byte == 0).count() } else { 0 };
        let missing = (MAGIC - head.len()).min(bytes.len() - padding);
        head.extend_from_slice(&bytes[padding..padding + missing]);
        if head.len() == MAGIC {
            let head = std::mem::take(head);
            self.part = FilePart::new(&head);
            self.push(&head);
        }
        padding + missing
    }
}

impl FilePart {
    fn new(head: &[u8]) -> Self {
        if head.starts_with(journal::MAGIC) {
            return Self::Journal(Box::default());
        }
        if head.starts_with(b"070701") || head.starts_with(b"070702") {
            return Self::Archive(ArchiveSkip::default());
        }
        match StreamDecoder::for_head(head) {
            Some(Ok(decoder)) => Self::Stream(Box::new(decoder)),
            Some(Err(error)) => Self::Stopped(error),
            None => Self::Plain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a zstd frame with a window of 2 to the power of `log` that unpacks to so many MiB of one byte.
    fn bomb(log: u8, mib: usize) -> Vec<u8> {
        let run = ((128_u32 << 10) << 3 | 2).to_le_bytes();
        let runs: Vec<u8> = (0..mib * 8).flat_map(|_| [run[0], run[1], run[2], b'.']).collect();
        [&[0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3][..], &runs].concat()
    }

    fn unpack(bytes: &[u8]) -> (u64, Option<DecoderError>) {
        let mut unpacker = ScanUnpacker::new(std::io::sink());
        bytes.chunks(4096).for_each(|piece| unpacker.push(piece));
        (unpacker.output.written >> 20, unpacker.error())
    }

    #[test]
    fn o3_the_length_of_what_is_unpacked_is_bounded_and_that_of_large_windows_more() {
        assert_eq!(unpack(&bomb(31, 64)), (64, None));
        assert_eq!(unpack(&bomb(31, 128)), (96, Some(DecoderError::TooMuchMemory)));
        assert_eq!(unpack(&bomb(27, 128)), (128, None));
        assert_eq!(unpack(&bomb(20, 1100)), (1024, Some(DecoderError::TooLong)));
    }
}
