//! `kiln build --check-reproducible`: two builds from scratch, the second in another machine at another time, and a
//! comparison of their files. Nothing is published.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use tokio::task::spawn_blocking;

use crate::cache::step_cache::StepCache;
use crate::context::{BuildContext, BuildOptions, ScratchError};
use crate::deadline::Deadline;
use crate::digest::{Sha256Digest, sha256_file};
use crate::disk::chain::open_files;
use crate::disk::entry::{ContentDigest, DiskEntry, canonical};
use crate::disk::listing::split_field;
use crate::error::{Failure, Fault, Kind};
use crate::event::NoticeLevel;
use crate::network_record::NetworkRecord;
use crate::output::attribution::Attribution;
use crate::output::contents::SealedDisk;
use crate::output::contents::{GuestEvidence, SealedView};
use crate::output::locked_downloads;
use crate::pipeline::require_qemu;
use crate::plan::Plan;
use crate::resolve::secrets::SecretValues;
use crate::size::ByteSize;

/// The clock difference of the second build: another day, hour and minute; not so far that a certificate has expired
/// meanwhile.
const AHEAD: SignedDuration = SignedDuration::from_secs(31 * 3600 + 17 * 60 + 5);
/// The number of files that are named; the others are counted.
const NAMED: usize = 200;

/// The files of the two builds differ.
#[derive(Debug, thiserror::Error)]
#[error("not reproducible: {count} {} between two builds", if *count == 1 { "file differs" } else { "files differ" })]
pub struct ReproducibilityError {
    count: usize,
    files: Vec<String>,
}

impl Fault for ReproducibilityError {
    fn kind(&self) -> Kind {
        Kind::Output
    }

    fn evidence(&self) -> Vec<String> {
        self.files.clone()
    }

    fn hints(&self) -> Vec<String> {
        vec!["builds differ in clock, memory and number of processors; `SOURCE_DATE_EPOCH` is what they share".into()]
    }
}

/// Not all files of a build are known, so two builds cannot be compared.
#[derive(Debug, thiserror::Error)]
#[error("cannot determine whether the build is reproducible: not all files of the image are known")]
struct ComparisonError {
    missing: Vec<String>,
}

impl Fault for ComparisonError {
    fn kind(&self) -> Kind {
        Kind::Output
    }

    fn evidence(&self) -> Vec<String> {
        self.missing.clone()
    }
}

/// The compared properties of a file, and the step that wrote it.
#[derive(Debug, Clone, PartialEq)]
struct ComparedFile {
    line: String,
    modified: (i64, u32),
    step: Option<usize>,
}

/// Every file of a sealed disk, and of what its steps fetched.
struct BuildResult {
    content_sha256: Sha256Digest,
    all: BTreeMap<Vec<u8>, ComparedFile>,
    fetched: FetchedFiles,
    /// What its steps get over a locked network.
    network: Option<NetworkRecord>,
}

/// What steps fetched, by path.
type FetchedFiles = BTreeMap<PathBuf, FetchedContent>;

/// The content of something that a step fetched.
#[derive(Debug, PartialEq, Eq)]
enum FetchedContent {
    File(Sha256Digest),
    Link(PathBuf),
}

/// Builds twice, without cache, tests and outputs, and compares the files. Returns the `content_sha256` that both have.
///
/// # Errors
/// When a build fails, or the files differ.
pub async fn reproduce(plan: &Plan, around: &BuildOptions) -> Result<Sha256Digest, Failure> {
    let limits = Deadline::new(around.cancel.clone(), plan.spec.build.timeout.saturating_mul(2));
    let mut first = plan.clone();
    // Programs that respect `SOURCE_DATE_EPOCH` see the same time in both builds.
    first.source_date_epoch = plan.source_date_epoch.or(Some(Timestamp::now().as_second()));
    around.events.notice(NoticeLevel::Info, format!("first build: {}", describe_machine(&first)));
    let one = once(&first, around, limits.clone()).await?;
    let mut second = varied(&first);
    // The second build gets what the first one downloaded.
    second.network = one.network.clone();
    let machine = describe_machine(&second);
    around.events.notice(NoticeLevel::Info, format!("second build: {machine}, a clock that is a day ahead"));
    let other = once(&second, around, limits).await?;
    let steps: Vec<&str> = plan.spec.steps.iter().map(|step| step.name.as_str()).collect();
    let mut differences = differences(&one.all, &other.all, &steps);
    differences.extend(fetched_differences(&one.fetched, &other.fetched));
    if differences.is_empty() {
        return Ok(one.content_sha256);
    }
    // The names of files come from the guest and may contain secrets.
    let secrets = SecretValues::load(&plan.spec)?;
    Err(Failure::from(told(differences)).mask_secrets(secrets.mask()))
}

