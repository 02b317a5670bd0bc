//! A connection to an agent: frames in both directions, credit, liveness.

use std::io;
use std::time::{Duration, SystemTime};

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use super::GuestError;
use super::error::printable;
use crate::wire::cloud_init::SeedObstacle;
use crate::wire::{self, Aftermath, Class, Frame, MAX_FRAME, Message, Splitter, WINDOW};

/// Limit of unparsed data, beyond which no more is read from the port.
const BACKLOG: usize = 2 * WINDOW;
/// Number of obstacles that are accepted; the agent knows of fewer.
const MOST_OBSTACLES: usize = 8;
/// Length to which reasons are cut, characters.
const LONGEST_REASON: usize = 300;
/// Amount of used data after which credit is granted again.
const GRANT: usize = WINDOW / 4;

/// Proof that the guest has synced its file systems and sent its last message.
#[derive(Debug)]
#[must_use]
pub struct Farewell(());

/// Limits of a guest's slowness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Time in which the guest must take at least one byte that is to be sent.
    pub stalled: Duration,
    /// Time in which the guest must send at least one byte; pings are sent after a quarter of it.
    pub silent: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { stalled: Duration::from_secs(30), silent: Duration::from_secs(60) }
    }
}

/// A session with one agent. If the future of a request is dropped, the session remains usable: later messages about that
/// request are ignored.
#[derive(Debug)]
pub struct Session {
    pub(super) stream: UnixStream,
    pub(super) splitter: Splitter,
    buffer: Box<[u8]>,
    pub(super) out: Vec<u8>,
    pub(super) written: usize,
    limits: Limits,
    pub(super) boot_id: String,
    request: u32,
    /// Bytes that the guest has sent on this request without being granted new credit; bytes that were used but not granted
    /// again.
    received: usize,
    owed: usize,
    /// Bytes that may be sent on this request.
    pub(super) credit: usize,
    heard: Instant,
    moved: Instant,
    /// The unanswered ping, and the time when it was sent.
    ping: Option<(u64, Instant)>,
    pings: u64,
    /// The guest's clock at its last answer to a ping, nanoseconds since 1970.
    clock: i64,
    /// The agent's observations about the last command.
    pub(super) aftermath: Aftermath,
}

impl Session {
    pub(super) fn new(stream: UnixStream) -> Self {
        let now = Instant::now();
        Self {
            stream,
            splitter: Splitter::new(),
            buffer: vec![0; MAX_FRAME].into(),
            out: Vec::new(),
            written: 0,
            limits: Limits::default(),
            boot_id: String::new(),
            request: 0,
            received: 0,
            owed: 0,
            credit: 0,
            heard: now,
            moved: now,
            ping: None,
            pings: 0,
            clock: 0,
            aftermath: Aftermath::default(),
        }
    }

    /// Returns the session with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sends a ping and waits for the answer.
    ///
    /// # Errors
    /// When there is none.
    pub async fn ping(&mut self) -> Result<(), GuestError> {
        self.begin();
        self.send_ping();
        while self.ping.is_some() {
            if !self.hear()? {
                self.step().await?;
            }
        }
        Ok(())
    }

