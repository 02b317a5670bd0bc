//! Tests of a sealed image, booted as a new machine would be.
//!
//! ```text
//! output ─> overlay ─> boot ─> checkpoint ─┬─> clone ─> test
//!                                          ├─> clone ─> test      as many at once as processors and memory allow
//!                                          └─> ...
//! ```
//!
//! No test sees the effects of another. A test that needs a boot of its own gets one. Where QEMU cannot make a checkpoint,
//! the tests share one guest, one after the other, and that is reported.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::context::ScratchError;
use crate::deadline::DeadlineError;
use crate::disk::qcow2::create_overlay;
use crate::error::Failure;
use crate::event::{Event, NoticeLevel};
use crate::guest::boot::{self, Guest, MachineSite};
use crate::guest::planting::{self, PlantingError};
use crate::guest::run::DiskImage;
use crate::machine::argv::{BackingFiles, OVERLAY, SEED, UEFI_VARS};
use crate::machine::checkpoint::RamFormat;
use crate::machine::host;
use crate::output::publish::TESTS;
use crate::plan::agent::AgentStart;
use crate::seed;
use crate::session::Hello;
use crate::specfile::{Check, Command, DiskFormat, Test};
use crate::store::manifest;
use crate::try_join::all;

mod check;
mod describe;
mod failed;
mod parse;
pub mod retest;
pub mod visit;

use check::Probe;
use failed::NotPlanted;
pub use failed::{DoesNotBoot, Failed, TestsFailed};

/// The pause between two tries of a test. There is no event for "the service answers now".
const PAUSE: Duration = Duration::from_millis(500);
/// The deadline for small requests to the guest.
const PATIENCE: Duration = Duration::from_secs(120);
/// The memory that QEMU needs besides the guest's memory, bytes.
const QEMU_OVERHEAD: u64 = 192 << 20;
/// Name of the overlay that receives the writes when the first one is frozen; nobody reads it.
const SPARE: &str = "spare.qcow2";
/// Name of the folder of the machine in which the agent is planted.
const PLANTED: &str = "planted";
/// Name of the file with the memory of the boot that the tests share.
const RAM: &str = "ram";

/// The context in which tests run.
#[derive(Clone, Copy)]
pub(crate) struct Bench<'a> {
    /// Where their machines run. The evidence of a failed test is kept in the folder, below `tests`.
    pub(crate) site: MachineSite<'a>,
    /// Virtual size of the disk, bytes.
    pub(crate) disk_size: u64,
    /// The tests to run.
    pub(crate) tests: &'a [Test],
}

/// The outcome of one test.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The test that ran.
    pub test: Test,
    /// The format of the image file that was booted.
    pub format: &'static str,
    /// Whether the test passed.
    pub ok: bool,
    /// The result in words, to follow the test's name: `nothing listens on port 80`.
    pub found: String,
    /// The last lines that the test wrote.
    pub tail: Vec<String>,
    /// For a failed test, a hint on how to fix it, as far as its output allows.
    pub hint: Option<String>,
    /// Wall time over all tries, without the boot, seconds.
    pub seconds: f64,
    /// For a failed test, the folder with its output, the console and the journal.
    pub kept: Option<PathBuf>,
}

impl Outcome {
    /// Creates the outcome of an image that could not be tested at all, for reports.
    #[must_use]
    pub fn of(unbootable: &DoesNotBoot) -> Self {
        let DoesNotBoot { format, why } = unbootable;
        Self {
            test: boots(format),
            format,
            ok: false,
            found: unbootable.found(),
            tail: why.evidence(),
            hint: None,
            seconds: 0.0,
            kept: None,
        }
    }

    /// Returns the manifest's record of the outcome.
    ///
    /// # Panics
    /// Never: a test is plain data.
    #[must_use]
    pub fn record(&self) -> manifest::ManifestTest {
        let definition = serde_json::to_value(&self.test).expect("a test is plain data");
        let name = self.test.name.clone();
        let format = self.format.to_owned();
        manifest::ManifestTest { name, ok: self.ok, seconds: self.seconds, skipped: false, format, definition }
    }
}

