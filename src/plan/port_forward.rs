//! Ports of this host that lead into a guest.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The address that is bound where the user names none: programs of this host alone reach the port.
pub(crate) const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;
const FORMS: &str = "write HOST:GUEST, ADDRESS:HOST:GUEST or GUEST, each with an optional /udp, as in 8080:80";

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PortProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl PortProtocol {
    /// Returns the name that QEMU and the command line use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port of the guest that the user wants to reach, with the port of this host, if the user has chosen one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRequest {
    /// Transport protocol of both ports.
    pub protocol: PortProtocol,
    /// Address of this host.
    pub address: Ipv4Addr,
    /// Port of this host; `None` for any that is free.
    pub host: Option<u16>,
    /// Port of the guest.
    pub guest: u16,
}

/// A port of this host that leads to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortForward {
    /// Transport protocol of both ports.
    pub protocol: PortProtocol,
    /// Address of this host.
    pub address: Ipv4Addr,
    /// Port of this host.
    pub host: u16,
    /// Port of the guest.
    pub guest: u16,
}

/// A port request that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortRequestError {
    /// The request has another form.
    #[error("{FORMS}")]
    Form,
    /// A port is not a number from 1 to 65535.
    #[error("`{0}` is not a port from 1 to 65535; {FORMS}")]
    Port(String),
    /// The address is not an IPv4 address, and QEMU's user-mode network forwards from no other.
    #[error("`{0}` is not an IPv4 address, such as 127.0.0.1, or 0.0.0.0 for all of this host")]
    Address(String),
    /// The protocol is unknown.
    #[error("`{0}` is neither tcp nor udp")]
    Protocol(String),
}

impl FromStr for PortRequest {
    type Err = PortRequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (ports, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), PortProtocol::Tcp),
            Some((ports, "udp")) => (ports, PortProtocol::Udp),
            Some((_, other)) => return Err(PortRequestError::Protocol(other.to_owned())),
        };
        let (sockets, guest) = ports.rsplit_once(':').map_or((None, ports), |(host, guest)| (Some(host), guest));
        let guest = parse_port(guest)?;
        let (address, host) = match sockets.map(|host| host.rsplit_once(':').ok_or(host)) {
            None => (DEFAULT_ADDRESS, None),
            Some(Err(host)) => (DEFAULT_ADDRESS, Some(parse_port(host)?)),
            // An empty port asks for a free one on this address, as docker has it.
            Some(Ok((address, ""))) => (parse_address(address)?, None),
            Some(Ok((address, host))) => (parse_address(address)?, Some(parse_port(host)?)),
        };
        Ok(Self { protocol, address, host, guest })
    }
}

fn parse_port(text: &str) -> Result<u16, PortRequestError> {
    if text.is_empty() {
        return Err(PortRequestError::Form);
    }
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| is_number && *port != 0);
    port.ok_or_else(|| PortRequestError::Port(text.to_owned()))
}

fn parse_address(text: &str) -> Result<Ipv4Addr, PortRequestError> {
    text.parse().map_err(|_| PortRequestError::Address(text.to_owned()))
}

impl PortForward {
    /// Returns the value of QEMU's option `hostfwd`.
    #[must_use]
    pub fn host_forward(&self) -> String {
        format!("{}:{}:{}-:{}", self.protocol.name(), self.address, self.host, self.guest)
    }

    /// Returns whether both need the same socket of this host.
    #[must_use]
    pub fn collides_with(&self, other: &Self) -> bool {
        let is_same_address =
            self.address == other.address || self.address.is_unspecified() || other.address.is_unspecified();
        is_same_address && (self.protocol, self.host) == (other.protocol, other.host)
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}->{}/{}", self.address, self.host, self.guest, self.protocol.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(protocol: PortProtocol, address: [u8; 4], host: Option<u16>, guest: u16) -> PortRequest {
        PortRequest { protocol, address: Ipv4Addr::from(address), host, guest }
    }

    #[test]
    fn port_requests_are_parsed() {
        let local = [127, 0, 0, 1];
        let (tcp, udp) = (PortProtocol::Tcp, PortProtocol::Udp);
        for (text, expected) in [
            ("80", request(tcp, local, None, 80)),
            ("8080:80", request(tcp, local, Some(8080), 80)),
            ("8080:80/tcp", request(tcp, local, Some(8080), 80)),
            ("5353:53/udp", request(udp, local, Some(5353), 53)),
            ("53/udp", request(udp, local, None, 53)),
            ("0.0.0.0:8080:80", request(tcp, [0, 0, 0, 0], Some(8080), 80)),
            ("192.0.2.7:8080:80/udp", request(udp, [192, 0, 2, 7], Some(8080), 80)),
            ("0.0.0.0::80", request(tcp, [0, 0, 0, 0], None, 80)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_the_reason() {
        let reason = |text: &str| text.parse::<PortRequest>().unwrap_err().to_string();
        for text in ["0", "65536", "http:80", "80:", ":80", "", "+80", "80:-1", "8080:80:", "80:http"] {
            let reason = reason(text);
            assert!(reason.contains("HOST:GUEST"), "{text}: {reason}");
        }
        assert!(reason("[::1]:8080:80").contains("IPv4"));
        assert!(reason("localhost:8080:80").contains("`localhost` is not an IPv4 address"));
        assert!(reason("80/sctp").contains("`sctp` is neither"));
    }

    #[test]
    fn ports_collide_on_one_address_and_protocol() {
        let forward = |text: &str| {
            let request: PortRequest = text.parse().unwrap();
            PortForward { protocol: request.protocol, address: request.address, host: 8080, guest: request.guest }
        };
        assert!(forward("80").collides_with(&forward("81")));
        assert!(forward("0.0.0.0:8080:80").collides_with(&forward("81")));
        assert!(!forward("80/udp").collides_with(&forward("81")));
        assert!(!forward("127.0.0.2:8080:80").collides_with(&forward("81")));
        assert_eq!(forward("80").host_forward(), "tcp:127.0.0.1:8080-:80");
        assert_eq!(forward("53/udp").to_string(), "127.0.0.1:8080->53/udp");
    }
}
