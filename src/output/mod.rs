//! From a sealed disk to a published version: disk files, packages, evidence, and the checks before publication.

pub mod attribution;
pub mod contents;
pub mod convert;
pub mod disk_files;
mod evidence;
pub mod export;
pub mod kept_logs;
pub mod locked_downloads;
pub mod package;
pub mod platform;
pub mod publish;
pub mod seal_audit;