    /// Returns the current time of the guest's clock, nanoseconds since 1970. The guest may send any value.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub async fn clock(&mut self) -> Result<i64, GuestError> {
        self.ping().await?;
        Ok(self.clock)
    }

    /// Sends a resumed guest what it cannot know: the time, and new entropy, since it is not the only one with its random
    /// numbers. Without entropy, the clock alone is set.
    ///
    /// # Errors
    /// When the guest cannot or does not answer.
    pub async fn wake(&mut self, now: SystemTime, entropy: &[u8]) -> Result<(), GuestError> {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let clock = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
        match self.ask(&Message::Wake { clock, entropy: entropy.to_vec() }).await? {
            Message::Done { .. } => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Syncs the guest's disks, and drops the page cache if it holds more than `cached` bytes.
    ///
    /// # Errors
    /// When the guest cannot or does not answer.
    pub async fn sync(&mut self, cached: u64) -> Result<(), GuestError> {
        match self.ask(&Message::Sync { cached }).await? {
            Message::Done { .. } => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Asks the agent for anything that will keep cloud-init from starting it at the next boot.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub async fn find_seed_obstacles(&mut self) -> Result<Vec<SeedObstacle>, GuestError> {
        match self.ask(&Message::CheckSeed {}).await? {
            Message::SeedChecked { obstacles } => Ok(obstacles.iter().take(MOST_OBSTACLES).map(shown).collect()),
            other => Err(unexpected(other)),
        }
    }

    /// Ends the session. When this returns, the guest has synced its file systems and is about to power itself off.
    ///
    /// # Errors
    /// When the agent does not answer with its goodbye.
    pub async fn bye(mut self) -> Result<Farewell, GuestError> {
        match self.ask(&Message::Bye {}).await? {
            Message::Bye {} => Ok(Farewell(())),
            other => Err(unexpected(other)),
        }
    }

    /// Begins a new request, with a stream of its own.
    pub(super) fn begin(&mut self) {
        self.request += 1;
        (self.received, self.owed, self.credit) = (0, 0, WINDOW);
        self.ping = None;
        (self.heard, self.moved) = (Instant::now(), Instant::now());
    }

    /// Begins a new request with this message.
    pub(super) fn begin_with(&mut self, message: &Message) {
        self.begin();
        self.queue(message);
    }

    /// Begins a new request with this message, and returns the first message of the answer.
    pub(super) async fn ask(&mut self, message: &Message) -> Result<Message, GuestError> {
        self.begin_with(message);
        self.next().await
    }

    /// Queues a message of this request for writing.
    pub(super) fn queue(&mut self, message: &Message) {
        self.credit = self.credit.saturating_sub(message.cost());
        self.put(self.request, message);
    }

    pub(super) fn put(&mut self, stream: u32, message: &Message) {
        if self.out.is_empty() {
            self.moved = Instant::now();
        }
        wire::put_frame(stream, message, &mut self.out);
    }

    /// Writes the queue, and keeps reading meanwhile: a guest that waits for its own data to be read never reads.
    pub(super) async fn flush(&mut self) -> Result<(), GuestError> {
        while !self.out.is_empty() {
            self.step().await?;
        }
        Ok(())
    }

    /// Returns the next message of this request. The future may be dropped while it waits.
    pub(super) async fn next(&mut self) -> Result<Message, GuestError> {
        loop {
            let Some(frame) = self.splitter.next_frame()? else {
                self.step().await?;
                continue;
            };
            if let Some(message) = self.take(frame)? {
                return Ok(message);
            }
        }
    }

    /// Counts `n` bytes of data as used, so that the guest may send as many again.
    pub(super) fn used(&mut self, n: usize) {
        self.owed += n;
        if self.owed >= GRANT {
            let owed = std::mem::take(&mut self.owed);
            self.received -= owed;
            self.queue(&Message::Credit { bytes: u32::try_from(owed).unwrap_or(u32::MAX) });
        }
    }

    fn hear(&mut self) -> Result<bool, GuestError> {
        match self.splitter.next_frame()? {
            Some(frame) => self.take(frame).map(|_| true),
            None => Ok(false),
        }
    }

    /// Handles messages about the connection; returns those that belong to the request.
    fn take(&mut self, Frame { stream, message }: Frame) -> Result<Option<Message>, GuestError> {
        match message {
            Message::Hello { facts, .. } if facts.boot_id == self.boot_id => return Err(GuestError::SecondAgent),
            Message::Hello { .. } => return Err(GuestError::Restarted),
            Message::Trouble { text } => return Err(GuestError::Protocol(format!("it says {}", printable(&text)))),
            Message::Pong { token, clock } if stream == 0 => {
                // A pong may be late, but never for a ping that was not sent.
                if token > self.pings {
                    return Err(GuestError::Protocol("an answer to no question".into()));
                }
                self.ping = self.ping.filter(|(ping, _)| *ping != token);
                self.clock = clock;
                return Ok(None);
            }
            _ => {}
        }
        if stream != self.request {
            if stream != 0 && stream < self.request {
                return Ok(None);
            }
            return Err(GuestError::Protocol(format!("a message on stream {stream}, which is not open")));
        }
        self.received += message.cost();
        if self.received > WINDOW {
            return Err(GuestError::Protocol("more data than it had credit for".into()));
        }
        if let Message::Credit { bytes } = message {
            self.credit = (self.credit + bytes as usize).min(WINDOW);
        }
        Ok(Some(message))
    }

    /// Waits until data was transferred in either direction, no longer than the limits allow.
    async fn step(&mut self) -> Result<(), GuestError> {
        // Silence is counted from the ping: a kiln that was itself stopped for an hour must ask before it judges.
        let quarter = self.limits.silent / 4;
        let stalled_at = self.moved + self.limits.stalled;
        let mut wake = self.ping.map_or(self.heard + quarter, |(_, sent)| sent + 3 * quarter);
        if !self.out.is_empty() {
            wake = wake.min(stalled_at);
        }
        if let Ok(done) = timeout_at(wake, self.exchange()).await {
            return done;
        }
        let now = Instant::now();
        if now > wake + quarter {
            // After such a late wake-up, this process stood still, and perhaps the guest with it: the guest gets all its
            // time again.
            (self.heard, self.moved) = (now, now);
            self.ping = self.ping.map(|(token, _)| (token, now));
            return Ok(());
        }
        if !self.out.is_empty() && now >= stalled_at {
            return Err(GuestError::Stalled(self.limits.stalled));
        }
        match self.ping {
            None => self.send_ping(),
            Some((_, sent)) if now >= sent + 3 * quarter => return Err(GuestError::Silent(self.limits.silent)),
            Some(_) => {}
        }
        Ok(())
    }

    fn send_ping(&mut self) {
        self.pings += 1;
        self.ping = Some((self.pings, Instant::now()));
        self.put(0, &Message::Ping { token: self.pings });
    }

    /// Waits until the port is ready to be read or written, and does that.
    pub(super) async fn exchange(&mut self) -> Result<(), GuestError> {
        let full = self.splitter.waiting() > BACKLOG;
        let interest = match (self.out.is_empty(), full) {
            (true, _) => Interest::READABLE,
            (false, true) => Interest::WRITABLE,
            (false, false) => Interest::READABLE | Interest::WRITABLE,
        };
        let ready = self.stream.ready(interest).await.map_err(GuestError::Port)?;
        if ready.is_writable() && !self.out.is_empty() {
            self.write()?;
        }
        if ready.is_readable() && interest.is_readable() {
            self.read()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), GuestError> {
        match self.stream.try_write(&self.out[self.written..]) {
            Ok(n) => {
                self.written += n;
                self.moved = Instant::now();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(port(error)),
        }
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), GuestError> {
        match self.stream.try_read(&mut self.buffer) {
            Ok(0) => return Err(GuestError::Closed),
            Ok(n) => {
                self.heard = Instant::now();
                // Any message proves that the guest is alive.
                self.ping = self.ping.map(|(token, _)| (token, self.heard));
                self.splitter.push(&self.buffer[..n]);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(port(error)),
        }
        Ok(())
    }
}

/// Returns the obstacle with a reason that a terminal can show on one line.
fn shown(obstacle: &SeedObstacle) -> SeedObstacle {
    let reason: String = obstacle.reason.chars().take(LONGEST_REASON).collect();
    SeedObstacle { reason: printable(&reason), is_lasting: obstacle.is_lasting }
}

/// Returns the error for a message that does not fit the request.
pub(super) fn unexpected(message: Message) -> GuestError {
    match message {
        Message::Failed { class, text } => {
            GuestError::Refused { full: class == Class::NoSpace {}, text: printable(&text) }
        }
        other => GuestError::Protocol(format!("message {} out of turn", other.code())),
    }
}

fn port(error: io::Error) -> GuestError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => GuestError::Closed,
        _ => GuestError::Port(error),
    }
}
