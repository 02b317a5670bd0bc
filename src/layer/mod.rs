//! The layers of the step cache on the disk: frozen disks, and memory to continue from, addressed by the key of the step that produced them.
//!
//! ```text
//! CACHE/layers/KEY.ID/layer.json    its facts; a folder of this name is complete
//! CACHE/layers/KEY.ID/disk.qcow2    the changes of the disk since its parent; never written again
//! CACHE/layers/KEY.ID/ram           the machine's memory at that moment, where there is one (mode 0600)
//! CACHE/layers/KEY.ID/uefi-vars     the UEFI variables at that moment, where the machine has some
//! CACHE/layers/KEY.ID/fetched/KEY   the tree that the fetch step of this key fetched, as the guest sent it
//! CACHE/layers/claim-KEY            locked by the build that makes the first layer of this key
//! CACHE/layers/draft-XXXXXX/        an incomplete one; removed when its process is dead
//! ```
//!
//! One key may have several layers, each with an id of its own: two runs of a step never produce the same bits. A layer
//! names its parent by both, so it is never combined with the result of another run than the one it is based on. A process
//! that uses a layer holds a shared flock(2) on its folder; it is only removed under an exclusive one. Creating drafts and
//! removing dead ones exclude each other, by a lock on the folder of layers: no process ever sees a draft that is not locked
//! yet. Every file is checked against its digest before it is used, once for each change of its inode ([`DigestCache`]).

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::digest::{Sha256Digest, sha256_data};
use crate::digest_cache::{DigestCache, DigestRecord};
use crate::fs::{DraftFolder, FileLock, Fs, try_lock};
use crate::plan::key::CacheKey;

mod covered;
pub mod evict;
pub mod index;

pub use covered::{CoveredStep, FetchedStream, KeptTree};
use index::LayerIndex;

const SCHEMA: u32 = 1;
const FACTS: &str = "layer.json";
const DISK: &str = "disk.qcow2";
const RAM: &str = "ram";
const FETCHED: &str = "fetched";
const UEFI_VARS: &str = "uefi-vars";
const DRAFT: &str = "draft-";
/// Mode of the files of a layer that kiln itself writes.
const FILE_MODE: u32 = 0o600;
/// Mode of the layer folders.
const FOLDER_MODE: u32 = 0o700;

/// Name of a layer: one result of running a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// Key of the step.
    pub key: String,
    /// Random id, which distinguishes results of the same step.
    pub id: String,
}

/// A file of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFile {
    /// Size of the file, bytes.
    pub bytes: u64,
    /// Digest of its data and their offsets: most of a memory file consists of holes.
    pub sha256: Sha256Digest,
}

/// Memory that a machine can continue from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerMemory {
    /// Digest and size of the file.
    pub file: LayerFile,
    /// Name of its layout, as the machine calls it.
    pub format: String,
    /// Digest of the machine that it belongs to; it fits no other.
    pub machine: Sha256Digest,
    /// The agent's hello when it was accepted.
    pub hello: serde_json::Value,
}

/// Facts about a layer, the content of `layer.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerFacts {
    schema: u32,
    /// Name of the layer.
    #[serde(flatten)]
    pub name: Name,
    /// Its parent; `None` for the first layer, which is based on the base image.
    pub parent: Option<Name>,
    /// Wall time of its steps.
    pub seconds: f64,
    /// Time when the step ran, by the guest's clock; `None` for a boot.
    #[serde(default)]
    pub during: Option<GuestInterval>,
    /// Digest and size of the disk.
    pub disk: LayerFile,
    /// The memory, if it was kept.
    pub memory: Option<LayerMemory>,
    /// The trees that its steps fetched.
    #[serde(default)]
    pub fetched_trees: Vec<KeptTree>,
    /// Earlier steps whose changes are on this disk too, in their order.
    #[serde(default)]
    pub covers: Vec<CoveredStep>,
    /// Digest and size of the UEFI variables.
    #[serde(default)]
    pub uefi_vars: Option<LayerFile>,
}

/// A period of time by a guest's clock, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GuestInterval {
    /// Start of the period.
    pub start: f64,
    /// End of the period.
    pub end: f64,
}

/// The layers of one cache folder.
#[derive(Debug, Clone)]
pub struct LayerCache {
    root: PathBuf,
    fs: Fs,
    memo: Arc<DigestCache>,
    /// Whether unusable entries are removed.
    tidy: bool,
}

/// A layer in use: it is not removed while this lives.
#[derive(Debug)]
pub struct Layer {
    /// Facts about the layer.
    pub facts: LayerFacts,
    folder: PathBuf,
    _used: FileLock,
}

