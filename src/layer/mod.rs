//! The step cache: frozen disks, and memory to go on from, content-addressed by the key of what made them.
//!
//! ```text
//! CACHE/layers/KEY.ID/layer.json    what it is; a folder of this name is whole
//! CACHE/layers/KEY.ID/disk.qcow2    what the steps since its parent changed on the disk; never written again
//! CACHE/layers/KEY.ID/ram           the machine's memory at that moment, where there is one (mode 0600)
//! CACHE/layers/KEY.ID/uefi-vars     the UEFI variables at that moment, where the machine has some
//! CACHE/layers/KEY.ID/fetched/KEY   what the fetch step of this key brought back: the tree as the guest sent it
//! CACHE/layers/claim-KEY            locked by the build that makes the first layer of this key
//! CACHE/layers/draft-XXXXXX/        one being made; swept up when its maker is dead
//! ```
//!
//! One key may have several layers, each with an id of its own: two makings of a step are never the same to the bit. A
//! layer names its parent by both, so it is never put on another making than the one it was made on. Whoever uses a layer
//! holds a shared flock(2) on its folder; it is only removed under an exclusive one. Making drafts and sweeping them take
//! turns, by a lock on the folder of layers: nobody ever sees a draft that its maker has not locked yet. Every file is
//! checked against its digest before it is used, once for each change of its inode ([`Memo`]).

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::digest::{hex, sha256_data};
use crate::digest_cache::{Digested, Memo};
use crate::fs::Fs;
use crate::plan::key::Key;

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
/// Mode of the files of a layer that kiln writes itself.
const FILE_MODE: u32 = 0o600;
/// Mode of its folders.
const FOLDER_MODE: u32 = 0o700;

/// One making of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// What it stands for.
    pub key: String,
    /// Which making of it: random.
    pub id: String,
}

/// A file of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Size, bytes.
    pub bytes: u64,
    /// Digest of its data and where that lies, hex: most of a memory file is holes.
    pub sha256: String,
}

/// Memory that a machine can go on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The file.
    pub file: Sealed,
    /// How it is laid out, as the machine calls it.
    pub format: String,
    /// Digest of the machine it belongs to; it fits no other.
    pub machine: String,
    /// What the agent said when it was accepted.
    pub hello: serde_json::Value,
}

/// What is known of a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    schema: u32,
    /// Which one it is.
    #[serde(flatten)]
    pub name: Name,
    /// What it lies on; nothing for the first, which lies on the base image.
    pub parent: Option<Name>,
    /// What it took to make, wall time.
    pub seconds: f64,
    /// When the step ran, by the guest's clock; nothing for a boot.
    #[serde(default)]
    pub during: Option<Span>,
    /// The disk.
    pub disk: Sealed,
    /// The memory.
    pub memory: Option<Memory>,
    /// The trees that its steps fetched.
    #[serde(default)]
    pub fetched_trees: Vec<KeptTree>,
    /// Earlier steps whose changes are on this disk too, first one first.
    #[serde(default)]
    pub covers: Vec<CoveredStep>,
    /// The UEFI variables.
    #[serde(default)]
    pub uefi_vars: Option<Sealed>,
}

/// A time by a guest's clock, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// Its beginning.
    pub start: f64,
    /// Its end.
    pub end: f64,
}

/// The layers of one cache folder.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    fs: Fs,
    memo: Arc<Memo>,
    /// Whether what is found to be unusable is removed.
    tidy: bool,
}

/// A layer in use: it stays where it is while this lives.
#[derive(Debug)]
pub struct Layer {
    /// What is known of it.
    pub facts: Facts,
    folder: PathBuf,
    _used: Flock<File>,
}

/// A layer with all that it lies on: the first lies on the base image, the last is the layer.
#[derive(Debug)]
pub struct Stack(Vec<Arc<Layer>>);

/// Why a layer is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// There is none.
    #[error("there is none")]
    Missing,
    /// Something cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what it was.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How that shows.
        what: &'static str,
    },
}

