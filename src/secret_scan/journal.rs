//! Unpacks the compressed objects of a systemd journal, which arrives piece by piece: journald compresses the fields of
//! messages that are longer than 512 bytes. The layout is that of systemd's `JOURNAL_FILE_FORMAT`.

use std::io::Write;
use std::ops::Range;

use super::decoder::{DecoderError, StreamDecoder};
use super::unpacked_output::UnpackedOutput;

/// Magic at the beginning of a journal.
pub(super) const MAGIC: &[u8] = b"LPKSHHRH";
/// Length of the part of the header that is read, bytes.
const FILE_HEADER: usize = 96;
const INCOMPATIBLE_FLAGS: Range<usize> = 12..16;
const HEADER_SIZE: Range<usize> = 88..96;
/// `HEADER_INCOMPATIBLE_COMPACT`: data objects have two more fields of four bytes.
const COMPACT: u64 = 1 << 4;
/// Length of an object's header: type, flags, and the size of the object with its header.
const OBJECT_HEADER: usize = 16;
const OBJECT_SIZE: Range<usize> = 8..16;
/// Objects begin at multiples of this.
const ALIGNMENT: u64 = 8;
/// `OBJECT_DATA`: a field of a message, with its name.
const DATA: u8 = 1;
/// Number of bytes between the header of a data object and its payload.
const DATA_FIELDS: u64 = 48;
const COMPACT_DATA_FIELDS: u64 = DATA_FIELDS + 8;
/// `OBJECT_COMPRESSED_XZ` and its siblings.
const XZ: u8 = 1;
const LZ4: u8 = 2;
const ZSTD: u8 = 4;

/// A journal that is being read.
#[derive(Default)]
pub(super) struct JournalReader {
    part: JournalPart,
    /// Number of bytes to skip before that part.
    gap: u64,
    is_compact: bool,
    /// The reason why some object was not unpacked.
    error: Option<DecoderError>,
}

/// The next part of a journal.
enum JournalPart {
    /// The header of the file, as far as it was read.
    FileHeader(Vec<u8>),
    /// The header of an object, as far as it was read.
    ObjectHeader(Vec<u8>),
    /// The payload of a compressed data object.
    Payload { decoder: Box<StreamDecoder>, left: u64, padding: u64 },
    /// The unused rest of the file.
    Over,
}

impl Default for JournalPart {
    fn default() -> Self {
        Self::FileHeader(Vec::new())
    }
}

impl JournalReader {
    /// Takes some of the bytes, and returns how many.
    pub(super) fn take<W: Write>(&mut self, bytes: &[u8], output: &mut UnpackedOutput<W>) -> usize {
        if self.gap > 0 {
            let passed = at_most(self.gap, bytes);
            self.gap -= passed as u64;
            return passed;
        }
        match &mut self.part {
            JournalPart::Over => bytes.len(),
            JournalPart::FileHeader(header) => {
                let (taken, whole) = fill(header, FILE_HEADER, bytes);
                if let Some(header) = whole {
                    self.end_file_header(&header);
                }
                taken
            }
            JournalPart::ObjectHeader(header) => {
                let (taken, whole) = fill(header, OBJECT_HEADER, bytes);
                if let Some(header) = whole {
                    self.end_object_header(&header);
                }
                taken
            }
            JournalPart::Payload { decoder, left, padding } => {
                let taken = at_most(*left, bytes);
                let (_, end) = output.unpack(decoder, &bytes[..taken]);
                *left -= taken as u64;
                if *left == 0 || end.is_err() {
                    self.error = self.error.or(end.err());
                    self.gap = *left + *padding;
                    self.part = JournalPart::ObjectHeader(Vec::new());
                }
                taken
            }
        }
    }

