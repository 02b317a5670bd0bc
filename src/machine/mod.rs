//! One QEMU from launch to power-off.
//!
//! ```text
//!  launch ──> Running ──power_off──> PoweredOff      the guest shut itself down and QEMU left with status 0
//!                │  └──abort───────> (gone)
//!                └── trouble(): Fate                  died, panicked, disk error, stopped unasked, powered off unasked
//! ```
//!
//! Everything that QEMU reports (QMP events, its exit) is collected in one [`MachineState`], which every wait can watch: no wait for
//! the guest ever outlives QEMU. QEMU does not exit on a KVM internal error or a full host disk: it emits STOP and waits for
//! ever, so every STOP that kiln did not request is final.

use std::fs::File;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use qapi::qmp as schema;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::error::{Failure, Fault, Kind};
use crate::event::{Events, NoticeLevel};
use crate::masking::SecretMask;
use crate::plan::machine::PlannedMachine;
use crate::process;
use crate::specfile::NetworkBackend;

pub mod accel;
mod agent_port;
pub mod argv;
pub mod checkpoint;
pub mod console;
pub mod firmware;
pub mod host;
pub mod host_ports;
pub(crate) mod kernel_links;
pub(crate) mod network_filter;
mod packet_filter;
pub mod qmp;
mod refusal_reply;
#[cfg(test)]
mod test_frames;

use agent_port::AgentPort;
use argv::{AGENT_FD, BackingFiles, CONSOLE_FD, HOTPLUG_BUS, NETWORK_FD, QMP_FD, Start, UEFI_VARS};
use console::Console;
use kernel_links::link_kernel;
use network_filter::FilterReport;
use qmp::{Qmp, QmpError};

/// Time in which QEMU has to answer on its monitor; it does so in milliseconds, and on a loaded host in seconds.
const MONITOR_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit for a killed QEMU to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for the guest's kernel to release an unplugged disk.
const UNPLUG_TIMEOUT: Duration = Duration::from_secs(30);

/// An error of a machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// QEMU could not be started.
    #[error("cannot start QEMU ({})", program.display())]
    Spawn {
        /// Path of QEMU.
        program: PathBuf,
        /// The underlying error.
        #[source]
        source: std::io::Error,
    },
    /// A file or channel for the machine could not be created.
    #[error("cannot prepare the machine: {what}")]
    Prepare {
        /// Description of the file or channel.
        what: &'static str,
        /// The underlying error.
        #[source]
        source: std::io::Error,
    },
    /// QEMU's monitor failed.
    #[error(transparent)]
    Monitor(#[from] QmpError),
    /// QEMU's monitor did not answer in time.
    #[error("QEMU's monitor did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The machine ended or stopped unexpectedly.
    #[error(transparent)]
    Ended(#[from] MachineExit),
    /// The machine's memory could not be saved or loaded.
    #[error("the guest's memory could not be moved: {0}")]
    Memory(String),
    /// The guest did not power off in this time.
    #[error("the guest did not power off within {} s", .0.as_secs())]
    StillRunning(Duration),
}

impl MachineError {
    /// Returns a conversion to the error for a file or channel that could not be created.
    pub(crate) fn prepare(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Prepare { what, source }
    }
}

/// An unexpected end or standstill of a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineExit {
    /// The QEMU process has ended.
    #[error("QEMU ended unexpectedly with {status}{}{stderr}", if stderr.is_empty() { "" } else { ": " })]
    Exited {
        /// Its exit status or signal.
        status: String,
        /// The end of its standard error.
        stderr: String,
        /// The signal that ended it, if one did.
        signal: Option<Signal>,
    },
    /// The guest turned itself off.
    #[error("the guest powered itself off")]
    PoweredOff,
    /// The guest's kernel panicked.
    #[error("the guest's kernel panicked")]
    Panicked,
    /// The host could not read or write a disk.
    #[error("the host could not {operation} the disk `{node}`: {reason}")]
    Disk {
        /// `read` or `write`.
        operation: &'static str,
        /// Name of the block node.
        node: String,
        /// QEMU's reason.
        reason: String,
        /// Whether the host's disk is full.
        full: bool,
    },
    /// The guest rebooted.
    #[error("the guest rebooted without being asked")]
    Rebooted,
    /// The virtual CPUs stopped, as they do on a KVM internal error.
    #[error("QEMU stopped the guest without being asked, as it does when KVM fails to execute an instruction")]
    Stopped,
}

