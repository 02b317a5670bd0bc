//! Declarations of all keys of a spec: name, meaning, permitted values and default.
//!
//! The tables here hold what was read; `validate` turns them into the [`Spec`](super::Spec).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::arguments::argument;
use super::compound::{CommandLine, Declared, List, Map, OneOrMore, Variables};
use super::document::At;
use super::network::private_destination;
use super::paths::{ACCOUNT, Slashed, guest_file, guest_folder, guest_path, host_path, kept_path, owner};
use super::platform::Platform;
use super::reader::{Reader, Section};
use super::shape::{
    Boolean, Integer, Mode, Word, choice, content, duration, line, location, reference, regex, sha256, size, text,
    title, word,
};
use super::table::{Chosen, Field, Key, Optional, Or, Required, Table, Variant, Variants, of, one_of, table, variants};
use super::{
    Accel, BaseFormat, Command, Compression, Firmware, Network, OutputFormat, Owner, PrivateDestination, seal,
};
use crate::size::ByteSize;
use crate::url::Url;

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

type Texts = BTreeMap<String, At<String>>;

table! {
    /// A kiln image specification.
    Document {
        // Read first: any other key may contain variables.
        /// Variables. Run and script steps see them as environment variables, and `{{ name }}` in any other string
        /// value stands for one. `--var name=value` overrides one that is declared here.
        vars: BTreeMap<String, String> = Or(Variables(VARIABLE), "{}"),
        /// What is made.
        image: Option<At<Image>> = Required(of::<Image>()),
        /// What it is made from.
        base: Option<At<Chosen<Base, Source>>> = Required(one_of::<Base, Source>()),
        /// The virtual machine it is made in.
        machine: Machine = Or(of::<Machine>(), "{}"),
        /// What the guest may reach over its network.
        network: NetworkAccess = Or(of::<NetworkAccess>(), "{}"),
        /// Files that steps may read and that leave no trace: not in the image, a log, a cache key or a manifest.
        secrets: BTreeMap<String, At<Chosen<Nothing, Secret>>> = Or(Map(SECRET, one_of::<Nothing, Secret>()), "{}"),
        /// What is done in the guest, in order.
        step: Vec<At<Chosen<Step, Verb>>> = Or(List(one_of::<Step, Verb>(), MAX_STEPS), "[]"),
        /// What must hold in a throw-away clone of the sealed image, freshly booted.
        test: Vec<At<Chosen<Test, Assertion>>> = Or(List(one_of::<Test, Assertion>(), MAX_STEPS), "[]"),
        /// How the guest is generalised.
        seal: Seal = Or(of::<Seal>(), "{}"),
        /// The files to write; one zstd-compressed qcow2 when there is none.
        output: Vec<At<Output>> = Or(List(of::<Output>(), 16), "[]"),
        /// Limits of the whole build.
        build: Build = Or(of::<Build>(), "{}"),
        /// Other images of this file: what each changes. `--variant NAME` builds one, as `NAME` behind the image's name
        /// and a hyphen.
        variants: BTreeMap<String, At<Overlay>> = Or(Map(VARIANT, of::<Overlay>()), "{}"),
    }
}

table! {
    /// What a variant changes.
    Overlay {
        /// Other values of variables that `[vars]` declares.
        vars: Declared = Or(Declared(VARIABLE), "{}"),
        /// Another base image, instead of the whole `[base]`.
        base: Option<At<Chosen<Base, Source>>> = Optional(one_of::<Base, Source>()),
        /// Other keys of `[machine]`.
        machine: Machine = Or(of::<Machine>(), "{}"),
        /// Other files to write, instead of all `[[output]]`.
        output: Vec<At<Output>> = Or(List(of::<Output>(), 16), "[]"),
    }
}

