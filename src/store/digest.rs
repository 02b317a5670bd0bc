//! SHA-256 of files, several at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sha2::{Digest as _, Sha256};

use crate::digest::Sha256Digest;
use crate::progress::Progress;

use super::error::StoreError;
use super::folder::Folder;

/// Bytes read at a time; a cancelled digest stops after at most so many.
const CHUNK: usize = 1 << 20;

/// Length and SHA-256 of a file, taken from the same descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    /// Length of the file.
    pub bytes: u64,
    /// SHA-256 of its content.
    pub sha256: Sha256Digest,
}

/// Returns the digest of bytes in memory.
pub(super) fn of_bytes(bytes: &[u8]) -> Digest {
    Digest { bytes: bytes.len() as u64, sha256: Sha256Digest::of(bytes) }
}

/// A file to digest. It is open only while it is read: a version may have more files than a process may have open.
pub(super) struct Job {
    pub(super) name: String,
    pub(super) bytes: u64,
    folder: Folder,
}

impl Job {
    /// Finds a file below a folder.
    pub(super) fn find(folder: &Folder, name: &str) -> Result<Self, StoreError> {
        let file = folder.open_file(name)?;
        let bytes = file.metadata().map_err(StoreError::io("read", folder.path().join(name)))?.len();
        Ok(Self { name: name.to_owned(), bytes, folder: folder.clone() })
    }

    /// Opens the file for reading.
    pub(super) fn open(&self) -> Result<File, StoreError> {
        self.folder.open_file(&self.name)
    }
}

/// Reads one file to its end.
fn digest(job: &Job, mut file: &File, progress: &Progress<'_>) -> Result<Digest, StoreError> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let n = match file.read(&mut chunk) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(StoreError::io("read", &job.name)(error)),
        };
        if n == 0 {
            return Ok(Digest { bytes, sha256: hasher.into() });
        }
        hasher.update(&chunk[..n]);
        bytes += n as u64;
        progress.advance(n as u64)?;
    }
}

/// Digests all files on as many threads as there are processors, and passes each open file to `then` on the thread that read
/// it. The first error stops the rest.
pub(super) fn digest_all(
    jobs: &[Job],
    progress: &Progress<'_>,
    then: impl Fn(&Job, &File) -> Result<(), StoreError> + Sync,
) -> Result<BTreeMap<String, Digest>, StoreError> {
    progress.begin(jobs.iter().map(|job| job.bytes).sum());
    let next = AtomicUsize::new(0);
    let outcome = Mutex::new(Ok(BTreeMap::new()));
    let work = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = job.open().and_then(|file| {
                let digest = digest(job, &file, progress)?;
                then(job, &file).map(|()| digest)
            });
            let mut outcome = outcome.lock().expect("no thread panics while it holds the lock");
            match (&mut *outcome, result) {
                (Ok(digests), Ok(digest)) => drop(digests.insert(job.name.clone(), digest)),
                (Ok(_), Err(error)) => *outcome = Err(error),
                // Another file failed before; its error is returned.
                (Err(_), _) => {}
            }
            if outcome.is_err() {
                next.store(jobs.len(), Ordering::Relaxed);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, Into::into).min(jobs.len());
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    outcome.into_inner().expect("no thread panics while it holds the lock")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use tokio_util::sync::CancellationToken;

    use super::*;

    struct Files {
        dir: tempfile::TempDir,
        folder: Folder,
    }

    impl Files {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let folder = Folder::open(dir.path()).unwrap();
            Self { dir, folder }
        }

        fn job(&self, name: &str, content: &[u8]) -> Job {
            std::fs::write(self.dir.path().join(name), content).unwrap();
            Job::find(&self.folder, name).unwrap()
        }
    }

    #[test]
    fn digests_are_sha256() {
        // FIPS 180-4, the one-block example and the empty message.
        let files = Files::new();
        let jobs = [files.job("abc", b"abc"), files.job("empty", b"")];
        let digests = digest_all(&jobs, &Progress::unwatched(), |_, _| Ok(())).unwrap();
        assert_eq!(
            digests["abc"].sha256.to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            digests["empty"].sha256.to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!((digests["abc"].bytes, digests["empty"].bytes), (3, 0));
        assert_eq!(digests["abc"], of_bytes(b"abc"));
    }

    #[test]
    fn every_byte_is_progress_and_the_work_can_be_cancelled() {
        let files = Files::new();
        let jobs = || [files.job("a", &vec![1; 3 * CHUNK]), files.job("b", &vec![2; 2 * CHUNK])];
        let most = AtomicU64::new(0);
        let cancel = CancellationToken::new();
        let progress = Progress::new(&cancel, |done, total| {
            assert_eq!(total, 5 * CHUNK as u64);
            most.fetch_max(done, Ordering::Relaxed);
        });
        digest_all(&jobs(), &progress, |_, _| Ok(())).unwrap();
        assert_eq!(most.load(Ordering::Relaxed), 5 * CHUNK as u64);
        cancel.cancel();
        assert!(matches!(digest_all(&jobs(), &progress, |_, _| Ok(())), Err(StoreError::Cancelled(_))));
    }

    #[test]
    fn the_first_error_stands() {
        let fail = |job: &Job, _: &File| Err(StoreError::NotStaged(job.name.clone()));
        assert!(matches!(
            digest_all(&[Files::new().job("a", b"")], &Progress::unwatched(), fail),
            Err(StoreError::NotStaged(_))
        ));
    }
}
