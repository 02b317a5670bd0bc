//! The `[network]` table: what a guest may reach over its network.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use regex_lite::Regex;
use serde::{Serialize, Serializer};

use crate::address::{AddressRange, AddressRangeError};

use super::value_kinds::{Text, ValueProblem, matching, quoted};

/// The name that stands for the host in a spec.
const HOST: &str = "host";
/// The prefix of a pattern that stands for one or more labels of a name.
const ANY_LABELS: &str = "*.";
/// A label of a host name (RFC 1123), or one with the underscores that some names have.
const LABEL: &str = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?";
/// Length limit of a host name.
const LONGEST_NAME: usize = 253;

/// The `[network]` table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkAccess {
    /// Destinations besides public addresses, sorted, without duplicates.
    pub private: Vec<PrivateDestination>,
    /// Hosts that steps of a guest with a locked network can send requests to, sorted, without duplicates; empty for any.
    pub allow: Vec<HostPattern>,
}

impl NetworkAccess {
    /// Returns whether steps of a guest with a locked network can send requests to a host.
    #[must_use]
    pub fn allows(&self, host: &str) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|pattern| pattern.matches(host))
    }
}

/// A pattern for the hosts of URLs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostPattern {
    /// The host with this name, in lower case.
    Name(String),
    /// All hosts below this domain, but not the domain itself; in lower case.
    Below(String),
    /// The host with this address.
    Address(IpAddr),
}

impl HostPattern {
    /// Returns whether the host of a URL matches: a name in upper or lower case, or an address, which may be in brackets.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        match self {
            HostPattern::Name(exact) => *exact == name,
            HostPattern::Below(domain) => {
                let label = name.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'));
                label.is_some_and(|label| !label.is_empty())
            }
            HostPattern::Address(address) => without_brackets(host).parse() == Ok(*address),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Name(name) => f.write_str(name),
            HostPattern::Below(domain) => write!(f, "{ANY_LABELS}{domain}"),
            HostPattern::Address(address) => address.fmt(f),
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(written: &str) -> Result<Self, String> {
        parse_host_pattern(written).map_err(|problem| problem.message)
    }
}

impl Serialize for HostPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Returns an address without the brackets that a URL has around IPv6 addresses.
fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
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

impl FromStr for PrivateDestination {
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

/// Accepts a host name, `*.` and a domain, or an address.
pub(super) fn host_pattern() -> Text<HostPattern> {
    let expects = "a host such as mirror.example, all hosts of a domain such as *.example.org, or an address";
    let name = format!(r"(?:\*\.)?{LABEL}(?:\.{LABEL})*");
    Text::new(expects, matching(&format!(r"{name}|\[?[0-9A-Fa-f:.]+\]?")), parse_host_pattern)
}

fn parse_host_pattern(written: &str) -> Result<HostPattern, ValueProblem> {
    if let Ok(address) = without_brackets(written).parse() {
        return Ok(HostPattern::Address(address));
    }
    let domain = written.strip_prefix(ANY_LABELS);
    let name = domain.unwrap_or(written);
    if !is_host_name(name) {
        return Err(not_a_host(written));
    }
    Ok(if domain.is_some() { HostPattern::Below(name.to_owned()) } else { HostPattern::Name(name.to_owned()) })
}

fn is_host_name(name: &str) -> bool {
    let label = Regex::new(&format!("^{LABEL}$")).expect("a valid pattern");
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    name.len() <= LONGEST_NAME && !is_number && name.split('.').all(|part| label.is_match(part))
}

fn not_a_host(written: &str) -> ValueProblem {
    let lower = written.to_ascii_lowercase();
    let help = if lower != written && parse_host_pattern(&lower).is_ok() {
        format!("write it in lower case: `{lower}`")
    } else {
        "a URL's host alone, without scheme, port and path; `*` stands only at the beginning, before a dot".to_owned()
    };
    ValueProblem { message: format!("{} is not a host", quoted(written)), help: Some(help) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, host: &str) -> bool {
        let parsed = parse_host_pattern(pattern).map_err(|problem| problem.message).unwrap();
        assert_eq!(parsed.to_string(), without_brackets(pattern));
        parsed.matches(host)
    }

    #[test]
    fn a_host_matches_by_its_whole_name_or_address() {
        assert!(matches("mirror.example", "mirror.example"));
        assert!(matches("mirror.example", "Mirror.Example."));
        assert!(!matches("mirror.example", "a.mirror.example"));
        assert!(!matches("mirror.example", "mirror.example.org"));
        assert!(matches("192.0.2.1", "192.0.2.1"));
        assert!(!matches("192.0.2.1", "192.0.2.10"));
        assert!(matches("[2001:db8::1]", "[2001:DB8:0::1]"));
        assert!(matches("2001:db8::1", "2001:db8::1"));
    }

    #[test]
    fn a_domain_stands_for_the_hosts_below_it() {
        assert!(matches("*.example.org", "deb.example.org"));
        assert!(matches("*.example.org", "a.b.EXAMPLE.org"));
        for other in ["example.org", ".example.org", "badexample.org", "example.org.evil", "192.0.2.1"] {
            assert!(!matches("*.example.org", other), "{other}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        let long = "a.".repeat(127) + "a";
        let refused = [
            "",
            "*",
            "*.",
            "a..b",
            "-a",
            "a-",
            "http://a",
            "a:80",
            "a/b",
            "a.*",
            "*a.b",
            "**.a",
            "a b",
            "a\n",
            "é.org",
            "1.2.3",
            "999.1.1.1",
            "[a]",
            &long,
        ];
        for written in refused {
            assert!(parse_host_pattern(written).is_err(), "{written}");
        }
        let upper = parse_host_pattern("Mirror.example").map_err(|problem| problem.help).unwrap_err();
        assert_eq!(upper.as_deref(), Some("write it in lower case: `mirror.example`"));
    }

    #[test]
    fn without_a_list_any_host_is_allowed() {
        assert!(NetworkAccess::default().allows("a.example"));
        let access = NetworkAccess { allow: vec![HostPattern::Name("b.example".into())], ..NetworkAccess::default() };
        assert!(access.allows("b.example") && !access.allows("a.example"));
    }
}
