//! Runs commands in the guest, and streams their output.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::time::timeout;

use crate::event::Channel;
use crate::process::describe_signal;
use crate::size::ByteSize;
use crate::wire::code::Code;
use crate::wire::message::{Pair, ShellScript};
use crate::wire::network::ProxyAccess;
use crate::wire::{self, Aftermath, ExecRequest, HiddenBytes, MAX_DATA, MAX_EXEC, Message, Secret};

use super::GuestError;
use super::connection::{Session, unexpected};
use super::error::printable;

/// The shell for scripts, found by its path whatever `PATH` is in the guest.
pub(crate) const SHELL: &str = "/bin/sh";

/// Time that a command may run beyond its time-out: the agent first terminates, then kills, then drains the pipes.
const GRACE: Duration = Duration::from_secs(60);

/// A command for the guest.
#[derive(Clone, PartialEq, Eq)]
pub struct Exec {
    /// Program and arguments, run without a shell; never empty.
    pub argv: Vec<String>,
    /// A script, whose path is one more argument.
    pub script: Option<ShellScript>,
    /// Environment variables in addition to those of the guest.
    pub env: BTreeMap<String, String>,
    /// Working directory, absolute.
    pub dir: String,
    /// User name or number; the command runs with the user's groups in the guest.
    pub user: String,
    /// Time after which all its processes are killed.
    pub timeout: Option<Duration>,
    /// Files below `$KILN_SECRETS`, by name.
    pub secrets: Vec<(String, Vec<u8>)>,
    /// Content of its stdin; `/dev/null` if absent.
    pub stdin: Option<Vec<u8>>,
    /// Number of the step that runs it, from 1; `None` for other commands.
    pub step: Option<u32>,
    /// Whether it gets the environment of a login of its user; kiln's own commands have a bare environment.
    pub login: bool,
    /// What it needs to use the locked network; `None` for commands without it.
    pub network: Option<ProxyAccess>,
}

/// Shows names only, since values may be secret.
impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec").field("argv", &self.argv).field("user", &self.user).finish_non_exhaustive()
    }
}

impl Exec {
    /// Creates a command that runs as root in `/`, without a time-out.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            script: None,
            env: BTreeMap::new(),
            dir: "/".into(),
            user: "root".into(),
            timeout: None,
            secrets: Vec::new(),
            stdin: None,
            step: None,
            login: false,
            network: None,
        }
    }

    /// Creates a command for a shell that reads this script. `name` is the shell's name for the script in its messages.
    #[must_use]
    pub fn shell(name: &str, text: &str) -> Self {
        let script = ShellScript { name: name.to_owned(), text: text.to_owned() };
        Self { script: Some(script), ..Self::new([SHELL, "-eu"]) }
    }

    pub(super) fn request(&self) -> ExecRequest {
        let env = self.env.iter().map(|(name, value)| Pair { name: name.clone(), value: value.clone() });
        let secrets = self.secrets.iter().cloned().map(|(name, value)| Secret { name, value: HiddenBytes(value) });
        ExecRequest {
            argv: self.argv.clone(),
            script: self.script.clone(),
            env: env.collect(),
            dir: self.dir.clone(),
            user: self.user.clone(),
            timeout: self.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            stdin: self.stdin.is_some(),
            tty: None,
            secrets: secrets.collect(),
            step: self.step,
            login: self.login,
            network: self.network.clone(),
        }
    }
}

/// End of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
    /// It took too long and was killed.
    TimedOut,
    /// It could not be started, for this reason.
    NotStarted(String),
}

impl Exit {
    /// Returns whether the command exited with code 0.
    #[must_use]
    pub fn is_success(&self) -> bool {
        *self == Self::Code(0)
    }
}

/// Reads well behind "the step ": `exited with code 2`.
impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(number) => write!(f, "was killed by {}", describe_signal((*number).into())),
            Self::TimedOut => write!(f, "took too long and was killed"),
            Self::NotStarted(why) => write!(f, "could not start: {why}"),
        }
    }
}

impl Session {
    /// Runs a command to its end. `output` is called with its output as it arrives, at most 64 KiB at once; the command may
    /// have to wait meanwhile.
    ///
    /// # Errors
    /// When the connection fails. A command that fails is an [`Exit`].
    pub async fn exec(&mut self, exec: &Exec, output: &mut dyn FnMut(Channel, &[u8])) -> Result<Exit, GuestError> {
        self.start(&exec.request()).await?;
        self.aftermath = Aftermath::default();
        let finished = self.follow(exec.stdin.as_deref(), output);
        match exec.timeout.map(|limit| (limit, limit.saturating_add(GRACE))) {
            Some((limit, late)) => timeout(late, finished).await.unwrap_or(Err(GuestError::Overdue(limit))),
            None => finished.await,
        }
    }

