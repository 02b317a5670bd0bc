//! `kiln diff A B`: compares two images of the store, or disks that kiln did not build.
//!
//! Images that have their list of files are compared by the lists alone. Disks are read, both at once; no link in them is
//! followed, and nothing of them is mounted.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

use clap::Args;

use crate::disk::chain::{Chain, ChainFile};
use crate::disk::compare::{TreeChange, compare};
use crate::disk::inspect::{BaseHeaderError, BaseImage, InspectionError};
use crate::disk::listing::{self, ListingError, ListingReader, ListingRecord};
use crate::disk::magic::DiskSignature;
use crate::disk::packages::{PackageDatabase, has_rpm_database, missing_packages, read_databases, unread_managers};
use crate::disk::tree::{Tree, TreeError};
use crate::error::{Failure, Fault, FileError, Kind};
use crate::guest::run::bootable;
use crate::specfile::{BaseFormat, DiskFormat};
use crate::store::manifest::{Manifest, ManifestPackage};
use crate::store::{Artifact, Store};

use super::folders::Folders;
use super::{print, print_json};

mod packages;
mod queue;
mod secrets;
mod show;

use packages::{PackageChange, PackageChangeKind, package_changes};
use queue::{RecordSender, record_queue};
use secrets::{ShownText, hide_secrets};

/// Arguments of `kiln diff`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that is typed")]
#[command(after_help = "Example:\n  kiln diff web@1.4.0 web --stat\n  kiln diff downloads/debian-12.qcow2 web")]
pub struct DiffArgs {
    /// Image, as `name`, `name@version` or `name@tag`, or path of a qcow2 or raw disk
    pub a: String,
    /// Image or disk to compare it with
    pub b: String,
    /// Print totals only: files, packages and size by folder
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
    /// Show password hashes and private keys in the changes of /etc/shadow, /etc/gshadow and key files
    #[arg(long)]
    pub show_secrets: bool,
    /// Format of disks whose names do not end in .qcow2 or .raw
    #[arg(long, value_enum)]
    pub format: Option<BaseFormat>,
}

/// Size limit of texts that are compared line by line, bytes.
const TEXT_LIMIT: u64 = 64 << 10;

/// An error of a comparison.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A disk file whose format is not known.
    #[error("{} could be qcow2 or raw, and a format is never guessed", .0.display())]
    NoFormat(PathBuf),
    /// A file that is not a disk of its format.
    #[error("disk {}: {}", .0.path().display(), .0.why())]
    NotADisk(InspectionError),
    /// An image with neither a list of its files nor a disk that kiln can read.
    #[error("{0} has neither a list of its files nor a disk image")]
    NoDisk(String),
}

impl Fault for DiffError {
    fn kind(&self) -> Kind {
        match self {
            DiffError::NoFormat(_) => Kind::Usage,
            DiffError::NotADisk(_) => Kind::Base,
            DiffError::NoDisk(_) => Kind::Output,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            DiffError::NoFormat(_) => vec!["say it with `--format qcow2` or `--format raw`".into()],
            DiffError::NotADisk(error) => match error.why() {
                BaseHeaderError::Mismatch { found: DiskSignature::Qcow2, .. } => vec!["use `--format qcow2`".into()],
                BaseHeaderError::Mismatch { found: DiskSignature::PartitionTable, .. } => {
                    vec!["use `--format raw`".into()]
                }
                _ => error.hints(),
            },
            DiffError::NoDisk(_) => Vec::new(),
        }
    }
}

/// One of the two images or disks.
struct DiffSide {
    name: String,
    /// The image, if it is in the store; it is not removed while it is compared.
    artifact: Option<Artifact>,
    list: Option<File>,
    /// The disk; `None` for an image that consists of packages only.
    disk: Option<LazyDisk>,
}

/// A disk that is opened on first use.
#[derive(Debug)]
enum LazyDisk {
    /// A disk of the store: written by kiln, and not writable for others.
    Stored(PathBuf, DiskFormat),
    /// A disk of the user's.
    Given(PathBuf, BaseFormat),
}

/// What could not be read on one side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct SideGaps {
    /// Parts that could not be compared.
    missing: Vec<String>,
    /// File systems that are not mounted, and therefore not compared.
    left_over: Vec<String>,
}