/// Returns the manifest's records of tests that did not run.
///
/// # Panics
/// Never: a test is plain data.
#[must_use]
pub fn skipped(tests: &[Test]) -> Vec<manifest::ManifestTest> {
    let records = tests.iter().map(|test| manifest::ManifestTest {
        name: test.name.clone(),
        skipped: true,
        definition: serde_json::to_value(test).expect("a test is plain data"),
        ..manifest::ManifestTest::default()
    });
    records.collect()
}

/// The extent of testing the image files. Each of them holds the same disk, byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// All tests run on the first file; each other file is booted.
    First,
    /// All tests run on all files.
    All,
}

/// Runs the tests, whether or not some fail, and adds their outcomes. Fails when an image does not boot, the host cannot run
/// it, or a limit is reached; tests that fail are outcomes.
pub(crate) async fn test(
    bench: &Bench<'_>,
    images: &[DiskImage],
    coverage: Coverage,
    outcomes: &mut Vec<Outcome>,
) -> Result<(), Failure> {
    let round = async |image: &DiskImage, tests: &[Test]| {
        let bench = Bench { tests, disk_size: image.format.virtual_size(bench.disk_size), ..*bench };
        let mut round = Round::new(&bench, image)?;
        round.planted().await.map_err(|why| round.describe_failure(why))?;
        round.run().await
    };
    let tested = if coverage == Coverage::All { images.len() } else { images.len().min(1) };
    let (tested, booted) = images.split_at(tested);
    for image in tested {
        outcomes.extend(round(image, bench.tests).await?);
    }
    let boot = async |image: &DiskImage| round(image, &[boots(image.format.name())]).await;
    let (found, ended) = run_in_lanes(bench, booted, boot).await;
    outcomes.extend(found.into_iter().flatten());
    ended
}

/// Runs the jobs, as many at once as the host can bear. Returns the results that there are, in the order of the jobs, and
/// the first failure, which ends all others.
async fn run_in_lanes<J, T>(
    bench: &Bench<'_>,
    jobs: &[J],
    work: impl AsyncFn(&J) -> Result<T, Failure>,
) -> (Vec<T>, Result<(), Failure>) {
    let next = Cell::new(0);
    let done = RefCell::new(Vec::new());
    let lane = async || {
        while let Some(job) = jobs.get(next.get()) {
            let index = next.replace(next.get() + 1);
            let result = work(job).await?;
            done.borrow_mut().push((index, result));
        }
        Ok(())
    };
    let ended = all((0..lanes(bench, jobs.len())).map(|_| lane()).collect()).await;
    let mut done = done.take();
    done.sort_by_key(|(index, _)| *index);
    (done.into_iter().map(|(_, result)| result).collect(), ended)
}

/// Returns how many guests may run at once.
fn lanes(bench: &Bench<'_>, jobs: usize) -> usize {
    let each = bench.site.machine.memory.bytes() + QEMU_OVERHEAD;
    // A quarter of the memory is reserved for everything else.
    let memory = host::memory().map_or(1, |memory| memory.available.bytes() / 4 * 3 / each);
    jobs.min(host::cpus()).min(usize::try_from(memory).unwrap_or(usize::MAX)).max(1)
}

/// Returns the test that an image file passes when its guest answers.
fn boots(format: &str) -> Test {
    Test {
        name: format!("boots from {format}"),
        check: Check::Run(Command::Shell("true".into())),
        reboot: false,
        needs_fresh_boot: true,
        retry_for: Duration::ZERO,
        timeout: PATIENCE,
        line: 0,
    }
}

/// The frozen state after a boot: disk and memory.
struct Snapshot {
    disk: PathBuf,
    ram: PathBuf,
    format: RamFormat,
    hello: Hello,
    /// The time that the boot took.
    booted: Duration,
}

/// A run of all tests on one image file.
struct Round<'a> {
    bench: &'a Bench<'a>,
    image: &'a DiskImage,
    /// The overlay in which the agent was planted, if it was, and the image.
    backing: BackingFiles,
    /// Path of the folder of the shared boot.
    folder: PathBuf,
    outcomes: RefCell<Vec<(usize, Outcome)>>,
}

impl<'a> Round<'a> {
    fn new(bench: &'a Bench<'a>, image: &'a DiskImage) -> Result<Self, Failure> {
        let tests = made(bench.site.folder.join(TESTS))?;
        let folder = tests.join(image.format.name());
        // Two files may have the same format.
        let folder = if folder.exists() { tests.join(image.path.file_name().unwrap_or_default()) } else { folder };
        let backing = BackingFiles(vec![(image.path.clone(), image.format)]);
        Ok(Self { bench, image, backing, folder: made(folder)?, outcomes: RefCell::default() })
    }

