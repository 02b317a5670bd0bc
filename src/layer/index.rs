//! An index of the layers of a cache by their keys. Each is opened and checked at most once, however many others are based
//! on it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirEntry};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::{DRAFT, FACTS, Layer, LayerCache, Stack, UnusableLayerError};
use crate::plan::key::CacheKey;

/// The layers that were in a cache at one moment.
pub struct LayerIndex<'a> {
    cache: &'a LayerCache,
    /// Folders by key, with the time of their last use, by which they are sorted.
    folders: BTreeMap<String, Vec<(SystemTime, PathBuf)>>,
    count: usize,
    /// The layers that were opened so far; `None` for a layer that cannot be used.
    opened: HashMap<PathBuf, Option<Arc<Layer>>>,
}

impl<'a> LayerIndex<'a> {
    /// Lists the layers of a cache. An unreadable folder counts as empty.
    #[must_use]
    pub fn read(cache: &'a LayerCache) -> Self {
        let mut folders = BTreeMap::<_, Vec<_>>::new();
        let entries = fs::read_dir(&cache.root).into_iter().flatten().flatten();
        for (key, used) in entries.filter_map(|entry| describe(&entry)) {
            folders.entry(key).or_default().push(used);
        }
        for folders in folders.values_mut() {
            folders.sort();
        }
        let count = folders.values().map(Vec::len).sum();
        Self { cache, folders, count, opened: HashMap::new() }
    }

    /// Returns every layer of a key that is complete and undamaged, with complete and undamaged parents; the one used last
    /// comes first. `problem` is called for those that exist and cannot be used; they are removed.
    pub fn find(&mut self, key: CacheKey, problem: &mut dyn FnMut(UnusableLayerError)) -> Vec<Stack> {
        let folders = self.folders.get(&key.to_string()).cloned().unwrap_or_default();
        let mut stacks = Vec::new();
        for (_, folder) in folders.into_iter().rev() {
            match self.stack(&folder) {
                Ok(stack) => stacks.push(stack),
                Err(why) => self.give_up(&folder, why, problem),
            }
        }
        stacks
    }

    fn give_up(&mut self, folder: &Path, why: UnusableLayerError, problem: &mut dyn FnMut(UnusableLayerError)) {
        // Its own lock would prevent its removal.
        self.opened.insert(folder.to_owned(), None);
        if self.cache.tidy {
            self.cache.remove(folder);
        }
        // A layer whose parent was evicted is not worth reporting.
        if !matches!(why, UnusableLayerError::Missing) {
            problem(why);
        }
    }

    /// Opens the layer in a folder, and everything below it.
    fn stack(&mut self, folder: &Path) -> Result<Stack, UnusableLayerError> {
        let mut layers = vec![self.layer(folder)?];
        while let Some(parent) = layers.last().and_then(|layer| layer.facts.parent.clone()) {
            if layers.len() > self.count {
                return Err(UnusableLayerError::damaged(&folder.join(FACTS), "it lies on itself"));
            }
            layers.push(self.layer(&self.cache.root.join(parent.folder()))?);
        }
        layers.reverse();
        Ok(Stack(layers))
    }

    fn layer(&mut self, folder: &Path) -> Result<Arc<Layer>, UnusableLayerError> {
        if let Some(opened) = self.opened.get(folder) {
            return opened.clone().ok_or(UnusableLayerError::Missing);
        }
        let layer = self.cache.whole(folder).map(Arc::new);
        self.opened.insert(folder.to_owned(), layer.as_ref().ok().cloned());
        layer
    }
}

/// Returns the key of a layer's folder, the time of its last use, and its path.
fn describe(entry: &DirEntry) -> Option<(String, (SystemTime, PathBuf))> {
    let name = entry.file_name().into_string().ok()?;
    let (key, _) = name.split_once('.').filter(|_| !name.starts_with(DRAFT))?;
    Some((key.to_owned(), (entry.metadata().ok()?.modified().ok()?, entry.path())))
}
