//! What a `copy`, `write` or `script` step sends, and writing it to a file for the guest's hot-plugged block device.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::GuestError;
use crate::agent::pack::{PackError, Packing, pack};
use crate::spec;
use crate::wire::tree::{BLOCK, Encoder, Entry, Head, Kind, Layout, Owner, Totals};

/// What is sent, and where to. In the guest:
///
/// - a source that goes `into` a folder gets its own name there, and the folder is made where it is missing;
/// - otherwise `to` is the new name, unless a folder is there already: then the source goes into it, as with `cp`;
/// - the `contents` of a folder are merged into `to`, which keeps its own metadata where it exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What.
    pub what: What,
    /// Absolute path in the guest.
    pub to: String,
    /// `to` is a folder, and the source goes into it.
    pub into: bool,
    /// Owner and group of everything, resolved in the guest.
    pub owner: spec::Owner,
    /// Permission bits of regular files; the source's own where `None`, `0644` for text.
    pub mode: Option<u32>,
}

/// Where the bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A file or folder on this host. A symbolic link named here is followed; those within a folder are kept.
    Path {
        /// Which.
        from: PathBuf,
        /// What is in the folder, not the folder.
        contents: bool,
    },
    /// One regular file, named by [`Source::to`] alone: a folder in its place is an error.
    Text {
        /// Its content.
        content: Vec<u8>,
        /// Its modification time.
        mtime: SystemTime,
    },
}

impl From<&spec::Copy> for Source {
    fn from(copy: &spec::Copy) -> Self {
        Self {
            what: What::Path { from: copy.from.clone(), contents: copy.contents },
            to: copy.to.clone(),
            into: copy.into,
            owner: copy.owner.clone(),
            mode: copy.mode,
        }
    }
}

/// What [`stage`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// Size of the device, bytes; a multiple of 4096.
    pub bytes: u64,
    /// Files, folders and links in it.
    pub entries: u64,
    /// Bytes of file content in it, holes left out.
    pub content: u64,
    /// Of every entry (path, mode, times, attributes) and all content that is not zeros, as read; the same for a file
    /// with holes and for one with zeros instead.
    pub sha256: [u8; 32],
}

/// Writes the source as a tree stream into `file`, from its start, for [`super::Session::unpack_device`]. Constant
/// memory; blocking. `progress` hears the bytes written so far.
///
/// # Errors
/// When the source cannot be read, changes meanwhile, or the file cannot be written.
pub fn stage(source: &Source, file: &File, progress: &mut dyn FnMut(u64)) -> Result<Staged, GuestError> {
    let mut out = BufWriter::with_capacity(1 << 20, Counting { file, written: 0, progress });
    let (totals, sha256) = source.write_to(&mut out, Layout::Aligned).map_err(|error| match error {
        GuestError::Port(source) => GuestError::Write { path: "the staged tree".into(), source },
        other => other,
    })?;
    let failed = |source| GuestError::Write { path: "the staged tree".into(), source };
    let written = out.into_inner().map_err(|error| failed(error.into_error()))?.written;
    let bytes = written.next_multiple_of(BLOCK as u64);
    file.set_len(bytes).map_err(failed)?;
    Ok(Staged { bytes, entries: totals.entries, content: totals.bytes, sha256 })
}

/// Digest of a file or folder by all that a copy of it keeps but times, for the key of a step: git keeps no times.
/// Writes nothing; blocking.
///
/// # Errors
/// When something in it cannot be read or copied.
pub fn timeless_digest(path: &Path) -> Result<Staged, PackError> {
    let head = Head { to: Vec::new(), name: Vec::new(), into: false, contents: false, owner: None };
    let encoder = Encoder::new(io::sink(), Layout::Packed, head).map_err(PackError::Write)?;
    let mut hash = Sha256::new();
    let packing = Packing { mode: None, mtime: Some(0), watch: &mut |bytes| hash.update(bytes) };
    let totals = pack(path, encoder, packing)?;
    Ok(Staged { bytes: 0, entries: totals.entries, content: totals.bytes, sha256: hash.finalize().into() })
}

impl Source {
    /// Writes the tree stream; what writing says becomes [`GuestError::Port`].
    pub(super) fn write_to(&self, out: impl Write, layout: Layout) -> Result<(Totals, [u8; 32]), GuestError> {
        let mut hash = Sha256::new();
        let encoder = Encoder::new(out, layout, self.head()).map_err(GuestError::Port)?;
        let mut watch = |bytes: &[u8]| hash.update(bytes);
        let totals = match &self.what {
            What::Path { from, .. } => {
                pack(from, encoder, Packing { mode: self.mode, mtime: None, watch: &mut watch })?
            }
            What::Text { content, mtime } => self.write_text(content, *mtime, encoder, &mut watch)?,
        };
        Ok((totals, hash.finalize().into()))
    }

    fn write_text(
        &self,
        content: &[u8],
        mtime: SystemTime,
        mut encoder: Encoder<impl Write>,
        watch: &mut dyn FnMut(&[u8]),
    ) -> Result<Totals, GuestError> {
        let size = content.len() as u64;
        let since = mtime.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let entry = Entry {
            path: Vec::new(),
            mode: u16::try_from(self.mode.unwrap_or(0o644) & 0o7777).unwrap_or_default(),
            mtime: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
            xattrs: Vec::new(),
            kind: Kind::File { size },
        };
        watch(encoder.entry(entry).map_err(GuestError::Port)?);
        watch(content);
        if size > 0 {
            encoder.data(0, size).and_then(|()| encoder.content(content)).map_err(GuestError::Port)?;
        }
        encoder.finish().map_err(GuestError::Port)
    }

    fn head(&self) -> Head {
        let (name, contents) = match &self.what {
            What::Path { from, contents } => (from.file_name().unwrap_or_default(), *contents),
            What::Text { .. } => ("".as_ref(), false),
        };
        Head {
            to: self.to.clone().into_bytes(),
            name: name.as_encoded_bytes().to_vec(),
            into: self.into,
            contents,
            owner: Some(Owner { user: self.owner.user.clone(), group: self.owner.group.clone() }),
        }
    }
}

struct Counting<'a> {
    file: &'a File,
    written: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Write for Counting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.written += n as u64;
        (self.progress)(self.written);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
