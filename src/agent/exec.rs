//! Runs one command: in its own session and cgroup, with pipes or a terminal, and with a time-out that also ends its
//! children.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::accounts::{Accounts, User};
use super::kernel_log::KernelLog;
use super::leftovers::{Leftovers, session_of};
use super::link::{Lane, LaneEvent};
use super::output::{OutputPump, OutputSink};
use super::processes::every_process;
use super::secrets::SecretMount;
use super::sys::{ProcessStart, UserCredentials};
use super::tunnel::{ProxyListener, Tunnel};
use super::{RequestFailure, login, shutdown, sys, terminal};
use crate::wire::message::{ShellScript, TtySize};
use crate::wire::tree::is_name;
use crate::wire::{Aftermath, Class, ExecRequest, Exit, HiddenBytes, Message, SCRIPT_FOLDER};

/// The time between SIGTERM and SIGKILL.
const KILL_AFTER: Duration = Duration::from_secs(5);
/// How many bytes of a file the kernel reads to find out how to run it.
const HEAD: u64 = 256;
const NO_TERMINAL: &str = "cannot open a terminal";

/// Runs the command to its end. Processes that it left in the background live on, unless it timed out. Everything else that
/// was observed is sent before this returns.
pub fn run(
    lane: &Arc<Lane>,
    events: &Receiver<LaneEvent>,
    request: &ExecRequest,
    (left, tunnel): (&Arc<Leftovers>, &Tunnel),
) -> Exit {
    let log = KernelLog::open();
    if request.step.is_some() {
        left.note_mounts();
    }
    let network = match request.network.as_ref().map(|access| tunnel.listen(access)).transpose() {
        Ok(network) => network,
        Err(refusal) => return Exit::NotStarted { text: refusal.text },
    };
    let mut found = Aftermath { late: left.take_late(), ..Aftermath::default() };
    let exit = match RunningCommand::start(lane, request, left, &mut found.notes) {
        Ok(mut running) => running.supervise(events, request.timeout.map(Duration::from_millis)),
        Err(refusal) => Exit::NotStarted { text: refusal.text },
    };
    found.notes.extend(network.map(ProxyListener::close).unwrap_or_default());
    if exit != (Exit::Code { code: 0 }) {
        found.oom_killed = log.oom_killed();
    }
    if let Some(step) = request.step {
        found.is_stopping = shutdown::is_requested();
        found.left = left.of_step(step);
        found.notes.extend(left.limitation());
    }
    if found != Aftermath::default() {
        let _ = lane.send(Message::Aftermath { found });
    }
    exit
}

struct RunningCommand {
    leader: i32,
    stdin: Option<Sender<Vec<u8>>>,
    /// The master of the command's terminal.
    terminal: Option<File>,
    pumps: Vec<Arc<OutputPump>>,
    /// The secrets of the command, unmounted when it has ended.
    _secrets: Option<SecretMount>,
}

impl RunningCommand {
    fn start(
        lane: &Arc<Lane>,
        request: &ExecRequest,
        left: &Arc<Leftovers>,
        notes: &mut Vec<String>,
    ) -> Result<Self, RequestFailure> {
        let user = Accounts::read(Path::new("/etc")).user(&request.user)?;
        let secrets = SecretMount::mount(lane.id(), &request.secrets, &user.identity)?;
        let mut command = command(request, &user, secrets.as_ref(), left, notes)?;
        let terminal = match &request.tty {
            Some(size) => Some(attach(&mut command, size, &user.identity).map_err(RequestFailure::at(NO_TERMINAL))?),
            None => None,
        };
        let step = request.step.unwrap_or(0);
        let start = ProcessStart {
            identity: user.identity.clone(),
            has_terminal: terminal.is_some(),
            group: left.admit(step, lane.id()),
        };
        sys::on_start(&mut command, start);
        let mut child = command.spawn().map_err(|error| explain_start(request, &command, &error))?;
        // Closes the agent's copies of the slave: the terminal's end shows only when no process but the command's holds the
        // slave.
        drop(command);
        let leader = i32::try_from(child.id()).unwrap_or_default();
        left.note_session(leader, step);
        let mut running = Self { leader, stdin: None, terminal, pumps: Vec::new(), _secrets: secrets };
        let sink = OutputSink::new(lane, left, request.step);
        if let Some(master) = &running.terminal {
            let input = master.try_clone().map_err(RequestFailure::at(NO_TERMINAL))?;
            let output = master.try_clone().map_err(RequestFailure::at(NO_TERMINAL))?;
            running.stdin = Some(feed(input, lane));
            running.pumps.push(OutputPump::start(&sink, output.into(), true, |bytes| Message::Stdout { bytes }));
        }
        if let Some(pipe) = child.stdin.take() {
            running.stdin = Some(feed(pipe, lane));
        }
        if let Some(pipe) = child.stdout.take() {
            running.pumps.push(OutputPump::start(&sink, pipe.into(), false, |bytes| Message::Stdout { bytes }));
        }
        if let Some(pipe) = child.stderr.take() {
            running.pumps.push(OutputPump::start(&sink, pipe.into(), false, |bytes| Message::Stderr { bytes }));
        }
        watch(child, lane);
        Ok(running)
    }