impl MachineExit {
    /// Returns whether QEMU ended itself by a fault of its own, such as a failed assertion.
    #[must_use]
    pub fn is_crash(&self) -> bool {
        use Signal::{SIGABRT, SIGFPE, SIGILL, SIGSEGV, SIGTRAP};
        let MachineExit::Exited { signal: Some(signal), .. } = self else { return false };
        [SIGABRT, SIGFPE, SIGILL, SIGSEGV, SIGTRAP].contains(signal)
    }
}

impl Fault for MachineExit {
    fn kind(&self) -> Kind {
        match self {
            MachineExit::Exited { .. } | MachineExit::Disk { .. } | MachineExit::Stopped => Kind::Host,
            MachineExit::PoweredOff | MachineExit::Panicked | MachineExit::Rebooted => Kind::Boot,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            // Most often from the kernel, for lack of memory.
            MachineExit::Exited { signal: Some(Signal::SIGKILL), .. } => {
                vec!["if the host ran out of memory, lower `machine.memory` in the spec (`dmesg` tells)".into()]
            }
            MachineExit::Disk { full: true, .. } => {
                vec!["free some space where the cache folder is, or set KILN_CACHE".into()]
            }
            MachineExit::Rebooted => vec!["write `reboot = true` as a step of its own where a reboot is wanted".into()],
            MachineExit::Stopped => vec!["try `accel = \"tcg\"`; `kiln doctor` tells whether KVM works here".into()],
            _ => Vec::new(),
        }
    }
}

impl Fault for MachineError {
    fn kind(&self) -> Kind {
        match self {
            MachineError::Ended(fate) => fate.kind(),
            MachineError::StillRunning(_) => Kind::Boot,
            _ => Kind::Host,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            MachineError::Spawn { .. } => vec!["`kiln doctor` tells what is missing and how to install it".into()],
            MachineError::Ended(fate) => fate.hints(),
            _ => Vec::new(),
        }
    }
}

/// Everything that QEMU has reported so far.
#[derive(Debug, Clone, Default)]
struct MachineState {
    /// Set by a SHUTDOWN event: whether the guest itself requested it.
    shutdown: Option<bool>,
    panicked: bool,
    disk: Option<MachineExit>,
    stopped: bool,
    /// Whether kiln has stopped the machine, or not started it yet.
    held: bool,
    migration: Option<schema::MigrationStatus>,
    resets: u32,
    tolerated_resets: u32,
    unplugged: u32,
    agent_port: AgentPort,
    exited: Option<(ExitStatus, String)>,
}

impl MachineState {
    fn note(&mut self, event: &schema::Event) {
        match event {
            schema::Event::SHUTDOWN { data, .. } => {
                self.shutdown = Some(data.guest && data.reason == schema::ShutdownCause::guest_shutdown);
            }
            schema::Event::GUEST_PANICKED { .. } => self.panicked = true,
            schema::Event::BLOCK_IO_ERROR { data, .. } if data.action == schema::BlockErrorAction::stop => {
                self.disk = Some(MachineExit::Disk {
                    operation: if data.operation == schema::IoOperationType::read { "read" } else { "write" },
                    node: data.node_name.clone().unwrap_or_default(),
                    reason: data.reason.clone(),
                    full: data.nospace.unwrap_or(false),
                });
            }
            schema::Event::STOP { .. } if !self.held => self.stopped = true,
            schema::Event::MIGRATION { data, .. } => self.migration = Some(data.status),
            schema::Event::RESET { data, .. } if data.guest => self.resets += 1,
            schema::Event::VSERPORT_CHANGE { data, .. } if data.id == agent_port::DEVICE => {
                self.agent_port = self.agent_port.changed(data.open);
            }
            schema::Event::DEVICE_DELETED { data, .. } if data.device.is_some() => self.unplugged += 1,
            _ => {}
        }
    }

