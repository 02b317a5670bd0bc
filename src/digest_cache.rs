//! Digests of large files and trees, remembered between builds, as git's index remembers them.
//!
//! What was hashed is recognised by a stamp: the device, inode, size, mode, mtime and ctime of every entry. Writing to a
//! file, replacing it or resetting its times changes its ctime, which no program can choose. A file that changes twice
//! within one tick of the clock keeps its stamp ("racily clean" in git's racy-git.txt), so a digest is only remembered when
//! the youngest change was a while before the hashing began.
//!
//! The cache is a convenience: if it is lost, damaged or written by two builds at once, files are hashed again.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::digest::Sha256Digest;
use crate::ownership::create_private_path;

/// Time after a change in which a digest is not remembered, longer than the clock tick of every file system in use (FAT
/// counts two seconds).
const RACY: Duration = Duration::from_secs(3);
/// Number of digests that are kept, the ones used last.
const LIMIT: usize = 1000;
const FILE: &str = "digests.json";
const SCHEMA: u32 = 1;

/// A digest of a file or tree, with its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestRecord {
    /// SHA-256 of the file, or of the tree in a form of its own.
    pub sha256: Sha256Digest,
    /// Size of all regular files, bytes.
    pub bytes: u64,
    /// Number of files, folders and links.
    pub entries: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct StoredDigests {
    schema: u32,
    digests: BTreeMap<Sha256Digest, CachedDigest>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CachedDigest {
    #[serde(flatten)]
    digested: DigestRecord,
    /// Time of the last use, seconds since 1970.
    used: u64,
}

/// The remembered digests.
#[derive(Debug)]
pub struct DigestCache {
    folder: PathBuf,
    state: Mutex<DigestTable>,
}

#[derive(Debug, Default)]
struct DigestTable {
    digests: BTreeMap<Sha256Digest, CachedDigest>,
    changed: bool,
}

impl DigestCache {
    /// Reads the remembered digests from a cache folder, if there are any.
    #[must_use]
    pub fn load(folder: &Path) -> Self {
        let text = fs::read(folder.join(FILE)).unwrap_or_default();
        let stored: StoredDigests = serde_json::from_slice(&text).unwrap_or_default();
        let digests = if stored.schema == SCHEMA { stored.digests } else { BTreeMap::new() };
        Self { folder: folder.to_owned(), state: Mutex::new(DigestTable { digests, changed: false }) }
    }

    /// Returns the digest of the file or tree at `path`: the remembered one, or the result of `compute`. `purpose` separates
    /// digests of different kinds.
    ///
    /// # Errors
    /// The error of `compute`.
    ///
    /// # Panics
    /// Only if another thread panicked while holding the lock.
    pub fn digest<E>(
        &self,
        purpose: &str,
        path: &Path,
        compute: impl FnOnce() -> Result<DigestRecord, E>,
    ) -> Result<DigestRecord, E> {
        self.digest_without(&|_, _| false, purpose, path, compute)
    }

    /// Returns the digest of the tree at `path` as [`DigestCache::digest`] does. `leaves_out` decides by the path below the
    /// tree, and whether it is a folder, which entries do not matter; `purpose` has to separate different decisions.
    ///
    /// # Errors
    /// The error of `compute`.
    ///
    /// # Panics
    /// Only if another thread panicked while holding the lock.
    pub fn digest_without<E>(
        &self,
        leaves_out: &LeavesOut<'_>,
        purpose: &str,
        path: &Path,
        compute: impl FnOnce() -> Result<DigestRecord, E>,
    ) -> Result<DigestRecord, E> {
        let began = SystemTime::now();
        let before = ChangeStamp::of(purpose, path, leaves_out).ok();
        if let Some(known) = before.as_ref().and_then(|stamp| self.recall(stamp.id)) {
            return Ok(known);
        }
        let digested = compute()?;
        if let Some(before) = before.filter(|stamp| stamp.settled(began))
            && ChangeStamp::of(purpose, path, leaves_out).is_ok_and(|after| after.id == before.id)
        {
            self.remember(before.id, digested);
        }
        Ok(digested)
    }

    fn recall(&self, id: Sha256Digest) -> Option<DigestRecord> {
        let mut state = self.state.lock().expect("nobody panics with the lock");
        let entry = state.digests.get_mut(&id)?;
        let now = seconds();
        let stale = now.saturating_sub(entry.used) > 24 * 3600;
        entry.used = now;
        let digested = entry.digested;
        // This alone is not worth writing the file at every build.
        state.changed |= stale;
        Some(digested)
    }

    fn remember(&self, id: Sha256Digest, digested: DigestRecord) {
        let mut state = self.state.lock().expect("nobody panics with the lock");
        state.digests.insert(id, CachedDigest { digested, used: seconds() });
        state.changed = true;
    }

    /// Saves new digests.
    ///
    /// # Errors
    /// When the folder cannot be written, which only costs the next build some time.
    ///
    /// # Panics
    /// Only if another thread panicked while holding the lock.
    pub fn save(&self) -> io::Result<()> {
        let mut state = self.state.lock().expect("nobody panics with the lock");
        if !std::mem::take(&mut state.changed) {
            return Ok(());
        }
        if state.digests.len() > LIMIT {
            let mut used: Vec<_> = state.digests.values().map(|entry| entry.used).collect();
            used.sort_unstable();
            let oldest = used[used.len() - LIMIT];
            state.digests.retain(|_, entry| entry.used >= oldest);
        }
        let stored = StoredDigests { schema: SCHEMA, digests: std::mem::take(&mut state.digests) };
        let text = serde_json::to_vec(&stored)?;
        state.digests = stored.digests;
        replace(&self.folder.join(FILE), &text)
    }
}

/// Writes a file of the cache atomically. It is not synced: a cache may be lost.
///
/// # Errors
/// When its folder cannot be created or written.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    create_private_path(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.persist(path)?;
    Ok(())
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Decides by its path below a tree, and whether it is a folder, that an entry does not matter.
type LeavesOut<'f> = dyn Fn(&[u8], bool) -> bool + 'f;

/// Identifies a state of a file or a tree.
struct ChangeStamp {
    id: Sha256Digest,
    /// The latest change of any of its entries, nanoseconds since 1970.
    latest: i128,
}

impl ChangeStamp {
    fn of(purpose: &str, path: &Path, leaves_out: &LeavesOut<'_>) -> io::Result<Self> {
        let mut hasher = StampHasher { sha: Sha256::new_with_prefix(purpose), latest: i128::MIN };
        let root = fs::canonicalize(path)?;
        let metadata = fs::metadata(&root)?;
        hasher.add(Path::new(""), &metadata);
        let mut folders = if metadata.is_dir() { vec![root.clone()] } else { Vec::new() };
        while let Some(folder) = folders.pop() {
            let mut names = fs::read_dir(&folder)?.collect::<io::Result<Vec<_>>>()?;
            names.sort_by_key(fs::DirEntry::file_name);
            for entry in names {
                let path = entry.path();
                let below = path.strip_prefix(&root).unwrap_or(&path);
                if leaves_out(below.as_os_str().as_bytes(), entry.file_type()?.is_dir()) {
                    continue;
                }
                let metadata = entry.metadata()?;
                hasher.add(below, &metadata);
                if metadata.is_dir() {
                    folders.push(path);
                }
            }
        }
        Ok(Self { id: hasher.sha.into(), latest: hasher.latest })
    }

    /// Returns whether the last change was long enough before `began`. A time in the future never is.
    fn settled(&self, began: SystemTime) -> bool {
        let began = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        let limit = began.saturating_sub(RACY).as_nanos();
        i128::try_from(limit).is_ok_and(|limit| self.latest < limit)
    }
}

/// Hashes the metadata of entries, and finds the latest change of any of them.
struct StampHasher {
    sha: Sha256,
    latest: i128,
}

impl StampHasher {
    fn add(&mut self, relative: &Path, metadata: &Metadata) {
        let relative = relative.as_os_str().as_bytes();
        self.sha.update((relative.len() as u64).to_le_bytes());
        self.sha.update(relative);
        for number in [metadata.dev(), metadata.ino(), metadata.size(), metadata.mode().into()] {
            self.sha.update(number.to_le_bytes());
        }
        let times = [(metadata.mtime(), metadata.mtime_nsec()), (metadata.ctime(), metadata.ctime_nsec())];
        for (seconds, rest) in times {
            let nanoseconds = i128::from(seconds) * 1_000_000_000 + i128::from(rest);
            self.latest = self.latest.max(nanoseconds);
            self.sha.update(nanoseconds.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::convert::Infallible;
    use std::fs::File;

    fn record(content: &str) -> DigestRecord {
        DigestRecord { sha256: Sha256Digest::of(content), bytes: 1, entries: 1 }
    }

    /// Requests the digest of `path`, which is computed as that of `content`; returns it, and whether it had to be computed.
    fn ask(memo: &DigestCache, path: &Path, content: &str) -> (Sha256Digest, bool) {
        let computed = Cell::new(false);
        let compute = || {
            computed.set(true);
            Ok::<_, Infallible>(record(content))
        };
        let Ok(digested) = memo.digest("test", path, compute);
        (digested.sha256, computed.get())
    }

    /// Waits until a change is old enough: a ctime cannot be set back.
    fn grow_old() {
        std::thread::sleep(RACY + Duration::from_millis(100));
    }

    #[test]
    fn what_did_not_change_is_remembered_and_what_changed_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let tree = folder.path().join("tree");
        fs::create_dir_all(tree.join("sub")).unwrap();
        let file = tree.join("sub/file");
        fs::write(&file, "one").unwrap();
        let memo = DigestCache::load(&cache);
        assert_eq!(ask(&memo, &tree, "young"), (Sha256Digest::of("young"), true));
        assert_eq!(ask(&memo, &tree, "still young"), (Sha256Digest::of("still young"), true));
        grow_old();
        assert_eq!(ask(&memo, &tree, "one"), (Sha256Digest::of("one"), true));
        memo.save().unwrap();
        let memo = DigestCache::load(&cache);
        assert_eq!(ask(&memo, &tree, "two"), (Sha256Digest::of("one"), false));
        // Same size, and modification time set back.
        let mtime = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, "two").unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(mtime).unwrap();
        assert_eq!(ask(&memo, &tree, "two"), (Sha256Digest::of("two"), true));
    }

    #[test]
    fn a_change_while_hashing_is_not_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "one").unwrap();
        grow_old();
        let memo = DigestCache::load(folder.path());
        let compute = || {
            fs::write(&file, "two").unwrap();
            Ok::<_, Infallible>(record("mixed"))
        };
        let Ok(_) = memo.digest("test", &file, compute);
        assert!(memo.state.lock().unwrap().digests.is_empty());
    }

    #[test]
    fn purposes_are_kept_apart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "one").unwrap();
        let stamp = |purpose| ChangeStamp::of(purpose, &file, &|_, _| false).unwrap().id;
        assert_ne!(stamp("one"), stamp("other"));
    }

    #[test]
    fn d5_a_torn_memory_is_forgotten_and_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let known = |memo: &DigestCache| memo.state.lock().unwrap().digests.len();
        let digested = record("one");
        let memo = DigestCache::load(folder.path());
        memo.remember(Sha256Digest::of("a"), digested);
        memo.save().unwrap();
        let path = folder.path().join(FILE);
        let sound = fs::read(&path).unwrap();
        assert_eq!(known(&DigestCache::load(folder.path())), 1);
        for length in 0..sound.len() {
            for rest in [0, sound.len() - length] {
                fs::write(&path, [&sound[..length], &vec![0; rest]].concat()).unwrap();
                assert_eq!(known(&DigestCache::load(folder.path())), 0, "{length} {rest}");
            }
        }
        let sound = String::from_utf8(sound).unwrap();
        let malformed = sound.replace(&digested.sha256.to_string(), "../../etc/passwd");
        let newer = sound.replacen("\"schema\":1", "\"schema\":2", 1);
        for unusable in [malformed, newer] {
            fs::write(&path, unusable).unwrap();
            assert_eq!(known(&DigestCache::load(folder.path())), 0);
        }
        let memo = DigestCache::load(folder.path());
        memo.remember(Sha256Digest::of("a"), digested);
        memo.save().unwrap();
        assert_eq!(known(&DigestCache::load(folder.path())), 1);
    }
}
