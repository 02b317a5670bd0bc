//! Tests of a network without a machine: a socket takes the guest's place on a hub of QEMU, so that nothing has to boot.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel as report_channel};
use std::time::Duration;

use crate::machine::argv::network_filter_args;
use crate::machine::host;
use crate::machine::packet_filter::{PROTOCOL_TCP, PROTOCOL_UDP};
use crate::specfile::PrivateDestination;

use super::super::test_frames::{ACK, SYN, arp_request, dhcp_discover, packet, tcp, udp};
use super::*;

const GUEST_FD: RawFd = 9;
/// Time limit of an answer. QEMU answers within milliseconds; on a loaded host it takes seconds to start.
const PATIENCE: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_millis(300);

struct Hub {
    guest: UnixStream,
    _qemu: tokio::process::Child,
}

impl Hub {
    fn start(qemu: &PathBuf, filter: Vec<(RawFd, OwnedFd)>) -> Self {
        let (guest, theirs) = UnixStream::pair().unwrap();
        guest.set_read_timeout(Some(PATIENCE)).unwrap();
        let theirs = process::raise(&OwnedFd::from(theirs)).unwrap();
        let descriptors = filter.into_iter().chain([(GUEST_FD, theirs)]).collect();
        let mut command = process::with_descriptors(qemu, descriptors);
        command.args(["-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-netdev", "user,id=net0"]);
        command.args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        command.args(["-netdev", "hubport,id=port0,hubid=0,netdev=net0"]);
        command.args(["-netdev", &format!("socket,id=guest,fd={GUEST_FD}")]);
        command.args(["-netdev", "hubport,id=port1,hubid=0,netdev=guest"]);
        command.args(network_filter_args());
        Self { guest, _qemu: command.spawn().unwrap() }
    }

    fn send(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        self.guest.write_all(&[&length, frame].concat()).unwrap();
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; LENGTH];
        self.guest.read_exact(&mut length)?;
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.guest.read_exact(&mut frame)?;
        Ok(frame)
    }

    /// Receives the next frame of an IPv4 protocol.
    fn receive_v4(&mut self, protocol: u8) -> Vec<u8> {
        loop {
            let frame = self.receive().unwrap();
            if frame[12..14] == [8, 0] && frame[23] == protocol {
                return frame;
            }
        }
    }

    fn is_silent(&mut self) -> bool {
        self.guest.set_read_timeout(Some(SILENCE)).unwrap();
        let received = self.receive();
        self.guest.set_read_timeout(Some(PATIENCE)).unwrap();
        received.is_err()
    }
}

/// Returns this host's QEMU, and the oldest one that kiln works with, where it is unpacked.
async fn programs() -> Vec<PathBuf> {
    let host = host::survey().await.expect("the tests need QEMU");
    let oldest = std::path::absolute("fixtures/cache/qemu-7.2/usr/bin/qemu-system-x86_64").unwrap();
    [host.qemu.system, oldest].into_iter().filter(|program| program.exists()).collect()
}

fn filtered(private: &[PrivateDestination]) -> (Vec<(RawFd, OwnedFd)>, Receiver<FilterReport>) {
    let (sender, reports) = report_channel();
    let policy = AddressPolicy::of_host(private).unwrap();
    (spawn(policy, move |report| sender.send(report).unwrap()).unwrap(), reports)
}

