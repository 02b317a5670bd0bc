//! Text becomes a [`Spec`]: every key known, every value in range, every path resolved, every reference checked.
//!
//! ```text
//! kiln.toml -> Document (text with spans) -> Spec (no doubts left)
//!                        \-> SpecErrors (all of them at once, each with its span)
//! ```
//!
//! Nothing here reads anything but the spec file itself; whether the inputs exist is `plan`'s question.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::size::ByteSize;
use crate::url::Url;

mod arguments;
mod checks;
mod complaint;
mod compound;
mod document;
mod format;
pub mod giveaways;
mod keys;
mod load;
mod network;
mod paths;
pub mod platform;
mod reader;
pub mod seal;
mod shape;
mod spec_file;
mod steps;
pub(crate) mod suggest;
mod table;
mod template;
mod test;
mod validate;
mod variants;

pub use complaint::{LoadError, SpecError, SpecErrors};
pub use document::{Document, Position};
pub use format::{Compression, DiskFormat, OutputFormat};
pub(crate) use load::from_folder_of as resolve_path;
pub use network::{NetworkAccess, PrivateDestination};
pub use platform::Platform;
pub use spec_file::{MAX_BYTES, SpecFile, spec_file};
pub use test::{Check, FileCheck, Test};
pub use variants::EVERY_VARIANT;

/// What the command line changes in a spec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--version`, in place of the spec's own.
    pub version: Option<String>,
    /// `--var name=value`, in the order given; each name is one that `[vars]` declares.
    pub vars: Vec<(String, String)>,
    /// `--variant`: the one of `[variants]` that is laid over the rest.
    pub variant: Option<String>,
}

/// JSON Schema, draft 7, of a spec file, for editors. It comes from the declarations that specs are read with.
#[must_use]
pub fn schema() -> serde_json::Value {
    table::root_schema::<keys::Document>()
}

/// One image's specification, validated. Paths are absolute.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// The file it was read from.
    pub path: PathBuf,
    /// The variant that was laid over the rest; the image's name ends with it.
    pub variant: Option<String>,
    /// What is made.
    pub image: Image,
    /// What it is made from.
    pub base: Base,
    /// The virtual machine it is made in.
    pub machine: Machine,
    /// What the guest may reach over its network.
    pub network: NetworkAccess,
    /// Variables after `--var`; run and script steps see them as environment variables.
    pub vars: BTreeMap<String, String>,
    /// Where each secret comes from. The values are read by the build, never here.
    pub secrets: BTreeMap<String, SecretDeclaration>,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// What the sealed image is tested for.
    pub tests: Vec<Test>,
    /// How the guest is generalised.
    pub seal: Seal,
    /// The formats to write; never empty.
    pub outputs: Vec<Output>,
    /// Limits of the whole build.
    pub build: Build,
}

/// `[image]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `[a-z0-9][a-z0-9._-]{0,63}`
    pub name: String,
    /// `[A-Za-z0-9][A-Za-z0-9._+-]{0,63}`, after `--version`
    pub version: String,
    /// One line for people; may be empty.
    pub description: String,
    /// Free key-value pairs for the manifest.
    pub labels: BTreeMap<String, String>,
}

/// `[base]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Where it comes from.
    pub source: Source,
    /// 64 lower-case hex digits; of a download, the digest of what is downloaded.
    pub sha256: Option<String>,
    /// Stated, never guessed.
    pub format: BaseFormat,
}

/// Where a base image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `file`: an image file on this host.
    File(PathBuf),
    /// `url`: downloaded once.
    Url(Remote),
    /// `image`: `name`, `name@version` or `name@tag` of the store.
    Image(String),
    /// `spec`: the image of another spec, built first if it is not up to date.
    Spec {
        /// The spec file, or the folder with its `kiln.toml`.
        file: PathBuf,
        /// One of its variants.
        variant: Option<String>,
    },
}

/// A base image somewhere else. Either its digest is in the spec, or there are `sums`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Where it is, the preferred place first; never empty.
    pub urls: Vec<Url>,
    /// The list of digests that it is in.
    pub sums: Option<Sums>,
}

/// A `SHA256SUMS` or `SHA512SUMS` file, and why it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    /// Where it is.
    pub url: Url,
    /// What vouches for it.
    pub trust: Trust,
}

/// What vouches for a file of digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Its own digest.
    Sha256(String),
    /// A detached signature of it.
    Signature {
        /// Where the signature is.
        url: Url,
        /// The public key, of OpenSSH, minisign or `OpenPGP`, on this host.
        key: PathBuf,
    },
}

