//! Tests of the store as its users see it. Fault rows are those of the table in `docs/faults.md`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::progress::Progress;

use super::manifest::tests::sample;
use super::*;

mod damage;
mod evidence;
mod exporting;
mod failing;
mod killing;
mod power;
mod publishing;
mod racing;
mod reading;
mod removing;
mod tagging;

/// A store in a temporary folder.
struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        Self::below(tempfile::tempdir().unwrap())
    }

    /// Creates a store in memory, where a sync costs nothing, for tests that need many stores.
    fn in_memory() -> Self {
        Self::below(crate::fs::testing::crash::scratch())
    }

    fn below(dir: tempfile::TempDir) -> Self {
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    /// Opens the store again, as another process would: flocks belong to open files, not to processes.
    fn reopen(&self) -> Store {
        Store::open(self.store.path()).unwrap()
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.store.path().join(relative)
    }

    /// Returns the names in tmp.
    fn litter(&self) -> Vec<String> {
        entries(&self.path(".kiln/tmp")).unwrap()
    }
}

fn id(text: &str) -> ImageId {
    let (name, version) = text.split_once('@').unwrap();
    ImageId::new(name, version).unwrap()
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn wait_for<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// Claims a version that nobody else claims.
fn claim(store: &Store, text: &str) -> Result<Lookup, StoreError> {
    wait_for(store.claim(&id(text), |sentence| panic!("{sentence}")))
}

fn vacant(store: &Store, text: &str) -> VersionLock {
    match claim(store, text).unwrap() {
        Lookup::Vacant(lock) => lock,
        Lookup::Exists(existing) => panic!("{} exists", existing.artifact().id()),
    }
}

fn existing(store: &Store, text: &str) -> ExistingVersion {
    match claim(store, text).unwrap() {
        Lookup::Vacant(lock) => panic!("{} does not exist", lock.id()),
        Lookup::Exists(existing) => existing,
    }
}

/// Stages an image file with this content, a log and a fetched file, and publishes them with a key equal to the content.
fn fill(lock: VersionLock, content: &str) -> Result<Artifact, StoreError> {
    let (name, version) = (lock.id().name().to_owned(), lock.id().version().to_owned());
    let calls = lock.store.fs.clone();
    let staging = lock.stage()?;
    let put = |file: &str, content| {
        let path = staging.path().join(file);
        calls.put(&path, content).map_err(StoreError::io("write", path))
    };
    put(&format!("{name}-{version}.qcow2"), content)?;
    put("build.log", "boot\n")?;
    let reports = staging.path().join("reports");
    calls.create_dir(&reports, 0o700).map_err(StoreError::io("create", &reports))?;
    put("reports/a.json", "{}")?;
    let mut manifest = sample(&name, &version, content);
    manifest.fetched.push(manifest::StoredFile::staged("reports/a.json"));
    staging.finish(manifest, &Evidence::default(), &Progress::unwatched())
}

/// Publishes a version that is not there.
fn publish(store: &Store, text: &str, content: &str) -> Artifact {
    fill(vacant(store, text), content).unwrap()
}

/// Publishes a version that was built from another.
fn publish_on(store: &Store, text: &str, base: &Artifact) {
    let Lookup::Vacant(lock) = claim(store, text).unwrap() else { panic!("{text} exists") };
    let (name, version) = text.split_once('@').unwrap();
    let staging = lock.stage().unwrap();
    let mut manifest = sample(name, version, text);
    manifest.outputs.clear();
    manifest.base.image = Some(manifest::ManifestBaseImage {
        name: base.id().name().into(),
        version: base.id().version().into(),
        build_key: base.manifest().build_key.clone(),
        disk_sha256: base.manifest().disk_sha256,
        disk_chunks_sha256: base.manifest().disk_chunks_sha256,
    });
    drop(staging.finish(manifest, &Evidence::default(), &Progress::unwatched()).unwrap());
}

/// Removes a version that no other was built from.
fn remove(store: &Store, text: &str) -> Result<ImageId, StoreError> {
    store.remove(&reference(text), IfBase::Keep)
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

/// Sets a tag to a version.
fn set(store: &Store, image: &str, name: &str) -> Result<TagChange, StoreError> {
    store.tag(&reference(image), &tag(name))
}

/// Checks that the store contains an intact version with this content.
fn assert_sound(store: &Store, text: &str, content: &str) {
    let artifact = store.artifact(&reference(text)).unwrap();
    artifact.verify(&Progress::unwatched()).unwrap().into_result().unwrap();
    assert_eq!(fs::read_to_string(&artifact.outputs()[0]).unwrap(), content);
}

/// Returns the content of a version, if it exists; it must be intact then.
fn content(store: &Store, text: &str) -> Option<String> {
    let artifact = match store.artifact(&reference(text)) {
        Ok(artifact) => artifact,
        Err(StoreError::NoVersion { .. } | StoreError::NoImage { .. }) => return None,
        Err(error) => panic!("{error}"),
    };
    artifact.verify(&Progress::unwatched()).unwrap().into_result().unwrap();
    Some(fs::read_to_string(&artifact.outputs()[0]).unwrap())
}

/// Returns the progress of work that was cancelled before it began.
fn cancelled() -> Progress<'static> {
    let cancel = CancellationToken::new();
    cancel.cancel();
    Progress::unreported(&cancel)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}
