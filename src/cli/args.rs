//! Arguments of the command line, for clap.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::resolve::base::LockfileMode;
use crate::resolve::path_policy::{FileReach, NetworkReach, ReachPolicy};
use crate::size::ByteSize;
use crate::specfile::{Compression, OutputFormat, Overrides};

/// The disk-image compiler: a TOML spec in, a sealed, versioned, checksummed VM image out.
#[derive(Debug, Parser)]
#[command(
    name = "kiln",
    version,
    max_term_width = 100,
    after_help = "Exit codes: `kiln help-exit-codes`. Begin with `kiln init`."
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten, next_help_heading = "Global options")]
    pub global: GlobalArgs,
    /// The subcommand.
    #[command(subcommand)]
    pub verb: CliCommand,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct GlobalArgs {
    /// Where images are kept [env: `KILN_STORE`] [default: `$XDG_DATA_HOME/kiln/store`]
    #[arg(long, value_name = "DIR", global = true)]
    pub store: Option<PathBuf>,
    /// Where scratch disks and caches are kept [env: `KILN_CACHE`] [default: `$XDG_CACHE_HOME/kiln`]
    #[arg(long, value_name = "DIR", global = true)]
    pub cache: Option<PathBuf>,
    /// How progress is shown on standard error
    #[arg(long, value_enum, default_value_t, global = true)]
    pub progress: ProgressArg,
    /// Warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// The guest's console and details as well
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// Display of progress on standard error.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum ProgressArg {
    /// Bars on a terminal, else plain
    #[default]
    Auto,
    /// Live bars
    Bars,
    /// A line for each thing that happens
    Plain,
    /// A JSON object for each thing that happens
    Json,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// Build, seal, test and publish images
    Build(BuildArgs),
    /// Check specs without booting anything
    Check(CheckArgs),
    /// Show what a build would do
    Plan(PlanArgs),
    /// Pin base images in kiln.lock
    Lock(LockArgs),
    /// Run the tests of an image in the store
    Test(TestArgs),
    /// Open a terminal in the guest, in its state before or after a step
    Shell(ShellArgs),
    /// Boot a throw-away clone of an image, with its console on this terminal
    Run(RunArgs),
    /// List the images of the store
    List(JsonArgs),
    /// Show one image's manifest
    Inspect(InspectArgs),
    /// Recompute every checksum of an image, and check its signature
    Verify(VerifyArgs),
    /// Convert an image to another format, or describe it for libvirt or Terraform
    Export(ExportArgs),
    /// Compare two images, or disks that kiln did not build
    Diff(DiffArgs),
    /// Manage tags, movable names of versions: promote, roll back
    Tag(TagArgs),
    /// List the images that should be built again, and why
    Outdated(OutdatedArgs),
    /// Delete a version of an image
    Remove(RemoveArgs),
    /// Free space in the cache, and in the store
    Gc(GcArgs),
    /// Show how images are generalised
    Seal(SealArgs),
    /// Check host requirements
    Doctor(super::doctor::DoctorArgs),
    /// Write a commented spec to begin with
    Init(InitArgs),
    /// Print the JSON Schema of specs
    Schema,
    /// Print a completion script
    Completions(CompletionsArgs),
    /// Print the manual page
    Man,
    /// List the exit codes
    #[command(name = "help-exit-codes", hide = true)]
    ExitCodes,
}

/// Options for reading specs.
#[derive(Debug, Args)]
pub struct SpecArgs {
    /// Set a variable that the spec declares
    #[arg(long = "var", value_name = "K=V", value_parser = key_value)]
    pub vars: Vec<(String, String)>,
    /// Variant of the spec to use instead of the spec itself; build and check also take `all`, for every variant
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Let a spec be a symbolic link out of its project, and its steps, secrets, `base.spec` and file URLs name files
    /// outside of it; the project is the git work tree that the spec is named in, or else its folder
    #[arg(long)]
    pub allow_outside: bool,
    /// Let guests reach the addresses that the spec lists as `private` in `[network]`
    #[arg(long)]
    pub allow_private_network: bool,
    /// Let specs use this environment variable as a secret; may be repeated [default: those of the configuration file]
    #[arg(long = "secret-env", value_name = "NAME")]
    pub secret_env: Vec<String>,
}

