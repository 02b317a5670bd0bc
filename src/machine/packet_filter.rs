//! Decides about each Ethernet frame that a guest sends to QEMU's user-mode network.
//!
//! ```text
//! frame ──> pass     ARP, DHCP, DNS and neighbour discovery; what goes to an address that the guest may reach
//!       ├─> drop     everything that is neither IPv4 nor IPv6 or has no sound header; broadcast and multicast
//!       └─> refuse   the rest: it goes no further, and a connection attempt gets an answer at once
//! ```
//!
//! A destination is judged by its IP address alone, packet by packet, so its name does not matter. The rules follow what
//! libslirp does with a frame: it knows no VLAN tags and no IPv6 extension headers, puts the fragments of an IPv4 packet
//! together by the addresses in their headers, and opens a connection for a TCP segment with SYN and without ACK.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::address::{AddressClass, AddressRange, DNS_V4, DNS_V6, GATEWAY_V4, GUEST_NETWORK_V6, classify, embedded_v4};
use crate::plan::port_forward::{PortForward, PortProtocol};
use crate::specfile::PrivateDestination;

/// Length of an Ethernet header without a VLAN tag.
pub(super) const ETHERNET_HEADER: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

pub(super) const IPV4_HEADER: usize = 20;
pub(super) const IPV6_HEADER: usize = 40;
pub(super) const TCP_HEADER: usize = 20;
/// "Don't fragment", in the field of flags and offset of an IPv4 header.
pub(super) const IPV4_DONT_FRAGMENT: u16 = 0x4000;
const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;

pub(super) const PROTOCOL_ICMP: u8 = 1;
pub(super) const PROTOCOL_TCP: u8 = 6;
pub(super) const PROTOCOL_UDP: u8 = 17;
pub(super) const PROTOCOL_ICMPV6: u8 = 58;

const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;

const PORT_DNS: u16 = 53;
const PORT_DHCP: u16 = 67;
const PORT_DHCPV6: u16 = 547;
/// Multicast address of all `DHCPv6` relay agents and servers (RFC 8415).
const DHCPV6_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// `ICMPv6` types of router and neighbour solicitations and advertisements (RFC 4861).
const NEIGHBOUR_DISCOVERY: std::ops::RangeInclusive<u8> = 133..=136;
const ICMP_ECHO_REQUEST: u8 = 8;
const ICMPV6_ECHO_REQUEST: u8 = 128;

/// The addresses that a guest may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AddressPolicy {
    /// The addresses of this host's network interfaces.
    own: BTreeSet<IpAddr>,
    ranges: Vec<AddressRange>,
    allows_host: bool,
    /// The ports of this host that lead into the guest.
    forwards: Vec<PortForward>,
}

impl AddressPolicy {
    /// Returns the policy of this host as it is now.
    ///
    /// # Errors
    /// When its network interfaces cannot be listed.
    pub(crate) fn of_host(private: &[PrivateDestination]) -> io::Result<Self> {
        let interfaces = nix::ifaddrs::getifaddrs()?;
        let own = interfaces.filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        });
        Ok(Self::new(own.collect(), private))
    }

    /// Returns the policy with these ports of the host leading into the guest, which may answer.
    pub(crate) fn with_forwards(self, forwards: &[PortForward]) -> Self {
        Self { forwards: forwards.to_vec(), ..self }
    }

    fn new(own: BTreeSet<IpAddr>, private: &[PrivateDestination]) -> Self {
        let mut policy = Self { own, ..Self::default() };
        for destination in private {
            match destination {
                PrivateDestination::Host => policy.allows_host = true,
                PrivateDestination::Range(range) => policy.ranges.push(*range),
            }
        }
        policy
    }

    /// Returns the class of an address, seen from a guest of this host.
    fn class(&self, address: IpAddr) -> AddressClass {
        match classify(address) {
            AddressClass::Unreachable => AddressClass::Unreachable,
            _ if self.own.contains(&plain(address)) => AddressClass::Host,
            class => class,
        }
    }

    fn permits(&self, address: IpAddr) -> bool {
        match self.class(address) {
            AddressClass::Public => true,
            AddressClass::Private => self.ranges.iter().any(|range| range.contains(plain(address))),
            AddressClass::Host => self.allows_host,
            AddressClass::Unreachable => false,
        }
    }
}