/// A layer with all its parents: the first is based on the base image, the last is the layer itself.
#[derive(Debug)]
pub struct Stack(Vec<Arc<Layer>>);

/// The reason why a layer is not used.
#[derive(Debug, thiserror::Error)]
pub enum UnusableLayerError {
    /// It does not exist.
    #[error("there is none")]
    Missing,
    /// A file or folder cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// Path of the file or folder.
        path: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// Its content has changed.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// Description of the damage.
        what: &'static str,
    },
}

impl UnusableLayerError {
    fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Unreadable { path: path.to_owned(), source }
    }

    fn damaged(path: &Path, what: &'static str) -> Self {
        Self::Damaged { path: path.to_owned(), what }
    }
}

impl LayerCache {
    /// Opens the layers below a cache folder, created if missing. Drafts of dead builds are removed.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(cache: &Path, memo: Arc<DigestCache>) -> io::Result<Self> {
        Self::open_on(cache, memo, Fs::default())
    }

    fn open_on(cache: &Path, memo: Arc<DigestCache>, fs: Fs) -> io::Result<Self> {
        let root = cache.join("layers");
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&root)?;
        let cache = Self { root, fs, memo, tidy: true };
        DraftFolder::clear_in(&cache.fs, &cache.root, DRAFT)?;
        Ok(cache)
    }

    /// Opens the layers below a cache folder for reading only: nothing is created or removed.
    #[must_use]
    pub fn peek(cache: &Path, memo: Arc<DigestCache>) -> Self {
        Self { root: cache.join("layers"), fs: Fs::default(), memo, tidy: false }
    }

    /// Returns every layer of a key that is complete and undamaged, with complete and undamaged parents; the one used last
    /// comes first. `problem` is called for those that exist and cannot be used; they are removed.
    pub fn find(&self, key: CacheKey, problem: &mut dyn FnMut(UnusableLayerError)) -> Vec<Stack> {
        LayerIndex::read(self).find(key, problem)
    }

    fn whole(&self, folder: &Path) -> Result<Layer, UnusableLayerError> {
        let layer = Layer::open(folder)?;
        self.check(&layer.disk(), &layer.facts.disk)?;
        for tree in &layer.facts.fetched_trees {
            self.check(&layer.fetched_tree(&tree.step), &tree.sealed)?;
        }
        if let (Some(path), Some(sealed)) = (layer.uefi_vars(), &layer.facts.uefi_vars) {
            self.check(&path, sealed)?;
        }
        Ok(layer)
    }

    /// Checks that the layer's memory exists and is undamaged.
    ///
    /// # Errors
    /// The reason why it cannot be used.
    pub fn check_memory(&self, layer: &Layer) -> Result<(), UnusableLayerError> {
        let memory = layer.facts.memory.as_ref().ok_or(UnusableLayerError::Missing)?;
        self.check(&layer.ram(), &memory.file)
    }

    fn check(&self, path: &Path, expected: &LayerFile) -> Result<(), UnusableLayerError> {
        if fs::symlink_metadata(path).map_err(UnusableLayerError::unreadable(path))?.len() != expected.bytes {
            return Err(UnusableLayerError::damaged(path, "its size is another"));
        }
        let found = self.memo.digest("data", path, || digest(path)).map_err(UnusableLayerError::unreadable(path))?;
        if found.sha256 != expected.sha256 {
            return Err(UnusableLayerError::damaged(path, "its digest is another"));
        }
        Ok(())
    }

    /// Begins a new layer.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn draft(&self) -> io::Result<Draft> {
        let folder = DraftFolder::create_in(&self.fs, &self.root, DRAFT, FOLDER_MODE)?;
        Ok(Draft { fs: self.fs.clone(), root: self.root.clone(), folder })
    }

    /// Waits until no other process builds the layer of this key, and locks it. Blocks the calling thread.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub fn claim(&self, key: CacheKey, waiting: impl FnOnce()) -> io::Result<LayerClaim> {
        let path = self.root.join(format!("claim-{key}"));
        let file = File::options().create(true).append(true).open(path)?;
        if !try_lock(&file)? {
            waiting();
        }
        Ok(LayerClaim { _lock: FileLock::exclusive(file)? })
    }

    /// Returns the size limit of the cache: `most`, or a tenth of its file system if that is less.
    #[must_use]
    pub fn limit(&self, most: u64) -> u64 {
        nix::sys::statvfs::statvfs(&self.root).map_or(most, |disk| most.min(disk.blocks() * disk.fragment_size() / 10))
    }

    /// Removes the layers of a key, except those in use.
    pub fn forget(&self, key: CacheKey) {
        let begin = format!("{key}.");
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&begin)) {
            self.remove(&entry.path());
        }
    }

    /// Removes a layer that nobody uses. Renames it first: from then on it cannot be found, and files that cannot be deleted
    /// now are left to the next cleanup of drafts.
    fn remove(&self, folder: &Path) -> bool {
        let Ok(_lock) = File::open(folder).and_then(FileLock::try_exclusive) else { return false };
        let doomed = self.root.join(format!("{DRAFT}{}", self.fs.fresh_name()));
        self.fs.rename(folder, &doomed).and_then(|()| self.fs.remove(&doomed)).is_ok()
    }
}

