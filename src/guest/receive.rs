//! Writes a tree that a hostile guest sent: strictly beneath one name, with tame modes and bounded in every way.
//!
//! No path is ever resolved by the kernel: each component is opened on its own, without following links. A link is only
//! made where it cannot lead out of the tree.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstatat, mkdirat};
use nix::unistd::{linkat, symlinkat};

use super::GuestError;
use super::error::printable;
use crate::wire::tree::{Decoder, Entry, Item, Kind, Totals};

/// How many entries a tree may have.
const MAX_ENTRIES: u64 = 1_000_000;
/// How many bytes the paths of all files may have together. The manifest, the sums and the verification hold each of them
/// at once, a dozen times in all: no guest is to take more than 64 MiB of the host's memory.
const MAX_PATHS: usize = 3 << 20;

/// What was written.
#[derive(Debug)]
pub struct Received {
    /// The regular files.
    pub files: Vec<PathBuf>,
    /// As counted here.
    pub totals: Totals,
}

/// Reads the tree to its end and writes it at `into`. Nothing may follow the end.
pub fn receive(input: impl BufRead, into: &Path, limit: u64) -> Result<Received, GuestError> {
    let (mut decoder, _) = Decoder::new(input).map_err(|error| broken(&error))?;
    let mut target = Target::new(into, limit)?;
    loop {
        match decoder.next_item().map_err(|error| broken(&error))? {
            Item::Entry(entry) => target.enter(&entry)?,
            Item::Data { mut offset } => loop {
                let bytes = decoder.content().map_err(|error| broken(&error))?;
                let n = bytes.len();
                if n == 0 {
                    break;
                }
                target.write(offset, bytes)?;
                decoder.consume(n);
                offset += n as u64;
            },
            Item::End(totals) => {
                target.close_file()?;
                return Ok(Received { files: target.files, totals });
            }
        }
    }
}

struct Target {
    into: PathBuf,
    above: OwnedFd,
    name: Vec<u8>,
    left: u64,
    limit: u64,
    entries: u64,
    paths: usize,
    files: Vec<PathBuf>,
    open: Option<Open>,
    /// The folder used last, by its path in the tree: entries of one folder come together.
    recent: Option<(Vec<u8>, OwnedFd)>,
}

struct Open {
    file: File,
    size: u64,
    mtime: i64,
    path: PathBuf,
}

