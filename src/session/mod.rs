//! The host's end of the conversation with the agent in the guest.
//!
//! ```text
//! accept -> Session --exec, shell, upload, unpack_device, fetch, list, wake, ping--> bye
//!              \--(the guest reboots)--> reconnect --/
//! ```
//!
//! The guest is hostile as far as this side is concerned: every frame, queue and wait has a limit, and what it sends as
//! files is written strictly beneath one folder.

pub mod checkout;
pub mod error;
pub mod exec;
pub mod greeting;
#[doc(hidden)]
pub mod receive;
pub mod sealing;
pub mod session;
pub mod shell;
pub mod stage;
pub mod transfer;

#[cfg(test)]
mod tests;

pub use crate::agent::pack::PackError;
#[cfg(test)]
pub(crate) use crate::agent::testing;
pub use crate::wire::message::TtySize;
pub use crate::wire::{Aftermath, BUILD, PORT};
pub use checkout::CheckoutModes;
pub use error::GuestError;
pub use exec::{Exec, Exit};
pub use greeting::Hello;
pub use receive::{FetchLimits, FetchRequest, FetchedTree};
pub use session::{Farewell, Limits, Session};
pub use shell::{Line, Typed};
pub use stage::{PackedTree, Source, Staged, What, stage};
pub use transfer::{DiskReport, FetchOutcome};

/// The agent as an executable for the guest: static, x86-64 Linux.
pub static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kiln-agent"));
