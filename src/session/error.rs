//! Errors between kiln and the guest.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::agent::pack::PackError;
use crate::error::{Fault, Kind};
use crate::size::{ByteSize, format_duration};
use crate::wire::code::DecodeError;

/// A failure of the connection, a transfer or a request.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The other end of the port was closed.
    #[error("the agent's port was closed")]
    Closed,
    /// The port failed.
    #[error("the agent's port failed")]
    Port(#[source] io::Error),
    /// The guest sent a message that no agent sends.
    #[error("the guest does not speak the agent's language: {0}")]
    Protocol(String),
    /// An agent of another kiln build answered.
    #[error("the guest runs another agent: version {version}, build {build}")]
    OtherBuild {
        /// Protocol version of the agent.
        version: u16,
        /// Build id of the agent.
        build: String,
    },
    /// The agent sent a new hello during a request: the guest rebooted.
    #[error("the guest's agent started anew in the middle of a request")]
    Restarted,
    /// A second hello arrived on the port, in the same boot: from another agent, or from this one after its death.
    #[error("another agent spoke in the middle of a request")]
    SecondAgent,
    /// The agent has closed its port, while the guest still runs.
    #[error("kiln's agent in the guest ended")]
    AgentEnded,
    /// The guest has not taken any data for this time.
    #[error("the guest read nothing for {}", format_duration(*.0))]
    Stalled(Duration),
    /// The guest has not even answered pings for this time.
    #[error("the guest's agent said nothing for {}", format_duration(*.0))]
    Silent(Duration),
    /// A command that the agent should have killed after this time still runs.
    #[error("the guest's agent did not end a command that was to take at most {}", format_duration(*.0))]
    Overdue(Duration),
    /// The guest refused or failed a request.
    #[error("the guest says: {text}")]
    Refused {
        /// Whether the guest's file system is full.
        full: bool,
        /// The agent's message: what failed and why.
        text: String,
    },
    /// A command with its environment and secrets is too large to be sent.
    #[error("the command with its environment and secrets has {bytes}; the limit is {limit}")]
    TooLarge {
        /// Size of the command.
        bytes: ByteSize,
        /// The size limit.
        limit: ByteSize,
    },
    /// An input on this host that was valid when the build was planned cannot be read or copied any more.
    #[error("{0}")]
    Input(String),
    /// An input on this host changed during the build.
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    /// Files that the guest sent may not be written here.
    #[error("the guest sent a tree that is refused: {0}")]
    Hostile(String),
    /// A file that the guest sent cannot be kept in the store.
    #[error("`{path}` cannot be kept beside the image: {why}")]
    Unkept {
        /// Path of the file or folder.
        path: String,
        /// The reason.
        why: String,
    },
    /// The guest sent more than the limit.
    #[error("the guest sent more than {0}")]
    Beyond(String),
    /// A file on this host cannot be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
}

impl Fault for GuestError {
    fn kind(&self) -> Kind {
        match self {
            Self::Closed
            | Self::Port(_)
            | Self::Protocol(_)
            | Self::OtherBuild { .. }
            | Self::SecondAgent
            | Self::Stalled(_)
            | Self::Silent(_) => Kind::Boot,
            Self::Restarted
            | Self::AgentEnded
            | Self::Overdue(_)
            | Self::Refused { .. }
            | Self::Unkept { .. }
            | Self::Hostile(_)
            | Self::Beyond(_) => Kind::Step,
            Self::TooLarge { .. } => Kind::Spec,
            Self::Changed(_) | Self::Input(_) => Kind::Base,
            Self::Write { .. } => Kind::Output,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Refused { full: true, .. } => "make the disk larger: set `disk` under [machine]",
            Self::OtherBuild { .. } => "the base image must not contain a running kiln agent",
            Self::SecondAgent | Self::AgentEnded => {
                "the agent's port is kiln's alone: no step may open it, or kill the agent"
            }
            Self::Restarted => "a step that reboots the guest must say `reboot = true`",
            Self::Changed(_) => "build again when nothing writes to it any more",
            Self::Beyond(_) | Self::Unkept { .. } => "fetch less, or pack it into one file in an earlier step",
            Self::TooLarge { .. } => "copy large text as a file and run that",
            Self::Stalled(_) | Self::Silent(_) => "see console.log for a crash or a hang of the guest's kernel",
            _ => return Vec::new(),
        };
        vec![hint.into()]
    }
}

/// Returns a conversion to the error for a file on this host that cannot be written.
pub(super) fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> GuestError {
    move |source| GuestError::Write { path: path.to_owned(), source }
}

impl From<DecodeError> for GuestError {
    fn from(why: DecodeError) -> Self {
        match why {
            DecodeError::Version { version, build } => Self::OtherBuild { version, build: printable(&build) },
            other => Self::Protocol(other.to_string()),
        }
    }
}

impl From<PackError> for GuestError {
    fn from(error: PackError) -> Self {
        match error {
            PackError::Changed(path) => Self::Changed(path),
            PackError::Write(error) => Self::Port(error),
            other => Self::Input(other.to_string()),
        }
    }
}

/// Escapes a guest's text for a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
