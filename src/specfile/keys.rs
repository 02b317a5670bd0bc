//! Declarations of all keys of a spec: name, meaning, permitted values and default.
//!
//! The tables here hold what was read; `validate` turns them into the [`Spec`](super::Spec).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::size::ByteSize;
use crate::url::Url;

use super::arguments::argument;
use super::compound_kinds::{CommandShape, DeclaredVariables, List, Map, OneOrMore, Variables};
use super::document::SpannedValue;
use super::network::private_destination;
use super::paths::{ACCOUNT, SlashedPath, guest_file, guest_folder, guest_path, host_path, kept_path, owner};
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
    AccelChoice, BaseFormat, BootMode, Command, Compression, FileOwner, FirmwareKind, NetworkBackend, OutputFormat,
    PrivateDestination, seal,
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
/// The most steps of a spec. Specs are written by people; more steps are a generator's mistake.
const MAX_STEPS: usize = 1000;
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
        /// Variables. Run and script steps see them as environment variables, and `{{ name }}` in any other string
        /// value stands for one. `--var name=value` overrides one that is declared here.
        vars: BTreeMap<String, String> = DefaultedKey(Variables(VARIABLE), "{}"),
        /// What is made.
        image: Option<SpannedValue<Image>> = Required(of::<Image>()),
        /// What it is made from.
        base: Option<SpannedValue<ChosenVariant<Base, Source>>> = Required(one_of::<Base, Source>()),
        /// The virtual machine it is made in.
        machine: Machine = DefaultedKey(of::<Machine>(), "{}"),
        /// What the guest may reach over its network.
        network: NetworkAccess = DefaultedKey(of::<NetworkAccess>(), "{}"),
        /// Files that steps may read and that leave no trace: not in the image, a log, a cache key or a manifest.
        secrets: BTreeMap<String, SpannedValue<ChosenVariant<Nothing, Secret>>> = DefaultedKey(Map(SECRET, one_of::<Nothing, Secret>()), "{}"),
        /// What is done in the guest, in order.
        step: Vec<SpannedValue<ChosenVariant<Step, Verb>>> = DefaultedKey(List(one_of::<Step, Verb>(), MAX_STEPS), "[]"),
        /// What must hold in a throw-away clone of the sealed image, freshly booted.
        test: Vec<SpannedValue<ChosenVariant<Test, Assertion>>> = DefaultedKey(List(one_of::<Test, Assertion>(), MAX_STEPS), "[]"),
        /// How the guest is generalised.
        seal: Seal = DefaultedKey(of::<Seal>(), "{}"),
        /// The files to write; one zstd-compressed qcow2 when there is none.
        output: Vec<SpannedValue<Output>> = DefaultedKey(List(of::<Output>(), 16), "[]"),
        /// Limits of the whole build.
        build: Build = DefaultedKey(of::<Build>(), "{}"),
        /// Other images of this file: what each changes. `--variant NAME` builds one, as `NAME` behind the image's name
        /// and a hyphen.
        variants: BTreeMap<String, SpannedValue<Overlay>> = DefaultedKey(Map(VARIANT, of::<Overlay>()), "{}"),
    }
}

table! {
    /// What a variant changes.
    Overlay {
        /// Other values of variables that `[vars]` declares.
        vars: DeclaredVariables = DefaultedKey(DeclaredVariables(VARIABLE), "{}"),
        /// Another base image, instead of the whole `[base]`.
        base: Option<SpannedValue<ChosenVariant<Base, Source>>> = Optional(one_of::<Base, Source>()),
        /// Other keys of `[machine]`.
        machine: Machine = DefaultedKey(of::<Machine>(), "{}"),
        /// Other files to write, instead of all `[[output]]`.
        output: Vec<SpannedValue<Output>> = DefaultedKey(List(of::<Output>(), 16), "[]"),
    }
}