/// Returns the plan of the same build in another machine at another time.
fn varied(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    let machine = &mut plan.machine;
    machine.cpus = if machine.cpus > 1 { machine.cpus - 1 } else { 2 };
    machine.memory = ByteSize(machine.memory.bytes() + (256 << 20));
    machine.clock = Some(Timestamp::now() + AHEAD);
    plan
}

fn describe_machine(plan: &Plan) -> String {
    format!("{} cpus, {}", plan.machine.cpus, plan.machine.memory)
}

async fn once(plan: &Plan, around: &BuildOptions, limits: Deadline) -> Result<BuildResult, Failure> {
    require_qemu(plan).await?;
    let build = BuildContext::open(plan, around, limits)?;
    let mut layers = StepCache::new(plan, build.events.clone(), None, build.work.path());
    let made = async {
        let fetched = build.work.join("fetched");
        let (guest, steps) = build.provisioned(&mut layers, &fetched, around).await?;
        let SealedDisk { disk, evidence } = build.sealed(guest, &steps, &layers).await?;
        let files: Vec<PathBuf> = steps.iter().flat_map(|done| done.fetched.paths()).map(PathBuf::from).collect();
        let reading = spawn_blocking(move || {
            let digests = digest_fetched(&fetched, files).map_err(ScratchError::at("the fetched files", &fetched))?;
            read(&open_files(disk.chain)?, &evidence, digests)
        });
        let result = build.limits.hold(async { reading.await.expect("reading the tree does not panic") }).await?;
        Ok(BuildResult { network: locked_downloads::current_record(&build), ..result })
    };
    let made = made.await;
    layers.finish(made.as_ref().err()).await;
    made.map_err(|failure| build.give_up(failure, around))
}

/// Returns the digests of what steps fetched: of the content of a file, or of the target of a link.
fn digest_fetched(folder: &Path, files: Vec<PathBuf>) -> io::Result<FetchedFiles> {
    let digests = files.into_iter().map(|file| {
        let path = folder.join(&file);
        let content = if fs::symlink_metadata(&path)?.is_symlink() {
            FetchedContent::Link(fs::read_link(&path)?)
        } else {
            FetchedContent::File(sha256_file(&File::open(&path)?)?)
        };
        Ok((file, content))
    });
    digests.collect()
}

fn fetched_differences(one: &FetchedFiles, other: &FetchedFiles) -> Vec<String> {
    let files: BTreeSet<&PathBuf> = one.keys().chain(other.keys()).collect();
    let differences = files.into_iter().filter_map(|file| {
        let how = match (one.get(file), other.get(file)) {
            (Some(first), Some(second)) if first == second => return None,
            (Some(_), Some(_)) => "content",
            (Some(_), None) => "only in the first build",
            _ => "only in the second build",
        };
        Some(format!("fetched file {}: {how}", file.display()))
    });
    differences.collect()
}

fn read(
    disk: &crate::disk::chain::Chain,
    evidence: &GuestEvidence,
    fetched: FetchedFiles,
) -> Result<BuildResult, Failure> {
    let mut content = ContentDigest::new();
    let mut all = BTreeMap::new();
    let view = SealedView::open(disk, evidence)?;
    let is_whole = view.walk(&mut |entry| {
        content.add(entry);
        all.insert(entry.path.clone(), found(entry, &evidence.writers));
        ControlFlow::Continue(())
    })?;
    if !is_whole {
        return Err(ComparisonError { missing: view.missing }.into());
    }
    Ok(BuildResult { content_sha256: content.finish(), all, fetched, network: None })
}

fn found(entry: &DiskEntry, writers: &Attribution) -> ComparedFile {
    let modified = (entry.modified.seconds, entry.modified.nanoseconds);
    ComparedFile { line: canonical(entry), modified, step: writers.step_of(entry) }
}

