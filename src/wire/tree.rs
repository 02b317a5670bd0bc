//! Files and folders as one stream of records: over the port, on a block device, and from guest to host.
//!
//! ```text
//! stream = Head, Entry (root, path ""), Entry ..., End
//! record = length: u32 LE, body of that length          then, after a Data record, the content itself
//! ```
//!
//! A folder's entry precedes its content; its `Leave` follows the content, and only then its times can be set. The content
//! of a file follows its entry as data extents in ascending order, with holes between them. On a device, large extents begin
//! at a multiple of [`BLOCK`], after a `Pad`, so that direct I/O can go from the device to the file without a copy.

use std::io::{self, BufRead, Write};

use super::code::{Code, DecodeError, coded_enum, coded_struct};

pub mod limits;

pub use limits::{MAX_NOTE, MAX_PATH, MAX_XATTRS, is_name};
use limits::{check, check_note};

/// The alignment that direct I/O needs: addresses, offsets and lengths are multiples of it.
pub const BLOCK: usize = 4096;

/// The size from which on an extent is aligned on a device.
pub const LARGE: u64 = 64 * 1024;

const MAX_RECORD: usize = MAX_XATTRS + 3 * MAX_PATH;
const MARK: u64 = u64::from_le_bytes(*b"kilntree");
const LENGTH: usize = 4;
const DATA_RECORD: u64 = 4 + 1 + 8 + 8;
const PAD_RECORD: u64 = 4 + 1 + 4;

const BAD_EXTENT: DecodeError = DecodeError::Range("extent");
const UNEXPECTED: DecodeError = DecodeError::Range("record of the tree");

coded_struct! {
    /// The owner of the files, by name or number, as the guest knows them.
    Owner {
        /// The user.
        user: String,
        /// The group; the user's own if absent.
        group: Option<String>,
    }
}

coded_struct! {
    /// The destination of a tree. The sender of a fetched tree leaves it empty.
    Head {
        /// An absolute path in the guest.
        to: Vec<u8>,
        /// The name of the source.
        name: Vec<u8>,
        /// `to` is a folder, and the source is written into it under its own name.
        into: bool,
        /// The content of the source folder is written into `to`, not the folder.
        contents: bool,
        /// The owner of the files; `root:root` if absent.
        owner: Option<Owner>,
    }
}

coded_struct! {
    /// One extended attribute.
    Xattr {
        /// The name with its namespace.
        name: Vec<u8>,
        /// The value of the attribute.
        value: Vec<u8>,
    }
}

coded_enum! {
    /// The type of an entry.
    Kind as "kind of entry" {
        /// A regular file.
        1 File {
            /// The length in bytes.
            size: u64,
        }
        /// A folder; its content follows.
        2 Dir {}
        /// The end of that folder, with the same metadata.
        3 Leave {}
        /// A symbolic link.
        4 Symlink {
            /// The target of the link.
            target: Vec<u8>,
        }
        /// Another name of an earlier file.
        5 Hardlink {
            /// The path of the earlier file.
            target: Vec<u8>,
        }
        /// A named pipe.
        6 Fifo {}
        /// A socket. Only the sender of a fetched tree sends sockets and devices, so that the receiver can report that they
        /// are left out.
        7 Socket {}
        /// A device.
        8 Device {}
    }
}

coded_struct! {
    /// One entry of the tree.
    Entry {
        /// The path relative to the root, which is the empty path; not always UTF-8.
        path: Vec<u8>,
        /// Permission bits, with setuid, setgid and sticky.
        mode: u16,
        /// The modification time, in nanoseconds since the epoch.
        mtime: i64,
        /// Extended attributes.
        xattrs: Vec<Xattr>,
        /// The type of the entry.
        kind: Kind,
    }
}

coded_struct! {
    /// A note of the sender of a fetched tree about a file.
    TreeNote {
        /// The path relative to the root, as that of an entry.
        path: Vec<u8>,
        /// The tree has no entry for the file.
        is_left_out: bool,
        /// What happened, to be read after the file's name; at most [`MAX_NOTE`] bytes.
        text: String,
    }
}

