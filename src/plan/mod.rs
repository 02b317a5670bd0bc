//! A [`Spec`] and facts become a [`Plan`]: every decision taken, every key computed, nothing done yet.
//!
//! ```text
//! Spec + Facts (host, base image, inputs) -> Plan -> `kiln plan` prints it, the engine carries it out
//! ```
//!
//! Pure: the facts are gathered by `resolve::facts`, so a plan can be tested without a host.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::copy_filter::CopyFilter;
use crate::digest::{FileStamp, Sha256Digest};
use crate::error::{Fault, Kind};
use crate::network_record::{NetworkRecord, digest_of};
use crate::size::{ByteSize, format_duration};
use crate::specfile::{self, Action, BaseFormat, Condition, NetworkBackend, OutputFormat, Spec, StepSpec};

pub(crate) mod agent;
pub(crate) mod graph;
pub(crate) mod host;
pub(crate) mod host_paths;
pub(crate) mod kernel;
pub mod key;
pub(crate) mod limits;
pub(crate) mod machine;
pub(crate) mod output;
pub(crate) mod port_forward;
pub(crate) mod trace;

use agent::AgentStart;
use host::{Host, KvmVerdict, UefiFirmware};
use kernel::KernelFacts;
use key::{CacheKey, VersionInputs};
use limits::DiskSizeError;
use machine::{Accelerator, MachineExtras, MachineFirmware, PlannedMachine, PrivateNetworkAccess};
use output::{Outputs, without_kernel};
use trace::Parts;

/// The factor by which timeouts are extended under software emulation; they are meant for hardware.
const TCG_TIMEOUT_FACTOR: u32 = 4;
/// Advice for a host without UEFI firmware.
pub(crate) const INSTALL_FIRMWARE: &str =
    "install the firmware: `apt-get install ovmf`, `dnf install edk2-ovmf` or `pacman -S edk2-ovmf`";

/// The base image, as inspected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseFacts {
    /// Path of the file on this host, wherever it came from.
    pub file: PathBuf,
    /// Format of the file.
    pub format: BaseFormat,
    /// SHA-256 digest of the file.
    pub sha256: Sha256Digest,
    /// Virtual size of the disk, bytes.
    pub virtual_size: u64,
    /// Origin of the base image, as manifests record it.
    pub source: String,
    /// Whether its digest was known before the file was inspected.
    pub pinned: bool,
    /// The image of the store that it is, if it is one.
    pub image: Option<StoredBase>,
    /// The reason why its cloud-init does not start kiln's agent, as far as its disk shows.
    pub agent_obstacle: Option<String>,
    /// The state of the file when it was hashed.
    pub stamp: FileStamp,
    /// The kernel beside it, if there is one.
    pub kernel: Option<KernelFacts>,
}

/// An image of the store that another image is built on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBase {
    /// Name of the image.
    pub name: String,
    /// Version of the image.
    pub version: String,
    /// The `build_key` in its manifest.
    pub build_key: String,
    /// The `disk_sha256` in its manifest.
    pub disk_sha256: Option<Sha256Digest>,
    /// The `disk_chunks_sha256` in its manifest.
    pub disk_chunks_sha256: Option<Sha256Digest>,
    /// The version of kiln that has built it.
    pub kiln: String,
}

/// Digest of what a step brings from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputDigest {
    /// SHA-256 of a file's bytes, for a script: nothing else about the file matters.
    File(Sha256Digest),
    /// Digest of a file or folder as it is sent, for a copy: see `session::PackedTree`.
    Tree(Sha256Digest),
}

impl InputDigest {
    /// Returns the digest's name in an in-toto `DigestSet`. `sha256` stands there for the bytes of a file alone.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        match self {
            InputDigest::File(_) => "sha256",
            InputDigest::Tree(_) => "kilnTree",
        }
    }

    /// Returns the digest itself.
    #[must_use]
    pub fn sha256(&self) -> Sha256Digest {
        let (InputDigest::File(sha256) | InputDigest::Tree(sha256)) = self;
        *sha256
    }
}

