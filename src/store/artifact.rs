//! A published version, open for reading.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::digest::{self, Digest, Job};
use super::error::StoreError;
use super::folder::{Folder, FolderTree, folders_above};
use super::manifest::{self, Manifest};
use super::reference::ImageId;
use super::{Store, check_ours, check_part, sums};
use crate::digest::Sha256Digest;
use crate::ownership::{GROUP_AND_OTHERS, OwnershipError, check_owner};
use crate::progress::Progress;
use crate::sign::{self, SignError, SignatureTrust, Tool};

/// Number of retries of a reader if a version or tag is replaced or moved meanwhile.
pub(super) const TRIES: usize = 16;

/// A published version. While it lives, no kiln deletes the version's files; a replacement may take its name.
#[derive(Debug)]
pub struct Artifact {
    id: ImageId,
    /// Holds the folder's shared flock.
    folder: Folder,
    manifest: Box<Manifest>,
}

/// Result of [`Artifact::verify`].
#[derive(Debug)]
pub struct VerifyReport {
    id: ImageId,
    /// The intact files, with their digests.
    pub sound: BTreeMap<String, Digest>,
    /// The damage, a fragment for each file, which begins with the file's name.
    pub damage: Vec<String>,
}

impl VerifyReport {
    /// Turns damage into an error.
    ///
    /// # Errors
    /// When anything is damaged.
    pub fn into_result(self) -> Result<(), StoreError> {
        if self.damage.is_empty() { Ok(()) } else { Err(StoreError::Damaged { id: self.id, damage: self.damage }) }
    }
}

impl Store {
    /// Opens a version by its id.
    pub(super) fn artifact_at(&self, id: &ImageId) -> Result<Artifact, StoreError> {
        let folder = self.open_shared(id)?;
        match Manifest::read(&folder) {
            Err(error) if error.is_not_found() => Err(damaged(id, "manifest.json is missing".into())),
            other => Ok(Artifact::new(id.clone(), folder, other?)),
        }
    }

    /// Opens the version's folder and takes its shared lock. Waits only for a process that is removing the version.
    fn open_shared(&self, id: &ImageId) -> Result<Folder, StoreError> {
        check_part(&self.image_path(id.name()))?;
        for _ in 0..TRIES {
            let folder = Folder::open(self.version_path(id))?;
            let meta = folder.file().metadata().map_err(StoreError::io("read", folder.path()))?;
            check_ours(folder.path(), &meta)?;
            folder.file().lock_shared().map_err(StoreError::io("lock", folder.path()))?;
            if folder.is_current() {
                return Ok(folder);
            }
        }
        Err(StoreError::InUse(id.clone()))
    }
}

impl Drop for Artifact {
    fn drop(&mut self) {
        // Unlocked explicitly, because closing is not enough: a child just forked by another thread would keep the lock
        // until it executes.
        let _ = self.folder.file().unlock();
    }
}

impl Artifact {
    pub(super) fn new(id: ImageId, folder: Folder, manifest: Manifest) -> Self {
        Self { id, folder, manifest: Box::new(manifest) }
    }

    /// Returns the id of the version.
    #[must_use]
    pub fn id(&self) -> &ImageId {
        &self.id
    }

    /// Returns the version's folder in the store.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the manifest of the version.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the paths of the image files, in the manifest's order.
    #[must_use]
    pub fn outputs(&self) -> Vec<PathBuf> {
        self.manifest.outputs.iter().map(|output| self.folder().join(&output.file)).collect()
    }

    pub(super) fn open_folder(&self) -> &Folder {
        &self.folder
    }

    /// Checks that every file that the manifest lists has its length: the cheap check before an image is used.
    ///
    /// # Errors
    /// When one is missing or has another length.
    pub fn check_sizes(&self) -> Result<(), StoreError> {
        let mut damage = Vec::new();
        for (file, bytes, _) in self.manifest.vouched() {
            match Job::find(&self.folder, file) {
                Ok(job) if job.bytes == bytes => {}
                Ok(job) => damage.push(format!("{file} has {} bytes and should have {bytes}", job.bytes)),
                Err(error) => damage.push(missing(file, &error)),
            }
        }
        VerifyReport { id: self.id.clone(), sound: BTreeMap::new(), damage }.into_result()
    }

