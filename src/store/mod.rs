//! The store: every version of every image, complete or not there at all.
//!
//! ```text
//! claim(name@version) -> Exists(artifact)               same inputs: up to date
//!                      \-> Vacant(VersionLock) -> Staging -> finish(manifest) -> Artifact
//!
//! STORE/web/1.4.0/          a version: 0755, its files 0444, under its final name only when complete
//! STORE/web/tags.json
//! STORE/.kiln/tmp/          folders being filled or deleted, each with its own flock while its process lives
//! STORE/.kiln/tmp.lock      shared: a folder is being made in tmp; exclusive: stale ones are looked for
//! STORE/.kiln/locks/ID      one build of that version at a time       (files here are never removed)
//! STORE/.kiln/locks/NAME    sequence numbers, tags and the image's folder; held for milliseconds
//! ```
//!
//! Locks are flocks: the kernel frees them with their holder, however it dies. A lock file is never unlinked, so two
//! processes can never hold "the" lock on two different files of one name. Order of taking: version, tmp, image, folder.

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

mod artifact;
mod clone;
mod digest;
mod error;
mod export;
mod folder;
mod listing;
mod lock;
pub mod manifest;
mod reference;
mod remove;
mod retention;
mod staging;
mod sums;
mod tags;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use crate::fs::OnConflict;
pub use artifact::{Artifact, FileCheck, VerifyReport};
pub use digest::Digest;
pub use error::StoreError;
pub use export::give_names;
pub use listing::{Ancestor, StoreListing, Summary};
pub use lock::{ExistingVersion, Lookup, VersionLock};
pub use manifest::Manifest;
pub use reference::{ImageId, Reference, ReferenceError, Tag};
pub use remove::IfBase;
pub use retention::RetentionReason;
pub use staging::{Documents, Evidence, RESERVED, Staging};
pub use tags::{TagChange, TagOperation, Tags};

use crate::fs::{Fs, try_lock};
use crate::ownership::{OTHERS, check_folder, check_root};
use artifact::TRIES;
use folder::FOLDER_MODE;
use folder::Folder;
use lock::lock_if_free;

/// Name of the folder for everything that is not an image.
const PRIVATE: &str = ".kiln";
/// Name of the lock file of the folder for temporary folders. It must exist before the locks of those folders can be made.
const TMP_LOCK: &str = "tmp.lock";
/// Marks an old version that was moved aside where two names cannot be swapped. No other name in tmp has two `@`.
const ASIDE: &str = "aside@";

/// A folder of images. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    fs: Fs,
}

