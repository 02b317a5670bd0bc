//! Writes a tree into the guest as `cp -a` would: it merges into folders, replaces files, and keeps all attributes that it
//! can.
//!
//! The host is trusted here, and so are the guest's own symbolic links: a parent folder that is a link is followed.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, BufRead};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, fchown, lchown, symlink};
use std::path::{Path, PathBuf};

use super::accounts::Accounts;
use super::{RequestFailure, sys};
use crate::wire::Class;
use crate::wire::tree::{BLOCK, Decoder, Entry, Head, Kind, LARGE, Owner, Totals, TreeItem};

const UNREADABLE: &str = "cannot read the tree";

/// Reads the whole tree and writes it. `progress` is called with the bytes of content written so far.
pub fn unpack(
    input: impl BufRead,
    accounts: &Accounts,
    progress: &mut dyn FnMut(u64),
) -> Result<Totals, RequestFailure> {
    let (mut decoder, head) = Decoder::new(input).map_err(RequestFailure::at(UNREADABLE))?;
    let mut place = UnpackTarget::new(head, accounts)?;
    let mut done = 0;
    loop {
        match decoder.next_item().map_err(RequestFailure::at(UNREADABLE))? {
            TreeItem::Entry(entry) => place.enter(&entry)?,
            TreeItem::Data { mut offset } => loop {
                let bytes = decoder.content().map_err(RequestFailure::at(UNREADABLE))?;
                let n = bytes.len();
                if n == 0 {
                    break;
                }
                place.write(offset, bytes)?;
                decoder.consume(n);
                offset += n as u64;
                done += n as u64;
                progress(done);
            },
            TreeItem::Note(_) => {}
            TreeItem::End(totals) => return place.close_file().map(|()| totals),
        }
    }
}

struct UnpackTarget {
    head: Head,
    owner: (u32, u32),
    base: PathBuf,
    /// For each folder around the current entry: whether it was created here, and did not exist before.
    made: Vec<bool>,
    open: Option<OpenFile>,
    temporary: u64,
}

/// The file being written.
struct OpenFile {
    file: File,
    direct: DirectFile,
    entry: Entry,
    /// The path of the file while it is incomplete, and its final path.
    written: PathBuf,
    path: PathBuf,
    end: u64,
    whole: bool,
}

/// The same file, opened for direct I/O.
enum DirectFile {
    Untried,
    Ready(File),
    /// The file system does not support direct I/O.
    Impossible,
}

impl UnpackTarget {
    fn new(head: Head, accounts: &Accounts) -> Result<Self, RequestFailure> {
        let root = Owner { user: "0".into(), group: Some("0".into()) };
        let owner = accounts.owner(head.owner.as_ref().unwrap_or(&root))?;
        Ok(Self { head, owner, base: PathBuf::new(), made: Vec::new(), open: None, temporary: 0 })
    }

    fn enter(&mut self, entry: &Entry) -> Result<(), RequestFailure> {
        self.close_file()?;
        if self.base.as_os_str().is_empty() {
            self.settle(entry)?;
        }
        let path = self.at(&entry.path);
        let done = match &entry.kind {
            Kind::File { .. } => self.open_file(&path, entry),
            Kind::Dir {} => make_folder(&path).map(|made| self.made.push(made)),
            Kind::Leave {} => self.leave(&path, entry),
            Kind::Symlink { target } => self.replace(&path, |path| symlink(OsStr::from_bytes(target), path), entry),
            Kind::Fifo {} => self.replace(&path, |path| sys::make_fifo(path, 0o600), entry),
            Kind::Hardlink { target } => link(&self.at(target), &path, &entry.kind),
            Kind::Socket {} | Kind::Device {} => Err(io::ErrorKind::Unsupported.into()),
        };
        done.map_err(|error| explain(&path, &entry.kind, &error))
    }

    /// Decides where the tree's root is written, from the request alone, and creates the folders above it.
    fn settle(&mut self, root: &Entry) -> Result<(), RequestFailure> {
        let to = Path::new(OsStr::from_bytes(&self.head.to));
        if !to.is_absolute() || !root.path.is_empty() {
            return Err(RequestFailure::new(Class::Request {}, "a tree without a place"));
        }
        let name = OsStr::from_bytes(&self.head.name);
        self.base = if self.head.into && !self.head.contents { to.join(name) } else { to.to_owned() };
        let is_folder = root.kind == Kind::Dir {};
        if !is_folder && self.base.is_dir() {
            return Err(self.refuse_place());
        }
        make_parents(self.base.parent().unwrap_or(Path::new("/")), self.owner)
    }

