//! The sealing operations by name, as `[seal] skip` accepts and `kiln seal --list` prints them.

pub use crate::wire::sealing::OPERATIONS;
