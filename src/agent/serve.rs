//! One conversation: from the first hello on an open port until the port is closed.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use super::accounts::Accounts;
use super::guest_files::RunningGuest;
use super::leftovers::Leftovers;
use super::link::{Lane, LaneEvent, LaneReader, LaneWriter, Link};
use super::pack::{FetchedFiles, PackError, pack};
use super::tunnel::Tunnel;
use super::{RequestFailure, device, exec, facts, list, mounts, seal, sys, unpack};
use crate::wire::cloud_init::find_obstacles;
use crate::wire::code::Code;
use crate::wire::message::ProtocolVersion;
use crate::wire::tree::{Encoder, Head, Layout, MAX_PATH, Totals};
use crate::wire::{
    Aftermath, Class, ExecRequest, Frame, MAX_DATA, MAX_EXEC, MAX_FRAME, Message, SealRequest, Splitter,
};

/// The interval between two hellos, and between two messages of progress.
const TICK: Duration = Duration::from_secs(1);
const PORT: &str = "the port";

/// Serves the host at the other end of the port until the port is closed or a message is malformed.
///
/// # Errors
/// When the port fails, or the host sends an invalid message.
pub fn converse(port: &File, left: &Arc<Leftovers>, tunnel: &Arc<Tunnel>, power_off: fn()) -> io::Result<()> {
    let mut conversation = Conversation {
        left: Arc::clone(left),
        tunnel: Arc::clone(tunnel),
        link: Link::new(port.try_clone()?),
        splitter: Splitter::new(),
        state: Arc::new(ServeState::default()),
        execs: Vec::new(),
        power_off,
    };
    conversation.announce();
    let ended = conversation.listen(port);
    conversation.state.ended.store(true, Ordering::SeqCst);
    conversation.link.hang_up();
    ended
}

#[derive(Debug, Default)]
struct ServeState {
    welcomed: AtomicBool,
    ended: AtomicBool,
}

impl ServeState {
    /// Returns whether no host has answered yet.
    fn is_waiting(&self) -> bool {
        !self.welcomed.load(Ordering::SeqCst) && !self.ended.load(Ordering::SeqCst)
    }
}

struct Conversation {
    link: Arc<Link>,
    splitter: Splitter,
    state: Arc<ServeState>,
    /// Commands whose parts are still arriving.
    execs: Vec<(u32, Vec<u8>)>,
    /// The processes that commands have left behind.
    left: Arc<Leftovers>,
    /// The port of the network.
    tunnel: Arc<Tunnel>,
    /// Called after a goodbye.
    power_off: fn(),
}

impl Conversation {
    /// Sends hello repeatedly: the host may connect later, or read only garbage at first.
    fn announce(&self) {
        let link = Arc::clone(&self.link);
        let state = Arc::clone(&self.state);
        let start = facts::now().unsigned_abs();
        thread::spawn(move || {
            loop {
                let hello = Message::Hello { origin: ProtocolVersion, facts: facts::gather(start) };
                if !link.send_if(0, || state.is_waiting().then_some(hello)).unwrap_or(false) {
                    break;
                }
                thread::sleep(TICK);
            }
        });
    }

