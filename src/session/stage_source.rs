//! The source of a `copy`, `write` or `script` step, and its form as a file for the guest's hot-plugged block device.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::agent::pack::{PackError, PackHooks, pack};
use crate::copy_filter::CopyFilter;
use crate::digest::Sha256Digest;
use crate::progress::Progress;
use crate::project::GIT;
use crate::specfile;
use crate::wire::code::Code;
use crate::wire::tree::{BLOCK, Encoder, Entry, Head, Kind, Layout, Owner, Totals};

use super::GuestError;
use super::checkout::CheckoutModes;
use super::error::unwritable;

/// A source to send, and its destination. In the guest:
///
/// - a source that goes `into` a folder gets its own name there, and the folder is made where it is missing;
/// - otherwise `to` is the new name: a folder is merged with one that is there, a file is refused in its place;
/// - the `contents` of a folder are merged into `to`, which keeps its own metadata where it exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageSource {
    /// The content.
    pub what: StageContent,
    /// Absolute path in the guest.
    pub to: String,
    /// Whether `to` is a folder that the source is put into.
    pub into: bool,
    /// Owner and group of everything, resolved in the guest.
    pub owner: specfile::FileOwner,
    /// Permission bits of regular files; if `None`, those of the source, and `0644` for text.
    pub mode: Option<u32>,
}

/// Content of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageContent {
    /// A file or folder on this host. A symbolic link named here is followed; those within a folder are kept.
    Path {
        /// Path of the file or folder.
        from: PathBuf,
        /// Whether only the content of the folder is sent, without the folder itself.
        contents: bool,
        /// What of the folder is left out.
        filter: CopyFilter,
    },
    /// One regular file, named by [`StageSource::to`] alone: an existing folder of that name is an error.
    Text {
        /// Content of the file.
        content: Vec<u8>,
        /// Modification time of the file.
        mtime: SystemTime,
    },
}

/// Result of [`stage`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedStream {
    /// Size of the device, bytes; a multiple of 4096.
    pub bytes: u64,
    /// Number of files, folders and links.
    pub entries: u64,
    /// Size of the file contents, without holes, bytes.
    pub content: u64,
    /// Digest of the tree, see [`PackedTree::sha256`].
    pub sha256: Sha256Digest,
}

/// Summary of a tree that was packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedTree {
    /// Number of its entries and size of their contents.
    pub totals: Totals,
    /// Digest of every entry (path, mode, attributes) and of all content that is not zeros, as sent. Times are left out,
    /// since git keeps none, and a file with holes has the digest of one with zeros.
    pub sha256: Sha256Digest,
}

/// Writes the source as a tree stream into `file`, from its start, for [`super::Session::unpack_device`]. Uses constant
/// memory and blocks.
///
/// # Errors
/// When the source cannot be read, changes meanwhile, the file cannot be written, or the work is cancelled.
pub fn stage(source: &StageSource, file: &File, progress: &Progress<'_>) -> Result<StagedStream, GuestError> {
    let mut out = BufWriter::with_capacity(1 << 20, CountingFile { file, written: 0, progress });
    let staged = Path::new("the staged tree");
    let PackedTree { totals, sha256 } = source.write_to(&mut out, Layout::Aligned).map_err(|error| match error {
        PackError::Write(source) => unwritable(staged)(source),
        other => other.into(),
    })?;
    let written = out.into_inner().map_err(|error| unwritable(staged)(error.into_error()))?.written;
    let bytes = written.next_multiple_of(BLOCK as u64);
    file.set_len(bytes).map_err(unwritable(staged))?;
    Ok(StagedStream { bytes, entries: totals.entries, content: totals.bytes, sha256 })
}

impl StageSource {
    /// Creates the source of a `copy` step, with what the step leaves out.
    #[must_use]
    pub fn of_copy(copy: &specfile::Copy, filter: CopyFilter) -> Self {
        Self {
            what: StageContent::Path { from: copy.from.clone(), contents: copy.contents, filter },
            to: copy.to.clone(),
            into: copy.into,
            owner: copy.owner.clone(),
            mode: copy.mode,
        }
    }