impl Target {
    fn new(into: &Path, limit: u64) -> Result<Self, GuestError> {
        let failed = |source: io::Error| GuestError::Write { path: into.to_owned(), source };
        let parent = into.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(failed)?;
        let above =
            open(parent, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(|no| failed(no.into()))?;
        let name = into.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        Ok(Self {
            into: into.to_owned(),
            above,
            name: name.as_bytes().to_vec(),
            left: limit,
            limit,
            entries: 0,
            paths: 0,
            files: Vec::new(),
            open: None,
            recent: None,
        })
    }

    fn enter(&mut self, entry: &Entry) -> Result<(), GuestError> {
        self.close_file()?;
        self.entries += 1;
        if self.entries > 2 * MAX_ENTRIES {
            return Err(GuestError::Beyond(format!("{MAX_ENTRIES} entries")));
        }
        if self.entries == 1 && !entry.path.is_empty() {
            return Err(hostile(entry, "a tree without a root"));
        }
        match &entry.kind {
            Kind::File { size } => self.create(entry, *size),
            Kind::Dir {} => self.make_folder(entry),
            Kind::Leave {} => Ok(()),
            Kind::Symlink { target } => self.symlink(entry, target),
            Kind::Hardlink { target } => self.hardlink(entry, target),
            Kind::Fifo {} => Err(hostile(entry, "a named pipe")),
        }
    }

    fn create(&mut self, entry: &Entry, size: u64) -> Result<(), GuestError> {
        self.left = self.left.checked_sub(size).ok_or_else(|| GuestError::Beyond(format!("{} bytes", self.limit)))?;
        let path = self.remember(entry)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = self.at(&entry.path, |folder, name| openat(folder, name, flags, Mode::S_IRUSR | Mode::S_IWUSR));
        let fd = made.map_err(|no| refused(&path, no))?;
        let bits = if entry.mode & 0o111 == 0 { 0o644 } else { 0o755 };
        fchmod(&fd, Mode::from_bits_truncate(bits)).map_err(|no| refused(&path, no))?;
        self.open = Some(Open { file: fd.into(), size, mtime: entry.mtime, path });
        Ok(())
    }

    fn make_folder(&mut self, entry: &Entry) -> Result<(), GuestError> {
        let bits = Mode::from_bits_truncate(0o755);
        let made = self.at(&entry.path, |folder, name| {
            mkdirat(folder, name, bits)?;
            // Whatever the umask was.
            fchmodat(folder, name, bits, FchmodatFlags::FollowSymlink)
        });
        made.map_err(|no| refused(&self.shown(&entry.path), no))
    }

    /// Only leading `..` that stay within real folders, then names: however such links are chained, none leads out.
    fn symlink(&mut self, entry: &Entry, target: &[u8]) -> Result<(), GuestError> {
        let depth = entry.path.split(|byte| *byte == b'/').count() - 1;
        let mut parts = target.split(|byte| *byte == b'/').skip_while(|part| *part == b"..");
        let ups = target.split(|byte| *byte == b'/').take_while(|part| *part == b"..").count();
        if entry.path.is_empty() || ups > depth || parts.any(|part| matches!(part, b"" | b"." | b"..")) {
            return Err(hostile(entry, "a symbolic link that leads elsewhere"));
        }
        let made = self.at(&entry.path, |folder, name| symlinkat(OsStr::from_bytes(target), folder, name));
        made.map_err(|no| refused(&self.shown(&entry.path), no))
    }

    fn hardlink(&mut self, entry: &Entry, target: &[u8]) -> Result<(), GuestError> {
        let path = self.remember(entry)?;
        // Another name for a symbolic link could stand where it does lead out.
        let is_file = |folder: &OwnedFd, name: &OsStr| {
            let stat = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG)
        };
        if target.is_empty() || entry.path.is_empty() || !self.at(target, is_file).map_err(|no| refused(&path, no))? {
            return Err(hostile(entry, "a hard link to no file"));
        }
        let (from, from_name) = self.folder_of(target).map_err(|no| refused(&path, no))?;
        self.at(&entry.path, |folder, name| linkat(&from, from_name.as_slice(), folder, name, AtFlags::empty()))
            .map_err(|no| refused(&path, no))
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), GuestError> {
        let open = self.open.as_ref().ok_or_else(|| GuestError::Hostile("content without a file".into()))?;
        let failed = |source| GuestError::Write { path: open.path.clone(), source };
        open.file.write_all_at(bytes, offset).map_err(failed)
    }

    fn close_file(&mut self) -> Result<(), GuestError> {
        let Some(Open { file, size, mtime, path }) = self.open.take() else { return Ok(()) };
        let since = Duration::from_nanos(u64::try_from(mtime).unwrap_or_default());
        let finish = || file.set_len(size).and_then(|()| file.set_modified(SystemTime::UNIX_EPOCH + since));
        finish().map_err(|source| GuestError::Write { path, source })
    }

    fn remember(&mut self, entry: &Entry) -> Result<PathBuf, GuestError> {
        let path = self.shown(&entry.path);
        self.paths += path.as_os_str().len();
        if self.files.len() as u64 >= MAX_ENTRIES || self.paths > MAX_PATHS {
            return Err(GuestError::Beyond(format!("{MAX_ENTRIES} files, or {MAX_PATHS} bytes of their names")));
        }
        self.files.push(path.clone());
        Ok(path)
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.into.clone() } else { self.into.join(OsStr::from_bytes(path)) }
    }

    /// Calls with the folder that holds this path, and the name in it.
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

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.iter().rposition(|byte| *byte == b'/').map_or((b"", path), |at| (&path[..at], &path[at + 1..]))
}

fn hostile(entry: &Entry, what: &str) -> GuestError {
    let path = String::from_utf8_lossy(&entry.path);
    GuestError::Hostile(format!("`{}` is {what}", printable(&path)))
}

/// Most errors mean that the tree contradicts itself; a full disk does not.
fn refused(path: &Path, error: nix::Error) -> GuestError {
    use nix::Error;
    match error {
        Error::EEXIST | Error::ENOENT | Error::ENOTDIR | Error::ELOOP | Error::EISDIR | Error::EMLINK => {
            GuestError::Hostile(format!("{}: {error}", printable(&path.to_string_lossy())))
        }
        other => GuestError::Write { path: path.to_owned(), source: other.into() },
    }
}

fn broken(error: &io::Error) -> GuestError {
    GuestError::Hostile(error.to_string())
}
