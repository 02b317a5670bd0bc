//! The machines that `kiln run` has started: a folder each, with their disk, their console and their record.
//!
//! ```text
//! CACHE/machines/web-1/               0700; the flock of its kiln says that the machine runs
//! CACHE/machines/web-1/machine.json   its record
//! CACHE/machines/web-1/console.log    its serial console, unless that is on a terminal
//! ```
//! QEMU cannot outlive the kiln that has started it, and the kernel releases the lock with that kiln, however it dies: a
//! folder that nobody has locked is of a dead machine, and is removed by the next command that looks.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Fault, Kind};
use crate::fs::{FileLock, OnConflict, create_beside, publish, read_up_to};
use crate::workdir::{self, Workdir};

/// Name of the folder in the cache.
pub const MACHINES: &str = "machines";
/// Name of the record in a machine's folder.
const RECORD: &str = "machine.json";
/// Name of the log of a machine's console in its folder.
pub const CONSOLE: &str = "console.log";
/// Limit of a record's size, bytes.
const LONGEST_RECORD: u64 = 1 << 20;
/// How often the end of a machine is looked for. The end of another process's child is no event for anybody else.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the kernel may take to end a killed process.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a machine has this terminal or runs by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineMode {
    /// It ends with the terminal that it was started on.
    Foreground,
    /// It runs until it is stopped or powers itself off.
    Detached,
}

impl MachineMode {
    /// Returns the name that `kiln ps` shows.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Foreground => "foreground",
            Self::Detached => "detached",
        }
    }
}

/// The record of a running machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// The image, as `name@version`.
    pub image: String,
    /// Path of the image's version in its store.
    pub image_folder: PathBuf,
    /// The ports of this host that lead into the guest, as [`crate::plan::port_forward::PortForward`] formats them.
    pub ports: Vec<String>,
    /// The command that logs in over SSH, if a port leads to the guest's SSH server.
    pub ssh: Option<Vec<String>>,
    /// When it was started, as RFC 3339 has it.
    pub started: String,
    /// Process id of the kiln that runs it.
    pub pid: i32,
    /// Whether it has a terminal.
    pub mode: MachineMode,
    /// The reason why it does not go on, such as a panic; `None` for a machine that runs.
    pub stalled: Option<String>,
}

/// A machine that runs.
#[derive(Debug, Clone)]
pub struct ListedMachine {
    /// The id, such as `web-1`.
    pub id: String,
    /// Path of its folder.
    pub folder: PathBuf,
    /// Its record.
    pub record: MachineRecord,
}

/// The result of stopping a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopOutcome {
    /// It ended in time.
    Ended,
    /// It was killed, as the user has asked for.
    Killed,
    /// It did not end within this time, and was killed.
    KilledAfter(Duration),
}

/// An error of the registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The failed operation.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// No machine with this id runs.
    #[error("no machine `{id}` is running")]
    Unknown {
        /// The requested id.
        id: String,
        /// The ids of the machines that run.
        running: Vec<String>,
    },
    /// A machine cannot be signalled.
    #[error("cannot stop {id}, process {pid}")]
    Signal {
        /// The machine.
        id: String,
        /// The process.
        pid: i32,
        /// The underlying error.
        #[source]
        source: Errno,
    },
    /// A killed machine still runs.
    #[error("{id} was killed, and process {pid} is still there")]
    Unkillable {
        /// The machine.
        id: String,
        /// The process.
        pid: i32,
    },
}

impl RegistryError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

impl Fault for RegistryError {
    fn kind(&self) -> Kind {
        match self {
            Self::Unknown { .. } => Kind::Usage,
            _ => Kind::Host,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Unknown { running, .. } if running.is_empty() => vec!["no machine of this cache runs".into()],
            Self::Unknown { running, .. } => vec![format!("`kiln ps` lists those that run: {}", running.join(", "))],
            _ => Vec::new(),
        }
    }
}

/// The folder of a machine that this process runs. Dropping it removes the folder.
#[derive(Debug)]
pub struct MachineFolder {
    id: String,
    work: Workdir,
}

