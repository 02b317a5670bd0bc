//! Gets the file of a request: looks for it in the cache, waits for it, or downloads it into the cache.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use crate::digest::Sha256Digest;
use crate::digest_cache::DigestRecord;
use crate::fs::{FileLock, is_at};
use crate::size::ByteSize;
use crate::url::Url;

use super::checksum::{Algorithm, Checksum};
use super::error::DownloadError;
use super::partial_file::{DownloadClaim, ExpectedFile, PartialDownload, VerifiedFile};
use super::watch::DownloadWatch;
use super::{DownloadCache, DownloadRequest, FOLDER_MODE, NetworkMode, places};

/// Name of a file as it was downloaded.
pub(super) const DATA: &str = "data";
const UNPACKED: &str = "unpacked.";
/// Size of reads, bytes.
const PIECE: usize = 1 << 20;

/// A file of the cache in use: it is not removed while this lives.
#[derive(Debug)]
pub struct Download {
    /// Path of the file, which is read-only.
    pub path: PathBuf,
    /// Digest of this file.
    pub sha256: Sha256Digest,
    /// Size of the file, bytes.
    pub bytes: u64,
    /// Digest of the file as it was downloaded; the same if it was not unpacked.
    pub source_sha256: Sha256Digest,
    _used: FileLock,
}

/// A folder of the cache in use.
pub(super) struct DownloadFolder {
    pub(super) folder: PathBuf,
    used: FileLock,
}

impl DownloadFolder {
    /// Opens a folder and locks it with `lock`. Returns `None` if it does not exist, or is being removed.
    pub(super) fn open(folder: &Path, lock: fn(File) -> io::Result<FileLock>) -> Result<Option<Self>, DownloadError> {
        match File::open(folder).and_then(lock) {
            Ok(used) => Ok(is_at(used.file(), folder).then(|| Self { folder: folder.to_owned(), used })),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock) => Ok(None),
            Err(error) => Err(DownloadError::cache("open", folder)(error)),
        }
    }

    /// Returns the path and the expected digest of the unpacked file.
    fn unpacked(&self) -> Option<(PathBuf, Sha256Digest)> {
        let mut found = fs::read_dir(&self.folder).ok()?.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((entry.path(), name.strip_prefix(UNPACKED)?.parse().ok()?))
        });
        found.next()
    }

    fn touch(&self) {
        let _ = self.used.file().set_modified(SystemTime::now());
    }
}

impl DownloadCache {
    /// Returns the file of a request, from the cache or downloaded. Blocks the calling thread, for as long as it takes or
    /// until `watch` breaks; a partial download is continued the next time.
    ///
    /// # Errors
    /// When no place has the right file, it cannot be unpacked, or this host cannot store it. Nothing usable is left then.
    pub fn fetch(&self, request: &DownloadRequest, watch: &mut DownloadWatch<'_>) -> Result<Download, DownloadError> {
        let wanted = ExpectedFile {
            name: request.urls.first().map(Url::file_name).unwrap_or_default(),
            checksum: self.resolve(request, watch)?,
            packing: request.packing,
            limit: request.limits.unpacked,
        };
        let part = self.root.join("part").join(wanted.checksum.hex());
        loop {
            if let Some(found) = self.find(&wanted, watch)? {
                return Ok(found);
            }
            if self.reach == NetworkMode::Offline && !self.has_source(&wanted.checksum) {
                let place = request.urls.first().map_or(wanted.name, Url::to_string);
                return Err(DownloadError::Offline(place));
            }
            let Some(claim) = DownloadClaim::take(&part, &self.fs, watch)? else { continue };
            // Another process may have finished it before the claim was taken.
            if let Some(found) = self.find(&wanted, watch)? {
                claim.leave();
                return Ok(found);
            }
            // A process that evicts unused files may have been faster.
            if let Some(made) = self.make(claim, request, &wanted, watch)? {
                return Ok(made);
            }
        }
    }

