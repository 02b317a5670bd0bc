use proptest::prelude::*;

use super::super::refusal_reply::{answer, checksum};
use super::super::test_frames::{
    ACK, SYN, arp_request, broadcast, dhcp_discover, ethernet, fragment, packet, packet_v4, tcp, udp,
};
use super::*;
use crate::plan::port_forward::PortRequest;

/// Addresses of this host, public and private.
const OWN: [&str; 3] = ["203.0.113.7", "192.168.1.20", "2001:db8::7"];

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn policy(private: &[&str]) -> AddressPolicy {
    let private: Vec<PrivateDestination> = private.iter().map(|written| written.parse().unwrap()).collect();
    AddressPolicy::new(OWN.iter().map(|address| ip(address)).collect(), &private)
}

/// Returns the verdict on the first segment of a connection and on a datagram, which must be the same.
fn reaches(address: &str, policy: &AddressPolicy) -> bool {
    let to = ip(address);
    let connection = packet(to, PROTOCOL_TCP, &tcp(80, SYN));
    let datagram = packet(to, PROTOCOL_UDP, &udp(80, b"hello"));
    let verdicts = [judge(&connection, policy), judge(&datagram, policy)].map(|verdict| match verdict {
        FrameVerdict::Pass => true,
        FrameVerdict::Refuse(refused) => {
            let class = policy.class(to);
            assert_eq!(refused.destination, RefusedDestination { address: to, port: Some(80), class });
            false
        }
        FrameVerdict::Drop => panic!("{address}: an attempt is answered"),
    });
    assert_eq!(verdicts[0], verdicts[1], "{address}");
    verdicts[0]
}

#[test]
fn public_addresses_are_reached_and_no_others() {
    let policy = policy(&[]);
    for address in ["8.8.8.8", "203.0.113.8", "172.32.0.1", "2001:4860:4860::8888", "64:ff9b::8.8.8.8"] {
        assert!(reaches(address, &policy), "{address}");
    }
    let refused = [
        "10.0.2.2",
        "10.0.2.3",
        "10.0.2.77",
        "10.1.2.3",
        "127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "192.0.0.170",
        "198.18.0.1",
        "224.0.0.251",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fec0::2",
        "fec0::3",
        "fec0::77",
        "fe80::2",
        "fd00:ec2::254",
        "ff02::fb",
        "::ffff:127.0.0.1",
        "::ffff:10.0.2.2",
        "64:ff9b::169.254.169.254",
        "2002:c0a8:101::1",
        "::ffff:203.0.113.7",
    ];
    for address in refused.iter().chain(&OWN) {
        assert!(!reaches(address, &policy), "{address}");
    }
}

#[test]
fn what_the_spec_lists_is_reached_besides() {
    let lan = policy(&["192.168.1.0/24", "169.254.169.254", "fd00::/8"]);
    for address in ["192.168.1.1", "169.254.169.254", "fd12::1", "::ffff:192.168.1.1", "8.8.8.8"] {
        assert!(reaches(address, &lan), "{address}");
    }
    for address in ["192.168.2.1", "169.254.169.253", "192.168.1.20", "10.0.2.2", "fec0::2", "127.0.0.1"] {
        assert!(!reaches(address, &lan), "{address}");
    }
    let everything = policy(&["0.0.0.0/0", "::/0"]);
    for address in ["10.0.2.2", "10.0.2.3", "127.0.0.1", "0.0.0.1", "fec0::2", "::1", "224.0.0.1"] {
        assert!(!reaches(address, &everything), "{address}");
    }
    assert!(reaches("10.9.9.9", &everything) && !reaches(OWN[0], &everything));
    let host = policy(&["host"]);
    for address in ["10.0.2.2", "fec0::2"].iter().chain(&OWN) {
        assert!(reaches(address, &host), "{address}");
    }
    for address in ["10.0.2.3", "127.0.0.1", "192.168.1.1", "::ffff:10.0.2.2"] {
        assert!(!reaches(address, &host), "{address}");
    }
}

fn passes(frame: &[u8]) -> bool {
    judge(frame, &policy(&[])) == FrameVerdict::Pass
}

fn is_dropped(frame: &[u8]) -> bool {
    judge(frame, &policy(&[])) == FrameVerdict::Drop
}