    /// Returns why a file cannot have its name in the guest: it is the name of a folder, or of a link to one.
    fn refuse_place(&self) -> RequestFailure {
        let place = self.base.display();
        let remedy = match (self.head.name.is_empty(), self.head.into) {
            (true, _) => "write to a file in it",
            (false, false) => "end `to` with a slash to copy into it",
            (false, true) => "copy to another name, or remove it in an earlier step",
        };
        RequestFailure::new(Class::Request {}, format!("{place} is a folder, which a file cannot replace; {remedy}"))
    }

    fn at(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.base.clone() } else { self.base.join(OsStr::from_bytes(path)) }
    }

    fn open_file(&mut self, path: &Path, entry: &Entry) -> io::Result<()> {
        let mut written = path.to_owned();
        let file = match create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                refuse_folder(path, &entry.kind)?;
                written = self.beside(path);
                create(&written)?
            }
            other => other?,
        };
        let entry = entry.clone();
        let path = path.to_owned();
        self.open = Some(OpenFile { file, direct: DirectFile::Untried, entry, written, path, end: 0, whole: false });
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), RequestFailure> {
        let Some(open) = &mut self.open else {
            return Err(RequestFailure::new(Class::Request {}, "content without a file"));
        };
        open.write(offset, bytes).map_err(RequestFailure::at(open.path.display()))
    }

    fn close_file(&mut self) -> Result<(), RequestFailure> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        open.finish(self.owner).map_err(RequestFailure::at(open.path.display()))
    }

    /// Applies the attributes of a folder's entry, if the folder was created here. An existing folder keeps its own:
    /// `/home/dev` must not become root's because something was copied into it. Only the folder that a copy names always
    /// gets the source's.
    fn leave(&mut self, path: &Path, entry: &Entry) -> io::Result<()> {
        let was_made = self.made.pop().unwrap_or(false);
        let is_named = entry.path.is_empty() && !self.head.contents;
        // A folder that is a link in the guest keeps its attributes.
        if !was_made && (!is_named || fs::symlink_metadata(path)?.is_symlink()) {
            return Ok(());
        }
        lchown(path, Some(self.owner.0), Some(self.owner.1))?;
        set_xattrs(path, entry)?;
        fs::set_permissions(path, Permissions::from_mode(u32::from(entry.mode)))?;
        sys::set_mtime(path, entry.mtime)
    }

    /// Creates something that is neither file nor folder, replacing what was there.
    fn replace(&mut self, path: &Path, make: impl Fn(&Path) -> io::Result<()>, entry: &Entry) -> io::Result<()> {
        let mut at = path.to_owned();
        match make(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                refuse_folder(path, &entry.kind)?;
                at = self.beside(path);
                make(&at)?;
            }
            other => other?,
        }
        lchown(&at, Some(self.owner.0), Some(self.owner.1))?;
        set_xattrs(&at, entry)?;
        if entry.kind == (Kind::Fifo {}) {
            fs::set_permissions(&at, Permissions::from_mode(u32::from(entry.mode)))?;
        }
        sys::set_mtime(&at, entry.mtime)?;
        if at == path { Ok(()) } else { fs::rename(&at, path) }
    }

    fn beside(&mut self, path: &Path) -> PathBuf {
        self.temporary += 1;
        path.with_file_name(format!(".kiln-{}-{}", std::process::id(), self.temporary))
    }
}

impl OpenFile {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.end = offset + bytes.len() as u64;
        let written = self.write_direct(offset, bytes)?;
        self.file.write_all_at(&bytes[written..], offset + written as u64)
    }

    /// Writes the part of `bytes` that direct I/O can write, and returns its length.
    fn write_direct(&mut self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let whole = bytes.len() / BLOCK * BLOCK;
        let aligned = bytes.as_ptr().align_offset(BLOCK) == 0 && offset.is_multiple_of(BLOCK as u64);
        if !aligned || (whole as u64) < LARGE {
            return Ok(0);
        }
        if matches!(self.direct, DirectFile::Untried) {
            let opened = OpenOptions::new().write(true).custom_flags(sys::O_DIRECT).open(&self.written);
            self.direct = opened.map_or(DirectFile::Impossible, DirectFile::Ready);
        }
        let DirectFile::Ready(file) = &self.direct else { return Ok(0) };
        match file.write_all_at(&bytes[..whole], offset) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.direct = DirectFile::Impossible;
                Ok(0)
            }
            other => other.map(|()| whole),
        }
    }

    fn finish(&mut self, owner: (u32, u32)) -> io::Result<()> {
        if let Kind::File { size } = self.entry.kind
            && size != self.end
        {
            self.file.set_len(size)?;
        }
        // Changing the owner clears setuid and capabilities, so it comes first.
        fchown(&self.file, Some(owner.0), Some(owner.1))?;
        set_xattrs(&self.written, &self.entry)?;
        self.file.set_permissions(Permissions::from_mode(u32::from(self.entry.mode)))?;
        sys::set_mtime(&self.written, self.entry.mtime)?;
        if self.written != self.path {
            fs::rename(&self.written, &self.path)?;
        }
        self.whole = true;
        Ok(())
    }
}