    /// Returns the wanted file if it is in the cache and intact. A damaged file is removed.
    fn find(&self, wanted: &ExpectedFile, watch: &mut DownloadWatch<'_>) -> Result<Option<Download>, DownloadError> {
        let Some(source_sha256) = self.known_sha256(&wanted.checksum) else { return Ok(None) };
        let folder = self.entry(source_sha256);
        let Some(entry) = DownloadFolder::open(&folder, FileLock::try_shared)? else { return Ok(None) };
        let file = match wanted.packing {
            None => Some((folder.join(DATA), source_sha256)).filter(|(path, _)| path.exists()),
            Some(_) => entry.unpacked(),
        };
        let Some((path, expected)) = file else { return Ok(None) };
        let found = self.memo.digest("file", &path, || digest(&path, watch))?;
        if found.sha256 == expected {
            entry.touch();
            let DigestRecord { sha256, bytes, .. } = found;
            return Ok(Some(Download { path, sha256, bytes, source_sha256, _used: entry.used }));
        }
        drop(entry);
        self.remove_damaged(&folder, &path, watch)?;
        Ok(None)
    }

    /// Returns the file with this digest, as it was downloaded, if it is in the cache and intact. Blocks while it is hashed,
    /// unless its digest is remembered.
    pub(crate) fn find_file(
        &self,
        sha256: Sha256Digest,
        watch: &mut DownloadWatch<'_>,
    ) -> Result<Option<Download>, DownloadError> {
        let checksum = Checksum::Sha256(sha256);
        let wanted = ExpectedFile { name: String::new(), checksum, packing: None, limit: ByteSize(u64::MAX) };
        self.find(&wanted, watch)
    }

    fn remove_damaged(&self, folder: &Path, path: &Path, watch: &mut DownloadWatch<'_>) -> Result<(), DownloadError> {
        watch.notice(format!("{} is damaged and will be made again", path.display()));
        let removed = match DownloadFolder::open(folder, FileLock::try_exclusive)? {
            Some(_alone) => self.fs.remove(path),
            None => Err(io::Error::other("it is damaged, and another kiln uses it")),
        };
        removed.map_err(DownloadError::cache("replace", path))
    }

    /// Returns the folder of a file with this digest.
    pub(super) fn entry(&self, sha256: Sha256Digest) -> PathBuf {
        self.root.join(Algorithm::Sha256.name()).join(sha256.to_string())
    }

    /// Returns the digest under which a file with this checksum is kept.
    fn known_sha256(&self, checksum: &Checksum) -> Option<Sha256Digest> {
        match checksum {
            Checksum::Sha256(sha256) => Some(*sha256),
            Checksum::Sha512(_) => {
                let target = fs::read_link(self.sha512_link(checksum)).ok()?;
                target.file_name()?.to_str()?.parse().ok()
            }
        }
    }

    fn sha512_link(&self, checksum: &Checksum) -> PathBuf {
        self.root.join(Algorithm::Sha512.name()).join(checksum.hex())
    }

    fn has_source(&self, checksum: &Checksum) -> bool {
        self.known_sha256(checksum).is_some_and(|sha256| self.entry(sha256).join(DATA).exists())
    }

    /// Downloads the file, or unpacks an earlier download. Returns `None` if that was damaged.
    fn make(
        &self,
        claim: DownloadClaim,
        request: &DownloadRequest,
        wanted: &ExpectedFile,
        watch: &mut DownloadWatch<'_>,
    ) -> Result<Option<Download>, DownloadError> {
        let made = match self.unpack_source(&claim, wanted, watch) {
            Ok(None) if self.reach == NetworkMode::Online => PartialDownload::open(&claim, wanted, watch)
                .and_then(|mut part| places::fetch(&request.urls, &mut part, &request.limits, watch))
                .map(Some),
            other => other,
        };
        let committed = made.and_then(|whole| whole.map(|whole| self.commit(&claim, wanted, &whole)).transpose());
        match &committed {
            // A partial download stays, but not on a full disk.
            Err(error) if !matches!(error, DownloadError::Cache { .. }) => claim.leave(),
            _ => claim.discard(),
        }
        committed
    }