/// Everything that differs.
#[derive(Debug, Default)]
struct Difference {
    files: Vec<TreeChange>,
    /// Unified diffs of changed small text files, by their index in `files`.
    texts: Vec<(usize, String)>,
    packages: Vec<PackageChange>,
    /// Differences in the manifests: name, first value, second value.
    metadata: Vec<(&'static str, String, String)>,
    /// The names of the second image's steps.
    steps: Vec<String>,
    /// What is missing on the first and on the second side.
    gaps: [SideGaps; 2],
}

impl Difference {
    /// Returns whether everything was compared, and nothing differs.
    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.packages.is_empty() && self.incomparable() == 0
    }

    /// Returns how many parts could not be compared.
    fn incomparable(&self) -> usize {
        self.gaps.iter().map(|gaps| gaps.missing.len()).sum()
    }
}

/// Writes the differences, and returns true if everything was compared and nothing differs.
pub fn run(args: &DiffArgs, folders: &Folders, out: &mut dyn Write) -> Result<bool, Failure> {
    let store = folders.store()?;
    let old = DiffSide::open(&args.a, args, &store)?;
    let new = DiffSide::open(&args.b, args, &store)?;
    let mut difference = Difference { steps: new.steps(), ..Difference::default() };
    compare(old.records()?, new.records()?, args.mtime, &mut |mut change| {
        change.forget_attributes();
        difference.files.push(change);
    })?;
    difference.packages = package_changes(&old.packages()?, &new.packages()?);
    difference.gaps = [old.gaps()?, new.gaps()?];
    difference.metadata = metadata(old.manifest(), new.manifest());
    if !args.stat {
        let secrets = if args.show_secrets { SecretFiles::Shown } else { SecretFiles::Hidden };
        difference.texts = texts(&old, &new, &difference.files, secrets)?;
    }
    let names = (old.name.as_str(), new.name.as_str());
    match (args.json, args.stat) {
        (true, _) => print_json(out, &show::json(names, &difference))?,
        (false, true) => print(out, &show::stat(names, &difference))?,
        (false, false) => print(out, &show::full(names, &difference))?,
    }
    Ok(difference.is_empty())
}

impl DiffSide {
    fn open(name: &str, args: &DiffArgs, store: &Store) -> Result<Self, Failure> {
        let path = Path::new(name);
        if name.contains('/') || path.is_file() {
            let disk = Some(LazyDisk::Given(path.to_owned(), format(path, args.format)?));
            return Ok(Self { name: name.to_owned(), artifact: None, list: None, disk });
        }
        let artifact = store.artifact(&name.parse()?)?;
        let disk = bootable(&artifact).into_iter().next().map(|image| LazyDisk::Stored(image.path, image.format));
        let list = File::open(artifact.folder().join(listing::FILE)).ok();
        Ok(Self { name: artifact.id().to_string(), artifact: Some(artifact), list, disk })
    }

    fn manifest(&self) -> Option<&Manifest> {
        self.artifact.as_ref().map(Artifact::manifest)
    }

    fn steps(&self) -> Vec<String> {
        self.manifest()
            .map(|manifest| manifest.steps.iter().map(|step| step.name.clone()).collect())
            .unwrap_or_default()
    }

    fn chain(&self) -> Result<Chain, Failure> {
        let (file, format) = match &self.disk {
            Some(LazyDisk::Stored(path, format)) => {
                (File::open(path).map_err(FileError::of(Kind::Base, "open", path))?, *format)
            }
            Some(LazyDisk::Given(path, format)) => {
                let image = BaseImage::open(path, *format).map_err(DiffError::NotADisk)?;
                (image.file, (*format).into())
            }
            None => return Err(DiffError::NoDisk(self.name.clone()).into()),
        };
        Ok(Chain::open(vec![ChainFile { file, format }])?)
    }

    /// Returns what is missing on this side, according to its manifest or to the disk that is read instead of a list.
    fn gaps(&self) -> Result<SideGaps, Failure> {
        let declared = self.manifest().into_iter().flat_map(Manifest::missing).map(str::to_owned);
        let mut gaps = SideGaps { missing: declared.collect(), ..SideGaps::default() };
        if self.list.is_some() {
            return Ok(gaps);
        }
        let chain = self.chain()?;
        let tree = Tree::open(&chain)?;
        for gap in tree.gaps() {
            let list = if gap.hides_files() { &mut gaps.missing } else { &mut gaps.left_over };
            list.push(gap.to_string());
        }
        if self.artifact.is_none() {
            let rpm = has_rpm_database(&tree)?.then_some("rpm");
            gaps.missing.extend(rpm.into_iter().chain(unread_managers(&tree)?).map(missing_packages));
        }
        Ok(gaps)
    }

