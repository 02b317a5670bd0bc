//! Packs files and folders into a tree stream. The host uses it too: there is one packer for both directions.

use std::collections::HashMap;
use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::vec;

use super::{folder_names, sys};
use crate::wire::tree::{BLOCK, Encoder, Entry, Kind, Totals, TreeNote, Xattr};

/// Bytes of content read at once.
const CHUNK: usize = 1 << 20;
/// The longest content of a file whose size is not known, in bytes: it is read as a whole before it is sent.
const LONGEST_UNSIZED: u64 = 32 << 20;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// The reason why a tree could not be packed.
#[derive(Debug)]
pub enum PackError {
    /// A file cannot be read.
    Read(PathBuf, io::Error),
    /// A file changed while it was read.
    Changed(PathBuf),
    /// A file cannot be sent, because of what it is.
    Unfit(PathBuf, &'static str),
    /// The stream cannot be written.
    Write(io::Error),
}

impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path, error) => write!(f, "cannot read {}: {error}", path.display()),
            Self::Changed(path) => write!(f, "{} changed while it was read", path.display()),
            Self::Unfit(path, what) => write!(f, "{} is {what}, which cannot be copied", path.display()),
            Self::Write(error) => write!(f, "cannot send: {error}"),
        }
    }
}

impl Error for PackError {}

/// How files are treated that cannot be sent as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackPolicy {
    /// The tree was examined before, so that a change is an error. Sockets are left out, as they mean nothing without their
    /// process, and devices are refused.
    Planned,
    /// Processes write to the tree meanwhile, and the kernel generates some of its files. Notes in the stream name what
    /// changed or was left out; sockets and devices have entries of their own.
    Living,
}

/// Filters, adjusts and observes the entries of a tree while it is packed.
pub trait PackHooks {
    /// Returns whether an entry is left out, given its path below the root. It is neither opened nor read then, and neither is
    /// what is in it.
    fn leaves_out(&self, _path: &[u8], _is_folder: bool) -> bool {
        false
    }
    /// Returns how files are treated that cannot be sent as they are.
    fn policy(&self) -> PackPolicy {
        PackPolicy::Planned
    }
    /// Changes an entry before it is sent.
    fn adjust(&self, _entry: &mut Entry) {}
    /// Observes an entry as it is sent.
    fn note_entry(&mut self, _entry: &Entry) {}
    /// Observes a block of content at this offset of the last file. Blocks of zeros are left out, so that holes do not
    /// matter.
    fn note_block(&mut self, _offset: u64, _block: &[u8]) {}
}

/// The packing of files that the host fetches: the tree is sent as it is.
pub struct FetchedFiles;

impl PackHooks for FetchedFiles {
    fn policy(&self) -> PackPolicy {
        PackPolicy::Living
    }
}

/// Packs a file or folder, which may itself be named through a symbolic link; links within are kept as links.
///
/// # Errors
/// When something cannot be read or sent.
pub fn pack<W: Write>(root: &Path, encoder: Encoder<W>, packing: &mut dyn PackHooks) -> Result<Totals, PackError> {
    let root = fs::canonicalize(root).map_err(|error| PackError::Read(root.to_owned(), error))?;
    let mut walk = PackWalk { path: root.clone(), root, encoder, packing, links: HashMap::new(), buffer: Vec::new() };
    walk.whole_tree()?;
    walk.encoder.finish().map_err(PackError::Write)
}

struct PackWalk<'a, W> {
    root: PathBuf,
    path: PathBuf,
    encoder: Encoder<W>,
    packing: &'a mut dyn PackHooks,
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

/// A folder being walked, deepest last. The walk has an explicit stack: a path may have two thousand components.
struct OpenFolder {
    leave: Entry,
    names: vec::IntoIter<OsString>,
}

