//! Classifies IP addresses: the public internet, a private network, or the host that a guest runs on.
//!
//! The addresses of a guest's own network are those of QEMU's user-mode network (libslirp): 10.0.2.0/24 and `fec0::/64`,
//! where the host's loopback is 10.0.2.2 and `fec0::2`, and a DNS proxy is 10.0.2.3 and `fec0::3`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The address at which the guest finds its gateway, DHCP server and the host's loopback.
pub(crate) const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The IPv6 address of the gateway.
pub(crate) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
/// The address of the DNS proxy in the guest's network.
pub(crate) const DNS_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The IPv6 address of the DNS proxy.
pub(crate) const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3);
/// The guest's own IPv6 network.
pub(crate) const GUEST_NETWORK_V6: AddressRange = v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 64);

/// Ranges in which no address belongs to another machine, or in which libslirp sends everything to the host's loopback.
const UNREACHABLE: [AddressRange; 9] = [
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    v4([10, 0, 2, 0], 24),
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128),
    GUEST_NETWORK_V6,
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

/// Ranges that are not part of the public internet (RFC 6890 and the IANA registries of special-purpose addresses).
const PRIVATE: [AddressRange; 12] = [
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 0, 0, 0], 24),
    v4([192, 168, 0, 0], 16),
    v4([198, 18, 0, 0], 15),
    // Translation to IPv4 inside a site (RFC 8215).
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
];

/// IPv6 ranges whose addresses end with the IPv4 address that they stand for: IPv4-compatible, mapped, translated, NAT64.
const ENDS_WITH_V4: [AddressRange; 4] = [
    v6([0, 0, 0, 0, 0, 0, 0, 0], 96),
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96),
    v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96),
    v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96),
];
/// 6to4, where the IPv4 address follows the first 16 bits.
const SIX_TO_FOUR: AddressRange = v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16);

/// The class of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AddressClass {
    /// Another machine on the public internet.
    Public,
    /// A machine of a private network, or a metadata service.
    Private,
    /// The host that the guest runs on.
    Host,
    /// No other machine: loopback, multicast, broadcast or reserved.
    Unreachable,
}

/// Returns the class of an address in the guest's network. The host's other addresses are not known here.
pub(crate) fn classify(address: IpAddr) -> AddressClass {
    if address == IpAddr::V4(GATEWAY_V4) || address == IpAddr::V6(GATEWAY_V6) {
        AddressClass::Host
    } else if UNREACHABLE.iter().any(|range| range.contains(address)) {
        AddressClass::Unreachable
    } else if let Some(inner) = embedded_v4(address) {
        classify_embedded(inner)
    } else if PRIVATE.iter().any(|range| range.contains(address)) {
        AddressClass::Private
    } else {
        AddressClass::Public
    }
}

/// Classifies an embedded IPv4 address. The gateway's alias means the host only as an address of the guest's own network.
fn classify_embedded(inner: Ipv4Addr) -> AddressClass {
    match classify(IpAddr::V4(inner)) {
        AddressClass::Host => AddressClass::Unreachable,
        class => class,
    }
}

/// Returns the IPv4 address that an IPv6 address stands for.
pub(crate) fn embedded_v4(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(outer) = address else { return None };
    let bits = if ENDS_WITH_V4.iter().any(|range| range.contains(address)) {
        outer.to_bits()
    } else if SIX_TO_FOUR.contains(address) {
        outer.to_bits() >> 80
    } else {
        return None;
    };
    #[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are the IPv4 address")]
    Some(Ipv4Addr::from_bits(bits as u32))
}

/// A range of addresses that begin with the same bits: `10.1.2.0/24`, `192.168.1.10`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    first: IpAddr,
    prefix: u8,
}

const fn v4(octets: [u8; 4], prefix: u8) -> AddressRange {
    let [a, b, c, d] = octets;
    AddressRange { first: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
}

#[expect(clippy::many_single_char_names, reason = "eight groups of one address")]
const fn v6(groups: [u16; 8], prefix: u8) -> AddressRange {
    let [a, b, c, d, e, f, g, h] = groups;
    AddressRange { first: IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), prefix }
}

/// A string that is not a range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressRangeError {
    /// Not an address, or not a prefix length behind the slash.
    #[error("`{0}` is not an address, such as 192.168.1.10, or a network, such as 10.1.2.0/24")]
    NotAnAddress(String),
    /// The prefix is longer than an address.
    #[error("the prefix of `{written}` is longer than {longest} bits")]
    PrefixTooLong {
        /// The string as it was written.
        written: String,
        /// The length of an address.
        longest: u8,
    },
    /// Bits behind the prefix are set.
    #[error("`{written}` has bits behind its prefix; the network is {network}")]
    HostBits {
        /// The string as it was written.
        written: String,
        /// The range without these bits.
        network: AddressRange,
    },
}