    /// Returns the installed packages, each with its type.
    fn packages(&self) -> Result<Vec<ManifestPackage>, Failure> {
        if let Some(manifest) = self.manifest() {
            let typed = manifest.packages.iter().map(|package| ManifestPackage {
                kind: manifest.type_of(package).map(str::to_owned),
                ..package.clone()
            });
            return Ok(typed.collect());
        }
        let chain = self.chain()?;
        let databases = read_databases(&Tree::open(&chain)?)?;
        Ok(databases.into_iter().flat_map(typed_packages).collect())
    }

    /// Returns the records of all files, which a thread of their own reads.
    fn records(&self) -> Result<impl Iterator<Item = Result<ListingRecord, Failure>> + use<>, Failure> {
        let (sender, batches) = record_queue();
        if let Some(list) = &self.list {
            let list = list.try_clone().map_err(ListingError::Read)?;
            thread::spawn(move || send_list(list, sender));
        } else {
            let chain = self.chain()?;
            thread::spawn(move || send_tree(&chain, sender));
        }
        Ok(batches.into_iter().flatten())
    }
}

fn typed_packages(PackageDatabase { kind, packages }: PackageDatabase) -> impl Iterator<Item = ManifestPackage> {
    packages.into_iter().map(move |package| ManifestPackage {
        name: package.name,
        version: package.version,
        arch: package.arch,
        kind: Some(kind.name().to_owned()),
    })
}

fn format(path: &Path, given: Option<BaseFormat>) -> Result<BaseFormat, DiffError> {
    match (given, path.extension().and_then(|end| end.to_str())) {
        (Some(given), _) => Ok(given),
        (None, Some("qcow2")) => Ok(BaseFormat::Qcow2),
        (None, Some("raw")) => Ok(BaseFormat::Raw),
        _ => Err(DiffError::NoFormat(path.to_owned())),
    }
}

/// Sends the records of a list. Stops early if the receiver is gone.
fn send_list(list: File, mut to: RecordSender) {
    match ListingReader::open(list) {
        Ok(listing) => {
            for record in listing {
                if to.send(record.map_err(Failure::from)).is_break() {
                    return;
                }
            }
        }
        Err(error) => _ = to.send(Err(error.into())),
    }
}

fn send_tree(chain: &Chain, mut to: RecordSender) {
    let walked = Tree::open(chain).and_then(|tree| tree.walk(&mut |entry| to.send(Ok(ListingRecord::of(entry, None)))));
    match walked {
        Ok(()) | Err(TreeError::Stopped) => {}
        Err(error) => _ = to.send(Err(error.into())),
    }
}

fn metadata(old: Option<&Manifest>, new: Option<&Manifest>) -> Vec<(&'static str, String, String)> {
    let (Some(old), Some(new)) = (old, new) else { return Vec::new() };
    let pairs = compared_facts(old).into_iter().zip(compared_facts(new));
    pairs.filter(|(old, new)| old != new).map(|((name, old), (_, new))| (name, old, new)).collect()
}