impl<W: Write> PackWalk<'_, W> {
    fn whole_tree(&mut self) -> Result<(), PackError> {
        let mut levels: Vec<OpenFolder> = self.visit()?.into_iter().collect();
        while let Some(level) = levels.last_mut() {
            if let Some(name) = level.names.next() {
                self.path.push(name);
                match self.visit_or_note()? {
                    Some(deeper) => levels.push(deeper),
                    None => _ = self.path.pop(),
                }
            } else if let Some(level) = levels.pop() {
                self.emit(level.leave)?;
                self.path.pop();
            }
        }
        Ok(())
    }

    fn is_living(&self) -> bool {
        self.packing.policy() == PackPolicy::Living
    }

    /// Sends the entry at the path, or a note if it belongs to a living tree and cannot be sent.
    fn visit_or_note(&mut self) -> Result<Option<OpenFolder>, PackError> {
        let text = match self.visit() {
            Err(PackError::Changed(_)) if self.is_living() => "vanished before it could be read".to_owned(),
            Err(PackError::Unfit(_, what)) if self.is_living() => what.to_owned(),
            Err(PackError::Read(_, error)) if self.is_living() && is_made_up(&self.path) => {
                format!("cannot be read: {error}")
            }
            visited => return visited,
        };
        self.note(true, text).map(|()| None)
    }

    fn note(&mut self, is_left_out: bool, text: String) -> Result<(), PackError> {
        let note = TreeNote { path: self.relative(), is_left_out, text };
        self.encoder.note(note).map_err(PackError::Write)
    }

    /// Sends the entry at the path. Returns the content of a folder, which the caller has to visit.
    fn visit(&mut self) -> Result<Option<OpenFolder>, PackError> {
        let metadata = fs::symlink_metadata(&self.path).map_err(|error| self.unreadable(error))?;
        let kind = metadata.file_type();
        if self.path != self.root && self.packing.leaves_out(&self.relative(), kind.is_dir()) {
            return Ok(None);
        }
        if kind.is_file() {
            return self.file().map(|()| None);
        }
        if kind.is_dir() {
            return self.folder(&metadata).map(Some);
        }
        let kind = if kind.is_symlink() {
            let target = fs::read_link(&self.path).map_err(|error| self.unreadable(error))?;
            Kind::Symlink { target: target.into_os_string().into_encoded_bytes() }
        } else if kind.is_fifo() {
            Kind::Fifo {}
        } else if self.is_living() {
            if kind.is_socket() { Kind::Socket {} } else { Kind::Device {} }
        } else if kind.is_socket() {
            return Ok(None);
        } else {
            return Err(PackError::Unfit(self.path.clone(), "a device"));
        };
        let entry = self.entry(&metadata, kind)?;
        self.emit(entry).map(|()| None)
    }

    fn folder(&mut self, metadata: &Metadata) -> Result<OpenFolder, PackError> {
        let mut names = folder_names(&self.path).map_err(|error| self.unreadable(error))?;
        // The order of the names in a folder differs from file system to file system.
        names.sort_unstable();
        let entry = self.entry(metadata, Kind::Dir {})?;
        let leave = Entry { kind: Kind::Leave {}, ..entry.clone() };
        self.emit(entry)?;
        Ok(OpenFolder { leave, names: names.into_iter() })
    }

    fn file(&mut self) -> Result<(), PackError> {
        let flags = sys::O_NOFOLLOW | sys::O_NONBLOCK;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(&self.path);
        let file = opened.map_err(|error| self.unreadable(error))?;
        let before = file.metadata().map_err(|error| self.unreadable(error))?;
        if !before.is_file() {
            return Err(PackError::Changed(self.path.clone()));
        }
        if before.nlink() > 1 {
            let here = self.relative();
            let first = self.links.entry((before.dev(), before.ino())).or_insert_with(|| here.clone());
            if *first != here {
                let kind = Kind::Hardlink { target: first.clone() };
                let entry = self.entry(&before, kind)?;
                return self.emit(entry);
            }
        }
        if self.is_living() {
            return self.living_file(&file, &before);
        }
        let entry = self.entry(&before, Kind::File { size: before.size() })?;
        self.emit(entry)?;
        self.content(&file, &before)?;
        let after = file.metadata().map_err(|error| self.unreadable(error))?;
        if stamp(&before) == stamp(&after) { Ok(()) } else { Err(PackError::Changed(self.path.clone())) }
    }

    /// Sends a file as it was when it was opened, as far as it still has that content.
    fn living_file(&mut self, file: &File, before: &Metadata) -> Result<(), PackError> {
        if before.size() == 0 || is_made_up(&self.path) {
            return self.unsized_file(file, before);
        }
        let size = before.size();
        let entry = self.entry(before, Kind::File { size })?;
        self.emit(entry)?;
        let read = self.living_content(file, before)?;
        let after = file.metadata().map_err(|error| self.unreadable(error))?;
        let now = after.size();
        match (stamp(before) == stamp(&after), read) {
            (true, ContentRead::Whole) => Ok(()),
            (_, ContentRead::Short) => self
                .note(false, format!("shrank from {size} to {now} bytes while it was read: zeros stand for the rest")),
            _ if now > size => self.note(false, format!("grew while it was read: these are its first {size} bytes")),
            _ => self.note(false, "was written to while it was read".to_owned()),
        }
    }

    /// Sends a file whose size is meaningless, as those of `/proc` and `/sys`: all its content up to its end. An empty file
    /// that gets content only now stays empty.
    fn unsized_file(&mut self, file: &File, before: &Metadata) -> Result<(), PackError> {
        let mut content = Vec::new();
        file.take(LONGEST_UNSIZED + 1).read_to_end(&mut content).map_err(|error| self.unreadable(error))?;
        let after = file.metadata().map_err(|error| self.unreadable(error))?;
        let has_grown = before.size() == 0 && after.size() > 0;
        if has_grown {
            content.clear();
        }
        if content.len() as u64 > LONGEST_UNSIZED {
            return Err(PackError::Unfit(self.path.clone(), "a file of the kernel with more than 32 MiB"));
        }
        let size = content.len() as u64;
        let entry = self.entry(before, Kind::File { size })?;
        self.emit(entry)?;
        if size > 0 {
            self.encoder.data(0, size).and_then(|()| self.encoder.content(&content)).map_err(PackError::Write)?;
        }
        if has_grown { self.note(false, "was empty, and grew while it was read".to_owned()) } else { Ok(()) }
    }

    /// Sends the content of a file as far as it can be read, a piece at a time: every extent that is announced has to
    /// follow.
    fn living_content(&mut self, file: &File, metadata: &Metadata) -> Result<ContentRead, PackError> {
        let size = metadata.size();
        let mut at = 0;
        while let Some((start, end)) = self.next_extent(file, metadata, at)? {
            at = start;
            while at < end {
                let n = self.read_some(file, at, end)?;
                if n == 0 {
                    return Ok(ContentRead::Short);
                }
                self.encoder.data(at, n as u64).map_err(PackError::Write)?;
                self.encoder.content(&self.buffer[..n]).map_err(PackError::Write)?;
                at += n as u64;
            }
        }
        let is_cut = file.metadata().is_ok_and(|now| now.size() < size);
        Ok(if is_cut { ContentRead::Short } else { ContentRead::Whole })
    }

    fn read_some(&mut self, file: &File, at: u64, end: u64) -> Result<usize, PackError> {
        self.buffer.resize(CHUNK, 0);
        let most = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        file.read_at(&mut self.buffer[..most], at).map_err(|error| PackError::Read(self.path.clone(), error))
    }

    /// Returns the next range with data at or after `at`, in whole blocks.
    fn next_extent(&self, file: &File, metadata: &Metadata, at: u64) -> Result<Option<(u64, u64)>, PackError> {
        let size = metadata.size();
        if at >= size {
            return Ok(None);
        }
        if metadata.blocks() * 512 >= size {
            return Ok(Some((at, size)));
        }
        let found = sys::next_data(file, at).map_err(|error| self.unreadable(error))?;
        let block = BLOCK as u64;
        let whole = found.map(|(start, end)| ((start / block * block).max(at), end.next_multiple_of(block).min(size)));
        Ok(whole.filter(|(start, end)| start < end))
    }

    fn content(&mut self, file: &File, metadata: &Metadata) -> Result<(), PackError> {
        let mut at = 0;
        while let Some((start, end)) = self.next_extent(file, metadata, at)? {
            self.extent(file, start, end)?;
            at = end;
        }
        Ok(())
    }

    fn extent(&mut self, file: &File, start: u64, end: u64) -> Result<(), PackError> {
        self.encoder.data(start, end - start).map_err(PackError::Write)?;
        self.buffer.resize(CHUNK, 0);
        let mut at = start;
        while at < end {
            let n = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            file.read_exact_at(&mut self.buffer[..n], at).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => PackError::Changed(self.path.clone()),
                _ => PackError::Read(self.path.clone(), error),
            })?;
            for (offset, block) in (at..).step_by(BLOCK).zip(self.buffer[..n].chunks(BLOCK)) {
                if *block != ZEROS[..block.len()] {
                    self.packing.note_block(offset, block);
                }
            }
            self.encoder.content(&self.buffer[..n]).map_err(PackError::Write)?;
            at += n as u64;
        }
        Ok(())
    }

    fn emit(&mut self, mut entry: Entry) -> Result<(), PackError> {
        self.packing.adjust(&mut entry);
        self.packing.note_entry(&entry);
        self.encoder.entry(entry).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => {
                PackError::Unfit(self.path.clone(), "beyond the limits of names or attributes")
            }
            _ => PackError::Write(error),
        })
    }

    fn entry(&self, metadata: &Metadata, kind: Kind) -> Result<Entry, PackError> {
        let xattrs = xattrs(&self.path, is_portable).map_err(|error| self.unreadable(error))?;
        let mtime = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
        Ok(Entry { path: self.relative(), mode: bits(metadata.mode()), mtime, xattrs, kind })
    }

    fn relative(&self) -> Vec<u8> {
        self.path.strip_prefix(&self.root).unwrap_or(&self.path).as_os_str().as_bytes().to_vec()
    }

    /// Returns the error for an entry that cannot be read: one that was listed a moment ago and does not exist any more has
    /// changed.
    fn unreadable(&self, error: io::Error) -> PackError {
        let path = self.path.clone();
        match error.kind() {
            io::ErrorKind::NotFound => PackError::Changed(path),
            _ => PackError::Read(path, error),
        }
    }
}