table! {
    /// What is made.
    Image {
        /// The image's name in the store.
        name: Option<At<String>> = Required(word(IMAGE_NAME)),
        /// The version; `kiln build --version` overrides it.
        version: Option<At<String>> = Required(word(IMAGE_VERSION)),
        /// What the image is for.
        description: String = Or(line(MAX_LINE), "''"),
        /// Free pairs for the manifest.
        labels: Texts = Or(Map(LABEL, line(MAX_LINE)), "{}"),
    }
}

table! {
    /// What every kind of base image can say.
    Base {
        /// Checked before anything boots.
        sha256: Option<At<String>> = Optional(sha256()),
        /// The format of the base image; it is never guessed.
        format: BaseFormat =
            Or(choice([("qcow2", BaseFormat::Qcow2), ("raw", BaseFormat::Raw)], &["vmdk", "vhd", "vhdx", "vdi"]), "'qcow2'"),
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
        file: Option<At<Slashed<PathBuf>>> = Required(host_path()),
    }
}

table! {
    /// A disk image somewhere else, downloaded once. What ends in `.xz`, `.zst` or `.gz` is unpacked.
    RemoteFile {
        /// Where it is.
        url: Option<At<Url>> = Required(location()),
        /// Other places of the same file, tried in this order.
        mirrors: Vec<At<Url>> = Or(List(location(), 16), "[]"),
        /// A `SHA256SUMS` or `SHA512SUMS` file that lists it, instead of `sha256`.
        sums: Option<At<Url>> = Optional(location()),
        /// Digest of that file.
        sums_sha256: Option<At<String>> = Optional(sha256()),
        /// A detached signature of that file, instead of its digest.
        sums_signature: Option<At<Url>> = Optional(location()),
        /// The public key of the signature: of OpenSSH, minisign or `OpenPGP`.
        sums_key: Option<At<Slashed<PathBuf>>> = Optional(host_path()),
    }
}

table! {
    /// An image of the store.
    StoredImage {
        /// The image: its newest version, or the one of a version or tag.
        image: Option<At<String>> = Required(reference(IMAGE_NAME, IMAGE_VERSION)),
    }
}

table! {
    /// The image of another spec, which is built first if it is not up to date.
    OtherSpec {
        /// The spec file, or the folder with its kiln.toml.
        spec: Option<At<Slashed<PathBuf>>> = Required(host_path()),
        /// A variant of that spec.
        variant: Option<At<String>> = Optional(word(VARIANT)),
    }
}

table! {
    /// The virtual machine the image is made in.
    Machine {
        /// Virtual CPUs; capped at the host's.
        cpus: u8 = Or(Integer(1_u8..=255), "2"),
        /// Memory of the guest during the build.
        memory: ByteSize = Or(size(MEMORY), "'1GiB'"),
        /// Virtual size of the disk, not smaller than the base image's; without it, the base image's own.
        disk: Option<At<ByteSize>> = Optional(size(DISK)),
        /// What starts the boot loader.
        firmware: Firmware = Or(choice([("bios", Firmware::Bios), ("uefi", Firmware::Uefi)], &[]), "'bios'"),
        /// `auto` is KVM where it works, else software emulation; `kvm` insists.
        accel: Accel = Or(choice([("auto", Accel::Auto), ("kvm", Accel::Kvm), ("tcg", Accel::Tcg)], &[]), "'auto'"),
        /// `none` is no network card at all, `user` QEMU's user-mode network, which reaches public addresses alone.
        network: Network = Or(choice([("none", Network::None), ("user", Network::User)], &[]), "'none'"),
        /// Until the guest answers; longer under software emulation, which says so.
        boot_timeout: Duration = Or(duration(1..=WEEK), "'5m'"),
    }
}

table! {
    /// What the guest may reach over its network.
    NetworkAccess {
        /// Destinations besides public addresses, with `machine.network = "user"`: `host` is the host that runs the
        /// build. A build needs `--allow-private-network` for them.
        private: Vec<At<PrivateDestination>> = Or(List(private_destination(), 100), "[]"),
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
        env: Option<At<String>> = Required(word(Word::new("A-Za-z_", "A-Za-z0-9_", 128))),
    }
}

