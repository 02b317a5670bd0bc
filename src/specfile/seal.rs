//! The sealing operations by name: what `[seal] skip` accepts and `kiln seal --list` prints.

pub use crate::wire::sealing::OPERATIONS;