/// Facts about what a step brings from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFacts {
    /// Digest of everything that the step's outcome depends on.
    pub digest: InputDigest,
    /// Total size of all regular files, bytes.
    pub bytes: u64,
    /// Number of files and folders.
    pub entries: u64,
    /// What of a copied folder is left out.
    pub filter: CopyFilter,
}

/// Digests of the files of a UEFI firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirmwareDigests {
    /// Digest of the code image.
    pub code: Sha256Digest,
    /// Digest of the variables that a machine begins with.
    pub vars: Sha256Digest,
}

/// Everything a plan depends on besides the spec.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Facts about this host.
    pub host: Host,
    /// Facts about the base image.
    pub base: BaseFacts,
    /// The UEFI firmware, where the spec asks for it and the host has it.
    pub firmware: Option<FirmwareDigests>,
    /// Inputs by the index of their step.
    pub inputs: BTreeMap<usize, InputFacts>,
    /// What the steps of a spec with a locked network were answered with, as `kiln.lock` records it.
    pub network: Option<NetworkRecord>,
    /// Identifies the protocol and the behaviour of the agent.
    pub agent_build: String,
    /// Identifies the behaviour of sealing.
    pub seal_build: String,
    /// `SOURCE_DATE_EPOCH`, seconds since 1970; `None` where it is not set.
    pub source_date_epoch: Option<i64>,
}

/// The reason why a spec cannot be carried out on this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The spec requires KVM, and KVM does not work.
    #[error("the spec asks for `accel = \"kvm\"`, but {0}")]
    KvmUnusable(KvmVerdict),
    /// The spec requires UEFI, and no UEFI firmware is installed.
    #[error("the spec asks for `firmware = \"uefi\"`, but no UEFI firmware for QEMU is installed")]
    NoFirmware,
    /// The spec requires cloud-init, and that of the base image does not start the agent.
    #[error("the spec asks for `agent = \"cloud-init\"`, but {why} in the base image {}", base.display())]
    NoCloudInit {
        /// The base image.
        base: PathBuf,
        /// The reason why cloud-init does not start the agent.
        why: String,
    },
    /// The disk is too large for a format.
    #[error("a {format} file holds at most {} GiB, and this disk has {}", .most.bytes() >> 30, .disk.bytes().div_ceil(1 << 30))]
    TooLarge {
        /// Name of the format.
        format: &'static str,
        /// The largest disk that the format can hold.
        most: ByteSize,
        /// Size of the disk.
        disk: ByteSize,
    },
    /// `machine.disk` is smaller than the base image; a disk cannot shrink.
    #[error("`machine.disk` is {disk}, but the base image is {base} large; a disk can only grow")]
    DiskTooSmall {
        /// The size that the spec asks for.
        disk: ByteSize,
        /// Virtual size of the base image.
        base: ByteSize,
    },
    /// An output cannot hold a disk of this size.
    #[error(transparent)]
    Size(#[from] DiskSizeError),
}

impl Fault for PlanError {
    fn kind(&self) -> Kind {
        match self {
            PlanError::KvmUnusable(_) | PlanError::NoFirmware => Kind::Host,
            PlanError::DiskTooSmall { .. } => Kind::Spec,
            PlanError::NoCloudInit { .. } => Kind::Base,
            PlanError::Size(limit) => limit.kind(),
            PlanError::TooLarge { .. } => Kind::Output,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            PlanError::KvmUnusable(verdict) => verdict
                .remedy()
                .map(str::to_owned)
                .into_iter()
                .chain(["or `accel = \"auto\"`, which falls back to software emulation".to_owned()])
                .collect(),
            PlanError::NoFirmware => vec![INSTALL_FIRMWARE.into()],
            PlanError::NoCloudInit { .. } => vec!["leave `agent` out, or set it to \"planted\"".into()],
            PlanError::TooLarge { .. } => vec!["make `machine.disk` smaller, or write another format".into()],
            PlanError::DiskTooSmall { base, .. } => vec![format!("leave `disk` out, or make it at least {base}")],
            PlanError::Size(limit) => limit.hints(),
        }
    }
}

