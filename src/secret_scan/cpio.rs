//! Finds the end of a cpio archive (`newc`) that arrives piece by piece.

/// Length of a header: its magic and thirteen numbers of eight hexadecimal digits.
const HEADER: usize = 110;
const FILE_SIZE: std::ops::Range<usize> = 54..62;
const NAME_SIZE: std::ops::Range<usize> = 94..102;
/// Names and contents are padded to a multiple of this.
const ALIGNMENT: usize = 4;
/// Name of the last entry.
const TRAILER: &[u8] = b"TRAILER!!!\0";
/// Limit of the length of a name; longer paths are not accepted by the kernel.
const LONGEST_NAME: usize = 4096;

/// Position in an archive.
#[derive(Default)]
pub(super) struct ArchiveSkip {
    /// The header of an entry and its name, as far as they were read.
    header: Vec<u8>,
    /// Remaining bytes of content, with their padding.
    left: usize,
    /// Whether the last entry was read: only padding follows.
    is_over: bool,
}

/// Position of an archive's end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ArchiveEnd<'b> {
    /// It is not in these bytes.
    Within,
    /// It was passed; these bytes follow the archive and its padding.
    After(&'b [u8]),
    /// The bytes are not a valid archive.
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
                let skipped = self.left.min(rest.len());
                self.left -= skipped;
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

    /// Returns the length of the header with its name, if it is known yet.
    fn header_length(&self) -> Option<usize> {
        if self.header.len() < HEADER {
            return Some(HEADER);
        }
        let name = self.number(NAME_SIZE).filter(|size| (1..=LONGEST_NAME).contains(size))?;
        Some((HEADER + name).next_multiple_of(ALIGNMENT))
    }

    fn end_header(&mut self) {
        self.is_over = self.header[HEADER..].starts_with(TRAILER);
        // As in Linux, a size that is no number is 0.
        self.left = self.number(FILE_SIZE).unwrap_or(0).next_multiple_of(ALIGNMENT);
        self.header.clear();
    }

    fn number(&self, place: std::ops::Range<usize>) -> Option<usize> {
        usize::from_str_radix(std::str::from_utf8(self.header.get(place)?).ok()?, 16).ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::secret_scan) fn entry(name: &str, content: &[u8]) -> Vec<u8> {
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
