//! A throw-away clone of a published image, for interactive use.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use crate::context::ScratchError;
use crate::disk::qcow2::create_overlay;
use crate::error::{Failure, Fault, Kind};
use crate::event::{Events, NoticeLevel};
use crate::machine::argv::{self, BackingFiles, OVERLAY, SEED, Start, UEFI_VARS};
use crate::machine::kernel_links::link_kernel;
use crate::machine::{self, MachineError, MachineExit, RunningMachine, host, network_filter};
use crate::machine_registry::MachineFolder;
use crate::masking::SecretMask;
use crate::plan::INSTALL_FIRMWARE;
use crate::plan::agent::AgentStart;
use crate::plan::machine::{
    Accelerator, ExtraDisk, MachineExtras, MachineFirmware, MachineKernel, PlannedMachine, PrivateNetworkAccess,
};
use crate::plan::port_forward::PortForward;
use crate::size::ByteSize;
use crate::specfile::{DiskFormat, NetworkBackend};
use crate::store::Artifact;
use crate::store::manifest::StoredFile;
use crate::user_data::{self, UserData};
use crate::{process, seed};

/// An image file that QEMU boots.
#[derive(Debug, Clone)]
pub struct DiskImage {
    /// Absolute path of the file.
    pub path: PathBuf,
    /// Format of the file.
    pub format: DiskFormat,
}

/// The properties of a clone that the user asks for.
pub struct CloneOptions {
    /// Number of virtual CPUs; `None` for that of the build.
    pub cpus: Option<u32>,
    /// Size of the guest's memory.
    pub memory: ByteSize,
    /// Ports of this host that lead into the guest.
    pub forwards: Vec<PortForward>,
    /// Disks besides the image's own.
    pub disks: Vec<ExtraDisk>,
    /// Public keys that may log in over SSH.
    pub ssh_keys: Vec<String>,
    /// What the user gives to cloud-init.
    pub user_data: Option<UserData>,
    /// What the guest may reach besides public addresses.
    pub private_network: PrivateNetworkAccess,
}

/// The properties in which a machine for a published image may differ from the one that the image was built in.
pub(crate) struct WantedMachine {
    pub(crate) cpus: Option<u32>,
    pub(crate) memory: ByteSize,
    pub(crate) network: NetworkBackend,
    pub(crate) private_network: PrivateNetworkAccess,
}

/// A clone that is ready to run. Dropping it removes it.
pub struct Clone {
    machine: PlannedMachine,
    backing: BackingFiles,
    folder: MachineFolder,
}

/// A clone that runs without a terminal. Dropping it kills it.
pub struct StartedClone {
    machine: RunningMachine,
    /// Keeps the agent's port open, which nobody uses.
    _agent: UnixStream,
    folder: MachineFolder,
    keeps_disks: bool,
}

/// The end of a clone that ran without a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneEnd {
    /// The guest powered itself off.
    PoweredOff,
    /// The user ended it.
    Stopped,
}

/// The reason why a clone cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The image has no output that QEMU boots.
    #[error("{0} has no disk image to boot from, only packages")]
    NotBootable(String),
    /// The image requires UEFI firmware, which this host lacks.
    #[error("the image wants UEFI firmware, and none for QEMU is installed")]
    NoFirmware,
    /// The seed cannot be written.
    #[error("cannot write the clone's seed")]
    Seed(#[source] std::io::Error),
    /// QEMU ended with an error.
    #[error("QEMU ended with {0}")]
    Qemu(String),
}

impl Fault for CloneError {
    fn kind(&self) -> Kind {
        match self {
            CloneError::NotBootable(_) => Kind::Output,
            _ => Kind::Host,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            CloneError::NoFirmware => vec![INSTALL_FIRMWARE.into()],
            _ => Vec::new(),
        }
    }
}