impl Cache {
    /// The layers below a cache folder, made if missing. Drafts of dead builds are removed.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(cache: &Path, memo: Arc<Memo>) -> io::Result<Self> {
        Self::open_on(cache, memo, Fs::default())
    }

    fn open_on(cache: &Path, memo: Arc<Memo>, fs: Fs) -> io::Result<Self> {
        let root = cache.join("layers");
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&root)?;
        let cache = Self { root, fs, memo, tidy: true };
        cache.sweep()?;
        Ok(cache)
    }

    /// The layers below a cache folder, for looking only: nothing is made or removed.
    #[must_use]
    pub fn peek(cache: &Path, memo: Arc<Memo>) -> Self {
        Self { root: cache.join("layers"), fs: Fs::default(), memo, tidy: false }
    }

    /// Every layer of a key that is whole, undamaged, and whose parents are so too; the one used last comes first.
    /// `problem` hears of those that are there and cannot be used; they are removed.
    pub fn find(&self, key: Key, problem: &mut dyn FnMut(Unusable)) -> Vec<Stack> {
        LayerIndex::read(self).find(key, problem)
    }

    fn whole(&self, folder: &Path) -> Result<Layer, Unusable> {
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

    /// Whether the layer's memory is there and undamaged.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn check_memory(&self, layer: &Layer) -> Result<(), Unusable> {
        let memory = layer.facts.memory.as_ref().ok_or(Unusable::Missing)?;
        self.check(&layer.ram(), &memory.file)
    }

    fn check(&self, path: &Path, expected: &Sealed) -> Result<(), Unusable> {
        let unreadable = |source| Unusable::Unreadable { path: path.to_owned(), source };
        let damaged = |what| Unusable::Damaged { path: path.to_owned(), what };
        if fs::symlink_metadata(path).map_err(unreadable)?.len() != expected.bytes {
            return Err(damaged("its size is another"));
        }
        let found = self.memo.digest("data", path, || digest(path)).map_err(unreadable)?;
        if found.sha256 == expected.sha256 { Ok(()) } else { Err(damaged("its digest is another")) }
    }

    /// Begins a layer.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn draft(&self) -> io::Result<Draft> {
        let _turn = lock(&self.root, FlockArg::LockExclusive)?;
        let folder = self.fresh_draft();
        self.fs.create_dir(&folder, FOLDER_MODE)?;
        let lock = lock(&folder, FlockArg::LockExclusiveNonblock)?;
        Ok(Draft { fs: self.fs.clone(), root: self.root.clone(), folder, is_ours: true, _lock: lock })
    }

    fn fresh_draft(&self) -> PathBuf {
        self.root.join(format!("{DRAFT}{}", self.fs.fresh_name()))
    }

    /// Waits until nobody else makes the layer of this key. Blocks the calling thread.
    ///
    /// # Errors
    /// When the lock cannot be had.
    pub fn claim(&self, key: Key, mut waiting: impl FnMut()) -> io::Result<Claim> {
        let path = self.root.join(format!("claim-{key}"));
        let open = || File::options().create(true).append(true).open(&path);
        let lock = match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                waiting();
                Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?
            }
            Err((_, errno)) => return Err(errno.into()),
        };
        Ok(Claim { _lock: lock })
    }

    /// Bytes the cache may take: `most`, or a tenth of its file system.
    #[must_use]
    pub fn limit(&self, most: u64) -> u64 {
        nix::sys::statvfs::statvfs(&self.root).map_or(most, |disk| most.min(disk.blocks() * disk.fragment_size() / 10))
    }

    fn sweep(&self) -> io::Result<()> {
        let _turn = lock(&self.root, FlockArg::LockExclusive)?;
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            let draft = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(DRAFT));
            if draft && lock(&path, FlockArg::LockExclusiveNonblock).is_ok() {
                let _ = self.fs.remove(&path);
            }
        }
        Ok(())
    }

    /// Removes the layers of a key, but for those in use.
    pub fn forget(&self, key: Key) {
        let begin = format!("{key}.");
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&begin)) {
            self.remove(&entry.path());
        }
    }

    /// Removes a layer that nobody uses. Renames first: from then on nobody finds it, and what cannot be deleted now is left
    /// to the next sweep.
    fn remove(&self, folder: &Path) -> bool {
        let Ok(_lock) = lock(folder, FlockArg::LockExclusiveNonblock) else { return false };
        let doomed = self.fresh_draft();
        self.fs.rename(folder, &doomed).and_then(|()| self.fs.remove(&doomed)).is_ok()
    }
}

