//! Child processes that cannot outlive kiln: in their own process group, killed by the kernel when kiln dies, and given
//! their descriptors explicitly.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// Size of the end of a child's standard error that is kept for error messages, bytes.
const STDERR_TAIL: usize = 8 << 10;

/// Creates a command that runs in a process group of its own, so that the terminal's Ctrl-C reaches kiln alone and kiln
/// stops it in order, and that the kernel kills when kiln dies.
///
/// `PR_SET_PDEATHSIG` is bound to the thread that spawns (prctl(2)): spawn from the main thread, never from a pool.
#[must_use]
pub fn supervised(program: impl AsRef<OsStr>) -> Command {
    with_descriptors(program, Vec::new())
}

/// Creates a [`supervised`] command, with each descriptor given to the child under the stated number.
#[expect(unsafe_code, reason = "pre_exec is the one place where prctl and dup2 act on the child")]
pub fn with_descriptors(program: impl AsRef<OsStr>, descriptors: Vec<(RawFd, OwnedFd)>) -> Command {
    let mut command = Command::new(program);
    command.process_group(0).stdin(Stdio::null()).env_clear().envs(environment()).kill_on_drop(true);
    let parent = nix::unistd::getpid();
    // SAFETY: the hook calls prctl, setrlimit, getppid and dup2 only, all async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(move || prepare_child(parent, &descriptors)) };
    command
}

/// Binds the calling process, a forked child, to its parent, and gives it the descriptors.
#[expect(unsafe_code, reason = "nothing but dup2 gives a descriptor a number")]
fn prepare_child(parent: Pid, descriptors: &[(RawFd, OwnedFd)]) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // The parent may have died between fork and prctl; then nobody would ever send the signal.
    if nix::unistd::getppid() != parent {
        return Err(io::Error::from(nix::errno::Errno::ESRCH));
    }
    for (number, descriptor) in descriptors {
        // SAFETY: the target is a slot of the forked child, owned by nothing there; exec inherits it.
        let placed = unsafe { nix::unistd::dup2_raw(descriptor, *number) }?;
        std::mem::forget(placed);
    }
    Ok(())
}

/// Lets this thread, and those it starts, run only when a processor is idle or nearly so (nice(2); a thread's own on Linux).
/// This cannot be undone.
#[expect(unsafe_code, reason = "nix has no setpriority")]
pub fn step_back() {
    // SAFETY: no pointers. Lowering one's own priority cannot fail.
    let _ = unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, 19) };
}

/// Moves a descriptor away from the low numbers that [`with_descriptors`] assigns.
///
/// # Errors
/// When no descriptor is free.
pub fn raise(descriptor: &OwnedFd) -> io::Result<OwnedFd> {
    const ABOVE_HANDED_OUT: RawFd = 64;
    let raised = nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(ABOVE_HANDED_OUT))?;
    #[expect(unsafe_code, reason = "fcntl answers with a bare number")]
    // SAFETY: F_DUPFD_CLOEXEC has just made this descriptor, and nothing else knows its number.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(raised) })
}

/// Returns the environment of every child: the variables that programs need to be found and to start, and no others of
/// kiln's environment, such as tokens. The language is set because kiln looks into error messages.
pub(crate) fn environment() -> Vec<(&'static str, OsString)> {
    let inherited = ["PATH", "TMPDIR", "LD_LIBRARY_PATH", "QEMU_MODULE_DIR"];
    let kept = inherited.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    kept.chain([("LC_ALL", OsString::from("C"))]).collect()
}

/// Disables core dumps of this process from now on. A limit of 0 would prevent a core file, but not passing the core to a
/// program (core(5)); a limit of 1 prevents both.
pub(crate) fn forbid_core_dumps() {
    let _ = setrlimit(Resource::RLIMIT_CORE, 1, 1);
}

/// Reads a child's standard error to its end, keeping the last few kilobytes.
pub async fn stderr_tail(mut stderr: impl AsyncRead + Unpin) -> String {
    let mut tail = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        tail.extend_from_slice(&buffer[..count]);
        if tail.len() > 2 * STDERR_TAIL {
            tail.drain(..tail.len() - STDERR_TAIL);
        }
    }
    String::from_utf8_lossy(&tail).trim_end().to_owned()
}

/// Formats the end of a process for people: `exit status 1`, `signal 9 (SIGKILL)`.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(number)) => describe_signal(number),
        (None, None) => "an unknown status".to_owned(),
    }
}

/// Quotes an argument for a shell's command line.
pub(crate) fn quote_argument(argument: &str) -> String {
    if !argument.is_empty() && argument.chars().all(|c| c.is_ascii_alphanumeric() || "-_=.,/:@+".contains(c)) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// Quotes a path for a shell's command line.
pub(crate) fn quote_path(path: &Path) -> String {
    quote_argument(&path.display().to_string())
}

/// Formats a signal's number with its name, if it has one.
pub(crate) fn describe_signal(number: i32) -> String {
    match Signal::try_from(number) {
        Ok(signal) => format!("signal {number} ({signal})"),
        Err(_) => format!("signal {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_argument_survives_a_shell() {
        for argument in ["plain", "", "it's", "a b", r#"{"a": "$HOME"}"#] {
            let script = format!("printf %s {}", quote_argument(argument));
            let echoed = std::process::Command::new("sh").args(["-c", &script]).output();
            assert_eq!(String::from_utf8(echoed.unwrap().stdout).unwrap(), argument);
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_descriptor_reaches_the_child_under_its_number() {
        runtime().block_on(async {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            let raised = raise(&OwnedFd::from(theirs)).unwrap();
            let mut command = with_descriptors("sh", vec![(5, raised)]);
            let status = command.args(["-c", "echo through >&5"]).status().await.unwrap();
            assert!(status.success());
            drop(command);
            let mut text = String::new();
            io::Read::read_to_string(&mut &ours, &mut text).unwrap();
            assert_eq!(text, "through\n");
        });
    }

    #[test]
    fn o3_a_child_has_an_environment_of_its_own_and_leaves_no_core() {
        runtime().block_on(async {
            let output = supervised("sh").args(["-c", "env; ulimit -Sc; ulimit -Hc"]).output();
            let output = String::from_utf8(output.await.unwrap().stdout).unwrap();
            assert!(output.ends_with("\n0\n0\n") && output.contains("LC_ALL=C\n"), "{output}");
            let names = output.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
            // A shell sets the last three itself.
            let known = ["PATH", "TMPDIR", "LD_LIBRARY_PATH", "QEMU_MODULE_DIR", "LC_ALL", "PWD", "SHLVL", "_"];
            assert_eq!(names.filter(|name| !known.contains(name)).collect::<Vec<_>>(), [""; 0]);
        });
    }
}
