//! The output of an unpacked file.

use std::io::Write;

use super::decoder::{DecoderError, StreamDecoder, StreamEnd};

/// Limit of the unpacked content that is searched, bytes.
const LONGEST_OUTPUT: u64 = 1 << 30;
/// The limit if the decoder's memory grows with it.
const LONGEST_LARGE_OUTPUT: u64 = 96 << 20;
/// Size of the unpack buffer, bytes.
const BUFFER: usize = 64 << 10;

/// Writes unpacked content to a sink, within limits.
pub(super) struct UnpackedOutput<W: Write> {
    pub(super) sink: W,
    pub(super) buffer: Vec<u8>,
    pub(super) written: u64,
}

impl<W: Write> UnpackedOutput<W> {
    /// Unpacks bytes up to the end of their stream. Returns how many were taken.
    pub(super) fn unpack(
        &mut self,
        decoder: &mut StreamDecoder,
        bytes: &[u8],
    ) -> (usize, Result<StreamEnd, DecoderError>) {
        self.buffer.resize(BUFFER, 0);
        let mut taken = 0;
        let mut idle = 0;
        while idle < 2 {
            let part = decoder.decode(&bytes[taken..], &mut self.buffer);
            taken += part.consumed;
            self.written += part.produced as u64;
            // The sink cannot fail.
            let _ = self.sink.write_all(&self.buffer[..part.produced]);
            let end = part.end.and_then(|end| self.check_bounds(decoder).map(|()| end));
            if end != Ok(StreamEnd::Within) || taken == bytes.len() && part.produced < BUFFER {
                return (taken, end);
            }
            // A decoder takes nothing after it has just found out how much memory it needs.
            idle = if part.consumed + part.produced == 0 { idle + 1 } else { 0 };
        }
        (taken, Err(DecoderError::Damaged))
    }

    fn check_bounds(&self, decoder: &StreamDecoder) -> Result<(), DecoderError> {
        if self.written > LONGEST_OUTPUT {
            return Err(DecoderError::TooLong);
        }
        if self.written > LONGEST_LARGE_OUTPUT && decoder.is_large() {
            return Err(DecoderError::TooMuchMemory);
        }
        Ok(())
    }
}
