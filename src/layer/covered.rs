//! The steps whose changes a layer contains: its own, and earlier ones that left no layer.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{FETCHED, GuestInterval, Layer, LayerFile};

/// A step that left no layer of its own: the next layer contains its changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoveredStep {
    /// Key of the step.
    pub key: String,
    /// Time when it ran, by the guest's clock.
    pub during: Option<GuestInterval>,
}

/// A tree that a step fetched, as a file that a layer will keep.
#[derive(Debug, Clone)]
pub struct FetchedStream {
    /// Key of the step.
    pub step: String,
    /// The file with the tree, as the guest sent it.
    pub stream: PathBuf,
}

/// A tree that a step fetched, kept in a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptTree {
    /// Key of the step.
    pub step: String,
    /// Digest and size of the file.
    #[serde(flatten)]
    pub sealed: LayerFile,
}

impl Layer {
    /// Returns the file with the tree that a step fetched.
    #[must_use]
    pub fn fetched_by(&self, key: &str) -> Option<PathBuf> {
        self.facts.fetched_trees.iter().any(|tree| tree.step == key).then(|| self.fetched_tree(key))
    }

    pub(super) fn fetched_tree(&self, key: &str) -> PathBuf {
        self.folder.join(FETCHED).join(key)
    }

    /// Returns the time when a step of this layer ran, by the guest's clock.
    #[must_use]
    pub fn during(&self, key: &str) -> Option<GuestInterval> {
        let covered = self.facts.covers.iter().find(|covered| covered.key == key);
        covered.map_or_else(|| self.facts.during.filter(|_| self.facts.name.key == key), |covered| covered.during)
    }
}
