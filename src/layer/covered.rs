//! The steps of which a layer holds the changes: its own, and those before it that left no layer.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{FETCHED, Layer, Sealed, Span};

/// A step that left no layer of its own: the next layer holds its changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoveredStep {
    /// Its key.
    pub key: String,
    /// When it ran, by the guest's clock.
    pub during: Option<Span>,
}

/// A tree that a step fetched and that a layer is going to keep.
#[derive(Debug, Clone)]
pub struct FetchedStream {
    /// The step's key.
    pub step: String,
    /// The file with the tree, as the guest sent it.
    pub stream: PathBuf,
}

/// A tree that a step fetched, in a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptTree {
    /// The step's key.
    pub step: String,
    /// The file's digest and size.
    #[serde(flatten)]
    pub sealed: Sealed,
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

    /// Returns when a step ran that this layer holds, by the guest's clock.
    #[must_use]
    pub fn during(&self, key: &str) -> Option<Span> {
        let covered = self.facts.covers.iter().find(|covered| covered.key == key);
        covered.map_or_else(|| self.facts.during.filter(|_| self.facts.name.key == key), |covered| covered.during)
    }
}