    /// Returns a check of one image file's content, to be run on any thread.
    ///
    /// # Errors
    /// When the file cannot be opened, or the manifest does not list it.
    pub fn file_check(&self, file: &str) -> Result<FileCheck, StoreError> {
        let listed = self.manifest.vouched().find(|(name, ..)| *name == file);
        let (_, _, sha256) = listed.ok_or_else(|| StoreError::NotStaged(file.to_owned()))?;
        let job = Job::find(&self.folder, file)?;
        Ok(FileCheck { id: self.id.clone(), job, sha256 })
    }

    /// Reads the signature of `SHA256SUMS` that a tool has made.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn signature(&self, tool: Tool) -> Result<Option<Vec<u8>>, StoreError> {
        match self.folder.read(tool.file(), sign::LARGEST) {
            Err(error) if error.is_not_found() => Ok(None),
            other => other.map(Some),
        }
    }

    /// Checks the signature of `SHA256SUMS`, and returns the signer.
    ///
    /// # Errors
    /// When there is none of the right kind, or it does not hold.
    pub fn check_signature(&self, trust: &SignatureTrust) -> Result<String, StoreError> {
        let tool = trust.tool()?;
        let signature = self.signature(tool)?.ok_or(SignError::Missing(tool))?;
        Ok(trust.check(&self.folder.read(sums::FILE, sums::LARGEST)?, &signature)?)
    }

    /// Reads every file and compares it with `SHA256SUMS`, and that with the manifest and the folder.
    ///
    /// # Errors
    /// When a file cannot be read for another reason than damage, or the work is cancelled. Damage is in the verdict.
    pub fn verify(&self, progress: &Progress<'_>) -> Result<VerifyReport, StoreError> {
        let mut damage = Vec::new();
        let expected = self.sums()?;
        let mut jobs = Vec::new();
        for file in expected.keys() {
            match Job::find(&self.folder, file) {
                Ok(job) => jobs.push(job),
                Err(error) => damage.push(missing(file, &error)),
            }
        }
        let mut sound = digest::digest_all(&jobs, progress, |_, _| Ok(()))?;
        sound.retain(|file, digest| {
            let is_sound = digest.sha256 == expected[file];
            if !is_sound {
                damage.push(format!("{file} differs from its checksum"));
            }
            is_sound
        });
        damage.extend(self.contradictions(&expected, &sound));
        damage.extend(self.strangers(&expected)?);
        damage.sort_unstable();
        if !damage.is_empty() && !self.folder.is_current() {
            // The files were listed by a path that names another version by now.
            return Err(StoreError::InUse(self.id.clone()));
        }
        Ok(VerifyReport { id: self.id.clone(), sound, damage })
    }

    /// Reads `SHA256SUMS`, as digests by file.
    pub(super) fn sums(&self) -> Result<BTreeMap<String, Sha256Digest>, StoreError> {
        let bytes = match self.folder.read(sums::FILE, sums::LARGEST) {
            Err(error) if error.is_not_found() => return Err(damaged(&self.id, "SHA256SUMS is missing".into())),
            other => other?,
        };
        let sums = str::from_utf8(&bytes).ok().and_then(sums::parse);
        sums.ok_or_else(|| damaged(&self.id, "SHA256SUMS has a line that is no checksum".into()))
    }

    /// Returns the contradictions between manifest, sums and folder name.
    fn contradictions(&self, sums: &BTreeMap<String, Sha256Digest>, sound: &BTreeMap<String, Digest>) -> Vec<String> {
        let mut found = Vec::new();
        for (file, bytes, sha256) in self.manifest.vouched() {
            let is_listed = sums.get(file).is_some_and(|sum| *sum == sha256);
            if !is_listed || sound.get(file).is_some_and(|digest| digest.bytes != bytes) {
                found.push(format!("manifest.json and SHA256SUMS disagree on {file}"));
            }
        }
        let image = &self.manifest.image;
        if (image.name.as_str(), image.version.as_str()) != (self.id.name(), self.id.version()) {
            found.push(format!("manifest.json is that of {}@{}", image.name, image.version));
        }
        if !sums.contains_key(manifest::FILE) {
            found.push("manifest.json is not in SHA256SUMS".into());
        }
        found
    }

    /// Finds files, links and folders that were not there when the version was published, and files and folders that belong
    /// to others or are writable for them.
    fn strangers(&self, sums: &BTreeMap<String, Sha256Digest>) -> Result<Vec<String>, StoreError> {
        let tree = self.folder.tree()?;
        let mut found = self.strange_folders(&tree, sums);
        found.extend(tree.files.iter().chain(&tree.folders).filter_map(|name| self.find_writer(name)));
        let FolderTree { files, links, .. } = tree;
        let strange = files.into_iter().filter(|file| !is_sums_or_signature(file) && !sums.contains_key(file));
        found.extend(strange.map(|file| format!("{file} is not in SHA256SUMS")));
        let listed = &self.manifest.fetched_links;
        let names = links.keys().chain(listed.keys().filter(|name| !links.contains_key(*name)));
        let wrong = names.filter(|name| links.get(*name) != listed.get(*name));
        found.extend(wrong.map(|name| format!("{name} is not the link that manifest.json has of that name")));
        Ok(found)
    }

    /// Finds folders that were added or removed. A folder with files is not listed if it is missing, since its files are.
    fn strange_folders(&self, tree: &FolderTree, sums: &BTreeMap<String, Sha256Digest>) -> Vec<String> {
        let fetched = &self.manifest.fetched_folders;
        let listed = sums.keys().chain(self.manifest.fetched_links.keys());
        let known: BTreeSet<&str> = listed.flat_map(|name| folders_above(name)).collect();
        let mut added = tree.empty_folders();
        added.retain(|name| !fetched.contains(name) && !known.contains(name.as_str()));
        let added = added.into_iter().map(|name| format!("{name} is a folder that holds no file"));
        let mut found: Vec<String> = added.collect();
        let removed = fetched.iter().filter(|name| tree.folders.binary_search(name).is_err());
        found.extend(removed.map(|name| format!("{name} is missing")));
        found
    }

    /// Returns another user who could have written to a file or folder.
    fn find_writer(&self, name: &str) -> Option<String> {
        let path = self.folder.path().join(name);
        // A file that is gone has been reported as missing.
        let meta = path.symlink_metadata().ok()?;
        match check_owner(&path, &meta, GROUP_AND_OTHERS).err()? {
            OwnershipError::NotOwned { owner, .. } => Some(format!("{name} belongs to user {owner}")),
            _ => Some(format!("{name} is writable for others than its owner")),
        }
    }
}

