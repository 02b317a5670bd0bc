//! Searches the content of one file, and its unpacked form, piece by piece.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

use super::SearchedSecrets;
use super::decoder::DecoderError;
use super::needles::{FoundNeedle, SecretScan};
use super::unpack::ScanUnpacker;

/// A secret that was found in a file.
pub(super) enum ContentLeak {
    /// In its content as it is.
    Plain(FoundNeedle),
    /// In its unpacked content.
    Unpacked(FoundNeedle),
}

/// Result of the search of a file.
pub(super) struct ContentFindings {
    /// The leaks, each secret once.
    pub(super) leaks: Vec<ContentLeak>,
    /// The reason why a compressed file was not unpacked to its end.
    pub(super) error: Option<DecoderError>,
}

/// The search of one file.
pub(super) struct ContentSearch {
    scan: SecretScan,
    at: u64,
    unpacker: ScanUnpacker<UnpackedSink>,
    unpacked: Rc<RefCell<SecretScan>>,
}

impl ContentSearch {
    pub(super) fn new(searched: &SearchedSecrets) -> Self {
        let unpacked = Rc::new(RefCell::new(searched.scan()));
        let unpacker = ScanUnpacker::new(UnpackedSink(Rc::clone(&unpacked)));
        Self { scan: searched.scan(), at: 0, unpacker, unpacked }
    }

    /// Takes the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.scan.look(self.at, bytes);
        self.unpacker.push(bytes);
        self.at += bytes.len() as u64;
    }

    /// Takes a number of zeroes.
    pub(super) fn push_zeroes(&mut self, count: u64) {
        self.unpacker.push_zeroes(count);
        self.at += count;
    }

    /// Ends the file, and returns the findings.
    pub(super) fn finish(self) -> ContentFindings {
        let plain = self.scan.into_found();
        let mut unpacked = self.unpacked.borrow_mut().take_found();
        unpacked.retain(|found| plain.iter().all(|other| other.name != found.name));
        let unpacked = unpacked.into_iter().map(ContentLeak::Unpacked);
        let leaks = plain.into_iter().map(ContentLeak::Plain).chain(unpacked).collect();
        ContentFindings { leaks, error: self.unpacker.error() }
    }
}

/// Searches the unpacked content that is written to it.
struct UnpackedSink(Rc<RefCell<SecretScan>>);

