//! What goes when the cache is full: the layers used longest ago, and none that is in use.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::{Cache, Layer, Name};

/// What an eviction did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Evicted {
    /// Layers removed.
    pub layers: usize,
    /// Bytes they took on this host.
    pub bytes: u64,
    /// Bytes of what is left.
    pub left: u64,
}

struct Candidate {
    layer: Layer,
    used: SystemTime,
}

/// Removes layers until the rest takes at most `limit` bytes. One that another lies on goes after it; one in use stays,
/// and what it lies on.
///
/// # Errors
/// When the folder cannot be read.
pub fn evict(cache: &Cache, limit: u64) -> io::Result<Evicted> {
    remove_layers(cache, limit, &mut |folder| cache.remove(folder))
}

/// Tells what [`evict`] would do, and removes nothing. What is in use now counts as removed.
///
/// # Errors
/// When the folder cannot be read.
pub fn rehearse_eviction(cache: &Cache, limit: u64) -> io::Result<Evicted> {
    remove_layers(cache, limit, &mut |_| true)
}

fn remove_layers(cache: &Cache, limit: u64, remove: &mut dyn FnMut(&Path) -> bool) -> io::Result<Evicted> {
    let mut candidates = Vec::new();
    let entries = match fs::read_dir(&cache.root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Evicted::default()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let metadata = match entry.metadata() {
            // Another kiln makes room as well.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if !metadata.is_dir() || entry.file_name().to_string_lossy().starts_with(super::DRAFT) {
            continue;
        }
        let used = metadata.modified()?;
        match Layer::open(&entry.path()) {
            Ok(layer) => candidates.push(Candidate { layer, used }),
            // Nobody can use it.
            Err(_) => _ = remove(&entry.path()),
        }
    }
    let mut left: u64 = candidates.iter().map(|candidate| candidate.layer.size()).sum();
    let mut evicted = Evicted::default();
    candidates.sort_by_key(|candidate| candidate.used);
    while left > limit {
        let Some(at) = candidates.iter().position(|one| is_leaf(&one.layer.facts.name, &candidates)) else { break };
        let Candidate { layer, .. } = candidates.remove(at);
        let (folder, size) = (layer.folder.clone(), layer.size());
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

fn is_leaf(name: &Name, among: &[Candidate]) -> bool {
    !among.iter().any(|other| other.layer.facts.parent.as_ref() == Some(name))
}