/// Returns the IPv4 address that an IPv6 address stands for, or else the address itself.
fn plain(address: IpAddr) -> IpAddr {
    embedded_v4(address).map_or(address, IpAddr::V4)
}

/// The decision about a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FrameVerdict<'f> {
    /// It is passed to the user-mode network.
    Pass,
    /// It is dropped.
    Drop,
    /// It is dropped, and the guest gets an answer.
    Refuse(RefusedPacket<'f>),
}

/// A packet that the guest may not send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RefusedPacket<'f> {
    pub(super) packet: IpPacket<'f>,
    pub(crate) destination: RefusedDestination,
}

/// An address that the guest may not reach, as it is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RefusedDestination {
    pub(crate) address: IpAddr,
    /// Destination port, for TCP and UDP.
    pub(crate) port: Option<u16>,
    pub(crate) class: AddressClass,
}

/// An IP packet without its padding, with its header's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IpPacket<'f> {
    /// Bytes of the packet from the IP header on.
    pub(super) bytes: &'f [u8],
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    fragment: Fragment,
    pub(super) payload: &'f [u8],
}

/// The part of a packet that the payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fragment {
    Whole,
    First,
    Later,
}

/// Decides about one frame.
pub(crate) fn judge<'f>(frame: &'f [u8], policy: &AddressPolicy) -> FrameVerdict<'f> {
    let Some((header, body)) = frame.split_at_checked(ETHERNET_HEADER) else { return FrameVerdict::Drop };
    let packet = match be16(header, 12) {
        Some(ETHERTYPE_ARP) => return FrameVerdict::Pass,
        Some(ETHERTYPE_IPV4) => IpPacket::read_v4(body),
        Some(ETHERTYPE_IPV6) => IpPacket::read_v6(body),
        _ => None,
    };
    let Some(packet) = packet else { return FrameVerdict::Drop };
    let is_allowed = packet.is_of_the_network() || policy.permits(packet.destination);
    if is_allowed || packet.is_reply_to_forwarded(&policy.forwards) {
        FrameVerdict::Pass
    } else if header[0] & 1 == 1 || !packet.is_attempt() {
        // Group addresses are for announcements, which programs repeat for as long as they run.
        FrameVerdict::Drop
    } else {
        let class = policy.class(packet.destination);
        let destination = RefusedDestination { address: packet.destination, port: packet.port(), class };
        FrameVerdict::Refuse(RefusedPacket { packet, destination })
    }
}

impl<'f> IpPacket<'f> {
    fn read_v4(body: &'f [u8]) -> Option<Self> {
        let fixed: &[u8; IPV4_HEADER] = body.first_chunk()?;
        let header = usize::from(fixed[0] & 0xf) * 4;
        let total = usize::from(be16(fixed, 2)?);
        if fixed[0] >> 4 != 4 || header < IPV4_HEADER || total < header {
            return None;
        }
        let bytes = body.get(..total)?;
        let fragment = match be16(fixed, 6)? & !IPV4_DONT_FRAGMENT {
            0 => Fragment::Whole,
            bits if bits & IPV4_FRAGMENT_OFFSET == 0 => Fragment::First,
            _ => Fragment::Later,
        };
        let source = v4_at(fixed, 12)?;
        let destination = v4_at(fixed, 16)?;
        Some(Self { bytes, source, destination, protocol: fixed[9], fragment, payload: &bytes[header..] })
    }

    fn read_v6(body: &'f [u8]) -> Option<Self> {
        let fixed: &[u8; IPV6_HEADER] = body.first_chunk()?;
        if fixed[0] >> 4 != 6 {
            return None;
        }
        let bytes = body.get(..IPV6_HEADER + usize::from(be16(fixed, 4)?))?;
        let source = v6_at(fixed, 8)?;
        let destination = v6_at(fixed, 24)?;
        let payload = &bytes[IPV6_HEADER..];
        Some(Self { bytes, source, destination, protocol: fixed[6], fragment: Fragment::Whole, payload })
    }