/// A step with its key.
#[derive(Debug, Clone)]
pub struct PlannedStep {
    /// The step of the spec.
    pub step: StepSpec,
    /// The key of the guest's disk after the step.
    pub key: CacheKey,
    /// The digests of the parts that the key was computed from.
    pub parts: Parts,
    /// What the step brings from the host, if anything.
    pub input: Option<InputFacts>,
    /// The digest of what a command gets over a locked network; `None` for other steps.
    pub downloads: Option<Sha256Digest>,
}

/// A step whose condition does not hold. It is not among the steps of the plan's spec, and has no key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedStep {
    /// Number of steps before it that are part of the build.
    pub position: usize,
    /// Name of the step.
    pub name: String,
    /// The key of the step's action.
    pub verb: &'static str,
    /// Line of the spec file on which the step begins, from 1.
    pub line: usize,
    /// The condition.
    pub when: Condition,
}

/// Everything that a build does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The spec that the plan was made from.
    pub spec: Spec,
    /// The machine to build in.
    pub machine: PlannedMachine,
    /// Digests of the machine's UEFI firmware.
    pub firmware: Option<FirmwareDigests>,
    /// Facts about the base image.
    pub base: BaseFacts,
    /// The key of the guest's disk before the first step.
    pub base_key: CacheKey,
    /// The digests of the parts that the base key was computed from.
    pub base_parts: Parts,
    /// The steps, in order.
    pub steps: Vec<PlannedStep>,
    /// The steps of the spec that are not part of the build.
    pub skipped: Vec<SkippedStep>,
    /// What the steps get over a locked network, as far as that is recorded.
    pub network: Option<NetworkRecord>,
    /// The outputs, and the disk files they need.
    pub outputs: Outputs,
    /// The key of everything that is published.
    pub build_key: CacheKey,
    /// `SOURCE_DATE_EPOCH`, where it is set.
    pub source_date_epoch: Option<i64>,
    version_inputs: VersionInputs,
}

impl Plan {
    /// Makes every decision.
    ///
    /// # Errors
    /// When the spec cannot be carried out on this host or with this base image.
    pub fn new(spec: Spec, facts: &Facts) -> Result<Self, PlanError> {
        let machine = plan_machine(&spec, facts)?;
        let base_content = key::base_content(&spec, facts, &machine);
        let base_key = CacheKey::root().then(&base_content);
        let brought = spec.steps.iter().enumerate().map(|(index, step)| BroughtInputs {
            input: facts.inputs.get(&index).cloned(),
            downloads: digest_downloads(&spec, step, facts.network.as_ref()),
        });
        let steps = plan_steps(&spec, base_key, brought);
        let disk_size = machine.disk.map_or(facts.base.virtual_size, ByteSize::bytes);
        spec.outputs.iter().try_for_each(|output| check_size(output.format, disk_size))?;
        let outputs = Outputs::new(&format!("{}-{}", spec.image.name, spec.image.version), &spec.outputs);
        let version_inputs = VersionInputs::new(&spec, facts, &machine);
        let build_key = version_inputs.build_key(&spec, &steps);
        let base = facts.base.clone();
        Ok(Self {
            spec,
            machine,
            firmware: facts.firmware.clone(),
            base,
            base_key,
            base_parts: trace::parts(&base_content),
            steps,
            skipped: Vec::new(),
            network: facts.network.clone(),
            outputs,
            build_key,
            source_date_epoch: facts.source_date_epoch,
            version_inputs,
        })
    }

    /// Returns the plan of the same build in which the steps get other downloads, given by their digests, one for each step:
    /// all keys that depend on them are computed anew.
    #[must_use]
    pub fn with_downloads(&self, digests: &[Option<Sha256Digest>]) -> Self {
        let steps = self.steps.iter().zip(digests);
        let brought =
            steps.map(|(planned, downloads)| BroughtInputs { input: planned.input.clone(), downloads: *downloads });
        let steps = plan_steps(&self.spec, self.base_key, brought);
        let build_key = self.version_inputs.build_key(&self.spec, &steps);
        Self { steps, build_key, ..self.clone() }
    }

    /// Returns the plan of the same build with another record of the downloads, as if `kiln.lock` had held it.
    #[must_use]
    pub fn with_network(&self, record: NetworkRecord) -> Self {
        let steps = self.spec.steps.iter();
        let digests: Vec<_> = steps.map(|step| digest_downloads(&self.spec, step, Some(&record))).collect();
        Self { network: Some(record), ..self.with_downloads(&digests) }
    }