    fn fate(&self) -> Option<MachineExit> {
        if self.panicked {
            return Some(MachineExit::Panicked);
        }
        if self.disk.is_some() {
            return self.disk.clone();
        }
        match (&self.exited, self.shutdown, self.stopped) {
            (_, Some(true), _) => Some(MachineExit::PoweredOff),
            (Some((status, stderr)), _, _) => Some(MachineExit::Exited {
                status: process::describe(*status),
                stderr: stderr.clone(),
                signal: status.signal().and_then(|number| Signal::try_from(number).ok()),
            }),
            (None, _, true) => Some(MachineExit::Stopped),
            (None, ..) if self.resets > self.tolerated_resets => Some(MachineExit::Rebooted),
            _ => None,
        }
    }
}

/// A live machine. Dropping it kills QEMU; [`RunningMachine::abort`] also waits for its end.
pub struct RunningMachine {
    group: Pid,
    qmp: Qmp,
    life: watch::Sender<MachineState>,
    console: Console,
    plugged: u32,
    /// The node that takes the guest's writes, and the number of its predecessors.
    top: String,
    frozen: u32,
    /// The channel of the locked network, until it is taken.
    network: Option<std::os::unix::net::UnixStream>,
}

/// Proof that the guest has shut itself down and QEMU has exited with status 0: nobody writes to the overlay any more.
#[derive(Debug)]
#[must_use]
pub struct PoweredOff(());

/// A hot-plugged, read-only disk.
#[derive(Debug)]
#[must_use]
pub struct PluggedDisk {
    id: String,
}

/// Starts QEMU in the scratch folder, which holds the overlay and the seed. Returns the machine and the agent's channel. Its
/// CPUs are stopped until [`RunningMachine::boot`] or [`RunningMachine::restore`].
///
/// # Errors
/// When QEMU cannot be started or does not answer on its monitor.
///
/// # Panics
/// Never: a child that was just started has a process id.
pub async fn launch(
    machine: &PlannedMachine,
    backing: &BackingFiles,
    start: Start,
    folder: &Path,
    events: &Events,
    mask: &SecretMask,
) -> Result<(RunningMachine, UnixStream), Failure> {
    if let Some(uefi) = machine.started_uefi() {
        let copied = std::fs::copy(&uefi.vars_template, folder.join(UEFI_VARS));
        copied.map_err(MachineError::prepare("the UEFI variable store"))?;
    }
    link_kernel(machine, folder).map_err(MachineError::prepare("the links to the kernel"))?;
    let (qmp, qmp_theirs) = channel().map_err(MachineError::prepare("QEMU's monitor channel"))?;
    let (agent, agent_theirs) = channel().map_err(MachineError::prepare("the agent's channel"))?;
    let (serial, serial_theirs) = channel().map_err(MachineError::prepare("the console's channel"))?;
    let console_file = open_console(&folder.join("console.log")).map_err(MachineError::prepare("console.log"))?;
    let mut descriptors = vec![(QMP_FD, qmp_theirs), (AGENT_FD, agent_theirs), (CONSOLE_FD, serial_theirs)];
    let mut network = None;
    if machine.network == NetworkBackend::Locked {
        let (ours, theirs) = network_filter::channel().map_err(MachineError::prepare("the network's channel"))?;
        descriptors.push((NETWORK_FD, theirs));
        network = Some(ours);
    }
    let filter = network_filter::start(machine, report_to(machine, events.clone()));
    descriptors.extend(filter.map_err(MachineError::prepare("the network filter"))?);
    let mut command = process::with_descriptors(&machine.qemu, descriptors);
    command.args(argv::argv(machine, backing, start)).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|source| MachineError::Spawn { program: machine.qemu.clone(), source })?;
    // The command owns QEMU's ends of the channels; they must close here, or QEMU's death would go unnoticed.
    drop(command);
    let group = Pid::from_raw(child.id().and_then(|id| i32::try_from(id).ok()).expect("a fresh child has an id"));
    let life = watch::Sender::new(MachineState { held: true, ..MachineState::default() });
    tokio::task::spawn_local(wait_for_exit(child, life.clone()));
    let console = Console::default();
    tokio::task::spawn_local(console::record(serial, console_file, mask.stream(), console.clone(), events.clone()));
    let (qmp, qmp_events) = connect(qmp, life.subscribe(), group).await?;
    tokio::task::spawn_local(follow(qmp_events, life.clone()));
    Ok((RunningMachine { group, qmp, life, console, plugged: 0, top: argv::TOP.into(), frozen: 0, network }, agent))
}

