//! A store with images for tests of its readers.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use super::manifest::tests::sample;
use super::{Evidence, ImageId, Lookup, Store};
use crate::error::Failure;
use crate::progress::Progress;

/// A store in a temporary folder.
pub(crate) struct TestStore {
    _dir: tempfile::TempDir,
    pub(crate) store: Store,
}

impl TestStore {
    /// Publishes these versions, in this order, with the content `disk`.
    pub(crate) fn with(ids: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for (name, version) in ids.iter().map(|id| id.split_once('@').unwrap()) {
            let id = ImageId::new(name, version).unwrap();
            let Lookup::Vacant(lock) = runtime.block_on(store.claim(&id, |_| {})).unwrap() else {
                panic!("{id} exists")
            };
            let staging = lock.stage().unwrap();
            fs::write(staging.path().join(format!("{name}-{version}.qcow2")), "disk").unwrap();
            drop(staging.finish(sample(name, version, "disk"), &Evidence::default(), &Progress::unwatched()).unwrap());
        }
        Self { _dir: dir, store }
    }

    /// Overwrites a file to damage it.
    pub(crate) fn overwrite(&self, path: &str, content: &str) {
        let path = self.store.path().join(path);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// Returns the standard output of a command.
pub(crate) fn written(verb: impl FnOnce(&mut dyn Write) -> Result<(), Failure>) -> Result<String, Failure> {
    let mut out = Vec::new();
    verb(&mut out)?;
    Ok(String::from_utf8(out).unwrap())
}
