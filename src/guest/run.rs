//! A throw-away clone of a published image, for interactive use.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::context::ScratchError;
use crate::disk::qcow2::create_overlay;
use crate::error::{Failure, Fault, Kind};
use crate::event::{Events, NoticeLevel};
use crate::machine::argv::{self, BackingFiles, OVERLAY, SEED, UEFI_VARS};
use crate::machine::kernel_links::link_kernel;
use crate::machine::{MachineError, host, network_filter};
use crate::plan::INSTALL_FIRMWARE;
use crate::plan::agent::AgentStart;
use crate::plan::machine::{Accelerator, MachineFirmware, MachineKernel, PlannedMachine, PrivateNetworkAccess};
use crate::size::ByteSize;
use crate::specfile::{DiskFormat, NetworkBackend};
use crate::store::Artifact;
use crate::store::manifest::StoredFile;
use crate::workdir::Workdir;
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
    /// Size of the guest's memory.
    pub memory: ByteSize,
    /// Port of this host that is forwarded to the guest's SSH port.
    pub ssh: Option<u16>,
    /// Public keys that may log in over SSH.
    pub ssh_keys: Vec<String>,
    /// What the guest may reach besides public addresses.
    pub private_network: PrivateNetworkAccess,
}

/// The properties in which a machine for a published image may differ from the one that the image was built in.
pub(crate) struct WantedMachine {
    pub(crate) memory: ByteSize,
    pub(crate) network: NetworkBackend,
    pub(crate) private_network: PrivateNetworkAccess,
}

/// A clone that is ready to run. Dropping it removes it.
pub struct Clone {
    machine: PlannedMachine,
    backing: BackingFiles,
    ssh: Option<u16>,
    work: Workdir,
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
    wanted: &CloneOptions,
    cache: &Path,
) -> Result<(Clone, Option<String>), Failure> {
    let image = bootable(artifact).into_iter().next();
    let DiskImage { path, format } = image.ok_or_else(|| CloneError::NotBootable(artifact.id().to_string()))?;
    let wanted_machine = WantedMachine {
        memory: wanted.memory,
        network: NetworkBackend::User,
        private_network: wanted.private_network.clone(),
    };
    let machine = machine(artifact, wanted_machine).await?;
    let backing = BackingFiles(vec![(path, format)]);
    let work = Workdir::create(&cache.join("work")).map_err(ScratchError::at("a scratch folder", cache))?;
    let size = artifact.manifest().outputs[0].virtual_bytes;
    let overlay = work.join(OVERLAY);
    create_overlay(&overlay, size).map_err(ScratchError::at("an overlay", &overlay))?;
    // A unique name each time: cloud-init treats the clone as a machine that it has never seen.
    let instance = format!("kiln-run-{}", std::process::id());
    let volume = seed::first_boot(&instance, &wanted.ssh_keys).map_err(CloneError::Seed)?;
    std::fs::write(work.join(SEED), volume).map_err(CloneError::Seed)?;
    let reason = machine.accel_reason.clone();
    Ok((Clone { machine, backing, ssh: wanted.ssh, work }, reason))
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
        cpus: made.cpus,
        memory: wanted.memory,
        disk: None,
        firmware,
        kernel: stored_kernel(artifact),
        agent: AgentStart::CloudInit,
        network: wanted.network,
        private_network: wanted.private_network,
        boot_timeout: Duration::MAX,
        clock: None,
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
    /// Runs the clone in the foreground. QEMU shares kiln's process group here, since it reads the terminal; it puts the
    /// terminal into raw mode, so that Ctrl-C reaches the guest. `terminal` is dropped when QEMU has ended and before
    /// anything else is shown.
    ///
    /// # Errors
    /// When QEMU cannot be started or fails.
    pub async fn run<T>(self, events: &Events, cancel: CancellationToken, terminal: T) -> Result<(), Failure> {
        if let Some(uefi) = self.machine.started_uefi() {
            std::fs::copy(&uefi.vars_template, self.work.join(UEFI_VARS)).map_err(CloneError::Seed)?;
        }
        link_kernel(&self.machine, self.work.path()).map_err(MachineError::prepare("the links to the kernel"))?;
        let uuid = random_uuid().map_err(MachineError::prepare("a UUID"))?;
        // The terminal belongs to the guest's console until QEMU has ended.
        let (reports, reported) = std::sync::mpsc::channel();
        let descriptors = network_filter::start(&self.machine, move |report| drop(reports.send(report)));
        let descriptors = descriptors.map_err(MachineError::prepare("the network filter"))?;
        let mut command = process::with_descriptors(&self.machine.qemu, descriptors);
        command
            .process_group(nix::unistd::getpgrp().as_raw())
            .args(argv::interactive(&self.machine, &self.backing, self.ssh, &uuid))
            .current_dir(self.work.path())
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
}

/// Returns a random UUID (RFC 9562, version 4) from the kernel.
fn random_uuid() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}
