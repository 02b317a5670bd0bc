//! The command line: what may be typed.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::build::base::Locking;
use crate::build::reach::{FileReach, NetworkReach, Reach};
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
    /// Options every verb takes.
    #[command(flatten, next_help_heading = "Global options")]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options every verb takes.
#[derive(Debug, Args)]
pub struct Global {
    /// Where images are kept [env: `KILN_STORE`] [default: `$XDG_DATA_HOME/kiln/store`]
    #[arg(long, value_name = "DIR", global = true)]
    pub store: Option<PathBuf>,
    /// Where scratch disks and caches are kept [env: `KILN_CACHE`] [default: `$XDG_CACHE_HOME/kiln`]
    #[arg(long, value_name = "DIR", global = true)]
    pub cache: Option<PathBuf>,
    /// How progress is shown on standard error
    #[arg(long, value_enum, default_value_t, global = true)]
    pub progress: Progress,
    /// Warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// The guest's console and details as well
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Progress {
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

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Build, seal, test and publish images
    Build(Build),
    /// Check specs without booting anything
    Check(Specs),
    /// Show what a build would do
    Plan(Plan),
    /// Write down which base images specs are built on, for others to build on the same
    Lock(Lock),
    /// Run the tests of an image that is in the store
    Test(Test),
    /// Open a terminal in the guest as it stands before or after a step
    Shell(Shell),
    /// Boot a throw-away clone of an image, its console on this terminal
    Run(Run),
    /// List the images of the store
    List(Json),
    /// Show one image's manifest
    Inspect(Inspect),
    /// Recompute every checksum of an image, and check its signature
    Verify(Verify),
    /// Make another format of an image, or describe it for libvirt or Terraform
    Export(Export),
    /// Tell what differs between two images, or disks that kiln did not build
    Diff(Diff),
    /// Give versions names that move: promote, roll back
    Tag(Tag),
    /// Tell which images should be built again, and why
    Outdated(Outdated),
    /// Delete a version of an image
    Remove(Remove),
    /// Make room in the cache, and in the store
    Gc(Gc),
    /// Tell how an image is generalised
    Seal(Seal),
    /// Tell whether this host is fit, and how to mend it
    Doctor(super::doctor::DoctorArgs),
    /// Write a commented spec to begin with
    Init(Init),
    /// Print the JSON Schema of specs
    Schema,
    /// Print a completion script
    Completions(Completions),
    /// Print the manual page
    Man,
    /// List the exit codes
    #[command(name = "help-exit-codes", hide = true)]
    ExitCodes,
}

/// How specs are read, whatever is done with them.
#[derive(Debug, Args)]
pub struct Reading {
    /// Set a variable that the spec declares
    #[arg(long = "var", value_name = "K=V", value_parser = key_value)]
    pub vars: Vec<(String, String)>,
    /// A variant of the spec, instead of the spec as it stands; with build and check, `all` is each of them
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Let a spec be a link out of its project, and its steps, secrets, `base.spec` and file URLs name files outside of it: the
    /// git work tree that the spec is named in, or else the folder
    #[arg(long)]
    pub allow_outside: bool,
    /// Let guests reach what the spec lists as `private` in `[network]`
    #[arg(long)]
    pub allow_private_network: bool,
    /// Let specs take this environment variable as a secret; may be repeated [default: those of the configuration file]
    #[arg(long = "secret-env", value_name = "NAME")]
    pub secret_env: Vec<String>,
}

/// Where base images may come from.
#[derive(Debug, Clone, Copy, Args)]
pub struct Sources {
    /// Insist on kiln.lock: fail where it has no entry for a base image, or a stale one
    #[arg(long)]
    pub locked: bool,
    /// Download nothing
    #[arg(long)]
    pub offline: bool,
}

impl Sources {
    /// What `kiln.lock` is good for.
    #[must_use]
    pub fn locking(self) -> Locking {
        if self.locked { Locking::Require } else { Locking::Follow }
    }
}

impl Reading {
    /// What the command line changes in a spec.
    #[must_use]
    pub fn overrides(&self, version: Option<&String>) -> Overrides {
        Overrides { version: version.cloned(), vars: self.vars.clone(), variant: self.variant.clone() }
    }