    /// Unpacks a file that was downloaded before. Returns `None` if it does not exist, or is not the expected one.
    fn unpack_source(
        &self,
        claim: &DownloadClaim,
        wanted: &ExpectedFile,
        watch: &mut DownloadWatch<'_>,
    ) -> Result<Option<VerifiedFile>, DownloadError> {
        let known = self.known_sha256(&wanted.checksum).filter(|_| wanted.packing.is_some());
        let Some(folder) = known.map(|sha256| self.entry(sha256)) else { return Ok(None) };
        let Some(entry) = DownloadFolder::open(&folder, FileLock::try_shared)? else { return Ok(None) };
        let path = folder.join(DATA);
        let Ok(file) = File::open(&path) else { return Ok(None) };
        if let Some(whole) = VerifiedFile::unpack(&file, claim, wanted, watch)? {
            return Ok(Some(whole));
        }
        drop(entry);
        self.remove_damaged(&folder, &path, watch)?;
        Ok(None)
    }

    /// Gives a complete file its final name. The folder is in use, and so cannot be removed meanwhile.
    fn commit(
        &self,
        claim: &DownloadClaim,
        wanted: &ExpectedFile,
        whole: &VerifiedFile,
    ) -> Result<Download, DownloadError> {
        let entry = self.enter(whole.sha256)?;
        let folder = entry.folder.clone();
        let (path, sha256) = match &whole.unpacked {
            Some(unpacked) => (folder.join(format!("{UNPACKED}{}", unpacked.sha256)), unpacked.sha256),
            None => (folder.join(DATA), whole.sha256),
        };
        self.give_names(claim, whole, &folder, &path).map_err(DownloadError::cache("write", &folder))?;
        self.remember(&wanted.checksum, whole.sha256)?;
        let bytes = path.metadata().map_err(DownloadError::cache("write", &folder))?.len();
        Ok(Download { path, sha256, bytes, source_sha256: whole.sha256, _used: entry.used })
    }

    /// Makes the folder of a file with this digest, if it is missing, and takes it into use.
    pub(super) fn enter(&self, sha256: Sha256Digest) -> Result<DownloadFolder, DownloadError> {
        let folder = self.entry(sha256);
        loop {
            self.fs.ensure_dir(&folder, FOLDER_MODE).map_err(DownloadError::cache("write", &folder))?;
            if let Some(entry) = DownloadFolder::open(&folder, FileLock::shared)? {
                return Ok(entry);
            }
        }
    }

    /// Renames the file, if it is new, and its unpacked form to their final names, durably.
    fn give_names(&self, claim: &DownloadClaim, whole: &VerifiedFile, folder: &Path, path: &Path) -> io::Result<()> {
        if whole.is_new {
            self.fs.rename(&claim.data(), &folder.join(DATA))?;
        }
        if whole.unpacked.is_some() {
            self.fs.rename(&claim.unpacked(), path)?;
        }
        self.fs.sync_dir(folder)?;
        self.fs.sync_dir(&self.root.join("sha256"))
    }

    /// Records the SHA-256 that belongs to a SHA-512, in a symbolic link, which is created atomically.
    fn remember(&self, checksum: &Checksum, sha256: Sha256Digest) -> Result<(), DownloadError> {
        if checksum.algorithm() == Algorithm::Sha256 || self.known_sha256(checksum).is_some() {
            return Ok(());
        }
        let link = self.sha512_link(checksum);
        let made = std::os::unix::fs::symlink(Path::new("../sha256").join(sha256.to_string()), &link);
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(DownloadError::cache("write", &link)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Digests a file. Blocks.
fn digest(path: &Path, watch: &mut DownloadWatch<'_>) -> Result<DigestRecord, DownloadError> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (total, mut file) = opened.map_err(DownloadError::cache("read", path))?;
    let mut sha256 = Sha256::new();
    let mut done = 0;
    let mut piece = vec![0; PIECE];
    while let count @ 1.. = file.read(&mut piece).map_err(DownloadError::cache("read", path))? {
        sha256.update(&piece[..count]);
        done += count as u64;
        watch.read(done, Some(total))?;
    }
    Ok(DigestRecord { sha256: sha256.into(), bytes: done, entries: 1 })
}