/// Reports refusals of the network filter as notices, with the remedy for a build or for a machine that a user runs.
fn report_to(machine: &PlannedMachine, events: Events) -> impl FnMut(FilterReport) + Send + 'static {
    let is_build = machine.extras.uuid.is_none();
    move |report| {
        let sentence = report.sentence(|name| {
            if is_build {
                format!(
                    "if it must, add \"{name}\" to `private` of [network] in the spec and pass --allow-private-network"
                )
            } else {
                "--allow-private-network allows it".to_owned()
            }
        });
        events.notice(NoticeLevel::Info, sentence);
    }
}

async fn connect(
    stream: UnixStream,
    mut life: watch::Receiver<MachineState>,
    group: Pid,
) -> Result<(Qmp, mpsc::UnboundedReceiver<schema::Event>), MachineError> {
    let error = match timeout(MONITOR_TIMEOUT, Qmp::connect(stream)).await {
        Ok(Ok(connected)) => return Ok(connected),
        Ok(Err(error)) => error.into(),
        Err(_) => MachineError::Silent(MONITOR_TIMEOUT),
    };
    // A QEMU that refuses its command line closes the monitor and prints the reason on standard error. In any other case it
    // is alive, and its end is kiln's doing and explains nothing.
    let mut fate = None;
    if matches!(error, MachineError::Monitor(QmpError::Gone)) {
        let exited = timeout(KILL_TIMEOUT, life.wait_for(|life| life.exited.is_some())).await;
        fate = exited.ok().and_then(Result::ok).and_then(|life| life.fate());
    }
    let _ = killpg(group, Signal::SIGKILL);
    Err(fate.map_or(error, MachineError::Ended))
}

/// Creates a connected pair: one end for tokio, and QEMU's end, away from the low descriptor numbers.
fn channel() -> std::io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = network_filter::channel()?;
    Ok((UnixStream::from_std(ours)?, theirs))
}

fn open_console(path: &Path) -> std::io::Result<File> {
    File::options().append(true).create(true).mode(0o600).open(path)
}

async fn wait_for_exit(mut child: tokio::process::Child, life: watch::Sender<MachineState>) {
    let stderr = match child.stderr.take() {
        Some(pipe) => process::stderr_tail(pipe).await,
        None => String::new(),
    };
    if let Ok(status) = child.wait().await {
        life.send_modify(|life| life.exited = Some((status, stderr)));
    }
}

async fn follow(mut events: mpsc::UnboundedReceiver<schema::Event>, life: watch::Sender<MachineState>) {
    while let Some(event) = events.recv().await {
        life.send_modify(|life| life.note(&event));
    }
}

impl RunningMachine {
    /// Returns the guest's console.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Takes the channel of the locked network; `None` if the machine has none, or it was taken before.
    pub fn take_network(&mut self) -> Option<std::os::unix::net::UnixStream> {
        self.network.take()
    }

