//! Declarations of all keys of a spec: name, meaning, permitted values and default.
//!
//! The tables here hold what was read; `validate` turns them into the [`Spec`](super::Spec).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::digest::Sha256Digest;
use crate::ignore_patterns::IgnorePattern;
use crate::size::ByteSize;
use crate::url::Url;

use super::arguments::argument;
use super::compound_kinds::{CommandShape, DeclaredVariables, List, Map, OneOrMore, Variables};
use super::condition::{Condition, ConditionShape};
use super::document::SpannedValue;
use super::network::{host_pattern, private_destination};
use super::paths::{
    ACCOUNT, SlashedPath, guest_file, guest_folder, guest_path, host_path, ignore_pattern, kept_path, owner,
};
use super::platform::Platform;
use super::reader::{Section, SpecReader};
use super::table::{
    ChosenVariant, DefaultedKey, Field, KeySchema, Optional, Required, Table, Variant, Variants, of, one_of, table,
    variants,
};
use super::value_kinds::{
    Boolean, Integer, Mode, Word, choice, content, duration, line, location, reference, regex, sha256, size, text,
    title, word,
};
use super::{
    AccelChoice, AgentChoice, BaseFormat, BootMode, Command, Compression, FileOwner, FirmwareKind, HostPattern,
    NetworkBackend, OutputFormat, PrivateDestination, seal,
};

pub(super) const IMAGE_NAME: Word = Word::new("a-z0-9", "a-z0-9._-", 64);
pub(super) const IMAGE_VERSION: Word = Word::new("A-Za-z0-9", "A-Za-z0-9._+-", 64);
/// Name of a variant, with the characters that the end of an image's name may have.
const VARIANT: Word = Word::new("a-z0-9", "a-z0-9._-", 32);
const LABEL: Word = Word::new("A-Za-z0-9", "A-Za-z0-9._/-", 128);
const VARIABLE: Word = Word { reserved: "KILN_", ..Word::new("A-Za-z_", "A-Za-z0-9_", 128) };
/// Name of a unit, as in systemd.unit(5): letters, digits and `:-_.\\@`; the backslash is for escaped names.
const UNIT: Word = Word::new("A-Za-z0-9", r"A-Za-z0-9:_.\\@-", 255);
const PACKAGE: Word = Word::new("A-Za-z0-9", "A-Za-z0-9+._:-", 255);
const SECRET: Word = Word::new("A-Za-z0-9_", "A-Za-z0-9_.-", 64);

/// The longest name of a step or test, and the longest description, in characters.
const MAX_TITLE: usize = 200;
const MAX_LINE: usize = 1000;
/// The most characters of a kernel's command line. The kernel accepts 2047 (`COMMAND_LINE_SIZE` on x86), with what kiln adds.
const MAX_CMDLINE: usize = 1500;
/// The most steps of a spec. Specs are written by people; more steps are a generator's mistake.
const MAX_STEPS: usize = 1000;
/// The most retries of a step; with the pauses between them, they take most of an hour.
const MAX_RETRIES: u8 = 100;
/// The longest timeout: a week, in seconds.
const WEEK: u64 = 7 * 24 * 3600;
const TIB: u64 = 1 << 40;
const MEMORY: std::ops::RangeInclusive<ByteSize> = ByteSize::mib(128)..=ByteSize(TIB);
const DISK: std::ops::RangeInclusive<ByteSize> = ByteSize::mib(1)..=ByteSize(64 * TIB);

type Texts = BTreeMap<String, SpannedValue<String>>;

