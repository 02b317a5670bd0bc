//! kiln, the disk-image compiler: a TOML spec in, a sealed, versioned, checksummed VM image out.

pub mod agent;
pub mod build;
pub mod cli;
pub mod digest;
pub mod disk;
pub mod download;
pub mod error;
pub mod event;
mod fs;
pub mod guest;
pub mod layer;
pub mod machine;
pub mod masking;
pub mod memo;
pub mod package;
pub mod plan;
pub mod process;
pub mod report;
pub mod seed;
pub mod sign;
pub mod signal;
pub mod size;
pub mod spec;
pub mod store;
pub mod url;
pub mod wire;
pub mod workdir;
