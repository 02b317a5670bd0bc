//! The list of a sealed tree's files, `files.zst`, beside the image.
//!
//! It is a text compressed by zstd (RFC 8878). Its first line is `kiln tree 1`; each other line is an entry's canonical line
//! (see [`super::entry`]) followed by ` mtime=SECONDS.NANOSECONDS`, and by ` step=N` if a step of the build wrote it, N from
//! 1. Without the parts from ` mtime=` on, it is the text whose digest is `content_sha256`:
//!
//! ```text
//! zstd -dc files.zst | sed 's/ mtime=.*//' | sha256sum
//! ```
//!
//! Entries are in the order of [`super::tree::Tree::walk`]: that of their paths, component by component.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Take, Write};

use zstd::stream::read::Decoder;
use zstd::stream::write::Encoder;

use super::entry::{ContentDigest, DiskEntry, VERSION, canonical};
use crate::digest::Sha256Digest;
use crate::error::{Fault, Kind};

/// The list's name inside a version's folder.
pub const FILE: &str = "files.zst";

/// The compression level: fast, and with half the output size of level 1.
const LEVEL: i32 = 6;
/// The longest line in bytes: a path of 64 KiB, escaped, and the largest attributes that Linux allows.
const MAX_LINE: u64 = 4 << 20;
/// The largest uncompressed size of a list, as a multiple of its compressed size: digests do not compress, and paths do not
/// repeat.
const MAX_RATIO: u64 = 256;
/// The uncompressed size that is allowed for any list, in bytes.
const LEAST_TEXT: u64 = 1 << 20;
/// The most entries of a list: as many as are ever walked.
const MAX_ENTRIES: u64 = 20_000_000;

/// The error of a list that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// The file cannot be read or decompressed.
    #[error("cannot read the list of files")]
    Read(#[from] io::Error),
    /// The line with this number is not one that kiln writes.
    #[error("the list of files is damaged at line {0}")]
    Damaged(u64),
}

impl Fault for ListingError {
    fn kind(&self) -> Kind {
        Kind::Output
    }
}

/// The writer of a list.
pub struct ListingWriter<'w, W: Write>(Encoder<'w, W>);

impl<W: Write> ListingWriter<'_, W> {
    /// Begins a list.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(to: W) -> io::Result<Self> {
        let mut encoder = Encoder::new(to, LEVEL)?;
        encoder.include_checksum(true)?;
        encoder.write_all(VERSION.as_bytes())?;
        Ok(Self(encoder))
    }

    /// Adds an entry; `step` is the step that wrote it, from 0.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, entry: &DiskEntry, step: Option<usize>) -> io::Result<()> {
        self.0.write_all(line(entry, step).as_bytes())
    }

    /// Ends the list.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> io::Result<W> {
        self.0.finish()
    }
}

fn line(entry: &DiskEntry, step: Option<usize>) -> String {
    let mut line = canonical(entry);
    line.pop();
    // Writing to a string cannot fail.
    let _ = write!(line, " mtime={}.{:09}", entry.modified.seconds, entry.modified.nanoseconds);
    if let Some(step) = step {
        let _ = write!(line, " step={}", step + 1);
    }
    line.push('\n');
    line
}

/// An entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListingRecord {
    /// The absolute path.
    pub path: Vec<u8>,
    /// The fields of the canonical line after the path, in their order, with names and unparsed values.
    pub fields: Vec<(String, String)>,
    /// The time of the last change of its content, `SECONDS.NANOSECONDS`.
    pub mtime: String,
    /// The step that wrote it, from 0.
    pub step: Option<usize>,
}

impl ListingRecord {
    /// Creates the record that a list contains for an entry.
    ///
    /// # Panics
    /// Never: what is written can be read.
    #[must_use]
    pub fn of(entry: &DiskEntry, step: Option<usize>) -> Self {
        Self::parse(line(entry, step).trim_end()).expect("what is written can be read")
    }

