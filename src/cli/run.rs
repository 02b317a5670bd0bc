//! `kiln run`: boots a throw-away clone of an image, on this terminal or detached from it.

use std::io::{IsTerminal, Write, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use tokio::task::spawn_blocking;

use crate::context::in_stage;
use crate::deadline::DeadlineError;
use crate::error::Failure;
use crate::event::{Events, NoticeLevel, Stage};
use crate::guest::extra_disk::{DiskRequest, check_disks};
use crate::guest::run::{self, StartedClone, bootable};
use crate::guest::shell::ShellError;
use crate::guest::ssh_login::{self, SSH_PORT, SshAccess, is_disconnected};
use crate::machine::host_ports::choose_ports;
use crate::machine::{MachineExit, RunningMachine};
use crate::machine_registry::{MachineFolder, MachineMode, MachineRecord};
use crate::plan::machine::PrivateNetworkAccess;
use crate::plan::port_forward::{DEFAULT_ADDRESS, PortForward, PortProtocol, PortRequest};
use crate::plan::scaled;
use crate::process::quote_argument;
use crate::resolve::agent_support;
use crate::size::ByteSize;
use crate::store::Artifact;
use crate::user_data::UserData;

use super::CommandContext;
use super::terminal_modes::{CursorMargins, TerminalLease};

mod detach;
mod login;

use login::{LoginFacts, default_user, describe_login, public_keys};

/// Value of `--ssh` without a port.
const FREE_PORT: &str = "free";
/// How long a guest has until its SSH server answers, before that is scaled for the accelerator.
const SSH_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a guest with disks that are kept has to power off, when its user has logged out.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(120);
/// How long the end of a guest may come after that of a connection to it.
const END_AFTER_CONNECTION: Duration = Duration::from_secs(3);
/// Number of console lines in an error.
const CONSOLE_LINES: usize = 20;

/// Arguments of `kiln run`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln run web -p 8080:80\n  kiln run web --ssh\n  \
        kiln run web -p 80 --ssh --detach; kiln ps; kiln stop web-1\n\n\
        With its console on this terminal, Ctrl-A X ends the machine and Ctrl-A H lists the other keys. Nothing of \
        the clone is kept, except what it writes to the files of --disk.")]
pub struct RunArgs {
    /// Image: `name`, `name@version` or `name@tag`
    pub image: String,
    /// Forward a port of this host to one of the guest: `HOST:GUEST`, `ADDRESS:HOST:GUEST`, or `GUEST` for a free port; with
    /// `/udp` for UDP; may be repeated [default address: 127.0.0.1]
    #[arg(short = 'p', long = "port", value_name = "HOST:GUEST")]
    pub ports: Vec<PortRequest>,
    /// Forward a free port to the guest's SSH server, and log in there when it answers, if this is a terminal; with a port,
    /// only forward that one
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = FREE_PORT, value_parser = ssh_port)]
    pub ssh: Option<SshPort>,
    /// Give cloud-init this file as user-data: a cloud-config, a script or a MIME message
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,
    /// Number of virtual CPUs [default: that of the build]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub cpus: Option<u32>,
    /// Guest memory
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    pub memory: ByteSize,
    /// Also attach this disk, which the guest writes to: a .qcow2, .raw or .img file, or `FILE,format=raw`; may be repeated
    #[arg(long = "disk", value_name = "FILE")]
    pub disks: Vec<DiskRequest>,
    /// Run in the background and print the machine's id
    #[arg(short, long)]
    pub detach: bool,
    /// Allow the guest to reach this host and private networks, in addition to public addresses
    #[arg(long)]
    pub allow_private_network: bool,
}

/// The port of this host that leads to the guest's SSH server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SshPort {
    /// Any that is free.
    Free,
    /// This one.
    Fixed(u16),
}

impl SshPort {
    /// Returns the port that the user has chosen.
    fn fixed(self) -> Option<u16> {
        match self {
            Self::Free => None,
            Self::Fixed(port) => Some(port),
        }
    }
}

fn ssh_port(text: &str) -> Result<SshPort, String> {
    if text == FREE_PORT {
        return Ok(SshPort::Free);
    }
    let port = text.parse().ok().filter(|port| *port != 0).map(SshPort::Fixed);
    port.ok_or_else(|| {
        "a port is a number from 1 to 65535; put the image before --ssh, as in `kiln run web --ssh`".into()
    })
}