/// Returns a line for each path that differs between the builds.
fn differences(
    one: &BTreeMap<Vec<u8>, ComparedFile>,
    other: &BTreeMap<Vec<u8>, ComparedFile>,
    steps: &[&str],
) -> Vec<String> {
    let paths: BTreeSet<&Vec<u8>> = one.keys().chain(other.keys()).collect();
    let differences = paths.into_iter().filter_map(|path| {
        let first = one.get(path);
        let second = other.get(path);
        let how = match (first, second) {
            (Some(first), Some(second)) => what_differs(first, second)?,
            (Some(_), None) => "only in the first build".to_owned(),
            _ => "only in the second build".to_owned(),
        };
        let step = [first, second].into_iter().flatten().find_map(|found| found.step);
        let by = match step {
            Some(index) => format!("step {} `{}`", index + 1, steps.get(index).unwrap_or(&"?")),
            None => "the boot or sealing".to_owned(),
        };
        Some(format!("{}: {how}; written by {by}", String::from_utf8_lossy(path)))
    });
    differences.collect()
}

fn fields(line: &str) -> BTreeMap<String, String> {
    line.split_whitespace().filter_map(split_field).collect()
}

/// Returns the fields of the canonical line that differ, and the time if it does.
fn what_differs(one: &ComparedFile, other: &ComparedFile) -> Option<String> {
    let first = fields(&one.line);
    let second = fields(&other.line);
    let names: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let mut differing: Vec<&str> =
        names.into_iter().filter(|name| first.get(*name) != second.get(*name)).map(String::as_str).collect();
    if one.modified != other.modified {
        differing.push("mtime");
    }
    (!differing.is_empty()).then(|| differing.join(", "))
}

fn told(mut files: Vec<String>) -> ReproducibilityError {
    let count = files.len();
    files.truncate(NAMED);
    if count > NAMED {
        files.push(format!("and {} more", count - NAMED));
    }
    ReproducibilityError { count, files }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str, i64, Option<usize>)]) -> BTreeMap<Vec<u8>, ComparedFile> {
        let found = |(path, line, time, step): &(&str, &str, i64, Option<usize>)| {
            let line = format!("path={path} {line}\n");
            (path.as_bytes().to_vec(), ComparedFile { line, modified: (*time, 0), step: *step })
        };
        list.iter().map(found).collect()
    }

    #[test]
    fn each_difference_names_file_field_and_step() {
        let one = files(&[
            ("/a", "mode=0644 sha256=00", 1, Some(1)),
            ("/b", "mode=0644", 1, None),
            ("/c", "mode=0644", 1, Some(0)),
            ("/d", "mode=0644", 1, Some(0)),
        ]);
        let other = files(&[
            ("/a", "mode=0600 sha256=11", 1, Some(1)),
            ("/b", "mode=0644", 2, None),
            ("/d", "mode=0644", 1, None),
            ("/e", "mode=0644", 1, Some(0)),
        ]);
        let expected = [
            "/a: mode, sha256; written by step 2 `two`",
            "/b: mtime; written by the boot or sealing",
            "/c: only in the first build; written by step 1 `one`",
            "/e: only in the second build; written by step 1 `one`",
        ];
        assert_eq!(differences(&one, &other, &["one", "two"]), expected);
        assert!(differences(&one, &one, &["one", "two"]).is_empty());
    }

    #[test]
    fn attributes_whose_names_differ_after_an_equals_sign_are_two() {
        let one = files(&[("/a", "xattr:user.a=b=00 xattr:user.a=c=01", 1, None)]);
        let other = files(&[("/a", "xattr:user.a=b=02 xattr:user.a=c=01", 1, None)]);
        assert_eq!(differences(&one, &other, &[]), ["/a: xattr:user.a=b; written by the boot or sealing"]);
    }

    #[test]
    fn fetched_files_are_compared_by_content() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let names = ["same", "other", "one"].map(PathBuf::from);
        for (folder, content) in folders.iter().zip(["1", "2"]) {
            fs::write(folder.path().join("same"), "x").unwrap();
            fs::write(folder.path().join("other"), content).unwrap();
            std::os::unix::fs::symlink("same", folder.path().join("one")).unwrap();
        }
        let first = digest_fetched(folders[0].path(), names.to_vec()).unwrap();
        let second = digest_fetched(folders[1].path(), names[..2].to_vec()).unwrap();
        let expected = ["fetched file one: only in the first build", "fetched file other: content"];
        assert_eq!(fetched_differences(&first, &second), expected);
        assert!(fetched_differences(&first, &first).is_empty());
        assert_eq!(fetched_differences(&second, &first)[0], "fetched file one: only in the second build");
    }

    #[test]
    fn many_files_are_counted() {
        let error = told((0..NAMED + 5).map(|number| format!("/{number}")).collect());
        assert_eq!(error.to_string(), "not reproducible: 205 files differ between two builds");
        assert_eq!(error.evidence().last().map(String::as_str), Some("and 5 more"));
    }
}