    /// How far the spec may reach.
    #[must_use]
    pub fn reach(&self) -> Reach {
        Reach {
            files: if self.allow_outside { FileReach::Host } else { FileReach::Project },
            network: if self.allow_private_network { NetworkReach::Private } else { NetworkReach::Public },
        }
    }
}

/// `kiln build`
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that is typed")]
#[command(
    after_help = "Example:\n  kiln build images/hello\n  kiln build web.toml --version 1.4.1 --var site=example.org -o \
        out/\n  kiln build images --jobs 4\n\n\
        What a spec is built on is built first, if it is not up to date. Several images are built at once, \
        as far as the processors and the memory of this host allow."
)]
pub struct Build {
    /// Spec files, folders with a kiln.toml, or folders with such folders in them
    #[arg(required = true, value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    /// How many images are built at once [default: one for each processor]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// The version to build, instead of the spec's
    #[arg(long, value_name = "V")]
    pub version: Option<String>,
    /// How specs are read.
    #[command(flatten)]
    pub reading: Reading,
    /// Where base images may come from.
    #[command(flatten)]
    pub sources: Sources,
    /// Run every step, whatever is cached
    #[arg(long)]
    pub no_cache: bool,
    /// Also put the files there; those of several images into a folder NAME-VERSION each
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Replace a version that was built from other inputs
    #[arg(long)]
    pub replace: bool,
    /// Sign SHA256SUMS with this key, of OpenSSH or minisign; also of a version that is up to date
    #[arg(long, value_name = "KEY")]
    pub sign: Option<PathBuf>,
    /// Skip the tests; the manifest says so
    #[arg(long)]
    pub no_test: bool,
    /// Build twice from scratch, with another clock, memory size and number of processors, and tell which files differ.
    /// Publishes nothing
    #[arg(long, conflicts_with_all = ["output", "replace", "no_test", "json", "sign"])]
    pub check_reproducible: bool,
    /// What becomes of the guest when a step fails
    #[arg(long, value_enum, default_value_t)]
    pub on_failure: OnFailure,
    /// Print the manifest instead of the paths
    #[arg(long)]
    pub json: bool,
}

/// What becomes of the guest when a step fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OnFailure {
    /// Throw it away
    #[default]
    Clean,
    /// Keep its disk, console and log, and say where
    Keep,
    /// Open a shell in it, on this terminal, then throw it away
    Shell,
}

/// `kiln lock`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln lock images && git add images/*/kiln.lock\n  kiln build images --locked\n\n\
        Writes kiln.lock beside each spec. Builds follow it: a tag that moves and a list of digests that \
        changes make no difference until `kiln lock` is run again.")]
pub struct Lock {
    /// Spec files, folders with a kiln.toml, or folders with such folders in them
    #[arg(required = true, value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    /// Download nothing
    #[arg(long)]
    pub offline: bool,
    /// Let a spec be a link out of its project, and be built on specs and files outside of it: the git work tree that the spec
    /// is named in, or else the folder
    #[arg(long)]
    pub allow_outside: bool,
}

impl Lock {
    /// Returns how far the specs may reach.
    #[must_use]
    pub fn reach(&self) -> FileReach {
        if self.allow_outside { FileReach::Host } else { FileReach::Project }
    }
}

