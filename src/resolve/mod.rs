//! Resolves what a spec refers to: its base image, its inputs and secrets, and the facts of this host.

pub mod agent_support;
pub mod base;
mod conditions;
pub mod facts;
mod host_variables;
pub(crate) mod ignore_file;
pub mod inputs;
mod kernel;
pub(crate) mod kernel_error;
pub mod lockfile;
mod network_lock;
pub mod path_policy;
pub mod script_check;
pub mod secrets;
pub mod source_errors;