table! {
    /// What is made.
    Image {
        /// The image's name in the store.
        name: Option<SpannedValue<String>> = Required(word(IMAGE_NAME)),
        /// The version; `kiln build --version` overrides it.
        version: Option<SpannedValue<String>> = Required(word(IMAGE_VERSION)),
        /// What the image is for.
        description: String = DefaultedKey(line(MAX_LINE), "''"),
        /// Free pairs for the manifest.
        labels: Texts = DefaultedKey(Map(LABEL, line(MAX_LINE)), "{}"),
    }
}

table! {
    /// What every kind of base image can say.
    Base {
        /// Checked before anything boots.
        sha256: Option<SpannedValue<String>> = Optional(sha256()),
        /// The format of the base image; it is never guessed.
        format: BaseFormat =
            DefaultedKey(choice([("qcow2", BaseFormat::Qcow2), ("raw", BaseFormat::Raw)], &["vmdk", "vhd", "vhdx", "vdi"]), "'qcow2'"),
    }
}

variants! {
    /// Where the base image comes from.
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
    /// A disk image somewhere else, downloaded once. What ends in `.xz`, `.zst` or `.gz` is unpacked.
    RemoteFile {
        /// Where it is.
        url: Option<SpannedValue<Url>> = Required(location()),
        /// Other places of the same file, tried in this order.
        mirrors: Vec<SpannedValue<Url>> = DefaultedKey(List(location(), 16), "[]"),
        /// A `SHA256SUMS` or `SHA512SUMS` file that lists it, instead of `sha256`.
        sums: Option<SpannedValue<Url>> = Optional(location()),
        /// Digest of that file.
        sums_sha256: Option<SpannedValue<String>> = Optional(sha256()),
        /// A detached signature of that file, instead of its digest.
        sums_signature: Option<SpannedValue<Url>> = Optional(location()),
        /// The public key of the signature: of OpenSSH, minisign or `OpenPGP`.
        sums_key: Option<SpannedValue<SlashedPath<PathBuf>>> = Optional(host_path()),
    }
}

