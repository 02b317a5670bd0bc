//! Text becomes a [`Spec`]: every key known, every value in range, every path resolved, every reference checked.
//!
//! ```text
//! kiln.toml -> Document (text with spans) -> Spec (validated)
//!                        \-> SpecErrors (all of them at once, each with its span)
//! ```
//!
//! Nothing here reads any file but the spec itself; `resolve` checks whether the inputs exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::digest::Sha256Digest;
use crate::ignore_patterns::IgnoreRules;
use crate::size::ByteSize;
use crate::url::Url;

mod arguments;
mod complaint;
mod compound_kinds;
mod condition;
mod document;
mod format;
pub mod hardcoded_secrets;
mod hidden_characters;
mod keys;
mod load;
mod longest_argument;
mod names;
mod network;
mod paths;
pub mod platform;
mod reader;
mod schema;
pub mod seal;
mod spec_file;
mod steps;
pub(crate) mod suggest;
mod table;
mod template;
mod test;
mod validate;
mod validate_tests;
mod value_kinds;
mod variants;

pub use complaint::{LoadError, SpecError, SpecErrors};
pub use condition::{BaseSystem, Condition, UnknownSystem};
pub use document::{Position, SpecDocument};
pub use format::{Compression, DiskFormat, OutputFormat};
pub(crate) use longest_argument::too_long as variable_too_long;
pub use network::{HostPattern, NetworkAccess, PrivateDestination};
pub(crate) use paths::from_folder_of as resolve_path;
pub use platform::Platform;
pub use schema::schema;
pub use spec_file::{MAX_BYTES, SpecFile, is_spec_path, spec_file};
pub use test::{Check, FileCheck, Test};
pub use variants::EVERY_VARIANT;

/// Values of the command line that override those of a spec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The value of `--version`, in place of the spec's own version.
    pub version: Option<String>,
    /// The values of `--var name=value`, in the order given; each name is one that `[vars]` declares.
    pub vars: Vec<(String, String)>,
    /// The value of `--variant`: the one of `[variants]` that is merged into the rest.
    pub variant: Option<String>,
}

/// The validated specification of one image. Paths are absolute.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// The file that the spec was read from.
    pub path: PathBuf,
    /// The variant that was merged into the rest; the image's name ends with it.
    pub variant: Option<String>,
    /// The `[image]` table: name, version and labels.
    pub image: ImageSpec,
    /// The `[base]` table: the base image.
    pub base: BaseImageSpec,
    /// The `[machine]` table: the virtual machine of the build.
    pub machine: MachineSpec,
    /// The `[network]` table: what the guest may reach over its network.
    pub network: NetworkAccess,
    /// Variables after `--var`; run and script steps see them as environment variables.
    pub vars: BTreeMap<String, String>,
    /// The sources of secrets. The values are read by the build, never here.
    pub secrets: BTreeMap<String, SecretDeclaration>,
    /// The steps, in order.
    pub steps: Vec<StepSpec>,
    /// The tests of the sealed image.
    pub tests: Vec<Test>,
    /// The `[seal]` table: how the guest is generalised.
    pub seal: SealSpec,
    /// The outputs to write; never empty.
    pub outputs: Vec<OutputSpec>,
    /// The `[build]` table: limits of the whole build.
    pub build: BuildSpec,
}

/// The `[image]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSpec {
    /// The name, matching `[a-z0-9][a-z0-9._-]{0,63}`.
    pub name: String,
    /// The version, matching `[A-Za-z0-9][A-Za-z0-9._+-]{0,63}`, after `--version`.
    pub version: String,
    /// A one-line description for people; may be empty.
    pub description: String,
    /// Free key-value pairs for the manifest.
    pub labels: BTreeMap<String, String>,
}

/// The `[base]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseImageSpec {
    /// The source of the base image.
    pub source: BaseSource,
    /// SHA-256 digest; for a download, of the file as downloaded.
    pub sha256: Option<Sha256Digest>,
    /// The format of the base image; stated by the spec, never guessed.
    pub format: BaseFormat,
    /// The kernel beside the base image, if the spec names one.
    pub kernel: Option<KernelSpec>,
}

/// A kernel that QEMU starts in place of firmware and boot loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelSpec {
    /// The kernel.
    pub file: PathBuf,
    /// Its initrd.
    pub initrd: Option<PathBuf>,
    /// Its parameters, as the spec states them.
    pub cmdline: String,
}

/// The source of a base image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseSource {
    /// `file`: an image file on this host.
    File(PathBuf),
    /// `url`: a file that is downloaded once.
    Url(RemoteBase),
    /// `image`: `name`, `name@version` or `name@tag` in the store.
    Image(String),
    /// `spec`: the image of another spec, built first if it is not up to date.
    Spec {
        /// Path of the spec file, or of the folder with its `kiln.toml`.
        file: PathBuf,
        /// The variant of that spec, if one is named.
        variant: Option<String>,
    },
}

