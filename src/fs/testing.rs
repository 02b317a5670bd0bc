//! Simulated failures of the write side in tests: of single calls, of the disk, of kiln and of the power.

pub(crate) mod crash;
pub(crate) mod faults;
