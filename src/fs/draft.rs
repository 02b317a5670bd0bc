//! Folders that one process fills under a temporary name, until they are published or removed.
//!
//! The process holds the exclusive flock(2) of its draft. The kernel releases it with the process, however that dies, so a
//! draft whose lock is free belongs to nobody and may be removed; no pid file can go stale.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::{FileLock, Fs, folder_of};

/// How often the removal of a draft is tried: a thread that was asked to stop may still create a file in it.
const ATTEMPTS: u32 = 20;
const RETRY: Duration = Duration::from_millis(5);

/// A folder under a temporary name, which is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct DraftFolder {
    fs: Fs,
    path: PathBuf,
    /// Holds the exclusive lock.
    file: Arc<File>,
    /// Whether there is anything left to remove.
    is_ours: bool,
}

impl DraftFolder {
    /// Creates a folder and locks it. The caller keeps processes away that clear drafts: there is a moment in which it is
    /// not locked.
    pub(crate) fn create(fs: &Fs, path: PathBuf, mode: u32) -> io::Result<Self> {
        fs.create_dir(&path, mode)?;
        let file = File::open(&path)?;
        file.try_lock()?;
        Ok(Self { fs: fs.clone(), path, file: Arc::new(file), is_ours: true })
    }

    /// Creates a folder below `parent`, with a new name that begins with `prefix`. Waits for [`Self::clear_in`].
    pub(crate) fn create_in(fs: &Fs, parent: &Path, prefix: &str, mode: u32) -> io::Result<Self> {
        let _turn = FileLock::exclusive(File::open(parent)?)?;
        Self::create(fs, parent.join(format!("{prefix}{}", fs.fresh_name())), mode)
    }

    /// Creates a folder below `parent` with the first free name of `stem-1`, `stem-2` and so on, and returns that as well. Waits
    /// for [`Self::clear_in`].
    pub(crate) fn create_numbered(fs: &Fs, parent: &Path, stem: &str, mode: u32) -> io::Result<(Self, String)> {
        let _turn = FileLock::exclusive(File::open(parent)?)?;
        let mut number = 1_u64;
        loop {
            let name = format!("{stem}-{number}");
            match Self::create(fs, parent.join(&name), mode) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                other => return Ok((other?, name)),
            }
        }
    }

    /// Removes the drafts of dead processes: the folders below `parent` whose names begin with `prefix` and that nobody has
    /// locked. One that cannot be removed is left for the next time.
    pub(crate) fn clear_in(fs: &Fs, parent: &Path, prefix: &str) -> io::Result<()> {
        let _turn = FileLock::exclusive(File::open(parent)?)?;
        for entry in fs::read_dir(parent)? {
            let entry = entry?;
            let is_draft = entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes());
            if is_draft && File::open(entry.path()).and_then(FileLock::try_exclusive).is_ok() {
                let _ = fs.remove(&entry.path());
            }
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open folder, which holds the lock.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Renames the folder to its final name, durably, and unlocks it. If the rename may not survive a power failure, it is
    /// undone; on a disk that fails even that, the folder stays, complete.
    pub(crate) fn publish(mut self, target: &Path) -> io::Result<()> {
        self.fs.rename(&self.path, target)?;
        self.fs.sync_dir(folder_of(target)).inspect_err(|_| drop(self.fs.rename(target, &self.path)))?;
        self.release();
        // As `FileLock` does: closing is not enough.
        self.file.unlock()
    }

    /// Leaves the folder to the caller. It stays locked as long as a clone of [`Self::file`] is open.
    pub(crate) fn release(&mut self) {
        self.is_ours = false;
    }

    /// Removes the folder with all its content.
    pub(crate) fn remove(mut self) -> io::Result<()> {
        self.delete()
    }

    fn delete(&mut self) -> io::Result<()> {
        self.release();
        let removed = self.delete_files();
        // Whatever is left is removed with the drafts of dead processes.
        let _ = self.file.unlock();
        removed
    }

    fn delete_files(&self) -> io::Result<()> {
        for _ in 1..ATTEMPTS {
            match self.fs.remove(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => thread::sleep(RETRY),
                other => return other,
            }
        }
        self.fs.remove(&self.path)
    }
}

impl Drop for DraftFolder {
    fn drop(&mut self) {
        if self.is_ours {
            // Nobody is left to whom an error could be returned.
            let _ = self.delete();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "draft-";

    fn draft(parent: &Path) -> DraftFolder {
        DraftFolder::create_in(&Fs::default(), parent, PREFIX, 0o700).unwrap()
    }

    fn names(parent: &Path) -> Vec<String> {
        let entries = fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        entries.collect()
    }

    #[test]
    fn a_draft_is_removed_unless_it_is_published_or_released() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(draft(parent.path()).path().join("file"), "x").unwrap();
        draft(parent.path()).remove().unwrap();
        assert!(names(parent.path()).is_empty());
        let published = draft(parent.path());
        fs::write(published.path().join("file"), "x").unwrap();
        published.publish(&parent.path().join("done")).unwrap();
        let mut released = draft(parent.path());
        released.release();
        let kept = released.path().to_owned();
        drop(released);
        assert!(parent.path().join("done/file").exists() && kept.exists());
    }

    #[test]
    fn a_published_folder_is_not_locked_and_a_failed_publication_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("done");
        draft(parent.path()).publish(&target).unwrap();
        let _lock = FileLock::try_exclusive(File::open(&target).unwrap()).unwrap();
        fs::write(target.join("file"), "x").unwrap();
        draft(parent.path()).publish(&target).unwrap_err();
        assert_eq!(names(parent.path()), ["done"]);
    }

    #[test]
    fn only_drafts_of_the_dead_are_cleared() {
        let parent = tempfile::tempdir().unwrap();
        let living = draft(parent.path());
        for name in ["draft-dead", "other"] {
            fs::create_dir(parent.path().join(name)).unwrap();
            fs::write(parent.path().join(name).join("file"), "x").unwrap();
        }
        DraftFolder::clear_in(&Fs::default(), parent.path(), PREFIX).unwrap();
        let left = names(parent.path());
        assert!(living.path().exists() && left.len() == 2 && left.contains(&"other".to_owned()), "{left:?}");
    }
}
