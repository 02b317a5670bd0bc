//! kiln, the disk-image compiler: a TOML spec in, a sealed, versioned, checksummed VM image out.

pub mod error;
pub mod event;
pub mod size;
pub mod spec;
