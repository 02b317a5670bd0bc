//! `-o DIR`: copies a version's files into a folder of the user's.

use std::fs::File;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use crate::digest::{Sha256Digest, sha256_file};
use crate::fs::{self, OnConflict};
use crate::progress::{CancelledError, Progress};
use crate::sign::Tool;

use super::artifact::Artifact;
use super::digest::{self, Digest, Job};
use super::error::StoreError;
use super::folder::Folder;
use super::{clone, sums};

/// Mode of the copies, which the user may run and change.
const MODE: u32 = 0o644;

/// An error of a copy: `?` converts both kinds of error into this one.
enum CopyError {
    Io(io::Error),
    Cancelled(CancelledError),
}

impl From<CancelledError> for CopyError {
    fn from(cancelled: CancelledError) -> Self {
        Self::Cancelled(cancelled)
    }
}

impl From<io::Error> for CopyError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Artifact {
    /// Copies every file of the version into `target`, created if missing, and returns the paths of the copied image files.
    /// Each file appears atomically; an existing file with the same content is left alone.
    ///
    /// # Errors
    /// When a file is there that differs, a call fails, or the work is cancelled.
    pub fn export(
        &self,
        target: &Path,
        conflict: OnConflict,
        progress: &Progress<'_>,
    ) -> Result<Vec<PathBuf>, StoreError> {
        let target = self.export_some(|_| true, target, conflict, progress)?;
        Ok(self.manifest().outputs.iter().map(|output| target.join(&output.file)).collect())
    }

    /// Copies one file of the version in the same way, and returns its path.
    ///
    /// # Errors
    /// As [`Artifact::export`].
    pub fn export_file(
        &self,
        file: &str,
        target: &Path,
        conflict: OnConflict,
        progress: &Progress<'_>,
    ) -> Result<PathBuf, StoreError> {
        Ok(self.export_some(|name| name == file, target, conflict, progress)?.join(file))
    }

    /// Copies the wanted files, and returns the path of `target` without links.
    fn export_some(
        &self,
        is_wanted: impl Fn(&str) -> bool,
        target: &Path,
        conflict: OnConflict,
        progress: &Progress<'_>,
    ) -> Result<PathBuf, StoreError> {
        self.check_sizes()?;
        let target = create_target(target)?;
        let wanted = self.missing_in(&target, &is_wanted, conflict, progress)?;
        progress.begin(wanted.iter().map(|job| job.bytes).sum());
        for job in &wanted {
            copy_into_place(job, &target.path().join(&job.name), conflict, progress)?;
        }
        for (name, to) in self.manifest().fetched_links.iter().filter(|(name, _)| is_wanted(name)) {
            link_into_place(to, &target.path().join(name), conflict)?;
        }
        Ok(target.path().to_owned())
    }

    /// Returns the wanted files that are not in the target yet.
    fn missing_in(
        &self,
        target: &Folder,
        is_wanted: impl Fn(&str) -> bool,
        conflict: OnConflict,
        progress: &Progress<'_>,
    ) -> Result<Vec<Job>, StoreError> {
        let mut sums = self.sums()?;
        let own = Sha256Digest::of(self.open_folder().read(sums::FILE, sums::LARGEST)?);
        sums.insert(sums::FILE.to_owned(), own);
        for tool in Tool::ALL {
            if let Some(signature) = self.signature(tool)? {
                sums.insert(tool.file().to_owned(), Sha256Digest::of(&signature));
            }
        }
        let mut wanted = Vec::new();
        for (name, sha256) in sums.iter().filter(|(name, _)| is_wanted(name)) {
            let job = Job::find(self.open_folder(), name)?;
            let path = target.path().join(name);
            match path.symlink_metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => wanted.push(job),
                _ if has_digest(target, &job, *sha256, progress)? => {}
                _ if conflict == OnConflict::Replace => wanted.push(job),
                _ => return Err(StoreError::Conflict(path)),
            }
        }
        Ok(wanted)
    }
}

