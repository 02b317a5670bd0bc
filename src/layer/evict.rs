//! Eviction from a full cache: the layers that were used longest ago, and none that is in use.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::{Layer, LayerCache, Name};

/// Result of an eviction.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct LayerEviction {
    /// Number of removed layers.
    pub layers: usize,
    /// Size of the removed layers on this host, bytes.
    pub bytes: u64,
    /// Size of the remaining layers, bytes.
    pub left: u64,
}

struct EvictableLayer {
    layer: Layer,
    used: SystemTime,
}

/// Removes layers until the rest takes at most `limit` bytes. A layer is removed after those that are based on it; one in
/// use is kept, with its parents.
///
/// # Errors
/// When the folder cannot be read.
pub fn evict(cache: &LayerCache, limit: u64) -> io::Result<LayerEviction> {
    remove_layers(cache, limit, &mut |folder| cache.remove(folder))
}

/// Returns what [`evict`] would do, and removes nothing. Layers that are in use now count as removed.
///
/// # Errors
/// When the folder cannot be read.
pub fn rehearse_eviction(cache: &LayerCache, limit: u64) -> io::Result<LayerEviction> {
    remove_layers(cache, limit, &mut |_| true)
}

fn remove_layers(cache: &LayerCache, limit: u64, remove: &mut dyn FnMut(&Path) -> bool) -> io::Result<LayerEviction> {
    let mut candidates = Vec::new();
    let entries = match fs::read_dir(&cache.root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LayerEviction::default()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let metadata = match entry.metadata() {
            // Another kiln evicts as well.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if !metadata.is_dir() || entry.file_name().to_string_lossy().starts_with(super::DRAFT) {
            continue;
        }
        let used = metadata.modified()?;
        match Layer::open(&entry.path()) {
            Ok(layer) => candidates.push(EvictableLayer { layer, used }),
            // A layer without readable facts cannot be used.
            Err(_) => _ = remove(&entry.path()),
        }
    }
    let mut left: u64 = candidates.iter().map(|candidate| candidate.layer.size()).sum();
    let mut evicted = LayerEviction::default();
    candidates.sort_by_key(|candidate| candidate.used);
    while left > limit {
        let Some(at) = candidates.iter().position(|one| is_leaf(&one.layer.facts.name, &candidates)) else { break };
        let EvictableLayer { layer, .. } = candidates.remove(at);
        let folder = layer.folder.clone();
        let size = layer.size();
        drop(layer);
        if !remove(&folder) {
            continue;
        }
        left -= size;
        evicted.layers += 1;
        evicted.bytes += size;
    }
    evicted.left = left;
    Ok(evicted)
}

fn is_leaf(name: &Name, among: &[EvictableLayer]) -> bool {
    !among.iter().any(|other| other.layer.facts.parent.as_ref() == Some(name))
}
