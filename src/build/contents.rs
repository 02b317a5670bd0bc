//! What is in the sealed image: its files, its packages and its distribution.
//!
//! ```text
//! base ──look──> Wanted ──ask the guest──> Answers ─┐
//!                                                   ├──read──> Contents, and the list of files
//! sealed disk ──────────────────────────────────────┘
//! ```
//!
//! What the host can read from the disk, it reads: it asks nobody who may be wrong. Only where the base image already shows
//! that it cannot, the guest is asked: for its packages before it is sealed, for its files afterwards.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};

use crate::digest::hex;
use crate::disk::chain::{Chain, Layer};
use crate::disk::entry::{ContentDigest, Entry};
use crate::disk::listing::{self, ListingWriter};
use crate::disk::os_release::{self, Os};
use crate::disk::packages::{self, Installed, PackageType, RPM_FORMAT};
use crate::disk::told::Told;
use crate::disk::tree::{Tree, TreeError};
use crate::error::Failure;
use crate::event::{Channel, Events, Level};
use crate::guest::{Exec, Exit, GuestError};
use crate::plan::{Plan, with_grace};
use crate::spec::Platform;
use crate::store::manifest;

use super::boot::Guest;
use super::disks::{Layers, open};
use super::writers::Writers;
use super::{Build, ScratchError, platform};

/// A package database is a file that is read, or a program that reads it; under software emulation that takes a while.
const PACKAGES_PATIENCE: Duration = Duration::from_secs(5 * 60);
/// Hashing gigabytes under software emulation takes minutes.
const FILES_PATIENCE: Duration = Duration::from_secs(60 * 60);
/// What the guest may say of its packages, bytes.
const MAX_ANSWER: usize = 64 << 20;
/// What it may say of its files, bytes: twenty million of them.
const MAX_LIST: u64 = 4 << 30;
/// Where that stays until it is read.
const SPOOL: &str = "files.told";

/// What the host cannot read, by the look of the base image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    files: bool,
    packages: bool,
}

impl Wanted {
    /// A base that cannot be read is read again by others, who say why.
    pub(crate) fn by_base(plan: &Plan) -> Self {
        let base = &plan.base;
        let chain = File::open(&base.file)
            .ok()
            .and_then(|file| Chain::open(vec![Layer { file, format: base.format.into() }]).ok());
        let tree = chain.as_ref().and_then(|chain| Tree::open(chain).ok());
        let packages = tree.as_ref().is_none_or(|tree| !matches!(packages::installed(tree), Ok(Some(_))));
        Self { files: tree.is_none_or(|tree| !tree.is_whole()), packages }
    }
}

/// What the guest has said of itself. It may say anything.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    os: Option<Os>,
    installed: Option<Installed>,
    /// Asked last, of the sealed guest.
    pub(crate) files: Option<Told>,
}

/// What a build knows of a sealed disk that the disk does not say itself.
#[derive(Debug)]
pub(crate) struct Known {
    /// The guest's own words.
    pub(crate) answers: Answers,
    /// Who wrote what.
    pub(crate) writers: Writers,
}

/// What is in a disk, as far as it is known.
#[derive(Debug, Default)]
pub struct Contents {
    /// Digest of the file tree.
    pub content_sha256: Option<String>,
    /// Which distribution it is.
    pub os: Option<manifest::Os>,
    /// The type of the packages.
    pub package_type: Option<String>,
    /// What is installed.
    pub packages: Vec<manifest::Package>,
}

impl Contents {
    /// With what the other knows and this does not.
    fn or(self, other: Self) -> Self {
        let (package_type, packages) = match self.package_type {
            Some(_) => (self.package_type, self.packages),
            None => (other.package_type, other.packages),
        };
        Self {
            content_sha256: self.content_sha256.or(other.content_sha256),
            os: self.os.or(other.os),
            package_type,
            packages,
        }
    }
}

