//! Connects this terminal to a guest: raw during the connection, and restored afterwards; see `terminal_modes`.
//!
//! ```text
//! stdin   -> a thread that polls and reads ->  typed  <- a task that waits for SIGWINCH
//! stdout, stderr <- a thread that writes   <-  shown
//! ```
//! Without a terminal at stdin, bytes go in and out as they are, as with a pipe to `ssh HOST`.

use std::io::{self, IsTerminal, PipeReader, PipeWriter, Write, stderr, stdin, stdout};
use std::os::fd::AsFd;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, raise};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use terminal_size::{Height, Width, terminal_size_of};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::event::Channel;
use crate::session::AttachedTerminal;
use crate::session::shell::MAX_TYPED;
use crate::session::{TerminalInput, TerminalLine, TtySize};

use super::terminal_modes::{CursorMargins, MarginWatch, TerminalLease, note_margins};

/// Capacity of the channels in both directions.
const BACKLOG: usize = 16;
/// Ctrl-], the escape character of telnet and machinectl.
const ESCAPE: u8 = 0x1d;
/// Number of escapes within [`ESCAPE_TIME`] that end the shell.
const ESCAPES: usize = 3;
const ESCAPE_TIME: Duration = Duration::from_secs(1);

/// Takes over standard input, output and error. Must be called within a tokio runtime.
pub fn attach() -> io::Result<AttachedTerminal> {
    let is_terminal = stdin().is_terminal();
    let (typing, typed) = channel(BACKLOG);
    let (show, shown) = channel(BACKLOG);
    let (stopped, stop) = io::pipe()?;
    let mut lent = TerminalRestore::default();
    lent.lease = Some(TerminalLease::take(CursorMargins::Untouched)?);
    if is_terminal {
        let mut raw = tcgetattr(stdin())?;
        cfmakeraw(&mut raw);
        let mut resized = signal(SignalKind::window_change())?;
        let typing = typing.clone();
        let watch = async move {
            while resized.recv().await.is_some() && typing.send(TerminalInput::Resized(size())).await.is_ok() {}
        };
        tcsetattr(stdin(), SetArg::TCSADRAIN, &raw)?;
        lent.resizes = Some(tokio::spawn(watch));
    }
    lent.stop = Some(stop);
    lent.threads.push(std::thread::spawn(move || read(&stopped, is_terminal, &typing)));
    lent.threads.push(std::thread::spawn(move || write(shown)));
    let term = std::env::var("TERM").ok().filter(|term| !term.is_empty());
    Ok(AttachedTerminal {
        line: TerminalLine { size: is_terminal.then(size), typed, shown: show },
        term: term.filter(|_| is_terminal).unwrap_or_else(|| "dumb".to_owned()),
        restore: Box::new(lent),
    })
}

/// The state that is restored when the terminal is given back.
#[derive(Default)]
struct TerminalRestore {
    lease: Option<TerminalLease>,
    resizes: Option<tokio::task::JoinHandle<()>>,
    /// The end of a pipe whose closing ends the reader.
    stop: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for TerminalRestore {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(resizes) = &self.resizes {
            resizes.abort();
        }
        // The line is closed by now, so the writer prints what is left and ends.
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        drop(self.lease.take());
    }
}

fn size() -> TtySize {
    let (Width(columns), Height(rows)) = terminal_size_of(stdin()).unwrap_or((Width(80), Height(24)));
    TtySize { rows, columns }
}

/// Reads until stdin or the shell ends. Polls first, so that no input for the next program is consumed.
fn read(stopped: &PipeReader, is_terminal: bool, typing: &Sender<TerminalInput>) {
    let stdin = stdin();
    let mut buffer = [0; MAX_TYPED];
    let mut escape = Escape::default();
    loop {
        let mut watched =
            [PollFd::new(stdin.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
            Ok(_) if watched[1].any() != Some(false) => return,
            Ok(_) => {}
        }
        // Bypasses the buffer of std: poll(2) does not see input that is already in it.
        let bytes = match nix::unistd::read(&stdin, &mut buffer) {
            Ok(0) => return,
            Ok(n) => &buffer[..n],
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
        };
        if is_terminal && escape.typed(bytes, Instant::now()) {
            // As Ctrl-C does where the terminal is not raw.
            let _ = raise(Signal::SIGINT);
            return;
        }
        if typing.blocking_send(TerminalInput::Bytes(bytes.to_vec())).is_err() {
            return;
        }
    }
}

fn write(mut shown: Receiver<(Channel, Vec<u8>)>) {
    let mut margins = MarginWatch::default();
    while let Some((channel, bytes)) = shown.blocking_recv() {
        if margins.feed(&bytes) {
            note_margins();
        }
        // If the terminal or pipe was closed, its output is discarded.
        let _ = match channel {
            Channel::Stdout => stdout().write_all(&bytes).and_then(|()| stdout().flush()),
            Channel::Stderr => stderr().write_all(&bytes),
        };
    }
}

/// Counts consecutive Ctrl-].
#[derive(Default)]
struct Escape {
    times: Vec<Instant>,
}

impl Escape {
    /// Takes typed bytes, and returns whether the escape sequence is complete.
    fn typed(&mut self, bytes: &[u8], now: Instant) -> bool {
        for byte in bytes {
            if *byte == ESCAPE {
                self.times.push(now);
            } else {
                self.times.clear();
            }
        }
        self.times.retain(|at| now.duration_since(*at) <= ESCAPE_TIME);
        self.times.len() >= ESCAPES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_escapes_in_a_row_and_in_a_second_end_it() {
        let begin = Instant::now();
        let after = |keys: &[(&[u8], u64)]| {
            let mut escape = Escape::default();
            keys.iter().any(|(bytes, millis)| escape.typed(bytes, begin + Duration::from_millis(*millis)))
        };
        assert!(after(&[(b"\x1d", 0), (b"\x1d", 400), (b"\x1d", 900)]));
        assert!(after(&[(b"ls\r\x1d\x1d\x1d", 0)]));
        assert!(!after(&[(b"\x1d", 0), (b"\x1d", 400), (b"\x1d", 1500)]));
        assert!(!after(&[(b"\x1d", 0), (b"x", 100), (b"\x1d\x1d", 200)]));
    }
}