impl Write for UnpackedSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret_scan::cpio::tests::entry;
    use crate::secret_scan::journal::tests::journal;

    const SECRET: &[u8] = b"hunter2-hunter2";

    const OTHER: &[u8] = b"battery-battery";

    fn searched() -> SearchedSecrets {
        SearchedSecrets::new([("token", SECRET), ("phrase", OTHER)].into_iter()).unwrap()
    }

    fn search(bytes: &[u8], size: usize) -> ContentFindings {
        let mut search = ContentSearch::new(&searched());
        bytes.chunks(size).for_each(|piece| search.push(piece));
        search.finish()
    }

    /// Returns the names of the secrets in the unpacked content, sorted, and the reason if that ended early.
    fn unpacked(bytes: &[u8], size: usize) -> (Vec<String>, Option<DecoderError>) {
        let findings = search(bytes, size);
        let mut names: Vec<String> = findings
            .leaks
            .into_iter()
            .filter_map(|leak| match leak {
                ContentLeak::Unpacked(found) => Some(found.name),
                ContentLeak::Plain(_) => None,
            })
            .collect();
        names.sort();
        (names, findings.error)
    }

    /// Longer than the unpack buffer.
    const LENGTH: usize = 100_000;

    fn text(length: usize) -> Vec<u8> {
        [&vec![b'.'; length][..], SECRET, b" and more ", OTHER, b" and the rest"].concat()
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(text).unwrap();
        gzip.finish().unwrap()
    }

    fn xz(text: &[u8]) -> Vec<u8> {
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 6);
        xz.write_all(text).unwrap();
        xz.finish().unwrap()
    }

    /// Returns an xz file with another dictionary size, given as its number in the filter flags of LZMA2.
    fn xz_with_dictionary(text: &[u8], size: u8) -> Vec<u8> {
        let mut file = xz(text);
        let end = 12 + 4 * usize::from(file[12]);
        assert_eq!(file[14..16], [0x21, 1]);
        file[16] = size;
        let mut crc = flate2::Crc::new();
        crc.update(&file[12..end]);
        file[end..end + 4].copy_from_slice(&crc.sum().to_le_bytes());
        file
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        zstd::encode_all(text, 3).unwrap()
    }

    /// Returns a zstd frame with a window of 2 to the power of `log`, as with `zstd --long` and a pipe.
    fn zstd_with_window(text: &[u8], log: u8) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.write_all(text).unwrap();
        encoder.flush().unwrap();
        let mut file = encoder.finish().unwrap();
        assert_eq!(file[4] & 0x20, 0, "the header has a window");
        file[5] = (log - 10) << 3;
        file
    }

    /// Returns a zstd frame without its last block.
    fn cut_zstd() -> Vec<u8> {
        let noise =
            (0..400_000_u32).map(|number| number.wrapping_mul(number).wrapping_mul(0x9e37_79b9).to_le_bytes()[3]);
        let file = zstd(&[text(LENGTH), noise.collect()].concat());
        file[..file.len() - 20].to_vec()
    }

    fn skippable(magic: u8, length: u32) -> Vec<u8> {
        [&[magic, 0x2a, 0x4d, 0x18][..], &length.to_le_bytes(), &vec![7; length as usize]].concat()
    }

    fn packed(length: usize) -> Vec<(&'static str, Vec<u8>)> {
        let text = text(length);
        let early = [entry("kernel", b"microcode"), entry("TRAILER!!!", b""), vec![0; 500]].concat();
        let plain = [entry("etc", b"issue"), entry("TRAILER!!!", b""), vec![0; 500]].concat();
        let gz = gzip(&text);
        let zst = zstd(&text);
        let xz_file = xz(&text);
        vec![
            ("gzip", gz.clone()),
            ("two gzip members", [gzip(b"before"), gz.clone()].concat()),
            ("gzip members with padding", [gzip(b"before"), vec![0; 512], gz.clone()].concat()),
            ("gzip and something else", [&gz[..], b"garbage, and more of it"].concat()),
            ("gzip without its end", gz[..gz.len() - 8].to_vec()),
            ("xz", xz_file.clone()),
            ("two xz streams", [xz(b"before"), vec![0; 8], xz_file.clone(), vec![0; 4]].concat()),
            ("xz without its end", xz_file[..xz_file.len() - 20].to_vec()),
            ("xz with a dictionary of 192 MiB", xz_with_dictionary(&text, 31)),
            ("xz with a dictionary of 1.5 GiB", xz_with_dictionary(&text, 37)),
            ("zstd", zst.clone()),
            ("two zstd frames", [zstd(b"before"), zst.clone()].concat()),
            ("zstd without its end", cut_zstd()),
            ("zstd with a window of 128 MiB", zstd_with_window(&text, 27)),
            ("zstd with a window of 256 MiB", zstd_with_window(&text, 28)),
            ("zstd with a window of 2 GiB", zstd_with_window(&text, 31)),
            ("zstd after a frame to be skipped", [skippable(0x50, 4), zst.clone()].concat()),
            ("zstd after an empty frame to be skipped", [skippable(0x5f, 0), zst.clone()].concat()),
            (
                "zstd between frames to be skipped",
                [zstd(b"before"), skippable(0x5a, 70_000), zst.clone(), skippable(0x50, 9)].concat(),
            ),
            ("streams of all kinds", [gzip(b"1"), xz(b"2"), zstd(b"3"), gz].concat()),
            ("an initrd", [early.clone(), early.clone(), zst.clone()].concat()),
            ("an initrd of several parts", [early, gzip(b"1"), vec![0; 99], plain, xz_file].concat()),
            ("a journal with zstd", journal(false, 4, &zst)),
            ("a compact journal with zstd", journal(true, 4, &zst)),
            ("a journal with xz", journal(false, 1, &xz(&text))),
        ]
    }

    #[test]
    fn o3_what_a_file_unpacks_to_is_searched_wherever_it_is_cut() {
        for (name, bytes) in packed(LENGTH) {
            for size in [1, 100, 4097, 1 << 20] {
                let (names, error) = unpacked(&bytes, size);
                assert_eq!(names, ["phrase", "token"], "{name} in pieces of {size}");
                assert_eq!(error, None, "{name} in pieces of {size}");
            }
        }
    }

    #[test]
    fn o3_a_file_that_is_not_unpacked_to_its_end_is_reported() {
        let damaged = [gzip(b"before"), b"\x1f\x8b\x08\x00\0\0\0\0\0\0".to_vec(), vec![0xff; 99]].concat();
        let lz4 = [skippable(0x50, 4), b"\x04\x22\x4d\x18garbage".to_vec()].concat();
        let dictionary = b"\x28\xb5\x2f\xfd\x21\x99\x10\x81\0\0".to_vec();
        for (name, bytes, error) in [
            ("damaged", damaged, DecoderError::Damaged),
            ("zstd of before 1.0", b"\x25\xb5\x2f\xfd and more".to_vec(), DecoderError::Damaged),
            ("zstd with a dictionary", dictionary, DecoderError::Unsupported),
            ("a journal with LZ4", journal(false, 2, b"........"), DecoderError::Unsupported),
        ] {
            assert_eq!(search(&bytes, 7).error, Some(error), "{name}");
        }
        assert_eq!(search(&lz4, 7).error, None, "lz4 is not unpacked");
    }

    #[test]
    fn o3_what_is_damaged_or_huge_ends_the_search_of_a_file() {
        let searched = searched();
        for (name, bytes) in packed(1000) {
            for place in 0..bytes.len().min(200) {
                let mut damaged = bytes.clone();
                damaged[place] ^= 0x55;
                let mut search = ContentSearch::new(&searched);
                damaged.chunks(64).for_each(|piece| search.push(piece));
                search.push_zeroes(1 << 40);
                let is_plain = search.finish().leaks.iter().any(|leak| matches!(leak, ContentLeak::Plain(_)));
                assert!(!is_plain, "{name}");
            }
        }
    }

    #[test]
    fn o3_holes_within_a_compressed_file_are_zeroes() {
        let stored = |length: u32, is_last: u32| (length << 3 | is_last).to_le_bytes()[..3].to_vec();
        let head = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3][..], &stored(128 << 10, 0)].concat();
        let text = gzip(&text(LENGTH));
        let tail = [stored(1, 1), b".".to_vec(), text].concat();
        let mut search = ContentSearch::new(&searched());
        search.push(&head);
        search.push_zeroes(128 << 10);
        search.push(&tail);
        let findings = search.finish();
        assert_eq!((findings.leaks.len(), findings.error), (2, None));
    }
}
