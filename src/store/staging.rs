//! A version that is being published: files are put into a folder of their own, digested, made durable and read-only, and
//! appear under the version's name in one rename.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fs::{DraftFolder, FileLock};
use crate::progress::Progress;
use crate::sign::Signer;

use super::artifact::Artifact;
use super::digest::{self, Digest, Job};
use super::error::StoreError;
use super::folder::{FILE_MODE, FOLDER_MODE, Folder, FolderTree};
use super::lock::VersionLock;
use super::manifest::{self, Manifest};
use super::reference::ImageId;
use super::sums::comment;
use super::{TMP_LOCK, sums};

/// Names of files that only the store itself writes.
pub const RESERVED: [&str; 7] = [
    manifest::FILE,
    sums::FILE,
    "SHA256SUMS.sig",
    "SHA256SUMS.minisig",
    "sbom.cdx.json",
    "sbom.spdx.json",
    "provenance.json",
];

/// Documents and signature that are published with the image files.
#[derive(Default)]
pub struct Evidence {
    /// Creates the documents from the complete manifest: names and contents.
    pub documents: Documents,
    /// The key that signs `SHA256SUMS`.
    pub signer: Option<Arc<Signer>>,
}

/// A function that creates documents from a manifest.
pub struct Documents(MakeDocuments);