/// The format of a base image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BaseFormat {
    /// QEMU's copy-on-write format.
    #[default]
    Qcow2,
    /// The bytes of the disk.
    Raw,
}

/// `[machine]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Virtual CPUs asked for, 1 to 255; the plan caps them at the host's.
    pub cpus: u8,
    /// Guest memory, 128 MiB to 1 TiB.
    pub memory: ByteSize,
    /// Virtual disk size, a multiple of 1 MiB; `None` is the base's own.
    pub disk: Option<ByteSize>,
    /// What starts the boot loader.
    pub firmware: Firmware,
    /// Which accelerator may be used.
    pub accel: Accel,
    /// Whether the guest has a network card.
    pub network: Network,
    /// Until the agent answers; the plan scales it under software emulation.
    pub boot_timeout: Duration,
}

/// Firmware of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Firmware {
    /// `SeaBIOS`.
    #[default]
    Bios,
    /// OVMF.
    Uefi,
}

/// The accelerator a spec asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accel {
    /// KVM where a probe shows that it works, else software emulation.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// What network the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// No network card at all.
    #[default]
    None,
    /// QEMU's user-mode network.
    User,
}

/// A secret of `[secrets]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretDeclaration {
    /// Where its value comes from.
    pub source: SecretSource,
    /// Its line in the spec.
    pub line: usize,
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// An environment variable of the kiln process.
    Env(String),
    /// A file on this host.
    File(PathBuf),
}

/// `[[step]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Unique in its spec; made from the verb where the spec gives none.
    pub name: String,
    /// What to do.
    pub action: Action,
    /// How long it may take.
    pub timeout: Duration,
    /// `false`: always run, and everything after it too.
    pub cache: bool,
    /// Line of the spec file on which the step begins, from 1.
    pub line: usize,
}

/// What a step does: exactly one verb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `run`: a command in the guest.
    Run {
        /// What is executed.
        command: Command,
        /// Who, where and with what.
        context: Context,
    },
    /// `script`: a host file, sent to the guest and run by its own `#!` line.
    Script {
        /// The file on this host.
        file: PathBuf,
        /// Arguments.
        args: Vec<String>,
        /// Who, where and with what.
        context: Context,
    },
    /// `copy`: a file or folder from this host into the guest.
    Copy(Copy),
    /// `write`: a small file from text in the spec.
    Write {
        /// The whole content, variables filled in.
        content: String,
        /// Absolute path in the guest.
        to: String,
        /// Owner and group, `root:root` by default.
        owner: Owner,
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
    /// `reboot = true`
    Reboot,
}

/// `copy`. A trailing slash on either side means what it means to cp and rsync: see `docs/spec.md`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// The file or folder on this host.
    pub from: PathBuf,
    /// The source was written with a trailing slash: copy what is in the folder, not the folder.
    pub contents: bool,
    /// Absolute path in the guest, without its trailing slash.
    pub to: String,
    /// The destination was written with a trailing slash: it is a folder, and the source goes into it.
    pub into: bool,
    /// Owner and group of everything copied, `root:root` by default.
    pub owner: Owner,
    /// Permission bits of regular files; the source's own where `None`.
    pub mode: Option<u32>,
}

/// A command of a `run` step or a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Text for `sh -eu`.
    Shell(String),
    /// An argument vector, run without a shell; never empty.
    Argv(Vec<String>),
}

/// Who runs a command, where and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Extra environment variables.
    pub env: BTreeMap<String, String>,
    /// User name in the guest.
    pub user: String,
    /// Working directory in the guest, absolute.
    pub dir: String,
    /// Names of the secrets it may read; each is declared.
    pub secrets: BTreeSet<String>,
}

/// `user:group` or `user`, by name or number, as the guest knows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User name or number.
    pub user: String,
    /// Group name or number; the user's own group where absent.
    pub group: Option<String>,
}

/// `[seal]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seal {
    /// Operations left out; each is a name of [`seal::OPERATIONS`].
    pub skip: BTreeSet<String>,
}

/// `[[output]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// File format.
    pub format: OutputFormat,
    /// Of the disk inside; one that the format takes.
    pub compression: Compression,
    /// Where the image goes; may be empty.
    pub platforms: Vec<Platform>,
}

/// `[build]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// How long the whole build may take.
    pub timeout: Duration,
}