/// Creates an overlay over the image, and a seed for a first boot. Also returns the reason where the clone will be slow.
///
/// # Errors
/// When the image or the host is not usable.
pub async fn prepare(
    artifact: &Artifact,
    options: &CloneOptions,
    folder: MachineFolder,
) -> Result<(Clone, Option<String>), Failure> {
    let image = bootable(artifact).into_iter().next();
    let DiskImage { path, format } = image.ok_or_else(|| CloneError::NotBootable(artifact.id().to_string()))?;
    let wanted = WantedMachine {
        cpus: options.cpus,
        memory: options.memory,
        network: NetworkBackend::User,
        private_network: options.private_network.clone(),
    };
    // The machine has a UUID of its own: a guest may derive its machine ID (machine-id(5)) and names of storage from it.
    let uuid = random_uuid().map_err(MachineError::prepare("a UUID"))?;
    let extras =
        MachineExtras { uuid: Some(uuid.clone()), forwards: options.forwards.clone(), disks: options.disks.clone() };
    let machine = PlannedMachine { extras, ..machine(artifact, wanted).await? };
    let backing = BackingFiles(vec![(path, format)]);
    let size = artifact.manifest().outputs[0].virtual_bytes;
    let overlay = folder.join(OVERLAY);
    create_overlay(&overlay, size).map_err(ScratchError::at("an overlay", &overlay))?;
    // A unique name each time: cloud-init treats the clone as a machine that it has never seen.
    let user_data = user_data::first_boot(&options.ssh_keys, options.user_data.as_ref());
    let volume = seed::first_boot(&format!("kiln-run-{uuid}"), &user_data).map_err(CloneError::Seed)?;
    std::fs::write(folder.join(SEED), volume).map_err(CloneError::Seed)?;
    let reason = machine.accel_reason.clone();
    Ok((Clone { machine, backing, folder }, reason))
}

/// Returns the files of an image that QEMU boots.
pub(crate) fn bootable(artifact: &Artifact) -> Vec<DiskImage> {
    let images = artifact.manifest().outputs.iter().filter_map(|output| {
        let format = DiskFormat::named(&output.format)?;
        Some(DiskImage { path: artifact.folder().join(&output.file), format })
    });
    images.collect()
}

/// Returns the machine that an image was built in, as far as this host has it.
///
/// # Errors
/// When the host cannot provide the machine.
pub(crate) async fn machine(artifact: &Artifact, wanted: WantedMachine) -> Result<PlannedMachine, Failure> {
    let host = host::survey().await?;
    let accelerator = if host.kvm.is_usable() { Accelerator::Kvm } else { Accelerator::Tcg };
    let made = &artifact.manifest().machine;
    let firmware = match &*made.firmware {
        "uefi" => MachineFirmware::Uefi(host.firmware.first().cloned().ok_or(CloneError::NoFirmware)?),
        _ => MachineFirmware::Bios,
    };
    Ok(PlannedMachine {
        qemu: host.qemu.system,
        qemu_version: host.qemu.version.to_string(),
        machine_type: host.qemu.machine_type,
        accelerator,
        accel_reason: (!host.kvm.is_usable()).then(|| host.kvm.to_string()),
        cpus: wanted.cpus.unwrap_or(made.cpus),
        memory: wanted.memory,
        disk: None,
        firmware,
        kernel: stored_kernel(artifact),
        agent: AgentStart::CloudInit,
        network: wanted.network,
        private_network: wanted.private_network,
        boot_timeout: Duration::MAX,
        clock: None,
        extras: MachineExtras::default(),
    })
}

/// Returns the kernel that an image has beside its disk, if it has one.
fn stored_kernel(artifact: &Artifact) -> Option<MachineKernel> {
    let kernel = artifact.manifest().kernel.as_ref()?;
    let path = |file: &StoredFile| artifact.folder().join(&file.file);
    let initrd = kernel.initrd.as_ref().map(path);
    Some(MachineKernel { image: path(&kernel.image), initrd, cmdline: kernel.cmdline.clone() })
}

impl Clone {
    /// Returns the machine's folder.
    #[must_use]
    pub fn folder(&self) -> &MachineFolder {
        &self.folder
    }

