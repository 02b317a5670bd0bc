//! Writes to the port from many threads, and accounts for the credit of each.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::wire::{self, HiddenBytes, MAX_DATA, Message, WINDOW};

/// Credit is granted again when this many bytes were used.
const GRANT: usize = WINDOW / 4;

/// An event that a lane's thread waits for.
#[derive(Debug)]
pub enum LaneEvent {
    /// A message of the host on this stream.
    Said(Message),
    /// The conversation has ended.
    Lost,
    /// The command has ended.
    Exited(std::process::ExitStatus),
}

/// The port, for writing, and the open lanes.
#[derive(Debug)]
pub struct Link {
    out: Mutex<File>,
    lanes: Mutex<HashMap<u32, Arc<Lane>>>,
}

/// One stream of the conversation.
#[derive(Debug)]
pub struct Lane {
    id: u32,
    link: Arc<Link>,
    inbox: Sender<LaneEvent>,
    unread: AtomicUsize,
    send: Mutex<SendCredit>,
    changed: Condvar,
}

#[derive(Debug)]
struct SendCredit {
    credit: usize,
    over: bool,
}

impl Link {
    /// Creates a link that writes to this port.
    pub fn new(out: File) -> Arc<Self> {
        Arc::new(Self { out: Mutex::new(out), lanes: Mutex::default() })
    }

    /// Sends one message on a stream.
    pub fn send(&self, stream: u32, message: &Message) -> io::Result<()> {
        self.send_if(stream, || Some(message.clone())).map(|_| ())
    }

    /// Sends the message that `make` returns, if any; nothing else is sent between the decision of `make` and the message.
    pub fn send_if(&self, stream: u32, make: impl FnOnce() -> Option<Message>) -> io::Result<bool> {
        let mut out = lock(&self.out);
        let Some(message) = make() else { return Ok(false) };
        let mut bytes = Vec::with_capacity(message.cost() + 64);
        wire::put_frame(stream, &message, &mut bytes);
        out.write_all(&bytes).map(|()| true)
    }

    /// Opens a lane; `None` if the stream is in use.
    pub fn open(self: &Arc<Self>, id: u32) -> Option<(Arc<Lane>, Receiver<LaneEvent>)> {
        let (inbox, events) = channel();
        let lane = Arc::new(Lane {
            id,
            link: Arc::clone(self),
            inbox,
            unread: AtomicUsize::new(0),
            send: Mutex::new(SendCredit { credit: WINDOW, over: false }),
            changed: Condvar::new(),
        });
        let mut lanes = lock(&self.lanes);
        if lanes.contains_key(&id) {
            return None;
        }
        lanes.insert(id, Arc::clone(&lane));
        Some((lane, events))
    }

    /// Delivers a message to its lane. A message for a lane that has ended is dropped: the host could not know of the end
    /// yet.
    ///
    /// # Errors
    /// When the host sent more than it had credit for.
    pub fn deliver(&self, stream: u32, message: Message) -> Result<(), &'static str> {
        let Some(lane) = lock(&self.lanes).get(&stream).cloned() else { return Ok(()) };
        if let Message::Credit { bytes } = message {
            lane.allow(bytes as usize);
            return Ok(());
        }
        let cost = message.cost();
        if lane.unread.fetch_add(cost, Ordering::SeqCst) + cost > WINDOW {
            return Err("more data than there was credit for");
        }
        let _ = lane.inbox.send(LaneEvent::Said(message));
        Ok(())
    }

    /// Returns whether any lane is open.
    pub fn is_busy(&self) -> bool {
        self.open_lanes() > 0
    }

    /// Returns the number of open lanes.
    pub fn open_lanes(&self) -> usize {
        lock(&self.lanes).len()
    }

    /// Ends every lane, since the conversation has ended.
    pub fn hang_up(&self) {
        for (_, lane) in lock(&self.lanes).drain() {
            lane.close();
            let _ = lane.inbox.send(LaneEvent::Lost);
        }
    }
}