coded_enum! {
    /// One record of the stream.
    Record as "record" {
        /// The first record.
        1 Head {
            /// The string `kilntree` as a number.
            mark: u64,
            /// The destination of the tree.
            head: Head,
        }
        /// A file, folder or link.
        2 Entry {
            /// The entry.
            entry: Entry,
        }
        /// Content of the file before it; the bytes follow the record.
        3 Data {
            /// The offset in the file.
            offset: u64,
            /// The number of bytes.
            length: u64,
        }
        /// Zeros that align the content after them.
        4 Pad {
            /// The number of zeros.
            length: u32,
        }
        /// A note for the user. Only fetched trees have notes.
        6 Note {
            /// The file, and the note about it.
            note: TreeNote,
        }
        /// The last record.
        5 End {
            /// The totals of the tree.
            totals: Totals,
        }
    }
}

coded_struct! {
    /// The totals of a tree.
    #[derive(Copy, Default)]
    Totals {
        /// The number of entries.
        entries: u64,
        /// The number of bytes of content in data extents.
        bytes: u64,
    }
}

/// The alignment of large extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// No alignment, for a port.
    Packed,
    /// Large extents are aligned, for a block device.
    Aligned,
}

/// The writer of a tree stream.
#[derive(Debug)]
pub struct Encoder<W> {
    out: W,
    layout: Layout,
    position: u64,
    totals: Totals,
    record: Vec<u8>,
}

impl<W: Write> Encoder<W> {
    /// Begins a stream with its head.
    ///
    /// # Errors
    /// When writing fails; this applies to all methods.
    pub fn new(out: W, layout: Layout, head: Head) -> io::Result<Self> {
        let mut new = Self { out, layout, position: 0, totals: Totals::default(), record: Vec::new() };
        new.put(&Record::Head { mark: MARK, head })?;
        Ok(new)
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// Also when its path, names or attributes exceed the limits.
    pub fn entry(&mut self, entry: Entry) -> io::Result<()> {
        check(&entry)?;
        self.totals.entries += u64::from(entry.kind != Kind::Leave {});
        self.put(&Record::Entry { entry })
    }

    /// Adds a note.
    ///
    /// # Errors
    /// Also when its path exceeds the limits.
    pub fn note(&mut self, mut note: TreeNote) -> io::Result<()> {
        while note.text.len() > MAX_NOTE {
            note.text.pop();
        }
        check_note(&note)?;
        self.put(&Record::Note { note })
    }

    /// Announces an extent of the file added last; exactly `length` bytes of [`Encoder::content`] must follow.
    ///
    /// # Errors
    /// When writing fails.
    pub fn data(&mut self, offset: u64, length: u64) -> io::Result<()> {
        if self.layout == Layout::Aligned && length >= LARGE {
            let unpadded = self.position + PAD_RECORD + DATA_RECORD;
            let pad = unpadded.next_multiple_of(BLOCK as u64) - unpadded;
            self.put(&Record::Pad { length: u32::try_from(pad).unwrap_or(0) })?;
            self.content(&[0; BLOCK][..usize::try_from(pad).unwrap_or(0)])?;
        }
        self.totals.bytes += length;
        self.put(&Record::Data { offset, length })
    }

    /// Adds bytes of the extent announced last.
    ///
    /// # Errors
    /// When writing fails.
    pub fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> io::Result<Totals> {
        let totals = self.totals;
        self.put(&Record::End { totals })?;
        self.out.flush()?;
        Ok(totals)
    }

    /// Returns how many bytes the stream has so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    fn put(&mut self, record: &Record) -> io::Result<()> {
        self.record.clear();
        0u32.put(&mut self.record);
        record.put(&mut self.record);
        let length = u32::try_from(self.record.len() - LENGTH).map_err(|_| DecodeError::Range("record"))?;
        self.record[..LENGTH].copy_from_slice(&length.to_le_bytes());
        self.position += self.record.len() as u64;
        self.out.write_all(&self.record)
    }
}

/// The result of [`Decoder::next_item`].
#[derive(Debug, PartialEq, Eq)]
pub enum TreeItem {
    /// An entry of the tree.
    Entry(Entry),
    /// An extent of the file before it; read it with [`Decoder::content`].
    Data {
        /// The offset in the file. Extents ascend, do not overlap and lie within the file.
        offset: u64,
    },
    /// A note on a file. It is not counted in the totals.
    Note(TreeNote),
    /// The end; nothing may follow.
    End(Totals),
}

