//! Searches the content of one file, and what it unpacks to, piece by piece.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

use super::SearchedSecrets;
use super::needles::{FoundNeedle, SecretScan};
use super::unpack::Unpacker;

/// How much of what a compressed file unpacks to is searched, bytes.
const UNPACKED_LIMIT: u64 = 1 << 30;
/// A hole of a compressed file is no longer than this, bytes.
const LONGEST_HOLE: usize = 64 << 10;

/// A secret that was found in a file.
pub(super) enum ContentLeak {
    /// In its content.
    Plain(FoundNeedle),
    /// In what it unpacks to.
    Unpacked(FoundNeedle),
}

/// The search of one file.
pub(super) struct ContentSearch {
    scan: SecretScan,
    at: u64,
    found: Option<FoundNeedle>,
    unpacker: Unpacker<UnpackedSink>,
    unpacked: Rc<RefCell<UnpackedSearch>>,
}

impl ContentSearch {
    pub(super) fn new(searched: &SearchedSecrets) -> Self {
        let unpacked = UnpackedSearch { scan: searched.scan(), at: 0, found: None };
        let unpacked = Rc::new(RefCell::new(unpacked));
        let unpacker = Unpacker::new(UnpackedSink(Rc::clone(&unpacked)));
        Self { scan: searched.scan(), at: 0, found: None, unpacker, unpacked }
    }

    /// Takes the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.found.is_none() {
            self.found = self.scan.find(self.at, bytes);
            self.unpacker.push(bytes);
        }
        self.at += bytes.len() as u64;
    }

    /// Takes so many zeroes.
    pub(super) fn push_zeroes(&mut self, count: u64) {
        match usize::try_from(count) {
            Ok(count) if count <= LONGEST_HOLE => self.unpacker.push(&vec![0; count]),
            _ => self.unpacker = Unpacker::Ended,
        }
        self.at += count;
    }

    /// Ends the file.
    pub(super) fn finish(self) -> Option<ContentLeak> {
        self.unpacker.finish();
        match self.found {
            Some(found) => Some(ContentLeak::Plain(found)),
            None => self.unpacked.borrow_mut().found.take().map(ContentLeak::Unpacked),
        }
    }
}

/// The search of what a file unpacks to.
struct UnpackedSearch {
    scan: SecretScan,
    at: u64,
    found: Option<FoundNeedle>,
}

struct UnpackedSink(Rc<RefCell<UnpackedSearch>>);

impl Write for UnpackedSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut search = self.0.borrow_mut();
        if search.found.is_some() || search.at > UNPACKED_LIMIT {
            return Err(io::Error::other("enough was unpacked"));
        }
        let at = search.at;
        search.found = search.scan.find(at, bytes);
        search.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::cpio::tests::entry;
    use super::*;

    const SECRET: &[u8] = b"hunter2-hunter2";

    fn packed() -> Vec<(&'static str, Vec<u8>)> {
        let text = [&vec![b'.'; 100_000][..], SECRET, b" and more"].concat();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&text).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 6);
        xz.write_all(&text).unwrap();
        let zstd = zstd::encode_all(&text[..], 3).unwrap();
        let other = zstd::encode_all(&b"before"[..], 3).unwrap();
        let mut empty = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        empty.write_all(b"before").unwrap();
        let early = [entry("kernel", b"microcode"), entry("TRAILER!!!", b""), vec![0; 500]].concat();
        vec![
            ("two gzip members", [empty.finish().unwrap(), gzip.clone()].concat()),
            ("a damaged end", gzip[..gzip.len() - 8].to_vec()),
            ("gzip", gzip),
            ("xz", xz.finish().unwrap()),
            ("two zstd frames", [other, zstd.clone()].concat()),
            ("an initrd", [early.clone(), early, zstd.clone()].concat()),
            ("zstd", zstd),
        ]
    }

    #[test]
    fn o3_what_a_file_unpacks_to_is_searched_wherever_it_is_cut() {
        let searched = SearchedSecrets::new([("token", SECRET)].into_iter()).unwrap();
        for (name, bytes) in packed() {
            for size in [1, 5, 100, 1 << 20] {
                let mut search = ContentSearch::new(&searched);
                bytes.chunks(size).for_each(|piece| search.push(piece));
                assert!(matches!(search.finish(), Some(ContentLeak::Unpacked(_))), "{name} in pieces of {size}");
            }
        }
    }

    #[test]
    fn o3_what_is_damaged_or_huge_ends_the_search_of_a_file() {
        let searched = SearchedSecrets::new([("token", SECRET)].into_iter()).unwrap();
        for (name, bytes) in packed() {
            for place in 0..bytes.len().min(200) {
                let mut damaged = bytes.clone();
                damaged[place] ^= 0x55;
                let mut search = ContentSearch::new(&searched);
                damaged.chunks(64).for_each(|piece| search.push(piece));
                search.push_zeroes(1 << 40);
                assert!(!matches!(search.finish(), Some(ContentLeak::Plain(_))), "{name}");
            }
        }
    }
}
