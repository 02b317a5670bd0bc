//! Creates the answers to packets that a guest may not send: a program that tries to reach a refused address gets an error
//! at once, rather than after the minutes that TCP waits for an answer.

use std::net::IpAddr;

use super::packet_filter::{
    ETHERNET_HEADER, IPV4_DONT_FRAGMENT, IPV4_HEADER, IPV6_HEADER, IpPacket, PROTOCOL_ICMP, PROTOCOL_ICMPV6,
    PROTOCOL_TCP, RefusedPacket, TCP_HEADER,
};

const HOP_LIMIT: u8 = 64;
const RST_ACK: u8 = 0x14;
/// ICMP type and code: destination unreachable, communication administratively prohibited (RFC 1812, 5.2.7.1).
const ICMP_PROHIBITED: [u8; 2] = [3, 13];
/// The corresponding `ICMPv6` type and code (RFC 4443, 3.1).
const ICMPV6_PROHIBITED: [u8; 2] = [1, 1];
/// Length of the refused packet that an ICMP message quotes, bytes: its headers with all options, and some more.
const QUOTED: usize = 128;

/// Returns the frame that answers a refused one: a reset to TCP, an ICMP error to everything else.
pub(super) fn answer(frame: &[u8], refused: &RefusedPacket<'_>) -> Vec<u8> {
    let packet = &refused.packet;
    let (protocol, body) = if packet.protocol == PROTOCOL_TCP {
        (PROTOCOL_TCP, reset(packet))
    } else {
        let (protocol, kind) = match packet.destination {
            IpAddr::V4(_) => (PROTOCOL_ICMP, ICMP_PROHIBITED),
            IpAddr::V6(_) => (PROTOCOL_ICMPV6, ICMPV6_PROHIBITED),
        };
        (protocol, prohibited(packet, kind))
    };
    let mut answer = Vec::with_capacity(ETHERNET_HEADER + IPV6_HEADER + body.len());
    answer.extend_from_slice(&frame[6..12]);
    answer.extend_from_slice(&frame[..6]);
    answer.extend_from_slice(&frame[12..ETHERNET_HEADER]);
    answer.extend(ip_header(packet, protocol, body.len()));
    answer.extend(with_checksum(packet, protocol, body));
    answer
}

/// Returns a TCP segment that resets what the packet's segment would open (RFC 9293, 3.10.7.1).
fn reset(packet: &IpPacket<'_>) -> Vec<u8> {
    let segment = packet.payload;
    let header = usize::from(segment[12] >> 4) * 4;
    let data = u32::try_from(segment.len().saturating_sub(header)).unwrap_or(0);
    let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
    let acknowledged = sequence.wrapping_add(1).wrapping_add(data);
    let mut reset = vec![0; TCP_HEADER];
    reset[..2].copy_from_slice(&segment[2..4]);
    reset[2..4].copy_from_slice(&segment[..2]);
    reset[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    reset[12] = 5 << 4;
    reset[13] = RST_ACK;
    reset
}

fn prohibited(packet: &IpPacket<'_>, [kind, code]: [u8; 2]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&packet.bytes[..packet.bytes.len().min(QUOTED)]);
    message
}

/// Returns the header of a packet that is sent back to the source of another one.
fn ip_header(to: &IpPacket<'_>, protocol: u8, length: usize) -> Vec<u8> {
    match (to.destination, to.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0; IPV4_HEADER];
            header[0] = 4 << 4 | 5;
            header[2..4].copy_from_slice(&short(IPV4_HEADER + length));
            header[6..8].copy_from_slice(&IPV4_DONT_FRAGMENT.to_be_bytes());
            header[8] = HOP_LIMIT;
            header[9] = protocol;
            header[12..16].copy_from_slice(&from.octets());
            header[16..].copy_from_slice(&to.octets());
            let checksum = checksum(&[&header]);
            header[10..12].copy_from_slice(&checksum);
            header
        }
        (from, to) => {
            let mut header = vec![0; 8];
            header[0] = 6 << 4;
            header[4..6].copy_from_slice(&short(length));
            header[6] = protocol;
            header[7] = HOP_LIMIT;
            header.extend(octets(from));
            header.extend(octets(to));
            header
        }
    }
}

/// Fills the checksum into the body of a packet. Except for ICMP, it includes the addresses.
fn with_checksum(to: &IpPacket<'_>, protocol: u8, mut body: Vec<u8>) -> Vec<u8> {
    let at = if protocol == PROTOCOL_TCP { 16 } else { 2 };
    let sum = if protocol == PROTOCOL_ICMP {
        checksum(&[&body])
    } else {
        let [high, low] = short(body.len());
        checksum(&[&octets(to.destination), &octets(to.source), &[0, protocol, high, low], &body])
    };
    body[at..at + 2].copy_from_slice(&sum);
    body
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Returns a length in the form of a header field; no answer is as long as 64 KiB.
fn short(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// Returns the internet checksum of parts of which all but the last have even lengths (RFC 1071).
pub(super) fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(word[0]) << 8 | word.get(1).copied().map_or(0, u32::from)).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
    (!(sum as u16)).to_be_bytes()
}
