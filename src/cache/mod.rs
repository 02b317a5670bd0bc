//! What builds keep for later ones: layers of steps, packed clusters and digests of base images, and traces of plans.

pub(crate) mod base_files;
mod base_records;
pub mod base_twin;
pub mod history;
pub mod step_cache;
