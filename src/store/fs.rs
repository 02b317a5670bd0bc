//! Every call by which the store changes the file system, so that what can happen between two of them is tested.
//!
//! Modes are set explicitly: the umask has no say in what a store looks like. Under test an [`Fs`] can be told to
//! "die" after so many calls: from then on every call fails and changes nothing, as if the process were killed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// The write side of the file system.
#[derive(Debug, Clone, Default)]
pub(super) struct Fs {
    #[cfg(test)]
    pub(super) faults: std::sync::Arc<faults::Faults>,
}

impl Fs {
    /// A place where a kill can hit. Nothing outside of tests.
    #[cfg_attr(not(test), expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "fail points are for tests"))]
    fn point(&self) -> io::Result<()> {
        #[cfg(test)]
        self.faults.point()?;
        Ok(())
    }

    /// Makes a folder with exactly this mode; one that is there already keeps its own.
    pub(super) fn ensure_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        match self.create_dir(path, mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other,
        }
    }

    /// Makes a new folder with exactly this mode.
    pub(super) fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.point()?;
        fs::DirBuilder::new().mode(mode).create(path)?;
        fs::set_permissions(path, Permissions::from_mode(mode))
    }

    /// Opens a lock file, made if missing.
    pub(super) fn open_lock(&self, path: &Path) -> io::Result<File> {
        self.point()?;
        let no_follow = nix::fcntl::OFlag::O_NOFOLLOW.bits();
        OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(no_follow).open(path)
    }

    /// Writes a new file and makes it durable.
    pub(super) fn write_new(&self, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
        self.point()?;
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
        self.point()?;
        file.write_all(content)?;
        self.seal(&file, mode)
    }

    /// Gives an open file or folder its final mode and makes its content durable. Never retried: after a failed fsync the
    /// kernel may have dropped the pages, and a second one would lie.
    pub(super) fn seal(&self, file: &File, mode: u32) -> io::Result<()> {
        self.point()?;
        file.set_permissions(Permissions::from_mode(mode))?;
        self.point()?;
        file.sync_all()
    }

    /// Makes the entries of a folder durable.
    pub(super) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.point()?;
        File::open(path)?.sync_all()
    }

    /// Renames. A folder never takes the place of one that is not empty (rename(2), ENOTEMPTY).
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.point()?;
        fs::rename(from, to)
    }

    /// Swaps two names in one step. [`io::ErrorKind::Unsupported`] where the file system or kernel cannot.
    pub(super) fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        self.point()?;
        #[cfg(test)]
        self.faults.exchange()?;
        match renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE) {
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => Err(io::ErrorKind::Unsupported.into()),
            other => Ok(other?),
        }
    }

    /// Removes a file or a whole folder; one that is gone already is fine.
    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        self.point()?;
        let result = match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Removes a folder if it is empty.
    pub(super) fn remove_if_empty(&self, path: &Path) -> io::Result<()> {
        self.point()?;
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
pub(super) mod faults {
    //! How a test makes the write side fail.

    use std::io;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// Calls left before the simulated kill, and what the file system cannot do.
    #[derive(Debug)]
    pub(crate) struct Faults {
        left: AtomicUsize,
        lacks_exchange: AtomicBool,
    }

    impl Default for Faults {
        fn default() -> Self {
            Self { left: AtomicUsize::new(usize::MAX), lacks_exchange: AtomicBool::new(false) }
        }
    }

    impl Faults {
        /// The kill comes at call number `calls`, from 0.
        pub(crate) fn die_after(&self, calls: usize) {
            self.left.store(calls, Ordering::SeqCst);
        }

        /// From now on a file system without `RENAME_EXCHANGE`.
        pub(crate) fn lack_exchange(&self) {
            self.lacks_exchange.store(true, Ordering::SeqCst);
        }

        pub(super) fn point(&self) -> io::Result<()> {
            self.left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                .map(drop)
                .map_err(|_| io::Error::other("simulated kill"))
        }

        pub(super) fn exchange(&self) -> io::Result<()> {
            if self.lacks_exchange.load(Ordering::SeqCst) { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
        }
    }
}