#[tokio::test]
async fn the_host_is_refused_at_once_and_the_network_works() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let host_ip: IpAddr = "10.0.2.2".parse().unwrap();
    for qemu in programs().await {
        let (descriptors, reports) = filtered(&[]);
        let mut hub = Hub::start(&qemu, descriptors);
        hub.send(&arp_request());
        assert_eq!(hub.receive().unwrap()[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 2], "an ARP reply");
        hub.send(&dhcp_discover());
        let offer = hub.receive_v4(PROTOCOL_UDP);
        assert_eq!((&offer[34..38], &offer[58..62]), (&[0, 67, 0, 68][..], &[10, 0, 2, 15][..]), "an offer");
        // A connection attempt, twice; a datagram to the metadata service of clouds.
        for _ in 0..2 {
            hub.send(&packet(host_ip, PROTOCOL_TCP, &tcp(port, SYN)));
            let reset = hub.receive_v4(PROTOCOL_TCP);
            assert_eq!((&reset[26..30], reset[47]), (&[10, 0, 2, 2][..], 0x14), "a reset");
        }
        hub.send(&packet("169.254.169.254".parse().unwrap(), PROTOCOL_UDP, &udp(80, b"GET")));
        assert_eq!(hub.receive_v4(1)[34..36], [3, 13], "an ICMP error");
        // A segment that belongs to no connection reaches libslirp, which resets it.
        hub.send(&packet(host_ip, PROTOCOL_TCP, &tcp(port, ACK)));
        assert_ne!(hub.receive_v4(PROTOCOL_TCP)[47] & 4, 0);
        assert!(listener.accept().is_err(), "nothing came to the host's loopback");
        drop(hub);
        let sentences: Vec<_> = reports.iter().map(|report| report.sentence(|name| format!("allow {name}"))).collect();
        let expected = |place: &str, name: &str| {
            format!(
                "the guest tried to reach {place}, which the filter of `network = \"user\"` does not allow; allow {name}"
            )
        };
        let host = expected(&format!("10.0.2.2:{port} (this host)"), "host");
        assert_eq!(sentences, [host, expected("169.254.169.254:80", "169.254.169.254")]);
    }
}

#[tokio::test]
async fn a_host_that_the_spec_lists_is_reached() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for qemu in programs().await {
        let (descriptors, reports) = filtered(&[PrivateDestination::Host]);
        let mut hub = Hub::start(&qemu, descriptors);
        hub.send(&arp_request());
        hub.send(&packet("10.0.2.2".parse().unwrap(), PROTOCOL_TCP, &tcp(port, SYN)));
        assert_eq!(hub.receive_v4(PROTOCOL_TCP)[47], SYN | ACK);
        listener.accept().unwrap();
        drop(hub);
        assert_eq!(reports.iter().count(), 0);
    }
}

#[tokio::test]
async fn without_kiln_nothing_passes() {
    for qemu in programs().await {
        let (descriptors, reports) = filtered(&[PrivateDestination::Host]);
        drop(descriptors);
        assert_eq!(reports.iter().count(), 0, "the thread has ended without a complaint");
        let ends = [OUTBOUND_FD, ALLOWED_FD, ANSWERS_FD].map(|number| (number, channel().unwrap().1));
        let mut hub = Hub::start(&qemu, ends.into());
        hub.send(&arp_request());
        hub.send(&dhcp_discover());
        assert!(hub.is_silent());
    }
}

/// Checks that the frames of a guest that floods the network are read, whatever QEMU takes of them.
#[test]
fn a_network_that_takes_nothing_does_not_stop_the_guest() {
    let (descriptors, _reports) = filtered(&[PrivateDestination::Host]);
    let [outbound, _allowed, _answers] = <[(RawFd, OwnedFd); 3]>::try_from(descriptors).unwrap();
    let mut outbound = UnixStream::from(outbound.1);
    outbound.set_write_timeout(Some(PATIENCE)).unwrap();
    let frame = packet("10.0.2.2".parse().unwrap(), PROTOCOL_UDP, &udp(9, &[7; 1400]));
    let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
    for _ in 0..10_000 {
        outbound.write_all(&[&length, &frame[..]].concat()).unwrap();
    }
}

#[test]
fn a_frame_that_qemu_cannot_have_sent_ends_the_network() {
    let (descriptors, reports) = filtered(&[]);
    let [outbound, _allowed, _answers] = <[(RawFd, OwnedFd); 3]>::try_from(descriptors).unwrap();
    UnixStream::from(outbound.1).write_all(&[0xff; 8]).unwrap();
    assert!(matches!(reports.recv_timeout(PATIENCE), Ok(FilterReport::Failed(why)) if why.contains("4294967295")));
}

#[test]
fn a_bounded_number_of_addresses_is_reported() {
    let mut reported = BTreeSet::new();
    let mut reports = Vec::new();
    for last in 0..=255 {
        let address = IpAddr::from([10, 1, 2, last]);
        let destination = RefusedDestination { address, port: None, class: AddressClass::Private };
        for _ in 0..2 {
            note(&mut reported, destination, &mut |report| reports.push(report));
        }
    }
    assert_eq!(reports.len(), MOST_REPORTED + 1);
    assert_eq!(reports.last(), Some(&FilterReport::TooMany));
}