/// The reader of a tree stream. Every path that it returns is relative, without `.` or `..`, and within the limits.
#[derive(Debug)]
pub struct Decoder<R> {
    input: R,
    record: Vec<u8>,
    left: u64,
    file: Option<Extents>,
    totals: Totals,
}

#[derive(Debug)]
struct Extents {
    size: u64,
    end: u64,
}

impl<R: BufRead> Decoder<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// When reading fails; `InvalidData` if the bytes are no tree stream. This applies to all methods.
    pub fn new(input: R) -> io::Result<(Self, Head)> {
        let mut new = Self { input, record: Vec::new(), left: 0, file: None, totals: Totals::default() };
        match new.record()? {
            Record::Head { mark: MARK, head } => Ok((new, head)),
            _ => Err(DecodeError::Range("head of the tree").into()),
        }
    }

    /// Reads the next entry or extent. The rest of the previous extent is skipped.
    ///
    /// # Errors
    /// As [`Decoder::new`].
    pub fn next_item(&mut self) -> io::Result<TreeItem> {
        self.skip()?;
        match self.record()? {
            Record::Entry { entry } => self.take_entry(entry).map(TreeItem::Entry),
            Record::Data { offset, length } => self.take_data(offset, length),
            Record::Note { note } => Ok(check_note(&note).map(|()| TreeItem::Note(note))?),
            Record::End { totals } if totals == self.totals => Ok(TreeItem::End(totals)),
            Record::Pad { length } if length as usize <= BLOCK => {
                self.left = u64::from(length);
                self.skip()?;
                self.padded_data()
            }
            _ => Err(UNEXPECTED.into()),
        }
    }

    /// Reads the extent after padding. Only content is padded: a stream of nothing but padding would have no end.
    fn padded_data(&mut self) -> io::Result<TreeItem> {
        match self.record()? {
            Record::Data { offset, length } => self.take_data(offset, length),
            _ => Err(UNEXPECTED.into()),
        }
    }

    /// Returns content of the extent, as much as is available; empty at its end. Call [`Decoder::consume`] when it was used.
    ///
    /// # Errors
    /// As [`Decoder::new`].
    pub fn content(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let bytes = self.input.fill_buf()?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let n = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        Ok(&bytes[..n])
    }

    /// Marks `n` bytes of [`Decoder::content`] as used.
    pub fn consume(&mut self, n: usize) {
        self.left -= n as u64;
        self.input.consume(n);
    }

    fn skip(&mut self) -> io::Result<()> {
        while self.left > 0 {
            let n = self.content()?.len();
            self.consume(n);
        }
        Ok(())
    }

    fn take_entry(&mut self, entry: Entry) -> io::Result<Entry> {
        check(&entry)?;
        self.file = match entry.kind {
            Kind::File { size } => Some(Extents { size, end: 0 }),
            _ => None,
        };
        self.totals.entries += u64::from(entry.kind != Kind::Leave {});
        Ok(entry)
    }

    fn take_data(&mut self, offset: u64, length: u64) -> io::Result<TreeItem> {
        let file = self.file.as_mut().ok_or(BAD_EXTENT)?;
        // An empty extent does not advance the file towards its end: any number of them would be allowed.
        let end = offset.checked_add(length).filter(|end| length > 0 && offset >= file.end && *end <= file.size);
        file.end = end.ok_or(BAD_EXTENT)?;
        self.left = length;
        self.totals.bytes = self.totals.bytes.checked_add(length).ok_or(BAD_EXTENT)?;
        Ok(TreeItem::Data { offset })
    }

    fn record(&mut self) -> io::Result<Record> {
        let mut length = [0; LENGTH];
        self.input.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_RECORD {
            return Err(DecodeError::Length(length).into());
        }
        self.record.resize(length, 0);
        self.input.read_exact(&mut self.record)?;
        Ok(Record::decode(&self.record)?)
    }
}

#[cfg(test)]
mod tests;
