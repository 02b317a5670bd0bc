//! Frames as a guest sends them, for tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet_filter::{PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP};
use super::refusal_reply::checksum;

pub(super) const SYN: u8 = 0x02;
pub(super) const ACK: u8 = 0x10;

const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x6b, 0x69, 0x6c];
const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02];
const BROADCAST_MAC: [u8; 6] = [0xff; 6];
const GUEST_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0x5054, 0xff, 0xfe6b, 0x696c);

pub(super) fn ethernet(to: [u8; 6], ethertype: u16, body: &[u8]) -> Vec<u8> {
    [&to[..], &GUEST_MAC, &ethertype.to_be_bytes(), body].concat()
}

/// Returns a packet to an address, with checksums.
pub(super) fn packet(to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match to {
        IpAddr::V4(to) => ethernet(GATEWAY_MAC, 0x0800, &packet_v4(GUEST_V4, to, protocol, payload, 0)),
        IpAddr::V6(to) => ethernet(GATEWAY_MAC, 0x86dd, &packet_v6(to, protocol, payload)),
    }
}

/// Returns an IPv4 packet; `fragment` is the field of flags and offset.
pub(super) fn packet_v4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8], fragment: u16) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap();
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 1]);
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum);
    let payload = summed(&[&from.octets(), &to.octets()], protocol, payload);
    [header, payload].concat()
}

pub(super) fn fragment(to: Ipv4Addr, protocol: u8, payload: &[u8], fragment: u16) -> Vec<u8> {
    ethernet(GATEWAY_MAC, 0x0800, &packet_v4(GUEST_V4, to, protocol, payload, fragment))
}

fn packet_v6(to: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    header.extend([protocol, 255]);
    header.extend(GUEST_V6.octets());
    header.extend(to.octets());
    let payload = summed(&[&GUEST_V6.octets(), &to.octets()], protocol, payload);
    [header, payload].concat()
}

/// Fills the checksum into a payload that has room for one.
fn summed(addresses: &[&[u8]], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut payload = payload.to_vec();
    let (at, least) = match protocol {
        PROTOCOL_TCP => (16, 20),
        PROTOCOL_UDP => (6, 8),
        PROTOCOL_ICMP => (2, 8),
        _ => return payload,
    };
    if payload.len() < least {
        return payload;
    }
    let [high, low] = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let pseudo = [0, protocol, high, low];
    let sum = match protocol {
        PROTOCOL_ICMP => checksum(&[&payload]),
        _ => checksum(&[addresses[0], addresses[1], &pseudo, &payload]),
    };
    payload[at..at + 2].copy_from_slice(&sum);
    payload
}

/// Returns a TCP segment without data.
pub(super) fn tcp(port: u16, flags: u8) -> Vec<u8> {
    let mut segment = vec![0x9c, 0x40];
    segment.extend(port.to_be_bytes());
    segment.extend([0, 0, 3, 0xe8, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment
}

pub(super) fn udp(port: u16, data: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0x9c, 0x40];
    datagram.extend(port.to_be_bytes());
    datagram.extend(u16::try_from(8 + data.len()).unwrap().to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    datagram
}

/// Returns an ARP request for 10.0.2.2.
pub(super) fn arp_request() -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
    body.extend(GUEST_MAC);
    body.extend(GUEST_V4.octets());
    body.extend([0; 6]);
    body.extend([10, 0, 2, 2]);
    ethernet(BROADCAST_MAC, 0x0806, &body)
}

pub(super) fn dhcp_discover() -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
    message.resize(28, 0);
    message.extend(GUEST_MAC);
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
    message.resize(300, 0);
    let mut datagram = udp(67, &message);
    datagram[1] = 68;
    datagram[0] = 0;
    let packet = packet_v4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, PROTOCOL_UDP, &datagram, 0);
    ethernet(BROADCAST_MAC, 0x0800, &packet)
}

/// Returns a broadcast datagram.
pub(super) fn broadcast(port: u16) -> Vec<u8> {
    let packet = packet_v4(GUEST_V4, Ipv4Addr::BROADCAST, PROTOCOL_UDP, &udp(port, b"x"), 0);
    ethernet(BROADCAST_MAC, 0x0800, &packet)
}
