//! All calls by which the store and the cache change the file system, in one place, so that interruptions between two of
//! them can be tested; the locks of files and folders; and files and folders that appear under their names complete or not
//! at all.
//!
//! Modes are set explicitly, independently of the umask. In tests, an [`Fs`] can be made to die after so many calls, to fail
//! at one of them, or to record them all, so that a power failure can be simulated.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tempfile::NamedTempFile;

pub(crate) mod copy_range;
mod draft;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use draft::DraftFolder;

/// The write side of the file system.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fs {
    #[cfg(test)]
    pub(crate) faults: std::sync::Arc<testing::faults::Faults>,
}

/// A call that is about to be made.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(test), expect(dead_code, reason = "only tests look at calls"))]
enum Call<'a> {
    Lock(&'a Path),
    MakeFolder(&'a Path, u32),
    Create(&'a Path),
    Write(&'a File),
    Mode(&'a File, u32),
    Sync(&'a File),
    Link(&'a Path, &'a Path),
    Rename(&'a Path, &'a Path),
    Exchange(&'a Path, &'a Path),
    RemoveFile(&'a Path),
    RemoveFolder(&'a Path),
}

impl Fs {
    /// Makes a call. In tests it may fail instead.
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "faults are for tests"))]
    fn call<T>(&self, call: Call<'_>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        #[cfg(test)]
        return self.faults.call(call, act);
        #[cfg(not(test))]
        {
            let _ = call;
            act()
        }
    }

    /// Returns a unique name: 64 random bits from the standard library's hasher seed, in hex.
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "recorded names are the same every time"))]
    pub(crate) fn fresh_name(&self) -> String {
        #[cfg(test)]
        if let Some(number) = self.faults.number() {
            return format!("{number:016x}");
        }
        format!("{:016x}", RandomState::new().build_hasher().finish())
    }

    /// Creates a folder with exactly this mode; an existing folder keeps its own. A link to a folder is an error.
    pub(crate) fn ensure_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        match self.create_dir(path, mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.symlink_metadata()?.is_dir() => Ok(()),
            other => other,
        }
    }

    /// Creates a folder and the missing folders above it, each durable in its parent.
    pub(crate) fn ensure_path(&self, path: &Path, mode: u32) -> io::Result<()> {
        let Some(parent) = path.parent().filter(|_| !path.is_dir()) else { return Ok(()) };
        self.ensure_path(parent, mode)?;
        self.ensure_dir(path, mode)?;
        self.sync_dir(parent)
    }

    /// Creates a new folder with exactly this mode.
    pub(crate) fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.call(Call::MakeFolder(path, mode), || {
            fs::DirBuilder::new().mode(mode).create(path)?;
            fs::set_permissions(path, Permissions::from_mode(mode))
        })
    }

    /// Opens a lock file, created if missing.
    pub(crate) fn open_lock(&self, path: &Path) -> io::Result<File> {
        let no_follow = nix::fcntl::OFlag::O_NOFOLLOW.bits();
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(0o600).custom_flags(no_follow);
        self.call(Call::Lock(path), || options.open(path))
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        self.call(Call::Create(path), || options.create_new(true).write(true).mode(0o600).open(path))
    }

    /// Writes a new file and makes it durable.
    pub(crate) fn write_new(&self, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
        let file = self.create(path)?;
        self.call(Call::Write(&file), || (&file).write_all(content))?;
        self.seal(&file, mode)
    }

    /// Copies a file to a new one and makes it durable.
    pub(crate) fn copy_new(&self, from: &Path, to: &Path, mode: u32) -> io::Result<()> {
        let mut from = File::open(from)?;
        let to = self.create(to)?;
        self.call(Call::Write(&to), || io::copy(&mut from, &mut &to))?;
        self.seal(&to, mode)
    }

    /// Gives an open file or folder its final mode and makes its content durable. Never retried: after a failed fsync the
    /// kernel may have dropped the pages, and a second one would succeed wrongly.
    pub(crate) fn seal(&self, file: &File, mode: u32) -> io::Result<()> {
        self.call(Call::Mode(file, mode), || file.set_permissions(Permissions::from_mode(mode)))?;
        self.sync(file)
    }

    /// Makes the content of a file or the entries of a folder durable.
    pub(crate) fn sync(&self, file: &File) -> io::Result<()> {
        self.call(Call::Sync(file), || file.sync_all())
    }

    /// Makes the entries of a folder durable.
    pub(crate) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.sync(&File::open(path)?)
    }

    /// Gives a file a second name.
    pub(crate) fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(Call::Link(from, to), || fs::hard_link(from, to))
    }

    /// Renames a file or folder. A folder never replaces one that is not empty (rename(2), ENOTEMPTY).
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(Call::Rename(from, to), || fs::rename(from, to))
    }

    /// Swaps two names in one step. Fails with [`io::ErrorKind::Unsupported`] if the file system or kernel cannot.
    pub(crate) fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        self.call(Call::Exchange(a, b), || match renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE) {
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => Err(io::ErrorKind::Unsupported.into()),
            other => Ok(other?),
        })
    }

    /// Removes a file or a whole folder; a missing one is not an error.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        match self.remove_found(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn remove_found(&self, path: &Path) -> io::Result<()> {
        if !path.symlink_metadata()?.is_dir() {
            return self.call(Call::RemoveFile(path), || fs::remove_file(path));
        }
        for entry in fs::read_dir(path)? {
            self.remove(&entry?.path())?;
        }
        self.call(Call::RemoveFolder(path), || fs::remove_dir(path))
    }

    /// Removes a folder if it is empty; a missing one is not an error.
    pub(crate) fn remove_if_empty(&self, path: &Path) -> io::Result<()> {
        use io::ErrorKind::{DirectoryNotEmpty, NotFound};
        match self.call(Call::RemoveFolder(path), || fs::remove_dir(path)) {
            Err(error) if matches!(error.kind(), DirectoryNotEmpty | NotFound) => Ok(()),
            other => other,
        }
    }
}

