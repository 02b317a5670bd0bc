//! Carries the frames that a guest sends between QEMU and the packet filter.
//!
//! ```text
//!  guest ──> filter "outbound" ──socket──> kiln ──allowed──socket──> filter "allowed" ──> user-mode network
//!    ^                                       │
//!    └────── filter "answers" <────socket────┘ refused
//! ```
//!
//! QEMU's `filter-redirector` objects send each frame behind its length, four bytes, the most significant one first
//! (net/filter-mirror.c). QEMU stops the guest while it waits to write, so a separate thread reads here, and it never waits
//! for QEMU in turn: frames are dropped while QEMU does not take them, as any network may. Frames from the network to the
//! guest do not pass here. When the thread ends, no frame of the guest reaches the network.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::address::AddressClass;
use crate::plan::machine::{PlannedMachine, PrivateNetworkAccess};
use crate::process;
use crate::specfile::NetworkBackend;

use super::argv::{ALLOWED_FD, ANSWERS_FD, OUTBOUND_FD};
use super::packet_filter::{AddressPolicy, FrameVerdict, RefusedDestination, judge};
use super::refusal_reply::answer;

/// The longest frame that QEMU sends: `NET_BUFSIZE`.
const LONGEST_FRAME: usize = 4096 + 65536;
const LENGTH: usize = 4;
/// Limit of the data that waits for QEMU, bytes in each direction.
const LONGEST_QUEUE: usize = 1 << 20;
const READ_AT_ONCE: usize = 64 << 10;
/// Number of refused addresses that are reported.
const MOST_REPORTED: usize = 20;

/// A report of the filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FilterReport {
    /// The guest tried to reach this address for the first time.
    Refused(RefusedDestination),
    /// No more addresses are reported from now on.
    TooMany,
    /// The filter has failed; the guest has no network any more.
    Failed(String),
}

impl FilterReport {
    /// Returns the report as a sentence; `remedy` describes how an address can be allowed, and is put after the address
    /// itself.
    pub(crate) fn sentence(&self, remedy: impl Fn(&str) -> String) -> String {
        match self {
            FilterReport::Refused(destination) => refusal(destination, remedy),
            FilterReport::TooMany => "the guest tries to reach more such addresses, which are not listed".to_owned(),
            FilterReport::Failed(why) => format!("the guest has no network any more: its filter failed: {why}"),
        }
    }
}

fn refusal(destination: &RefusedDestination, remedy: impl Fn(&str) -> String) -> String {
    let RefusedDestination { address, port, class } = destination;
    let place = match (address, port) {
        (address, None) => address.to_string(),
        (IpAddr::V4(address), Some(port)) => format!("{address}:{port}"),
        (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
    };
    let (whose, name) = match class {
        AddressClass::Host => (" (this host)", "host".to_owned()),
        _ => ("", address.to_string()),
    };
    let refused =
        format!("the guest tried to reach {place}{whose}, which the filter of `network = \"user\"` does not allow");
    match class {
        AddressClass::Public | AddressClass::Unreachable => refused,
        AddressClass::Private | AddressClass::Host => format!("{refused}; {}", remedy(&name)),
    }
}

/// Starts the filter of a machine, if it has one. Returns the descriptors that QEMU needs, with their numbers.
///
/// # Errors
/// When no channel or thread can be created, or the host's addresses cannot be listed.
pub(crate) fn start(
    machine: &PlannedMachine,
    report: impl FnMut(FilterReport) + Send + 'static,
) -> io::Result<Vec<(RawFd, OwnedFd)>> {
    match (machine.network, &machine.private_network) {
        (NetworkBackend::None | NetworkBackend::Locked, _) | (_, PrivateNetworkAccess::All) => Ok(Vec::new()),
        (NetworkBackend::User, PrivateNetworkAccess::Listed(private)) => {
            spawn(AddressPolicy::of_host(private)?.with_forwards(&machine.extras.forwards), report)
        }
    }
}

fn spawn(
    policy: AddressPolicy,
    mut report: impl FnMut(FilterReport) + Send + 'static,
) -> io::Result<Vec<(RawFd, OwnedFd)>> {
    let (outbound, outbound_theirs) = channel()?;
    let (allowed, allowed_theirs) = channel()?;
    let (answers, answers_theirs) = channel()?;
    let mut carrier = FrameCarrier {
        outbound: FrameReader { stream: outbound, bytes: Vec::new(), taken: 0 },
        allowed: FrameQueue::new(allowed),
        answers: FrameQueue::new(answers),
        policy,
        reported: BTreeSet::new(),
    };
    let thread = std::thread::Builder::new().name("network-filter".into());
    thread.spawn(move || {
        if let Err(error) = carrier.carry(&mut report) {
            report(FilterReport::Failed(error.to_string()));
        }
    })?;
    Ok(vec![(OUTBOUND_FD, outbound_theirs), (ALLOWED_FD, allowed_theirs), (ANSWERS_FD, answers_theirs)])
}

/// Returns a connected pair: kiln's end, which is non-blocking, and QEMU's, away from the low descriptor numbers.
pub(super) fn channel() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((ours, process::raise(&OwnedFd::from(theirs))?))
}