    fn supervise(&mut self, events: &Receiver<LaneEvent>, timeout: Option<Duration>) -> Exit {
        let mut deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut timed_out = false;
        let status = loop {
            match next(events, deadline) {
                Some(LaneEvent::Exited(status)) => break status,
                Some(LaneEvent::Said(message)) => self.hear(message),
                Some(LaneEvent::Lost) => signal_session(self.leader, sys::SIGKILL),
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
        let ended = Instant::now();
        self.pumps.iter().for_each(|pump| pump.settle(ended));
        if timed_out { Exit::TimedOut {} } else { how(status) }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Data { bytes: HiddenBytes(bytes) } => {
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
}

fn command(
    request: &ExecRequest,
    user: &User,
    secrets: Option<&SecretMount>,
    left: &Leftovers,
    notes: &mut Vec<String>,
) -> Result<Command, RequestFailure> {
    let program =
        request.argv.first().ok_or_else(|| RequestFailure::new(Class::Request {}, "there is nothing to run"))?;
    if !Path::new(&request.dir).is_dir() {
        let text = format!("there is no folder `{}` in the guest", request.dir);
        return Err(RequestFailure::new(Class::NotFound {}, text));
    }
    let stdin = if request.stdin { Stdio::piped() } else { Stdio::null() };
    let mut command = Command::new(program);
    command.args(&request.argv[1..]).current_dir(&request.dir).env_clear();
    if let Some(script) = &request.script {
        command.arg(write_script(Path::new(SCRIPT_FOLDER), script)?);
    }
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    if request.login {
        command.envs(login::environment(user, Path::new("/etc"), request.tty.is_some()));
        command.envs(left.managers.open_session(user, notes));
    } else {
        command.envs(login::bare_environment(user));
    }
    command.envs(request.env.iter().map(|pair| (&pair.name, &pair.value)));
    if let Some(secrets) = secrets {
        command.env("KILN_SECRETS", secrets.folder());
    }
    Ok(command)
}

/// Writes a script that every user may read, and returns its path. A running process keeps the file that had this name
/// before.
fn write_script(folder: &Path, script: &ShellScript) -> Result<PathBuf, RequestFailure> {
    if !is_name(script.name.as_bytes()) {
        return Err(RequestFailure::new(Class::Request {}, format!("`{}` is not the name of a file", script.name)));
    }
    let path = folder.join(&script.name);
    let written = fs::create_dir_all(folder).and_then(|()| {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).open(&path)?;
        file.write_all(script.text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(0o555))
    });
    written.map_err(RequestFailure::at(format!("cannot write `{}`", path.display())))?;
    Ok(path)
}

/// Describes why a program did not start. If the interpreter of a script is missing, the kernel reports that the script is
/// missing.
fn explain_start(request: &ExecRequest, command: &Command, error: &io::Error) -> RequestFailure {
    let program = &request.argv[0];
    let refusal = RequestFailure::io(format!("cannot run `{program}`"), error);
    if refusal.class != (Class::NotFound {}) {
        return refusal;
    }
    let why = match missing_part(program) {
        _ if !program.contains('/') => explain_search(request, command),
        Some(part) => format!("{part} is not in the guest"),
        None => return refusal,
    };
    RequestFailure { text: format!("cannot run `{program}`: {why}"), ..refusal }
}

/// Describes in which folders a program was looked for, and what set that search path.
fn explain_search(request: &ExecRequest, command: &Command) -> String {
    let path = command.get_envs().find_map(|(name, value)| value.filter(|_| name == "PATH"));
    let path = path.unwrap_or_default().to_string_lossy();
    let origin = match login::path_file(Path::new("/etc")) {
        _ if request.env.iter().any(|pair| pair.name == "PATH") => ", which the spec sets".to_owned(),
        Some(file) if request.login => format!(", which {file} sets"),
        _ => String::new(),
    };
    format!("it is in no folder of PATH, `{path}`{origin}")
}

/// Returns the missing file that an existing program needs: the interpreter of a script, or the loader of a program.
fn missing_part(program: &str) -> Option<String> {
    let mut head = Vec::new();
    File::open(program).ok()?.take(HEAD).read_to_end(&mut head).ok()?;
    if head.starts_with(b"\x7fELF") {
        return Some("the dynamic loader that it was linked for".to_owned());
    }
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?.trim_ascii();
    let interpreter = String::from_utf8_lossy(line.split(|byte| matches!(byte, b' ' | b'\t')).next()?).into_owned();
    (!Path::new(&interpreter).exists()).then(|| format!("its interpreter `{interpreter}`"))
}

/// Connects the command's standard streams to a new terminal, and returns the terminal's master.
fn attach(command: &mut Command, size: &TtySize, owner: &UserCredentials) -> io::Result<File> {
    let (master, slave) = terminal::open(size, owner)?;
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    Ok(master)
}

fn next(events: &Receiver<LaneEvent>, deadline: Option<Instant>) -> Option<LaneEvent> {
    let Some(deadline) = deadline else { return Some(events.recv().unwrap_or(LaneEvent::Lost)) };
    match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(event) => Some(event),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => Some(LaneEvent::Lost),
    }
}

fn how(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code { code: u8::try_from(code).unwrap_or(u8::MAX) },
        (None, signal) => Exit::Signal { number: u8::try_from(signal.unwrap_or_default()).unwrap_or(u8::MAX) },
    }
}

fn watch(mut child: Child, lane: &Lane) {
    let inbox = lane.inbox();
    thread::spawn(move || {
        // Waiting for a child of ours fails only if the kernel does not know the child; then it counts as killed.
        let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(i32::from(sys::SIGKILL)));
        let _ = inbox.send(LaneEvent::Exited(status));
    });
}