table! {
    /// A kiln image specification.
    Document {
        // Read first: any other key may contain variables.
        /// Variables: environment variables of run and script steps, and values of `{{ name }}` in any other string.
        /// `--var name=value` overrides one that is declared here.
        vars: BTreeMap<String, String> = DefaultedKey(Variables(VARIABLE), "{}"),
        /// The image's name, version and description.
        image: Option<SpannedValue<Image>> = Required(of::<Image>()),
        /// The base image.
        base: Option<SpannedValue<ChosenVariant<Base, Source>>> = Required(one_of::<Base, Source>()),
        /// The virtual machine of the build.
        machine: Machine = DefaultedKey(of::<Machine>(), "{}"),
        /// The destinations that the guest may reach over its network.
        network: NetworkAccess = DefaultedKey(of::<NetworkAccess>(), "{}"),
        /// Secrets, which steps read as files. They are kept out of the image, logs, cache keys and the manifest.
        secrets: BTreeMap<String, SpannedValue<ChosenVariant<Nothing, Secret>>> = DefaultedKey(Map(SECRET, one_of::<Nothing, Secret>()), "{}"),
        /// The steps, which run in the guest in this order.
        step: Vec<SpannedValue<ChosenVariant<Step, Verb>>> = DefaultedKey(List(one_of::<Step, Verb>(), MAX_STEPS), "[]"),
        /// Tests of the sealed image, which run in a freshly booted throw-away clone.
        test: Vec<SpannedValue<ChosenVariant<Test, Assertion>>> = DefaultedKey(List(one_of::<Test, Assertion>(), MAX_STEPS), "[]"),
        /// How the guest is generalised.
        seal: Seal = DefaultedKey(of::<Seal>(), "{}"),
        /// The files to write; by default, one zstd-compressed qcow2 file.
        output: Vec<SpannedValue<Output>> = DefaultedKey(List(of::<Output>(), 16), "[]"),
        /// Limits of the whole build.
        build: Build = DefaultedKey(of::<Build>(), "{}"),
        /// Variants: other images from the same file, each with its changes. `--variant NAME` builds one, whose image
        /// name ends in a hyphen and `NAME`.
        variants: BTreeMap<String, SpannedValue<Overlay>> = DefaultedKey(Map(VARIANT, of::<Overlay>()), "{}"),
    }
}

table! {
    /// The changes of a variant.
    Overlay {
        /// New values of variables that `[vars]` declares.
        vars: DeclaredVariables = DefaultedKey(DeclaredVariables(VARIABLE), "{}"),
        /// A base image that replaces the whole `[base]`.
        base: Option<SpannedValue<ChosenVariant<Base, Source>>> = Optional(one_of::<Base, Source>()),
        /// Keys that override those of `[machine]`.
        machine: Machine = DefaultedKey(of::<Machine>(), "{}"),
        /// Outputs that replace all `[[output]]`.
        output: Vec<SpannedValue<Output>> = DefaultedKey(List(of::<Output>(), 16), "[]"),
    }
}

table! {
    /// The image's name, version and description.
    Image {
        /// The image's name in the store.
        name: Option<SpannedValue<String>> = Required(word(IMAGE_NAME)),
        /// The version; `kiln build --version` overrides it.
        version: Option<SpannedValue<String>> = Required(word(IMAGE_VERSION)),
        /// A description of the image.
        description: String = DefaultedKey(line(MAX_LINE), "''"),
        /// Key-value pairs that are recorded in the manifest.
        labels: Texts = DefaultedKey(Map(LABEL, line(MAX_LINE)), "{}"),
    }
}

table! {
    /// Keys of every kind of base image.
    Base {
        /// The SHA-256 digest of the base image, checked before anything boots.
        sha256: Option<SpannedValue<Sha256Digest>> = Optional(sha256()),
        /// The format of the base image; it is never guessed.
        format: BaseFormat =
            DefaultedKey(choice([("qcow2", BaseFormat::Qcow2), ("raw", BaseFormat::Raw)], &["vmdk", "vhd", "vhdx", "vdi"]), "'qcow2'"),
        /// The Linux kernel that QEMU starts in place of firmware and boot loader: a bzImage, or an ELF file (`vmlinux`) with a
        /// PVH entry. By default, that of the image of the store, if it has one.
        kernel: Option<SpannedValue<SlashedPath<PathBuf>>> = Optional(host_path()),
        /// The initrd of `kernel`.
        initrd: Option<SpannedValue<SlashedPath<PathBuf>>> = Optional(host_path()),
        /// The parameters of `kernel`. Without `console=ttyS0` or `root=`, kiln adds them.
        cmdline: Option<SpannedValue<String>> = Optional(line(MAX_CMDLINE)),
    }
}