/// Where the machine runs, and what its user sees of it.
#[derive(Debug, PartialEq, Eq)]
enum RunMode {
    /// Its console is on this terminal.
    Console,
    /// This user is logged in over SSH on this terminal.
    Ssh(&'static str),
    /// In the background.
    Detached,
}

/// Boots the clone and waits until it has ended, or leaves it to a process in the background. Returns the exit code.
pub(super) async fn run(args: RunArgs, context: CommandContext<'_>) -> Result<u8, Failure> {
    if args.detach {
        if !detach::is_supervisor() {
            return detach::start_supervisor(context.cancel).await;
        }
        detach::leave_session()?;
    }
    let events = context.events();
    let cache = context.folders.cache()?;
    let store = context.folders.store()?;
    // Held until the end, so that the version is not removed while its clone runs.
    let artifact = store.artifact(&args.image.parse()?)?;
    let disks = check_disks(&args.disks, store.path())?;
    let given = args.user_data.as_deref().map(UserData::read).transpose()?;
    let forwards = choose_ports(&port_requests(&args))?;
    let folder = MachineFolder::create(&cache, artifact.id().name())?;
    let mut keys = public_keys();
    let access = ssh_access(&args, &forwards, &artifact, &folder, &mut keys).await?;
    let mode = mode(&args, access.as_ref());
    tell_about_login(&args, access.as_ref(), !keys.is_empty(), &artifact, &events).await;
    let private_network =
        if args.allow_private_network { PrivateNetworkAccess::All } else { PrivateNetworkAccess::Listed(Vec::new()) };
    let options = run::CloneOptions {
        cpus: args.cpus,
        memory: args.memory,
        forwards: forwards.clone(),
        disks,
        ssh_keys: keys,
        user_data: given,
        private_network,
    };
    let (clone, accel_reason) = run::prepare(&artifact, &options, folder).await?;
    if let Some(reason) = accel_reason {
        events.notice(NoticeLevel::Info, format!("software emulation (tcg): {reason}"));
    }
    tell_about_ports(&args, &forwards, &events);
    let record = describe_machine(&artifact, &forwards, access.as_ref(), &mode);
    clone.folder().write(&record)?;
    match (mode, access) {
        (RunMode::Detached, _) => {
            let started = clone.start(&events).await?;
            serve_detached(started, record, &events, context).await
        }
        (RunMode::Ssh(user), Some(access)) => {
            let patience = scaled(SSH_TIMEOUT, clone.accelerator());
            let started = clone.start(&events).await?;
            log_in(started, user, &access, patience, &events, context).await
        }
        _ => {
            let text = "Ctrl-A X ends the machine, Ctrl-A H lists the other keys; nothing is kept";
            events.notice(NoticeLevel::Info, text);
            // QEMU has the terminal until it exits, and what it writes there is not visible to kiln.
            let lease = TerminalLease::take(CursorMargins::MayBeSet).map_err(ShellError::Terminal)?;
            clone.run(&events, context.cancel, lease).await.map(|()| 0)
        }
    }
}

/// Returns the ports that the user asks for, that of SSH last.
fn port_requests(args: &RunArgs) -> Vec<PortRequest> {
    let ssh = args.ssh.map(|port| PortRequest {
        protocol: PortProtocol::Tcp,
        address: DEFAULT_ADDRESS,
        host: port.fixed(),
        guest: SSH_PORT,
    });
    args.ports.iter().copied().chain(ssh).collect()
}

/// Returns whether a port is forwarded for `--ssh`.
fn is_ssh(args: &RunArgs, forward: &PortForward) -> bool {
    let is_its_port = |port: SshPort| port.fixed().is_none_or(|port| port == forward.host);
    args.ssh.is_some_and(is_its_port) && (forward.protocol, forward.guest) == (PortProtocol::Tcp, SSH_PORT)
}

/// Returns the way to log in over SSH, if the user asks for one. A key is made for the clone, and added to `keys`; the user's
/// own may have passphrases, or be elsewhere.
async fn ssh_access(
    args: &RunArgs,
    forwards: &[PortForward],
    artifact: &Artifact,
    folder: &MachineFolder,
    keys: &mut Vec<String>,
) -> Result<Option<SshAccess>, Failure> {
    let Some(forward) = forwards.iter().find(|forward| is_ssh(args, forward)) else { return Ok(None) };
    let made = match ssh_login::make_key(folder.path(), folder.id()).await {
        Ok((path, public)) => {
            keys.push(public);
            Some(path)
        }
        // The user may log in with a key of his own.
        Err(_) if !keys.is_empty() => None,
        Err(error) => return Err(error.into()),
    };
    let user = artifact.manifest().os.as_ref().and_then(default_user);
    let known_hosts = ssh_login::known_hosts(folder.path());
    Ok(Some(SshAccess { port: forward.host, user, key: made, known_hosts }))
}

/// Decides what the user sees of the machine.
fn mode(args: &RunArgs, access: Option<&SshAccess>) -> RunMode {
    let is_terminal = stdin().is_terminal() && stdout().is_terminal();
    match (args.ssh, access.and_then(|access| access.user)) {
        _ if args.detach => RunMode::Detached,
        (Some(SshPort::Free), Some(user)) if is_terminal => RunMode::Ssh(user),
        _ => RunMode::Console,
    }
}

/// Emits notices about who can log in.
async fn tell_about_login(
    args: &RunArgs,
    access: Option<&SshAccess>,
    has_keys: bool,
    artifact: &Artifact,
    events: &Events,
) {
    let image = bootable(artifact).into_iter().next();
    let obstacle = match image {
        Some(image) => {
            let looked = spawn_blocking(move || agent_support::find_obstacle(&image.path, image.format));
            looked.await.unwrap_or_default()
        }
        None => None,
    };
    let user = artifact.manifest().os.as_ref().and_then(default_user);
    let command = access.map(|access| quote_command(&access.command()));
    let facts = LoginFacts { command, has_keys, user, obstacle, image: &args.image };
    for (level, sentence) in describe_login(&facts) {
        events.notice(level, sentence);
    }
}

/// Emits a notice about each port that the user has asked for, also for those that kiln has chosen.
fn tell_about_ports(args: &RunArgs, forwards: &[PortForward], events: &Events) {
    for forward in forwards.iter().filter(|forward| !is_ssh(args, forward)) {
        let PortForward { address, host, guest, protocol } = forward;
        let name = protocol.name();
        events.notice(NoticeLevel::Info, format!("{address}:{host} leads to port {guest}/{name} of the guest"));
    }
}

fn quote_command(command: &[String]) -> String {
    command.iter().map(|argument| quote_argument(argument)).collect::<Vec<_>>().join(" ")
}

fn describe_machine(
    artifact: &Artifact,
    forwards: &[PortForward],
    access: Option<&SshAccess>,
    mode: &RunMode,
) -> MachineRecord {
    MachineRecord {
        image: artifact.id().to_string(),
        image_folder: artifact.folder().to_owned(),
        ports: forwards.iter().map(ToString::to_string).collect(),
        ssh: access.map(SshAccess::command),
        started: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        pid: nix::unistd::getpid().as_raw(),
        mode: if *mode == RunMode::Detached { MachineMode::Detached } else { MachineMode::Foreground },
        stalled: None,
    }
}

/// Announces a detached machine to the user, and waits for its end.
async fn serve_detached(
    started: StartedClone,
    record: MachineRecord,
    events: &Events,
    context: CommandContext<'_>,
) -> Result<u8, Failure> {
    let id = started.folder().id();
    events.notice(NoticeLevel::Info, format!("`kiln logs -f {id}` shows its console, `kiln stop {id}` ends it"));
    detach::announce(id)?;
    let note_stall = |folder: &MachineFolder, reason: String| {
        // Without the record, `kiln ps` shows it as running, which it is.
        let _ = folder.write(&MachineRecord { stalled: Some(reason), ..record });
    };
    started.serve(context.cancel, note_stall).await.map(|_| 0)
}

/// Waits for the guest's SSH server, logs in on this terminal, and ends the machine after that. Returns the client's exit
/// code.
async fn log_in(
    started: StartedClone,
    user: &'static str,
    access: &SshAccess,
    patience: Duration,
    events: &Events,
    context: CommandContext<'_>,
) -> Result<u8, Failure> {
    let session = async {
        let machine = started.machine();
        let console = || machine.console().tail(CONSOLE_LINES);
        let waited = async {
            tokio::select! {
                biased;
                () = context.cancel.cancelled() => Err(DeadlineError::Interrupted.into()),
                fate = machine.trouble() => Err(fate.into()),
                waited = access.wait(user, patience, console) => waited.map_err(Failure::from),
            }
        };
        in_stage(events, Stage::Boot, waited).await?;
        let lease = TerminalLease::take(CursorMargins::MayBeSet).map_err(ShellError::Terminal)?;
        let machine_end = async {
            let fate = machine.trouble().await;
            // The connection breaks with the machine, and its client says so.
            tokio::time::sleep(END_AFTER_CONNECTION).await;
            fate
        };
        let end = tokio::select! {
            status = access.log_in() => status.map(SessionEnd::Client)?,
            fate = machine_end => SessionEnd::Machine(fate),
            () = context.cancel.cancelled() => SessionEnd::Interrupted,
        };
        drop(lease);
        exit_code(end, machine).await
    };
    let left = session.await;
    started.end(POWER_OFF_TIMEOUT).await;
    left
}

/// The end of a session over SSH.
enum SessionEnd {
    /// The client has ended.
    Client(ExitStatus),
    /// The machine has ended, and the client has not.
    Machine(MachineExit),
    /// The user has interrupted kiln.
    Interrupted,
}

/// Returns the exit code after a session. `poweroff` is another way to leave.
async fn exit_code(end: SessionEnd, machine: &RunningMachine) -> Result<u8, Failure> {
    let fate = match end {
        SessionEnd::Interrupted => return Err(DeadlineError::Interrupted.into()),
        SessionEnd::Machine(fate) => fate,
        SessionEnd::Client(status) => {
            let fate = if is_disconnected(status) { machine.fate_within(END_AFTER_CONNECTION).await } else { None };
            let Some(fate) = fate else { return Ok(client_code(status)) };
            fate
        }
    };
    if fate == MachineExit::PoweredOff { Ok(0) } else { Err(fate.into()) }
}

fn client_code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Writes a line with a machine's id.
fn print_id(id: &str) -> std::io::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{id}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: RunArgs,
    }

    fn parse(line: &str) -> Result<RunArgs, String> {
        let words = std::iter::once("run").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn ssh_takes_a_port_or_none() {
        assert_eq!(parse("web").unwrap().ssh, None);
        assert_eq!(parse("web --ssh").unwrap().ssh, Some(SshPort::Free));
        assert_eq!(parse("web --ssh 2222").unwrap().ssh, Some(SshPort::Fixed(2222)));
        assert_eq!(parse("--ssh=2222 web").unwrap().ssh, Some(SshPort::Fixed(2222)));
        assert!(parse("--ssh web").unwrap_err().contains("put the image before --ssh"));
        assert!(parse("web --ssh 0").is_err());
    }

    #[test]
    fn ports_and_disks_are_checked_before_anything_starts() {
        let args = parse("web -p 8080:80 -p 53/udp --ssh --disk a.qcow2 --cpus 4").unwrap();
        let requests = port_requests(&args);
        assert_eq!(requests.iter().map(|request| request.guest).collect::<Vec<_>>(), [80, 53, 22]);
        assert_eq!(requests[2].host, None);
        assert!(parse("web -p http").unwrap_err().contains("HOST:GUEST"));
        assert!(parse("web --disk a").unwrap_err().contains("state it"));
        assert!(parse("web --cpus 0").is_err());
    }

    #[test]
    fn a_machine_is_detached_or_on_this_terminal() {
        let access = |user| SshAccess { port: 2222, user, key: None, known_hosts: "known_hosts".into() };
        assert_eq!(mode(&parse("web --ssh -d").unwrap(), Some(&access(Some("debian")))), RunMode::Detached);
        assert_eq!(mode(&parse("web --ssh 2222").unwrap(), Some(&access(Some("debian")))), RunMode::Console);
        assert_eq!(mode(&parse("web --ssh").unwrap(), Some(&access(None))), RunMode::Console, "nobody is known");
        assert_eq!(mode(&parse("web").unwrap(), None), RunMode::Console);
    }
}