    /// Returns the summary of what would be sent, without sending it.
    ///
    /// # Errors
    /// When something in it cannot be read or copied.
    pub fn examine(&self) -> Result<PackedTree, PackError> {
        self.write_to(io::sink(), Layout::Packed)
    }

    /// Writes the tree stream and returns its summary. The digest is that of the written bytes, so plan and build share one
    /// function.
    pub(crate) fn write_to(&self, out: impl Write, layout: Layout) -> Result<PackedTree, PackError> {
        let encoder = Encoder::new(out, layout, self.head()).map_err(PackError::Write)?;
        let mut form =
            CanonicalForm { mode: self.mode.map(permission_bits), checkout: None, filter: None, hash: Sha256::new() };
        let totals = match &self.what {
            StageContent::Path { from, filter, .. } => {
                form.filter = Some(filter);
                form.checkout = CheckoutModes::find(from);
                pack(from, encoder, &mut form)?
            }
            StageContent::Text { content, mtime } => {
                self.write_text(content, *mtime, encoder).map_err(PackError::Write)?
            }
        };
        Ok(PackedTree { totals, sha256: form.hash.into() })
    }

    fn write_text(&self, content: &[u8], mtime: SystemTime, mut encoder: Encoder<impl Write>) -> io::Result<Totals> {
        let size = content.len() as u64;
        let since = mtime.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        encoder.entry(Entry {
            path: Vec::new(),
            mode: permission_bits(self.mode.unwrap_or(0o644)),
            mtime: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
            xattrs: Vec::new(),
            kind: Kind::File { size },
        })?;
        if size > 0 {
            encoder.data(0, size)?;
            encoder.content(content)?;
        }
        encoder.finish()
    }

    fn head(&self) -> Head {
        let (name, contents) = match &self.what {
            StageContent::Path { from, contents, .. } => (from.file_name().unwrap_or_default(), *contents),
            StageContent::Text { .. } => ("".as_ref(), false),
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

/// Returns whether an entry of a copied folder is left out. Git's own files are not content, and may hold credentials of a
/// pipeline.
pub(crate) fn is_left_out(filter: Option<&CopyFilter>, path: &[u8], is_folder: bool) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    name == GIT.as_bytes() || filter.is_some_and(|filter| filter.leaves_out(path, is_folder))
}

/// A writer that digests a tree in its canonical form for keys, and sets the modes that are sent.
struct CanonicalForm<'f> {
    mode: Option<u16>,
    checkout: Option<CheckoutModes>,
    filter: Option<&'f CopyFilter>,
    hash: Sha256,
}

impl PackHooks for CanonicalForm<'_> {
    fn leaves_out(&self, path: &[u8], is_folder: bool) -> bool {
        is_left_out(self.filter, path, is_folder)
    }

    fn adjust(&self, entry: &mut Entry) {
        let is_file = matches!(entry.kind, Kind::File { .. } | Kind::Hardlink { .. });
        let is_folder = matches!(entry.kind, Kind::Dir {} | Kind::Leave {});
        entry.mode = match (self.mode, self.checkout) {
            (Some(mode), _) if is_file => mode,
            (_, Some(checkout)) if is_file => checkout.of_file(entry.mode),
            (_, Some(checkout)) if is_folder => checkout.of_folder_mode(entry.mode),
            _ => entry.mode,
        };
    }

    fn note_entry(&mut self, entry: &Entry) {
        let mut bytes = Vec::new();
        Entry { mtime: 0, ..entry.clone() }.put(&mut bytes);
        self.hash.update((bytes.len() as u64).to_le_bytes());
        self.hash.update(bytes);
    }

    fn note_block(&mut self, offset: u64, block: &[u8]) {
        self.hash.update(offset.to_le_bytes());
        self.hash.update(block);
    }
}

fn permission_bits(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or_default()
}

struct CountingFile<'a> {
    file: &'a File,
    written: u64,
    progress: &'a Progress<'a>,
}

impl Write for CountingFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.written += n as u64;
        self.progress.advance(n as u64).map_err(io::Error::other)?;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