    /// Plants the agent in an overlay below those of all machines, if they need that.
    async fn planted(&mut self) -> Result<(), Failure> {
        let AgentStart::Planted(reason) = &self.bench.site.machine.agent else { return Ok(()) };
        let events = self.bench.site.events;
        events.notice(NoticeLevel::Info, format!("kiln's agent is planted in a copy of the image: {reason}"));
        let folder = made(self.folder.join(PLANTED))?;
        let overlay = folder.join(OVERLAY);
        let attempt = async || {
            create_overlay(&overlay, self.bench.disk_size).map_err(ScratchError::at("an overlay", &overlay))?;
            planting::plant(self.site(&folder), &self.backing, false).await
        };
        boot::boot_despite_crash(events, attempt).await?;
        self.backing.0.insert(0, (overlay, DiskFormat::Qcow2));
        Ok(())
    }

    fn describe_failure(&self, why: Failure) -> Failure {
        if why.fault::<PlantingError>().is_some() {
            return NotPlanted { why }.into();
        }
        match why.fault::<DeadlineError>() {
            // An interruption is not a failure of the image.
            Some(_) => why,
            None => DoesNotBoot { format: self.image.format.name(), why }.into(),
        }
    }

    async fn run(self) -> Result<Vec<Outcome>, Failure> {
        let (fresh, shared): (Vec<usize>, Vec<usize>) =
            (0..self.bench.tests.len()).partition(|index| self.bench.tests[*index].needs_fresh_boot);
        let mut jobs: Vec<(usize, Option<&Snapshot>)> = fresh.into_iter().map(|index| (index, None)).collect();
        let snapshot;
        match shared[..] {
            [] => {}
            // A clone for a single test would only repeat the work.
            [only] => jobs.push((only, None)),
            _ => {
                snapshot = self.snapshot(&shared).await?;
                // Without a snapshot, they have already run.
                jobs.extend(
                    snapshot.iter().flat_map(|snapshot| shared.iter().map(move |index| (*index, Some(snapshot)))),
                );
            }
        }
        let test = async |job: &(usize, Option<&Snapshot>)| Ok((job.0, self.one(job.0, job.1).await?));
        let (ran, ended) = run_in_lanes(self.bench, &jobs, test).await;
        ended?;
        // Frees space; the evidence of failed tests is elsewhere.
        let _ = fs::remove_file(self.folder.join(RAM));
        let mut outcomes = self.outcomes.into_inner();
        outcomes.extend(ran);
        outcomes.sort_by_key(|(index, _)| *index);
        Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
    }

    fn site<'s>(&'s self, folder: &'s Path) -> MachineSite<'s> {
        MachineSite { folder, ..self.bench.site }
    }

    /// Creates an overlay, and a seed if there is one, for a machine in this folder.
    fn prepare(&self, folder: &Path) -> Result<(), Failure> {
        let overlay = folder.join(OVERLAY);
        create_overlay(&overlay, self.bench.disk_size).map_err(ScratchError::at("an overlay", &overlay))?;
        match self.bench.site.machine.agent {
            AgentStart::CloudInit => boot::write_seed(self.site(folder), seed::BootPurpose::First),
            AgentStart::Planted(_) | AgentStart::Direct => Ok(()),
        }
    }

    /// Boots the image for tests; also returns how long that took.
    async fn boot(&self, folder: &Path) -> Result<(Guest, Duration), Failure> {
        self.boot_clone(folder).await.map_err(|why| self.describe_failure(why))
    }

    /// Boots a clone of the image; also returns how long that took.
    async fn boot_clone(&self, folder: &Path) -> Result<(Guest, Duration), Failure> {
        let attempt = async || {
            self.prepare(folder)?;
            let began = Instant::now();
            let guest = boot::start(self.site(folder), &self.backing).await?;
            guest.announce(self.bench.site.events);
            Ok((guest, began.elapsed()))
        };
        boot::boot_despite_crash(self.bench.site.events, attempt).await
    }

