//! The host's end of the port of the network: each stream of the guest becomes a connection that a thread serves.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;

use crate::agent::link::{Lane, LaneEvent, Link};
use crate::wire::message::ProtocolVersion;
use crate::wire::network::MOST_CONNECTIONS;
use crate::wire::{Frame, HiddenBytes, MAX_FRAME, Message, Splitter};

/// The stack of a thread that serves a connection, bytes.
const STACK: usize = 512 << 10;

/// A connection of a program in the guest. Dropping it closes the connection.
pub(super) struct Connection {
    lane: Arc<Lane>,
    events: Receiver<LaneEvent>,
    chunk: Vec<u8>,
    at: usize,
    owed: usize,
    is_over: bool,
}

impl Connection {
    fn new(lane: Arc<Lane>, events: Receiver<LaneEvent>) -> Self {
        Self { lane, events, chunk: Vec::new(), at: 0, owed: 0, is_over: false }
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() && !self.is_over {
            match self.events.recv() {
                Ok(LaneEvent::Said(Message::Data { bytes: HiddenBytes(bytes) })) => {
                    (self.chunk, self.at) = (bytes, 0);
                }
                Ok(LaneEvent::Said(Message::Eof {})) => self.is_over = true,
                _ => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let count = (&self.chunk[self.at..]).read(buffer)?;
        self.at += count;
        self.lane.used(count, &mut self.owed);
        Ok(count)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lane.send_data(bytes, |bytes| Message::Data { bytes: HiddenBytes(bytes) }).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.lane.finish(Message::Close {});
    }
}

/// Serves the connections of a guest until its machine is gone: `serve` is called with each, in a thread of its own.
///
/// # Errors
/// When no thread can be started.
pub(super) fn start(port: UnixStream, serve: impl Fn(Connection) + Send + Sync + 'static) -> io::Result<()> {
    port.set_nonblocking(false)?;
    let link = Link::new(File::from(OwnedFd::from(port.try_clone()?)));
    let host = TunnelHost { link, splitter: Splitter::new(), serve: Arc::new(serve) };
    thread::Builder::new().name("network".into()).spawn(move || host.run(port)).map(drop)
}

struct TunnelHost<F> {
    link: Arc<Link>,
    splitter: Splitter,
    serve: Arc<F>,
}

impl<F: Fn(Connection) + Send + Sync + 'static> TunnelHost<F> {
    fn run(mut self, mut port: UnixStream) {
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            match port.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => self.take(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.link.hang_up();
    }

    /// Handles the frames of the guest. Whatever is no frame ends all connections, until the guest greets again.
    fn take(&mut self, bytes: &[u8]) {
        self.splitter.push(bytes);
        loop {
            match self.splitter.next_frame() {
                Ok(Some(frame)) => {
                    if self.answer(frame).is_err() {
                        self.give_up();
                    }
                }
                Ok(None) => return,
                Err(_) => return self.give_up(),
            }
        }
    }

    fn give_up(&mut self) {
        self.splitter.doubt();
        self.link.hang_up();
    }

    fn answer(&mut self, Frame { stream, message }: Frame) -> Result<(), &'static str> {
        match message {
            Message::Tunnel { nonce, .. } => {
                self.link.hang_up();
                self.splitter.trust();
                let greeting = Message::Tunnel { origin: ProtocolVersion, nonce };
                self.link.send(0, &greeting).map_err(|_| "the port is closed")
            }
            Message::Connect {} => self.connect(stream),
            other => self.link.deliver(stream, other),
        }
    }

    fn connect(&self, stream: u32) -> Result<(), &'static str> {
        if self.link.open_lanes() >= 2 * MOST_CONNECTIONS {
            return Err("more connections than agreed");
        }
        let (lane, events) = self.link.open(stream).ok_or("a stream that is in use")?;
        let connection = Connection::new(lane, events);
        let serve = Arc::clone(&self.serve);
        let thread = thread::Builder::new().name("connection".into()).stack_size(STACK);
        // Without a thread the connection is dropped, and so closed.
        let _ = thread.spawn(move || serve(connection));
        Ok(())
    }
}