/// State of the thread that carries frames.
struct FrameCarrier {
    outbound: FrameReader,
    allowed: FrameQueue,
    answers: FrameQueue,
    policy: AddressPolicy,
    reported: BTreeSet<IpAddr>,
}

impl FrameCarrier {
    /// Carries frames until QEMU is gone.
    fn carry(&mut self, report: &mut impl FnMut(FilterReport)) -> io::Result<()> {
        loop {
            self.wait()?;
            let is_open = self.outbound.fill()?;
            while let Some(frame) = self.outbound.next_frame()? {
                match judge(frame, &self.policy) {
                    FrameVerdict::Pass => self.allowed.push(frame),
                    FrameVerdict::Drop => {}
                    FrameVerdict::Refuse(refused) => {
                        self.answers.push(&answer(frame, &refused));
                        note(&mut self.reported, refused.destination, report);
                    }
                }
            }
            if !is_open || !self.allowed.flush()? || !self.answers.flush()? {
                return Ok(());
            }
        }
    }

    /// Waits until there is something to read, or room for what is to be written.
    fn wait(&self) -> io::Result<()> {
        let mut fds = vec![PollFd::new(self.outbound.stream.as_fd(), PollFlags::POLLIN)];
        for queue in [&self.allowed, &self.answers] {
            if !queue.bytes.is_empty() {
                fds.push(PollFd::new(queue.stream.as_fd(), PollFlags::POLLOUT));
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reports an address, unless it was reported before.
fn note(reported: &mut BTreeSet<IpAddr>, destination: RefusedDestination, report: &mut impl FnMut(FilterReport)) {
    if reported.len() > MOST_REPORTED || !reported.insert(destination.address) {
        return;
    }
    let is_one_too_many = reported.len() > MOST_REPORTED;
    report(if is_one_too_many { FilterReport::TooMany } else { FilterReport::Refused(destination) });
}

/// Frames from QEMU.
struct FrameReader {
    stream: UnixStream,
    bytes: Vec<u8>,
    /// Number of bytes of the frames that were taken.
    taken: usize,
}

impl FrameReader {
    /// Reads the available data, without waiting. Returns false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        let before = self.bytes.len();
        self.bytes.resize(before + READ_AT_ONCE, 0);
        let read = self.stream.read(&mut self.bytes[before..]);
        self.bytes.truncate(before + read.as_ref().copied().unwrap_or(0));
        match read {
            Ok(0) => Ok(false),
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the next frame, if all of it was read.
    fn next_frame(&mut self) -> io::Result<Option<&[u8]>> {
        let Some((length, rest)) = self.bytes[self.taken..].split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > LONGEST_FRAME {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("QEMU sent a frame of {length} bytes")));
        }
        let frame = rest.get(..length);
        if frame.is_some() {
            self.taken += LENGTH + length;
        }
        Ok(frame)
    }
}

/// Frames for QEMU.
struct FrameQueue {
    stream: UnixStream,
    bytes: Vec<u8>,
}

impl FrameQueue {
    fn new(stream: UnixStream) -> Self {
        Self { stream, bytes: Vec::new() }
    }

    /// Adds a frame; drops it if there is no room.
    fn push(&mut self, frame: &[u8]) {
        let Ok(length) = u32::try_from(frame.len()) else { return };
        if self.bytes.len() + LENGTH + frame.len() <= LONGEST_QUEUE {
            self.bytes.extend_from_slice(&length.to_be_bytes());
            self.bytes.extend_from_slice(frame);
        }
    }

    /// Writes as much as QEMU takes, without waiting. Returns false when QEMU is gone.
    fn flush(&mut self) -> io::Result<bool> {
        while !self.bytes.is_empty() {
            match self.stream.write(&self.bytes) {
                Ok(count) => drop(self.bytes.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
