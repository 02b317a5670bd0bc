//! The guest's end of the locked network: accepts connections of a command's programs on the loopback, and carries them over
//! the port of the network, each in a stream of its own.
//!
//! ```text
//! program <-TCP-> one thread for each direction <-lane-> the link <-> port <- the reader, one for the agent's life
//! ```
//!
//! The listener is there only while a command runs that may use the network. Before each, a new greeting makes both ends
//! forget the streams of the command before: the host may be another one since, as after a checkpoint.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::Duration;

use super::certificates::TrustedAuthority;
use super::link::{Lane, LaneEvent, Link, lock};
use super::{RequestFailure, facts, find_port, open};
use crate::wire::message::ProtocolVersion;
use crate::wire::network::{MOST_CONNECTIONS, PORT, PROXY, ProxyAccess};
use crate::wire::{Class, Frame, HiddenBytes, MAX_DATA, MAX_FRAME, Message, Splitter};

/// How long the host may take to answer the greeting.
const PATIENCE: Duration = Duration::from_secs(30);
/// The interval at which a full tunnel is checked for room.
const TICK: Duration = Duration::from_millis(20);

/// The port of the network, which is opened when a command first needs it.
#[derive(Debug, Default)]
pub struct Tunnel {
    port: Mutex<Option<Arc<OpenPort>>>,
}

/// The open port.
#[derive(Debug)]
struct OpenPort {
    link: Arc<Link>,
    splitter: Mutex<Splitter>,
    /// Receives the number of each greeting of the host.
    greeted: Mutex<Option<Sender<u64>>>,
    next_stream: AtomicU32,
}

/// The listener of one command; dropping it ends all connections.
#[derive(Debug)]
pub struct ProxyListener {
    port: Arc<OpenPort>,
    is_over: Arc<AtomicBool>,
    /// There until the listener is closed.
    trusted: Option<TrustedAuthority>,
}

impl Tunnel {
    /// Begins to accept connections, and makes programs trust the proxy.
    ///
    /// # Errors
    /// When there is no such port, the host does not answer, or something in the guest is in the way.
    pub fn listen(&self, access: &ProxyAccess) -> Result<ProxyListener, RequestFailure> {
        let port = self.port().map_err(RequestFailure::at("the port of the network"))?;
        port.greet()?;
        let listener = TcpListener::bind(PROXY).map_err(RequestFailure::at(PROXY))?;
        let trusted = TrustedAuthority::mount(&access.authority);
        let trusted = trusted.map_err(RequestFailure::at("cannot add the proxy's certificate"))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (accepting, over) = (Arc::clone(&port), Arc::clone(&is_over));
        thread::spawn(move || accepting.accept(&listener, &over));
        Ok(ProxyListener { port, is_over, trusted: Some(trusted) })
    }

    fn port(&self) -> io::Result<Arc<OpenPort>> {
        let mut port = lock(&self.port);
        if let Some(port) = &*port {
            return Ok(Arc::clone(port));
        }
        let file = open(find_port(PORT).ok_or(ErrorKind::NotFound)?)?;
        let opened = OpenPort::start(file)?;
        *port = Some(Arc::clone(&opened));
        Ok(opened)
    }
}

impl ProxyListener {
    /// Ends all connections, and restores the certificates of the guest. Returns a sentence for each file that could not be
    /// restored.
    pub fn close(mut self) -> Vec<String> {
        self.trusted.take().map(TrustedAuthority::unmount).unwrap_or_default()
    }
}

impl Drop for ProxyListener {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(PROXY);
        self.port.link.hang_up();
    }
}

impl OpenPort {
    fn start(file: File) -> io::Result<Arc<Self>> {
        let port = Arc::new(Self {
            link: Link::new(file.try_clone()?),
            splitter: Mutex::new(Splitter::new()),
            greeted: Mutex::default(),
            next_stream: AtomicU32::new(1),
        });
        let reading = Arc::clone(&port);
        thread::spawn(move || reading.read(file));
        Ok(port)
    }