variants! {
    /// The source of the base image.
    Source, "the source of the base image" {
        "file": LocalFile, "url": RemoteFile, "image": StoredImage, "spec": OtherSpec,
    } later ["oci"]
}

table! {
    /// A disk image on this host.
    LocalFile {
        /// The image file; it is never written.
        file: Option<SpannedValue<SlashedPath<PathBuf>>> = Required(host_path()),
    }
}

table! {
    /// A disk image that is downloaded once. A file whose name ends in `.xz`, `.zst` or `.gz` is unpacked.
    RemoteFile {
        /// The URL of the file.
        url: Option<SpannedValue<Url>> = Required(location()),
        /// Other URLs of the same file, tried in this order.
        mirrors: Vec<SpannedValue<Url>> = DefaultedKey(List(location(), 16), "[]"),
        /// A `SHA256SUMS` or `SHA512SUMS` file that lists the file's digest, instead of `sha256`.
        sums: Option<SpannedValue<Url>> = Optional(location()),
        /// The SHA-256 digest of the `sums` file.
        sums_sha256: Option<SpannedValue<Sha256Digest>> = Optional(sha256()),
        /// A detached signature of the `sums` file, instead of its digest.
        sums_signature: Option<SpannedValue<Url>> = Optional(location()),
        /// The public key of the signature, of OpenSSH, minisign or `OpenPGP`.
        sums_key: Option<SpannedValue<SlashedPath<PathBuf>>> = Optional(host_path()),
    }
}

table! {
    /// An image of the store.
    StoredImage {
        /// The image: its newest version, or the version that is given or that a tag names.
        image: Option<SpannedValue<String>> = Required(reference(IMAGE_NAME, IMAGE_VERSION)),
    }
}

table! {
    /// The image of another spec, which is built first if it is not up to date.
    OtherSpec {
        /// The spec file, or the folder with its kiln.toml.
        spec: Option<SpannedValue<SlashedPath<PathBuf>>> = Required(host_path()),
        /// A variant of that spec.
        variant: Option<SpannedValue<String>> = Optional(word(VARIANT)),
    }
}

table! {
    /// The virtual machine of the build.
    Machine {
        /// Number of virtual CPUs, at most that of the host's CPUs.
        cpus: u8 = DefaultedKey(Integer(1_u8..=255), "2"),
        /// Memory of the guest during the build.
        memory: ByteSize = DefaultedKey(size(MEMORY), "'1GiB'"),
        /// Virtual size of the disk, at least that of the base image; by default, that of the base image.
        disk: Option<SpannedValue<ByteSize>> = Optional(size(DISK)),
        /// The firmware that starts the boot loader.
        firmware: FirmwareKind = DefaultedKey(choice(FirmwareKind::ALL.map(|kind| (kind.name(), kind)), &[]), "'bios'"),
        /// How the guest of a build starts: `full` is firmware, boot loader, init and services; with `direct`, QEMU starts the
        /// kernel of the image and no service runs, which takes seconds. Tests always boot in full.
        boot: BootMode = DefaultedKey(choice(BootMode::ALL.map(|mode| (mode.name(), mode)), &[]), "'full'"),
        /// What starts kiln's agent in a guest that boots in full: `cloud-init`, or with `planted` the init of the image, after
        /// a direct boot has put the agent on the disk; `auto` is `cloud-init` where that works in the image, else `planted`.
        agent: AgentChoice = DefaultedKey(choice(AgentChoice::ALL.map(|choice| (choice.name(), choice)), &[]), "'auto'"),
        /// `auto` uses KVM if it works and software emulation otherwise; `kvm` requires KVM; `tcg` is software
        /// emulation.
        accel: AccelChoice = DefaultedKey(choice([("auto", AccelChoice::Auto), ("kvm", AccelChoice::Kvm), ("tcg", AccelChoice::Tcg)], &[]), "'auto'"),
        /// `none` is no network; `locked` is no network card, but run and script steps can send HTTP and HTTPS requests, whose
        /// answers `kiln.lock` records; `user` is QEMU's user-mode network, which reaches public addresses only.
        network: NetworkBackend = DefaultedKey(choice(NetworkBackend::ALL.map(|network| (network.name(), network)), &[]), "'none'"),
        /// How long the guest may take to boot; extended under software emulation, which is reported.
        boot_timeout: Duration = DefaultedKey(duration(1..=WEEK), "'5m'"),
    }
}