/// A base image that is downloaded. Its digest is either in the spec, or in `sums`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteBase {
    /// URLs of the file, the preferred one first; never empty.
    pub urls: Vec<Url>,
    /// The list of digests that contains the file's digest.
    pub sums: Option<SumsSpec>,
}

/// A `SHA256SUMS` or `SHA512SUMS` file, and how it is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SumsSpec {
    /// URL of the file.
    pub url: Url,
    /// How the file is verified.
    pub trust: SumsVerification,
}

/// The verification of a file of digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SumsVerification {
    /// By its own SHA-256 digest.
    Sha256(Sha256Digest),
    /// By a detached signature.
    Signature {
        /// URL of the signature.
        url: Url,
        /// The public key, of OpenSSH, minisign or `OpenPGP`, on this host.
        key: PathBuf,
    },
}

/// The format of a base image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum BaseFormat {
    /// QEMU's copy-on-write format.
    #[default]
    Qcow2,
    /// The bytes of the disk.
    Raw,
}

/// The `[machine]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    /// Number of virtual CPUs, 1 to 255; the plan caps it at the host's.
    pub cpus: u8,
    /// Guest memory, 128 MiB to 1 TiB.
    pub memory: ByteSize,
    /// Virtual disk size, a multiple of 1 MiB; `None` for the base image's own.
    pub disk: Option<ByteSize>,
    /// The firmware that starts the boot loader.
    pub firmware: FirmwareKind,
    /// How the guest of a build is started.
    pub boot: BootMode,
    /// What starts the agent in a guest that boots in full.
    pub agent: AgentChoice,
    /// The accelerator that the spec asks for.
    pub accel: AccelChoice,
    /// The network of the guest.
    pub network: NetworkBackend,
    /// How long the agent may take to answer; the plan scales it under software emulation.
    pub boot_timeout: Duration,
}

/// Firmware of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FirmwareKind {
    /// Legacy BIOS: QEMU's `SeaBIOS`.
    #[default]
    Bios,
    /// UEFI firmware: OVMF.
    Uefi,
}

impl FirmwareKind {
    /// All kinds of firmware.
    pub const ALL: [Self; 2] = [Self::Bios, Self::Uefi];

    /// Returns the name in specs and manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            FirmwareKind::Bios => "bios",
            FirmwareKind::Uefi => "uefi",
        }
    }

    /// Returns the kind with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// How the guest of a build is started. Tests always boot it in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BootMode {
    /// Firmware, boot loader, init and services.
    #[default]
    Full,
    /// QEMU starts the kernel of the image, and kiln's agent is its first process.
    Direct,
}

impl BootMode {
    /// All modes.
    pub const ALL: [Self; 2] = [Self::Full, Self::Direct];

    /// Returns the name in specs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            BootMode::Full => "full",
            BootMode::Direct => "direct",
        }
    }
}

/// What starts kiln's agent in a guest that boots in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AgentChoice {
    /// cloud-init where it starts the agent, else the guest's init.
    #[default]
    Auto,
    /// cloud-init, from a seed.
    CloudInit,
    /// The guest's init: kiln plants the agent on the disk of the build, and removes it when it seals the image.
    Planted,
}

impl AgentChoice {
    /// All choices.
    pub const ALL: [Self; 3] = [Self::Auto, Self::CloudInit, Self::Planted];

    /// Returns the name in specs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            AgentChoice::Auto => "auto",
            AgentChoice::CloudInit => "cloud-init",
            AgentChoice::Planted => "planted",
        }
    }
}

/// The accelerator a spec asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccelChoice {
    /// KVM where a probe shows that it works, else software emulation.
    #[default]
    Auto,
    /// KVM is required.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// The network that the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkBackend {
    /// No network card at all.
    #[default]
    None,
    /// No network card; a proxy on the host answers the HTTP requests of steps, and records the answers in `kiln.lock`.
    Locked,
    /// QEMU's user-mode network.
    User,
}

impl NetworkBackend {
    /// All networks.
    pub const ALL: [Self; 3] = [Self::None, Self::Locked, Self::User];

    /// Returns the name in specs and manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            NetworkBackend::None => "none",
            NetworkBackend::Locked => "locked",
            NetworkBackend::User => "user",
        }
    }

    /// Returns whether the guest has a network card.
    #[must_use]
    pub const fn has_card(self) -> bool {
        match self {
            NetworkBackend::None | NetworkBackend::Locked => false,
            NetworkBackend::User => true,
        }
    }
}

/// A secret declared in `[secrets]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretDeclaration {
    /// The source of its value.
    pub source: SecretSource,
    /// Line of the declaration in the spec, from 1.
    pub line: usize,
}

/// The source of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// An environment variable of the kiln process.
    Env(String),
    /// A file on this host.
    File(PathBuf),
}

