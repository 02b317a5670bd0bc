//! The live guest of a build: boot, requests to its agent, sealing and shutdown.

pub mod agent_obstacles;
pub mod boot;
pub mod build_boot;
pub mod cloud_init;
pub(crate) mod dead_ends;
mod direct_boot;
pub mod extra_disk;
mod growth;
pub mod hints;
pub mod leftovers;
pub mod mount_agreement;
pub mod mounts;
pub mod packages;
pub mod pending_units;
pub(crate) mod planting;
pub mod power_requests;
pub mod run;
pub mod seal;
pub mod shell;
pub mod shutdown;
pub mod ssh_login;
pub mod step_error;
pub mod step_output;
pub mod step_record;
