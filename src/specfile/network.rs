//! The `[network]` table: what a guest may reach over its network.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::address::{AddressRange, AddressRangeError};

use super::value_kinds::{Text, ValueProblem, matching};

/// The name that stands for the host in a spec.
const HOST: &str = "host";

/// The `[network]` table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkAccess {
    /// Destinations besides public addresses, sorted, without duplicates.
    pub private: Vec<PrivateDestination>,
}

/// A destination that is not public.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PrivateDestination {
    /// The host that runs the guest: its loopback interface as the gateway 10.0.2.2, and its own addresses.
    Host,
    /// The non-public addresses of a range, without the host's own.
    Range(AddressRange),
}

impl fmt::Display for PrivateDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PrivateDestination::Host => f.write_str(HOST),
            PrivateDestination::Range(range) => range.fmt(f),
        }
    }
}

impl Serialize for PrivateDestination {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl std::str::FromStr for PrivateDestination {
    type Err = AddressRangeError;

    fn from_str(written: &str) -> Result<Self, AddressRangeError> {
        if written == HOST { Ok(Self::Host) } else { written.parse().map(Self::Range) }
    }
}

/// Accepts `host`, an address or a network.
pub(super) fn private_destination() -> Text<PrivateDestination> {
    let expects = "`host`, an address such as 192.168.1.10, or a network such as 10.1.2.0/24";
    Text::new(expects, matching("host|[0-9A-Fa-f:.]+(?:/[0-9]{1,3})?"), parse_destination)
}

fn parse_destination(written: &str) -> Result<PrivateDestination, ValueProblem> {
    match written.parse()? {
        PrivateDestination::Range(range) if range.is_unreachable() => Err(ValueProblem {
            message: format!("`{range}` holds no address of another machine"),
            help: Some("`host` is the host that runs the build, which a guest finds at 10.0.2.2".to_owned()),
        }),
        destination => Ok(destination),
    }
}
