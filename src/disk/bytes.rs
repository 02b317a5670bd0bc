//! Reads bytes of files, and structures out of untrusted bytes: if a slice is too short, the result is `None`, never a panic.
//!
//! The fields of a structure have the names of its specification, in snake case. A field that is named after its hexadecimal
//! offset stands for one or more that kiln does not use.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

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

/// Returns the structure at `at` of some bytes.
pub(super) fn struct_at<T: FromBytes + KnownLayout + Immutable + Unaligned>(bytes: &[u8], at: usize) -> Option<&T> {
    T::ref_from_prefix(bytes.get(at..)?).ok().map(|(found, _)| found)
}

/// Returns `count` structures, the first of which is at `at` of some bytes.
pub(super) fn slice_at<T: FromBytes + Immutable + Unaligned>(bytes: &[u8], at: usize, count: usize) -> Option<&[T]> {
    <[T]>::ref_from_prefix_with_elems(bytes.get(at..)?, count).ok().map(|(found, _)| found)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Reads a big-endian 32-bit integer at `at`.
pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// Reads a big-endian 64-bit integer at `at`.
pub(super) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

/// Reads a little-endian 16-bit integer at `at`.
pub(super) fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// Reads a little-endian 32-bit integer at `at`.
pub(super) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// Reads a little-endian 64-bit integer at `at`.
pub(super) fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
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
