//! Reads bytes of files, and structures out of untrusted bytes: if a slice is too short, the result is `None`, never a panic.
//!
//! The fields of a structure have the names of its specification, in snake case. A field that is named after its hexadecimal
//! offset stands for one or more that kiln does not use.

use std::fs::File;
use std::io;
use std::num::TryFromIntError;
use std::os::unix::fs::FileExt;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::source::LayerError;

/// Reads up to `limit` bytes at `offset`; fewer only at the end of the file.
pub(super) fn read_up_to(file: &File, offset: u64, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; limit];
    let mut filled = 0;
    while filled < limit {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Checks that something, which `what` names, is within a file.
pub(super) fn check_within(what: &'static str, at: u64, length: u64, file_size: u64) -> Result<(), LayerError> {
    match at.checked_add(length) {
        Some(end) if end <= file_size => Ok(()),
        _ => Err(LayerError::Entry { what, at, file_size }),
    }
}

/// Fills `bytes` from a file, which is refused as not being of this format if it ends before.
pub(super) fn read_exact(file: &File, at: u64, bytes: &mut [u8], format: &'static str) -> Result<(), LayerError> {
    file.read_exact_at(bytes, at).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => LayerError::Unknown { format, why: "it is too short".to_owned() },
        _ => error.into(),
    })
}

/// Reads the structure at `at` of a file, which is refused as by [`read_exact`].
pub(super) fn read_struct<T: FromBytes + IntoBytes>(
    file: &File,
    at: u64,
    format: &'static str,
) -> Result<T, LayerError> {
    let mut value = T::new_zeroed();
    read_exact(file, at, value.as_mut_bytes(), format)?;
    Ok(value)
}

/// Returns the structure at `at` of some bytes.
pub(super) fn struct_at<T: FromBytes + KnownLayout + Immutable + Unaligned>(bytes: &[u8], at: usize) -> Option<&T> {
    T::ref_from_prefix(bytes.get(at..)?).ok().map(|(found, _)| found)
}

/// Returns `count` structures, the first of which is at `at` of some bytes.
pub(super) fn slice_at<T: FromBytes + Immutable + Unaligned>(bytes: &[u8], at: usize, count: usize) -> Option<&[T]> {
    <[T]>::ref_from_prefix_with_elems(bytes.get(at..)?, count).ok().map(|(found, _)| found)
}

/// Converts a number for a field of 32 bits.
pub(super) fn field32(number: impl TryInto<u32, Error = TryFromIntError>) -> io::Result<U32> {
    number.try_into().map(U32::new).map_err(io::Error::other)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Reads a big-endian 32-bit integer at `at`.
pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// Reads a little-endian 16-bit integer at `at`.
pub(super) fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// Reads a little-endian 32-bit integer at `at`.
pub(super) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// Reads a table of big-endian 64-bit words; an incomplete word at its end is left out.
pub(super) fn be64_table(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word)).collect()
}

/// Returns a field of bytes without the zeroes after them.
pub(super) fn until_zero(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Decodes UTF-16 up to the first zero; an unpaired surrogate becomes U+FFFD.
pub(super) fn utf16(units: &[U16]) -> String {
    let units: Vec<u16> = units.iter().map(|unit| unit.get()).take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

/// Formats a UUID of 16 bytes in network order, as RFC 9562 writes it.
pub(super) fn uuid(bytes: [u8; 16]) -> String {
    let text = crate::digest::hex(&bytes);
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}