impl Lane {
    /// Returns the number of the stream.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns the sender of the lane's events, for threads that work for the lane.
    pub fn inbox(&self) -> Sender<LaneEvent> {
        self.inbox.clone()
    }

    /// Sends a message that needs no credit. After the end of the lane it is dropped.
    pub fn send(&self, message: Message) -> io::Result<()> {
        // The lane's end is checked under the link's lock: nothing may follow the last message.
        let sent = self.link.send_if(self.id, || (!lock(&self.send).over).then_some(message))?;
        if sent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }

    /// Sends bytes in as many messages as needed, waiting for credit.
    pub fn send_data(&self, mut bytes: &[u8], make: fn(Vec<u8>) -> Message) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = self.take_credit(bytes.len().min(MAX_DATA))?;
            let (now, later) = bytes.split_at(n);
            self.send(make(now.to_vec()))?;
            bytes = later;
        }
        Ok(())
    }

    /// Returns whether the lane has no credit left, so that a sender waits for the host rather than for its own input.
    pub fn starved(&self) -> bool {
        lock(&self.send).credit == 0
    }

    /// Records that `n` bytes from the host were used, and grants new credit when enough has accumulated in `owed`.
    pub fn used(&self, n: usize, owed: &mut usize) {
        *owed += n;
        if *owed >= GRANT {
            self.unread.fetch_sub(*owed, Ordering::SeqCst);
            let _ = self.send(Message::Credit { bytes: u32::try_from(*owed).unwrap_or(u32::MAX) });
            *owed = 0;
        }
    }

    /// Sends the last message. The lane is removed before the host can read the message: the host's next request must not
    /// find the agent still busy.
    pub fn finish(&self, message: Message) {
        let _ = self.link.send_if(self.id, || {
            lock(&self.link.lanes).remove(&self.id);
            (!lock(&self.send).over).then_some(message)
        });
        self.close();
    }

    fn close(&self) {
        lock(&self.send).over = true;
        self.changed.notify_all();
    }

    fn allow(&self, bytes: usize) {
        let mut send = lock(&self.send);
        send.credit = send.credit.saturating_add(bytes).min(WINDOW);
        self.changed.notify_all();
    }

    fn take_credit(&self, wanted: usize) -> io::Result<usize> {
        let waited = self.changed.wait_while(lock(&self.send), |send| send.credit == 0 && !send.over);
        let mut send = waited.unwrap_or_else(PoisonError::into_inner);
        if send.over {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let n = wanted.min(send.credit);
        send.credit -= n;
        Ok(n)
    }
}

/// Locks a mutex, poisoned or not: the data in it is valid after every statement.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A reader of the data that the host sends on a lane.
#[derive(Debug)]
pub struct LaneReader<'a> {
    lane: &'a Lane,
    events: Receiver<LaneEvent>,
    chunk: Vec<u8>,
    at: usize,
    owed: usize,
}

impl<'a> LaneReader<'a> {
    /// Creates a reader of the data that arrives in this lane.
    pub fn new(lane: &'a Lane, events: Receiver<LaneEvent>) -> Self {
        Self { lane, events, chunk: Vec::new(), at: 0, owed: 0 }
    }
}

impl BufRead for LaneReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.chunk.len() {
            match self.events.recv() {
                Ok(LaneEvent::Said(Message::Data { bytes: HiddenBytes(bytes) })) => (self.chunk, self.at) = (bytes, 0),
                Ok(LaneEvent::Said(_)) => {}
                _ => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
        self.lane.used(n, &mut self.owed);
    }
}

impl Read for LaneReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

/// A writer that sends its data on a lane.
#[derive(Debug)]
pub struct LaneWriter<'a>(pub &'a Lane);

impl Write for LaneWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_data(bytes, |bytes| Message::Data { bytes: HiddenBytes(bytes) }).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
