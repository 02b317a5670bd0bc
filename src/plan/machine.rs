//! The virtual machine of a plan: what argv is made from, with no decision left.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::size::ByteSize;
use crate::specfile::{BaseFormat, DiskFormat, Network, PrivateDestination};

use super::host::UefiFirmware;

/// One machine. Everything in it is a fact about the guest's hardware, so it also goes into the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The QEMU binary.
    pub qemu: PathBuf,
    /// Its version, as it says itself; empty where this host has no QEMU that can be used.
    pub qemu_version: String,
    /// Versioned machine type, such as `pc-q35-10.0`.
    pub machine_type: String,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// Why this accelerator and not a faster one; `None` where there is nothing to explain.
    pub accel_reason: Option<String>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory.
    pub memory: ByteSize,
    /// Virtual size of the disk; `None` is the base's own.
    pub disk: Option<ByteSize>,
    /// What starts the boot loader.
    pub firmware: Firmware,
    /// Network card or none.
    pub network: Network,
    /// What the guest may reach over it besides public addresses.
    pub private_network: PrivateNetworkAccess,
    /// Until the agent answers, already scaled for the accelerator.
    pub boot_timeout: Duration,
    /// What the machine's clock says when it is turned on; the host's time where there is none.
    pub clock: Option<Timestamp>,
}

/// What a guest may reach besides public addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrivateNetworkAccess {
    /// These destinations.
    Listed(Vec<PrivateDestination>),
    /// Everything that the host reaches, itself included: its network is not filtered.
    All,
}

impl Machine {
    /// Returns whether this host can start it.
    #[must_use]
    pub fn has_qemu(&self) -> bool {
        !self.qemu_version.is_empty()
    }

    /// Has the machine begin with these UEFI variables rather than with those that come with the firmware.
    pub(crate) fn start_with_uefi_vars(&mut self, vars: PathBuf) {
        if let Firmware::Uefi(uefi) = &mut self.firmware {
            uefi.vars_template = vars;
        }
    }
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The host's CPU.
    Kvm,
    /// QEMU's software emulation.
    Tcg,
}

impl Accelerator {
    /// The name QEMU, the spec and the manifest use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }

    /// The CPU model. `host` is the fastest under KVM; `max` is all that software emulation can do, so that a guest
    /// built for x86-64-v2 or -v3 runs.
    #[must_use]
    pub fn cpu_model(self) -> &'static str {
        match self {
            Accelerator::Kvm => "host",
            Accelerator::Tcg => "max",
        }
    }
}

/// Firmware with its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firmware {
    /// The `SeaBIOS` that comes with QEMU.
    Bios,
    /// UEFI: a read-only code image and a variable store that each machine gets a copy of.
    Uefi(UefiFirmware),
}

impl Firmware {
    /// The name the spec and the manifest use.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Firmware::Bios => "bios",
            Firmware::Uefi(_) => "uefi",
        }
    }
}

/// The name of a base format in QEMU's and the manifest's words.
#[must_use]
pub fn format_name(format: BaseFormat) -> &'static str {
    DiskFormat::from(format).name()
}
