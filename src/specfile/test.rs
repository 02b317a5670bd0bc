//! What a sealed image is tested for.
//!
//! Tests are also written into the manifest, so that an image can be tested again where its spec is not at hand.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Command, Owner};

/// `[[test]]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Test {
    /// Unique in its spec.
    pub name: String,
    /// What must hold.
    pub check: Check,
    /// The guest restarts before the check.
    #[serde(default)]
    pub reboot: bool,
    /// It gets a boot of its own rather than a clone of the boot that the others share.
    #[serde(default)]
    pub needs_fresh_boot: bool,
    /// Try again until it passes or this is over.
    #[serde(with = "seconds")]
    pub retry_for: Duration,
    /// How long one try may take.
    #[serde(with = "seconds")]
    pub timeout: Duration,
    /// Line of the spec file on which the test begins, from 1; 0 where there is no spec.
    #[serde(skip)]
    pub line: usize,
}

/// What a test checks: exactly one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Check {
    /// `run`: this must succeed.
    Run(Command),
    /// `command`: this must end so, and may have to write so.
    Command {
        /// What is executed.
        run: Command,
        /// Its exit status.
        exit: u8,
        /// A regular expression that its standard output matches somewhere.
        stdout_matches: Option<String>,
    },
    /// `unit`: it is active, and has not been restarted.
    Unit(String),
    /// `port`: something listens on this TCP port.
    Port(u16),
    /// `file`
    File(FileCheck),
    /// `package`: it is installed.
    Package {
        /// Its name.
        name: String,
        /// Its version; one that ends with `*` stands for all that begin so.
        version: Option<String>,
    },
    /// `boots-within`: from power-on, or from the reboot that was asked for, until everything is started. Longer under
    /// software emulation.
    BootsWithin(#[serde(with = "seconds")] Duration),
    /// `no-failed-units = true`
    NoFailedUnits,
}

/// What is said of a file. Symbolic links are followed, but for `absent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCheck {
    /// Absolute path in the guest.
    pub path: String,
    /// There is nothing of that name.
    pub absent: bool,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner, and group where it is given.
    pub owner: Option<Owner>,
    /// A text that is somewhere in it.
    pub contains: Option<String>,
    /// Digest of its content, 64 lower-case hex digits.
    pub sha256: Option<String>,
}

/// Whole seconds, as durations in a spec are.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(duration.as_secs())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_secs)
    }
}
