//! A throw-away clone of a published image, for people to look at.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::disk::qcow2::create_overlay;
use crate::error::{Failure, Fault, Kind};
use crate::event::{Events, Level};
use crate::machine::argv::{self, Backing, OVERLAY, SEED, UEFI_VARS};
use crate::machine::{MachineError, host, network_filter};
use crate::plan::INSTALL_FIRMWARE;
use crate::plan::machine::{Accelerator, Firmware, Machine, PrivateNetworkAccess};
use crate::size::ByteSize;
use crate::specfile::{DiskFormat, Network};
use crate::store::{Artifact, manifest};
use crate::workdir::Workdir;
use crate::{process, seed};

use super::ScratchError;
use super::test::Image;

/// What the user asks for.
pub struct Wanted {
    /// Guest memory.
    pub memory: ByteSize,
    /// Port of this host that leads to the guest's SSH.
    pub ssh: Option<u16>,
    /// Who may log in there.
    pub ssh_keys: Vec<String>,
    /// What it may reach besides public addresses.
    pub private_network: PrivateNetworkAccess,
}

/// What a machine for a published image may differ in from the one that the image was made in.
pub(crate) struct WantedMachine {
    pub(crate) memory: ByteSize,
    pub(crate) network: Network,
    pub(crate) private_network: PrivateNetworkAccess,
}

/// A clone, ready to run. Dropping it removes it.
pub struct Clone {
    machine: Machine,
    backing: Backing,
    ssh: Option<u16>,
    work: Workdir,
}

/// There is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// No output that QEMU boots.
    #[error("{0} has no file that holds its disk and nothing else, to boot from")]
    NotBootable(String),
    /// It was built for a firmware that is not here.
    #[error("the image wants UEFI firmware, and none for QEMU is installed")]
    NoFirmware,
    /// The seed cannot be written.
    #[error("cannot write the clone's seed")]
    Seed(#[source] std::io::Error),
    /// QEMU failed.
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

/// Makes an overlay over the image and a seed for a first boot. Also tells why it will be slow, where it will be.
///
/// # Errors
/// When the image or the host is not fit.
pub async fn prepare(artifact: &Artifact, wanted: &Wanted, cache: &Path) -> Result<(Clone, Option<String>), Failure> {
    let image = bootable(artifact).into_iter().next();
    let Image { path, format } = image.ok_or_else(|| CloneError::NotBootable(artifact.id().to_string()))?;
    let wanted_machine = WantedMachine {
        memory: wanted.memory,
        network: Network::User,
        private_network: wanted.private_network.clone(),
    };
    let machine = machine(artifact, wanted_machine).await?;
    let backing = Backing(vec![(path, format)]);
    let work = Workdir::create(&cache.join("work")).map_err(ScratchError::at("a scratch folder", cache))?;
    let size = artifact.manifest().outputs[0].virtual_bytes;
    let overlay = work.join(OVERLAY);
    create_overlay(&overlay, size).map_err(ScratchError::at("an overlay", &overlay))?;
    // A name of its own each time: cloud-init treats the clone as a machine it has never seen.
    let instance = format!("kiln-run-{}", std::process::id());
    let volume = seed::first_boot(&instance, &wanted.ssh_keys).map_err(CloneError::Seed)?;
    std::fs::write(work.join(SEED), volume).map_err(CloneError::Seed)?;
    let reason = machine.accel_reason.clone();
    Ok((Clone { machine, backing, ssh: wanted.ssh, work }, reason))
}

/// The files of an image that QEMU boots.
pub(crate) fn bootable(artifact: &Artifact) -> Vec<Image> {
    let image = |output: &manifest::Output| {
        let format = DiskFormat::named(&output.format)?;
        Some(Image { path: artifact.folder().join(&output.file), format })
    };
    artifact.manifest().outputs.iter().filter_map(image).collect()
}

/// The machine an image was made in, as far as this host has it.
///
/// # Errors
/// When the host is not fit.
pub(crate) async fn machine(artifact: &Artifact, wanted: WantedMachine) -> Result<Machine, Failure> {
    let host = host::survey().await?;
    let accelerator = if host.kvm.is_usable() { Accelerator::Kvm } else { Accelerator::Tcg };
    let made = &artifact.manifest().machine;
    let firmware = match &*made.firmware {
        "uefi" => Firmware::Uefi(host.firmware.first().cloned().ok_or(CloneError::NoFirmware)?),
        _ => Firmware::Bios,
    };
    Ok(Machine {
        qemu: host.qemu.system,
        qemu_version: host.qemu.version.to_string(),
        machine_type: host.qemu.machine_type,
        accelerator,
        accel_reason: (!host.kvm.is_usable()).then(|| host.kvm.to_string()),
        cpus: made.cpus,
        memory: wanted.memory,
        disk: None,
        firmware,
        network: wanted.network,
        private_network: wanted.private_network,
        boot_timeout: Duration::MAX,
        clock: None,
    })
}

impl Clone {
    /// Runs it in the foreground. QEMU shares kiln's process group here, since it reads the terminal; it puts the
    /// terminal into raw mode, so that Ctrl-C reaches the guest. `terminal` is dropped when QEMU is gone and before anything
    /// else is shown.
    ///
    /// # Errors
    /// When QEMU cannot be started or fails.
    pub async fn run<T>(self, events: &Events, cancel: CancellationToken, terminal: T) -> Result<(), Failure> {
        if let Firmware::Uefi(uefi) = &self.machine.firmware {
            std::fs::copy(&uefi.vars_template, self.work.join(UEFI_VARS)).map_err(CloneError::Seed)?;
        }
        let uuid = random_uuid().map_err(|source| MachineError::Prepare { what: "a UUID", source })?;
        // The guest's console has the terminal until QEMU is gone.
        let (reports, reported) = std::sync::mpsc::channel();
        let report = move |report| drop(reports.send(report));
        let descriptors = network_filter::start(&self.machine, report);
        let descriptors = descriptors.map_err(|source| MachineError::Prepare { what: "the network filter", source })?;
        let mut command = process::with_descriptors(&self.machine.qemu, descriptors);
        command
            .process_group(nix::unistd::getpgrp().as_raw())
            .args(argv::interactive(&self.machine, &self.backing, self.ssh, &uuid))
            .current_dir(self.work.path())
            .stdin(Stdio::inherit());
        let spawned = command.spawn();
        let mut child = spawned.map_err(|source| MachineError::Spawn { program: self.machine.qemu.clone(), source })?;
        // It owns QEMU's ends of the channels.
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
            events.notice(Level::Info, report.sentence(|_| "--allow-private-network allows it".to_owned()));
        }
        match status {
            Ok(status) if status.success() || cancel.is_cancelled() => Ok(()),
            Ok(status) => Err(CloneError::Qemu(process::describe(status)).into()),
            Err(source) => Err(MachineError::Spawn { program: self.machine.qemu.clone(), source }.into()),
        }
    }
}

/// Returns a random UUID (RFC 9562, version 4), by the kernel.
fn random_uuid() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}