#[test]
fn a_guest_gets_its_address_and_its_names() {
    assert!(passes(&arp_request()) && passes(&dhcp_discover()));
    assert!(passes(&packet(ip("10.0.2.2"), PROTOCOL_UDP, &udp(67, b"renew"))));
    for server in ["10.0.2.3", "fec0::3"] {
        assert!(passes(&packet(ip(server), PROTOCOL_UDP, &udp(53, b"query"))));
        assert!(passes(&packet(ip(server), PROTOCOL_TCP, &tcp(53, SYN))));
        assert!(!passes(&packet(ip(server), PROTOCOL_UDP, &udp(54, b"query"))));
    }
    assert!(!passes(&packet(ip("10.0.2.2"), PROTOCOL_UDP, &udp(53, b"query"))));
    assert!(!passes(&packet(ip("10.0.2.2"), PROTOCOL_UDP, &udp(69, b"tftp"))));
    for kind in 133..=136 {
        for to in ["ff02::1:ff00:2", "fe80::2", "fec0::2"] {
            assert!(passes(&packet(ip(to), PROTOCOL_ICMPV6, &[kind, 0, 0, 0, 0, 0, 0, 0])), "{kind} {to}");
        }
        assert!(!passes(&packet(ip("fd00::1"), PROTOCOL_ICMPV6, &[kind, 0, 0, 0, 0, 0, 0, 0])));
    }
    assert!(passes(&packet(ip("ff02::1:2"), PROTOCOL_UDP, &udp(547, b"solicit"))));
    assert!(!passes(&packet(ip("ff02::1:3"), PROTOCOL_UDP, &udp(547, b"solicit"))));
}

/// Covers that libslirp opens a connection for SYN whatever else is set, unless that is ACK, FIN, RST or URG.
#[test]
fn replies_to_a_forwarded_connection_pass_and_openings_do_not() {
    let gateway = ip("10.0.2.2");
    for flags in 0..=u8::MAX {
        let opening = flags & SYN != 0 && flags & ACK == 0;
        assert_eq!(passes(&packet(gateway, PROTOCOL_TCP, &tcp(40000, flags))), !opening, "{flags:#x}");
        assert!(!passes(&packet(ip("10.1.2.3"), PROTOCOL_TCP, &tcp(40000, flags))), "{flags:#x}");
    }
    assert!(is_dropped(&packet(gateway, PROTOCOL_TCP, &tcp(40000, ACK)[..19])));
}

/// The source port of the test frames is 40000.
#[test]
fn answers_from_a_forwarded_port_pass_and_others_do_not() {
    let judged = |forward: &str, to: &str, protocol: u8, payload: &[u8]| {
        let request: PortRequest = forward.parse().unwrap();
        let PortRequest { protocol: forwarded, address, guest, .. } = request;
        let forward = PortForward { protocol: forwarded, address, host: 8080, guest };
        judge(&packet(ip(to), protocol, payload), &policy(&[]).with_forwards(&[forward])) == FrameVerdict::Pass
    };
    let (answer, datagram) = (tcp(80, ACK), udp(80, b"answer"));
    assert!(judged("0.0.0.0:8080:40000", "192.168.1.9", PROTOCOL_TCP, &answer));
    assert!(!judged("0.0.0.0:8080:40000", "192.168.1.9", PROTOCOL_TCP, &tcp(80, SYN)), "it opens a connection");
    assert!(!judged("8080:40000", "192.168.1.9", PROTOCOL_TCP, &answer), "no other host reaches the loopback");
    assert!(!judged("0.0.0.0:8080:40001", "192.168.1.9", PROTOCOL_TCP, &answer), "another port");
    assert!(judged("8080:40000/udp", "10.0.2.2", PROTOCOL_UDP, &datagram));
    assert!(!judged("8080:40000/udp", "192.168.1.9", PROTOCOL_UDP, &datagram));
    assert!(judged("0.0.0.0:8080:40000/udp", "192.168.1.9", PROTOCOL_UDP, &datagram));
    assert!(!judged("8080:40001/udp", "10.0.2.2", PROTOCOL_UDP, &datagram), "another port");
    assert!(!judged("8080:40000", "10.0.2.2", PROTOCOL_UDP, &datagram), "another protocol");
}

#[test]
fn fragments_are_judged_by_their_own_header() {
    const MORE: u16 = 0x2000;
    let (gateway, public) = (Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(8, 8, 8, 8));
    let segment = tcp(80, ACK);
    // The reassembled segment has the flags of whichever fragment comes last.
    for bits in [MORE, MORE | 1, 1, 0x8000] {
        assert!(!passes(&fragment(gateway, PROTOCOL_TCP, &segment, bits)), "{bits:#x}");
        assert!(!passes(&fragment(DNS_V4, PROTOCOL_UDP, &udp(53, b"x"), bits)), "{bits:#x}");
        assert!(!passes(&fragment(Ipv4Addr::BROADCAST, PROTOCOL_UDP, &udp(67, b"x"), bits)), "{bits:#x}");
        assert!(passes(&fragment(public, PROTOCOL_TCP, &segment, bits)), "{bits:#x}");
    }
    assert!(passes(&fragment(gateway, PROTOCOL_TCP, &segment, 0x4000)));
    assert!(is_dropped(&fragment(gateway, PROTOCOL_UDP, &udp(9, b"x"), 7)), "nothing is answered to a later fragment");
}

