//! What goes when there is to be room: the downloads used longest ago, and none that is in use.

use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::FlockArg;

use super::Downloads;
use super::cache::Entry;
use super::error::DownloadError;
use crate::size::ByteSize;

/// What an eviction did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Evicted {
    /// Files removed, each with what it unpacks to.
    pub downloads: usize,
    /// Bytes they took on this host.
    pub bytes: u64,
    /// Bytes of what is left.
    pub left: u64,
}

struct Candidate {
    used: SystemTime,
    folder: PathBuf,
    bytes: u64,
}

impl Downloads {
    /// Removes downloads, whole ones and partial ones alike, until the rest takes at most `keep`. What is in use stays.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn evict(&self, keep: ByteSize) -> Result<Evicted, DownloadError> {
        let evicted = self.remove_until(keep, |folder| self.remove(folder))?;
        self.forget();
        Ok(evicted)
    }

    /// Tells what [`Downloads::evict`] would do, and removes nothing. What is in use now counts as removed.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn rehearse_eviction(&self, keep: ByteSize) -> Result<Evicted, DownloadError> {
        self.remove_until(keep, |_| true)
    }

    fn remove_until(&self, keep: ByteSize, remove: impl Fn(&Path) -> bool) -> Result<Evicted, DownloadError> {
        use io::ErrorKind::{NotADirectory, NotFound};
        let mut candidates = Vec::new();
        for folder in ["sha256", "part"].map(|name| self.root.join(name)) {
            let failed = |source| DownloadError::cache("read", &folder)(source);
            for entry in fs::read_dir(&folder).map_err(failed)? {
                match candidate(&entry.map_err(failed)?) {
                    // Another kiln makes room as well, or has just finished this one; or it is none of ours.
                    Err(error) if matches!(error.kind(), NotFound | NotADirectory) => {}
                    other => candidates.push(other.map_err(failed)?),
                }
            }
        }
        candidates.sort_by_key(|candidate| candidate.used);
        let mut evicted =
            Evicted { left: candidates.iter().map(|candidate| candidate.bytes).sum(), ..Evicted::default() };
        for Candidate { folder, bytes, .. } in candidates {
            if (evicted.left > keep.bytes() || bytes == 0) && remove(&folder) {
                evicted.downloads += usize::from(bytes > 0);
                evicted.bytes += bytes;
                evicted.left -= bytes;
            }
        }
        Ok(evicted)
    }

    /// Removes one that nobody uses. It is renamed first: from then on nobody finds it, and what cannot be deleted now is a
    /// partial download for the next time.
    fn remove(&self, folder: &Path) -> bool {
        let Ok(Some(_alone)) = Entry::open(folder, FlockArg::LockExclusiveNonblock) else { return false };
        let doomed = self.root.join("part").join(self.fs.fresh_name());
        self.fs.rename(folder, &doomed).and_then(|()| self.fs.remove(&doomed)).is_ok()
    }

    /// Removes the links of SHA-512 whose files are gone, and lists of checksums that a kill left unfinished.
    fn forget(&self) {
        let sums = self.root.join("sums");
        if let (Ok(Some(_turn)), Ok(lists)) = (Entry::open(&sums, FlockArg::LockExclusive), fs::read_dir(&sums)) {
            let unfinished = |path: &PathBuf| path.extension().is_none();
            for list in lists.flatten().map(|list| list.path()).filter(unfinished) {
                let _ = self.fs.remove(&list);
            }
        }
        let Ok(links) = fs::read_dir(self.root.join("sha512")) else { return };
        for link in links.flatten().map(|link| link.path()).filter(|link| !link.exists()) {
            let _ = self.fs.remove(&link);
        }
    }
}

fn candidate(entry: &DirEntry) -> io::Result<Candidate> {
    let folder = entry.path();
    let used = entry.metadata()?.modified()?;
    let mut bytes = 0;
    for file in fs::read_dir(&folder)? {
        bytes += file?.metadata()?.blocks() * 512;
    }
    Ok(Candidate { used, folder, bytes })
}