/// Options for where base images may come from.
#[derive(Debug, Clone, Copy, Args)]
pub struct SourceArgs {
    /// Require an up-to-date kiln.lock: fail if an entry for a base image is missing or stale
    #[arg(long)]
    pub locked: bool,
    /// Download nothing
    #[arg(long)]
    pub offline: bool,
}

impl SourceArgs {
    /// Returns how `kiln.lock` is used.
    #[must_use]
    pub fn locking(self) -> LockfileMode {
        if self.locked { LockfileMode::Require } else { LockfileMode::Follow }
    }
}

impl SpecArgs {
    /// Returns the values that the command line overrides in a spec.
    #[must_use]
    pub fn overrides(&self, version: Option<&String>) -> Overrides {
        Overrides { version: version.cloned(), vars: self.vars.clone(), variant: self.variant.clone() }
    }

    /// Returns which files and addresses the spec may use.
    #[must_use]
    pub fn reach(&self) -> ReachPolicy {
        ReachPolicy {
            files: if self.allow_outside { FileReach::Host } else { FileReach::Project },
            network: if self.allow_private_network { NetworkReach::Private } else { NetworkReach::Public },
        }
    }
}

/// Arguments of `kiln build`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that is typed")]
#[command(
    after_help = "Example:\n  kiln build images/hello\n  kiln build web.toml --version 1.4.1 --var site=example.org -o \
        out/\n  kiln build images --jobs 4\n\n\
        What a spec is built on is built first, if it is not up to date. Several images are built at once, \
        as far as the processors and the memory of this host allow."
)]
pub struct BuildArgs {
    /// Spec files, folders with a kiln.toml, or folders that contain such folders
    #[arg(required = true, value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    /// How many images are built at once [default: one for each processor]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// The version to build, instead of the spec's
    #[arg(long, value_name = "V")]
    pub version: Option<String>,
    /// Options for reading specs.
    #[command(flatten)]
    pub reading: SpecArgs,
    /// Options for where base images may come from.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// Run every step, even if its result is in the cache
    #[arg(long)]
    pub no_cache: bool,
    /// Also copy the files to this folder; those of several images into a folder NAME-VERSION each
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Replace a version that was built from other inputs
    #[arg(long)]
    pub replace: bool,
    /// Sign SHA256SUMS with this OpenSSH or minisign key, also if the version is up to date
    #[arg(long, value_name = "KEY")]
    pub sign: Option<PathBuf>,
    /// Skip the tests and record that in the manifest
    #[arg(long)]
    pub no_test: bool,
    /// Build twice from scratch, with different clocks, memory sizes and numbers of processors, and list the files that
    /// differ. Publishes nothing
    #[arg(long, conflicts_with_all = ["output", "replace", "no_test", "json", "sign"])]
    pub check_reproducible: bool,
    /// What to do with the guest when a step fails
    #[arg(long, value_enum, default_value_t)]
    pub on_failure: OnFailureArg,
    /// Print the manifest instead of the paths
    #[arg(long)]
    pub json: bool,
}

/// Handling of the guest when a step fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OnFailureArg {
    /// Delete it
    #[default]
    Clean,
    /// Keep its disk, console and log, and print where they are
    Keep,
    /// Open a shell in it, on this terminal, then delete it
    Shell,
}

/// Arguments of `kiln lock`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln lock images && git add images/*/kiln.lock\n  kiln build images --locked\n\n\
        Writes kiln.lock beside each spec. Builds follow it: a tag that moves and a list of digests that \
        changes make no difference until `kiln lock` is run again.")]
pub struct LockArgs {
    /// Spec files, folders with a kiln.toml, or folders that contain such folders
    #[arg(required = true, value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    /// Download nothing
    #[arg(long)]
    pub offline: bool,
    /// Let a spec be a symbolic link out of its project, and be built on specs and files outside of it; the project is the
    /// git work tree that the spec is named in, or else its folder
    #[arg(long)]
    pub allow_outside: bool,
}

