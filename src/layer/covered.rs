//! The steps of which a layer holds the changes: its own, and those before it that left no layer.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Layer, Span};

/// A step that left no layer of its own: the next layer holds its changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoveredStep {
    /// Its key.
    pub key: String,
    /// When it ran, by the guest's clock.
    pub during: Option<Span>,
    /// What it fetched: names among [`Facts::fetched`].
    pub fetched: Vec<PathBuf>,
}

impl Layer {
    /// Returns what a step fetched, names relative to the version's folder.
    #[must_use]
    pub fn fetched_by(&self, key: &str) -> Option<Vec<PathBuf>> {
        if let Some(covered) = self.facts.covers.iter().find(|covered| covered.key == key) {
            return Some(covered.fetched.clone());
        }
        let covered: BTreeSet<_> = self.facts.covers.iter().flat_map(|covered| &covered.fetched).collect();
        let own = self.facts.fetched.iter().map(|fetched| &fetched.file).filter(|file| !covered.contains(file));
        (self.facts.name.key == key).then(|| own.cloned().collect())
    }

    /// Returns when a step ran that this layer holds, by the guest's clock.
    #[must_use]
    pub fn during(&self, key: &str) -> Option<Span> {
        let covered = self.facts.covers.iter().find(|covered| covered.key == key);
        covered.map_or_else(|| self.facts.during.filter(|_| self.facts.name.key == key), |covered| covered.during)
    }
}