    /// Begins a new conversation with the host.
    fn greet(&self) -> Result<(), RequestFailure> {
        let nonce = facts::now().unsigned_abs();
        let (sender, greeted) = channel();
        *lock(&self.greeted) = Some(sender);
        lock(&self.splitter).doubt();
        self.link.hang_up();
        self.link
            .send(0, &Message::Tunnel { origin: ProtocolVersion, nonce })
            .map_err(RequestFailure::at("the port of the network"))?;
        while let Ok(answer) = greeted.recv_timeout(PATIENCE) {
            if answer == nonce {
                return Ok(());
            }
        }
        Err(RequestFailure::new(Class::System {}, "the host's proxy does not answer"))
    }

    /// Reads the port for ever.
    fn read(&self, mut file: File) {
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            match file.read(&mut buffer) {
                Ok(count @ 1..) => self.take(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The host is gone, or was never there.
                _ => sleep(TICK),
            }
        }
    }

    /// Hands the frames to their lanes. Bytes that are no frames end all connections; the next command greets again.
    fn take(&self, bytes: &[u8]) {
        let mut splitter = lock(&self.splitter);
        splitter.push(bytes);
        loop {
            match splitter.next_frame() {
                Ok(Some(Frame { message: Message::Tunnel { nonce, .. }, .. })) => {
                    splitter.trust();
                    if let Some(greeted) = &*lock(&self.greeted) {
                        let _ = greeted.send(nonce);
                    }
                }
                Ok(Some(Frame { stream, message })) => {
                    if self.link.deliver(stream, message).is_err() {
                        self.link.hang_up();
                    }
                }
                Ok(None) => return,
                Err(_) => {
                    splitter.doubt();
                    self.link.hang_up();
                    return;
                }
            }
        }
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener, is_over: &AtomicBool) {
        let open = Arc::new(AtomicUsize::new(0));
        while !is_over.load(Ordering::SeqCst) {
            if open.load(Ordering::SeqCst) >= MOST_CONNECTIONS {
                sleep(TICK);
                continue;
            }
            let Ok((socket, _)) = listener.accept() else { return sleep(TICK) };
            if !is_over.load(Ordering::SeqCst) {
                self.carry(socket, ConnectionCount::new(&open));
            }
        }
    }

    /// Opens a stream for a connection, and starts its threads. A connection that cannot be carried is closed.
    fn carry(&self, socket: TcpStream, count: ConnectionCount) {
        let stream = self.next_stream.fetch_add(1, Ordering::SeqCst);
        let Some((lane, events)) = self.link.open(stream) else { return };
        let Ok(reading) = socket.try_clone() else { return lane.finish(Message::Close {}) };
        let _ = socket.set_nodelay(true);
        if lane.send(Message::Connect {}).is_err() {
            return;
        }
        let sending = Arc::clone(&lane);
        thread::spawn(move || send(&reading, &sending));
        thread::spawn(move || {
            receive(&socket, &lane, &events);
            drop(count);
        });
    }
}

/// Counts a connection for as long as it lives.
struct ConnectionCount(Arc<AtomicUsize>);

impl ConnectionCount {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(open))
    }
}

impl Drop for ConnectionCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Sends what a program writes, up to its end.
fn send(mut socket: &TcpStream, lane: &Lane) {
    let mut buffer = vec![0; MAX_DATA];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return drop(lane.send(Message::Eof {})),
            Ok(count) => {
                let sent = lane.send_data(&buffer[..count], |bytes| Message::Data { bytes: HiddenBytes(bytes) });
                if sent.is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return lane.finish(Message::Close {}),
        }
    }
}

/// Writes what the host sends to a program, up to the end of the connection.
fn receive(mut socket: &TcpStream, lane: &Lane, events: &Receiver<LaneEvent>) {
    let mut owed = 0;
    while let Ok(LaneEvent::Said(message)) = events.recv() {
        match message {
            Message::Data { bytes: HiddenBytes(bytes) } => {
                if socket.write_all(&bytes).is_err() {
                    break;
                }
                lane.used(bytes.len(), &mut owed);
            }
            Message::Eof {} => drop(socket.shutdown(Shutdown::Write)),
            _ => break,
        }
    }
    let _ = socket.shutdown(Shutdown::Both);
    lane.finish(Message::Close {});
}