impl LockArgs {
    /// Returns which files the specs may use.
    #[must_use]
    pub fn reach(&self) -> FileReach {
        if self.allow_outside { FileReach::Host } else { FileReach::Project }
    }
}

/// Arguments of `kiln test`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  kiln test images/nginx --filter 'port|unit'\n  kiln test web@1.4.0 --junit report.xml\n\n\
        A spec's tests are taken as they are written now, and its image as it is in the store: tests can be \
        worked on without building again. An image is tested as it was when it was built."
)]
pub struct TestArgs {
    /// A spec file, a folder with a kiln.toml, or an image: `name`, `name@version` or `name@tag`
    #[arg(value_name = "SPEC|IMAGE")]
    pub target: String,
    /// Version of the spec's image, instead of the spec's own
    #[arg(long, value_name = "V")]
    pub version: Option<String>,
    /// Options for reading specs.
    #[command(flatten)]
    pub reading: SpecArgs,
    /// Run all tests on every image file; by default the first one is tested and each other one is booted
    #[arg(long)]
    pub all_formats: bool,
    /// Run only the tests with a match of this regular expression in their name
    #[arg(long, value_name = "RE")]
    pub filter: Option<regex_lite::Regex>,
    /// Also write a `JUnit` XML report to this file
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `kiln shell`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln shell images/nginx --at 3\n  echo 'dpkg -l' | kiln shell images/nginx\n\n\
        Steps that are not in the cache are done first. What is done in the shell is thrown away. Its exit \
        code is kiln's. Ctrl-] three times within a second ends a shell that hangs.")]
pub struct ShellArgs {
    /// A spec file, or a folder with a kiln.toml
    pub spec: PathBuf,
    /// Open the shell before this step, given by its number or name
    #[arg(long, value_name = "STEP", conflicts_with = "after")]
    pub at: Option<String>,
    /// Open the shell after this step [default: the last one]
    #[arg(long, value_name = "STEP")]
    pub after: Option<String>,
    /// Options for reading specs.
    #[command(flatten)]
    pub reading: SpecArgs,
    /// Options for where base images may come from.
    #[command(flatten)]
    pub sources: SourceArgs,
}

/// Arguments of `kiln check`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln check images/*")]
pub struct CheckArgs {
    /// Spec files, folders with a kiln.toml, or folders that contain such folders
    #[arg(required = true, value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    /// Options for reading specs.
    #[command(flatten)]
    pub reading: SpecArgs,
    /// Options for where base images may come from.
    #[command(flatten)]
    pub sources: SourceArgs,
}

/// Arguments of `kiln plan`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln plan images/nginx --json | jq .steps")]
pub struct PlanArgs {
    /// A spec file, or a folder with a kiln.toml
    #[arg(value_name = "SPEC")]
    pub spec: PathBuf,
    /// The version to build, instead of the spec's
    #[arg(long, value_name = "V")]
    pub version: Option<String>,
    /// Options for reading specs.
    #[command(flatten)]
    pub reading: SpecArgs,
    /// Options for where base images may come from.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `kiln run`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln run hello --ssh 2222\n\n\
        Ctrl-A X ends the machine, Ctrl-A H lists the other keys.")]
pub struct RunArgs {
    /// `name`, `name@version` or `name@tag`
    pub image: String,
    /// Guest memory
    #[arg(long, default_value = "1GiB")]
    pub memory: ByteSize,
    /// Forward this port of the host to the guest's SSH
    #[arg(long, value_name = "PORT")]
    pub ssh: Option<u16>,
    /// Let the guest reach this host and private networks as well as public addresses
    #[arg(long)]
    pub allow_private_network: bool,
}

/// Arguments of a subcommand that can print JSON.
#[derive(Debug, Args)]
pub struct JsonArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `kiln inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln inspect web@1.4.0 --json | jq .packages")]
pub struct InspectArgs {
    /// `name`, `name@version` or `name@tag`
    pub image: String,
    /// Print the manifest itself
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `kiln tag`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that is typed")]
#[command(after_help = "Examples:\n  kiln tag web@1.4.0 candidate        name a version\n  \
        kiln tag web@candidate stable       promote: stable is what candidate is\n  \
        kiln tag web stable --rollback      stable is again what it was before\n  \
        kiln tag web                        list the tags\n  \
        kiln tag web --history stable       when stable named what, and how that came\n  \
        kiln tag web --delete candidate\n\n\
        A tag names one version of one image, and moves in one step: whoever asks for web@stable meanwhile gets the old \
        version or the new one. No tag can have the name of a version of its image, nor a version that of a tag.")]
pub struct TagArgs {
    /// Image to tag: `name`, `name@version` or `name@tag`; a bare name is its newest version
    pub image: String,
    /// The tag; without one, the tags of the image are listed
    pub tag: Option<crate::store::Tag>,
    /// Restore the tag's previous target; repeating it steps further back
    #[arg(long, conflicts_with_all = ["delete", "history"])]
    pub rollback: bool,
    /// Delete the tag
    #[arg(short, long, conflicts_with = "history")]
    pub delete: bool,
    /// List the changes of the tag, or of all tags of the image, newest first
    #[arg(long)]
    pub history: bool,
    /// Print JSON; for a change, what it changed
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `kiln remove`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln remove web@1.3.0\n\n\
        What a tag names is not removed: move the tag, or take it off with `kiln tag web --delete TAG`. What \
        another image of the store was made from is removed with --force alone.")]
pub struct RemoveArgs {
    /// `name`, `name@version` or `name@tag`; a bare name is its newest version
    pub image: String,
    /// Also remove a version that another image was built from: that image still works, but cannot be rebuilt from it
    #[arg(short, long)]
    pub force: bool,
}

/// Arguments of `kiln outdated`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln outdated\n  kiln outdated images --exit-code || kiln build images\n\n\
        Looked at are the newest version of each image and those that tags name: whether the image or file \
        that they were made from is another by now, or should itself be built again. With specs, also \
        whether those, or what their steps bring, have changed since. Nothing is downloaded.")]
pub struct OutdatedArgs {
    /// Also compare with these specs: spec files, folders with a kiln.toml, or folders that contain such folders
    #[arg(value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    /// Options for reading specs.
    #[command(flatten)]
    pub reading: SpecArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Exit with code 1 if anything is outdated
    #[arg(long)]
    pub exit_code: bool,
}

/// Arguments of `kiln gc`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln gc --keep-cache 5GiB\n  kiln gc --keep 5 --dry-run\n  kiln gc --keep 2 web\n\n\
        Without --keep no published version is touched. With it, what a tag names is kept as well, and what \
        an image that is kept was made from; so is what is read or built. The version that a rollback would \
        lead to is not, if it is too old."
)]
pub struct GcArgs {
    /// Size limit of the step cache, and likewise of downloads, such as `5GiB` [default: 20GiB, or a tenth of the disk]
    #[arg(long, value_name = "SIZE")]
    pub keep_cache: Option<ByteSize>,
    /// Also remove versions from the store: all but the newest N of each image, and those that are needed
    #[arg(long, value_name = "N")]
    pub keep: Option<NonZeroUsize>,
    /// Remove versions of these images only
    #[arg(value_name = "IMAGE", requires = "keep")]
    pub images: Vec<String>,
    /// Remove nothing, and print what would be removed
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `kiln diff`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that is typed")]
#[command(after_help = "Example:\n  kiln diff web@1.4.0 web --stat\n  kiln diff downloads/debian-12.qcow2 web")]
pub struct DiffArgs {
    /// An image, `name`, `name@version` or `name@tag`, or the path of a qcow2 or raw disk
    pub a: String,
    /// The image or disk to compare it with
    pub b: String,
    /// Print numbers only: files, packages and size by folder
    #[arg(long)]
    pub stat: bool,
    /// Compare modification times as well
    #[arg(long)]
    pub mtime: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "stat")]
    pub json: bool,
    /// Exit with code 1 if anything differs or could not be compared
    #[arg(long)]
    pub exit_code: bool,
    /// Show what changed in /etc/shadow, /etc/gshadow and private keys, password hashes and keys included
    #[arg(long)]
    pub show_secrets: bool,
    /// The format of disks whose names do not end in .qcow2 or .raw
    #[arg(long, value_enum)]
    pub format: Option<DiskFormatArg>,
}

/// Format of a disk file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DiskFormatArg {
    /// QEMU's copy-on-write format
    Qcow2,
    /// A raw disk: the bytes of the disk
    Raw,
}

/// Arguments of `kiln export`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  kiln export web@1.4.0 --format vmdk -o out/\n  kiln export web@stable --simplestreams -o \
        /srv/www/incus\n  kiln export web@stable --libvirt -o /var/lib/libvirt/images && virsh define \
        /var/lib/libvirt/images/web-1.4.0.xml\n  kiln export web@stable --terraform -o infra\n\n\
        In Terraform, `program = [\"kiln\", \"export\", \"web@stable\", \"--external\"]` is an external data \
        source."
)]
pub struct ExportArgs {
    /// `name`, `name@version` or `name@tag`
    pub image: String,
    /// The requested form of the image.
    #[command(flatten)]
    pub form: ExportForm,
    /// Compression inside that format, if the format allows a choice
    #[arg(long, value_name = "C", requires = "format", value_parser = named(&Compression::ALL, Compression::name))]
    pub compression: Option<Compression>,
    /// The folder to write to; with a --format of one file also its name
    #[arg(short, long, value_name = "PATH", default_value = ".")]
    pub output: PathBuf,
    /// Overwrite files that differ
    #[arg(long)]
    pub replace: bool,
    /// With --format: print the manifest entries of the files instead of their paths
    #[arg(long, requires = "format")]
    pub json: bool,
}

/// The form to export an image in.
#[derive(Debug, Clone, Copy, Default, Args)]
#[group(required = true, multiple = false)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that is typed")]
pub struct ExportForm {
    /// The files of an output in this format, verified as in a build
    #[arg(long, value_name = "F", value_parser = named(OutputFormat::ALL, OutputFormat::name))]
    pub format: Option<OutputFormat>,
    /// An entry in a simplestreams tree, which Incus and LXD read from an HTTPS server
    #[arg(long)]
    pub simplestreams: bool,
    /// A libvirt domain, and the copy of the disk that it uses
    #[arg(long)]
    pub libvirt: bool,
    /// A Terraform configuration that uploads the image with the libvirt provider
    #[arg(long)]
    pub terraform: bool,
    /// The input of Terraform's `external` data source, on standard output
    #[arg(long, conflicts_with = "output")]
    pub external: bool,
}

/// Arguments of `kiln verify`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln verify web --key release.pub\n  kiln verify web@1.4.0 --allowed-signers \
        .ssh/allowed_signers")]
pub struct VerifyArgs {
    /// `name`, `name@version` or `name@tag`
    pub image: String,
    /// The public key that must have signed it, of OpenSSH or minisign
    #[arg(long, value_name = "PUB", conflicts_with = "allowed_signers")]
    pub key: Option<PathBuf>,
    /// OpenSSH's list of allowed signers, as in ssh-keygen(1), ALLOWED SIGNERS
    #[arg(long, value_name = "FILE")]
    pub allowed_signers: Option<PathBuf>,
}

/// Arguments of `kiln seal`.
#[derive(Debug, Args)]
pub struct SealArgs {
    /// List every operation, one per line
    #[arg(long, required = true)]
    pub list: bool,
}

/// Arguments of `kiln init`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln init web && $EDITOR web/kiln.toml")]
pub struct InitArgs {
    /// Where to write kiln.toml
    #[arg(default_value = ".", value_name = "DIR")]
    pub folder: PathBuf,
}

/// Arguments of `kiln completions`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln completions bash >~/.local/share/bash-completion/completions/kiln")]
pub struct CompletionsArgs {
    /// The shell to complete for
    pub shell: clap_complete::Shell,
}

/// Returns a parser of values that are given by their names.
fn named<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let names = PossibleValuesParser::new(all.iter().map(|value| name(*value)));
    names.map(move |typed| all.iter().copied().find(|value| name(*value) == typed).expect("one of the possible values"))
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| "write it as NAME=VALUE".to_owned())?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_explains_itself() {
        for verb in Cli::command().get_subcommands() {
            assert!(verb.get_about().is_some(), "{} has no description", verb.get_name());
        }
    }
}
