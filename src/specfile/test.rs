//! The tests of a sealed image.
//!
//! Tests are also recorded in the manifest, so that an image can be tested again where its spec is not available.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::digest::Sha256Digest;

use super::{Command, FileOwner};

/// A `[[test]]` of the spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Test {
    /// The test's name, unique in its spec.
    pub name: String,
    /// The condition that the test checks.
    pub check: Check,
    /// Whether the guest restarts before the check.
    #[serde(default)]
    pub reboot: bool,
    /// Whether the test gets a boot of its own rather than a clone of the boot that the others share.
    #[serde(default)]
    pub needs_fresh_boot: bool,
    /// How long the test is retried until it passes.
    #[serde(with = "seconds")]
    pub retry_for: Duration,
    /// How long one try may take.
    #[serde(with = "seconds")]
    pub timeout: Duration,
    /// Line of the spec file on which the test begins, from 1; 0 where there is no spec.
    #[serde(skip)]
    pub line: usize,
}

/// The check of a test: exactly one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Check {
    /// `run`: the command must succeed.
    Run(Command),
    /// `command`: the command must end with a status, and its output may have to match.
    Command {
        /// The command to run.
        run: Command,
        /// The expected exit status.
        exit: u8,
        /// A regular expression that its standard output must match somewhere.
        stdout_matches: Option<String>,
    },
    /// `unit`: the unit is active, and has not been restarted.
    Unit(String),
    /// `port`: a socket listens on this TCP port.
    Port(u16),
    /// `file`: a file has these properties.
    File(FileCheck),
    /// `package`: the package is installed.
    Package {
        /// Name of the package.
        name: String,
        /// Its version; one that ends with `*` matches all that begin so.
        version: Option<String>,
    },
    /// `boots-within`: the longest time from power-on, or from the requested reboot, until everything is started. Longer
    /// under software emulation.
    BootsWithin(#[serde(with = "seconds")] Duration),
    /// `no-failed-units = true`: no unit of systemd has failed.
    NoFailedUnits,
}

/// The expected properties of a file. Symbolic links are followed, except for `absent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCheck {
    /// Absolute path in the guest.
    pub path: String,
    /// Whether there must be nothing of that name.
    pub absent: bool,
    /// Expected permission bits.
    pub mode: Option<u32>,
    /// Expected owner, and group where it is given.
    pub owner: Option<FileOwner>,
    /// A string that the content must contain.
    pub contains: Option<String>,
    /// SHA-256 digest of the content.
    pub sha256: Option<Sha256Digest>,
}

/// Serializes durations as whole seconds, as in a spec.
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
