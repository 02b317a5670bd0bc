//! Writes a tree that a hostile guest sent: strictly beneath one name, with restricted modes and bounded in every way.
//!
//! No path is ever resolved by the kernel: each component is opened on its own, without following links. A link is only
//! created where it cannot lead out of the tree.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, mkdirat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{linkat, symlinkat};

use super::GuestError;
use super::error::{printable, unwritable};
use crate::wire::tree::limits::{folders_above, inner_target};
use crate::wire::tree::{Decoder, Entry, Kind, Totals, TreeItem, TreeNote};

/// Number of files, folders and links that an image may have fetched in all: the limit of a version in the store, less the
/// files that kiln itself puts there.
pub const MOST_ENTRIES: u64 = 99_000;
/// Total length of their names, bytes. The manifest, the sums and the verification hold each of them at once, a dozen times
/// in all: no guest may use more than 64 MiB of the host's memory.
pub const MOST_NAMES: usize = 3 << 20;
/// Number of left-out entries that are named.
const MOST_NAMED: usize = 20;

/// What an image may still fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchLimits {
    /// Size of this tree, holes included, bytes.
    pub bytes: u64,
    /// Number of files, folders and links.
    pub entries: u64,
    /// Total length of their names, which begin with that of the tree, bytes.
    pub names: usize,
}

impl FetchLimits {
    /// Returns the limits of an image that has fetched nothing, with this size limit for each tree.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self { bytes, entries: MOST_ENTRIES, names: MOST_NAMES }
    }

    /// Returns the limits that remain after this tree.
    #[must_use]
    pub fn besides(self, tree: &FetchedTree) -> Self {
        let entries = self.entries.saturating_sub(tree.entries);
        Self { bytes: self.bytes, entries, names: self.names.saturating_sub(tree.names) }
    }
}

/// A path to fetch, and its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRequest {
    /// Absolute path in the guest.
    pub from: String,
    /// Target folder on this host.
    pub root: PathBuf,
    /// Path in that folder; must not exist. Folders above it are created.
    pub to: PathBuf,
    /// Limits of the fetch.
    pub limits: FetchLimits,
}

/// Result of a fetch, by paths in [`FetchRequest::root`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FetchedTree {
    /// The regular files.
    pub files: Vec<String>,
    /// The symbolic links with their targets, all of which are in the tree.
    pub links: BTreeMap<String, String>,
    /// The first entries that were left out, a sentence for each.
    pub left_out: Vec<String>,
    /// Number of entries that were left out.
    pub left_out_count: u64,
    /// The first differences from the tree in the guest, a sentence for each.
    pub notes: Vec<String>,
    entries: u64,
    names: usize,
}

impl FetchedTree {
    /// Returns the paths of files and links.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.iter().chain(self.links.keys()).map(String::as_str)
    }
}

/// Reads the tree to its end and writes it. Data behind the end is an error. Both a fetch and its repetition from the step
/// cache use this function, so they produce the same tree.
pub fn receive(input: impl BufRead, request: &FetchRequest) -> Result<(FetchedTree, Totals), GuestError> {
    let (mut decoder, _) = Decoder::new(input).map_err(|error| broken(&error))?;
    let mut target = ReceiveTarget::new(request)?;
    loop {
        match decoder.next_item().map_err(|error| broken(&error))? {
            TreeItem::Entry(entry) => target.enter(&entry)?,
            TreeItem::Data { mut offset } => loop {
                let bytes = decoder.content().map_err(|error| broken(&error))?;
                let n = bytes.len();
                if n == 0 {
                    break;
                }
                target.write(offset, bytes)?;
                decoder.consume(n);
                offset += n as u64;
            },
            TreeItem::Note(note) => target.note(&note)?,
            TreeItem::End(totals) => {
                target.close_file()?;
                return Ok((target.tree, totals));
            }
        }
    }
}