/// Returns whether the kernel generates the files at a path that exists, or existed a moment ago.
fn is_made_up(path: &Path) -> bool {
    path.ancestors().find_map(|path| sys::is_made_up(path).ok()).unwrap_or(false)
}

/// How much of a file's content was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContentRead {
    Whole,
    /// The content ended before the size that the file had.
    Short,
}

/// Returns the size and modification time of a file, by which a change is recognised.
fn stamp(of: &Metadata) -> (u64, i64, i64) {
    (of.size(), of.mtime(), of.mtime_nsec())
}

fn bits(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or_default()
}

/// Returns whether an extended attribute means the same on another machine: no security label, and none of an overlay's own.
fn is_portable(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") || name == b"security.capability"
}

/// Returns the extended attributes with these names, sorted by name.
pub(super) fn xattrs(path: &Path, is_wanted: impl Fn(&[u8]) -> bool) -> io::Result<Vec<Xattr>> {
    let mut names = match sys::xattr_names(path) {
        // The file system has no extended attributes.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Vec::new(),
        other => other?,
    };
    names.retain(|name| is_wanted(name));
    names.sort_unstable();
    names.into_iter().map(|name| Ok(Xattr { value: sys::xattr(path, &name)?, name })).collect()
}

#[cfg(test)]
mod tests;