type MakeDocuments = Box<dyn Fn(&Manifest) -> Vec<(&'static str, String)> + Send>;

impl Documents {
    /// Wraps a function. It returns names that are in [`RESERVED`], with contents.
    pub fn new(make: impl Fn(&Manifest) -> Vec<(&'static str, String)> + Send + 'static) -> Self {
        Self(Box::new(make))
    }
}

impl Default for Documents {
    /// Returns a function that creates no documents.
    fn default() -> Self {
        Self::new(|_| Vec::new())
    }
}

/// The folder of a version that is being built. Dropping it deletes the folder; [`Staging::abort`] also reports a failure to
/// do so.
#[derive(Debug)]
#[must_use]
pub struct Staging {
    // Before the lock: fields are dropped in this order, and the folder must be deleted while the version is still locked.
    draft: DraftFolder,
    lock: VersionLock,
}

impl VersionLock {
    /// Begins a version: creates an empty folder on the store's file system.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn stage(self) -> Result<Staging, StoreError> {
        let store = &self.store;
        let path = store.fresh_tmp(&self.id);
        // Shared with other builds; keeps processes that clear tmp away until the new folder has its own lock.
        let _guard = store.lock_file(TMP_LOCK, FileLock::shared)?;
        let draft = DraftFolder::create(&store.fs, path.clone(), 0o700).map_err(StoreError::io("create", path))?;
        Ok(Staging { draft, lock: self })
    }
}

impl Staging {
    /// Returns the id of the future version.
    #[must_use]
    pub fn id(&self) -> &ImageId {
        &self.lock.id
    }

    /// Returns the folder to put files into. Its content when [`Staging::finish`] is called is published: the image files,
    /// fetched files (in folders, if need be) and logs, and of symbolic links those that the manifest lists as fetched.
    /// Nobody may write to them from then on.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.draft.path()
    }

    /// Publishes the version: digests every file and fills in the manifest, makes all durable and read-only, writes manifest
    /// and `SHA256SUMS`, and renames the folder into place. Blocks while it reads and syncs.
    ///
    /// # Errors
    /// When a call fails, a file cannot be published, the manifest lists one that is not there, or the work is cancelled.
    /// Nothing is published then, unless a disk that failed to sync cannot rename either.
    pub fn finish(
        mut self,
        mut manifest: Manifest,
        evidence: &Evidence,
        progress: &Progress<'_>,
    ) -> Result<Artifact, StoreError> {
        let folder = Folder::held(Arc::clone(self.draft.file()), self.path());
        let image_lock = self.prepare(&folder, &mut manifest, evidence, progress)?;
        let path = self.place(&folder)?;
        drop(image_lock);
        Ok(Artifact::new(self.lock.id.clone(), folder.renamed(path), manifest))
    }

    /// Deletes the folder and its content.
    ///
    /// # Errors
    /// When the folder cannot be removed; the next opener of the store tries again.
    pub fn abort(self) -> Result<(), StoreError> {
        let path = self.path().to_owned();
        self.draft.remove().map_err(StoreError::io("remove", path))
    }

    /// Performs all work before the rename. Returns the image's lock, under which the sequence number was chosen.
    fn prepare(
        &self,
        folder: &Folder,
        manifest: &mut Manifest,
        evidence: &Evidence,
        progress: &Progress<'_>,
    ) -> Result<FileLock, StoreError> {
        let tree = folder.tree()?;
        self.refuse_reserved(&tree)?;
        self.check_links(&tree, manifest)?;
        manifest.fetched_folders = tree.empty_folders();
        let mut digests = self.seal_files(folder, &tree, progress)?;
        manifest.fill(&digests)?;
        let image_lock = self.lock.store.lock_image(self.lock.id.name())?;
        if !self.lock.replaces {
            self.lock.store.refuse_tag(&self.lock.id)?;
        }
        manifest.schema = manifest::SCHEMA;
        manifest.sequence = self.next_sequence()?;
        let text = manifest.to_json();
        digests.insert(manifest::FILE.to_owned(), digest::of_bytes(text.as_bytes()));
        for (name, content) in (evidence.documents.0)(manifest) {
            digests.insert(name.to_owned(), digest::of_bytes(content.as_bytes()));
            self.write(name, &content)?;
        }
        let sums = sums::render(&digests);
        if let Some(signer) = &evidence.signer {
            let signature = signer.sign(sums.as_bytes(), &comment(&self.lock.id, sums.as_bytes()))?;
            self.write(signer.tool().file(), &String::from_utf8_lossy(&signature))?;
        }
        self.write(sums::FILE, &sums)?;
        self.write(manifest::FILE, &text)?;
        self.seal_folders(folder, &tree)?;
        Ok(image_lock)
    }

    fn refuse_reserved(&self, tree: &FolderTree) -> Result<(), StoreError> {
        match tree.files.iter().chain(&tree.folders).find(|name| RESERVED.contains(&name.as_str())) {
            Some(name) => Err(StoreError::Unpublishable {
                path: self.path().join(name),
                why: "the store writes that file itself",
            }),
            None => Ok(()),
        }
    }

    fn check_links(&self, tree: &FolderTree, manifest: &Manifest) -> Result<(), StoreError> {
        match tree.links.iter().find(|(name, target)| manifest.fetched_links.get(*name) != Some(*target)) {
            Some((name, _)) => {
                Err(StoreError::Unpublishable { path: self.path().join(name), why: "no step has fetched that link" })
            }
            None => Ok(()),
        }
    }

    /// Digests all files, each made durable and read-only by the thread that read it.
    fn seal_files(
        &self,
        folder: &Folder,
        tree: &FolderTree,
        progress: &Progress<'_>,
    ) -> Result<BTreeMap<String, Digest>, StoreError> {
        let jobs: Vec<Job> = tree.files.iter().map(|name| Job::find(folder, name)).collect::<Result<_, _>>()?;
        digest::digest_all(&jobs, progress, |job, file| {
            self.lock.store.fs.seal(file, FILE_MODE).map_err(StoreError::io("sync", self.path().join(&job.name)))
        })
    }

    /// Returns the next sequence number, one more than the largest of the image's versions. An unreadable version is
    /// ignored: it must not stop a build.
    fn next_sequence(&self) -> Result<u64, StoreError> {
        let store = &self.lock.store;
        let ids = store.versions(self.lock.id.name())?;
        Ok(1 + ids.iter().filter_map(|id| store.sequence(id).ok()).max().unwrap_or(0))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), StoreError> {
        let path = self.path().join(name);
        self.lock.store.fs.write_new(&path, text.as_bytes(), FILE_MODE).map_err(StoreError::io("write", path))
    }

    /// Makes the folders durable and read-only, the deepest first and the version folder last.
    fn seal_folders(&self, folder: &Folder, tree: &FolderTree) -> Result<(), StoreError> {
        for name in tree.folders.iter().rev() {
            let below = Folder::open(self.path().join(name))?;
            self.seal_folder(&below)?;
        }
        self.seal_folder(folder)
    }

    fn seal_folder(&self, folder: &Folder) -> Result<(), StoreError> {
        self.lock.store.fs.seal(folder.file(), FOLDER_MODE).map_err(StoreError::io("sync", folder.path()))
    }

    /// Gives the folder its final name, durably.
    fn place(&mut self, folder: &Folder) -> Result<PathBuf, StoreError> {
        let store = self.lock.store.clone();
        let image = store.image_path(self.lock.id.name());
        let path = store.version_path(&self.lock.id);
        store.fs.ensure_dir(&image, FOLDER_MODE).map_err(StoreError::io("create", &image))?;
        // From now on it is a version that is read: readers must not wait for the end of this function.
        folder.file().lock_shared().map_err(StoreError::io("lock", &path))?;
        let result = if self.lock.replaces { self.swap(&path) } else { store.fs.rename(self.path(), &path) };
        result.map_err(StoreError::io("publish", &path))?;
        self.draft.release();
        let synced = store.sync_dir(&image).and_then(|()| store.sync_dir(store.path()));
        synced.inspect_err(|_| self.take_back(&path))?;
        // The version is published. An old version that cannot be deleted now, or is still read, is left to the next opener
        // of the store.
        let _ = store.discard(self.path());
        Ok(path)
    }

    /// Exchanges the new folder with the old one, which ends up in tmp. Where two names cannot be swapped there is a moment
    /// without either; [`super::Store::recover`] restores the old one if kiln dies in it.
    fn swap(&self, path: &Path) -> io::Result<()> {
        let fs = &self.lock.store.fs;
        match fs.exchange(self.path(), path) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                let aside = self.lock.store.aside_path(&self.lock.id);
                fs.rename(path, &aside)?;
                fs.rename(self.path(), path).inspect_err(|_| drop(fs.rename(&aside, path)))?;
                // The new version has its name; if the old one is still aside, the next opener removes it.
                let _ = fs.rename(&aside, self.path());
                Ok(())
            }
            other => other,
        }
    }

    /// Undoes a publication that may not survive a power failure. What then is in tmp is left to the next opener: it may
    /// only be deleted when this is durable.
    fn take_back(&self, path: &Path) {
        let fs = &self.lock.store.fs;
        // If this fails too, the new version stays: it is complete, as is the old one.
        let _ = if self.lock.replaces { self.swap(path) } else { fs.rename(path, self.path()) };
    }
}