    /// Starts the guest's firmware. It and boot loaders may reset the machine this often.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub async fn boot(&self, resets: u32) -> Result<(), MachineError> {
        // Set before the first instruction, so that the resets of a quick guest are counted too.
        self.tolerate_resets(resets);
        self.go_on().await
    }

    /// Allows the guest to reset itself this many times more before it counts as rebooting unexpectedly.
    pub fn tolerate_resets(&self, more: u32) {
        self.life.send_modify(|life| life.tolerated_resets = life.resets + more);
    }

    /// Allows the guest to reset itself as often as it likes.
    pub(crate) fn tolerate_all_resets(&self) {
        self.life.send_modify(|life| life.tolerated_resets = u32::MAX);
    }

    /// Asks the guest to power off, as its power button does (ACPI).
    ///
    /// # Errors
    /// When QEMU refuses.
    pub(crate) async fn press_power_button(&self) -> Result<(), MachineError> {
        self.qmp.execute(schema::system_powerdown {}).await?;
        Ok(())
    }

    /// Waits until QEMU has exited.
    pub(crate) async fn exited(&self) {
        let mut life = self.life.subscribe();
        // The sender is dropped when QEMU has ended.
        let _ = life.wait_for(|life| life.exited.is_some()).await;
    }

    /// Waits for an unexpected end, and returns it.
    pub async fn trouble(&self) -> MachineExit {
        let mut life = self.life.subscribe();
        match life.wait_for(|life| life.fate().is_some()).await {
            Ok(life) => life.fate().unwrap_or(MachineExit::Stopped),
            // The sender lives until QEMU has ended; without it nothing more will ever be reported.
            Err(_) => std::future::pending().await,
        }
    }

    /// Runs a future, unless the machine ends first.
    ///
    /// # Errors
    /// The machine's fate.
    pub async fn supervise<T>(&self, work: impl Future<Output = T>) -> Result<T, MachineExit> {
        tokio::select! {
            biased;
            fate = self.trouble() => Err(fate),
            done = work => Ok(done),
        }
    }

    /// Returns the fate of a machine that is just ending: a broken connection is noticed before QEMU's exit is.
    pub async fn fate_within(&self, wait: Duration) -> Option<MachineExit> {
        timeout(wait, self.trouble()).await.ok()
    }

    /// Plugs in a file as a read-only disk; the guest finds it by its serial number, at most 20 bytes (virtio 1.2, 5.2.6).
    ///
    /// # Errors
    /// When QEMU refuses.
    pub async fn plug(&mut self, file: &Path, serial: &str) -> Result<PluggedDisk, MachineError> {
        self.plugged += 1;
        let id = format!("plugged{}", self.plugged);
        let node: schema::blockdev_add = typed(json!({
            "node-name": id, "driver": "raw", "read-only": true,
            "file": { "driver": "file", "filename": file, "read-only": true },
        }))?;
        self.qmp.execute(node).await?;
        let device: schema::device_add = typed(json!({
            "driver": "virtio-blk-pci", "id": id, "bus": HOTPLUG_BUS, "drive": id, "serial": serial,
        }))?;
        self.qmp.execute(device).await?;
        Ok(PluggedDisk { id })
    }

    /// Unplugs a disk, and waits until the guest has released it.
    ///
    /// # Errors
    /// When QEMU refuses or the guest does not let go.
    pub async fn unplug(&self, disk: PluggedDisk) -> Result<(), MachineError> {
        let before = self.life.borrow().unplugged;
        self.qmp.execute(schema::device_del { id: disk.id.clone() }).await?;
        let mut life = self.life.subscribe();
        let gone = life.wait_for(|life| life.unplugged > before || life.fate().is_some());
        let _ = timeout(UNPLUG_TIMEOUT, gone).await.map_err(|_| MachineError::Silent(UNPLUG_TIMEOUT))?;
        self.qmp.execute(schema::blockdev_del { node_name: disk.id }).await?;
        Ok(())
    }

    /// Waits until the guest, which was asked to power off, has done so and QEMU has exited.
    ///
    /// # Errors
    /// When it does not within `grace`, or ends in any other way. QEMU is killed then.
    pub async fn power_off(self, grace: Duration) -> Result<PoweredOff, Failure> {
        let mut life = self.life.subscribe();
        let ended = life.wait_for(|life| life.exited.is_some() || life.panicked || life.disk.is_some());
        let outcome = match timeout(grace, ended).await {
            Ok(Ok(life)) => match (&life.exited, life.shutdown) {
                (Some((status, _)), Some(true)) if status.success() && !life.panicked => Ok(PoweredOff(())),
                _ => Err(life.fate().map_or(MachineError::StillRunning(grace), MachineError::Ended)),
            },
            _ => Err(MachineError::StillRunning(grace)),
        };
        if outcome.is_err() {
            self.abort().await;
        }
        Ok(outcome?)
    }

    /// Kills QEMU and waits until it has ended.
    pub async fn abort(self) {
        self.kill();
        let mut life = self.life.subscribe();
        let _ = timeout(KILL_TIMEOUT, life.wait_for(|life| life.exited.is_some())).await;
    }

    fn kill(&self) {
        // Once it is reaped, its number may belong to another process.
        if self.life.borrow().exited.is_none() {
            let _ = killpg(self.group, Signal::SIGKILL);
        }
    }
}

impl Drop for RunningMachine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Converts JSON, which is the easiest way to write QAPI's flattened unions, to a QAPI type.
fn typed<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T, QmpError> {
    serde_json::from_value(value).map_err(|error| QmpError::Protocol(error.to_string()))
}