/// Removes an incomplete file, which must not be mistaken for a complete one.
impl Drop for OpenFile {
    fn drop(&mut self) {
        if !self.whole {
            let _ = fs::remove_file(&self.written);
        }
    }
}

/// Creates the missing parent folders of what is written. They get its owner, or a user could not add to the settings that
/// were written for them.
fn make_parents(folder: &Path, owner: (u32, u32)) -> Result<(), RequestFailure> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|path| !path.is_dir()).collect();
    for path in missing.into_iter().rev() {
        let made = fs::create_dir(path)
            .and_then(|()| lchown(path, Some(owner.0), Some(owner.1)))
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)));
        made.map_err(|error| explain(path, &Kind::Dir {}, &error))?;
    }
    Ok(())
}

/// Creates a file, private until its own mode is set.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Creates a folder, and returns whether it is new.
fn make_folder(path: &Path) -> io::Result<bool> {
    // The folder is private until its own mode is set, when all its content is there.
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        other => other.map(|()| true),
    }
}

fn link(target: &Path, path: &Path, kind: &Kind) -> io::Result<()> {
    match fs::hard_link(target, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            refuse_folder(path, kind)?;
            fs::remove_file(path)?;
            fs::hard_link(target, path)
        }
        other => other,
    }
}

/// Refuses to replace a folder, or to replace a link to one by anything but another link: a file `bin` in the place of
/// `/bin` would leave a guest without programs.
fn refuse_folder(path: &Path, kind: &Kind) -> io::Result<()> {
    let is_link = matches!(kind, Kind::Symlink { .. }) && fs::symlink_metadata(path)?.is_symlink();
    if path.is_dir() && !is_link { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(()) }
}

/// Describes an error. If something in the guest is in the way, the message names it and the remedy.
fn explain(path: &Path, kind: &Kind, error: &io::Error) -> RequestFailure {
    let place = path.display();
    let text = match (error.kind(), kind) {
        (io::ErrorKind::AlreadyExists, Kind::Dir {}) if path.is_symlink() => {
            format!("{place} is a symbolic link that leads to no folder, where a folder is needed")
        }
        (io::ErrorKind::AlreadyExists, Kind::Dir {}) => {
            format!("{place} is {}, where a folder is needed", describe(path))
        }
        (io::ErrorKind::IsADirectory, kind) => {
            format!("{place} is {}, which {} cannot replace", describe(path), name(kind))
        }
        _ => return RequestFailure::io(place, error),
    };
    RequestFailure::new(Class::Request {}, format!("{text}; remove it in an earlier step, or choose another name"))
}

fn describe(path: &Path) -> &'static str {
    match (path.is_symlink(), path.is_dir()) {
        (true, true) => "a symbolic link to a folder",
        (false, true) => "a folder",
        _ => "a file",
    }
}

fn name(kind: &Kind) -> &'static str {
    match kind {
        Kind::File { .. } | Kind::Hardlink { .. } => "a file",
        Kind::Dir {} | Kind::Leave {} => "a folder",
        Kind::Symlink { .. } => "a symbolic link",
        Kind::Fifo {} => "a named pipe",
        Kind::Socket {} => "a socket",
        Kind::Device {} => "a device",
    }
}

/// Sets the extended attributes of an entry. Attributes of users are left out if the file system does not support them, as
/// `cp -a` does; capabilities and access lists are never lost in silence.
fn set_xattrs(path: &Path, entry: &Entry) -> io::Result<()> {
    entry.xattrs.iter().try_for_each(|xattr| match sys::set_xattr(path, &xattr.name, &xattr.value) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported && xattr.name.starts_with(b"user.") => Ok(()),
        other => other,
    })
}