impl AddressRange {
    /// Checks whether an address is in the range. An IPv4 address is in no range of IPv6 addresses, and the reverse.
    pub(crate) fn contains(self, address: IpAddr) -> bool {
        self.first.is_ipv4() == address.is_ipv4() && left_bits(address) & self.mask() == left_bits(self.first)
    }

    /// Checks whether no address of the range belongs to another machine.
    pub(crate) fn is_unreachable(self) -> bool {
        UNREACHABLE.iter().any(|range| range.prefix <= self.prefix && range.contains(self.first))
    }

    fn mask(self) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0)
    }

    fn longest(address: IpAddr) -> u8 {
        if address.is_ipv4() { 32 } else { 128 }
    }

    fn without_host_bits(self) -> Self {
        let bits = left_bits(self.first) & self.mask();
        let first = match self.first {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits((bits >> 96) as u32)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        };
        Self { first, ..self }
    }
}

/// Returns the bits of an address, the first one at the left end.
fn left_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == Self::longest(self.first) {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}/{}", self.first, self.prefix)
        }
    }
}

impl FromStr for AddressRange {
    type Err = AddressRangeError;

    fn from_str(written: &str) -> Result<Self, AddressRangeError> {
        let range = parse_range(written).ok_or_else(|| AddressRangeError::NotAnAddress(written.to_owned()))?;
        let longest = Self::longest(range.first);
        if range.prefix > longest {
            return Err(AddressRangeError::PrefixTooLong { written: written.to_owned(), longest });
        }
        let network = range.without_host_bits();
        if network == range {
            Ok(range)
        } else {
            Err(AddressRangeError::HostBits { written: written.to_owned(), network })
        }
    }
}