/// `kiln test`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  kiln test images/nginx --filter 'port|unit'\n  kiln test web@1.4.0 --junit report.xml\n\n\
        A spec's tests are taken as they are written now, and its image as it is in the store: tests can be \
        worked on without building again. An image is tested as it was when it was built."
)]
pub struct Test {
    /// A spec file, a folder with a kiln.toml, or an image: `name`, `name@version` or `name@tag`
    #[arg(value_name = "SPEC|IMAGE")]
    pub target: String,
    /// The version of the spec's image, instead of the spec's own
    #[arg(long, value_name = "V")]
    pub version: Option<String>,
    /// How specs are read.
    #[command(flatten)]
    pub reading: Reading,
    /// All tests on every image file; else all on the first one, and each other one is booted
    #[arg(long)]
    pub all_formats: bool,
    /// Only tests whose name matches this regular expression somewhere
    #[arg(long, value_name = "RE")]
    pub filter: Option<regex_lite::Regex>,
    /// Also write a report there, in the XML of `JUnit`
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `kiln shell`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln shell images/nginx --at 3\n  echo 'dpkg -l' | kiln shell images/nginx\n\n\
        Steps that are not in the cache are done first. What is done in the shell is thrown away. Its exit \
        code is kiln's. Ctrl-] three times within a second ends a shell that hangs.")]
pub struct Shell {
    /// A spec file, or a folder with a kiln.toml
    pub spec: PathBuf,
    /// As the guest stands before this step: its number or its name
    #[arg(long, value_name = "STEP", conflicts_with = "after")]
    pub at: Option<String>,
    /// As the guest stands after this step [default: the last one]
    #[arg(long, value_name = "STEP")]
    pub after: Option<String>,
    /// How specs are read.
    #[command(flatten)]
    pub reading: Reading,
    /// Where base images may come from.
    #[command(flatten)]
    pub sources: Sources,
}

/// `kiln check`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln check images/*")]
pub struct Specs {
    /// Spec files, folders with a kiln.toml, or folders with such folders in them
    #[arg(required = true, value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    /// How specs are read.
    #[command(flatten)]
    pub reading: Reading,
    /// Where base images may come from.
    #[command(flatten)]
    pub sources: Sources,
}

/// `kiln plan`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln plan images/nginx --json | jq .steps")]
pub struct Plan {
    /// A spec file, or a folder with a kiln.toml
    #[arg(value_name = "SPEC")]
    pub spec: PathBuf,
    /// The version to build, instead of the spec's
    #[arg(long, value_name = "V")]
    pub version: Option<String>,
    /// How specs are read.
    #[command(flatten)]
    pub reading: Reading,
    /// Where base images may come from.
    #[command(flatten)]
    pub sources: Sources,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `kiln run`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln run hello --ssh 2222\n\n\
        Ctrl-A X ends the machine, Ctrl-A H lists the other keys.")]
pub struct Run {
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

/// A verb that can answer in JSON.
#[derive(Debug, Args)]
pub struct Json {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `kiln inspect`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln inspect web@1.4.0 --json | jq .packages")]
pub struct Inspect {
    /// `name`, `name@version` or `name@tag`
    pub image: String,
    /// The manifest itself
    #[arg(long)]
    pub json: bool,
}

/// `kiln tag`
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
pub struct Tag {
    /// What is tagged, `name`, `name@version` or `name@tag`; a bare name is its newest version
    pub image: String,
    /// The tag; without one, the tags of the image are listed
    pub tag: Option<crate::store::Tag>,
    /// Go back to the version that the tag named before; again, further back
    #[arg(long, conflicts_with_all = ["delete", "history"])]
    pub rollback: bool,
    /// Take the tag off
    #[arg(short, long, conflicts_with = "history")]
    pub delete: bool,
    /// List what was done to the tag, or to all tags of the image, newest first
    #[arg(long)]
    pub history: bool,
    /// As JSON; of a change, what it changed
    #[arg(long)]
    pub json: bool,
}

/// `kiln remove`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln remove web@1.3.0\n\n\
        What a tag names is not removed: move the tag, or take it off with `kiln tag web --delete TAG`. What \
        another image of the store was made from is removed with --force alone.")]
pub struct Remove {
    /// `name`, `name@version` or `name@tag`; a bare name is its newest version
    pub image: String,
    /// Also if another image was made from it: that one works on, but cannot be built again from it
    #[arg(short, long)]
    pub force: bool,
}

/// `kiln outdated`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln outdated\n  kiln outdated images --exit-code || kiln build images\n\n\
        Looked at are the newest version of each image and those that tags name: whether the image or file \
        that they were made from is another by now, or should itself be built again. With specs, also \
        whether those, or what their steps bring, have changed since. Nothing is downloaded.")]
pub struct Outdated {
    /// Also compare with these: spec files, folders with a kiln.toml, or folders with such folders in them
    #[arg(value_name = "SPEC")]
    pub specs: Vec<PathBuf>,
    /// How specs are read.
    #[command(flatten)]
    pub reading: Reading,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// End with 1 if anything is outdated
    #[arg(long)]
    pub exit_code: bool,
}

/// `kiln gc`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln gc --keep-cache 5GiB\n  kiln gc --keep 5 --dry-run\n  kiln gc --keep 2 web\n\n\
        Without --keep no published version is touched. With it, what a tag names is kept as well, and what \
        an image that is kept was made from; so is what is read or built. The version that a rollback would \
        lead to is not, if it is too old."
)]
pub struct Gc {
    /// How much may stay of the step cache, and as much of downloads, such as `5GiB` [default: 20GiB, or a tenth of the disk]
    #[arg(long, value_name = "SIZE")]
    pub keep_cache: Option<ByteSize>,
    /// Also remove versions from the store: all but the newest N of each image, and what is needed
    #[arg(long, value_name = "N")]
    pub keep: Option<NonZeroUsize>,
    /// Of these images alone, instead of all
    #[arg(value_name = "IMAGE", requires = "keep")]
    pub images: Vec<String>,
    /// Remove nothing, and say what would go
    #[arg(long)]
    pub dry_run: bool,
}

/// `kiln diff`
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that is typed")]
#[command(after_help = "Example:\n  kiln diff web@1.4.0 web --stat\n  kiln diff downloads/debian-12.qcow2 web")]
pub struct Diff {
    /// An image, `name`, `name@version` or `name@tag`, or the path of a qcow2 or raw disk
    pub a: String,
    /// What it is compared with
    pub b: String,
    /// Numbers alone: files, packages and size by folder
    #[arg(long)]
    pub stat: bool,
    /// Times count as well
    #[arg(long)]
    pub mtime: bool,
    /// As JSON
    #[arg(long, conflicts_with = "stat")]
    pub json: bool,
    /// End with 1 if anything differs or could not be compared
    #[arg(long)]
    pub exit_code: bool,
    /// Show what changed in /etc/shadow, /etc/gshadow and private keys, password hashes and keys included
    #[arg(long)]
    pub show_secrets: bool,
    /// The format of disks whose names do not end in .qcow2 or .raw
    #[arg(long, value_enum)]
    pub format: Option<DiskFormat>,
}

/// The format of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DiskFormat {
    /// QEMU's copy-on-write format
    Qcow2,
    /// The bytes of the disk
    Raw,
}

/// `kiln export`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  kiln export web@1.4.0 --format vmdk -o out/\n  kiln export web@stable --simplestreams -o \
        /srv/www/incus\n  kiln export web@stable --libvirt -o /var/lib/libvirt/images && virsh define \
        /var/lib/libvirt/images/web-1.4.0.xml\n  kiln export web@stable --terraform -o infra\n\n\
        In Terraform, `program = [\"kiln\", \"export\", \"web@stable\", \"--external\"]` is an external data \
        source."
)]
pub struct Export {
    /// `name`, `name@version` or `name@tag`
    pub image: String,
    /// For whom.
    #[command(flatten)]
    pub form: Form,
    /// The compression inside that format, where it leaves a choice
    #[arg(long, value_name = "C", requires = "format", value_parser = named(&Compression::ALL, Compression::name))]
    pub compression: Option<Compression>,
    /// The folder to write to; with a --format of one file also its name
    #[arg(short, long, value_name = "PATH", default_value = ".")]
    pub output: PathBuf,
    /// Overwrite files that differ
    #[arg(long)]
    pub replace: bool,
    /// With --format: print what a manifest says of the files instead of their paths
    #[arg(long, requires = "format")]
    pub json: bool,
}