impl MachineFolder {
    /// Creates the folder of a new machine of an image with this name, and locks it.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn create(cache: &Path, name: &str) -> Result<Self, RegistryError> {
        let parent = cache.join(MACHINES);
        let created = Workdir::create_numbered(&parent, name);
        let (work, id) = created.map_err(RegistryError::io("create a folder for the machine in", &parent))?;
        Ok(Self { id, work })
    }

    /// Returns the id of the machine.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.work.path()
    }

    /// Returns the path of a file in the folder.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.work.join(name)
    }

    /// Writes the record, in one step. From then on the machine is listed.
    ///
    /// # Errors
    /// When the record cannot be written.
    ///
    /// # Panics
    /// Never: a record is plain data.
    pub fn write(&self, record: &MachineRecord) -> Result<(), RegistryError> {
        let path = self.join(RECORD);
        let json = serde_json::to_vec_pretty(record).expect("a record is plain data");
        let written = create_beside(&path).and_then(|mut file| {
            file.write_all(&json)?;
            publish(file, &path, 0o600, OnConflict::Replace)
        });
        written.map_err(RegistryError::io("write", &path))
    }
}

/// Returns the machines that run, by their ids, after removing the folders of dead ones. One that is still being prepared
/// has no record yet and is left out.
///
/// # Errors
/// When the folder of machines cannot be read.
pub fn list(cache: &Path) -> Result<Vec<ListedMachine>, RegistryError> {
    let parent = cache.join(MACHINES);
    if !parent.is_dir() {
        return Ok(Vec::new());
    }
    workdir::sweep_numbered(&parent).map_err(RegistryError::io("remove dead machines from", &parent))?;
    let entries = fs::read_dir(&parent).map_err(RegistryError::io("read", &parent))?;
    let folders = entries.filter_map(Result::ok).map(|entry| entry.path());
    let mut machines: Vec<_> = folders.filter_map(|folder| read(&folder)).collect();
    machines.sort_by(|one, other| sort_key(&one.id).cmp(&sort_key(&other.id)));
    Ok(machines)
}

/// Returns the running machine with this id.
///
/// # Errors
/// When there is none, or the folder of machines cannot be read.
pub fn find(cache: &Path, id: &str) -> Result<ListedMachine, RegistryError> {
    let mut machines = list(cache)?;
    if let Some(at) = machines.iter().position(|machine| machine.id == id) {
        return Ok(machines.swap_remove(at));
    }
    let running = machines.into_iter().map(|machine| machine.id).collect();
    Err(RegistryError::Unknown { id: id.to_owned(), running })
}

/// Returns the ids of the machines that run from the version in this folder of a store.
#[must_use]
pub fn running_from(cache: &Path, image_folder: &Path) -> Vec<String> {
    let machines = list(cache).unwrap_or_default();
    machines.into_iter().filter(|machine| machine.record.image_folder == image_folder).map(|one| one.id).collect()
}

/// Reads a machine; `None` for one without a record, such as one that has just ended.
fn read(folder: &Path) -> Option<ListedMachine> {
    let id = folder.file_name()?.to_str()?.to_owned();
    let bytes = read_up_to(&folder.join(RECORD), LONGEST_RECORD).ok()?;
    let record = serde_json::from_slice(&bytes).ok()?;
    Some(ListedMachine { id, folder: folder.to_owned(), record })
}

/// Orders `web-2` before `web-10`.
fn sort_key(id: &str) -> (&str, u64) {
    let (name, number) = id.rsplit_once('-').unwrap_or((id, ""));
    (name, number.parse().unwrap_or(0))
}

impl ListedMachine {
    /// Returns whether the machine still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        // Shared, so that two commands that look at once do not take each other for the machine.
        let locked = File::open(&self.folder).and_then(FileLock::try_shared);
        locked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Asks the machine to power off, and kills it if it does not within `patience`; kills it at once for `None`. Blocks the
    /// calling thread.
    ///
    /// # Errors
    /// When the machine cannot be signalled, or outlives being killed.
    pub fn stop(&self, patience: Option<Duration>) -> Result<StopOutcome, RegistryError> {
        if let Some(patience) = patience {
            self.signal(Signal::SIGTERM)?;
            if self.ends_within(patience) {
                return Ok(StopOutcome::Ended);
            }
        }
        // The machine dies with the kiln that runs it.
        self.signal(Signal::SIGKILL)?;
        if !self.ends_within(KILL_TIMEOUT) {
            return Err(RegistryError::Unkillable { id: self.id.clone(), pid: self.record.pid });
        }
        if let Some(parent) = self.folder.parent() {
            // What cannot be removed now, the next command removes.
            let _ = workdir::sweep_numbered(parent);
        }
        Ok(patience.map_or(StopOutcome::Killed, StopOutcome::KilledAfter))
    }

