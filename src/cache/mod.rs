//! What builds keep for later ones: layers of steps, packed clusters of base images, and traces of plans.

pub mod base_twin;
pub mod history;
pub mod step_cache;
