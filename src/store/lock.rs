//! Decides who may build a version: [`Store::claim`] returns the existing version, or the lock that allows its holder to
//! build it.
//!
//! Waiting for a lock blocks a thread in flock(2), which no future can interrupt. So a separate thread waits and sends the
//! locked file over a channel. A caller that gives up drops the receiving end; the thread stays behind until it gets the
//! lock, fails to send it, and so releases it at once. Nothing polls.

use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;

use tokio::sync::oneshot;

use super::artifact::Artifact;
use super::error::StoreError;
use super::folder::FILE_MODE;
use super::reference::ImageId;
use super::sums::comment;
use super::{Store, TMP_LOCK, sums};
use crate::fs::{FileLock, try_lock};
use crate::progress::Progress;
use crate::sign::Signer;

/// Result of [`Store::claim`].
#[derive(Debug)]
#[must_use]
pub enum Lookup {
    /// The version exists.
    Exists(ExistingVersion),
    /// The version does not exist, and the holder of the lock may build it.
    Vacant(VersionLock),
}

/// An existing version, and the right to replace it.
#[derive(Debug)]
pub struct ExistingVersion {
    artifact: Artifact,
    lock: VersionLock,
}

impl ExistingVersion {
    /// Returns the existing version.
    #[must_use]
    pub fn artifact(&self) -> &Artifact {
        &self.artifact
    }

    /// Returns whether it was built from the inputs of this key, and so is up to date.
    #[must_use]
    pub fn is_from(&self, build_key: &str) -> bool {
        self.artifact.manifest().build_key == build_key
    }

    /// Returns whether it was published without running its tests.
    #[must_use]
    pub fn is_untested(&self) -> bool {
        self.artifact.manifest().tests.iter().any(|test| test.skipped)
    }

    /// Adds a signature, or replaces one of another key, after comparing every file with its checksum.
    ///
    /// # Errors
    /// When a file is damaged, the key does not sign, or a call fails.
    pub fn sign(&self, signer: &Signer) -> Result<(), StoreError> {
        let artifact = &self.artifact;
        let store = &self.lock.store;
        artifact.verify(&Progress::unwatched())?.into_result()?;
        let sums = artifact.open_folder().read(sums::FILE, sums::LARGEST)?;
        let signature = signer.sign(&sums, &comment(artifact.id(), &sums))?;
        if artifact.signature(signer.tool())?.is_some_and(|there| there == signature) {
            return Ok(());
        }
        let guard = store.lock_file(TMP_LOCK, FileLock::shared)?;
        store.replace_file(&artifact.folder().join(signer.tool().file()), &signature, &guard)
    }

    /// Releases the lock and leaves the version as it is.
    #[must_use]
    pub fn keep(self) -> Artifact {
        self.artifact
    }

    /// Returns the error for an existing version that was built from other inputs.
    #[must_use]
    pub fn refuse(self) -> StoreError {
        StoreError::Taken(self.lock.id)
    }

    /// Returns the lock to build it again; the old version stays until the new one is published.
    pub fn replace(self) -> VersionLock {
        VersionLock { replaces: true, ..self.lock }
    }
}

/// The right to build one version. Released when dropped, or by the kernel with its process.
#[derive(Debug)]
#[must_use]
pub struct VersionLock {
    pub(super) store: Store,
    pub(super) id: ImageId,
    /// Whether an old version will be replaced.
    pub(super) replaces: bool,
    _lock: FileLock,
}

impl VersionLock {
    /// Returns the id of the version.
    #[must_use]
    pub fn id(&self) -> &ImageId {
        &self.id
    }
}

impl Store {
    /// Looks up or locks a version. If another process builds it, calls `waiting` once with a message and waits for that
    /// build; dropping the future gives up.
    ///
    /// # Errors
    /// When the lock cannot be taken, the version is there and damaged, or a tag has its name.
    pub async fn claim(&self, id: &ImageId, waiting: impl FnOnce(String)) -> Result<Lookup, StoreError> {
        let path = self.private("locks").join(id.to_string());
        let file = self.fs.open_lock(&path).map_err(StoreError::io("open", &path))?;
        let held = lock_or_wait(file, || waiting(format!("waiting for another kiln that builds {id}"))).await;
        let held = held.map_err(StoreError::io("lock", &path))?;
        let lock = VersionLock { store: self.clone(), id: id.clone(), replaces: false, _lock: held };
        self.recover(id)?;
        match self.artifact_at(id) {
            Ok(artifact) => {
                artifact.check_sizes()?;
                Ok(Lookup::Exists(ExistingVersion { artifact, lock }))
            }
            Err(error) if error.is_not_found() => {
                // Checked before anything is built, and again, reliably, when it is published.
                self.refuse_tag(id)?;
                Ok(Lookup::Vacant(lock))
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the version's lock if it is free.
    pub(super) fn try_version_lock(&self, id: &ImageId) -> Result<Option<FileLock>, StoreError> {
        self.lock_file(&format!("locks/{id}"), lock_if_free)
    }

    /// Locks the image. Waits for other holders, who only make a few short calls.
    pub(super) fn lock_image(&self, name: &str) -> Result<FileLock, StoreError> {
        self.lock_file(&format!("locks/{name}"), FileLock::exclusive)
    }

    /// Keeps versions of an image from being added and removed. Without this lock, a listing of its folder may miss both a
    /// version that is removed and one that is added. Returns `None` if there is no such image, and creates nothing then.
    pub(super) fn share_image(&self, name: &str) -> Result<Option<FileLock>, StoreError> {
        if !self.image_path(name).is_dir() {
            return Ok(None);
        }
        self.lock_file(&format!("locks/{name}"), FileLock::shared).map(Some)
    }

    /// Writes or replaces a file durably and in one step: readers see the old or the new content. The guard keeps processes
    /// that clear tmp away.
    pub(super) fn replace_file(&self, path: &Path, content: &[u8], _guard: &FileLock) -> Result<(), StoreError> {
        let temporary = self.private("tmp").join(self.fs.fresh_name());
        self.fs.write_new(&temporary, content, FILE_MODE).map_err(StoreError::io("write", &temporary))?;
        self.fs.rename(&temporary, path).map_err(StoreError::io("write", path))?;
        self.sync_dir(path.parent().unwrap_or(path))
    }

    /// Opens a file below the private folder and takes its lock with `take`.
    pub(super) fn lock_file<T>(&self, name: &str, take: fn(File) -> io::Result<T>) -> Result<T, StoreError> {
        let path = self.private(name);
        let file = self.fs.open_lock(&path).map_err(StoreError::io("open", &path))?;
        take(file).map_err(StoreError::io("lock", &path))
    }
}

/// Takes the exclusive lock if it is free.
pub(super) fn lock_if_free(file: File) -> io::Result<Option<FileLock>> {
    match FileLock::try_exclusive(file) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        other => other.map(Some),
    }
}

/// Takes the exclusive lock. If it is held, calls `blocked` and waits, however long, until the future is dropped.
async fn lock_or_wait(file: File, blocked: impl FnOnce()) -> io::Result<FileLock> {
    if try_lock(&file)? {
        return FileLock::exclusive(file);
    }
    blocked();
    let (give, take) = oneshot::channel();
    let thread = thread::Builder::new().name("version lock".into());
    // If nobody receives it any more, dropping it releases the lock.
    thread.spawn(move || drop(give.send(FileLock::exclusive(file))))?;
    take.await.map_err(io::Error::other)?
}