    /// Sends a command, in several parts if necessary.
    pub(super) async fn start(&mut self, request: &ExecRequest) -> Result<(), GuestError> {
        let mut encoded = Vec::new();
        request.put(&mut encoded);
        if encoded.len() > MAX_EXEC {
            let bytes = ByteSize(encoded.len() as u64);
            let limit = ByteSize(MAX_EXEC as u64);
            return Err(GuestError::TooLarge { bytes, limit });
        }
        self.begin();
        let parts = encoded.len().div_ceil(MAX_DATA);
        for (index, part) in encoded.chunks(MAX_DATA).enumerate() {
            self.queue(&Message::Exec { part: HiddenBytes(part.to_vec()), last: index + 1 == parts });
            self.flush().await?;
        }
        Ok(())
    }

    async fn follow(
        &mut self,
        mut stdin: Option<&[u8]>,
        output: &mut dyn FnMut(Channel, &[u8]),
    ) -> Result<Exit, GuestError> {
        loop {
            self.feed(&mut stdin).await?;
            match told(self.next().await?)? {
                ExecEvent::Output(channel, bytes) => {
                    output(channel, &bytes);
                    self.used(bytes.len());
                }
                ExecEvent::Credit => {}
                ExecEvent::Noticed(aftermath) => self.aftermath = aftermath,
                ExecEvent::Ended(exit) => return Ok(exit),
            }
        }
    }

    /// Returns the agent's observations about the last command, besides its output and its end.
    pub fn take_aftermath(&mut self) -> Aftermath {
        std::mem::take(&mut self.aftermath)
    }

    /// Ends the processes that commands have left behind, and returns them in `left`.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn end_processes(&mut self) -> Result<Aftermath, GuestError> {
        self.begin_with(&Message::EndProcesses {});
        let mut ended = Aftermath::default();
        loop {
            match self.next().await? {
                Message::Aftermath { found } => ended = printable_aftermath(found),
                Message::Done { .. } => return Ok(ended),
                other => return Err(unexpected(other)),
            }
        }
    }

    /// Sends as much of stdin as the credit allows, and its end.
    async fn feed(&mut self, stdin: &mut Option<&[u8]>) -> Result<(), GuestError> {
        let Some(rest) = stdin else { return Ok(()) };
        while !rest.is_empty() && self.credit > 0 {
            let (now, later) = rest.split_at(rest.len().min(MAX_DATA).min(self.credit));
            self.queue(&Message::Data { bytes: HiddenBytes(now.to_vec()) });
            *rest = later;
            self.flush().await?;
        }
        if rest.is_empty() {
            *stdin = None;
            self.queue(&Message::Eof {});
        }
        Ok(())
    }
}

/// Meaning of a message about a running command.
pub(super) enum ExecEvent {
    Output(Channel, Vec<u8>),
    Credit,
    Noticed(Aftermath),
    Ended(Exit),
}

pub(super) fn told(message: Message) -> Result<ExecEvent, GuestError> {
    Ok(match message {
        Message::Stdout { bytes } => ExecEvent::Output(Channel::Stdout, bytes),
        Message::Stderr { bytes } => ExecEvent::Output(Channel::Stderr, bytes),
        Message::Credit { .. } => ExecEvent::Credit,
        Message::Aftermath { found } => ExecEvent::Noticed(printable_aftermath(found)),
        Message::Exited { exit } => ExecEvent::Ended(ended(exit)),
        other => return Err(unexpected(other)),
    })
}

/// Returns the observations with names and command lines that a terminal can show.
fn printable_aftermath(mut found: Aftermath) -> Aftermath {
    for text in found.oom_killed.iter_mut().chain(&mut found.notes) {
        *text = printable(text);
    }
    for process in &mut found.left {
        process.command = printable(&process.command);
    }
    found
}

fn ended(exit: wire::Exit) -> Exit {
    match exit {
        wire::Exit::Code { code } => Exit::Code(code),
        wire::Exit::Signal { number } => Exit::Signal(number),
        wire::Exit::TimedOut {} => Exit::TimedOut,
        wire::Exit::NotStarted { text } => Exit::NotStarted(printable(&text)),
    }
}
