//! Who may build a version: [`Store::claim`] answers with the version that is there, or with the lock that lets its
//! holder make it.
//!
//! Waiting for a lock blocks a thread in flock(2), which no future can interrupt. So the wait is a thread of its own
//! that hands the locked file over a channel. A caller that gives up drops the receiving end; the thread stays behind
//! until it gets the lock, fails to hand it over, and so frees it at once. Nothing polls.

use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;

use tokio::sync::oneshot;

use super::artifact::Artifact;
use super::error::StoreError;
use super::reference::ImageId;
use super::staging::{FILE_MODE, Staging, comment};
use super::{Store, TMP_LOCK, UNWATCHED, sums, try_lock};
use crate::sign::Signer;

/// The store's answer to who asks for a version.
#[derive(Debug)]
#[must_use]
pub enum Lookup {
    /// The version is there.
    Exists(Existing),
    /// It is not, and the holder of the lock may make it.
    Vacant(VersionLock),
}

/// A version that is there, and the right to replace it.
#[derive(Debug)]
pub struct Existing {
    artifact: Artifact,
    lock: VersionLock,
}

impl Existing {
    /// The version.
    #[must_use]
    pub fn artifact(&self) -> &Artifact {
        &self.artifact
    }

    /// Whether it was built from the inputs of this key, and so is up to date.
    #[must_use]
    pub fn is_from(&self, build_key: &str) -> bool {
        self.artifact.manifest().build_key == build_key
    }

    /// Whether it was published without the tests it has.
    #[must_use]
    pub fn is_untested(&self) -> bool {
        self.artifact.manifest().tests.iter().any(|test| test.skipped)
    }

    /// Adds a signature, or replaces one that another key has made, after every file was compared with its checksum.
    ///
    /// # Errors
    /// When a file is damaged, the key does not sign, or a call fails.
    pub fn sign(&self, signer: &Signer) -> Result<(), StoreError> {
        let (artifact, store) = (&self.artifact, &self.lock.store);
        artifact.verify(UNWATCHED)?.into_result()?;
        let sums = artifact.open_folder().read(sums::FILE, sums::LARGEST)?;
        let signature = signer.sign(&sums, &comment(artifact.id(), &sums))?;
        if artifact.signature(signer.tool())?.is_some_and(|there| there == signature) {
            return Ok(());
        }
        let guard = store.lock_file(TMP_LOCK, Lock::shared)?;
        store.replace_file(&artifact.folder().join(signer.tool().file()), &signature, &guard)
    }

    /// Leaves the version as it is.
    #[must_use]
    pub fn keep(self) -> Artifact {
        self.artifact
    }

    /// The error for a version that is there from other inputs.
    #[must_use]
    pub fn refuse(self) -> StoreError {
        StoreError::Taken(self.lock.id)
    }

    /// The lock to build it anew; the old version stays until the new one is published.
    pub fn replace(self) -> VersionLock {
        VersionLock { replaces: true, ..self.lock }
    }
}

/// The right to make one version. Freed when dropped, or by the kernel with its process.
#[derive(Debug)]
#[must_use]
pub struct VersionLock {
    pub(super) store: Store,
    pub(super) id: ImageId,
    /// Whether an old version is to give way.
    pub(super) replaces: bool,
    _lock: Lock,
}

impl VersionLock {
    /// The version it is for.
    #[must_use]
    pub fn id(&self) -> &ImageId {
        &self.id
    }

    /// Begins to make the version: an empty folder on the store's file system.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn stage(self) -> Result<Staging, StoreError> {
        Staging::create(self)
    }
}

