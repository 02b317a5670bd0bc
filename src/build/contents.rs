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
use crate::disk::packages::{Package, has_rpm_database, read_databases};
use crate::disk::told::Told;
use crate::disk::tree::{Tree, TreeError};
use crate::error::Failure;
use crate::event::{Events, Level};
use crate::guest::GuestError;
use crate::plan::Plan;
use crate::spec::Platform;
use crate::store::manifest;

use super::boot::Guest;
use super::disks::{Layers, open};
use super::packages::{self, PackageAnswer, PackageList};
use super::writers::Writers;
use super::{Build, ScratchError, platform};

/// Hashing gigabytes under software emulation takes minutes.
const FILES_PATIENCE: Duration = Duration::from_secs(60 * 60);
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
        let packages = tree.as_ref().is_none_or(|tree| !are_packages_readable(tree));
        Self { files: tree.is_none_or(|tree| !tree.is_whole()), packages }
    }
}

/// Returns whether the host reads every package database of this tree, and there is one.
fn are_packages_readable(tree: &Tree<'_>) -> bool {
    let is_listed = read_databases(tree).is_ok_and(|databases| !databases.is_empty());
    is_listed && has_rpm_database(tree).is_ok_and(|has_rpm| !has_rpm)
}

/// What the guest has said of itself. It may say anything.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    packages: Option<PackageAnswer>,
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

/// Asks a guest that is not sealed yet for what the host cannot read. One that cannot answer is none the worse for it.
pub(crate) async fn ask(build: &Build<'_>, guest: &mut Guest, wanted: Wanted) -> Result<Answers, Failure> {
    let packages = if wanted.packages { packages::ask(build, guest).await? } else { None };
    Ok(Answers { packages, files: None })
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
    let (events, path) = (build.events.clone(), staging.join(listing::FILE));
    let outputs = &build.plan.spec.outputs;
    let platforms: BTreeSet<Platform> = outputs.iter().flat_map(|output| output.platforms.iter().copied()).collect();
    Ok(spawn_blocking(move || {
        let tree = Tree::open(&chain);
        let list = PackageList::collect(tree.as_ref().ok(), answers.packages.as_ref())?;
        list.warn(&events);
        let mut os = answers.packages.as_ref().and_then(|answer| answer.os.clone());
        if let Ok(tree) = &tree {
            warn_of(&platforms, tree, &list, &events)?;
            os = os.or(os_release::os(tree)?);
        } else {
            for platform in platforms {
                let text =
                    format!("what {} needs of the guest was not checked: kiln cannot read its disk", platform.name());
                events.notice(Level::Warning, text);
            }
        }
        let content_sha256 = match Files::new(tree, &answers) {
            Ok(files) => Some(hex(&list_files(&files, &writers, &path)?)),
            Err(error) => {
                events.notice(Level::Info, format!("the manifest will lack content: {error}"));
                None
            }
        };
        let (package_type, packages) = list.for_manifest();
        Ok(Contents { content_sha256, os: os.map(for_manifest), package_type, packages })
    }))
}

/// Says what the platforms need that the guest goes to, and that it lacks.
fn warn_of(
    platforms: &BTreeSet<Platform>,
    tree: &Tree<'_>,
    list: &PackageList,
    events: &Events,
) -> Result<(), Failure> {
    if !platforms.is_empty() {
        let packages: Vec<Package> = list.databases.iter().flat_map(|database| database.packages.clone()).collect();
        let guest = platform::Guest::of(tree, &packages)?;
        for missing in platforms.iter().flat_map(|platform| guest.misses(*platform)) {
            events.notice(Level::Warning, missing);
        }
    }
    Ok(())
}

fn for_manifest(Os { id, version, name }: Os) -> manifest::Os {
    manifest::Os { id, version, name }
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