/// One image file and the checksum it was published with.
pub struct FileCheck {
    id: ImageId,
    job: Job,
    sha256: Sha256Digest,
}

impl FileCheck {
    /// Reads the file.
    ///
    /// # Errors
    /// When its content differs, it cannot be read, or the work is cancelled.
    pub fn run(self, progress: &Progress<'_>) -> Result<(), StoreError> {
        let Self { id, job, sha256 } = self;
        let digests = digest::digest_all(std::slice::from_ref(&job), progress, |_, _| Ok(()))?;
        if digests[&job.name].sha256 == sha256 {
            return Ok(());
        }
        Err(damaged(&id, format!("{} differs from its checksum", job.name)))
    }
}

/// Returns whether a file cannot be in `SHA256SUMS`: the file itself, and its signatures.
fn is_sums_or_signature(file: &str) -> bool {
    file == sums::FILE || Tool::ALL.iter().any(|tool| tool.file() == file)
}

fn damaged(id: &ImageId, what: String) -> StoreError {
    StoreError::Damaged { id: id.clone(), damage: vec![what] }
}

fn missing(file: &str, error: &StoreError) -> String {
    match error {
        StoreError::Io { source, .. } if !error.is_not_found() => format!("{file} cannot be opened: {source}"),
        _ => format!("{file} is missing"),
    }
}