    /// Returns whether the rest is unused.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.part, JournalPart::Over)
    }

    /// Returns the reason why some object was not unpacked to its end.
    pub(super) fn error(&self) -> Option<DecoderError> {
        self.error
    }

    fn end_file_header(&mut self, header: &[u8]) {
        self.is_compact = number(&header[INCOMPATIBLE_FLAGS]) & COMPACT != 0;
        let size = number(&header[HEADER_SIZE]).next_multiple_of(ALIGNMENT);
        match size.checked_sub(FILE_HEADER as u64) {
            Some(gap) => {
                self.gap = gap;
                self.part = JournalPart::ObjectHeader(Vec::new());
            }
            None => self.stop(),
        }
    }

    fn end_object_header(&mut self, header: &[u8]) {
        let size = number(&header[OBJECT_SIZE]);
        if header.iter().all(|byte| *byte == 0) {
            self.part = JournalPart::Over;
            return;
        }
        let Some(content) = size.checked_sub(OBJECT_HEADER as u64).filter(|_| size < 1 << 62) else {
            return self.stop();
        };
        let padding = size.next_multiple_of(ALIGNMENT) - size;
        let fields = if self.is_compact { COMPACT_DATA_FIELDS } else { DATA_FIELDS };
        let payload = if header[0] == DATA { content.checked_sub(fields) } else { None };
        match (payload.filter(|left| *left > 0), decoder(header[1])) {
            (Some(left), Some(Ok(decoder))) => {
                self.gap = fields;
                self.part = JournalPart::Payload { decoder: Box::new(decoder), left, padding };
            }
            (payload, decoder) => {
                let error = payload.and(decoder).and_then(Result::err);
                self.error = self.error.or(error);
                self.gap = content + padding;
                self.part = JournalPart::ObjectHeader(Vec::new());
            }
        }
    }

    fn stop(&mut self) {
        self.error = self.error.or(Some(DecoderError::Damaged));
        self.part = JournalPart::Over;
    }
}

/// Returns the decoder for an object with these flags, if it is compressed.
fn decoder(flags: u8) -> Option<Result<StreamDecoder, DecoderError>> {
    match flags {
        _ if flags & ZSTD != 0 => Some(StreamDecoder::new_zstd()),
        _ if flags & XZ != 0 => Some(StreamDecoder::new_xz()),
        _ if flags & LZ4 != 0 => Some(Err(DecoderError::Unsupported)),
        _ => None,
    }
}

/// Fills a header up to a length. Returns how many bytes were taken, and the header if it is complete now.
fn fill(header: &mut Vec<u8>, length: usize, bytes: &[u8]) -> (usize, Option<Vec<u8>>) {
    let taken = (length - header.len()).min(bytes.len());
    header.extend_from_slice(&bytes[..taken]);
    let whole = (header.len() == length).then(|| std::mem::take(header));
    (taken, whole)
}

fn at_most(count: u64, bytes: &[u8]) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX).min(bytes.len())
}

/// Returns a little-endian number.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns a journal with one data object, preceded by a hash table and followed by space that is not used.
    pub(in crate::secret_scan) fn journal(is_compact: bool, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 272];
        file[..8].copy_from_slice(MAGIC);
        file[12] = if is_compact { 0x1c } else { 0x0c };
        file[88..96].copy_from_slice(&272_u64.to_le_bytes());
        push_object(&mut file, 4, 0, &[0; 164]);
        let fields = vec![7; if is_compact { 56 } else { 48 }];
        push_object(&mut file, DATA, flags, &[&fields, payload].concat());
        push_object(&mut file, DATA, 0, &[&fields[..], b"MESSAGE=plain"].concat());
        file.extend(vec![0; 4096]);
        file
    }

    fn push_object(file: &mut Vec<u8>, kind: u8, flags: u8, content: &[u8]) {
        file.extend([kind, flags, 0, 0, 0, 0, 0, 0]);
        file.extend(((content.len() + OBJECT_HEADER) as u64).to_le_bytes());
        file.extend(content);
        file.resize(file.len().next_multiple_of(8), 0);
    }
}
