//! The end of a cpio archive (`newc`) that comes piece by piece.

/// A header has its magic and thirteen numbers of eight hexadecimal digits.
const HEADER: usize = 110;
const FILE_SIZE: std::ops::Range<usize> = 54..62;
const NAME_SIZE: std::ops::Range<usize> = 94..102;
/// Names and contents are padded to a multiple of this.
const ALIGNMENT: u64 = 4;
/// The last entry.
const TRAILER: &[u8] = b"TRAILER!!!\0";
/// The longest name that is read; the kernel takes no longer paths.
const LONGEST_NAME: u64 = 4096;

/// Where an archive is.
#[derive(Default)]
pub(super) struct ArchiveSkip {
    /// The header of an entry and its name, as far as they are known.
    header: Vec<u8>,
    /// Bytes of content that are left, with their padding.
    left: u64,
    /// The last entry was read: what follows is padding.
    is_over: bool,
}

/// Where the archive ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ArchiveEnd<'b> {
    /// Not in these bytes.
    Within,
    /// These follow the archive and its padding.
    After(&'b [u8]),
    /// It is none.
    Damaged,
}

impl ArchiveSkip {
    /// Takes the next bytes of the archive.
    pub(super) fn push<'b>(&mut self, bytes: &'b [u8]) -> ArchiveEnd<'b> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.is_over {
                let padding = rest.iter().take_while(|byte| **byte == 0).count();
                let after = &rest[padding..];
                return if after.is_empty() { ArchiveEnd::Within } else { ArchiveEnd::After(after) };
            }
            if self.left > 0 {
                let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len());
                self.left -= skipped as u64;
                rest = &rest[skipped..];
                continue;
            }
            let Some(wanted) = self.header_length() else { return ArchiveEnd::Damaged };
            let taken = (wanted - self.header.len()).min(rest.len());
            self.header.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            if self.header.len() == wanted && wanted > HEADER {
                self.end_header();
            }
        }
        ArchiveEnd::Within
    }

    /// Returns how long the header is with its name, as far as it is known.
    fn header_length(&self) -> Option<usize> {
        if self.header.len() < HEADER {
            return Some(HEADER);
        }
        let name = self.number(NAME_SIZE).filter(|size| (1..=LONGEST_NAME).contains(size))?;
        usize::try_from((HEADER as u64 + name).next_multiple_of(ALIGNMENT)).ok()
    }

    fn end_header(&mut self) {
        self.is_over = self.header[HEADER..].starts_with(TRAILER);
        self.left = self.number(FILE_SIZE).unwrap_or(0).next_multiple_of(ALIGNMENT);
        self.header.clear();
    }

    fn number(&self, place: std::ops::Range<usize>) -> Option<u64> {
        u64::from_str_radix(std::str::from_utf8(self.header.get(place)?).ok()?, 16).ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn entry(name: &str, content: &[u8]) -> Vec<u8> {
        let name = format!("{name}\0");
        let mut numbers = [0; 13];
        (numbers[6], numbers[11]) = (content.len(), name.len());
        let fields: String = numbers.iter().map(|number| format!("{number:08x}")).collect();
        let mut out = format!("070701{fields}{name}").into_bytes();
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    #[test]
    fn the_end_of_an_archive_is_found_wherever_it_is_cut() {
        let archive = [entry("kernel/x86", b"0123456"), entry("TRAILER!!!", b""), vec![0; 300]].concat();
        for cut in 0..archive.len() {
            let mut skip = ArchiveSkip::default();
            assert_eq!(skip.push(&archive[..cut]), ArchiveEnd::Within, "{cut}");
            assert_eq!(skip.push(&[&archive[cut..], b"more"].concat()), ArchiveEnd::After(b"more"), "{cut}");
        }
        assert_eq!(ArchiveSkip::default().push(&[b'x'; 200]), ArchiveEnd::Damaged);
    }
}