/// Writes the bytes sent to the returned channel to the command's stdin; bytes for a command that has closed its stdin are
/// lost.
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

/// Sends a signal to every process of the leader's session: a shell with job control puts its children into groups of their
/// own.
fn signal_session(leader: i32, number: u8) {
    sys::send_signal(-leader, number);
    for pid in every_process().filter(|pid| session_of(*pid) == Some(leader)) {
        sys::send_signal(pid, number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_takes_the_place_of_the_one_before_and_stays_in_its_folder() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("scripts");
        let script = |name: &str, text: &str| ShellScript { name: name.into(), text: text.into() };
        let path = write_script(&folder, &script("step-1", "exit 1\n")).unwrap();
        let mut before = File::open(&path).unwrap();
        assert_eq!(write_script(&folder, &script("step-1", "exit 2\n")).unwrap(), path);
        assert_eq!(Command::new("sh").arg("-eu").arg(&path).status().unwrap().code(), Some(2));
        let mut text = String::new();
        before.read_to_string(&mut text).unwrap();
        assert_eq!(text, "exit 1\n", "a shell that still runs reads its own text");
        for name in ["", ".", "..", "a/b", "/etc/passwd", "a/"] {
            assert_eq!(write_script(&folder, &script(name, "")).unwrap_err().class, Class::Request {}, "{name}");
        }
    }
}