impl Store {
    /// Asks for a version. Where another process builds it, calls `waiting` once with a sentence and waits for that build;
    /// dropping the future gives up.
    ///
    /// # Errors
    /// When the lock cannot be had, the version is there and damaged, or a tag has its name.
    pub async fn claim(&self, id: &ImageId, waiting: impl FnOnce(String)) -> Result<Lookup, StoreError> {
        let path = self.private("locks").join(id.to_string());
        let file = self.fs.open_lock(&path).map_err(StoreError::io("open", &path))?;
        let blocked = || waiting(format!("waiting for another kiln that builds {id}"));
        let held = Lock::wait_for(file, blocked).await.map_err(StoreError::io("lock", &path))?;
        let lock = VersionLock { store: self.clone(), id: id.clone(), replaces: false, _lock: held };
        self.recover(id)?;
        match self.artifact_at(id) {
            Ok(artifact) => {
                artifact.check_sizes()?;
                Ok(Lookup::Exists(Existing { artifact, lock }))
            }
            Err(error) if error.is_not_found() => {
                // Told before anything is built; again, for good, when it is published.
                self.refuse_tag(id)?;
                Ok(Lookup::Vacant(lock))
            }
            Err(error) => Err(error),
        }
    }

    /// The version's lock if nobody has it.
    pub(super) fn try_version_lock(&self, id: &ImageId) -> Result<Option<Lock>, StoreError> {
        self.lock_file(&format!("locks/{id}"), Lock::try_exclusive)
    }

    /// The image's lock. Its holders do a few small calls and no more, so this waits.
    pub(super) fn lock_image(&self, name: &str) -> Result<Lock, StoreError> {
        self.lock_file(&format!("locks/{name}"), Lock::exclusive)
    }

    /// Keeps versions of an image from coming and going. Without it, a listing of its folder may miss both the version that
    /// goes and the one that comes. `None` where there is no such image; asking for one leaves nothing.
    pub(super) fn share_image(&self, name: &str) -> Result<Option<Lock>, StoreError> {
        if !self.image_path(name).is_dir() {
            return Ok(None);
        }
        self.lock_file(&format!("locks/{name}"), Lock::shared).map(Some)
    }

    /// Puts a file in the place of one that may be there, durably and in one step: whoever reads it sees the old or the new. The
    /// guard keeps those away that clear tmp.
    pub(super) fn replace_file(&self, path: &Path, content: &[u8], _guard: &Lock) -> Result<(), StoreError> {
        let temporary = self.private("tmp").join(self.fs.fresh_name());
        self.fs.write_new(&temporary, content, FILE_MODE).map_err(StoreError::io("write", &temporary))?;
        self.fs.rename(&temporary, path).map_err(StoreError::io("write", path))?;
        self.sync_dir(path.parent().unwrap_or(path))
    }

    /// Opens a file below the private folder and takes its lock in the way given.
    pub(super) fn lock_file<T>(&self, name: &str, take: fn(File) -> io::Result<T>) -> Result<T, StoreError> {
        let path = self.private(name);
        let file = self.fs.open_lock(&path).map_err(StoreError::io("open", &path))?;
        take(file).map_err(StoreError::io("lock", &path))
    }
}

/// A lock file's flock, freed when dropped.
///
/// Closing the file would not do: a child that another thread has just forked holds a copy until it executes, and with it
/// the lock.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    pub(super) fn try_exclusive(file: File) -> io::Result<Option<Self>> {
        Ok(try_lock(&file)?.then_some(Self(file)))
    }

    /// Waits. Not for locks that are held for long.
    pub(super) fn exclusive(file: File) -> io::Result<Self> {
        retry(|| file.lock())?;
        Ok(Self(file))
    }

    /// Waits. Not for locks that are held for long.
    pub(super) fn shared(file: File) -> io::Result<Self> {
        retry(|| file.lock_shared())?;
        Ok(Self(file))
    }

    /// Waits, however long, until the future is dropped.
    async fn wait_for(file: File, blocked: impl FnOnce()) -> io::Result<Self> {
        if try_lock(&file)? {
            return Ok(Self(file));
        }
        blocked();
        let (give, take) = oneshot::channel();
        let thread = thread::Builder::new().name("version lock".into());
        // Where nobody takes it any more, dropping it frees the lock.
        thread.spawn(move || drop(give.send(Self::exclusive(file))))?;
        take.await.map_err(io::Error::other)?
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Cannot fail on an open file.
        let _ = self.0.unlock();
    }
}

/// flock(2) may be cut short by a signal.
fn retry(lock: impl Fn() -> io::Result<()>) -> io::Result<()> {
    loop {
        match lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