    /// Returns whether a guest needs the packet to have a network at all; libslirp itself answers all of these, except DNS.
    fn is_of_the_network(&self) -> bool {
        if self.fragment != Fragment::Whole {
            return false;
        }
        match (self.protocol, self.destination_port()) {
            (PROTOCOL_TCP | PROTOCOL_UDP, Some(PORT_DNS)) => {
                [IpAddr::V4(DNS_V4), IpAddr::V6(DNS_V6)].contains(&self.destination)
            }
            (PROTOCOL_UDP, Some(PORT_DHCP)) => {
                [GATEWAY_V4, Ipv4Addr::BROADCAST].map(IpAddr::V4).contains(&self.destination)
            }
            (PROTOCOL_UDP, Some(PORT_DHCPV6)) => self.destination == IpAddr::V6(DHCPV6_SERVERS),
            (PROTOCOL_ICMPV6, _) => self.is_neighbour_discovery(),
            _ => false,
        }
    }

    fn is_neighbour_discovery(&self) -> bool {
        let IpAddr::V6(to) = self.destination else { return false };
        let is_on_the_link =
            to.is_multicast() || to.is_unicast_link_local() || GUEST_NETWORK_V6.contains(self.destination);
        is_on_the_link && self.payload.first().is_some_and(|kind| NEIGHBOUR_DISCOVERY.contains(kind))
    }

    /// Returns whether the packet may be an answer to somebody who was forwarded to the guest. A program of this host has the
    /// gateway's address there, and another host its own (libslirp, `sotranslate_accept`).
    ///
    /// A TCP segment opens nothing unless it is the first of its connection: libslirp drops the others. For UDP, whatever the
    /// guest sends from a forwarded port is taken for an answer.
    fn is_reply_to_forwarded(&self, forwards: &[PortForward]) -> bool {
        let is_for_this_host = self.destination == IpAddr::V4(GATEWAY_V4);
        let protocol = match (self.fragment, self.protocol, self.tcp_flags()) {
            (Fragment::Whole, PROTOCOL_TCP, Some(flags)) if !opens(flags) => PortProtocol::Tcp,
            (Fragment::Whole, PROTOCOL_UDP, _) => PortProtocol::Udp,
            _ => return false,
        };
        let is_from_forwarded = |forward: &PortForward| {
            let is_of_others = self.destination.is_ipv4() && !forward.address.is_loopback();
            (protocol, self.source_port()) == (forward.protocol, Some(forward.guest))
                && (is_for_this_host || is_of_others)
        };
        (protocol == PortProtocol::Tcp && is_for_this_host) || forwards.iter().any(is_from_forwarded)
    }

    /// Returns whether a program tries to reach somebody with the packet, and an answer is possible.
    fn is_attempt(&self) -> bool {
        match (self.fragment, self.protocol, self.payload.first()) {
            (Fragment::Later, ..) => false,
            (_, PROTOCOL_TCP, _) => self.tcp_flags().is_some_and(opens),
            (_, PROTOCOL_UDP, _) => self.port().is_some(),
            (_, PROTOCOL_ICMP, kind) => self.destination.is_ipv4() && kind == Some(&ICMP_ECHO_REQUEST),
            (_, PROTOCOL_ICMPV6, kind) => self.destination.is_ipv6() && kind == Some(&ICMPV6_ECHO_REQUEST),
            _ => false,
        }
    }

    /// Returns the flags of a TCP segment whose header is whole.
    fn tcp_flags(&self) -> Option<u8> {
        (self.protocol == PROTOCOL_TCP && self.payload.len() >= TCP_HEADER).then(|| self.payload[13])
    }

    fn port(&self) -> Option<u16> {
        matches!(self.protocol, PROTOCOL_TCP | PROTOCOL_UDP).then(|| self.destination_port()).flatten()
    }

    /// Returns the first field of a TCP or UDP header.
    fn source_port(&self) -> Option<u16> {
        be16(self.payload, 0)
    }

    /// Returns the second field of a TCP or UDP header.
    fn destination_port(&self) -> Option<u16> {
        be16(self.payload, 2)
    }
}

fn opens(flags: u8) -> bool {
    flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|field| u16::from_be_bytes(*field))
}

fn v4_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    bytes.get(at..)?.first_chunk::<4>().map(|octets| IpAddr::from(*octets))
}

fn v6_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    bytes.get(at..)?.first_chunk::<16>().map(|octets| IpAddr::from(*octets))
}

#[cfg(test)]
mod tests;