    /// Returns the plan with the steps of the spec file that are not part of the build.
    #[must_use]
    pub fn with_skipped(self, skipped: Vec<SkippedStep>) -> Self {
        Self { skipped, ..self }
    }

    /// Returns the virtual size of the disk, bytes.
    #[must_use]
    pub fn disk_size(&self) -> u64 {
        self.machine.disk.map_or(self.base.virtual_size, ByteSize::bytes)
    }

    /// Returns the first step for which the spec disables the cache.
    #[must_use]
    pub fn uncached_step(&self) -> Option<&PlannedStep> {
        self.steps.iter().find(|planned| !planned.step.cache)
    }

    /// Returns the plan of the first steps alone.
    #[must_use]
    pub fn until(&self, steps: usize) -> Self {
        let mut plan = self.clone();
        plan.steps.truncate(steps);
        plan.spec.steps.truncate(steps);
        plan.skipped.retain(|skipped| skipped.position < steps);
        plan
    }

    /// Returns whether the root file system has to grow at boot.
    #[must_use]
    pub fn grows(&self) -> bool {
        self.disk_size() > self.base.virtual_size
    }

    /// Returns sentences for people about decisions that the spec left open.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.machine.has_qemu() {
            notes
                .push("this host has no QEMU that can be used, which a build needs: `kiln doctor` says why".to_owned());
        }
        if let Some(reason) = &self.machine.accel_reason {
            let scaled = format_duration(self.machine.boot_timeout);
            notes.push(format!("software emulation (tcg): {reason}; boot-timeout is scaled to {scaled}"));
        }
        if let AgentStart::Planted(reason) = &self.machine.agent {
            notes.push(format!("kiln's agent is planted in the guest by a direct boot before the first one: {reason}"));
        }
        if self.base.kernel.is_some() {
            notes.extend(self.outputs.all.iter().filter_map(|output| without_kernel(output.format)));
        }
        if self.machine.cpus < u32::from(self.spec.machine.cpus) {
            notes.push(format!(
                "{} CPUs instead of {}: the host has no more",
                self.machine.cpus, self.spec.machine.cpus
            ));
        }
        if self.machine.accelerator == Accelerator::Tcg && !self.base.pinned {
            notes.push(
                "software emulation is no security boundary; pin `base.sha256` if the base image is not yours".into(),
            );
        }
        notes
    }
}

/// Checks whether other software reads a disk of this size in this format.
///
/// # Errors
/// When the disk is too large, or its size is not a multiple of what they accept.
pub fn check_size(format: OutputFormat, disk: u64) -> Result<(), PlanError> {
    limits::check(format, disk)?;
    let format = format.disk();
    match format.largest() {
        Some(most) if disk > most => {
            Err(PlanError::TooLarge { format: format.name(), most: ByteSize(most), disk: ByteSize(disk) })
        }
        _ => Ok(()),
    }
}

fn plan_machine(spec: &Spec, facts: &Facts) -> Result<PlannedMachine, PlanError> {
    let wanted = &spec.machine;
    let (accelerator, accel_reason) = choose_accelerator(wanted.accel, &facts.host.kvm)?;
    let has_qemu = facts.host.qemu.is_usable();
    let base = ByteSize(facts.base.virtual_size);
    if let Some(disk) = wanted.disk.filter(|disk| *disk < base) {
        return Err(PlanError::DiskTooSmall { disk, base });
    }
    Ok(PlannedMachine {
        qemu: facts.host.qemu.system.clone(),
        qemu_version: if has_qemu { facts.host.qemu.version.to_string() } else { String::new() },
        machine_type: facts.host.qemu.machine_type.clone(),
        accelerator,
        accel_reason,
        cpus: u32::from(wanted.cpus).min(u32::try_from(facts.host.cpus).unwrap_or(u32::MAX)),
        memory: wanted.memory,
        disk: wanted.disk,
        firmware: choose_firmware(wanted.firmware, facts)?,
        kernel: facts.base.kernel.as_ref().map(KernelFacts::for_machine),
        agent: choose_agent_start(spec, facts)?,
        network: wanted.network,
        private_network: PrivateNetworkAccess::Listed(spec.network.private.clone()),
        boot_timeout: scaled(wanted.boot_timeout, accelerator),
        clock: None,
        extras: MachineExtras::default(),
    })
}