struct ReceiveTarget<'a> {
    request: &'a FetchRequest,
    into: PathBuf,
    above: OwnedFd,
    name: Vec<u8>,
    left: u64,
    records: u64,
    tree: FetchedTree,
    open: Option<ReceivedFile>,
    /// The last used folder, by its path in the tree: entries of one folder follow each other.
    recent: Option<(Vec<u8>, OwnedFd)>,
}

struct ReceivedFile {
    file: File,
    size: u64,
    mtime: i64,
    path: PathBuf,
}

impl<'a> ReceiveTarget<'a> {
    fn new(request: &'a FetchRequest) -> Result<Self, GuestError> {
        let into = request.root.join(&request.to);
        let parent = into.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(unwritable(&into))?;
        let above = open(parent, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        let above = above.map_err(io::Error::from).map_err(unwritable(&into))?;
        let name = into.file_name().ok_or_else(|| unwritable(&into)(io::ErrorKind::InvalidInput.into()))?;
        let name = name.as_bytes().to_vec();
        let left = request.limits.bytes;
        let tree = FetchedTree::default();
        Ok(Self { request, into, above, name, left, records: 0, tree, open: None, recent: None })
    }

    fn enter(&mut self, entry: &Entry) -> Result<(), GuestError> {
        self.close_file()?;
        self.count_record()?;
        if self.records == 1 && !entry.path.is_empty() {
            return Err(hostile(entry, "a tree without a root"));
        }
        match &entry.kind {
            Kind::File { size } => self.create(entry, *size),
            Kind::Dir {} => self.make_folder(entry),
            Kind::Leave {} => self.leave_folder(entry),
            Kind::Symlink { target } => self.symlink(entry, target),
            Kind::Hardlink { target } => self.hardlink(entry, target),
            Kind::Fifo {} => self.leave_out(entry, "a named pipe"),
            Kind::Socket {} => self.leave_out(entry, "a socket"),
            Kind::Device {} => self.leave_out(entry, "a device"),
        }
    }

    /// Counts a record against the limit. A folder has two records.
    fn count_record(&mut self) -> Result<(), GuestError> {
        self.records += 1;
        if self.records > 2 * MOST_ENTRIES { Err(too_many()) } else { Ok(()) }
    }

    /// Records an entry that is neither a file nor a folder and cannot be kept. Fails if it is the whole tree.
    fn leave_out(&mut self, entry: &Entry, what: &str) -> Result<(), GuestError> {
        if entry.path.is_empty() {
            let path = printable(&self.request.from);
            return Err(GuestError::Unkept { path, why: format!("it is {what}") });
        }
        self.name_left_out(&entry.path, what);
        Ok(())
    }

    fn name_left_out(&mut self, path: &[u8], what: &str) {
        self.tree.left_out_count += 1;
        if self.tree.left_out.len() < MOST_NAMED {
            let path = String::from_utf8_lossy(path);
            self.tree.left_out.push(printable(&format!("{path}: {what}")));
        }
    }

    /// Records the sender's note about a file.
    fn note(&mut self, note: &TreeNote) -> Result<(), GuestError> {
        self.count_record()?;
        if note.is_left_out {
            self.name_left_out(&note.path, &note.text);
        } else if self.tree.notes.len() < MOST_NAMED {
            let path = String::from_utf8_lossy(&note.path);
            let name = if path.is_empty() { &*self.request.from } else { &*path };
            self.tree.notes.push(printable(&format!("{name} {}", note.text)));
        }
        Ok(())
    }

    fn create(&mut self, entry: &Entry, size: u64) -> Result<(), GuestError> {
        let left = self.left.checked_sub(size);
        self.left = left.ok_or_else(|| GuestError::Beyond(format!("{} bytes", self.request.limits.bytes)))?;
        let path = self.shown(&entry.path);
        let name = self.count(entry)?;
        self.tree.files.push(name);
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = self.at(&entry.path, |folder, name| openat(folder, name, flags, Mode::S_IRUSR | Mode::S_IWUSR));
        let fd = made.map_err(|no| refused(&path, no))?;
        let bits = if entry.mode & 0o111 == 0 { 0o644 } else { 0o755 };
        fchmod(&fd, Mode::from_bits_truncate(bits)).map_err(|no| refused(&path, no))?;
        self.open = Some(ReceivedFile { file: fd.into(), size, mtime: entry.mtime, path });
        Ok(())
    }

    fn make_folder(&mut self, entry: &Entry) -> Result<(), GuestError> {
        self.count(entry)?;
        let bits = Mode::from_bits_truncate(0o755);
        let made = self.at(&entry.path, |folder, name| {
            mkdirat(folder, name, bits)?;
            // Set explicitly, independently of the umask.
            fchmodat(folder, name, bits, FchmodatFlags::FollowSymlink)
        });
        made.map_err(|no| refused(&self.shown(&entry.path), no))
    }

    /// Sets the time of a folder, after its content was written.
    fn leave_folder(&mut self, entry: &Entry) -> Result<(), GuestError> {
        let made = self.at(&entry.path, |folder, name| set_time(folder, name, entry.mtime));
        made.map_err(|no| refused(&self.shown(&entry.path), no))
    }

    fn symlink(&mut self, entry: &Entry, target: &[u8]) -> Result<(), GuestError> {
        if entry.path.is_empty() {
            return Err(hostile(entry, "a link, which an agent would have followed"));
        }
        let text = String::from_utf8_lossy(target);
        let kept = inner_target(&entry.path, &self.relative(&entry.path, target)).map(String::from_utf8);
        let Some(Ok(kept)) = kept else {
            return self.leave_out(entry, &format!("a link to {text}, which leads out of what is fetched"));
        };
        let name = self.count(entry)?;
        let made = self.at(&entry.path, |folder, name| {
            symlinkat(kept.as_str(), folder, name)?;
            set_time(folder, name, entry.mtime)
        });
        made.map_err(|no| refused(&self.shown(&entry.path), no))?;
        self.tree.links.insert(name, kept);
        Ok(())
    }

    /// Returns a link's target, relative to the link's folder if it is an absolute path of something that is fetched as
    /// well.
    fn relative(&self, path: &[u8], target: &[u8]) -> Vec<u8> {
        let root = self.request.from.trim_end_matches('/').as_bytes();
        let depth = folders_above(path);
        match target.strip_prefix(root).and_then(|rest| rest.strip_prefix(b"/")) {
            Some(rest) => [b"../".repeat(depth).as_slice(), rest].concat(),
            None => target.to_vec(),
        }
    }

    fn hardlink(&mut self, entry: &Entry, target: &[u8]) -> Result<(), GuestError> {
        let path = self.shown(&entry.path);
        let name = self.count(entry)?;
        self.tree.files.push(name);
        // Another name for a symbolic link could be in a place from where it does lead out.
        if target.is_empty() || entry.path.is_empty() || !self.at(target, is_file).map_err(|no| refused(&path, no))? {
            return Err(hostile(entry, "a hard link to no file"));
        }
        let (from, from_name) = self.folder_of(target).map_err(|no| refused(&path, no))?;
        self.at(&entry.path, |folder, name| linkat(&from, from_name.as_slice(), folder, name, AtFlags::empty()))
            .map_err(|no| refused(&path, no))
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), GuestError> {
        let open = self.open.as_ref().ok_or_else(|| GuestError::Hostile("content without a file".into()))?;
        open.file.write_all_at(bytes, offset).map_err(unwritable(&open.path))
    }

    fn close_file(&mut self) -> Result<(), GuestError> {
        let Some(ReceivedFile { file, size, mtime, path }) = self.open.take() else { return Ok(()) };
        file.set_len(size).map_err(unwritable(&path))?;
        let timed = futimens(&file, &TimeSpec::UTIME_OMIT, &time_of(mtime));
        timed.map_err(io::Error::from).map_err(unwritable(&path))
    }

    /// Counts an entry against the limits, and returns its path in the root folder.
    fn count(&mut self, entry: &Entry) -> Result<String, GuestError> {
        let inside = Path::new(OsStr::from_bytes(&entry.path));
        let path = if entry.path.is_empty() { self.request.to.clone() } else { self.request.to.join(inside) };
        let name = path.into_os_string().into_string().map_err(|path| GuestError::Unkept {
            path: printable(&path.to_string_lossy()),
            why: "its name is not UTF-8".into(),
        })?;
        self.tree.entries += 1;
        self.tree.names += name.len();
        if self.tree.entries > self.request.limits.entries {
            return Err(too_many());
        }
        if self.tree.names > self.request.limits.names {
            let most = format!("names of {MOST_NAMES} bytes together, which is all that an image can keep");
            return Err(GuestError::Beyond(most));
        }
        Ok(name)
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.into.clone() } else { self.into.join(OsStr::from_bytes(path)) }
    }