/// Three answers with a NUL between them: os-release, the type of the packages, and what its database or program says. The
/// host can read the first two databases, and does so where it reads the file system.
fn question() -> String {
    format!(
        "cat /etc/os-release 2>/dev/null || cat /usr/lib/os-release 2>/dev/null
        printf '\\0'
        if [ -f /var/lib/dpkg/status ]; then printf 'deb\\0' && exec cat /var/lib/dpkg/status; fi
        if [ -f /lib/apk/db/installed ]; then printf 'apk\\0' && exec cat /lib/apk/db/installed; fi
        if command -v rpm >/dev/null; then printf 'rpm\\0' && exec rpm -qa --queryformat '{RPM_FORMAT}'; fi
        printf '\\0'"
    )
}

/// Asks a guest that is not sealed yet for what the host cannot read. One that cannot answer is none the worse for it.
pub(crate) async fn ask(build: &Build<'_>, guest: &mut Guest, wanted: Wanted) -> Result<Answers, Failure> {
    if !wanted.packages {
        return Ok(Answers::default());
    }
    let exec = Exec { timeout: Some(PACKAGES_PATIENCE), ..Exec::new(["sh", "-c", &question()]) };
    let (mut said, mut is_long) = (Vec::new(), false);
    let mut keep = |channel: Channel, bytes: &[u8]| {
        let fits = said.len() + bytes.len() <= MAX_ANSWER;
        is_long |= !fits;
        if channel == Channel::Stdout && fits {
            said.extend_from_slice(bytes);
        }
    };
    let work = guest.session.exec(&exec, &mut keep);
    let late = || GuestError::Overdue(PACKAGES_PATIENCE).into();
    let exit = build.limits.hold_guest(&guest.machine, with_grace(PACKAGES_PATIENCE), late, work).await?;
    if exit != Exit::Code(0) || is_long {
        let how = if is_long { "said too much".to_owned() } else { exit.to_string() };
        build.events.notice(Level::Warning, format!("the guest could not tell its packages: the question {how}"));
        return Ok(Answers::default());
    }
    Ok(answers(&said))
}