impl Store {
    /// Opens the store, created (0755) if missing, and removes what dead processes left.
    ///
    /// # Errors
    /// When it cannot be made, is not a folder, belongs to another user, may be written by everybody, or is on a network
    /// file system.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_on(path, Fs::default())
    }

    fn open_on(path: &Path, fs: Fs) -> Result<Self, StoreError> {
        let root = std::path::absolute(path).map_err(StoreError::io("find", path))?;
        let store = Self { root, fs };
        store.create().map_err(StoreError::io("create the store at", &store.root))?;
        // On a network file system, flock may block for ever (fault row H15).
        check_root(&store.root, OTHERS)?;
        for folder in [store.root.join(PRIVATE), store.private("locks"), store.private("tmp")] {
            store.fs.ensure_dir(&folder, 0o700).map_err(StoreError::io("create", &folder))?;
            check_part(&folder)?;
        }
        // Whatever cannot be cleared now, the next opener tries again; a full disk must not stop a reader.
        let _ = store.clear_stale();
        Ok(store)
    }

    /// Returns the store's folder, an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Opens the version that a reference names, and keeps it from being removed until it is dropped.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn artifact(&self, reference: &Reference) -> Result<Artifact, StoreError> {
        let mut id = self.resolve(reference)?;
        for _ in 0..TRIES {
            match self.artifact_at(&id) {
                Err(error) if error.is_not_found() => {}
                other => return other,
            }
            // A tag may have been moved off the version, and the version removed, since it was resolved.
            let now = self.resolve(reference)?;
            if now == id {
                break;
            }
            id = now;
        }
        Err(self.missing(reference, &id))
    }

    fn create(&self) -> io::Result<()> {
        if self.root.exists() { Ok(()) } else { self.fs.ensure_path(&self.root, 0o755) }
    }

    fn private(&self, name: &str) -> PathBuf {
        self.root.join(PRIVATE).join(name)
    }

    fn image_path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn version_path(&self, id: &ImageId) -> PathBuf {
        self.root.join(id.name()).join(id.version())
    }

    fn aside_path(&self, id: &ImageId) -> PathBuf {
        self.private("tmp").join(format!("{ASIDE}{id}"))
    }

    /// Returns a new unique path in tmp.
    fn fresh_tmp(&self, id: &ImageId) -> PathBuf {
        self.private("tmp").join(format!("{id}.{}", self.fs.fresh_name()))
    }

    fn sync_dir(&self, path: &Path) -> Result<(), StoreError> {
        self.fs.sync_dir(path).map_err(StoreError::io("sync", path))
    }

    /// Returns the names of the images, sorted.
    fn names(&self) -> Result<Vec<String>, StoreError> {
        let mut names = entries(&self.root)?;
        names.retain(|name| ImageId::new(name, "0").is_ok() && self.image_path(name).is_dir());
        Ok(names)
    }

    /// Returns the versions of an image, sorted as strings. A folder without a manifest is not one of them.
    fn versions(&self, name: &str) -> Result<Vec<ImageId>, StoreError> {
        let versions = match entries(&self.image_path(name)) {
            Err(error) if error.is_not_found() => Vec::new(),
            other => other?,
        };
        let ids = versions.into_iter().filter_map(|version| ImageId::new(name, version).ok());
        Ok(ids.filter(|id| self.has_version(id)).collect())
    }

    /// Returns whether a version's folder exists and has a manifest.
    fn has_version(&self, id: &ImageId) -> bool {
        self.version_path(id).join(manifest::FILE).is_file()
    }

    /// Resolves a reference to one version. A version takes precedence over a tag of the same name.
    fn resolve(&self, reference: &Reference) -> Result<ImageId, StoreError> {
        let _image = match reference.selector() {
            Some(_) => None,
            None => self.share_image(reference.name())?,
        };
        self.resolve_locked(reference)
    }

    /// Resolves a reference while the image's lock is held, which is needed to determine the newest version.
    fn resolve_locked(&self, reference: &Reference) -> Result<ImageId, StoreError> {
        let Some(selector) = reference.selector() else { return self.newest(reference) };
        let id = ImageId::new(reference.name(), selector)?;
        if self.version_path(&id).is_dir() {
            return Ok(id);
        }
        match Tags::read(&self.image_path(reference.name()))?.named.remove(selector) {
            Some(version) => Ok(ImageId::new(reference.name(), version)?),
            None => Err(self.no_version(reference)),
        }
    }

    fn newest(&self, reference: &Reference) -> Result<ImageId, StoreError> {
        let mut newest = None;
        for id in self.versions(reference.name())? {
            match self.sequence(&id) {
                Ok(sequence) => newest = newest.max(Some((sequence, id))),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        newest.map(|(_, id)| id).ok_or_else(|| self.no_version(reference))
    }

    fn sequence(&self, id: &ImageId) -> Result<u64, StoreError> {
        let folder = Folder::open(self.version_path(id))?;
        let text = folder.read(manifest::FILE, manifest::LARGEST)?;
        manifest::parse_sequence(&text, &folder.path().join(manifest::FILE))
    }

    /// Returns the error for a reference that resolves to a version that does not exist.
    fn missing(&self, reference: &Reference, id: &ImageId) -> StoreError {
        match reference.selector() {
            Some(tag) if tag != id.version() => {
                StoreError::Dangling { tag: reference.to_string(), version: id.clone() }
            }
            _ => self.no_version(reference),
        }
    }

    fn no_version(&self, reference: &Reference) -> StoreError {
        let name = reference.name().to_owned();
        // The lists are hints; an error while reading them is not worth a second error.
        let mut ids = self.versions(&name).unwrap_or_default();
        match reference.selector() {
            Some(selector) if !ids.is_empty() => {
                ids.sort_by_cached_key(|id| std::cmp::Reverse(self.sequence(id).ok()));
                let tags = Tags::read(&self.image_path(&name)).unwrap_or_default();
                let known = ids.iter().map(|id| id.version().to_owned()).chain(tags.named.into_keys()).collect();
                StoreError::NoVersion { name, selector: selector.to_owned(), known }
            }
            _ => StoreError::NoImage { name, store: self.root.clone(), known: self.names().unwrap_or_default() },
        }
    }

    /// Deletes what dead processes left in tmp. A live process holds the flock of its folder, or of the version.
    fn clear_stale(&self) -> Result<(), StoreError> {
        let Some(_guard) = self.lock_file(TMP_LOCK, lock_if_free)? else { return Ok(()) };
        for name in entries(&self.private("tmp"))? {
            let path = self.private("tmp").join(&name);
            match name.strip_prefix(ASIDE).and_then(|id| id.split_once('@')) {
                Some((name, version)) => self.recover_stale(&ImageId::new(name, version)?)?,
                None => self.discard(&path)?,
            }
        }
        self.clear_empty()
    }

    /// Removes folders of images without a version: their first publication was interrupted before its rename.
    fn clear_empty(&self) -> Result<(), StoreError> {
        for name in self.names()? {
            let path = self.image_path(&name);
            if entries(&path)?.is_empty() {
                let _image = self.lock_image(&name)?;
                self.fs.remove_if_empty(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    fn recover_stale(&self, id: &ImageId) -> Result<(), StoreError> {
        match self.try_version_lock(id)? {
            Some(_lock) => self.recover(id),
            None => Ok(()),
        }
    }

    /// Finishes or undoes a replacement that was interrupted between its two renames. The caller holds the version's lock.
    fn recover(&self, id: &ImageId) -> Result<(), StoreError> {
        let aside = self.aside_path(id);
        let path = self.version_path(id);
        match (aside.is_dir(), path.is_dir()) {
            (false, _) => Ok(()),
            // Under its name, the old one would come back if the new one were removed while the old one is still read. Nor
            // may it lose that name before the new one durably has its own.
            (true, true) => {
                let doomed = self.fresh_tmp(id);
                self.sync_dir(&self.private("tmp"))?;
                self.fs.rename(&aside, &doomed).map_err(StoreError::io("remove", &aside))?;
                self.discard(&doomed)
            }
            (true, false) => {
                let image = self.image_path(id.name());
                // The folder is removed with the last version in it.
                self.fs.ensure_dir(&image, FOLDER_MODE).map_err(StoreError::io("create", &image))?;
                self.fs.rename(&aside, &path).map_err(StoreError::io("restore", &path))?;
                self.sync_dir(&image)?;
                self.sync_dir(&self.root)
            }
        }
    }

    /// Deletes a folder of tmp unless somebody holds its flock; in that case a later opener of the store deletes it.
    fn discard(&self, path: &Path) -> Result<(), StoreError> {
        let folder = match Folder::open(path) {
            Ok(folder) => folder,
            Err(error) if error.is_not_found() => return Ok(()),
            // It is not a folder: kiln did not create it, and nobody can hold it.
            Err(_) => return self.fs.remove(path).map_err(StoreError::io("remove", path)),
        };
        self.discard_opened(&folder)
    }

    fn discard_opened(&self, folder: &Folder) -> Result<(), StoreError> {
        let path = folder.path();
        // Since it was opened, it may have been published, and the version that it replaced, which is being read, may have
        // this name now.
        if try_lock(folder.file()).map_err(StoreError::io("lock", path))? && folder.is_current() {
            // It may have been moved here by a process that died before the move was durable. Its removal must not overtake
            // the move.
            self.sync_dir(&self.private("tmp"))?;
            self.fs.remove(path).map_err(StoreError::io("remove", path))?;
        }
        Ok(())
    }
}

/// Checks that nobody else can replace an image, in the store or in a part of it (fault row D3).
fn check_ours(path: &Path, meta: &Metadata) -> Result<(), StoreError> {
    Ok(check_folder(path, meta, OTHERS)?)
}

/// Checks a folder below the store in the same way; it must not be a link.
fn check_part(path: &Path) -> Result<(), StoreError> {
    check_ours(path, &path.symlink_metadata().map_err(StoreError::io("read", path))?)
}

/// Returns the names in a folder, sorted. Names that are not UTF-8 are left out, since kiln creates none.
fn entries(path: &Path) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(StoreError::io("list", path))? {
        names.extend(entry.map_err(StoreError::io("list", path))?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}