/// The right to build the layer of a key while others wait.
#[derive(Debug)]
pub struct LayerClaim {
    _lock: FileLock,
}

fn digest(path: &Path) -> io::Result<DigestRecord> {
    let file = File::open(path)?;
    Ok(DigestRecord { sha256: sha256_data(&file)?, bytes: file.metadata()?.len(), entries: 1 })
}

fn measure(path: &Path) -> io::Result<LayerFile> {
    let DigestRecord { sha256, bytes, .. } = digest(path)?;
    Ok(LayerFile { bytes, sha256 })
}

impl Stack {
    /// Returns the layer itself.
    ///
    /// # Panics
    /// Never: a stack has at least one.
    #[must_use]
    pub fn top(&self) -> &Layer {
        self.0.last().expect("a stack is made with a layer")
    }

    /// Returns the frozen disks, top first.
    pub fn disks(&self) -> impl Iterator<Item = PathBuf> {
        self.0.iter().rev().map(|layer| layer.disk())
    }

    /// Returns all layers, the lowest first.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.0.iter().map(Arc::as_ref)
    }

    /// Returns the wall time of the steps of the topmost key, seconds. A boot after a reboot step shares its key.
    #[must_use]
    pub fn top_seconds(&self) -> f64 {
        let key = &self.top().facts.name.key;
        self.layers().filter(|layer| layer.facts.name.key == *key).map(|layer| layer.facts.seconds).sum()
    }

    /// Returns the number of layers.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// Returns the wall time of the boot on the base image, seconds.
    #[must_use]
    pub fn boot_seconds(&self) -> f64 {
        self.0[0].facts.seconds
    }

    /// Records the current time as its last use, for eviction.
    pub fn touch(&self) {
        for layer in &self.0 {
            let _ = File::open(&layer.folder).and_then(|folder| folder.set_modified(SystemTime::now()));
        }
    }
}

impl Layer {
    fn open(folder: &Path) -> Result<Self, UnusableLayerError> {
        // A process that holds the lock exclusively is removing the layer.
        let used = match File::open(folder).and_then(FileLock::try_shared) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock) => {
                return Err(UnusableLayerError::Missing);
            }
            other => other.map_err(UnusableLayerError::unreadable(folder))?,
        };
        let path = folder.join(FACTS);
        let text = match fs::read(&path) {
            // It was removed before it was locked.
            Err(_) if !folder.exists() => return Err(UnusableLayerError::Missing),
            other => other.map_err(UnusableLayerError::unreadable(&path))?,
        };
        let facts: LayerFacts =
            serde_json::from_slice(&text).map_err(|_| UnusableLayerError::damaged(&path, "not readable"))?;
        if facts.schema != SCHEMA || folder.file_name() != Some(facts.name.folder().as_ref()) {
            return Err(UnusableLayerError::damaged(&path, "it belongs to another layer"));
        }
        Ok(Self { facts, folder: folder.to_owned(), _used: used })
    }

    /// Returns the path of the frozen disk.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.folder.join(DISK)
    }

    /// Returns the path of the memory.
    #[must_use]
    pub fn ram(&self) -> PathBuf {
        self.folder.join(RAM)
    }

    /// Returns the file with the UEFI variables, if the layer has one.
    #[must_use]
    pub fn uefi_vars(&self) -> Option<PathBuf> {
        self.facts.uefi_vars.is_some().then(|| self.folder.join(UEFI_VARS))
    }

    /// Returns its size on this host, bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        let fetched: u64 = self.facts.fetched_trees.iter().map(|tree| tree.sealed.bytes).sum();
        stored_bytes(&self.disk()) + stored_bytes(&self.ram()) + fetched
    }
}