/// What is made of an image.
#[derive(Debug, Clone, Copy, Default, Args)]
#[group(required = true, multiple = false)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that is typed")]
pub struct Form {
    /// The files of an output in this format, checked as in a build
    #[arg(long, value_name = "F", value_parser = named(OutputFormat::ALL, OutputFormat::name))]
    pub format: Option<OutputFormat>,
    /// An entry in a simplestreams tree, which Incus and LXD read from an HTTPS server
    #[arg(long)]
    pub simplestreams: bool,
    /// A domain for libvirt, and the copy of the disk that it runs
    #[arg(long)]
    pub libvirt: bool,
    /// A Terraform configuration that uploads the image with the libvirt provider
    #[arg(long)]
    pub terraform: bool,
    /// What Terraform's `external` data source reads, on standard output
    #[arg(long, conflicts_with = "output")]
    pub external: bool,
}

/// `kiln verify`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln verify web --key release.pub\n  kiln verify web@1.4.0 --allowed-signers \
        .ssh/allowed_signers")]
pub struct Verify {
    /// `name`, `name@version` or `name@tag`
    pub image: String,
    /// The public key that must have signed it, of OpenSSH or minisign
    #[arg(long, value_name = "PUB", conflicts_with = "allowed_signers")]
    pub key: Option<PathBuf>,
    /// Who may have signed it, as in ssh-keygen(1), ALLOWED SIGNERS
    #[arg(long, value_name = "FILE")]
    pub allowed_signers: Option<PathBuf>,
}

/// `kiln seal`
#[derive(Debug, Args)]
pub struct Seal {
    /// Name every operation, with a line each
    #[arg(long, required = true)]
    pub list: bool,
}

/// `kiln init`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln init web && $EDITOR web/kiln.toml")]
pub struct Init {
    /// Where to write kiln.toml
    #[arg(default_value = ".", value_name = "DIR")]
    pub folder: PathBuf,
}

/// `kiln completions`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln completions bash >~/.local/share/bash-completion/completions/kiln")]
pub struct Completions {
    /// Which shell
    pub shell: clap_complete::Shell,
}

/// One of these values, by its name.
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
