//! A build's scratch folder: private, removed when the build ends, or by the next build if this one is killed.
//!
//! Its owner keeps an exclusive flock(2) on each folder. The kernel drops the lock with its holder, so a folder whose lock
//! can be taken belongs to nobody and may be removed; no pid file can go stale. Creating and removing folders exclude each
//! other, by a lock on the parent: no process ever sees a folder that is not locked yet.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::fs::FileLock;

const PREFIX: &str = "build-";

/// How often the removal of a folder is tried: a thread that was asked to stop may still create a file in it.
const ATTEMPTS: u32 = 20;
const RETRY: Duration = Duration::from_millis(5);

/// A private scratch folder. Dropping it removes it.
#[derive(Debug)]
pub struct Workdir {
    folder: ScratchFolder,
    // Held until the folder is removed: fields drop in order, and the folder comes first.
    _lock: FileLock,
}

/// A folder that is removed with all its content when this is dropped.
#[derive(Debug)]
struct ScratchFolder {
    path: PathBuf,
    is_kept: bool,
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        for _ in 0..ATTEMPTS {
            match fs::remove_dir_all(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => thread::sleep(RETRY),
                // What cannot be removed now is left for the next build.
                _ => return,
            }
        }
    }
}

impl Workdir {
    /// Creates a folder below `parent`, mode 0700, after removing those that dead builds left there.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn create(parent: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        let _turn = FileLock::exclusive(File::open(parent)?)?;
        clear(parent)?;
        let path = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?.keep();
        let folder = ScratchFolder { path, is_kept: false };
        let lock = FileLock::try_exclusive(File::open(&folder.path)?)?;
        Ok(Self { folder, _lock: lock })
    }

    /// Returns the path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.folder.path
    }

    /// Returns the path of a file in the folder.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path.join(name)
    }
}

impl Workdir {
    /// Prefix of the names of folders that are left to the user.
    pub const KEPT: &str = "kept-";

    /// Leaves the folder to the user, under a name that is not removed by later builds.
    #[must_use]
    pub fn keep(mut self) -> PathBuf {
        self.folder.is_kept = true;
        let path = self.folder.path.clone();
        let name = path.file_name().unwrap_or_default().to_string_lossy().replacen(PREFIX, Self::KEPT, 1);
        let kept = path.with_file_name(name);
        if fs::rename(&path, &kept).is_ok() { kept } else { path }
    }
}

/// Removes the folders of dead builds.
///
/// # Errors
/// When `parent` cannot be read or locked. A folder that cannot be removed is left for the next time.
pub fn sweep(parent: &Path) -> io::Result<()> {
    let _turn = FileLock::exclusive(File::open(parent)?)?;
    clear(parent)
}

fn clear(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if ours && File::open(entry.path()).and_then(FileLock::try_exclusive).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

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
    fn h6_a_folder_in_which_files_are_still_created_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        for _ in 0..20 {
            let folder = Workdir::create(parent.path()).unwrap();
            let path = folder.path().to_owned();
            let (started, has_started) = std::sync::mpsc::channel();
            let busy = thread::spawn(move || {
                let began = Instant::now();
                for number in 0.. {
                    let _ = fs::write(path.join(number.to_string()), "x");
                    let _ = started.send(());
                    if began.elapsed() > Duration::from_millis(10) {
                        break;
                    }
                }
            });
            has_started.recv().unwrap();
            drop(folder);
            busy.join().unwrap();
            assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_dead_builds_folder_is_swept_up() {
        let parent = tempfile::tempdir().unwrap();
        let dead = parent.path().join("build-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("overlay.qcow2"), "x").unwrap();
        // A process that died while creating or removing one has left an empty folder.
        let empty = parent.path().join("build-empty");
        fs::create_dir(&empty).unwrap();
        let other = parent.path().join("something else");
        fs::create_dir(&other).unwrap();
        let _live = Workdir::create(parent.path()).unwrap();
        assert!(!dead.exists() && !empty.exists() && other.exists());
    }
}