fn choose_accelerator(
    wanted: specfile::AccelChoice,
    kvm: &KvmVerdict,
) -> Result<(Accelerator, Option<String>), PlanError> {
    match (wanted, kvm) {
        (specfile::AccelChoice::Auto | specfile::AccelChoice::Kvm, KvmVerdict::Usable) => Ok((Accelerator::Kvm, None)),
        (specfile::AccelChoice::Auto, verdict) => Ok((Accelerator::Tcg, Some(verdict.to_string()))),
        (specfile::AccelChoice::Kvm, verdict) => Err(PlanError::KvmUnusable(verdict.clone())),
        (specfile::AccelChoice::Tcg, _) => Ok((Accelerator::Tcg, Some("the spec asks for it".into()))),
    }
}

fn choose_agent_start(spec: &Spec, facts: &Facts) -> Result<AgentStart, PlanError> {
    let chosen = AgentStart::choose_for_build(spec.machine.boot, spec.machine.agent, facts.base.agent_obstacle.clone());
    chosen.map_err(|why| PlanError::NoCloudInit { base: facts.base.file.clone(), why })
}

fn choose_firmware(wanted: specfile::FirmwareKind, facts: &Facts) -> Result<MachineFirmware, PlanError> {
    match wanted {
        specfile::FirmwareKind::Bios => Ok(MachineFirmware::Bios),
        specfile::FirmwareKind::Uefi if !facts.host.qemu.is_usable() => {
            Ok(MachineFirmware::Uefi(UefiFirmware::unknown()))
        }
        specfile::FirmwareKind::Uefi => {
            facts.host.firmware.first().cloned().map(MachineFirmware::Uefi).ok_or(PlanError::NoFirmware)
        }
    }
}

/// What a step gets from outside of the guest.
struct BroughtInputs {
    input: Option<InputFacts>,
    downloads: Option<Sha256Digest>,
}

/// Computes the keys of the steps, one after the other.
fn plan_steps(spec: &Spec, base: CacheKey, brought: impl Iterator<Item = BroughtInputs>) -> Vec<PlannedStep> {
    let mut key = base;
    let planned = spec.steps.iter().zip(brought).map(|(step, BroughtInputs { input, downloads })| {
        let content = key::step_content(spec, step, input.as_ref(), downloads);
        key = key.then(&content);
        PlannedStep { step: step.clone(), key, parts: trace::parts(&content), input, downloads }
    });
    planned.collect()
}

/// Returns the digest of what a command gets over a locked network, by the record: nothing, where there is none.
fn digest_downloads(spec: &Spec, step: &StepSpec, record: Option<&NetworkRecord>) -> Option<Sha256Digest> {
    let can_download = spec.machine.network == NetworkBackend::Locked && step.action.is_command();
    can_download.then(|| record.map_or_else(|| digest_of([]), |record| record.digest_of_step(&step.name)))
}

/// Scales a duration that is meant for hardware to this accelerator.
#[must_use]
pub fn scaled(duration: Duration, accelerator: Accelerator) -> Duration {
    let factor = if accelerator == Accelerator::Tcg { TCG_TIMEOUT_FACTOR } else { 1 };
    duration.saturating_mul(factor)
}

/// Adds to a deadline for the guest's own work the time that the exchange with its agent may take.
#[must_use]
pub fn with_grace(timeout: Duration) -> Duration {
    timeout.saturating_add(Duration::from_secs(30))
}

/// Returns whether a step reads secrets. They remain in the memory of the machine.
pub(crate) fn reads_secret(action: &Action) -> bool {
    action.context().is_some_and(|context| !context.secrets.is_empty())
}

/// Returns the host path of a step's input.
#[must_use]
pub fn input_path(action: &Action) -> Option<&PathBuf> {
    match action {
        Action::Script { file, .. } => Some(file),
        Action::Copy(copy) => Some(&copy.from),
        _ => None,
    }
}
