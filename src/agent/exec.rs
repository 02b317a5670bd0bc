//! Runs one command: its own session, pipes or a terminal pumped by threads, a time-out that also reaches its children.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::accounts::{Accounts, User};
use super::link::{Event, Lane};
use super::secrets::Secrets;
use super::sys::Identity;
use super::{Refusal, sys, terminal};
use crate::wire::message::TtySize;
use crate::wire::{Class, ExecRequest, Exit, Hidden, Message};

/// Between the polite and the final signal.
const KILL_AFTER: Duration = Duration::from_secs(5);
/// How long a pipe that a grandchild holds open must be silent before the command counts as over.
const QUIET: Duration = Duration::from_millis(500);
/// More than both pipes can hold when the command ends: what comes later is not its output.
const LATE: usize = 4 << 20;
/// Bytes of output read at once.
const CHUNK: usize = 32 * 1024;

const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const USER_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Runs the command to its end. Processes it left in the background live on, unless it timed out.
pub fn run(lane: &Arc<Lane>, events: &Receiver<Event>, request: &ExecRequest) -> Exit {
    match Running::start(lane, request) {
        Ok(mut running) => running.supervise(events, request.timeout.map(Duration::from_millis)),
        Err(refusal) => Exit::NotStarted { text: refusal.text },
    }
}

struct Running<'a> {
    lane: &'a Arc<Lane>,
    leader: i32,
    stdin: Option<Sender<Vec<u8>>>,
    /// The master of its terminal.
    terminal: Option<File>,
    moved: Arc<AtomicUsize>,
    /// How many of its pipes can still bring something.
    open: usize,
    /// Unmounted when the command is over.
    _secrets: Option<Secrets>,
}

impl<'a> Running<'a> {
    fn start(lane: &'a Arc<Lane>, request: &ExecRequest) -> Result<Self, Refusal> {
        let user = Accounts::read(Path::new("/etc")).user(&request.user)?;
        let secrets = Secrets::mount(lane.id(), &request.secrets, &user.identity)?;
        let mut command = command(request, &user, secrets.as_ref())?;
        let broken = |error| Refusal::io("cannot open a terminal", &error);
        let terminal = match &request.tty {
            Some(size) => Some(attach(&mut command, size, &user.identity).map_err(broken)?),
            None => None,
        };
        sys::on_start(&mut command, user.identity.clone(), terminal.is_some());
        let program = || format!("cannot run `{}`", request.argv[0]);
        let mut child = command.spawn().map_err(|error| Refusal::io(program(), &error))?;
        // The slave's end shows only when nobody but the command's processes holds it.
        drop(command);
        let leader = i32::try_from(child.id()).unwrap_or_default();
        let mut running =
            Self { lane, leader, stdin: None, terminal, moved: Arc::default(), open: 0, _secrets: secrets };
        if let Some(master) = &running.terminal {
            let end = || master.try_clone().map_err(broken);
            running.stdin = Some(feed(end()?, lane));
            let output = end()?;
            running.pump(output, |bytes| Message::Stdout { bytes });
        }
        if let Some(pipe) = child.stdin.take() {
            running.stdin = Some(feed(pipe, lane));
        }
        if let Some(pipe) = child.stdout.take() {
            running.pump(pipe, |bytes| Message::Stdout { bytes });
        }
        if let Some(pipe) = child.stderr.take() {
            running.pump(pipe, |bytes| Message::Stderr { bytes });
        }
        watch(child, lane);
        Ok(running)
    }

    /// Reads to the very end, even when nobody listens any more: a service that the command started must not die of a
    /// closed pipe.
    fn pump(&mut self, mut from: impl Read + Send + 'static, make: fn(Vec<u8>) -> Message) {
        let (lane, moved) = (Arc::clone(self.lane), Arc::clone(&self.moved));
        self.open += 1;
        thread::spawn(move || {
            let mut buffer = vec![0; CHUNK];
            loop {
                match from.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => {
                        moved.fetch_add(n, Ordering::SeqCst);
                        let _ = lane.send_data(&buffer[..n], make);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // A terminal without a slave gives EIO.
                    Err(_) => break,
                }
            }
            let _ = lane.inbox().send(Event::Drained);
        });
    }

