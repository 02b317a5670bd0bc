//! Decoders of gzip, xz and zstd behind one interface. Each unpacks one stream (a gzip member, a zstd frame).
//!
//! A stream states how much memory its decoder needs, up to gigabytes. The kernel allocates it page by page, when something
//! is unpacked into it. So a limit on the unpacked data limits the memory as well.

use flate2::{Decompress, FlushDecompress, Status as GzipStatus};
use liblzma::stream::{Action, Error as XzError, Status as XzStatus, Stream};
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

/// Limit of the decoder's memory for a stream that is unpacked to its end, bytes: a zstd window of 128 MiB, which is what
/// `zstd -d` accepts by default, and its buffers.
const LARGEST_MEMORY: u64 = 130 << 20;
/// The largest window of the format on 64-bit machines, as the exponent of a power of two.
const ZSTD_LARGEST_WINDOW: u32 = 31;
/// zlib's number for the largest window of the format.
const GZIP_WINDOW: u8 = 15;

/// `ZSTD_error_frameParameter_unsupported` and the other constants of `zstd_errors.h`.
const ZSTD_FRAME_PARAMETER_UNSUPPORTED: usize = 14;
const ZSTD_WINDOW_TOO_LARGE: usize = 16;
const ZSTD_DICTIONARY_WRONG: usize = 32;
const ZSTD_MEMORY_ALLOCATION: usize = 64;

/// The reason why a compressed file was not unpacked to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecoderError {
    /// Its unpacked content is longer than the search limit.
    #[error("it unpacks to more than 1 GiB")]
    TooLong,
    /// The decoder would need too much memory for the rest.
    #[error("unpacking it needs too much memory")]
    TooMuchMemory,
    /// It needs a dictionary, or a feature that the decoder does not have.
    #[error("its compression is not supported")]
    Unsupported,
    /// The bytes are not valid.
    #[error("it cannot be unpacked any further")]
    Damaged,
}

/// Result of a call of a decoder.
pub(super) struct DecodedPart {
    /// Number of bytes that it read.
    pub(super) consumed: usize,
    /// Number of bytes that it wrote.
    pub(super) produced: usize,
    /// State of the stream.
    pub(super) end: Result<StreamEnd, DecoderError>,
}

/// State of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// More bytes follow.
    Within,
    /// The stream has ended.
    Over,
}

/// The decoder of one stream.
pub(super) enum StreamDecoder {
    Gzip(Decompress),
    Xz(Stream),
    Zstd(DCtx<'static>),
}

impl StreamDecoder {
    /// Returns the decoder for a stream that begins with these bytes, if it is one.
    pub(super) fn for_head(head: &[u8]) -> Option<Result<Self, DecoderError>> {
        match head {
            // The third byte is the method; three bits of the flags are reserved.
            [0x1f, 0x8b, 8, 0..0x20, ..] => Some(Ok(Self::Gzip(Decompress::new_gzip(GZIP_WINDOW)))),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::new_xz()),
            // Frames of zstd, those of its versions before 0.8, and skippable ones.
            [0x22..=0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::new_zstd()),
            _ => None,
        }
    }

    pub(super) fn new_xz() -> Result<Self, DecoderError> {
        Stream::new_stream_decoder(LARGEST_MEMORY, 0).map(Self::Xz).map_err(|_| DecoderError::TooMuchMemory)
    }

    pub(super) fn new_zstd() -> Result<Self, DecoderError> {
        let mut context = DCtx::try_create().ok_or(DecoderError::TooMuchMemory)?;
        context.set_parameter(DParameter::WindowLogMax(ZSTD_LARGEST_WINDOW)).map_err(zstd_error)?;
        Ok(Self::Zstd(context))
    }

    /// Returns whether the decoder's memory can grow beyond the bound with what it unpacks.
    pub(super) fn is_large(&self) -> bool {
        match self {
            Self::Gzip(_) => false,
            Self::Xz(stream) => stream.memlimit() > LARGEST_MEMORY,
            Self::Zstd(context) => context.sizeof() as u64 > LARGEST_MEMORY,
        }
    }

    /// Unpacks as much of the input as fits into the output. If the output is not full afterwards, more input is needed.
    pub(super) fn decode(&mut self, input: &[u8], output: &mut [u8]) -> DecodedPart {
        match self {
            Self::Gzip(decoder) => decode_gzip(decoder, input, output),
            Self::Xz(stream) => decode_xz(stream, input, output),
            Self::Zstd(context) => decode_zstd(context, input, output),
        }
    }
}

fn decode_gzip(decoder: &mut Decompress, input: &[u8], output: &mut [u8]) -> DecodedPart {
    let taken = decoder.total_in();
    let written = decoder.total_out();
    let end = match decoder.decompress(input, output, FlushDecompress::None) {
        Ok(GzipStatus::StreamEnd) => Ok(StreamEnd::Over),
        Ok(GzipStatus::Ok | GzipStatus::BufError) => Ok(StreamEnd::Within),
        Err(_) => Err(DecoderError::Damaged),
    };
    DecodedPart { consumed: part(taken, decoder.total_in()), produced: part(written, decoder.total_out()), end }
}

fn decode_xz(stream: &mut Stream, input: &[u8], output: &mut [u8]) -> DecodedPart {
    let taken = stream.total_in();
    let written = stream.total_out();
    let end = match stream.process(input, output, Action::Run) {
        Ok(XzStatus::StreamEnd) => Ok(StreamEnd::Over),
        Ok(_) => Ok(StreamEnd::Within),
        // The stream continues after the limit is raised.
        Err(XzError::MemLimit) => {
            stream.set_memlimit(u64::MAX).map(|()| StreamEnd::Within).map_err(|_| DecoderError::TooMuchMemory)
        }
        Err(XzError::Mem) => Err(DecoderError::TooMuchMemory),
        Err(XzError::Options | XzError::UnsupportedCheck) => Err(DecoderError::Unsupported),
        Err(_) => Err(DecoderError::Damaged),
    };
    DecodedPart { consumed: part(taken, stream.total_in()), produced: part(written, stream.total_out()), end }
}

fn decode_zstd(context: &mut DCtx<'_>, input: &[u8], output: &mut [u8]) -> DecodedPart {
    let mut source = InBuffer::around(input);
    let mut target = OutBuffer::around(&mut *output);
    let result = context.decompress_stream(&mut target, &mut source);
    let consumed = source.pos();
    let produced = target.pos();
    let end = match result {
        Ok(0) => Ok(StreamEnd::Over),
        Ok(_) => Ok(StreamEnd::Within),
        // After an error the decoder does not report how much it wrote before.
        Err(code) => return DecodedPart { consumed, produced: output.len(), end: Err(zstd_error(code)) },
    };
    DecodedPart { consumed, produced, end }
}

/// Converts an error number of zstd: the functions return it subtracted from zero.
fn zstd_error(code: usize) -> DecoderError {
    match code.wrapping_neg() {
        ZSTD_WINDOW_TOO_LARGE | ZSTD_MEMORY_ALLOCATION => DecoderError::TooMuchMemory,
        ZSTD_FRAME_PARAMETER_UNSUPPORTED | ZSTD_DICTIONARY_WRONG => DecoderError::Unsupported,
        _ => DecoderError::Damaged,
    }
}

/// Returns the difference of two counts; one call reads or writes at most the length of a buffer.
fn part(before: u64, now: u64) -> usize {
    usize::try_from(now - before).unwrap_or(usize::MAX)
}