table! {
    /// An image of the store.
    StoredImage {
        /// The image: its newest version, or the one of a version or tag.
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
    /// The virtual machine the image is made in.
    Machine {
        /// Virtual CPUs; capped at the host's.
        cpus: u8 = DefaultedKey(Integer(1_u8..=255), "2"),
        /// Memory of the guest during the build.
        memory: ByteSize = DefaultedKey(size(MEMORY), "'1GiB'"),
        /// Virtual size of the disk, not smaller than the base image's; without it, the base image's own.
        disk: Option<SpannedValue<ByteSize>> = Optional(size(DISK)),
        /// What starts the boot loader.
        firmware: FirmwareKind = DefaultedKey(choice([("bios", FirmwareKind::Bios), ("uefi", FirmwareKind::Uefi)], &[]), "'bios'"),
        /// How the guest of a build starts: `full` is firmware, boot loader, init and services; with `direct`, QEMU starts the
        /// kernel of the image and no service runs, which takes seconds. Tests always boot in full.
        boot: BootMode = DefaultedKey(choice([("full", BootMode::Full), ("direct", BootMode::Direct)], &[]), "'full'"),
        /// `auto` is KVM where it works, else software emulation; `kvm` insists.
        accel: AccelChoice = DefaultedKey(choice([("auto", AccelChoice::Auto), ("kvm", AccelChoice::Kvm), ("tcg", AccelChoice::Tcg)], &[]), "'auto'"),
        /// `none` is no network card at all, `user` QEMU's user-mode network, which reaches public addresses alone.
        network: NetworkBackend = DefaultedKey(choice([("none", NetworkBackend::None), ("user", NetworkBackend::User)], &[]), "'none'"),
        /// Until the guest answers; longer under software emulation, which says so.
        boot_timeout: Duration = DefaultedKey(duration(1..=WEEK), "'5m'"),
    }
}

table! {
    /// What the guest may reach over its network.
    NetworkAccess {
        /// Destinations besides public addresses, with `machine.network = "user"`: `host` is the host that runs the
        /// build. A build needs `--allow-private-network` for them.
        private: Vec<SpannedValue<PrivateDestination>> = DefaultedKey(List(private_destination(), 100), "[]"),
    }
}

table! {
    /// Shared by all secrets.
    Nothing {}
}

variants! {
    /// Where a secret comes from.
    Secret, "where the secret comes from" { "env": SecretEnv, "file": SecretFile, } later []
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
    /// Shared by all steps.
    Step {
        /// For people and logs; made from the verb when there is none.
        name: Option<SpannedValue<String>> = Optional(title(MAX_TITLE)),
        /// How long the step may take.
        timeout: Duration = DefaultedKey(duration(1..=WEEK), "'1h'"),
        /// `false`: whenever the image is built, run this step and everything after it. A version whose inputs are
        /// unchanged is not built again without `--replace`.
        cache: bool = DefaultedKey(Boolean, "true"),
    }
}

variants! {
    /// What a step does.
    Verb, "the step's verb" {
        "run": RunCommand, "script": RunScript, "copy": CopyIn, "write": WriteFile, "fetch": FetchOut, "reboot": Reboot,
    } later []
}

table! {
    /// A command in the guest.
    RunCommand {
        /// What to run: a text is for `sh -eu`, a list of strings is an argument vector and needs no shell.
        run: Option<SpannedValue<Command>> = Required(CommandShape),
        /// Environment variables for this step.
        env: Texts = DefaultedKey(Map(VARIABLE, text()), "{}"),
        /// Who runs it.
        user: String = DefaultedKey(word(ACCOUNT), "'root'"),
        /// Working directory in the guest.
        dir: String = DefaultedKey(guest_folder(), "'/'"),
        /// Names of `[secrets]` that this step finds as files under `$KILN_SECRETS`.
        secrets: Vec<SpannedValue<String>> = DefaultedKey(List(word(SECRET), 100), "[]"),
    }
}

table! {
    /// A script from this host, run in the guest by its own `#!` line.
    RunScript {
        /// The file.
        script: Option<SpannedValue<SlashedPath<PathBuf>>> = Required(host_path()),
        /// Its arguments.
        args: Vec<SpannedValue<String>> = DefaultedKey(List(argument(), 1000), "[]"),
        /// Environment variables for this step.
        env: Texts = DefaultedKey(Map(VARIABLE, text()), "{}"),
        /// Who runs it.
        user: String = DefaultedKey(word(ACCOUNT), "'root'"),
        /// Working directory in the guest.
        dir: String = DefaultedKey(guest_folder(), "'/'"),
        /// Names of `[secrets]` that this step finds as files under `$KILN_SECRETS`.
        secrets: Vec<SpannedValue<String>> = DefaultedKey(List(word(SECRET), 100), "[]"),
    }
}

table! {
    /// A file or folder of this host, copied into the guest.
    CopyIn {
        /// The file or folder; with a trailing slash, what is in the folder.
        copy: Option<SpannedValue<SlashedPath<PathBuf>>> = Required(host_path()),
        /// Where to; with a trailing slash, into that folder.
        to: Option<SpannedValue<SlashedPath<String>>> = Required(guest_path()),
        /// Owner of everything copied.
        owner: FileOwner = DefaultedKey(owner(), "'root:root'"),
        /// Permission bits of the files; without it, the files' own.
        mode: Option<SpannedValue<u32>> = Optional(Mode),
    }
}

table! {
    /// A small file, written from text in the spec.
    WriteFile {
        /// The whole content.
        write: Option<SpannedValue<String>> = Required(content()),
        /// The file.
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
        /// Its name beside the image.
        to: Option<SpannedValue<PathBuf>> = Required(kept_path()),
    }
}

table! {
    /// A restart of the guest; the build goes on when it is back.
    Reboot {
        /// Always `true`.
        reboot: Option<SpannedValue<bool>> = Required(Boolean),
    }
}

table! {
    /// Shared by all tests.
    Test {
        /// For people and logs; made from what is checked when there is none.
        name: Option<SpannedValue<String>> = Optional(title(MAX_TITLE)),
        /// The guest restarts before the check.
        reboot: bool = DefaultedKey(Boolean, "false"),
        /// A boot of its own, rather than a clone of the boot that the other tests share.
        needs_fresh_boot: bool = DefaultedKey(Boolean, "false"),
        /// Try again until it passes or this is over.
        retry_for: Duration = DefaultedKey(duration(0..=WEEK), "'0s'"),
        /// How long one try may take.
        timeout: Duration = DefaultedKey(duration(1..=WEEK), "'2m'"),
    }
}

variants! {
    /// What a test checks.
    Assertion, "what the test checks" {
        "run": CommandSucceeds, "command": CommandEnds, "unit": UnitRuns, "port": PortListens, "file": FileThere,
        "package": PackageInstalled, "boots-within": BootsWithin, "no-failed-units": NoUnitFailed,
    } later []
}

table! {
    /// A command that must succeed.
    CommandSucceeds {
        /// What to run: a text for `sh -eu`, or a list of strings.
        run: Option<SpannedValue<Command>> = Required(CommandShape),
    }
}

table! {
    /// A command, how it ends and what it writes.
    CommandEnds {
        /// What to run: a text for `sh -eu`, or a list of strings.
        command: Option<SpannedValue<Command>> = Required(CommandShape),
        /// The exit status it must have.
        exit: u8 = DefaultedKey(Integer(0_u8..=255), "0"),
        /// What its standard output must match, anywhere in it. `$` matches at the end of the output, and before a newline
        /// there.
        stdout_matches: Option<SpannedValue<String>> = Optional(regex()),
    }
}

table! {
    /// A service that must be running.
    UnitRuns {
        /// The systemd unit, which must be active and must not have been restarted; without systemd, the service whose
        /// script must say that it runs.
        unit: Option<SpannedValue<String>> = Required(word(UNIT)),
    }
}

table! {
    /// A port that must be listened on.
    PortListens {
        /// The TCP port, on any address.
        port: Option<SpannedValue<u16>> = Required(Integer(1_u16..=65535)),
    }
}

table! {
    /// A file or folder that must be there, or must not.
    FileThere {
        /// The path; symbolic links are followed.
        file: Option<SpannedValue<String>> = Required(guest_folder()),
        /// Nothing of that name may be there, not even a dangling link.
        absent: Option<SpannedValue<bool>> = Optional(Boolean),
        /// Its permission bits.
        mode: Option<SpannedValue<u32>> = Optional(Mode),
        /// Its owner, and its group where one is given.
        owner: Option<SpannedValue<FileOwner>> = Optional(owner()),
        /// A text that must be in it.
        contains: Option<SpannedValue<String>> = Optional(content()),
        /// The digest of its content.
        sha256: Option<SpannedValue<String>> = Optional(sha256()),
    }
}

table! {
    /// A package that must be installed.
    PackageInstalled {
        /// Its name, as dpkg, rpm or apk know it.
        package: Option<SpannedValue<String>> = Required(word(PACKAGE)),
        /// Its version; with `*` at the end, how it begins.
        version: Option<SpannedValue<String>> = Optional(line(MAX_LINE)),
    }
}

table! {
    /// How long a boot may take.
    BootsWithin {
        /// From power-on, or from the reboot with `reboot = true`, until everything is started; longer under software
        /// emulation.
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
        /// Operations to leave out; `kiln seal --list` explains them.
        skip: Vec<SpannedValue<&'static str>> = DefaultedKey(List(choice(seal::OPERATIONS.each_ref().map(|operation| (operation.name, operation.name)), &[]), 100), "[]"),
    }
}

table! {
    /// A file to write.
    Output {
        /// The format of the file; without it, what the platform takes, or `qcow2`.
        format: Option<SpannedValue<OutputFormat>> = Optional(choice(
            OutputFormat::ALL.iter().map(|format| (format.name(), *format)).collect::<Vec<_>>(),
            &[],
        )),
        /// Where the image goes: picks the format, and warns of what the guest lacks there.
        platform: Vec<SpannedValue<Platform>> = DefaultedKey(OneOrMore(choice(Platform::ALL, &[]), Platform::ALL.len()), "[]"),
        /// Compression inside a qcow2 file; the default is `zstd`, and `zlib` for one in a package. Other formats leave no choice.
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
