//! Unpacks a file during its download: xz, zstd or gzip, by the ending of its name, confirmed by its first bytes.
//!
//! Both the size and the memory are bounded, since a file of a few kilobytes can contain terabytes. A file may consist of
//! several streams one after another, as `xz`, `zstd` and `gzip` allow; anything else behind the last one is refused.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use flate2::write::MultiGzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use liblzma::write::XzDecoder;
use sha2::{Digest as _, Sha256};
use zstd::stream::raw::Decoder;
use zstd::stream::zio::Writer;

use crate::digest::Sha256Digest;
use crate::size::ByteSize;

/// Memory limit of xz, four times that of `xz -9`, bytes.
const XZ_MEMORY: u64 = 256 << 20;
/// Size of blocks of zeros that become holes, bytes.
const BLOCK: usize = 64 << 10;
static ZEROS: [u8; BLOCK] = [0; BLOCK];
/// Length of the longest magic.
const MAGIC: usize = 6;

/// Compression of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileCompression {
    /// xz, with the ending `.xz`.
    Xz,
    /// Zstandard, with the ending `.zst`.
    Zstd,
    /// gzip, with the ending `.gz`.
    Gzip,
}

impl FileCompression {
    /// Returns the compression that the ending of a file's name stands for.
    #[must_use]
    pub fn of(file_name: &str) -> Option<Self> {
        match file_name.rsplit_once('.')?.1 {
            "xz" => Some(Self::Xz),
            "zst" => Some(Self::Zstd),
            "gz" => Some(Self::Gzip),
            _ => None,
        }
    }

    /// Returns the tool's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    /// Returns whether a file begins with its magic (xz-file-format.txt 2.1.1.1, RFC 8878 3.1, RFC 1952 2.3.1).
    fn begins(self, head: &[u8]) -> bool {
        match self {
            Self::Xz => head.starts_with(b"\xfd7zXZ\0"),
            // A skippable frame may come first.
            Self::Zstd => {
                head.starts_with(b"\x28\xb5\x2f\xfd")
                    || (head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == *b"\x2a\x4d\x18")
            }
            Self::Gzip => head.starts_with(b"\x1f\x8b\x08"),
        }
    }
}

/// A file cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The first bytes are not those of this format.
    #[error("the file is not packed with {}, as its name says", .0.name())]
    Other(FileCompression),
    /// The stream is damaged or truncated, or there is something behind it.
    #[error("cannot unpack {}: {source}", packing.name())]
    Damaged {
        /// Compression of the file.
        packing: FileCompression,
        /// The decoder's error.
        source: io::Error,
    },
    /// The unpacked content is larger than this limit.
    #[error("it unpacks to more than {0}")]
    TooLarge(ByteSize),
    /// The unpacked content cannot be written.
    #[error("cannot write what it unpacks to")]
    Write(#[source] io::Error),
}

/// Length and digest of the unpacked content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnpackedFile {
    pub(super) sha256: Sha256Digest,
    pub(super) bytes: u64,
}

/// A file that is being unpacked.
pub(super) struct FileUnpacker {
    packing: FileCompression,
    state: UnpackState,
}

enum UnpackState {
    /// There are not enough bytes yet to recognise the format.
    Head(Vec<u8>, SparseWriter),
    Xz(Box<XzDecoder<SparseWriter>>),
    Zstd(Box<Writer<SparseWriter, Decoder<'static>>>),
    Gzip(Box<MultiGzDecoder<SparseWriter>>),
    /// It has failed.
    Gone,
}

impl FileUnpacker {
    /// Creates an unpacker that writes to the empty file `to`, at most `limit` bytes.
    pub(super) fn new(packing: FileCompression, to: File, limit: ByteSize) -> Self {
        Self { packing, state: UnpackState::Head(Vec::new(), SparseWriter::new(to, limit)) }
    }

    /// Takes the next bytes. It must not be used after an error.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        let result = match &mut self.state {
            UnpackState::Head(head, _) => {
                head.extend_from_slice(bytes);
                if head.len() < MAGIC { Ok(()) } else { return self.begin() }
            }
            UnpackState::Xz(decoder) => decoder.write_all(bytes),
            UnpackState::Zstd(decoder) => decoder.write_all(bytes),
            UnpackState::Gzip(decoder) => decoder.write_all(bytes),
            UnpackState::Gone => Ok(()),
        };
        result.map_err(|error| self.failed(error))
    }

    fn begin(&mut self) -> Result<(), UnpackError> {
        let UnpackState::Head(head, sink) = std::mem::replace(&mut self.state, UnpackState::Gone) else {
            return Ok(());
        };
        if !self.packing.begins(&head) {
            return Err(UnpackError::Other(self.packing));
        }
        self.state = match self.packing {
            FileCompression::Xz => {
                let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED);
                let stream = stream.map_err(|error| self.failed(error.into()))?;
                UnpackState::Xz(Box::new(XzDecoder::new_stream(sink, stream)))
            }
            FileCompression::Zstd => {
                let decoder = Decoder::new().map_err(|error| self.failed(error))?;
                UnpackState::Zstd(Box::new(Writer::new(sink, decoder)))
            }
            FileCompression::Gzip => UnpackState::Gzip(Box::new(MultiGzDecoder::new(sink))),
        };
        self.push(&head)
    }

    /// Ends the file, and with it the packed content.
    pub(super) fn finish(mut self) -> Result<UnpackedFile, UnpackError> {
        if matches!(self.state, UnpackState::Head(..)) {
            self.begin()?;
        }
        let sink = match std::mem::replace(&mut self.state, UnpackState::Gone) {
            UnpackState::Xz(decoder) => decoder.finish(),
            UnpackState::Zstd(mut decoder) => decoder.finish().map(|()| decoder.into_inner().0),
            UnpackState::Gzip(decoder) => decoder.finish(),
            UnpackState::Head(..) | UnpackState::Gone => Err(io::ErrorKind::UnexpectedEof.into()),
        };
        sink.and_then(SparseWriter::finish).map_err(|error| self.failed(error))
    }

    fn failed(&mut self, error: io::Error) -> UnpackError {
        self.state = UnpackState::Gone;
        match error.downcast::<SinkError>() {
            Ok(SinkError::Limit(limit)) => UnpackError::TooLarge(limit),
            Ok(SinkError::Disk(source)) => UnpackError::Write(source),
            Err(source) => UnpackError::Damaged { packing: self.packing, source },
        }
    }
}