/// The right to make the layer of a key while others wait.
#[derive(Debug)]
pub struct Claim {
    _lock: Flock<File>,
}

fn lock(folder: &Path, how: FlockArg) -> io::Result<Flock<File>> {
    Flock::lock(File::open(folder)?, how).map_err(|(_, errno)| errno.into())
}

fn digest(path: &Path) -> io::Result<Digested> {
    let file = File::open(path)?;
    Ok(Digested { sha256: hex(&sha256_data(&file)?), bytes: file.metadata()?.len(), entries: 1 })
}

fn measure(path: &Path) -> io::Result<Sealed> {
    let Digested { sha256, bytes, .. } = digest(path)?;
    Ok(Sealed { bytes, sha256 })
}

impl Stack {
    /// The layer itself.
    ///
    /// # Panics
    /// Never: a stack has at least one.
    #[must_use]
    pub fn top(&self) -> &Layer {
        self.0.last().expect("a stack is made with a layer")
    }

    /// The frozen disks, top first.
    pub fn disks(&self) -> impl Iterator<Item = PathBuf> {
        self.0.iter().rev().map(|layer| layer.disk())
    }

    /// All of it, first one first.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.0.iter().map(Arc::as_ref)
    }

    /// Returns what the steps of the topmost key took, seconds. A boot after a reboot step shares its key.
    #[must_use]
    pub fn top_seconds(&self) -> f64 {
        let key = &self.top().facts.name.key;
        self.layers().filter(|layer| layer.facts.name.key == *key).map(|layer| layer.facts.seconds).sum()
    }

    /// Counts the layers.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// What the boot on the base image took, seconds.
    #[must_use]
    pub fn boot_seconds(&self) -> f64 {
        self.0[0].facts.seconds
    }

    /// Notes that it is used now, for eviction.
    pub fn touch(&self) {
        for layer in &self.0 {
            let _ = File::open(&layer.folder).and_then(|folder| folder.set_modified(SystemTime::now()));
        }
    }
}

impl Layer {
    fn open(folder: &Path) -> Result<Self, Unusable> {
        // Who holds it exclusively is removing it.
        let used = match lock(folder, FlockArg::LockSharedNonblock) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock) => {
                return Err(Unusable::Missing);
            }
            other => other.map_err(|source| Unusable::Unreadable { path: folder.to_owned(), source })?,
        };
        let path = folder.join(FACTS);
        let text = match fs::read(&path) {
            // It was removed before it was locked.
            Err(_) if !folder.exists() => return Err(Unusable::Missing),
            other => other.map_err(|source| Unusable::Unreadable { path: path.clone(), source })?,
        };
        let facts: Facts = serde_json::from_slice(&text)
            .map_err(|_| Unusable::Damaged { path: path.clone(), what: "not readable" })?;
        if facts.schema != SCHEMA || folder.file_name() != Some(facts.name.folder().as_ref()) {
            return Err(Unusable::Damaged { path, what: "it belongs to another layer" });
        }
        Ok(Self { facts, folder: folder.to_owned(), _used: used })
    }

    /// The frozen disk.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.folder.join(DISK)
    }

    /// The memory.
    #[must_use]
    pub fn ram(&self) -> PathBuf {
        self.folder.join(RAM)
    }

    /// Returns the file with the UEFI variables, where the layer has one.
    #[must_use]
    pub fn uefi_vars(&self) -> Option<PathBuf> {
        self.facts.uefi_vars.is_some().then(|| self.folder.join(UEFI_VARS))
    }

    /// Bytes it takes on this host.
    #[must_use]
    pub fn size(&self) -> u64 {
        let size = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512);
        let fetched: u64 = self.facts.fetched_trees.iter().map(|tree| tree.sealed.bytes).sum();
        size(self.disk()) + size(self.ram()) + fetched
    }
}

/// A layer being made. Dropping it removes it.
#[derive(Debug)]
pub struct Draft {
    fs: Fs,
    root: PathBuf,
    folder: PathBuf,
    /// Whether there is anything left to remove.
    is_ours: bool,
    _lock: Flock<File>,
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.is_ours {
            // What is left goes with the next sweep.
            let _ = self.fs.remove(&self.folder);
        }
    }
}