    /// Sends a signal, unless the machine has ended meanwhile.
    fn signal(&self, signal: Signal) -> Result<(), RegistryError> {
        if !self.is_running() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.record.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(source) => Err(RegistryError::Signal { id: self.id.clone(), pid: self.record.pid, source }),
        }
    }

    fn ends_within(&self, patience: Duration) -> bool {
        let began = Instant::now();
        while self.is_running() {
            if began.elapsed() > patience {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pid: i32) -> MachineRecord {
        MachineRecord {
            image: "web@1".into(),
            image_folder: "/store/web/1".into(),
            ports: vec!["127.0.0.1:8080->80/tcp".into()],
            ssh: None,
            started: "2026-01-02T03:04:05Z".into(),
            pid,
            mode: MachineMode::Detached,
            stalled: None,
        }
    }

    fn ids(cache: &Path) -> Vec<String> {
        list(cache).unwrap().into_iter().map(|machine| machine.id).collect()
    }

    #[test]
    fn machines_that_run_are_listed_and_dead_ones_are_removed() {
        let cache = tempfile::tempdir().unwrap();
        assert!(list(cache.path()).unwrap().is_empty());
        let first = MachineFolder::create(cache.path(), "web").unwrap();
        let second = MachineFolder::create(cache.path(), "web").unwrap();
        assert_eq!((first.id(), second.id()), ("web-1", "web-2"));
        second.write(&record(1)).unwrap();
        assert_eq!(ids(cache.path()), ["web-2"], "the first one is still being prepared");
        first.write(&record(1)).unwrap();
        assert_eq!(list(cache.path()).unwrap()[0].record, record(1));
        // What a killed kiln leaves: a folder that nobody has locked.
        let dead = cache.path().join(MACHINES).join("web-3");
        fs::create_dir(&dead).unwrap();
        fs::copy(first.join(RECORD), dead.join(RECORD)).unwrap();
        assert_eq!(ids(cache.path()), ["web-1", "web-2"]);
        assert!(!dead.exists());
        drop(first);
        assert_eq!(ids(cache.path()), ["web-2"]);
        assert_eq!(MachineFolder::create(cache.path(), "web").unwrap().id(), "web-1", "numbers are used again");
    }

    #[test]
    fn ids_are_ordered_by_their_numbers() {
        let mut ids = ["web-10", "web-2", "app-1", "web-1-1"];
        ids.sort_by(|one, other| sort_key(one).cmp(&sort_key(other)));
        assert_eq!(ids, ["app-1", "web-2", "web-10", "web-1-1"]);
    }

    #[test]
    fn an_unknown_machine_is_refused_with_those_that_run() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(find(cache.path(), "web-1").unwrap_err().hints(), ["no machine of this cache runs"]);
        let running = MachineFolder::create(cache.path(), "web").unwrap();
        running.write(&record(1)).unwrap();
        let hints = find(cache.path(), "web-7").unwrap_err().hints();
        assert_eq!(hints, ["`kiln ps` lists those that run: web-1"]);
        assert_eq!(running_from(cache.path(), Path::new("/store/web/1")), ["web-1"]);
        assert!(running_from(cache.path(), Path::new("/store/web/2")).is_empty());
    }

    #[test]
    fn a_machine_that_has_ended_is_not_signalled() {
        let cache = tempfile::tempdir().unwrap();
        let folder = MachineFolder::create(cache.path(), "web").unwrap();
        // A signal to this process id would end this test.
        folder.write(&record(nix::unistd::getpid().as_raw())).unwrap();
        let listed = find(cache.path(), "web-1").unwrap();
        assert!(listed.is_running());
        drop(folder);
        assert!(!listed.is_running());
        assert_eq!(listed.stop(Some(Duration::from_secs(1))).unwrap(), StopOutcome::Ended);
    }
}