/// Returns how many bytes a file takes on this host, holes left out; 0 for a missing one.
fn stored_bytes(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

/// A layer that is being built. Dropping it removes it.
#[derive(Debug)]
pub struct Draft {
    fs: Fs,
    root: PathBuf,
    folder: DraftFolder,
}

/// The facts about a new layer that are not in its files.
#[derive(Debug, Clone)]
pub struct LayerMetadata {
    /// Name of the layer.
    pub name: Name,
    /// Its parent layer.
    pub parent: Option<Name>,
    /// Wall time of its steps, seconds.
    pub seconds: f64,
    /// Time when the step ran, by the guest's clock.
    pub during: Option<GuestInterval>,
    /// Its memory, without the file's digest.
    pub memory: Option<RecordedMemory>,
    /// The trees that its steps fetched.
    pub fetched: Vec<FetchedStream>,
    /// Earlier steps whose changes it contains.
    pub covers: Vec<CoveredStep>,
}

/// The facts about memory in [`LayerMemory`], without its file.
#[derive(Debug, Clone)]
pub struct RecordedMemory {
    /// See [`LayerMemory::format`].
    pub format: String,
    /// See [`LayerMemory::machine`].
    pub machine: Sha256Digest,
    /// See [`LayerMemory::hello`].
    pub hello: serde_json::Value,
}

impl Name {
    /// Returns a new name for a result of the step with this key.
    #[must_use]
    pub fn new(key: CacheKey) -> Self {
        Self::fresh(key.to_string())
    }

    /// Returns a new name for a key in its string form.
    pub(crate) fn fresh(key: String) -> Self {
        Self { key, id: Fs::default().fresh_name() }
    }

    fn folder(&self) -> String {
        format!("{}.{}", self.key, self.id)
    }
}

impl Draft {
    /// Returns the path that the memory must be written to.
    #[must_use]
    pub fn ram(&self) -> PathBuf {
        self.folder.path().join(RAM)
    }

    /// Returns the path of the disk that was taken.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.folder.path().join(DISK)
    }

    /// Links a frozen disk into the draft; it keeps its own name as well.
    ///
    /// # Errors
    /// When it cannot be linked.
    pub fn take_disk(&self, disk: &Path) -> io::Result<()> {
        self.fs.link(disk, &self.disk())
    }

    /// Copies the UEFI variables into the draft.
    ///
    /// # Errors
    /// When they cannot be copied.
    pub fn take_uefi_vars(&self, vars: &Path) -> io::Result<()> {
        self.fs.copy_new(vars, &self.uefi_vars(), FILE_MODE)
    }

    fn uefi_vars(&self) -> PathBuf {
        self.folder.path().join(UEFI_VARS)
    }

    /// Turns the draft into a layer, durable and complete. Blocks while it hashes and syncs.
    ///
    /// # Errors
    /// When that fails; nothing is left then.
    pub fn commit(self, made: LayerMetadata) -> io::Result<()> {
        // Another process may use the disk under its own name: it keeps its mode.
        self.fs.sync(&File::open(self.disk())?)?;
        let disk = measure(&self.disk())?;
        let memory = match made.memory {
            Some(RecordedMemory { format, machine, hello }) => {
                self.fs.seal(&File::open(self.ram())?, FILE_MODE)?;
                Some(LayerMemory { file: measure(&self.ram())?, format, machine, hello })
            }
            None => None,
        };
        let fetched_trees = self.take_fetched(made.fetched)?;
        let uefi_vars = self.uefi_vars().exists().then(|| measure(&self.uefi_vars())).transpose()?;
        let target = self.root.join(made.name.folder());
        let facts = LayerFacts {
            schema: SCHEMA,
            name: made.name,
            parent: made.parent,
            seconds: made.seconds,
            during: made.during,
            disk,
            memory,
            fetched_trees,
            covers: made.covers,
            uefi_vars,
        };
        self.fs.write_new(&self.folder.path().join(FACTS), &serde_json::to_vec_pretty(&facts)?, FILE_MODE)?;
        self.fs.sync_dir(self.folder.path())?;
        self.folder.publish(&target)
    }

    /// Links the streams of fetched trees into the layer, durably.
    fn take_fetched(&self, streams: Vec<FetchedStream>) -> io::Result<Vec<KeptTree>> {
        if streams.is_empty() {
            return Ok(Vec::new());
        }
        let folder = self.folder.path().join(FETCHED);
        self.fs.create_dir(&folder, FOLDER_MODE)?;
        let mut kept = Vec::new();
        for FetchedStream { step, stream } in streams {
            let tree = folder.join(&step);
            self.fs.link(&stream, &tree)?;
            self.fs.seal(&File::open(&tree)?, FILE_MODE)?;
            kept.push(KeptTree { step, sealed: measure(&tree)? });
        }
        self.fs.sync_dir(&folder)?;
        Ok(kept)
    }
}

#[cfg(test)]
mod tests;