table! {
    /// A secret in a file on this host.
    SecretFile {
        /// The file.
        file: Option<At<Slashed<PathBuf>>> = Required(host_path()),
    }
}

table! {
    /// Shared by all steps.
    Step {
        /// For people and logs; made from the verb when there is none.
        name: Option<At<String>> = Optional(title(MAX_TITLE)),
        /// How long the step may take.
        timeout: Duration = Or(duration(1..=WEEK), "'1h'"),
        /// `false`: whenever the image is built, run this step and everything after it. A version whose inputs are
        /// unchanged is not built again without `--replace`.
        cache: bool = Or(Boolean, "true"),
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
        run: Option<At<Command>> = Required(CommandLine),
        /// Environment variables for this step.
        env: Texts = Or(Map(VARIABLE, text()), "{}"),
        /// Who runs it.
        user: String = Or(word(ACCOUNT), "'root'"),
        /// Working directory in the guest.
        dir: String = Or(guest_folder(), "'/'"),
        /// Names of `[secrets]` that this step finds as files under `$KILN_SECRETS`.
        secrets: Vec<At<String>> = Or(List(word(SECRET), 100), "[]"),
    }
}

table! {
    /// A script from this host, run in the guest by its own `#!` line.
    RunScript {
        /// The file.
        script: Option<At<Slashed<PathBuf>>> = Required(host_path()),
        /// Its arguments.
        args: Vec<At<String>> = Or(List(argument(), 1000), "[]"),
        /// Environment variables for this step.
        env: Texts = Or(Map(VARIABLE, text()), "{}"),
        /// Who runs it.
        user: String = Or(word(ACCOUNT), "'root'"),
        /// Working directory in the guest.
        dir: String = Or(guest_folder(), "'/'"),
        /// Names of `[secrets]` that this step finds as files under `$KILN_SECRETS`.
        secrets: Vec<At<String>> = Or(List(word(SECRET), 100), "[]"),
    }
}

table! {
    /// A file or folder of this host, copied into the guest.
    CopyIn {
        /// The file or folder; with a trailing slash, what is in the folder.
        copy: Option<At<Slashed<PathBuf>>> = Required(host_path()),
        /// Where to; with a trailing slash, into that folder.
        to: Option<At<Slashed<String>>> = Required(guest_path()),
        /// Owner of everything copied.
        owner: Owner = Or(owner(), "'root:root'"),
        /// Permission bits of the files; without it, the files' own.
        mode: Option<At<u32>> = Optional(Mode),
    }
}

table! {
    /// A small file, written from text in the spec.
    WriteFile {
        /// The whole content.
        write: Option<At<String>> = Required(content()),
        /// The file.
        to: Option<At<String>> = Required(guest_file()),
        /// Its owner.
        owner: Owner = Or(owner(), "'root:root'"),
        /// Its permission bits.
        mode: u32 = Or(Mode, "'0644'"),
    }
}

table! {
    /// A file or folder of the guest, kept beside the image and listed in the manifest.
    FetchOut {
        /// The file or folder.
        fetch: Option<At<String>> = Required(guest_folder()),
        /// Its name beside the image.
        to: Option<At<PathBuf>> = Required(kept_path()),
    }
}

table! {
    /// A restart of the guest; the build goes on when it is back.
    Reboot {
        /// Always `true`.
        reboot: Option<At<bool>> = Required(Boolean),
    }
}

table! {
    /// Shared by all tests.
    Test {
        /// For people and logs; made from what is checked when there is none.
        name: Option<At<String>> = Optional(title(MAX_TITLE)),
        /// The guest restarts before the check.
        reboot: bool = Or(Boolean, "false"),
        /// A boot of its own, rather than a clone of the boot that the other tests share.
        needs_fresh_boot: bool = Or(Boolean, "false"),
        /// Try again until it passes or this is over.
        retry_for: Duration = Or(duration(0..=WEEK), "'0s'"),
        /// How long one try may take.
        timeout: Duration = Or(duration(1..=WEEK), "'2m'"),
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
        run: Option<At<Command>> = Required(CommandLine),
    }
}

