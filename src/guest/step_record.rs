//! Records of finished steps.

use std::time::Duration;

use crate::layer::GuestInterval;
use crate::session::FetchedTree;

/// A step that is finished.
#[derive(Debug, Clone)]
pub struct StepRecord {
    /// Wall time of the step; zero for one from the cache.
    pub took: Duration,
    /// Whether the step did not run, because its result was in the cache.
    pub cached: bool,
    /// When it began and ended, by the guest's clock: what was written meanwhile is attributed to the step.
    pub during: Option<GuestInterval>,
    /// The files that were fetched, by paths in the version's folder.
    pub fetched: FetchedTree,
}