    /// Boots once for these tests and freezes the guest. Where that is not possible, runs them in this guest and returns
    /// `None`.
    async fn snapshot(&self, shared: &[usize]) -> Result<Option<Snapshot>, Failure> {
        let Bench { site: MachineSite { limits, events, .. }, disk_size, .. } = *self.bench;
        let (mut guest, booted) = self.boot(&self.folder).await?;
        let spare = self.folder.join(SPARE);
        create_overlay(&spare, disk_size).map_err(ScratchError::at("an overlay", &spare))?;
        let ram = self.folder.join(RAM);
        limits.call(&guest.machine, PATIENCE, guest.session.park()).await?;
        let checkpoint = async { Ok::<_, Failure>(guest.machine.checkpoint(SPARE, &ram).await) };
        match limits.hold(checkpoint).await? {
            Ok(format) => {
                let hello = guest.hello.clone();
                guest.machine.abort().await;
                Ok(Some(Snapshot { disk: self.folder.join(OVERLAY), ram, format, hello, booted }))
            }
            Err(why) => {
                events.notice(NoticeLevel::Warning, format!("no clones, the tests share one guest: {why}"));
                limits.call(&guest.machine, PATIENCE, guest.session.resume()).await?;
                for index in shared {
                    let scratch = self.scratch(*index)?;
                    let outcome = self.examine(*index, &mut guest, booted, &scratch).await?;
                    self.outcomes.borrow_mut().push((*index, outcome));
                }
                guest.machine.abort().await;
                Ok(None)
            }
        }
    }

    fn scratch(&self, index: usize) -> Result<PathBuf, Failure> {
        let name: String = self.bench.tests[index].name.chars().take(60).collect();
        let slug = name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
        made(self.folder.join(format!("{:02}-{slug}", index + 1)))
    }

    /// Runs one test in a machine of its own: in a clone of the snapshot, or freshly booted without one.
    async fn one(&self, index: usize, snapshot: Option<&Snapshot>) -> Result<Outcome, Failure> {
        let scratch = self.scratch(index)?;
        let (mut guest, booted) = match snapshot {
            None => self.boot(&scratch).await?,
            Some(snapshot) => (self.clone_of(snapshot, &scratch).await?, snapshot.booted),
        };
        let outcome = self.examine(index, &mut guest, booted, &scratch).await;
        guest.machine.abort().await;
        for file in [OVERLAY, SEED, UEFI_VARS] {
            let _ = fs::remove_file(scratch.join(file));
        }
        outcome
    }

    async fn clone_of(&self, snapshot: &Snapshot, scratch: &Path) -> Result<Guest, Failure> {
        self.prepare(scratch)?;
        let mut backing = self.backing.clone();
        backing.0.insert(0, (snapshot.disk.clone(), DiskFormat::Qcow2));
        let site = self.site(scratch);
        boot::resume(site, &backing, (&snapshot.ram, snapshot.format), snapshot.hello.clone()).await
    }

    /// Repeats the test until it passes or its time is over.
    async fn examine(
        &self,
        index: usize,
        guest: &mut Guest,
        booted: Duration,
        scratch: &Path,
    ) -> Result<Outcome, Failure> {
        let test = &self.bench.tests[index];
        let began = Instant::now();
        let site = self.site(scratch);
        let mut probe = Probe::new(site, guest, test, booted);
        let verdict = probe.until_it_holds(began).await?;
        let seconds = began.elapsed().as_secs_f64();
        let ok = verdict.is_ok();
        let found = site.mask.mask_text(&verdict.unwrap_or_else(|found| found));
        let tail = probe.tail();
        let hint = if ok { None } else { probe.hint() };
        let kept = if ok {
            // Only the console of a test that passed.
            let _ = fs::remove_dir_all(scratch);
            None
        } else {
            probe.keep(scratch).await.map_err(ScratchError::at("what a test left", scratch))?;
            Some(scratch.to_owned())
        };
        site.events.emit(&Event::TestFinished { name: test.name.clone(), ok, seconds, found: found.clone() });
        let format = self.image.format.name();
        Ok(Outcome { test: test.clone(), format, ok, found, tail, hint, seconds, kept })
    }
}

fn made(folder: PathBuf) -> Result<PathBuf, Failure> {
    fs::create_dir_all(&folder).map_err(ScratchError::at("a scratch folder", &folder))?;
    Ok(folder)
}
