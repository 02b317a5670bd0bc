//! The virtual machine of a plan: what QEMU's arguments are generated from, with no decision left.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::size::ByteSize;
use crate::specfile::{BaseFormat, DiskFormat, FirmwareKind, NetworkBackend, PrivateDestination};

use super::agent::AgentStart;
use super::host::UefiFirmware;
use super::port_forward::PortForward;

/// A virtual machine. Everything in it is a fact about the guest's hardware, so it is also recorded in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedMachine {
    /// Path of the QEMU binary.
    pub qemu: PathBuf,
    /// QEMU's version, as it reports it; empty where this host has no usable QEMU.
    pub qemu_version: String,
    /// Versioned machine type, such as `pc-q35-10.0`.
    pub machine_type: String,
    /// The accelerator that executes the guest's instructions.
    pub accelerator: Accelerator,
    /// The reason for this accelerator rather than a faster one; `None` where there is nothing to explain.
    pub accel_reason: Option<String>,
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// Size of the guest's memory.
    pub memory: ByteSize,
    /// Virtual size of the disk; `None` for the base image's own.
    pub disk: Option<ByteSize>,
    /// The firmware that starts the boot loader.
    pub firmware: MachineFirmware,
    /// The kernel that QEMU starts by itself, where it is not on the disk.
    pub kernel: Option<MachineKernel>,
    /// What starts the agent, and so how the guest boots.
    pub agent: AgentStart,
    /// Whether the guest has a network card.
    pub network: NetworkBackend,
    /// What the guest may reach over its network besides public addresses.
    pub private_network: PrivateNetworkAccess,
    /// How long the agent may take to answer, already scaled for the accelerator.
    pub boot_timeout: Duration,
    /// The machine's clock when it is turned on; `None` for the host's time.
    pub clock: Option<Timestamp>,
    /// The additions of a machine that a user runs.
    pub extras: MachineExtras,
}

/// The additions of a machine that a user runs. The machine of a build has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineExtras {
    /// UUID of the machine; `None` for that of every build.
    pub uuid: Option<String>,
    /// The ports of this host that lead into the guest.
    pub forwards: Vec<PortForward>,
    /// The disks besides the image's own.
    pub disks: Vec<ExtraDisk>,
}

/// A file of the user that a guest reads and writes as a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraDisk {
    /// Absolute path of the file.
    pub path: PathBuf,
    /// Format of the file.
    pub format: DiskFormat,
}

/// A kernel that is not on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineKernel {
    /// Path of the kernel.
    pub image: PathBuf,
    /// Path of its initrd, if it has one.
    pub initrd: Option<PathBuf>,
    /// Its whole command line.
    pub cmdline: String,
}

/// The destinations that a guest may reach besides public addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrivateNetworkAccess {
    /// These destinations alone.
    Listed(Vec<PrivateDestination>),
    /// Everything that the host reaches, including the host itself: the network is not filtered.
    All,
}

impl PlannedMachine {
    /// Returns whether this host can start the machine.
    pub fn has_qemu(&self) -> bool {
        !self.qemu_version.is_empty()
    }

    /// Returns the UEFI firmware that the machine starts, if it starts any: a kernel that QEMU starts needs none.
    #[must_use]
    pub fn started_uefi(&self) -> Option<&UefiFirmware> {
        match &self.firmware {
            MachineFirmware::Uefi(uefi) if !self.starts_kernel() => Some(uefi),
            _ => None,
        }
    }

    /// Returns whether QEMU starts a kernel by itself, without firmware and boot loader.
    #[must_use]
    pub fn starts_kernel(&self) -> bool {
        self.kernel.is_some() || self.boots_directly()
    }

    /// Returns whether QEMU starts the kernel of the image, or the one beside it, with the agent as the first process.
    #[must_use]
    pub fn boots_directly(&self) -> bool {
        self.agent == AgentStart::Direct
    }

    /// Returns the machine with another start of the agent.
    #[must_use]
    pub fn started_by(&self, agent: AgentStart) -> Self {
        Self { agent, ..self.clone() }
    }

    /// Returns the machine in which the agent is planted: booted directly, and without a network card.
    #[must_use]
    pub fn for_planting(&self) -> Self {
        let extras = MachineExtras::default();
        Self { agent: AgentStart::Direct, network: NetworkBackend::None, extras, ..self.clone() }
    }

    /// Sets the UEFI variables that the machine begins with, in place of those that come with the firmware.
    pub(crate) fn start_with_uefi_vars(&mut self, vars: PathBuf) {
        if let MachineFirmware::Uefi(uefi) = &mut self.firmware {
            uefi.vars_template = vars;
        }
    }
}

/// The accelerator that executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM, on the host's CPU.
    Kvm,
    /// QEMU's software emulation.
    Tcg,
}

impl Accelerator {
    /// Returns the name that QEMU, the spec and the manifest use.
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }

    /// Returns the CPU model. `host` is the fastest under KVM; `max` is all that software emulation supports, so that a
    /// guest built for x86-64-v2 or -v3 runs.
    pub fn cpu_model(self) -> &'static str {
        match self {
            Accelerator::Kvm => "host",
            Accelerator::Tcg => "max",
        }
    }
}

/// Firmware, with the files that it consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineFirmware {
    /// The `SeaBIOS` that comes with QEMU.
    Bios,
    /// UEFI: a read-only code image and a variable store that each machine gets a copy of.
    Uefi(UefiFirmware),
}

impl MachineFirmware {
    /// Returns the name that the spec and the manifest use.
    pub fn name(&self) -> &'static str {
        match self {
            MachineFirmware::Bios => FirmwareKind::Bios.name(),
            MachineFirmware::Uefi(_) => FirmwareKind::Uefi.name(),
        }
    }
}

/// Returns the name of a base image's format, as QEMU and the manifest use it.
pub fn format_name(format: BaseFormat) -> &'static str {
    DiskFormat::from(format).name()
}