#[test]
fn announcements_are_dropped_without_a_word() {
    assert!(is_dropped(&broadcast(137)) && is_dropped(&broadcast(69)));
    let packet =
        packet_v4(Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(224, 0, 0, 251), PROTOCOL_UDP, &udp(5353, b"x"), 0);
    assert!(is_dropped(&ethernet([1, 0, 0x5e, 0, 0, 0xfb], 0x0800, &packet)));
}

#[test]
fn what_has_no_sound_header_is_dropped() {
    let good = packet(ip("8.8.8.8"), PROTOCOL_UDP, &udp(80, b"hello"));
    assert!(passes(&good));
    let changed = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        frame
    };
    let version_6 = changed(14, 0x65);
    let short_header = changed(14, 0x44);
    let header_beyond_the_packet = changed(14, 0x4f);
    let longer_than_the_frame = changed(17, 200);
    for frame in [version_6, short_header, header_beyond_the_packet, longer_than_the_frame] {
        assert!(is_dropped(&frame));
    }
    for length in 0..good.len() {
        assert!(is_dropped(&good[..length]), "{length}");
    }
    let padded = [&good[..], &[0; 30]].concat();
    assert!(passes(&padded), "short frames are padded");
    let six = packet(ip("2001:4860:4860::8888"), PROTOCOL_TCP, &tcp(80, SYN));
    assert!(passes(&six));
    for length in 0..six.len() {
        assert!(is_dropped(&six[..length]), "{length}");
    }
    for ethertype in [0x8100, 0x88a8, 0x88cc, 0x8864, 0x05dc, 0] {
        assert!(is_dropped(&ethernet([2; 6], ethertype, &good[12..])), "{ethertype:#x}");
    }
}

#[test]
fn options_do_not_hide_the_destination() {
    let segment = tcp(80, SYN);
    for (to, expected) in [(Ipv4Addr::new(8, 8, 8, 8), true), (Ipv4Addr::new(10, 0, 2, 2), false)] {
        let plain = packet_v4(Ipv4Addr::new(10, 0, 2, 15), to, PROTOCOL_TCP, &segment, 0);
        // A loose source route by way of 8.8.8.8, padded to 8 bytes.
        let mut optional = [&plain[..20], &[0x83, 7, 4, 8, 8, 8, 8, 0], &plain[20..]].concat();
        optional[0] = 0x47;
        optional[3] += 8;
        assert_eq!(passes(&ethernet([2; 6], 0x0800, &optional)), expected);
    }
    // A hop-by-hop header before the segment, which libslirp does not know.
    let hidden = [&[PROTOCOL_TCP, 0, 1, 4, 0, 0, 0, 0][..], &tcp(80, SYN)].concat();
    assert!(is_dropped(&packet(ip("fec0::2"), 0, &hidden)));
}

#[test]
fn a_refused_connection_is_reset() {
    for address in ["10.0.2.2", "fd00::1"] {
        let frame = packet(ip(address), PROTOCOL_TCP, &tcp(80, SYN));
        let FrameVerdict::Refuse(refused) = judge(&frame, &policy(&[])) else { panic!("{address} is refused") };
        let reply = answer(&frame, &refused);
        assert_eq!((&reply[..6], &reply[6..12], &reply[12..14]), (&frame[6..12], &frame[..6], &frame[12..14]));
        let read = if ip(address).is_ipv4() { IpPacket::read_v4 } else { IpPacket::read_v6 };
        let packet = read(&reply[ETHERNET_HEADER..]).unwrap();
        assert_eq!((packet.source, packet.destination), (refused.packet.destination, refused.packet.source));
        // From port 80, to port 40000, acknowledging sequence number 1000.
        assert_eq!(packet.payload[..4], [0, 80, 0x9c, 0x40]);
        assert_eq!((&packet.payload[8..12], packet.payload[13]), (&[0, 0, 3, 0xe9][..], 0x14));
        assert!(is_summed(&packet), "{address}");
    }
}

