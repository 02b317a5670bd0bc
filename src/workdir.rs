//! A build's scratch folder: private, gone when the build ends, and swept up by the next build if this one is killed.
//!
//! Its owner keeps an exclusive flock(2) on each folder. The kernel drops the lock with its holder, so a folder whose lock can
//! be taken belongs to nobody and may be removed; no pid file can go stale. Making and sweeping take turns, by a lock on the
//! parent: nobody ever sees a folder that its maker has not locked yet.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

const PREFIX: &str = "build-";

/// A private scratch folder. Dropping it removes it.
#[derive(Debug)]
pub struct Workdir {
    folder: tempfile::TempDir,
    // Held until the folder is removed: fields drop in order, and the folder comes first.
    _lock: Flock<File>,
}

impl Workdir {
    /// Makes a folder below `parent`, mode 0700, after removing those that dead builds left there.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn create(parent: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        let _turn = lock(parent, FlockArg::LockExclusive)?;
        clear(parent)?;
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        let lock = lock(folder.path(), FlockArg::LockExclusiveNonblock)?;
        Ok(Self { folder, _lock: lock })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file in the folder.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Workdir {
    /// What the name of a folder begins with that is left to the user.
    pub const KEPT: &str = "kept-";

    /// Leaves the folder to the user, under a name that is not swept up.
    #[must_use]
    pub fn keep(self) -> PathBuf {
        let path = self.folder.keep();
        let name = path.file_name().unwrap_or_default().to_string_lossy().replacen(PREFIX, Self::KEPT, 1);
        let kept = path.with_file_name(name);
        if fs::rename(&path, &kept).is_ok() { kept } else { path }
    }
}

/// Removes the folders whose owners are dead.
///
/// # Errors
/// When `parent` cannot be read or locked. A folder that cannot be removed is left for the next time.
pub fn sweep(parent: &Path) -> io::Result<()> {
    let _turn = lock(parent, FlockArg::LockExclusive)?;
    clear(parent)
}

fn clear(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if ours && lock(&entry.path(), FlockArg::LockExclusiveNonblock).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

fn lock(folder: &Path, how: FlockArg) -> io::Result<Flock<File>> {
    Flock::lock(File::open(folder)?, how).map_err(|(_, errno)| errno.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_folder_is_gone_and_a_live_one_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let live = Workdir::create(parent.path()).unwrap();
        let dropped = Workdir::create(parent.path()).unwrap();
        let gone = dropped.path().to_owned();
        drop(dropped);
        sweep(parent.path()).unwrap();
        assert!(live.path().exists() && !gone.exists());
    }

    #[test]
    fn a_dead_builds_folder_is_swept_up() {
        let parent = tempfile::tempdir().unwrap();
        let dead = parent.path().join("build-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("overlay.qcow2"), "x").unwrap();
        // Whoever died while it made or removed one has left an empty one.
        let empty = parent.path().join("build-empty");
        fs::create_dir(&empty).unwrap();
        let other = parent.path().join("something else");
        fs::create_dir(&other).unwrap();
        let _live = Workdir::create(parent.path()).unwrap();
        assert!(!dead.exists() && !empty.exists() && other.exists());
    }
}