    /// Returns the accelerator that executes the guest's instructions.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        self.machine.accelerator
    }

    /// Runs the clone in the foreground. QEMU shares kiln's process group here, since it reads the terminal; it puts the
    /// terminal into raw mode, so that Ctrl-C reaches the guest. `terminal` is dropped when QEMU has ended and before
    /// anything else is shown.
    ///
    /// # Errors
    /// When QEMU cannot be started or fails.
    pub async fn run<T>(self, events: &Events, cancel: CancellationToken, terminal: T) -> Result<(), Failure> {
        if let Some(uefi) = self.machine.started_uefi() {
            std::fs::copy(&uefi.vars_template, self.folder.join(UEFI_VARS)).map_err(CloneError::Seed)?;
        }
        link_kernel(&self.machine, self.folder.path()).map_err(MachineError::prepare("the links to the kernel"))?;
        // The terminal belongs to the guest's console until QEMU has ended.
        let (reports, reported) = std::sync::mpsc::channel();
        let descriptors = network_filter::start(&self.machine, move |report| drop(reports.send(report)));
        let descriptors = descriptors.map_err(MachineError::prepare("the network filter"))?;
        let mut command = process::with_descriptors(&self.machine.qemu, descriptors);
        command
            .process_group(nix::unistd::getpgrp().as_raw())
            .args(argv::interactive(&self.machine, &self.backing))
            .current_dir(self.folder.path())
            .stdin(Stdio::inherit());
        let spawned = command.spawn();
        let mut child = spawned.map_err(|source| MachineError::Spawn { program: self.machine.qemu.clone(), source })?;
        // The command owns QEMU's ends of the channels.
        drop(command);
        let status = tokio::select! {
            status = child.wait() => status,
            () = cancel.cancelled() => {
                let _ = child.start_kill();
                child.wait().await
            }
        };
        drop(terminal);
        for report in reported.try_iter() {
            events.notice(NoticeLevel::Info, report.sentence(|_| "--allow-private-network allows it".to_owned()));
        }
        match status {
            Ok(status) if status.success() || cancel.is_cancelled() => Ok(()),
            Ok(status) => Err(CloneError::Qemu(process::describe(status)).into()),
            Err(source) => Err(MachineError::Spawn { program: self.machine.qemu.clone(), source }.into()),
        }
    }

    /// Starts the clone without a terminal; its console goes to a file.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub async fn start(self, events: &Events) -> Result<StartedClone, Failure> {
        let mask = SecretMask::default();
        let launched =
            machine::launch(&self.machine, &self.backing, Start::Boot, self.folder.path(), events, &mask).await;
        let (running, agent) = launched?;
        running.boot(0).await?;
        running.tolerate_all_resets();
        let keeps_disks = !self.machine.extras.disks.is_empty();
        Ok(StartedClone { machine: running, _agent: agent, folder: self.folder, keeps_disks })
    }
}

impl StartedClone {
    /// Returns the running machine.
    #[must_use]
    pub fn machine(&self) -> &RunningMachine {
        &self.machine
    }

    /// Returns the machine's folder.
    #[must_use]
    pub fn folder(&self) -> &MachineFolder {
        &self.folder
    }

    /// Waits for the guest's end. When `cancel` is cancelled, asks the guest to power off, and goes on waiting. `stalled` is
    /// called with the reason when the guest does not go on, as after a panic; then cancelling ends it at once.
    ///
    /// # Errors
    /// When QEMU fails.
    pub async fn serve(
        self,
        cancel: CancellationToken,
        stalled: impl FnOnce(&MachineFolder, String),
    ) -> Result<CloneEnd, Failure> {
        let ended = tokio::select! {
            fate = self.machine.trouble() => Err(fate),
            () = cancel.cancelled() => Ok(()),
        };
        match ended {
            Ok(()) => self.power_off().await.map(|()| CloneEnd::Stopped),
            Err(MachineExit::PoweredOff) => {
                self.machine.exited().await;
                Ok(CloneEnd::PoweredOff)
            }
            Err(fate @ MachineExit::Exited { .. }) => Err(fate.into()),
            Err(fate) => {
                stalled(&self.folder, fate.to_string());
                tokio::select! {
                    () = self.machine.exited() => {}
                    () = cancel.cancelled() => {}
                }
                self.machine.abort().await;
                Ok(CloneEnd::Stopped)
            }
        }
    }

    /// Presses the power button and waits until QEMU has ended, however long the guest takes.
    async fn power_off(self) -> Result<(), Failure> {
        self.machine.press_power_button().await?;
        self.machine.exited().await;
        Ok(())
    }

    /// Ends the clone: at once, or in order if it has disks that are kept, for which it has this time.
    pub async fn end(self, patience: Duration) {
        let pressed = self.keeps_disks && self.machine.press_power_button().await.is_ok();
        if pressed {
            let _ = tokio::time::timeout(patience, self.machine.exited()).await;
        }
        self.machine.abort().await;
    }
}

/// Returns a random UUID (RFC 9562, version 4) from the kernel.
fn random_uuid() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}
