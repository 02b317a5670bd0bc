//! The contents of the sealed image: its files, its packages and its distribution, and what of that is not known.
//!
//! ```text
//! guest ──mounts──> DiskSurvey ──kiln reads them all──> the host reads the sealed disk ─┐
//!                        ├────────not all────────> the guest lists its files ───────────┼─> SealedView ──> Contents
//!                        └──> MountAgreement: does a boot of the sealed disk mount the same? ┘
//! ```
//!
//! A partial list is never presented as complete: a list of files is complete, or it is reported what it lacks.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};

use crate::cache::base_files::BaseFileDigests;
use crate::context::{BuildContext, ScratchError};
use crate::digest::Sha256Digest;
use crate::disk::as_mounted::{left_over, readable_volumes};
use crate::disk::chain::{Chain, DiskFiles, open_files};
use crate::disk::entry::{Chunk, ContentDigest, DiskEntry};
use crate::disk::gap::TreeGap;
use crate::disk::guest_listing::GuestListing;
use crate::disk::known_files::UnchangedFiles;
use crate::disk::listing::{self, ListingWriter};
use crate::disk::os_release::{self, OsRelease};
use crate::disk::packages::InstalledPackage;
use crate::disk::tree::{EntryVisitor, Tree, TreeError, TreeVisitor};
use crate::error::Failure;
use crate::event::{Events, NoticeLevel};
use crate::guest::boot::Guest;
use crate::guest::mounts::{DiskSurvey, survey};
use crate::guest::packages::{self, PackageAnswer, PackageList};
use crate::guest::seal::{self, SealedGuest};
use crate::guest::shutdown::CleanShutdown;
use crate::guest::step_record::StepRecord;
use crate::secret_scan::{SearchFindings, SearchedSecrets, SecretLeaks, TreeSearch};
use crate::session::GuestError;
use crate::specfile::{OutputFormat, OutputSpec, Platform};
use crate::store::manifest;

use super::attribution::Attribution;
use super::platform;

/// The deadline for listing files in the guest: hashing gigabytes under software emulation takes minutes.
const FILES_PATIENCE: Duration = Duration::from_secs(60 * 60);
/// The longest list of files that a guest may send, bytes: twenty million of them.
const MAX_LIST: u64 = 4 << 30;
/// Name of the file that holds that list until it is read.
const SPOOL: &str = "files.told";

/// The number of characters shown from either end of a long message of the guest.
const MESSAGE_END: usize = 150;

/// The disk of a sealed guest, with what is known of it that the disk itself does not show.
pub(crate) struct SealedDisk {
    pub(crate) disk: CleanShutdown,
    pub(crate) evidence: GuestEvidence,
}

/// The lister of a sealed disk's files.
#[derive(Debug)]
enum FileSource {
    /// The host lists them.
    Host,
    /// The guest has listed them.
    Guest {
        list: GuestListing,
        /// The reason why kiln cannot read the disk.
        reason: String,
    },
    /// Neither can, for this reason.
    Nobody(String),
}

/// Knowledge of a build about a sealed disk that the disk itself does not show.
#[derive(Debug)]
pub(crate) struct GuestEvidence {
    packages: Option<PackageAnswer>,
    files: FileSource,
    /// What the guest had mounted when it was sealed, and what its next boot mounts.
    survey: DiskSurvey,
    /// The times by which files are attributed to steps.
    pub(crate) writers: Attribution,
}

/// The contents of a disk, as far as they are known.
#[derive(Debug, Default)]
pub struct Contents {
    /// Whether all of the contents are known.
    pub listed: manifest::ListedContents,
    /// Digest of the file tree, where all of it is known.
    pub content_sha256: Option<Sha256Digest>,
    /// The distribution, if it is known.
    pub os: Option<manifest::ManifestOs>,
    /// The type of the packages.
    pub package_type: Option<String>,
    /// The installed packages.
    pub packages: Vec<manifest::ManifestPackage>,
}

/// Seals a guest, and asks it for what the host cannot read: for its packages before, for its files afterwards.
pub(crate) async fn seal_and_ask(
    build: &BuildContext<'_>,
    guest: &mut Guest,
    steps: &[StepRecord],
) -> Result<(SealedGuest, GuestEvidence), Failure> {
    let before = survey(build, guest).await?;
    let is_asked = before.has_rpm || before.for_host().is_err();
    let packages = if is_asked { packages::ask(build, guest).await? } else { None };
    let (sealed, clamped) = seal::seal(build, guest).await?;
    // Sealing may have unmounted what steps left behind.
    let survey = survey(build, guest).await?;
    let files = ask_for_files(build, guest, &survey).await?;
    Ok((sealed, GuestEvidence { packages, files, survey, writers: Attribution::new(steps, clamped) }))
}