table! {
    /// The destinations that the guest may reach over its network.
    NetworkAccess {
        /// Destinations in addition to public addresses, with `machine.network = "user"`: `host` is the host that runs
        /// the build. A build needs `--allow-private-network` for them.
        private: Vec<SpannedValue<PrivateDestination>> = DefaultedKey(List(private_destination(), 100), "[]"),
        /// Hosts to which steps can send requests, with `machine.network = "locked"`; by default, any host.
        allow: Vec<SpannedValue<HostPattern>> = DefaultedKey(List(host_pattern(), 100), "[]"),
    }
}

table! {
    /// Keys of all secrets: none.
    Nothing {}
}

variants! {
    /// The source of a secret.
    Secret, "the source of the secret" { "env": SecretEnv, "file": SecretFile, } later []
}

table! {
    /// A secret in an environment variable of the kiln process.
    SecretEnv {
        /// The environment variable.
        env: Option<SpannedValue<String>> = Required(word(Word::new("A-Za-z_", "A-Za-z0-9_", 128))),
    }
}

table! {
    /// A secret in a file on this host.
    SecretFile {
        /// The file.
        file: Option<SpannedValue<SlashedPath<PathBuf>>> = Required(host_path()),
    }
}

table! {
    /// Keys of all steps.
    Step {
        /// The name in output and logs; by default, it is derived from the action.
        name: Option<SpannedValue<String>> = Optional(title(MAX_TITLE)),
        /// How long the step may take; with `retry`, how long each try may take.
        timeout: Duration = DefaultedKey(duration(1..=WEEK), "'1h'"),
        /// A condition on the variables, the machine and the base image; without it, the step is always part of a build.
        when: Option<SpannedValue<Condition>> = Optional(ConditionShape),
        /// With `false`, this step and all later ones run in every build. A version whose inputs are unchanged is not
        /// built again without `--replace`.
        cache: bool = DefaultedKey(Boolean, "true"),
    }
}

variants! {
    /// The action of a step.
    Verb, "the step's action" {
        "run": RunCommand, "script": RunScript, "copy": CopyIn, "write": WriteFile, "fetch": FetchOut, "reboot": Reboot,
    } later []
}

table! {
    /// A command in the guest.
    RunCommand {
        /// The command: a string is a script for `sh -eu`, a list of strings is an argument vector that needs no shell.
        run: Option<SpannedValue<Command>> = Required(CommandShape),
        /// How often the step is tried again if it fails.
        retry: u8 = DefaultedKey(Integer(0_u8..=MAX_RETRIES), "0"),
        /// Environment variables for this step.
        env: Texts = DefaultedKey(Map(VARIABLE, text()), "{}"),
        /// Names of environment variables of this host that the step gets too; their values are part of its key. For secrets,
        /// use `secrets`.
        env_from_host: Vec<SpannedValue<String>> = DefaultedKey(List(word(VARIABLE), 100), "[]"),
        /// The user that runs it.
        user: String = DefaultedKey(word(ACCOUNT), "'root'"),
        /// Working directory in the guest.
        dir: String = DefaultedKey(guest_folder(), "'/'"),
        /// Names of `[secrets]` that this step can read as files under `$KILN_SECRETS`.
        secrets: Vec<SpannedValue<String>> = DefaultedKey(List(word(SECRET), 100), "[]"),
    }
}