    /// Returns the approximate memory that the record takes, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let fields = self.fields.iter().map(|(name, value)| name.len() + value.len() + 2 * size_of::<String>());
        size_of::<Self>() + self.path.len() + fields.sum::<usize>()
    }

    pub(super) fn forget_attributes(&mut self) {
        self.fields.retain(|(name, _)| !name.starts_with("xattr:"));
        self.fields.shrink_to_fit();
    }

    /// Returns the value of a field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns the size of a regular file in bytes; 0 for everything else.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.field("size").and_then(|size| size.parse().ok()).unwrap_or(0)
    }

    /// Parses a line; `None` if kiln does not write such a line.
    fn parse(line: &str) -> Option<Self> {
        let (path, rest) = line.strip_prefix("path=")?.split_once(' ')?;
        let (content, behind) = rest.rsplit_once(" mtime=")?;
        let (mtime, step) = match behind.split_once(" step=") {
            Some((mtime, step)) => (mtime, Some(step.parse::<usize>().ok()?.checked_sub(1)?)),
            None => (behind, None),
        };
        let (seconds, nanoseconds) = mtime.split_once('.')?;
        seconds.parse::<i64>().ok()?;
        nanoseconds.parse::<u32>().ok()?;
        let fields: Vec<_> = content.split(' ').map(split_field).collect::<Option<_>>()?;
        let path = unescaped(path).filter(|path| path.starts_with(b"/"))?;
        Some(Self { path, fields, mtime: mtime.to_owned(), step })
    }
}

/// Splits a field of a canonical line into name and value. The name of an attribute may contain a `=`, its value is
/// hexadecimal.
pub(crate) fn split_field(field: &str) -> Option<(String, String)> {
    let pair = if field.starts_with("xattr:") { field.rsplit_once('=') } else { field.split_once('=') };
    pair.map(|(name, value)| (name.to_owned(), value.to_owned()))
}

/// Decodes the path in a canonical line; `None` if an escape is invalid.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.strip_prefix(b"x")?.get(..2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = &rest[3..];
    }
    Some(bytes)
}

/// Returns the `content_sha256` of the tree that a list describes.
///
/// # Errors
/// When it cannot be read.
pub fn content_digest(file: File) -> Result<Sha256Digest, ListingError> {
    let mut listing = ListingReader::open(file)?;
    let mut digest = ContentDigest::new();
    while let Some(line) = listing.line()? {
        let (content, _) = line.split_once(" mtime=").ok_or(ListingError::Damaged(listing.count))?;
        digest.add_line(content);
    }
    Ok(digest.finish())
}

/// Compares two paths by the order of a list.
#[must_use]
pub fn order(one: &[u8], other: &[u8]) -> Ordering {
    one.split(|byte| *byte == b'/').cmp(other.split(|byte| *byte == b'/'))
}

/// A reader of a list, from its first entry to its last. It ends with the first error.
pub struct ListingReader {
    lines: Take<BufReader<Decoder<'static, BufReader<File>>>>,
    count: u64,
    is_over: bool,
}

impl ListingReader {
    /// Opens a list.
    ///
    /// # Errors
    /// When it cannot be read, or is not a list.
    pub fn open(file: File) -> Result<Self, ListingError> {
        let most = file.metadata()?.len().saturating_mul(MAX_RATIO).saturating_add(LEAST_TEXT);
        let lines = BufReader::new(Decoder::new(file)?).take(most);
        let mut listing = Self { lines, count: 0, is_over: false };
        match listing.line()? {
            Some(line) if line == VERSION.trim_end() => Ok(listing),
            _ => Err(ListingError::Damaged(1)),
        }
    }

    fn line(&mut self) -> Result<Option<String>, ListingError> {
        self.count += 1;
        let mut line = Vec::new();
        self.lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
        if line.is_empty() && self.lines.limit() > 0 {
            return Ok(None);
        }
        if line.pop() != Some(b'\n') || self.count > MAX_ENTRIES {
            return Err(ListingError::Damaged(self.count));
        }
        String::from_utf8(line).map(Some).map_err(|_| ListingError::Damaged(self.count))
    }

    fn record(&mut self) -> Result<Option<ListingRecord>, ListingError> {
        let Some(line) = self.line()? else { return Ok(None) };
        ListingRecord::parse(&line).map(Some).ok_or(ListingError::Damaged(self.count))
    }
}

impl Iterator for ListingReader {
    type Item = Result<ListingRecord, ListingError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let next = self.record().transpose();
        self.is_over = !matches!(next, Some(Ok(_)));
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::entry::FileDigest;
    use crate::disk::entry::{FileKind, Time, Xattr};
    use proptest::prelude::*;
    use std::io::Seek;