/// Asks a sealed guest for a list of its files, where the host cannot read them all.
async fn ask_for_files(
    build: &BuildContext<'_>,
    guest: &mut Guest,
    survey: &DiskSurvey,
) -> Result<FileSource, Failure> {
    let Err(reason) = survey.for_host() else { return Ok(FileSource::Host) };
    build
        .events
        .notice(NoticeLevel::Info, format!("the guest lists its files, since kiln cannot read them all: {reason}"));
    let spool = build.work.join(SPOOL);
    let request = async {
        match guest.session.list(&spool, MAX_LIST).await {
            Err(GuestError::Refused { text, .. }) => Ok(Err(text)),
            listed => listed.map(Ok),
        }
    };
    Ok(match build.limits.call(&guest.machine, FILES_PATIENCE, request).await? {
        Ok((file, entries)) => FileSource::Guest { list: GuestListing::new(file, entries), reason },
        Err(why) => FileSource::Nobody(format!(
            "kiln cannot read all files ({reason}), and the guest could not list its files: {}",
            shorten_message(&why)
        )),
    })
}

/// Returns a message without its middle where it is too long for a line: it may contain a path of many folders.
fn shorten_message(text: &str) -> String {
    let count = text.chars().count();
    if count <= 2 * MESSAGE_END {
        return text.to_owned();
    }
    let head: String = text.chars().take(MESSAGE_END).collect();
    let tail: String = text.chars().skip(count - MESSAGE_END).collect();
    format!("{head}[...]{tail}")
}

/// The files of a sealed disk, listed by the host or the guest.
#[derive(Debug)]
pub(crate) struct SealedView<'d> {
    source: &'d FileSource,
    /// What kiln reads of the disk: everything, if the host lists the files.
    pub(crate) tree: Option<Tree<'d>>,
    /// What the list of files lacks, a sentence each.
    pub(crate) missing: Vec<String>,
    /// File systems that are not covered by the list, since the guest had not mounted them.
    pub(crate) left_over: Vec<TreeGap>,
}

impl<'d> SealedView<'d> {
    /// Opens the sealed disk.
    ///
    /// # Errors
    /// When the files of the disk cannot be read.
    pub(crate) fn open(disk: &'d Chain, evidence: &'d GuestEvidence) -> Result<Self, TreeError> {
        let (tree, mut missing) = match Tree::open_as_mounted(disk, &evidence.survey.readable()) {
            Ok(tree) => (Some(tree), Vec::new()),
            Err(TreeError::Read(error)) => return Err(error.into()),
            Err(error) => (None, vec![format!("kiln cannot read the guest's disk: {error}")]),
        };
        match &evidence.files {
            FileSource::Host => missing
                .extend(tree.iter().flat_map(Tree::gaps).filter(|gap| gap.hides_files()).map(ToString::to_string)),
            FileSource::Guest { .. } => missing.clear(),
            FileSource::Nobody(why) => missing = vec![why.clone()],
        }
        let agreement = evidence.survey.check_agreement(disk)?;
        missing.extend(agreement.differences);
        let used = evidence.survey.partitions();
        let mut left_over = used.as_deref().map_or(Ok(Vec::new()), |used| left_over(disk, used))?;
        left_over.retain(|gap| gap.partition().is_none_or(|number| !agreement.expected.contains(&number)));
        Ok(Self { source: &evidence.files, tree, missing, left_over })
    }

