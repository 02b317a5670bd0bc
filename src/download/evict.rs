//! Eviction of downloads: those that were used longest ago, and none that is in use.

use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::DownloadCache;
use super::cache::DownloadFolder;
use super::error::DownloadError;
use crate::fs::FileLock;
use crate::size::ByteSize;

/// Result of an eviction.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct DownloadEviction {
    /// Number of removed files, each counted with its unpacked form.
    pub downloads: usize,
    /// Size of the removed files on this host, bytes.
    pub bytes: u64,
    /// Size of the remaining files, bytes.
    pub left: u64,
}

struct EvictableDownload {
    used: SystemTime,
    folder: PathBuf,
    bytes: u64,
}

impl DownloadCache {
    /// Removes complete and partial downloads until the rest takes at most `keep`. Files in use are kept.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn evict(&self, keep: ByteSize) -> Result<DownloadEviction, DownloadError> {
        let evicted = self.remove_until(keep, |folder| self.remove(folder))?;
        self.forget();
        Ok(evicted)
    }

    /// Returns what [`DownloadCache::evict`] would do, and removes nothing. Files that are in use now count as removed.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn rehearse_eviction(&self, keep: ByteSize) -> Result<DownloadEviction, DownloadError> {
        self.remove_until(keep, |_| true)
    }

    fn remove_until(&self, keep: ByteSize, remove: impl Fn(&Path) -> bool) -> Result<DownloadEviction, DownloadError> {
        use io::ErrorKind::{NotADirectory, NotFound};
        let mut candidates = Vec::new();
        for folder in ["sha256", "part"].map(|name| self.root.join(name)) {
            for entry in fs::read_dir(&folder).map_err(DownloadError::cache("read", &folder))? {
                match entry.and_then(|entry| candidate(&entry)) {
                    // Another kiln evicts as well, or has just finished this one; or kiln did not create it.
                    Err(error) if matches!(error.kind(), NotFound | NotADirectory) => {}
                    other => candidates.push(other.map_err(DownloadError::cache("read", &folder))?),
                }
            }
        }
        candidates.sort_by_key(|candidate| candidate.used);
        let mut evicted = DownloadEviction {
            left: candidates.iter().map(|candidate| candidate.bytes).sum(),
            ..DownloadEviction::default()
        };
        for EvictableDownload { folder, bytes, .. } in candidates {
            if (evicted.left > keep.bytes() || bytes == 0) && remove(&folder) {
                evicted.downloads += usize::from(bytes > 0);
                evicted.bytes += bytes;
                evicted.left -= bytes;
            }
        }
        Ok(evicted)
    }

    /// Removes a download that nobody uses. Renames it first: from then on it cannot be found, and files that cannot be
    /// deleted now are a partial download for the next time.
    fn remove(&self, folder: &Path) -> bool {
        let Ok(Some(_alone)) = DownloadFolder::open(folder, FileLock::try_exclusive) else { return false };
        let doomed = self.root.join("part").join(self.fs.fresh_name());
        self.fs.rename(folder, &doomed).and_then(|()| self.fs.remove(&doomed)).is_ok()
    }

    /// Removes the links of SHA-512 whose files are gone, and lists of checksums that a killed kiln left unfinished.
    fn forget(&self) {
        let sums = self.root.join("sums");
        if let (Ok(Some(_turn)), Ok(lists)) = (DownloadFolder::open(&sums, FileLock::exclusive), fs::read_dir(&sums)) {
            for list in lists.flatten().map(|list| list.path()).filter(|list| list.extension().is_none()) {
                let _ = self.fs.remove(&list);
            }
        }
        let Ok(links) = fs::read_dir(self.root.join("sha512")) else { return };
        for link in links.flatten().map(|link| link.path()).filter(|link| !link.exists()) {
            let _ = self.fs.remove(&link);
        }
    }
}

fn candidate(entry: &DirEntry) -> io::Result<EvictableDownload> {
    let folder = entry.path();
    let used = entry.metadata()?.modified()?;
    let mut bytes = 0;
    for file in fs::read_dir(&folder)? {
        bytes += file?.metadata()?.blocks() * 512;
    }
    Ok(EvictableDownload { used, folder, bytes })
}
