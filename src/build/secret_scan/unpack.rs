//! Unpacks a compressed file that comes piece by piece, in memory that does not grow with it.
//!
//! ```text
//! cpio archives, uncompressed ──> gzip, xz or zstd ──> sink
//! ```
//!
//! An initrd may begin with archives that are not compressed, such as the processors' microcode.

use std::io::Write;

use flate2::write::MultiGzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use liblzma::write::XzDecoder;
use zstd::stream::write::Decoder;

use super::cpio::{ArchiveEnd, ArchiveSkip};

/// The longest beginning that tells a compression.
const MAGIC: usize = 6;
/// What `xz -9` needs for unpacking, and some more, bytes.
const XZ_MEMORY: u64 = 96 << 20;

/// A file that may be compressed, and where what it unpacks to is written.
pub(super) enum Unpacker<W: Write> {
    /// It is not known yet how the file begins.
    Begun {
        sink: W,
        head: Vec<u8>,
    },
    /// In the archives before what is compressed.
    Archive {
        sink: W,
        skip: ArchiveSkip,
    },
    Gzip(Box<MultiGzDecoder<W>>),
    Xz(XzDecoder<W>),
    Zstd(Decoder<'static, W>),
    /// It is not compressed, it is damaged, or the sink takes no more.
    Ended,
}

impl<W: Write> Unpacker<W> {
    pub(super) fn new(sink: W) -> Self {
        Unpacker::Begun { sink, head: Vec::new() }
    }

    /// Takes the next bytes of the file. What is damaged is unpacked as far as it can be.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let written = match self {
            Unpacker::Gzip(decoder) => decoder.write_all(bytes),
            Unpacker::Xz(decoder) => decoder.write_all(bytes),
            Unpacker::Zstd(decoder) => decoder.write_all(bytes),
            Unpacker::Begun { .. } | Unpacker::Archive { .. } => {
                let begun = std::mem::replace(self, Unpacker::Ended);
                *self = begun.begin(bytes);
                Ok(())
            }
            Unpacker::Ended => Ok(()),
        };
        if written.is_err() {
            *self = Unpacker::Ended;
        }
    }

    /// Ends the file: everything that it unpacks to is written.
    pub(super) fn finish(self) {
        let _ = match self {
            Unpacker::Gzip(mut decoder) => decoder.try_finish(),
            Unpacker::Xz(mut decoder) => decoder.try_finish(),
            Unpacker::Zstd(mut decoder) => decoder.flush(),
            Unpacker::Begun { .. } | Unpacker::Archive { .. } | Unpacker::Ended => Ok(()),
        };
    }

    fn begin(self, bytes: &[u8]) -> Self {
        match self {
            Unpacker::Begun { sink, mut head } => {
                let missing = MAGIC.saturating_sub(head.len()).min(bytes.len());
                head.extend_from_slice(&bytes[..missing]);
                if head.len() < MAGIC {
                    return Unpacker::Begun { sink, head };
                }
                let mut begun = Self::by_magic(sink, &head);
                begun.push(&head);
                begun.push(&bytes[missing..]);
                begun
            }
            Unpacker::Archive { sink, mut skip } => match skip.push(bytes) {
                ArchiveEnd::Within => Unpacker::Archive { sink, skip },
                ArchiveEnd::After(rest) => Unpacker::new(sink).begin(rest),
                ArchiveEnd::Damaged => Unpacker::Ended,
            },
            other => other,
        }
    }

    fn by_magic(sink: W, head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Unpacker::Gzip(Box::new(MultiGzDecoder::new(sink))),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => match Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED) {
                Ok(stream) => Unpacker::Xz(XzDecoder::new_stream(sink, stream)),
                Err(_) => Unpacker::Ended,
            },
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Decoder::new(sink).map_or(Unpacker::Ended, Unpacker::Zstd),
            b"070701" | b"070702" => Unpacker::Archive { sink, skip: ArchiveSkip::default() },
            _ => Unpacker::Ended,
        }
    }
}
