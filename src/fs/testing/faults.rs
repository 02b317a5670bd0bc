//! Injects failures into the write side, and records writes, in tests.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard};

use nix::errno::Errno;

use crate::fs::{Call, Fs};

/// State of the failure injection.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<FaultState>);

#[derive(Debug, Default)]
struct FaultState {
    fate: FaultMode,
    lacks_exchange: bool,
    /// The recorded calls, and the number of fresh names that were returned.
    record: Option<(Vec<CompletedCall>, u64)>,
    /// The call that failed by [`FaultMode::Fail`].
    failed: Option<String>,
}

#[derive(Debug, Default)]
enum FaultMode {
    #[default]
    Live,
    /// Kiln is killed after so many calls.
    Die(usize),
    /// One call fails after so many calls.
    Fail(usize, Errno),
    /// There is no space for anything new.
    Full,
}

/// A successful call, with the names of that time.
#[derive(Debug, Clone)]
pub(crate) enum CompletedCall {
    MakeFolder(PathBuf, u32),
    Create(PathBuf),
    Write(PathBuf, Vec<u8>),
    Mode(PathBuf, u32),
    Sync(PathBuf),
    Link(PathBuf, PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, FaultState> {
        self.0.lock().expect("no call panics")
    }

    /// Simulates a kill at call number `calls`, from 0: from then on every call fails and changes nothing.
    pub(crate) fn die_after(&self, calls: usize) {
        self.state().fate = FaultMode::Die(calls);
    }

    /// Makes call number `calls`, from 0, fail with `errno`, but not the others.
    pub(crate) fn fail_at(&self, calls: usize, errno: Errno) {
        self.state().fate = FaultMode::Fail(calls, errno);
    }

    /// Simulates a full disk from now on.
    pub(crate) fn fill_disk(&self) {
        self.state().fate = FaultMode::Full;
    }

    /// Ends all simulated failures.
    pub(crate) fn heal(&self) {
        self.state().fate = FaultMode::Live;
    }

    /// Returns the call that was made to fail, if there was one.
    pub(crate) fn failed(&self) -> Option<String> {
        self.state().failed.clone()
    }

    /// Simulates a file system without `RENAME_EXCHANGE` from now on.
    pub(crate) fn lack_exchange(&self) {
        self.state().lacks_exchange = true;
    }

    /// Records calls from now on. Fresh names are counted, so that two recordings of the same calls are the same.
    pub(crate) fn record(&self) {
        self.state().record = Some((Vec::new(), 0));
    }

    /// Returns the calls recorded so far.
    pub(crate) fn recorded(&self) -> Vec<CompletedCall> {
        self.state().record.as_ref().map(|(calls, _)| calls.clone()).unwrap_or_default()
    }

    /// Returns the number of the next fresh name, if calls are recorded.
    pub(in crate::fs) fn number(&self) -> Option<u64> {
        let mut state = self.state();
        let (_, number) = state.record.as_mut()?;
        *number += 1;
        Some(*number)
    }

    pub(in crate::fs) fn call<T>(&self, call: Call<'_>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        // Held until the call is recorded: the record has the order in which things happened.
        let mut state = self.state();
        state.admit(call)?;
        let result = act()?;
        if let (Some((record, _)), Some(done)) = (&mut state.record, CompletedCall::of(call)?) {
            record.push(done);
        }
        Ok(result)
    }
}

impl FaultState {
    fn admit(&mut self, call: Call<'_>) -> io::Result<()> {
        match &mut self.fate {
            FaultMode::Die(0) => return Err(io::Error::other("simulated kill")),
            FaultMode::Fail(0, errno) => {
                let errno = *errno;
                self.fate = FaultMode::Live;
                self.failed = Some(format!("{call:?}"));
                return Err(errno.into());
            }
            FaultMode::Die(left) | FaultMode::Fail(left, _) => *left -= 1,
            FaultMode::Full if needs_room(call) => return Err(Errno::ENOSPC.into()),
            FaultMode::Full | FaultMode::Live => {}
        }
        if self.lacks_exchange && matches!(call, Call::Exchange(..)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(())
    }
}

/// Returns whether a call fails on a full disk. Existing entries are found before the file system looks for space.
fn needs_room(call: Call<'_>) -> bool {
    match call {
        Call::Lock(path) | Call::MakeFolder(path, _) | Call::Create(path) | Call::Link(_, path) => !path.exists(),
        Call::Write(_) => true,
        _ => false,
    }
}

impl CompletedCall {
    /// Returns the record of a call; `None` for a lock: its file is empty, and is created again if it is missing.
    fn of(call: Call<'_>) -> io::Result<Option<Self>> {
        Ok(Some(match call {
            Call::Lock(_) => return Ok(None),
            Call::MakeFolder(path, mode) => CompletedCall::MakeFolder(path.to_owned(), mode),
            Call::Create(path) => CompletedCall::Create(path.to_owned()),
            Call::Write(file) => {
                let path = name_of(file)?;
                let content = fs::read(&path)?;
                CompletedCall::Write(path, content)
            }
            Call::Mode(file, mode) => CompletedCall::Mode(name_of(file)?, mode),
            Call::Sync(file) => CompletedCall::Sync(name_of(file)?),
            Call::Link(from, to) => CompletedCall::Link(from.to_owned(), to.to_owned()),
            Call::Rename(from, to) => CompletedCall::Rename(from.to_owned(), to.to_owned()),
            Call::Exchange(a, b) => CompletedCall::Exchange(a.to_owned(), b.to_owned()),
            Call::RemoveFile(path) | Call::RemoveFolder(path) => CompletedCall::Remove(path.to_owned()),
        }))
    }
}

fn name_of(file: &File) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Environment variable by which [`on_a_small_disk`] passes the path of that disk to its child.
const SMALL_DISK: &str = "KILN_TEST_SMALL_DISK";

/// Runs the test of this name in a process of its own with a file system of 1 MiB, and calls `act` in it.
pub(crate) fn on_a_small_disk(test: &str, act: impl FnOnce(&Path)) {
    if let Some(disk) = std::env::var_os(SMALL_DISK) {
        return act(Path::new(&disk));
    }
    let folder = tempfile::tempdir().unwrap();
    let mount = r#"mount -t tmpfs -o size=1m none "$1""#;
    if !unshare(mount, folder.path(), test).is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: a file system of its own for {test} needs unshare(1) and user namespaces");
        return;
    }
    let output = unshare(&format!(r#"{mount}; exec "$0" --exact "$2""#), folder.path(), test).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Runs a shell script with mounts of its own. Its arguments are this program, a folder and the name of a test.
fn unshare(script: &str, folder: &Path, test: &str) -> io::Result<Output> {
    Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-ec", script])
        .args([std::env::current_exe()?.as_os_str(), folder.as_os_str(), test.as_ref()])
        .env(SMALL_DISK, folder)
        .output()
}

impl Fs {
    /// Writes a file as QEMU would: completely, and without a sync.
    pub(crate) fn put(&self, path: &Path, content: &str) -> io::Result<()> {
        let file = self.create(path)?;
        self.call(Call::Write(&file), || io::Write::write_all(&mut &file, content.as_bytes()))
    }
}