fn compared_facts(manifest: &Manifest) -> [(&'static str, String); 5] {
    let steps: Vec<&str> = manifest.steps.iter().map(|step| step.name.as_str()).collect();
    [
        ("base", format!("{} {}", manifest.base.source, manifest.base.sha256)),
        ("steps", steps.join("; ")),
        ("firmware", manifest.machine.firmware.clone()),
        ("disk size", manifest.outputs.first().map_or(0, |output| output.virtual_bytes).to_string()),
        ("kiln", manifest.kiln.clone()),
    ]
}

/// Returns a unified diff of each small text file that changed, if kiln can read both disks; files of other file systems are
/// compared by the lists alone. The disks are opened only if there is such a file.
fn texts(
    old: &DiffSide,
    new: &DiffSide,
    changes: &[TreeChange],
    secrets: SecretFiles,
) -> Result<Vec<(usize, String)>, Failure> {
    let candidates: Vec<(usize, &TreeChange)> =
        changes.iter().enumerate().filter(|(_, change)| is_small_content_change(change)).collect();
    if candidates.is_empty() || old.disk.is_none() || new.disk.is_none() {
        return Ok(Vec::new());
    }
    let old_chain = old.chain()?;
    let new_chain = new.chain()?;
    let (Ok(old), Ok(new)) = (Tree::open(&old_chain), Tree::open(&new_chain)) else { return Ok(Vec::new()) };
    let mut texts = Vec::new();
    for (place, change) in candidates {
        let Ok(path) = std::str::from_utf8(change.path()) else { continue };
        if let (Some(old), Some(new)) = (read_text(&old, path)?, read_text(&new, path)?) {
            let shown = match secrets {
                SecretFiles::Shown => ShownText::Texts(old, new),
                SecretFiles::Hidden => hide_secrets(path, old, new),
            };
            texts.push((place, show::changed_text(&shown)));
        }
    }
    Ok(texts)
}

fn is_small_content_change(change: &TreeChange) -> bool {
    match change {
        TreeChange::Changed { old, new, what } => {
            what.iter().any(|what| what == "content") && is_small_file(old) && is_small_file(new)
        }
        _ => false,
    }
}

fn is_small_file(record: &ListingRecord) -> bool {
    record.field("type") == Some("file") && record.size() <= TEXT_LIMIT
}

/// Handling of password hashes and private keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SecretFiles {
    Hidden,
    Shown,
}

/// Reads a file of a disk, if its content is readable text of at most [`TEXT_LIMIT`] bytes.
fn read_text(tree: &Tree<'_>, path: &str) -> Result<Option<String>, TreeError> {
    Ok(tree.read(path, TEXT_LIMIT)?.and_then(plain_text))
}

/// Returns the bytes as a string if they are readable text.
fn plain_text(bytes: Vec<u8>) -> Option<String> {
    let text = String::from_utf8(bytes).ok()?;
    (!text.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\t' | '\r'))).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str) -> ManifestPackage {
        ManifestPackage { name: name.into(), version: version.into(), arch: "amd64".into(), kind: Some("deb".into()) }
    }

    #[test]
    fn packages_go_up_come_and_leave() {
        let old = [package("a", "1"), package("b", "1"), package("linux", "5"), package("linux", "6")];
        let new = [package("a", "2"), package("c", "1"), package("linux", "6"), package("linux", "7")];
        let change = |how, old: Option<&str>, new: Option<&str>, name: &str| {
            let of = |version: Option<&str>| version.map(|version| package(name, version));
            PackageChange { how, old: of(old), new: of(new) }
        };
        let expected = [
            change(PackageChangeKind::Up, Some("1"), Some("2"), "a"),
            change(PackageChangeKind::Removed, Some("1"), None, "b"),
            change(PackageChangeKind::Added, None, Some("1"), "c"),
            change(PackageChangeKind::Up, Some("5"), Some("7"), "linux"),
        ];
        assert_eq!(package_changes(&old, &new), expected);
        assert_eq!(package_changes(&new[..1], &old[..1])[0].how, PackageChangeKind::Down);
        for kind in [None, Some("rpm".to_owned())] {
            let other = ManifestPackage { kind, ..new[0].clone() };
            assert_eq!(
                package_changes(&old[..1], &[other])[0].how,
                PackageChangeKind::Changed,
                "of two types, or of none"
            );
        }
        assert!(package_changes(&old, &old).is_empty());
    }

    #[test]
    fn a_format_is_stated_and_not_guessed() {
        let format = |name: &str, said| format(Path::new(name), said);
        assert_eq!(format("a.qcow2", None).unwrap(), BaseFormat::Qcow2);
        assert_eq!(format("a.raw", None).unwrap(), BaseFormat::Raw);
        assert_eq!(format("a.qcow2", Some(BaseFormat::Raw)).unwrap(), BaseFormat::Raw);
        let error = format("a.img", None).unwrap_err();
        assert_eq!((error.kind().exit_code(), error.hints().len()), (2, 1));
    }

    #[test]
    fn what_people_do_not_read_is_no_text() {
        assert!(plain_text(b"a\tb\r\n".to_vec()).is_some());
        assert!(plain_text(b"a\0".to_vec()).is_none() && plain_text(b"\x1b[2J".to_vec()).is_none());
        assert!(plain_text(vec![0xff]).is_none());
    }
}
