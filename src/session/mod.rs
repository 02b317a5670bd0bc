//! The host's end of the protocol with the agent in the guest.
//!
//! ```text
//! accept -> Session --exec, shell, upload, unpack_device, fetch, list, wake, ping--> bye
//!              \--(the guest reboots)--> reconnect --/
//! ```
//!
//! The guest is assumed to be hostile: every frame, queue and wait has a limit, and the files that it sends are written
//! strictly beneath one folder.

pub mod checkout;
pub mod connection;
pub mod error;
pub mod exec;
pub mod greeting;
#[doc(hidden)]
pub mod receive;
pub mod sealing;
pub mod shell;
pub mod stage_source;
pub mod transfer;

#[cfg(test)]
mod tests;

pub use crate::agent::pack::PackError;
#[cfg(test)]
pub(crate) use crate::agent::testing;
pub use crate::wire::message::TtySize;
pub use crate::wire::{Aftermath, BUILD, PORT};
pub use checkout::CheckoutModes;
pub use connection::{Farewell, Limits, Session};
pub use error::GuestError;
pub use exec::{Exec, Exit};
pub use greeting::Hello;
pub use receive::{FetchLimits, FetchRequest, FetchedTree};
pub use shell::{Attach, AttachedTerminal, TerminalInput, TerminalLine};
pub(crate) use stage_source::is_left_out;
pub use stage_source::{PackedTree, StageContent, StageSource, StagedStream, stage};
pub use transfer::{DiskReport, FetchOutcome};

/// The agent as an executable for the guest: static, x86-64 Linux.
pub static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kiln-agent"));
/// Build id of the sealing code: another build may seal the same guest differently.
pub(crate) const SEAL_BUILD: &str = env!("KILN_SEAL_BUILD");