    /// Calls `call` with the folder of this path, and the name in it.
    fn at<T>(&mut self, path: &[u8], call: impl FnOnce(&OwnedFd, &OsStr) -> nix::Result<T>) -> nix::Result<T> {
        if path.is_empty() {
            return call(&self.above, OsStr::from_bytes(&self.name));
        }
        let (parent, name) = split(path);
        if self.recent.as_ref().is_none_or(|(recent, _)| recent != parent) {
            let (folder, _) = self.folder_of(path)?;
            self.recent = Some((parent.to_vec(), folder));
        }
        self.recent.as_ref().map_or(Err(nix::Error::ENOENT), |(_, folder)| call(folder, OsStr::from_bytes(name)))
    }

    fn folder_of(&self, path: &[u8]) -> nix::Result<(OwnedFd, Vec<u8>)> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let (parent, name) = split(path);
        let mut folder = openat(&self.above, self.name.as_slice(), flags, Mode::empty())?;
        for part in parent.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            folder = openat(&folder, part, flags, Mode::empty())?;
        }
        Ok((folder, name.to_vec()))
    }
}

/// Returns whether an entry of a folder is a regular file, and follows no link.
fn is_file(folder: &OwnedFd, name: &OsStr) -> nix::Result<bool> {
    let stat = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG)
}