table! {
    /// A script from this host, run in the guest by its own `#!` line.
    RunScript {
        /// The script.
        script: Option<SpannedValue<SlashedPath<PathBuf>>> = Required(host_path()),
        /// Its arguments.
        args: Vec<SpannedValue<String>> = DefaultedKey(List(argument(), 1000), "[]"),
        /// How often the step is tried again if it fails.
        retry: u8 = DefaultedKey(Integer(0_u8..=MAX_RETRIES), "0"),
        /// Environment variables for this step.
        env: Texts = DefaultedKey(Map(VARIABLE, text()), "{}"),
        /// Names of environment variables of this host that the step gets too; their values are part of its key. For secrets,
        /// use `secrets`.
        env_from_host: Vec<SpannedValue<String>> = DefaultedKey(List(word(VARIABLE), 100), "[]"),
        /// The user that runs it.
        user: String = DefaultedKey(word(ACCOUNT), "'root'"),
        /// Working directory in the guest.
        dir: String = DefaultedKey(guest_folder(), "'/'"),
        /// Names of `[secrets]` that this step can read as files under `$KILN_SECRETS`.
        secrets: Vec<SpannedValue<String>> = DefaultedKey(List(word(SECRET), 100), "[]"),
    }
}

table! {
    /// A file or folder of this host, copied into the guest.
    CopyIn {
        /// The file or folder; with a trailing slash, the contents of the folder.
        copy: Option<SpannedValue<SlashedPath<PathBuf>>> = Required(host_path()),
        /// The destination; with a trailing slash, the folder to copy into.
        to: Option<SpannedValue<SlashedPath<String>>> = Required(guest_path()),
        /// Owner of everything that is copied.
        owner: FileOwner = DefaultedKey(owner(), "'root:root'"),
        /// Permission bits of the files; by default, those of the source files.
        mode: Option<SpannedValue<u32>> = Optional(Mode),
        /// Files and folders to leave out, in addition to what a `.kilnignore` beside the spec leaves out.
        exclude: Vec<SpannedValue<IgnorePattern>> = DefaultedKey(List(ignore_pattern(), 1000), "[]"),
    }
}

table! {
    /// A small file with content from the spec.
    WriteFile {
        /// The whole content.
        write: Option<SpannedValue<String>> = Required(content()),
        /// The path of the file.
        to: Option<SpannedValue<String>> = Required(guest_file()),
        /// Its owner.
        owner: FileOwner = DefaultedKey(owner(), "'root:root'"),
        /// Its permission bits.
        mode: u32 = DefaultedKey(Mode, "'0644'"),
    }
}

table! {
    /// A file or folder of the guest, kept beside the image and listed in the manifest.
    FetchOut {
        /// The file or folder.
        fetch: Option<SpannedValue<String>> = Required(guest_folder()),
        /// Its path beside the image.
        to: Option<SpannedValue<PathBuf>> = Required(kept_path()),
    }
}

table! {
    /// A restart of the guest; the build continues when it is up again.
    Reboot {
        /// Always `true`.
        reboot: Option<SpannedValue<bool>> = Required(Boolean),
    }
}

table! {
    /// Keys of all tests.
    Test {
        /// The name in output and logs; by default, it is derived from the check.
        name: Option<SpannedValue<String>> = Optional(title(MAX_TITLE)),
        /// Restart the guest before the check.
        reboot: bool = DefaultedKey(Boolean, "false"),
        /// Boot a guest for this test alone, instead of a clone of the boot that the other tests share.
        needs_fresh_boot: bool = DefaultedKey(Boolean, "false"),
        /// How long the test is retried until it passes.
        retry_for: Duration = DefaultedKey(duration(0..=WEEK), "'0s'"),
        /// How long one attempt may take.
        timeout: Duration = DefaultedKey(duration(1..=WEEK), "'2m'"),
    }
}

variants! {
    /// The check of a test.
    Assertion, "the check of the test" {
        "run": CommandSucceeds, "command": CommandEnds, "unit": UnitRuns, "port": PortListens, "file": FileThere,
        "package": PackageInstalled, "boots-within": BootsWithin, "no-failed-units": NoUnitFailed,
    } later []
}

table! {
    /// A command that must succeed.
    CommandSucceeds {
        /// The command: a string for `sh -eu`, or a list of strings.
        run: Option<SpannedValue<Command>> = Required(CommandShape),
    }
}