fn create_target(path: &Path) -> Result<Folder, StoreError> {
    std::fs::create_dir_all(path).map_err(StoreError::io("create", path))?;
    // The user's own path may contain links; the paths below it may not.
    Folder::open(path.canonicalize().map_err(StoreError::io("find", path))?)
}

/// Returns whether the target's file of that name has the same content. A file that is not regular never has.
fn has_digest(target: &Folder, job: &Job, sha256: Sha256Digest, progress: &Progress<'_>) -> Result<bool, StoreError> {
    match Job::find(target, &job.name) {
        Ok(there) if there.bytes == job.bytes => {
            let digests = digest::digest_all(&[there], progress, |_, _| Ok(()))?;
            Ok(digests[&job.name].sha256 == sha256)
        }
        _ => Ok(false),
    }
}

/// Renames finished files to their final names, each in a folder of the same file system, durably. An existing file with the
/// same content is left alone. Returns lengths and digests. Blocks.
///
/// # Errors
/// When a file is there that differs, before any is named; when a call fails.
pub fn give_names(files: &[(PathBuf, PathBuf)], conflict: OnConflict) -> Result<Vec<Digest>, StoreError> {
    let mut found = Vec::new();
    for (made, path) in files {
        let (file, digest) = digested(made)?;
        let is_there = match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Ok(facts) if facts.is_file() && facts.len() == digest.bytes && digested(path)?.1 == digest => true,
            _ if conflict == OnConflict::Replace => false,
            _ => return Err(StoreError::Conflict(path.clone())),
        };
        found.push((file, digest, is_there));
    }
    let mut digests = Vec::new();
    for ((made, path), (file, digest, is_there)) in files.iter().zip(found) {
        if !is_there {
            let made = TempPath::try_from_path(made).map(|made| NamedTempFile::from_parts(file, made));
            let named = made.and_then(|made| fs::publish(made, path, MODE, conflict));
            named.map_err(StoreError::io("write", path))?;
        }
        digests.push(digest);
    }
    Ok(digests)
}

/// Opens a file of the user's and digests it.
fn digested(path: &Path) -> Result<(File, Digest), StoreError> {
    let file = File::open(path).map_err(StoreError::io("read", path))?;
    let bytes = file.metadata().map_err(StoreError::io("read", path))?.len();
    let sha256 = sha256_file(&file).map_err(StoreError::io("read", path))?;
    Ok((file, Digest { bytes, sha256 }))
}

/// Copies to a temporary name, syncs, renames, and syncs the folder.
fn copy_into_place(job: &Job, path: &Path, conflict: OnConflict, progress: &Progress<'_>) -> Result<(), StoreError> {
    create_folder_of(path)?;
    let temporary = fs::create_beside(path).map_err(StoreError::io("write", path))?;
    let copied = clone::copy(&job.open()?, temporary.as_file(), |n| Ok(progress.advance(n)?));
    copied.map_err(|error| match error {
        CopyError::Io(error) => StoreError::io("write", path)(error),
        CopyError::Cancelled(cancelled) => cancelled.into(),
    })?;
    fs::publish(temporary, path, MODE, conflict).map_err(StoreError::io("write", path))
}

fn create_folder_of(path: &Path) -> Result<(), StoreError> {
    let folder = path.parent().expect("a path below the target");
    std::fs::create_dir_all(folder).map_err(StoreError::io("create", folder))
}

/// Creates a link, in place of another link if that is allowed. Anything else is never replaced.
fn link_into_place(to: &str, path: &Path, conflict: OnConflict) -> Result<(), StoreError> {
    create_folder_of(path)?;
    match (std::fs::read_link(path), conflict) {
        (Ok(found), _) if found == Path::new(to) => return Ok(()),
        (Ok(_), OnConflict::Replace) => std::fs::remove_file(path).map_err(StoreError::io("link", path))?,
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {}
        _ => return Err(StoreError::Conflict(path.to_owned())),
    }
    symlink(to, path).map_err(StoreError::io("link", path))
}