    /// Returns the tree of the disk if the host lists the files and the list is complete.
    pub(crate) fn whole_tree(&self) -> Option<&Tree<'d>> {
        self.tree.as_ref().filter(|_| matches!(self.source, FileSource::Host) && self.missing.is_empty())
    }

    /// Returns whether every file system that kiln reads was unmounted cleanly.
    pub(crate) fn is_clean(&self) -> bool {
        self.tree.as_ref().is_none_or(Tree::is_clean)
    }

    /// Returns why kiln does not read the contents of some files, if so.
    fn unread_contents(&self) -> Option<String> {
        match self.source {
            FileSource::Guest { reason, .. } => Some(reason.clone()),
            FileSource::Host | FileSource::Nobody(_) if self.missing.is_empty() => None,
            FileSource::Host | FileSource::Nobody(_) => Some(self.missing.join("; ")),
        }
    }

    /// Passes every entry to `visit`, in order, if all of them are known. Returns whether they are. Blocks the calling
    /// thread.
    ///
    /// # Errors
    /// When they cannot be read, or `visit` breaks.
    pub(crate) fn walk(&self, visit: &mut dyn FnMut(&DiskEntry) -> ControlFlow<()>) -> Result<bool, TreeError> {
        self.walk_contents(&mut EntryVisitor(visit), &mut UnchangedFiles::none())
    }

    /// Walks as [`SealedView::walk`] does, with the contents of the files that kiln reads.
    fn walk_contents(&self, visitor: &mut dyn TreeVisitor, unchanged: &mut UnchangedFiles) -> Result<bool, TreeError> {
        match (&self.source, &self.tree) {
            _ if !self.missing.is_empty() => return Ok(false),
            (FileSource::Guest { list, .. }, _) => list.walk(&mut |entry| visitor.visit_entry(entry))?,
            (_, Some(tree)) => tree.walk_changes(visitor, unchanged)?,
            (_, None) => return Ok(false),
        }
        Ok(true)
    }
}

/// Reads the contents while the tests boot or the outputs are hashed. The files are opened now: the overlay of the tests
/// takes the name of this one.
pub(crate) fn read(
    build: &BuildContext<'_>,
    layers: DiskFiles,
    evidence: GuestEvidence,
    known: BaseFileDigests,
    staging: &Path,
) -> Result<JoinHandle<Result<Contents, Failure>>, Failure> {
    let chain = open_files(layers)?;
    let (events, path) = (build.events.clone(), staging.join(listing::FILE));
    let searched = build.secrets.searched().cloned();
    let outputs = build.plan.spec.outputs.clone();
    Ok(spawn_blocking(move || {
        let view = SealedView::open(&chain, &evidence)?;
        let whole = view.tree.as_ref().filter(|_| matches!(evidence.files, FileSource::Host));
        let packages = PackageList::collect(whole, evidence.packages.as_ref())?;
        warn(&view, &packages, &events);
        warn_of_platforms(&outputs, view.tree.as_ref(), &packages, &events)?;
        let os = whole.map_or(Ok(None), os_release::os)?;
        let os = os.or_else(|| evidence.packages.as_ref()?.os.clone());
        if let Some(searched) = &searched {
            search_volumes(&chain, &view, searched, &events)?;
        }
        let mut unchanged = known.find(&chain)?;
        let content_sha256 = list_files(&view, &evidence.writers, &path, searched, &mut unchanged, &events)?;
        known.keep(&unchanged, &events);
        let listed = manifest::ListedContents {
            complete: view.missing.is_empty(),
            missing: view.missing,
            packages_missing: packages.missing.clone(),
        };
        let (package_type, packages) = packages.for_manifest();
        Ok(Contents { listed, content_sha256, os: os.map(for_manifest), package_type, packages })
    }))
}

/// Warns of everything that the evidence of the image lacks.
fn warn(view: &SealedView<'_>, packages: &PackageList, events: &Events) {
    for missing in &view.missing {
        events.notice(NoticeLevel::Warning, format!("not all files of the image are known: {missing}"));
    }
    for gap in &view.left_over {
        events.notice(
            NoticeLevel::Warning,
            format!("the list of files lacks a file system that the guest had not mounted: {gap}"),
        );
    }
    packages.warn(events);
}

/// Warns of what the guest lacks for its platforms, and for the machine that an OVA describes.
fn warn_of_platforms(
    outputs: &[OutputSpec],
    tree: Option<&Tree<'_>>,
    list: &PackageList,
    events: &Events,
) -> Result<(), Failure> {
    let platforms: BTreeSet<Platform> = outputs.iter().flat_map(|output| output.platforms.iter().copied()).collect();
    let Some(tree) = tree else {
        for platform in &platforms {
            let text =
                format!("what {} needs of the guest was not checked: kiln cannot read its disk", platform.name());
            events.notice(NoticeLevel::Warning, text);
        }
        return Ok(());
    };
    let has_ova = outputs.iter().any(|output| output.format == OutputFormat::Ova);
    if has_ova || !platforms.is_empty() {
        let packages: Vec<InstalledPackage> =
            list.databases.iter().flat_map(|database| database.packages.clone()).collect();
        let guest = platform::GuestCapabilities::of(tree, &packages)?;
        let in_ova = if has_ova { guest.misses_in_ova() } else { Vec::new() };
        for missing in platforms.iter().flat_map(|platform| guest.misses(*platform)).chain(in_ova) {
            events.notice(NoticeLevel::Warning, missing);
        }
    }
    Ok(())
}