#[test]
fn a_refused_datagram_is_answered_with_icmp() {
    for (address, start) in [("169.254.169.254", [3, 13]), ("fd00::1", [1, 1])] {
        let frame = packet(ip(address), PROTOCOL_UDP, &udp(80, &[7; 1000]));
        let FrameVerdict::Refuse(refused) = judge(&frame, &policy(&[])) else { panic!("{address} is refused") };
        let reply = answer(&frame, &refused);
        let read = if ip(address).is_ipv4() { IpPacket::read_v4 } else { IpPacket::read_v6 };
        let packet = read(&reply[ETHERNET_HEADER..]).unwrap();
        assert_eq!((&packet.payload[..2], &packet.payload[8..]), (&start[..], &refused.packet.bytes[..128]));
        assert!(is_summed(&packet), "{address}");
    }
}

/// Checks the sums of a packet: with the sum included, the result is 0.
fn is_summed(packet: &IpPacket<'_>) -> bool {
    let length = u16::try_from(packet.payload.len()).unwrap().to_be_bytes();
    let pseudo = [0, packet.protocol, length[0], length[1]];
    let addresses = match packet.source {
        IpAddr::V4(_) if packet.protocol == PROTOCOL_ICMP => &[],
        IpAddr::V4(_) => &packet.bytes[12..20],
        IpAddr::V6(_) => &packet.bytes[8..40],
    };
    let pseudo: &[u8] = if addresses.is_empty() { &[] } else { &pseudo };
    let header = if packet.source.is_ipv4() { checksum(&[&packet.bytes[..20]]) } else { [0, 0] };
    header == [0, 0] && checksum(&[addresses, pseudo, packet.payload]) == [0, 0]
}

/// Returns addresses that no guest may reach, according to the standard library's own knowledge of ranges.
fn refused_address() -> impl Strategy<Value = Ipv4Addr> {
    let any = any::<u32>().prop_map(Ipv4Addr::from_bits);
    let is_refused = |address: &Ipv4Addr| {
        let is_shared = address.octets()[0] == 100 && address.octets()[1] & 0xc0 == 64;
        let special = address.is_private() || address.is_loopback() || address.is_link_local() || is_shared;
        special || address.octets()[0] == 0 || address.octets()[0] >= 224
    };
    prop_oneof![
        Just(Ipv4Addr::new(10, 0, 2, 2)),
        Just(Ipv4Addr::new(10, 0, 2, 3)),
        Just(Ipv4Addr::BROADCAST),
        Just(Ipv4Addr::new(169, 254, 169, 254)),
        any.prop_filter("refused", is_refused),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_frame_makes_a_panic(frame in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_usize..4) {
        let ethertype = [&[0x08, 0x00, 0x45][..], &[0x86, 0xdd, 0x60], &[0x08, 0x00], &[0x86, 0xdd]][kind];
        let mut frame = frame;
        if frame.len() >= 15 {
            frame[12..12 + ethertype.len()].copy_from_slice(ethertype);
        }
        if let FrameVerdict::Refuse(refused) = judge(&frame, &policy(&["10.1.0.0/16"])) {
            let reply = answer(&frame, &refused);
            prop_assert!(reply.len() <= ETHERNET_HEADER + IPV6_HEADER + 8 + 128);
        }
    }

    #[test]
    fn nothing_but_the_network_itself_passes_to_a_refused_address(
        address in refused_address(),
        protocol in prop_oneof![Just(PROTOCOL_TCP), Just(PROTOCOL_UDP), Just(PROTOCOL_ICMP), any::<u8>()],
        payload in proptest::collection::vec(any::<u8>(), 0..60),
        port in prop_oneof![Just(53_u16), Just(67), any::<u16>()],
        bits in prop_oneof![Just(0_u16), Just(0x4000), any::<u16>()],
        mapped: bool,
    ) {
        let mut payload = payload;
        if payload.len() >= 4 {
            payload[2..4].copy_from_slice(&port.to_be_bytes());
        }
        let frame = if mapped {
            packet(IpAddr::V6(address.to_ipv6_mapped()), protocol, &payload)
        } else {
            fragment(address, protocol, &payload, bits)
        };
        if judge(&frame, &policy(&[])) == FrameVerdict::Pass {
            let is_whole = bits & !0x4000 == 0 && !mapped;
            let is_dns = address == DNS_V4 && port == 53 && matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP);
            let is_dhcp = (address == GATEWAY_V4 || address.is_broadcast()) && port == 67 && protocol == PROTOCOL_UDP;
            let is_reply = address == GATEWAY_V4 && protocol == PROTOCOL_TCP && payload[13] & 0x12 != SYN;
            prop_assert!(is_whole && (is_dns || is_dhcp || is_reply), "{address} {protocol} {payload:?} {bits:#x}");
        }
    }
}