/// A `[[step]]` of the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepSpec {
    /// The step's name, unique in its spec; derived from the action where the spec gives none.
    pub name: String,
    /// The step's action.
    pub action: Action,
    /// How long the step may take; each try of it, if there are retries.
    pub timeout: Duration,
    /// How often the step is tried again if it fails; 0 for actions other than commands.
    pub retries: u8,
    /// The condition under which the step is part of a build; always, where there is none.
    pub when: Option<Condition>,
    /// Whether the step may come from the cache; with `false` it always runs, and so does everything after it.
    pub cache: bool,
    /// Line of the spec file on which the step begins, from 1.
    pub line: usize,
}

/// The action of a step: exactly one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `run`: a command in the guest.
    Run {
        /// The command to run.
        command: Command,
        /// User, working directory, environment and secrets of the command.
        context: Context,
    },
    /// `script`: a host file, sent to the guest and run by its own `#!` line.
    Script {
        /// Path of the script on this host.
        file: PathBuf,
        /// Arguments of the script.
        args: Vec<String>,
        /// User, working directory, environment and secrets of the script.
        context: Context,
    },
    /// `copy`: a file or folder from this host into the guest.
    Copy(Copy),
    /// `write`: a small file with content from the spec.
    Write {
        /// The whole content, with variables expanded.
        content: String,
        /// Absolute path in the guest.
        to: String,
        /// Owner and group, `root:root` by default.
        owner: FileOwner,
        /// Permission bits; `0644` by default.
        mode: u32,
    },
    /// `fetch`: a file or folder of the guest, kept beside the image.
    Fetch {
        /// Absolute path in the guest.
        from: String,
        /// Relative path, without `..`, below the version's folder.
        to: PathBuf,
    },
    /// `reboot = true`: the guest restarts.
    Reboot,
}

impl Action {
    /// Returns the key that names the action in a spec.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self {
            Action::Run { .. } => "run",
            Action::Script { .. } => "script",
            Action::Copy(_) => "copy",
            Action::Write { .. } => "write",
            Action::Fetch { .. } => "fetch",
            Action::Reboot => "reboot",
        }
    }

    /// Returns whether it runs a command in the guest: such steps see the variables, and download over a locked network.
    #[must_use]
    pub fn is_command(&self) -> bool {
        self.context().is_some()
    }

    /// Returns the context of the command that it runs, if it runs one.
    #[must_use]
    pub fn context(&self) -> Option<&Context> {
        match self {
            Action::Run { context, .. } | Action::Script { context, .. } => Some(context),
            Action::Copy(_) | Action::Write { .. } | Action::Fetch { .. } | Action::Reboot => None,
        }
    }
}

/// The `copy` action. A trailing slash on either side means what it means to cp and rsync: see `docs/spec.md`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Path of the file or folder on this host.
    pub from: PathBuf,
    /// Whether the source was written with a trailing slash: the content of the folder is copied, not the folder.
    pub contents: bool,
    /// Absolute path in the guest, without its trailing slash.
    pub to: String,
    /// Whether the destination was written with a trailing slash: it is a folder, and the source goes into it.
    pub into: bool,
    /// Owner and group of everything copied, `root:root` by default.
    pub owner: FileOwner,
    /// Permission bits of regular files; the source's own where `None`.
    pub mode: Option<u32>,
    /// Patterns of what is left out, relative to the copied folder.
    pub exclude: IgnoreRules,
}

/// A command of a `run` step or a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// A string for `sh -eu`.
    Shell(String),
    /// An argument vector, run without a shell; never empty.
    Argv(Vec<String>),
}

/// User, working directory, environment and secrets of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Additional environment variables.
    pub env: BTreeMap<String, String>,
    /// Names of variables of the host that are added to `env` when the build is planned.
    pub env_from_host: BTreeSet<String>,
    /// Name of the user in the guest.
    pub user: String,
    /// Working directory in the guest, absolute.
    pub dir: String,
    /// Names of the secrets that the command may read; each is declared.
    pub secrets: BTreeSet<String>,
}

/// An owner, `user:group` or `user`, by name or number, as the guest knows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOwner {
    /// User name or number.
    pub user: String,
    /// Group name or number; the user's own group where absent.
    pub group: Option<String>,
}

/// The `[seal]` table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SealSpec {
    /// Operations to skip; each is a name of [`seal::OPERATIONS`].
    pub skip: BTreeSet<String>,
}

/// An `[[output]]` of the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputSpec {
    /// Format of the output.
    pub format: OutputFormat,
    /// Compression of the disk inside; one that the format accepts.
    pub compression: Compression,
    /// The platforms that the image is for; may be empty.
    pub platforms: Vec<Platform>,
}

/// The `[build]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildSpec {
    /// How long the whole build may take.
    pub timeout: Duration,
}
