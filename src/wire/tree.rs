//! Files and folders as one stream of records: over the port, on a block device, and from guest to host.
//!
//! ```text
//! stream = Head, Entry (root, path ""), Entry ..., End
//! record = length: u32 LE, body of that length          then, after a Data record, the content itself
//! ```
//!
//! A folder's entry comes before what is in it; its `Leave` comes after, and only then its times can be set. The content
//! of a file follows its entry as data extents in ascending order; what lies between them are holes. On a device, large
//! extents begin at a multiple of [`BLOCK`], after a `Pad`, so that direct I/O can go from the device to the file
//! without a copy.

use std::io::{self, BufRead, Write};

use super::code::{Code, Fields, Malformed, coded_enum, coded_struct};

pub mod limits;

pub use limits::{MAX_NOTE, MAX_PATH, MAX_XATTRS, is_name};
use limits::{check, check_note};

/// What direct I/O needs: addresses, offsets and lengths are multiples of this.
pub const BLOCK: usize = 4096;

/// An extent at least this large is aligned on a device.
pub const LARGE: u64 = 64 * 1024;

const MAX_RECORD: usize = MAX_XATTRS + 3 * MAX_PATH;
const MARK: u64 = u64::from_le_bytes(*b"kilntree");
const LENGTH: usize = 4;
const DATA_RECORD: u64 = 4 + 1 + 8 + 8;
const PAD_RECORD: u64 = 4 + 1 + 4;

coded_struct! {
    /// Whose the files become, by name or number, as the guest knows them.
    Owner {
        /// User.
        user: String,
        /// Group; the user's own where absent.
        group: Option<String>,
    }
}

coded_struct! {
    /// Where a tree goes. The sender of a fetched tree leaves it empty.
    Head {
        /// Absolute path in the guest.
        to: Vec<u8>,
        /// The source's own name.
        name: Vec<u8>,
        /// `to` is a folder, and the source goes into it under its own name.
        into: bool,
        /// What is in the source folder goes into `to`, not the folder.
        contents: bool,
        /// `root:root` where absent.
        owner: Option<Owner>,
    }
}

coded_struct! {
    /// One extended attribute.
    Xattr {
        /// Name with its namespace.
        name: Vec<u8>,
        /// Value.
        value: Vec<u8>,
    }
}

coded_enum! {
    /// What an entry is.
    Kind as "kind of entry" {
        /// A regular file.
        1 File {
            /// Its length, bytes.
            size: u64,
        }
        /// A folder; what is in it follows.
        2 Dir {}
        /// The end of that folder, with the same metadata.
        3 Leave {}
        /// A symbolic link.
        4 Symlink {
            /// What it says.
            target: Vec<u8>,
        }
        /// Another name of an earlier file.
        5 Hardlink {
            /// That entry's path.
            target: Vec<u8>,
        }
        /// A named pipe.
        6 Fifo {}
        /// A socket. Only the sender of a fetched tree names sockets and devices, for the receiver to say that they are left out.
        7 Socket {}
        /// A device.
        8 Device {}
    }
}

coded_struct! {
    /// One entry of the tree.
    Entry {
        /// Relative to the root, which is the empty path; not always UTF-8.
        path: Vec<u8>,
        /// Permission bits, with setuid, setgid and sticky.
        mode: u16,
        /// Modification time, nanoseconds since the epoch.
        mtime: i64,
        /// Extended attributes.
        xattrs: Vec<Xattr>,
        /// What it is.
        kind: Kind,
    }
}

coded_struct! {
    /// What the sender of a fetched tree says of a file.
    TreeNote {
        /// Relative to the root, as that of an entry.
        path: Vec<u8>,
        /// Whether the tree has no entry for it.
        is_left_out: bool,
        /// What happened, to be read after its name; at most [`MAX_NOTE`] bytes.
        text: String,
    }
}

coded_enum! {
    /// One record of the stream.
    Record as "record" {
        /// The first.
        1 Head {
            /// `kilntree` as a number.
            mark: u64,
            /// Where to.
            head: Head,
        }
        /// A file, folder or link.
        2 Entry {
            /// Its description.
            entry: Entry,
        }
        /// Content of the file before it; the bytes follow the record.
        3 Data {
            /// Where in the file.
            offset: u64,
            /// How many bytes.
            length: u64,
        }
        /// Zeros, so that what follows is aligned.
        4 Pad {
            /// How many.
            length: u32,
        }
        /// Something that a person should know. Only fetched trees have notes.
        6 Note {
            /// Of which file, and what.
            note: TreeNote,
        }
        /// The last.
        5 End {
            /// What there was.
            totals: Totals,
        }
    }
}

coded_struct! {
    /// What a tree holds.
    #[derive(Copy, Default)]
    Totals {
        /// Everything that has an entry.
        entries: u64,
        /// Bytes of content in data extents.
        bytes: u64,
    }
}

/// Whether large extents are aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As small as can be, for a port.
    Packed,
    /// For a block device.
    Aligned,
}