fn for_manifest(OsRelease { id, version, name, .. }: OsRelease) -> manifest::ManifestOs {
    manifest::ManifestOs { id, version, name }
}

/// Searches every file system that kiln reads for secrets, where the guest's files are read only in part, and warns of
/// contents that were not searched.
fn search_volumes(
    disk: &Chain,
    view: &SealedView<'_>,
    searched: &SearchedSecrets,
    events: &Events,
) -> Result<(), Failure> {
    let reason = view.unread_contents();
    if let Some(reason) = &reason {
        events.notice(
            NoticeLevel::Warning,
            format!(
                "the contents of files that kiln cannot read were not searched for secrets, only the disk as it is \
                 ({reason}): a secret in a compressed or fragmented file would not be found"
            ),
        );
    }
    if reason.is_none() && view.left_over.is_empty() {
        return Ok(());
    }
    for tree in readable_volumes(disk)? {
        let mut search = TreeSearch::new(searched.clone());
        let walked = tree.walk_contents(&mut search);
        report(search.into_findings(), events)?;
        if let Err(error) = walked {
            let text = format!("a file system of the disk was not searched for secrets to its end: {error}");
            events.notice(NoticeLevel::Warning, text);
        }
    }
    Ok(())
}

/// Warns of the files that were not searched, and fails if secrets were found.
fn report(findings: SearchFindings, events: &Events) -> Result<(), SecretLeaks> {
    if let Some(warning) = findings.unsearched.warning() {
        events.notice(NoticeLevel::Warning, warning);
    }
    findings.leaks.into_result()
}

/// A visitor that lists files as they are read, and searches them.
struct FileLister<'w> {
    writers: &'w Attribution,
    content: ContentDigest,
    list: ListingWriter<'w, BufWriter<File>>,
    written: io::Result<()>,
    search: Option<TreeSearch>,
}

impl TreeVisitor for FileLister<'_> {
    fn reads_content(&self) -> bool {
        self.search.is_some()
    }

    fn begin_content(&mut self) {
        if let Some(search) = &mut self.search {
            search.begin_content();
        }
    }

    fn visit_content(&mut self, chunk: Chunk<'_>) {
        if let Some(search) = &mut self.search {
            search.visit_content(chunk);
        }
    }

    fn visit_entry(&mut self, entry: &DiskEntry) -> ControlFlow<()> {
        self.content.add(entry);
        self.written = self.list.add(entry, self.writers.step_of(entry));
        match &mut self.search {
            _ if self.written.is_err() => ControlFlow::Break(()),
            Some(search) => search.visit_entry(entry),
            None => ControlFlow::Continue(()),
        }
    }
}

/// Writes the list of all files, and returns the digest of their contents, or `None` where they are not all known.
///
/// # Errors
/// When a file contains a secret, or something cannot be read or written.
fn list_files(
    view: &SealedView<'_>,
    writers: &Attribution,
    path: &Path,
    searched: Option<SearchedSecrets>,
    unchanged: &mut UnchangedFiles,
    events: &Events,
) -> Result<Option<Sha256Digest>, Failure> {
    if !view.missing.is_empty() {
        return Ok(None);
    }
    let failed = |source| Failure::from(ScratchError::at("the list of files", path)(source));
    let file = File::create_new(path).and_then(|file| ListingWriter::new(BufWriter::new(file)));
    let search = searched.map(TreeSearch::new);
    let mut lister =
        FileLister { writers, content: ContentDigest::new(), list: file.map_err(failed)?, written: Ok(()), search };
    let walked = view.walk_contents(&mut lister, unchanged);
    lister.written.map_err(failed)?;
    if let Some(search) = lister.search {
        report(search.into_findings(), events)?;
    }
    walked?;
    lister.list.finish().and_then(|mut file| file.flush()).map_err(failed)?;
    Ok(Some(lister.content.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_with_a_long_path_is_one_that_fits_a_line() {
        let text = format!("{}: File name too long", "/ä".repeat(1200));
        let short = shorten_message(&text);
        assert!(
            short.chars().count() < 310 && short.starts_with("/ä/ä") && short.ends_with(": File name too long"),
            "{short}"
        );
        assert_eq!(shorten_message("/a: gone"), "/a: gone");
    }
}