/// The reason why the sink takes no more data, in a form that passes through a decoder unchanged.
#[derive(Debug, thiserror::Error)]
enum SinkError {
    #[error("more than {0}")]
    Limit(ByteSize),
    #[error("{0}")]
    Disk(io::Error),
}

/// Writes and hashes the output of a decoder, and leaves holes for zeros: most of a raw disk is empty.
struct SparseWriter {
    file: File,
    limit: ByteSize,
    sha256: Sha256,
    /// Number of bytes so far, those of the block included.
    bytes: u64,
    block: Vec<u8>,
}

impl SparseWriter {
    fn new(file: File, limit: ByteSize) -> Self {
        Self { file, limit, sha256: Sha256::new(), bytes: 0, block: Vec::with_capacity(BLOCK) }
    }

    fn put_block(&mut self) -> io::Result<()> {
        if self.block != ZEROS[..self.block.len()] {
            let at = self.bytes - self.block.len() as u64;
            self.file.write_all_at(&self.block, at).map_err(|error| io::Error::other(SinkError::Disk(error)))?;
        }
        self.block.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<UnpackedFile> {
        self.put_block()?;
        self.file.set_len(self.bytes).map_err(|error| io::Error::other(SinkError::Disk(error)))?;
        Ok(UnpackedFile { sha256: self.sha256.into(), bytes: self.bytes })
    }
}

impl Write for SparseWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = &bytes[..bytes.len().min(BLOCK - self.block.len())];
        if self.bytes + taken.len() as u64 > self.limit.bytes() {
            return Err(io::Error::other(SinkError::Limit(self.limit)));
        }
        self.sha256.update(taken);
        self.block.extend_from_slice(taken);
        self.bytes += taken.len() as u64;
        if self.block.len() == BLOCK {
            self.put_block()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack(packing: FileCompression, plain: &[u8]) -> Vec<u8> {
        match packing {
            FileCompression::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            FileCompression::Zstd => zstd::bulk::compress(plain, 1).unwrap(),
            FileCompression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    fn unpack(
        packing: FileCompression,
        packed: &[u8],
        piece: usize,
        limit: u64,
    ) -> Result<(UnpackedFile, File), UnpackError> {
        let file = tempfile::tempfile().unwrap();
        let mut unpacker = FileUnpacker::new(packing, file.try_clone().unwrap(), ByteSize(limit));
        packed.chunks(piece).try_for_each(|piece| unpacker.push(piece))?;
        Ok((unpacker.finish()?, file))
    }

    fn any_packing() -> impl Strategy<Value = FileCompression> {
        prop_oneof![Just(FileCompression::Xz), Just(FileCompression::Zstd), Just(FileCompression::Gzip)]
    }

    /// Generates alternating zeros and text, beyond the size of a block.
    fn any_plain() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec((any::<bool>(), 0..BLOCK), 0..6).prop_map(|runs| {
            let fill = |(is_zero, length): (bool, usize)| {
                (0..length).map(move |n| if is_zero { 0 } else { u8::try_from(n % 251).unwrap() })
            };
            runs.into_iter().flat_map(fill).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_does_not_matter_in_which_pieces_a_file_comes(
            packing in any_packing(), plain in any_plain(), piece in 1usize..5000,
        ) {
            let packed = pack(packing, &plain);
            let (unpacked, file) = unpack(packing, &packed, piece, plain.len() as u64).unwrap();
            prop_assert_eq!(unpacked.bytes, plain.len() as u64);
            prop_assert_eq!(unpacked.sha256, Sha256Digest::of(&plain));
            prop_assert_eq!(crate::digest::sha256_file(&file).unwrap(), unpacked.sha256);
            if !plain.is_empty() {
                let bomb = unpack(packing, &packed, piece, plain.len() as u64 - 1);
                prop_assert!(matches!(bomb, Err(UnpackError::TooLarge(_))), "{:?}", bomb);
            }
        }

        #[test]
        fn no_bytes_make_it_panic_or_hang(
            packing in any_packing(), plain in any_plain(), piece in 1usize..5000, limit in 0u64..200_000,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut: prop::sample::Index,
        ) {
            let mut packed = pack(packing, &plain);
            for (at, byte) in changes {
                let at = at.index(packed.len());
                packed[at] = byte;
            }
            packed.truncate(cut.index(packed.len()) + 1);
            if let Ok((unpacked, file)) = unpack(packing, &packed, piece, limit) {
                prop_assert!(unpacked.bytes <= limit);
                prop_assert_eq!(file.metadata().unwrap().len(), unpacked.bytes);
            }
        }
    }
}