/// Writes a tree stream.
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
    /// What writing says; this holds for all methods.
    pub fn new(out: W, layout: Layout, head: Head) -> io::Result<Self> {
        let mut new = Self { out, layout, position: 0, totals: Totals::default(), record: Vec::new() };
        new.put(&Record::Head { mark: MARK, head })?;
        Ok(new)
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// Also when its path, names or attributes are beyond the limits.
    pub fn entry(&mut self, entry: Entry) -> io::Result<()> {
        check(&entry).map_err(invalid)?;
        self.totals.entries += u64::from(entry.kind != Kind::Leave {});
        self.put(&Record::Entry { entry })
    }

    /// Adds a note.
    ///
    /// # Errors
    /// Also when its path is beyond the limits.
    pub fn note(&mut self, mut note: TreeNote) -> io::Result<()> {
        while note.text.len() > MAX_NOTE {
            note.text.pop();
        }
        check_note(&note).map_err(invalid)?;
        self.put(&Record::Note { note })
    }

    /// Announces an extent of the file added last; exactly `length` bytes of [`Encoder::content`] must follow.
    ///
    /// # Errors
    /// What writing says.
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
    /// What writing says.
    pub fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// What writing says.
    pub fn finish(mut self) -> io::Result<Totals> {
        let totals = self.totals;
        self.put(&Record::End { totals })?;
        self.out.flush()?;
        Ok(totals)
    }

    /// Bytes of the stream so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    fn put(&mut self, record: &Record) -> io::Result<()> {
        self.record.clear();
        0u32.put(&mut self.record);
        record.put(&mut self.record);
        let length = u32::try_from(self.record.len() - LENGTH).map_err(|_| invalid(Malformed::Range("record")))?;
        self.record[..LENGTH].copy_from_slice(&length.to_le_bytes());
        self.position += self.record.len() as u64;
        self.out.write_all(&self.record)
    }
}

/// What [`Decoder::next_item`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// An entry.
    Entry(Entry),
    /// An extent of the file before it; read it with [`Decoder::content`].
    Data {
        /// Where in the file. Extents ascend, do not overlap and lie within the file.
        offset: u64,
    },
    /// A note on a file. It counts for nothing.
    Note(TreeNote),
    /// The end; nothing may follow.
    End(Totals),
}

/// Reads a tree stream. Every path it gives out is relative, without `.` or `..`, and within the limits.
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
    /// What reading says; `InvalidData` for bytes that are no tree stream. This holds for all methods.
    pub fn new(input: R) -> io::Result<(Self, Head)> {
        let mut new = Self { input, record: Vec::new(), left: 0, file: None, totals: Totals::default() };
        match new.record()? {
            Record::Head { mark: MARK, head } => Ok((new, head)),
            _ => Err(invalid(Malformed::Range("head of the tree"))),
        }
    }

    /// The next entry or extent. What was left of the extent before is skipped.
    ///
    /// # Errors
    /// As [`Decoder::new`].
    pub fn next_item(&mut self) -> io::Result<Item> {
        self.skip()?;
        match self.record()? {
            Record::Entry { entry } => self.take_entry(entry).map(Item::Entry),
            Record::Data { offset, length } => self.take_data(offset, length),
            Record::Note { note } => check_note(&note).map(|()| Item::Note(note)).map_err(invalid),
            Record::End { totals } if totals == self.totals => Ok(Item::End(totals)),
            Record::Pad { length } if length as usize <= BLOCK => {
                self.left = u64::from(length);
                self.skip()?;
                self.padded_data()
            }
            _ => Err(unexpected()),
        }
    }

    /// Only content is padded: a stream of nothing but padding would have no end.
    fn padded_data(&mut self) -> io::Result<Item> {
        match self.record()? {
            Record::Data { offset, length } => self.take_data(offset, length),
            _ => Err(unexpected()),
        }
    }

    /// Content of the extent, as much as is at hand; empty at its end. Call [`Decoder::consume`] when done with it.
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

    /// `n` bytes of [`Decoder::content`] were used.
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
        check(&entry).map_err(invalid)?;
        self.file = match entry.kind {
            Kind::File { size } => Some(Extents { size, end: 0 }),
            _ => None,
        };
        self.totals.entries += u64::from(entry.kind != Kind::Leave {});
        Ok(entry)
    }

    fn take_data(&mut self, offset: u64, length: u64) -> io::Result<Item> {
        let bad = || invalid(Malformed::Range("extent"));
        let file = self.file.as_mut().ok_or_else(bad)?;
        // An empty extent brings the file no nearer to its end: there would be room for any number of them.
        let inside = |end: &u64| length > 0 && offset >= file.end && *end <= file.size;
        let end = offset.checked_add(length).filter(inside).ok_or_else(bad)?;
        file.end = end;
        self.left = length;
        self.totals.bytes = self.totals.bytes.checked_add(length).ok_or_else(bad)?;
        Ok(Item::Data { offset })
    }

    fn record(&mut self) -> io::Result<Record> {
        let mut length = [0; LENGTH];
        self.input.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_RECORD {
            return Err(invalid(Malformed::Length(length)));
        }
        self.record.resize(length, 0);
        self.input.read_exact(&mut self.record)?;
        let mut fields = Fields::new(&self.record);
        let record = Record::get(&mut fields).map_err(invalid)?;
        fields.end().map_err(invalid)?;
        Ok(record)
    }
}

fn unexpected() -> io::Error {
    invalid(Malformed::Range("record of the tree"))
}

fn invalid(why: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests;