table! {
    /// A command with its exit status and its output.
    CommandEnds {
        /// The command: a string for `sh -eu`, or a list of strings.
        command: Option<SpannedValue<Command>> = Required(CommandShape),
        /// The expected exit status.
        exit: u8 = DefaultedKey(Integer(0_u8..=255), "0"),
        /// A regular expression that its standard output must match somewhere. `$` matches at the end of the output,
        /// and before a newline there.
        stdout_matches: Option<SpannedValue<String>> = Optional(regex()),
    }
}

table! {
    /// A service that must be running.
    UnitRuns {
        /// The systemd unit, which must be active and must not have been restarted; without systemd, the service whose
        /// script must report that it runs.
        unit: Option<SpannedValue<String>> = Required(word(UNIT)),
    }
}

table! {
    /// A port that a service must listen on.
    PortListens {
        /// The TCP port, on any address.
        port: Option<SpannedValue<u16>> = Required(Integer(1_u16..=65535)),
    }
}

table! {
    /// A file or folder that must exist, or must not exist.
    FileThere {
        /// The path; symbolic links are followed.
        file: Option<SpannedValue<String>> = Required(guest_folder()),
        /// Nothing with that path may exist, not even a dangling link.
        absent: Option<SpannedValue<bool>> = Optional(Boolean),
        /// Its permission bits.
        mode: Option<SpannedValue<u32>> = Optional(Mode),
        /// Its owner, and its group if one is given.
        owner: Option<SpannedValue<FileOwner>> = Optional(owner()),
        /// A string that its content must contain.
        contains: Option<SpannedValue<String>> = Optional(content()),
        /// The SHA-256 digest of its content.
        sha256: Option<SpannedValue<Sha256Digest>> = Optional(sha256()),
    }
}

table! {
    /// A package that must be installed.
    PackageInstalled {
        /// Its name in the database of dpkg, rpm or apk.
        package: Option<SpannedValue<String>> = Required(word(PACKAGE)),
        /// Its version; one that ends with `*` matches all versions that begin so.
        version: Option<SpannedValue<String>> = Optional(line(MAX_LINE)),
    }
}

table! {
    /// A limit on the duration of a boot.
    BootsWithin {
        /// The longest time from power-on, or from the reboot with `reboot = true`, until everything has started;
        /// extended under software emulation.
        boots_within: Option<SpannedValue<Duration>> = Required(duration(1..=WEEK)),
    }
}

table! {
    /// No unit of systemd may have failed.
    NoUnitFailed {
        /// Always `true`.
        no_failed_units: Option<SpannedValue<bool>> = Required(Boolean),
    }
}

table! {
    /// How the guest is generalised.
    Seal {
        /// Operations to skip; `kiln seal --list` describes them.
        skip: Vec<SpannedValue<&'static str>> = DefaultedKey(List(choice(seal::OPERATIONS.each_ref().map(|operation| (operation.name, operation.name)), &[]), 100), "[]"),
    }
}

table! {
    /// A file to write.
    Output {
        /// The format of the file; by default, the best one for the platform, or `qcow2`.
        format: Option<SpannedValue<OutputFormat>> = Optional(choice(
            OutputFormat::ALL.iter().map(|format| (format.name(), *format)).collect::<Vec<_>>(),
            &[],
        )),
        /// The platforms that the image is for: they select the format, and kiln warns about drivers and packages that
        /// the guest lacks there.
        platform: Vec<SpannedValue<Platform>> = DefaultedKey(OneOrMore(choice(Platform::ALL, &[]), Platform::ALL.len()), "[]"),
        /// Compression inside a qcow2 file; by default `zstd`, and `zlib` for one in a package. Other formats have no
        /// choice.
        compression: Option<SpannedValue<Compression>> =
            Optional(choice(Compression::ALL.map(|compression| (compression.name(), compression)), &[])),
    }
}

table! {
    /// Limits of the whole build.
    Build {
        /// How long the whole build may take.
        timeout: Duration = DefaultedKey(duration(1..=WEEK), "'2h'"),
    }
}