fn answers(said: &[u8]) -> Answers {
    let mut parts = said.splitn(3, |byte| *byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let (os, kind, text) = (part(), part(), part());
    let kind = std::str::from_utf8(kind).ok().and_then(PackageType::named);
    Answers {
        os: (!os.trim_ascii().is_empty()).then(|| os_release::parse(os)),
        installed: kind.map(|kind| packages::parse(kind, text)),
        files: None,
    }
}

/// Has a sealed guest list its files, where the host cannot read them.
pub(crate) async fn ask_for_files(
    build: &Build<'_>,
    guest: &mut Guest,
    wanted: Wanted,
) -> Result<Option<Told>, Failure> {
    if !wanted.files {
        return Ok(None);
    }
    build.events.notice(Level::Info, "kiln cannot read this disk, so the guest lists its files");
    let spool = build.work.join(SPOOL);
    let work = async {
        match guest.session.list(&spool, MAX_LIST).await {
            Err(GuestError::Refused { text, .. }) => Ok(Err(text)),
            listed => listed.map(Ok),
        }
    };
    let late = || GuestError::Overdue(FILES_PATIENCE).into();
    match build.limits.hold_guest(&guest.machine, FILES_PATIENCE, late, work).await? {
        Ok((file, entries)) => Ok(Some(Told::new(file, entries))),
        Err(why) => {
            build.events.notice(Level::Warning, format!("the guest could not list its files: {why}"));
            Ok(None)
        }
    }
}

/// Where the files of a sealed image are.
pub(crate) enum Files<'d> {
    /// On its disk.
    Disk(Tree<'d>),
    /// In what the guest has said.
    Guest(&'d Told),
}

impl<'d> Files<'d> {
    /// What the guest has said, if it was asked, else what is on the disk.
    pub(crate) fn new(tree: Result<Tree<'d>, TreeError>, answers: &'d Answers) -> Result<Self, TreeError> {
        match &answers.files {
            Some(told) => Ok(Files::Guest(told)),
            None => tree.map(Files::Disk),
        }
    }

    /// Every entry, in order. Blocks the calling thread.
    pub(crate) fn walk(&self, visit: &mut dyn FnMut(&Entry) -> ControlFlow<()>) -> Result<(), TreeError> {
        match self {
            Files::Disk(tree) => tree.walk(visit),
            Files::Guest(told) => told.walk(visit),
        }
    }
}

/// Reads the contents while the tests boot or the outputs are hashed. The files are opened now: the tests' overlay takes the
/// name of this one.
pub(crate) fn read(
    build: &Build<'_>,
    layers: Layers,
    Known { answers, writers }: Known,
    staging: &Path,
) -> Result<JoinHandle<Result<Contents, Failure>>, Failure> {
    let chain = open(layers)?;
    let (events, list) = (build.events.clone(), staging.join(listing::FILE));
    let outputs = &build.plan.spec.outputs;
    let platforms: BTreeSet<Platform> = outputs.iter().flat_map(|output| output.platforms.iter().copied()).collect();
    Ok(spawn_blocking(move || {
        let tree = Tree::open(&chain);
        let mut contents = described(answers.os.clone(), answers.installed.clone());
        if let Ok(tree) = &tree {
            let installed = packages::installed(tree)?.or(answers.installed.clone());
            warn_of(&platforms, tree, installed.as_ref(), &events)?;
            contents = contents.or(described(os_release::os(tree)?, installed));
        } else {
            for platform in platforms {
                let text =
                    format!("what {} needs of the guest was not checked: kiln cannot read its disk", platform.name());
                events.notice(Level::Warning, text);
            }
        }
        match Files::new(tree, &answers) {
            Ok(files) => contents.content_sha256 = Some(hex(&list_files(&files, &writers, &list)?)),
            Err(error) => events.notice(Level::Info, format!("the manifest will lack content: {error}")),
        }
        Ok(contents)
    }))
}

/// Says what the platforms need that the guest goes to, and that it lacks.
fn warn_of(
    platforms: &BTreeSet<Platform>,
    tree: &Tree<'_>,
    installed: Option<&Installed>,
    events: &Events,
) -> Result<(), Failure> {
    if !platforms.is_empty() {
        let guest = platform::Guest::of(tree, installed.map_or(&[], |installed| &installed.packages))?;
        for missing in platforms.iter().flat_map(|platform| guest.misses(*platform)) {
            events.notice(Level::Warning, missing);
        }
    }
    Ok(())
}

fn described(os: Option<Os>, installed: Option<Installed>) -> Contents {
    let package =
        |found: packages::Package| manifest::Package { name: found.name, version: found.version, arch: found.arch };
    Contents {
        content_sha256: None,
        os: os.map(|Os { id, version, name }| manifest::Os { id, version, name }),
        package_type: installed.as_ref().map(|installed| installed.kind.name().to_owned()),
        packages: installed.into_iter().flat_map(|installed| installed.packages).map(package).collect(),
    }
}

/// Writes the list of all files, and gives the digest of what they contain.
fn list_files(files: &Files<'_>, writers: &Writers, path: &Path) -> Result<[u8; 32], Failure> {
    let failed = |source| Failure::from(ScratchError::at("the list of files", path)(source));
    let file = File::create_new(path).and_then(|file| ListingWriter::new(BufWriter::new(file)));
    let (mut list, mut content) = (file.map_err(failed)?, ContentDigest::new());
    let mut written = Ok(());
    let walked = files.walk(&mut |entry| {
        content.add(entry);
        written = list.add(entry, writers.step_of(entry));
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    written.map_err(failed)?;
    walked?;
    list.finish().and_then(|mut file| file.flush()).map_err(failed)?;
    Ok(content.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_answers_with_its_system_and_its_packages() {
        let answers = answers(b"ID=fedora\nVERSION_ID=40\n\0rpm\0bash\t5.2-3\tx86_64\n");
        assert_eq!(answers.os.unwrap().id, "fedora");
        let installed = answers.installed.unwrap();
        assert_eq!((installed.kind, installed.packages.len()), (PackageType::Rpm, 1));
    }

    #[test]
    fn a_guest_that_says_nothing_or_nonsense_has_told_nothing() {
        for said in [&b""[..], b"\0", b"\0\0", b"\n\0gem\0a\tb\tc\n", &[0xff; 100][..], &[0; 100]] {
            let answers = answers(said);
            assert!(answers.installed.is_none(), "{said:?}");
        }
        assert!(answers(b"\0\0").os.is_none());
    }
}