/// Handling of an existing file that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnConflict {
    /// Fail before anything is written.
    Refuse,
    /// Overwrite it.
    Replace,
}

/// Creates a file under a temporary name in the folder of `path`. It is removed when it is dropped, unless [`publish`] has
/// renamed it.
pub(crate) fn create_beside(path: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(".kiln-").tempfile_in(folder_of(path))
}

/// Gives a complete file its mode and its final name, durably and in one step: readers see the old file or the new one.
pub(crate) fn publish(file: NamedTempFile, path: &Path, mode: u32, conflict: OnConflict) -> io::Result<()> {
    let fs = Fs::default();
    fs.seal(file.as_file(), mode)?;
    match conflict {
        OnConflict::Refuse => file.persist_noclobber(path)?,
        OnConflict::Replace => file.persist(path)?,
    };
    fs.sync_dir(folder_of(path))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads a file, or the first `limit` bytes of a longer one.
pub(crate) fn read_up_to(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns whether a path still names this open file or folder.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(held), Ok(found)) => (held.dev(), held.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

/// An flock(2) of a file or folder, released when dropped, or by the kernel with its process.
///
/// Closing the file would not do: a child that another thread has just forked holds a copy until it executes, and with it
/// the lock.
#[derive(Debug)]
pub(crate) struct FileLock(File);

impl FileLock {
    /// Takes the exclusive lock, and waits for it.
    pub(crate) fn exclusive(file: File) -> io::Result<Self> {
        retry(|| file.lock())?;
        Ok(Self(file))
    }

    /// Takes a shared lock, and waits for it.
    pub(crate) fn shared(file: File) -> io::Result<Self> {
        retry(|| file.lock_shared())?;
        Ok(Self(file))
    }

    /// Takes the exclusive lock, or fails with [`io::ErrorKind::WouldBlock`].
    pub(crate) fn try_exclusive(file: File) -> io::Result<Self> {
        file.try_lock()?;
        Ok(Self(file))
    }

    /// Takes a shared lock, or fails with [`io::ErrorKind::WouldBlock`].
    pub(crate) fn try_shared(file: File) -> io::Result<Self> {
        file.try_lock_shared()?;
        Ok(Self(file))
    }

    /// Returns the locked file or folder.
    pub(crate) fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Cannot fail on an open file.
        let _ = self.0.unlock();
    }
}

/// Takes the exclusive lock of an open file if it is free. It belongs to the file: a [`FileLock`] of it can be made at once.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Repeats a call of flock(2) that was interrupted by a signal.
fn retry(lock: impl Fn() -> io::Result<()>) -> io::Result<()> {
    loop {
        match lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