/// What a layer is made of, besides its files.
#[derive(Debug, Clone)]
pub struct Made {
    /// Which making of which key.
    pub name: Name,
    /// What it lies on.
    pub parent: Option<Name>,
    /// What it took.
    pub seconds: f64,
    /// When the step ran, by the guest's clock.
    pub during: Option<Span>,
    /// Its memory, but for the file's digest.
    pub memory: Option<Recorded>,
    /// The trees that its steps fetched.
    pub fetched: Vec<FetchedStream>,
    /// The steps before its own that it holds.
    pub covers: Vec<CoveredStep>,
}

/// What is said of memory in [`Memory`].
#[derive(Debug, Clone)]
pub struct Recorded {
    /// See [`Memory::format`].
    pub format: String,
    /// See [`Memory::machine`].
    pub machine: String,
    /// See [`Memory::hello`].
    pub hello: serde_json::Value,
}

impl Name {
    /// A new making of a key.
    #[must_use]
    pub fn new(key: Key) -> Self {
        Self::fresh(key.to_string())
    }

    /// A new making of a key in its written form.
    pub(crate) fn fresh(key: String) -> Self {
        use std::hash::{BuildHasher, Hasher, RandomState};
        Self { key, id: format!("{:016x}", RandomState::new().build_hasher().finish()) }
    }

    fn folder(&self) -> String {
        format!("{}.{}", self.key, self.id)
    }
}

impl Draft {
    /// Where the memory is to be written.
    #[must_use]
    pub fn ram(&self) -> PathBuf {
        self.folder.join(RAM)
    }

    /// Where the disk lies that was taken.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.folder.join(DISK)
    }

    /// Takes a frozen disk, which stays where it is under its own name as well.
    ///
    /// # Errors
    /// When it cannot be linked.
    pub fn take_disk(&self, disk: &Path) -> io::Result<()> {
        self.fs.link(disk, &self.disk())
    }

    /// Takes a copy of the UEFI variables.
    ///
    /// # Errors
    /// When they cannot be copied.
    pub fn take_uefi_vars(&self, vars: &Path) -> io::Result<()> {
        self.fs.copy_new(vars, &self.uefi_vars(), FILE_MODE)
    }

    fn uefi_vars(&self) -> PathBuf {
        self.folder.join(UEFI_VARS)
    }

    /// Makes it a layer, durable and whole. Blocks while it hashes and syncs.
    ///
    /// # Errors
    /// When that fails; nothing is left then.
    pub fn commit(mut self, made: Made) -> io::Result<()> {
        // Somebody may be using the disk under its own name: it keeps its mode.
        self.fs.sync(&File::open(self.disk())?)?;
        let disk = measure(&self.disk())?;
        let memory = match made.memory {
            Some(Recorded { format, machine, hello }) => {
                self.fs.seal(&File::open(self.ram())?, FILE_MODE)?;
                Some(Memory { file: measure(&self.ram())?, format, machine, hello })
            }
            None => None,
        };
        let fetched_trees = self.take_fetched(made.fetched)?;
        let uefi_vars = self.uefi_vars().exists().then(|| measure(&self.uefi_vars())).transpose()?;
        let target = self.root.join(made.name.folder());
        let facts = Facts {
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
        self.fs.write_new(&self.folder.join(FACTS), &serde_json::to_vec_pretty(&facts)?, FILE_MODE)?;
        self.fs.sync_dir(&self.folder)?;
        self.fs.rename(&self.folder, &target)?;
        // Where it may not outlive a power cut it is taken back; a disk that cannot even do that leaves it there, whole.
        self.fs.sync_dir(&self.root).inspect_err(|_| drop(self.fs.rename(&target, &self.folder)))?;
        self.is_ours = false;
        Ok(())
    }

    /// Links the streams of fetched trees into the layer, durably.
    fn take_fetched(&self, streams: Vec<FetchedStream>) -> io::Result<Vec<KeptTree>> {
        if streams.is_empty() {
            return Ok(Vec::new());
        }
        let folder = self.folder.join(FETCHED);
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