table! {
    /// A command, how it ends and what it writes.
    CommandEnds {
        /// What to run: a text for `sh -eu`, or a list of strings.
        command: Option<At<Command>> = Required(CommandLine),
        /// The exit status it must have.
        exit: u8 = Or(Integer(0_u8..=255), "0"),
        /// What its standard output must match, anywhere in it. `$` matches at the end of the output, and before a newline
        /// there.
        stdout_matches: Option<At<String>> = Optional(regex()),
    }
}

table! {
    /// A service that must be running.
    UnitRuns {
        /// The systemd unit, which must be active and must not have been restarted; without systemd, the service whose
        /// script must say that it runs.
        unit: Option<At<String>> = Required(word(UNIT)),
    }
}

table! {
    /// A port that must be listened on.
    PortListens {
        /// The TCP port, on any address.
        port: Option<At<u16>> = Required(Integer(1_u16..=65535)),
    }
}

table! {
    /// A file or folder that must be there, or must not.
    FileThere {
        /// The path; symbolic links are followed.
        file: Option<At<String>> = Required(guest_folder()),
        /// Nothing of that name may be there, not even a dangling link.
        absent: Option<At<bool>> = Optional(Boolean),
        /// Its permission bits.
        mode: Option<At<u32>> = Optional(Mode),
        /// Its owner, and its group where one is given.
        owner: Option<At<Owner>> = Optional(owner()),
        /// A text that must be in it.
        contains: Option<At<String>> = Optional(content()),
        /// The digest of its content.
        sha256: Option<At<String>> = Optional(sha256()),
    }
}

table! {
    /// A package that must be installed.
    PackageInstalled {
        /// Its name, as dpkg, rpm or apk know it.
        package: Option<At<String>> = Required(word(PACKAGE)),
        /// Its version; with `*` at the end, how it begins.
        version: Option<At<String>> = Optional(line(MAX_LINE)),
    }
}

table! {
    /// How long a boot may take.
    BootsWithin {
        /// From power-on, or from the reboot with `reboot = true`, until everything is started; longer under software
        /// emulation.
        boots_within: Option<At<Duration>> = Required(duration(1..=WEEK)),
    }
}

table! {
    /// No unit of systemd may have failed.
    NoUnitFailed {
        /// Always `true`.
        no_failed_units: Option<At<bool>> = Required(Boolean),
    }
}

table! {
    /// How the guest is generalised.
    Seal {
        /// Operations to leave out; `kiln seal --list` explains them.
        skip: Vec<At<&'static str>> = Or(List(choice(seal::OPERATIONS.each_ref().map(|operation| (operation.name, operation.name)), &[]), 100), "[]"),
    }
}

table! {
    /// A file to write.
    Output {
        /// The format of the file; without it, what the platform takes, or `qcow2`.
        format: Option<At<OutputFormat>> = Optional(choice(
            OutputFormat::ALL.iter().map(|format| (format.name(), *format)).collect::<Vec<_>>(),
            &[],
        )),
        /// Where the image goes: picks the format, and warns of what the guest lacks there.
        platform: Vec<At<Platform>> = Or(OneOrMore(choice(Platform::ALL, &[]), Platform::ALL.len()), "[]"),
        /// Compression inside a qcow2 file; the default is `zstd`, and `zlib` for one in a package. Other formats leave no choice.
        compression: Option<At<Compression>> =
            Optional(choice(Compression::ALL.map(|compression| (compression.name(), compression)), &[])),
    }
}

table! {
    /// Limits of the whole build.
    Build {
        /// How long the whole build may take.
        timeout: Duration = Or(duration(1..=WEEK), "'2h'"),
    }
}
