//! Small files in the cache, each about one base image. They only save time.
//!
//! ```text
//! CACHE/FOLDER/KEY     the SHA-256 of KEY and the rest of the file in hex, a newline, and the rest
//! ```

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::digest::Sha256Digest;
use crate::digest_cache;
use crate::plan::key::CacheKey;

/// The number of files in a folder.
const MOST_FILES: usize = 64;
/// The length of the first line in bytes.
const HEAD: u64 = 65;

/// A folder of the cache with files about base images.
#[derive(Clone)]
pub(super) struct BaseRecords {
    folder: PathBuf,
    /// The length of the longest content in bytes.
    largest: u64,
}

impl BaseRecords {
    pub(super) fn new(folder: PathBuf, largest: u64) -> Self {
        Self { folder, largest }
    }

    /// Reads what is kept under a key; `None` if that is nothing, or is damaged.
    pub(super) fn find(&self, key: CacheKey) -> Option<Vec<u8>> {
        let path = self.path(key);
        let mut bytes = Vec::new();
        File::open(&path).ok()?.take(HEAD + self.largest).read_to_end(&mut bytes).ok()?;
        let split = bytes.iter().position(|byte| *byte == b'\n')?;
        let content = bytes.split_off(split + 1);
        (bytes[..split] == *bound_digest(&path, &content).to_string().as_bytes()).then_some(content)
    }

    /// Keeps content under a key, if it is other content than before, and removes the files that were kept longest ago.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub(super) fn keep(&self, key: CacheKey, content: &[u8]) -> io::Result<()> {
        if content.len() as u64 > self.largest || self.find(key).as_deref() == Some(content) {
            return Ok(());
        }
        let path = self.path(key);
        let head = format!("{}\n", bound_digest(&path, content));
        digest_cache::replace(&path, &[head.as_bytes(), content].concat())?;
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            kept.push((entry.metadata()?.modified()?, entry.path()));
        }
        kept.sort_unstable();
        let surplus = kept.len().saturating_sub(MOST_FILES);
        kept[..surplus].iter().try_for_each(|(_, path)| fs::remove_file(path))
    }

    fn path(&self, key: CacheKey) -> PathBuf {
        self.folder.join(key.to_string())
    }
}

/// Returns the digest of a file's content and of its name: what is kept of another base is not taken for that of this one.
fn bound_digest(path: &Path, content: &[u8]) -> Sha256Digest {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    Sha256Digest::of([name, b"\n", content].concat())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn content_survives_and_damaged_content_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let records = BaseRecords::new(folder.path().to_owned(), 100);
        let key = CacheKey::root();
        let other = key.then(&json!("other"));
        let content = b"lines\nof content\0\n".to_vec();
        assert_eq!(records.find(key), None);
        records.keep(key, &content).unwrap();
        assert_eq!(records.find(key).as_ref(), Some(&content));
        assert_eq!(records.find(other), None);
        let path = records.path(key);
        let sound = fs::read(&path).unwrap();
        for index in 0..sound.len() {
            let mut damaged = sound.clone();
            damaged[index] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(records.find(key), None, "{index}");
            fs::write(&path, &sound[..index]).unwrap();
            assert_eq!(records.find(key), None, "{index}");
        }
        fs::write(records.path(other), &sound).unwrap();
        assert_eq!(records.find(other), None, "the file of another base");
        fs::write(&path, &sound).unwrap();
        assert_eq!(records.find(key), Some(content));
        records.keep(other, &[0; 101]).unwrap();
        assert_eq!(records.find(other), None, "longer than any content");
    }

    #[test]
    fn files_are_not_kept_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let records = BaseRecords::new(folder.path().to_owned(), 100);
        let mut key = CacheKey::root();
        for _ in 0..MOST_FILES + 5 {
            key = key.then(&json!("next"));
            records.keep(key, b"content").unwrap();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), MOST_FILES);
        assert_eq!(records.find(key).unwrap(), b"content");
    }
}
