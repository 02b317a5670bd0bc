//! The output of a command on its way to the host.
//!
//! A pipe may stay open long after its command has ended, because a process that the command left behind still holds it. So
//! the end of the command is not the end of the pipe: what was in the pipe when the command ended belongs to the command.
//! Later output is read too, so that its writer does not block or die, but it is kept apart.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::leftovers::Leftovers;
use super::link::{Lane, lock};
use super::sys;
use crate::wire::{MAX_OUTPUT, Message};

/// Bytes of output read at once.
const CHUNK: usize = 32 * 1024;
/// How long the pipe of a command that has ended may stay open before it counts as held by another process. A `tee` that a
/// script writes through ends a moment later than the script.
const HELD: Duration = Duration::from_millis(100);
/// How long it may take to pass on what was in the pipe at the command's end, if the host grants credit.
const BACKLOG: Duration = Duration::from_secs(1);
/// How much of the end of an output beyond [`MAX_OUTPUT`] is sent, in bytes.
const TAIL: usize = 16 << 10;

/// The destination of one command's output.
#[derive(Debug)]
pub struct OutputSink {
    lane: Arc<Lane>,
    left: Arc<Leftovers>,
    /// The step, from 1; 0 for a command that belongs to no step.
    step: u32,
    /// How many bytes may still be sent.
    room: AtomicUsize,
}

/// A thread that reads one pipe, or the terminal, of a command.
#[derive(Debug)]
pub struct OutputPump {
    sink: Arc<OutputSink>,
    make: fn(Vec<u8>) -> Message,
    source: File,
    is_terminal: bool,
    state: Mutex<PumpState>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct PumpState {
    /// How many bytes were read; `passed` counts those of them that were passed on.
    read: usize,
    passed: usize,
    is_closed: bool,
    /// The end of the output that exceeded the limit.
    tail: VecDeque<u8>,
    /// How many bytes exceeded the limit.
    skipped: usize,
}

impl OutputSink {
    /// Creates a sink that sends output to the host. Only the output of a step is limited: other commands are kiln's own,
    /// and their output is needed as a whole.
    pub fn new(lane: &Arc<Lane>, left: &Arc<Leftovers>, step: Option<u32>) -> Arc<Self> {
        let room = AtomicUsize::new(if step.is_some() { MAX_OUTPUT } else { usize::MAX });
        Arc::new(Self { lane: Arc::clone(lane), left: Arc::clone(left), step: step.unwrap_or(0), room })
    }

    fn take_room(&self, wanted: usize) -> usize {
        let room = &self.room;
        let before = room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| Some(room.saturating_sub(wanted)));
        before.unwrap_or_else(|room| room).min(wanted)
    }

    /// Sends bytes to the host, or stores them as late output if the command has ended.
    fn send(&self, bytes: &[u8], make: fn(Vec<u8>) -> Message) {
        if self.lane.send_data(bytes, make).is_err() {
            self.left.keep_late(self.step, bytes);
        }
    }
}

impl OutputPump {
    /// Starts to read a pipe, or a terminal's master.
    pub fn start(
        sink: &Arc<OutputSink>,
        source: OwnedFd,
        is_terminal: bool,
        make: fn(Vec<u8>) -> Message,
    ) -> Arc<Self> {
        let (state, moved) = Default::default();
        let pump = Arc::new(Self { sink: Arc::clone(sink), make, source: source.into(), is_terminal, state, moved });
        let reader = Arc::clone(&pump);
        thread::spawn(move || reader.run());
        pump
    }

    /// Reads up to the end of the pipe, even when the output is not received any more: a service that the command started
    /// must not die of a closed pipe.
    fn run(&self) {
        let mut buffer = vec![0; CHUNK];
        loop {
            sys::wait_readable(&self.source);
            // The lock is held, so that every byte is either in the pipe or counted.
            let mut state = lock(&self.state);
            match (&self.source).read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal without a slave gives EIO.
                Ok(0) | Err(_) => break state.is_closed = true,
                Ok(n) => {
                    state.read += n;
                    drop(state);
                    self.pass(&buffer[..n]);
                    lock(&self.state).passed += n;
                }
            }
            self.moved.notify_all();
        }
        self.moved.notify_all();
    }

    fn pass(&self, bytes: &[u8]) {
        let (now, beyond) = bytes.split_at(self.sink.take_room(bytes.len()));
        self.sink.send(now, self.make);
        if !beyond.is_empty() {
            let mut state = lock(&self.state);
            state.skipped += beyond.len();
            state.tail.extend(beyond);
            let excess = state.tail.len().saturating_sub(TAIL);
            state.tail.drain(..excess);
        }
    }

    /// Waits until the output written before the command `ended` was passed on, and a moment longer for processes such as
    /// `tee` that pass it on.
    pub fn settle(&self, ended: Instant) {
        let mut state = lock(&self.state);
        let written = state.read + sys::readable_bytes(&self.source);
        loop {
            let is_read = state.passed >= written && !self.is_terminal;
            let patience = if is_read { HELD } else { BACKLOG };
            let waited = ended.elapsed();
            if state.is_closed || (waited >= patience && !self.sink.lane.starved()) {
                break;
            }
            let rest = patience.saturating_sub(waited).max(Duration::from_millis(10));
            state = self.moved.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        let tail = std::mem::take(&mut state.tail);
        let skipped = std::mem::take(&mut state.skipped);
        drop(state);
        if skipped > 0 {
            self.send_end(&Vec::from(tail), skipped);
        }
    }

    /// Sends the end of an output that was too long, from the first whole line on.
    fn send_end(&self, tail: &[u8], skipped: usize) {
        let start = tail.iter().position(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        let skipped = skipped - (tail.len() - start);
        let mark = format!("\n[kiln: {skipped} bytes of output are left out here]\n");
        self.sink.send(mark.as_bytes(), self.make);
        self.sink.send(&tail[start..], self.make);
    }
}
