//! Machines in the background: a second kiln, the supervisor, runs the machine in a session of its own.
//!
//! ```text
//! kiln run --detach ──starts──> kiln run --detach (KILN_SUPERVISOR=1) ──starts──> QEMU
//!        ^   ^                        │
//!        │   └──────── errors ────────┤ standard error, until the machine runs
//!        └──────────── its id ────────┘ standard output, a pipe
//! ```
//! The supervisor holds the locks of the machine and of its image, filters its network and writes its console to a file. QEMU
//! dies with it, as with any other kiln.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::cli::HostSetupError;
use crate::error::{Failure, Kind};

/// Set in the environment of a supervisor.
const SUPERVISOR: &str = "KILN_SUPERVISOR";

/// Returns whether this process is to run the machine.
pub(super) fn is_supervisor() -> bool {
    std::env::var_os(SUPERVISOR).is_some_and(|value| value == "1")
}

/// Starts this command again as a supervisor, waits until the machine runs, and prints its id. Returns the exit code; a
/// supervisor that fails has printed the error.
pub(super) async fn start_supervisor(cancel: CancellationToken) -> Result<u8, Failure> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("kiln").args(std::env::args_os().skip(1)).env(SUPERVISOR, "1");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(HostSetupError::Runtime)?;
    let mut told = String::new();
    if let Some(mut output) = child.stdout.take() {
        tokio::select! {
            read = output.read_to_string(&mut told) => drop(read.map_err(HostSetupError::Runtime)?),
            () = cancel.cancelled() => interrupt(&child),
        }
    }
    let id = told.trim();
    if !id.is_empty() && !cancel.is_cancelled() {
        super::print_id(id).map_err(HostSetupError::Stdout)?;
        return Ok(0);
    }
    let status = child.wait().await.map_err(HostSetupError::Runtime)?;
    let interrupted = cancel.is_cancelled().then(|| Kind::Interrupted.exit_code());
    let failed = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0);
    Ok(interrupted.or(failed).unwrap_or(Kind::Host.exit_code()))
}

fn interrupt(child: &tokio::process::Child) {
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // Twice: a machine whose id nobody has seen is not asked to power off.
        let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
    }
}

/// Leaves the session of the terminal: its end and its Ctrl-C do not reach this process any more.
pub(super) fn leave_session() -> Result<(), HostSetupError> {
    setsid().map(drop).map_err(|errno| HostSetupError::Runtime(errno.into()))
}

/// Tells the waiting kiln that the machine runs, and lets go of its terminal and its folder.
pub(super) fn announce(id: &str) -> Result<(), HostSetupError> {
    // A kiln that has been killed has left nobody who knows the machine.
    super::print_id(id).map_err(HostSetupError::Stdout)?;
    let_go().map_err(HostSetupError::Runtime)
}

fn let_go() -> io::Result<()> {
    std::env::set_current_dir("/")?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(nothing.as_fd())?;
    dup2_stdout(nothing.as_fd())?;
    dup2_stderr(nothing.as_fd())?;
    Ok(())
}