    fn entry(path: Vec<u8>, target: Option<Vec<u8>>, xattr: Vec<u8>, seconds: i64) -> DiskEntry {
        DiskEntry {
            path: [b"/".to_vec(), path].concat(),
            kind: if target.is_some() { FileKind::Link } else { FileKind::File },
            mode: 0o644,
            uid: 1,
            gid: 2,
            size: 3,
            digest: target.is_none().then_some(FileDigest::Content(Sha256Digest::new([7; 32]))),
            target,
            device: None,
            xattrs: vec![Xattr { name: xattr.clone(), value: xattr }],
            modified: Time { seconds, nanoseconds: 5 },
            changed: Time { seconds: 0, nanoseconds: 0 },
            file: (0, 1),
        }
    }

    fn temporary(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    fn listing(bytes: &[u8]) -> Result<Vec<ListingRecord>, ListingError> {
        ListingReader::open(temporary(bytes))?.collect()
    }

    fn compressed(text: &[u8]) -> Vec<u8> {
        zstd::encode_all(text, 1).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            paths in proptest::collection::vec(any::<Vec<u8>>(), 0..5),
            target in any::<Option<Vec<u8>>>(), xattr in any::<Vec<u8>>(), seconds in any::<i64>(), step in any::<Option<u8>>(),
        ) {
            let entries: Vec<_> = paths.into_iter().map(|path| entry(path, target.clone(), xattr.clone(), seconds)).collect();
            let step = step.map(usize::from);
            let mut writer = ListingWriter::new(Vec::new()).unwrap();
            entries.iter().try_for_each(|entry| writer.add(entry, step)).unwrap();
            let written = writer.finish().unwrap();
            let mut content = ContentDigest::new();
            for entry in &entries {
                content.add(entry);
            }
            prop_assert_eq!(content_digest(temporary(&written)).unwrap(), content.finish());
            let records = listing(&written).unwrap();
            prop_assert_eq!(records.len(), entries.len());
            for (record, entry) in records.iter().zip(&entries) {
                prop_assert_eq!((&record.path, record.step), (&entry.path, step));
                prop_assert_eq!(record, &ListingRecord::of(entry, step));
                let fields: String = record.fields.iter().map(|(name, value)| format!(" {name}={value}")).collect();
                prop_assert!(canonical(entry).ends_with(&format!("{fields}\n")), "{}", fields);
            }
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in any::<Vec<u8>>(), lines in "(path=/[a-z\\\\x0-9]{0,9} mode=[0-9]{0,3} mtime=[0-9.]{0,5}( step=[0-9]{0,3})?\n){0,3}") {
            let _ = listing(&text);
            let _ = listing(&compressed(&text));
            let _ = listing(&compressed(format!("{VERSION}{lines}").as_bytes()));
        }
    }

    #[test]
    fn a_damaged_list_is_told_with_its_line() {
        for (text, line) in [
            ("", 1),
            ("kiln tree 9\n", 1),
            ("kiln tree 1\npath=/ type=dir mtime=1.0", 2),
            ("kiln tree 1\npath=/ type=dir mtime=1.0\npath=a type=dir mtime=1.0\n", 3),
            ("kiln tree 1\npath=/ type=dir\n", 2),
            ("kiln tree 1\npath=/ type=dir mtime=1.0 step=0\n", 2),
            ("kiln tree 1\npath=/\\x4 type=dir mtime=1.0\n", 2),
        ] {
            let error = listing(&compressed(text.as_bytes())).unwrap_err();
            assert!(matches!(error, ListingError::Damaged(found) if found == line), "{text:?}: {error:?}");
        }
        let cut = compressed(format!("{VERSION}path=/ type=dir mtime=1.0\n").as_bytes());
        assert!(matches!(listing(&cut[..cut.len() - 3]), Err(ListingError::Read(_))));
    }

    #[test]
    fn an_endless_line_takes_no_memory() {
        let text = [VERSION.as_bytes(), &vec![b'x'; 64 << 20]].concat();
        assert!(matches!(listing(&compressed(&text)), Err(ListingError::Damaged(2))));
    }

    #[test]
    fn paths_are_ordered_by_their_components() {
        let mut paths = ["/a.b", "/a/c", "/", "/b", "/a", "/a/b/c", "/a-b"].map(str::as_bytes);
        paths.sort_by(|one, other| order(one, other));
        assert_eq!(
            paths.map(|path| std::str::from_utf8(path).unwrap()),
            ["/", "/a", "/a/b/c", "/a/c", "/a-b", "/a.b", "/b"]
        );
    }
}