    fn supervise(&mut self, events: &Receiver<Event>, timeout: Option<Duration>) -> Exit {
        let mut deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut timed_out = false;
        let status = loop {
            match next(events, deadline) {
                Some(Event::Exited(status)) => break status,
                Some(Event::Said(message)) => self.hear(message),
                Some(Event::Drained) => self.open -= 1,
                Some(Event::Lost) => signal_session(self.leader, sys::SIGKILL),
                None if timed_out => {
                    signal_session(self.leader, sys::SIGKILL);
                    deadline = None;
                }
                None => {
                    timed_out = true;
                    signal_session(self.leader, sys::SIGTERM);
                    deadline = Some(Instant::now() + KILL_AFTER);
                }
            }
        };
        if timed_out {
            signal_session(self.leader, sys::SIGKILL);
        }
        self.drain(events);
        if timed_out { Exit::TimedOut {} } else { how(status) }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Data { bytes: Hidden(bytes) } => {
                if let Some(stdin) = &self.stdin {
                    let _ = stdin.send(bytes);
                }
            }
            Message::Eof {} => self.stdin = None,
            Message::Signal { number } => signal_session(self.leader, number),
            Message::Resize { size } => {
                // A terminal of the wrong size is better than none.
                let _ = self.terminal.as_ref().map(|master| terminal::resize(master, &size));
            }
            _ => {}
        }
    }

    /// Waits until both pipes are closed, or only processes that the command left behind hold them.
    fn drain(&mut self, events: &Receiver<Event>) {
        let at_exit = self.moved.load(Ordering::SeqCst);
        let mut before = at_exit;
        while self.open > 0 {
            match events.recv_timeout(QUIET) {
                Ok(Event::Drained) => self.open -= 1,
                Ok(Event::Lost) => return,
                Ok(_) => {}
                Err(_) => {
                    let now = self.moved.load(Ordering::SeqCst);
                    let waits_for_host = self.lane.starved();
                    if (now == before && !waits_for_host) || now - at_exit > LATE {
                        return;
                    }
                    before = now;
                }
            }
        }
    }
}

fn command(request: &ExecRequest, user: &User, secrets: Option<&Secrets>) -> Result<Command, Refusal> {
    let program = request.argv.first().ok_or_else(|| Refusal::new(Class::Request {}, "there is nothing to run"))?;
    if !Path::new(&request.dir).is_dir() {
        return Err(Refusal::new(Class::NotFound {}, format!("there is no folder `{}` in the guest", request.dir)));
    }
    let stdin = if request.stdin { Stdio::piped() } else { Stdio::null() };
    let mut command = Command::new(program);
    command.args(&request.argv[1..]).current_dir(&request.dir).env_clear();
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("PATH", if user.identity.uid == 0 { ROOT_PATH } else { USER_PATH });
    command.envs([("HOME", &user.home), ("USER", &user.name), ("LOGNAME", &user.name), ("SHELL", &user.shell)]);
    command.envs(request.env.iter().map(|pair| (&pair.name, &pair.value)));
    if let Some(secrets) = secrets {
        command.env("KILN_SECRETS", secrets.folder());
    }
    Ok(command)
}

/// Makes a terminal the command's standard streams, and returns the master.
fn attach(command: &mut Command, size: &TtySize, owner: &Identity) -> io::Result<File> {
    let (master, slave) = terminal::open(size, owner)?;
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    Ok(master)
}

fn next(events: &Receiver<Event>, deadline: Option<Instant>) -> Option<Event> {
    let Some(deadline) = deadline else { return Some(events.recv().unwrap_or(Event::Lost)) };
    match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(event) => Some(event),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => Some(Event::Lost),
    }
}

fn how(status: ExitStatus) -> Exit {
    let small = |n: i32| u8::try_from(n).unwrap_or(u8::MAX);
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code { code: small(code) },
        (None, signal) => Exit::Signal { number: small(signal.unwrap_or_default()) },
    }
}

fn watch(mut child: Child, lane: &Lane) {
    let inbox = lane.inbox();
    thread::spawn(move || {
        // Waiting for our own child cannot fail but for a kernel without it; then it counts as killed.
        let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(i32::from(sys::SIGKILL)));
        let _ = inbox.send(Event::Exited(status));
    });
}

/// Writes what it is given to the command; bytes for a command that has closed its stdin are lost.
fn feed(mut pipe: impl Write + Send + 'static, lane: &Arc<Lane>) -> Sender<Vec<u8>> {
    let (sender, chunks) = channel::<Vec<u8>>();
    let lane = Arc::clone(lane);
    thread::spawn(move || {
        let mut owed = 0;
        for chunk in chunks {
            let _ = pipe.write_all(&chunk);
            lane.used(chunk.len(), &mut owed);
        }
    });
    sender
}

/// A signal for every process of the leader's session: a shell with job control gives its children other groups.
fn signal_session(leader: i32, number: u8) {
    sys::send_signal(-leader, number);
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if session(&stat) == Some(leader) {
            sys::send_signal(pid, number);
        }
    }
}

/// The session in a `/proc/PID/stat`; the name before it is in parentheses and may hold anything.
fn session(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_is_found_behind_any_name() {
        assert_eq!(session("12 (a) b) 4 (c) S 1 12 7 0 -1"), Some(7));
        assert_eq!(session("12 (a"), None);
    }
}