    fn listen(&mut self, mut port: &File) -> io::Result<()> {
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            match port.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => self.splitter.push(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if let Err(why) = self.answer_all() {
                let _ = self.link.send(0, &Message::Trouble { text: why.clone() });
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
    }

    fn answer_all(&mut self) -> Result<(), String> {
        while let Some(Frame { stream, message }) = self.splitter.next_frame().map_err(|why| why.to_string())? {
            self.answer(stream, message)?;
        }
        Ok(())
    }

    fn answer(&mut self, stream: u32, message: Message) -> Result<(), String> {
        match message {
            Message::Welcome { nonce, .. } => self.begin(nonce),
            Message::Resume { .. } => {
                self.splitter.trust();
                self.say(0, &message);
            }
            Message::Park { .. } if self.link.is_busy() => self.say(stream, &busy()),
            Message::Park { .. } => {
                self.say(stream, &message);
                self.splitter.doubt();
            }
            Message::Ping { token } => self.say(stream, &Message::Pong { token, clock: facts::now() }),
            Message::Wake { clock, entropy } => self.say(stream, &wake(clock, &entropy)),
            Message::Exec { part, last } => return self.exec(stream, part.0, last),
            Message::Upload {} => return self.serve(stream, |lane, events| done(upload(lane, events))),
            Message::Fetch { path } => return self.serve(stream, move |lane, _| done(fetch(lane, &path))),
            Message::Mounts {} => {
                let left = Arc::clone(&self.left);
                return self.serve(stream, move |_, _| mounts::describe(&left).unwrap_or_else(failed));
            }
            Message::CheckSeed {} => {
                return self.serve(stream, |_, _| Message::SeedChecked { obstacles: find_obstacles(&RunningGuest) });
            }
            Message::List {} => return self.serve(stream, |lane, _| done(list_files(lane))),
            Message::Sync { cached } => return self.serve(stream, move |_, _| done(sync(cached))),
            Message::Unpack { serial } => return self.serve(stream, move |lane, _| done(unpack_device(lane, &serial))),
            Message::EndProcesses {} => return self.end_processes(stream),
            Message::Seal { request } => return self.seal(stream, request),
            Message::Bye {} => return self.bye(stream),
            Message::Data { .. }
            | Message::Eof {}
            | Message::Signal { .. }
            | Message::Resize { .. }
            | Message::Credit { .. } => self.link.deliver(stream, message)?,
            other => return Err(format!("message {} is not for a guest", other.code())),
        }
        Ok(())
    }

    /// Begins a conversation with a host that has answered the hello. An earlier host, and all its requests, are dropped.
    fn begin(&mut self, nonce: u64) {
        self.state.welcomed.store(true, Ordering::SeqCst);
        self.link.hang_up();
        self.execs.clear();
        self.splitter.trust();
        self.say(0, &Message::Ready { nonce });
    }

    /// Sends a message. An error is ignored: the reader of the port notices the port's end itself.
    fn say(&self, stream: u32, message: &Message) {
        let _ = self.link.send(stream, message);
    }

    fn exec(&mut self, stream: u32, part: Vec<u8>, last: bool) -> Result<(), String> {
        let at = self.execs.iter().position(|(id, _)| *id == stream);
        let mut whole = at.map(|at| self.execs.swap_remove(at).1).unwrap_or_default();
        whole.extend(part);
        if whole.len() > MAX_EXEC || self.execs.len() > 16 {
            return Err("commands beyond the limit".into());
        }
        if !last {
            self.execs.push((stream, whole));
            return Ok(());
        }
        let request = ExecRequest::decode(&whole).map_err(|why| why.to_string())?;
        let left = Arc::clone(&self.left);
        let tunnel = Arc::clone(&self.tunnel);
        self.serve(stream, move |lane, events| Message::Exited {
            exit: exec::run(lane, &events, &request, (&left, &tunnel)),
        })
    }

    /// Ends the processes that commands have left behind, and reports them.
    fn end_processes(&self, stream: u32) -> Result<(), String> {
        let left = Arc::clone(&self.left);
        self.serve(stream, move |lane, _| {
            let ended = left.end_all();
            let found = Aftermath { left: ended, late: left.take_late(), ..Aftermath::default() };
            let _ = lane.send(Message::Aftermath { found });
            done(Ok(Totals::default()))
        })
    }

    /// Seals the image, and sends the report.
    fn seal(&self, stream: u32, request: SealRequest) -> Result<(), String> {
        let left = Arc::clone(&self.left);
        self.serve(stream, move |lane, _| {
            let mut records = BufWriter::with_capacity(MAX_DATA, LaneWriter(lane));
            let sealed = seal::seal(&request, &left, &mut records);
            match sealed.and_then(|report| records.flush().map(|()| report).map_err(RequestFailure::at(PORT))) {
                Ok(report) => {
                    let _ = lane.send(Message::Sealed { report });
                    done(Ok(Totals::default()))
                }
                Err(refusal) => failed(refusal),
            }
        })
    }

    /// Powers the guest off after it has answered, so that the host never has to guess why the port was closed.
    fn bye(&self, stream: u32) -> Result<(), String> {
        let (lane, _events) = self.link.open(stream).ok_or_else(|| format!("stream {stream} is in use"))?;
        let power_off = self.power_off;
        thread::spawn(move || {
            sys::sync_all();
            lane.finish(Message::Bye {});
            power_off();
        });
        Ok(())
    }

    fn serve<F>(&self, stream: u32, work: F) -> Result<(), String>
    where
        F: FnOnce(&Arc<Lane>, Receiver<LaneEvent>) -> Message + Send + 'static,
    {
        let (lane, events) = self.link.open(stream).ok_or_else(|| format!("stream {stream} is in use"))?;
        thread::spawn(move || {
            let last = work(&lane, events);
            lane.finish(last);
        });
        Ok(())
    }
}

fn done(result: Result<Totals, RequestFailure>) -> Message {
    match result {
        Ok(Totals { entries, bytes }) => Message::Done { entries, bytes },
        Err(refusal) => failed(refusal),
    }
}

fn failed(RequestFailure { class, text }: RequestFailure) -> Message {
    Message::Failed { class, text }
}

fn wake(clock: i64, entropy: &[u8]) -> Message {
    let set = sys::set_clock(clock).map_err(RequestFailure::at("cannot set the clock"));
    let stir = || sys::stir(entropy).map_err(RequestFailure::at("cannot reseed the random numbers"));
    let stirred = set.and_then(|()| if entropy.is_empty() { Ok(()) } else { stir() });
    done(stirred.map(|()| Totals::default()))
}

/// Writes all data to the disk. The page cache is dropped only if it is large: later programs would have to read its content
/// again.
fn sync(cached: u64) -> Result<Totals, RequestFailure> {
    sys::sync_all();
    let meminfo = std::fs::read_to_string("/proc/meminfo").map_err(RequestFailure::at("/proc/meminfo"))?;
    if facts::page_cache(&meminfo) > cached {
        const DROP: &str = "/proc/sys/vm/drop_caches";
        std::fs::write(DROP, "3").map_err(RequestFailure::at(DROP))?;
    }
    Ok(Totals::default())
}

fn busy() -> Message {
    done(Err(RequestFailure::new(Class::Request {}, "something still runs")))
}

fn accounts() -> Accounts {
    Accounts::read(Path::new("/etc"))
}

fn upload(lane: &Lane, events: Receiver<LaneEvent>) -> Result<Totals, RequestFailure> {
    unpack::unpack(LaneReader::new(lane, events), &accounts(), &mut ticker(lane))
}

fn unpack_device(lane: &Lane, serial: &str) -> Result<Totals, RequestFailure> {
    let path = device::find(serial)?;
    let device = device::ReadAhead::open(&path).map_err(RequestFailure::at(path.display()))?;
    unpack::unpack(device, &accounts(), &mut ticker(lane))
}

/// Returns a function that reports progress to the host, but not at every block.
fn ticker(lane: &Lane) -> impl FnMut(u64) {
    let mut last = Instant::now();
    move |bytes| {
        if last.elapsed() >= TICK {
            last = Instant::now();
            let _ = lane.send(Message::Progress { bytes });
        }
    }
}

fn list_files(lane: &Lane) -> Result<Totals, RequestFailure> {
    let mut out = BufWriter::with_capacity(MAX_DATA, LaneWriter(lane));
    let totals = list::list(&mut out, &mut ticker(lane))?;
    out.flush().map_err(RequestFailure::at(PORT))?;
    Ok(totals)
}

fn fetch(lane: &Lane, path: &[u8]) -> Result<Totals, RequestFailure> {
    let shown = String::from_utf8_lossy(path);
    if !path.starts_with(b"/") || path.len() >= MAX_PATH {
        return Err(RequestFailure::new(Class::Request {}, format!("`{shown}` is not an absolute path")));
    }
    let head = Head { to: Vec::new(), name: Vec::new(), into: false, contents: false, owner: None };
    let out = BufWriter::with_capacity(MAX_DATA, LaneWriter(lane));
    let encoder = Encoder::new(out, Layout::Packed, head).map_err(RequestFailure::at(PORT))?;
    let root = Path::new(std::ffi::OsStr::from_bytes(path));
    pack(root, encoder, &mut FetchedFiles).map_err(|error| match error {
        PackError::Read(path, error) => RequestFailure::io(path.display(), &error),
        PackError::Write(error) => RequestFailure::io(PORT, &error),
        other => RequestFailure::new(Class::System {}, other.to_string()),
    })
}
