//! What a guest may ask the proxy for.

use std::net::IpAddr;
use std::sync::Arc;

use crate::address::{AddressClass, classify};
use crate::download::{AddressGuard, DownloadLimits, GuestClient, TransferError};
use crate::specfile::HostPattern;

/// The hosts that a guest may reach.
#[derive(Debug, Clone, Default)]
pub(super) struct HostPolicy {
    /// The hosts that the spec allows; any public one if there are none.
    allow: Vec<HostPattern>,
}

impl HostPolicy {
    pub(super) fn new(allow: Vec<HostPattern>) -> Self {
        Self { allow }
    }

    /// Returns whether requests to a host are allowed at all.
    pub(super) fn allows(&self, host: &str) -> bool {
        self.allow.is_empty() || self.names(host)
    }

    /// Returns whether a connection to an address of a host is allowed. Addresses of the host itself and of private networks
    /// are only for hosts that the spec names: a public name may lead anywhere.
    pub(super) fn allows_address(&self, host: &str, address: IpAddr) -> bool {
        self.names(host) || classify(address) == AddressClass::Public
    }

    /// Creates a client that connects to the addresses that are allowed, and to no others.
    ///
    /// # Errors
    /// When the host's own proxy has an invalid name.
    pub(super) fn client(&self) -> Result<GuestClient, TransferError> {
        let policy = self.clone();
        let guard: Arc<AddressGuard> = Arc::new(move |host, address| policy.allows_address(host, address));
        GuestClient::new(&guard, &DownloadLimits::default())
    }

    fn names(&self, host: &str) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        self.allow.iter().any(|pattern| pattern.matches(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_for_hosts_that_are_named() {
        let open = HostPolicy::default();
        assert!(open.allows("example.org"));
        for (address, expected) in [
            ("93.184.215.14", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("192.168.1.1", false),
            ("10.0.2.2", false),
            ("::1", false),
            ("fd00::1", false),
            ("::ffff:127.0.0.1", false),
        ] {
            assert_eq!(open.allows_address("example.org", address.parse().unwrap()), expected, "{address}");
        }
        let named = HostPolicy::new(vec!["mirror.example".parse().unwrap(), "::1".parse().unwrap()]);
        assert!(named.allows("mirror.example") && !named.allows("example.org"));
        assert!(named.allows("[::1]"));
        assert!(named.allows_address("mirror.example", "192.168.1.1".parse().unwrap()));
        assert!(!named.allows_address("example.org", "192.168.1.1".parse().unwrap()));
    }
}