/// Parses an address with the length of its prefix, which is not checked; without one, the range is that address alone.
fn parse_range(written: &str) -> Option<AddressRange> {
    let Some((address, digits)) = written.split_once('/') else {
        let first = written.parse().ok()?;
        return Some(AddressRange { first, prefix: AddressRange::longest(first) });
    };
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    Some(AddressRange { first: address.parse().ok()?, prefix: digits.parse().ok().filter(|_| is_number)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn class(address: &str) -> AddressClass {
        classify(address.parse().unwrap())
    }

    /// Covers the first and the last address of each range, and their neighbours outside of it.
    #[test]
    fn every_range_ends_where_its_standard_says() {
        use AddressClass::{Host, Private, Public, Unreachable};
        let table = [
            ("0.0.0.0", Unreachable),
            ("0.255.255.255", Unreachable),
            ("1.0.0.0", Public),
            ("9.255.255.255", Public),
            ("10.0.0.0", Private),
            ("10.0.1.255", Private),
            ("10.0.2.0", Unreachable),
            ("10.0.2.2", Host),
            ("10.0.2.3", Unreachable),
            ("10.0.2.255", Unreachable),
            ("10.0.3.0", Private),
            ("10.255.255.255", Private),
            ("11.0.0.0", Public),
            ("100.63.255.255", Public),
            ("100.64.0.0", Private),
            ("100.127.255.255", Private),
            ("100.128.0.0", Public),
            ("126.255.255.255", Public),
            ("127.0.0.0", Unreachable),
            ("127.255.255.255", Unreachable),
            ("128.0.0.0", Public),
            ("169.253.255.255", Public),
            ("169.254.0.0", Private),
            ("169.254.169.254", Private),
            ("169.254.255.255", Private),
            ("169.255.0.0", Public),
            ("172.15.255.255", Public),
            ("172.16.0.0", Private),
            ("172.31.255.255", Private),
            ("172.32.0.0", Public),
            ("191.255.255.255", Public),
            ("192.0.0.0", Private),
            ("192.0.0.255", Private),
            ("192.0.1.0", Public),
            ("192.167.255.255", Public),
            ("192.168.0.0", Private),
            ("192.168.255.255", Private),
            ("192.169.0.0", Public),
            ("198.17.255.255", Public),
            ("198.18.0.0", Private),
            ("198.19.255.255", Private),
            ("198.20.0.0", Public),
            ("223.255.255.255", Public),
            ("224.0.0.0", Unreachable),
            ("239.255.255.255", Unreachable),
            ("240.0.0.0", Unreachable),
            ("255.255.255.255", Unreachable),
            ("::", Unreachable),
            ("::1", Unreachable),
            ("::2", Unreachable),
            ("::8.8.8.8", Public),
            ("::ffff:8.8.8.8", Public),
            ("::ffff:10.0.2.2", Unreachable),
            ("::ffff:127.0.0.1", Unreachable),
            ("::ffff:192.168.1.1", Private),
            ("::ffff:0:169.254.169.254", Private),
            ("64:ff9b::8.8.8.8", Public),
            ("64:ff9b::10.1.2.3", Private),
            ("64:ff9b:1::1", Private),
            ("64:ff9b:1:ffff:ffff:ffff:ffff:ffff", Private),
            ("64:ff9b:2::", Public),
            ("100::", Private),
            ("2001:4860:4860::8888", Public),
            ("2002:7f00:1::", Unreachable),
            ("2002:c0a8:101::1", Private),
            ("2002:808:808::1", Public),
            ("fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Public),
            ("fc00::", Private),
            ("fd00:ec2::254", Private),
            ("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Private),
            ("fe00::", Public),
            ("fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Public),
            ("fe80::", Private),
            ("febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Private),
            ("fec0::", Unreachable),
            ("fec0::2", Host),
            ("fec0::3", Unreachable),
            ("fec0::ffff:ffff:ffff:ffff", Unreachable),
            ("fec0:0:0:1::", Private),
            ("feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Private),
            ("ff00::", Unreachable),
            ("ff02::fb", Unreachable),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Unreachable),
        ];
        for (address, expected) in table {
            assert_eq!(class(address), expected, "{address}");
        }
    }

    #[test]
    fn a_range_is_written_as_it_is_read() {
        for text in ["10.1.2.0/24", "192.168.1.10", "0.0.0.0/0", "::/0", "fd00::/8", "fd00::1", "10.0.0.0/31"] {
            assert_eq!(text.parse::<AddressRange>().unwrap().to_string(), text);
        }
        assert_eq!("10.1.2.3/32".parse::<AddressRange>().unwrap().to_string(), "10.1.2.3");
        let error = |text: &str| text.parse::<AddressRange>().unwrap_err().to_string();
        for text in ["", "host", "10.1.2", "10.1.2.0/", "10.1.2.0/+8", "10.1.2.0/ 8", "/8", "010.1.2.3", "fd00::/256"] {
            assert!(error(text).contains("is not an address"), "{text}: {}", error(text));
        }
        assert_eq!(error("10.0.0.0/33"), "the prefix of `10.0.0.0/33` is longer than 32 bits");
        assert_eq!(error("10.1.2.3/24"), "`10.1.2.3/24` has bits behind its prefix; the network is 10.1.2.0/24");
        assert_eq!(error("fd00::1/8"), "`fd00::1/8` has bits behind its prefix; the network is fd00::/8");
    }

    #[test]
    fn what_only_the_host_has_is_unreachable() {
        let is_unreachable = |text: &str| text.parse::<AddressRange>().unwrap().is_unreachable();
        for text in ["127.0.0.1", "127.0.0.0/8", "10.0.2.2", "10.0.2.0/24", "::1", "ff02::/16", "255.255.255.255"] {
            assert!(is_unreachable(text), "{text}");
        }
        for text in ["10.0.0.0/8", "0.0.0.0/0", "::/0", "169.254.169.254", "fec0::/10"] {
            assert!(!is_unreachable(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_range_contains_what_begins_with_its_bits(bits: u32, other: u32, prefix in 0_u8..=32) {
            let range = AddressRange { first: IpAddr::V4(Ipv4Addr::from_bits(bits)), prefix }.without_host_bits();
            let differing = (bits ^ other).leading_zeros();
            prop_assert_eq!(range.contains(Ipv4Addr::from_bits(other).into()), differing >= u32::from(prefix));
            prop_assert_eq!(range.to_string().parse(), Ok(range));
        }

        #[test]
        fn an_embedded_address_is_no_better_than_itself(bits: u32) {
            let inner = Ipv4Addr::from_bits(bits);
            let class = classify(inner.into());
            let mapped = IpAddr::V6(inner.to_ipv6_mapped());
            let six_to_four = IpAddr::V6(Ipv6Addr::from_bits(0x2002 << 112 | u128::from(bits) << 80));
            for outer in [mapped, six_to_four] {
                prop_assert!(classify(outer) >= class);
                prop_assert_eq!(embedded_v4(outer), Some(inner));
            }
        }
    }
}