/// Sets the modification time of an entry of a folder, and follows no link.
fn set_time(folder: &OwnedFd, name: &OsStr, mtime: i64) -> nix::Result<()> {
    utimensat(folder, name, &TimeSpec::UTIME_OMIT, &time_of(mtime), UtimensatFlags::NoFollowSymlink)
}

/// Returns a guest's time; one before 1970 becomes 1970.
fn time_of(mtime: i64) -> TimeSpec {
    TimeSpec::from_duration(Duration::from_nanos(u64::try_from(mtime).unwrap_or_default()))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.iter().rposition(|byte| *byte == b'/').map_or((b"", path), |at| (&path[..at], &path[at + 1..]))
}

fn too_many() -> GuestError {
    GuestError::Beyond(format!("{MOST_ENTRIES} files, folders and links, which is all that an image can keep"))
}

fn hostile(entry: &Entry, what: &str) -> GuestError {
    let path = String::from_utf8_lossy(&entry.path);
    GuestError::Hostile(format!("`{}` is {what}", printable(&path)))
}

/// Converts an error. Most errors mean that the tree contradicts itself; a full disk does not.
fn refused(path: &Path, error: nix::Error) -> GuestError {
    use nix::Error;
    match error {
        Error::EEXIST | Error::ENOENT | Error::ENOTDIR | Error::ELOOP | Error::EISDIR | Error::EMLINK => {
            GuestError::Hostile(format!("{}: {error}", printable(&path.to_string_lossy())))
        }
        other => unwritable(path)(other.into()),
    }
}

fn broken(error: &io::Error) -> GuestError {
    GuestError::Hostile(error.to_string())
}
