//! A build, told as a table of contents.
//!
//! ```text
//! survey ─> Plan ─> claim the version ─> Overlay + seed ─> boot ─> Guest ─> provision ─> seal ─> CleanShutdown
//!                                                                                                    │
//!                              Artifact <─ publish <─ test <─ Converted (outputs + digests) <─ convert ┘
//! ```
//!
//! A stage's result is the next stage's argument: conversion takes a [`shutdown::CleanShutdown`], which only a guest that
//! said goodbye and powered itself off can give, so an image of a guest that died cannot be published.

use std::cell::Cell;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::digest_cache::Memo;
use crate::error::{Failure, Fault, Kind};
use crate::event::{Event, Events, Level, Outcome, Sink, Stage};
use crate::layer::Cache;
use crate::machine::host::{self, HostError};
use crate::plan::Plan;
use crate::plan::output::DiskFile;
use crate::plan::trace::Trace;
use crate::process;
use crate::sign::Signer;
use crate::size::ByteSize;
use crate::specfile::Test;
use crate::store::{Artifact, Lookup, Staging, Store, manifest};
use crate::workdir::Workdir;

pub(crate) mod aftermath;
pub mod base;
pub mod boot;
pub mod clone;
pub mod cloud_init;
mod contents;
pub mod convert;
mod disks;
mod evidence;
pub mod export;
pub mod handover;
mod hints;
pub mod history;
pub mod identity;
pub mod inputs;
pub mod kept;
mod lanes;
pub mod layers;
pub mod limits;
pub mod many;
mod mount_agreement;
mod mounts;
pub mod outdated;
pub mod output;
mod package;
mod packages;
pub mod pins;
pub mod platform;
pub mod provision;
pub mod publish;
pub mod reach;
pub mod reproduce;
pub mod retest;
pub mod script_check;
pub mod seal;
pub mod secret_scan;
pub mod secrets;
pub mod shell;
pub mod shutdown;
pub mod source_errors;
pub mod space;
pub mod survey;
pub mod test;
mod twin;
mod unfinished_boot;
pub mod writers;

use boot::Guest;
use contents::GuestEvidence;
use history::BaseFiles;
use layers::{Begin, Layers};
use limits::Limits;
use provision::Done;
use twin::BaseTwin;

/// What becomes of the scratch folder when a build fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// Removed.
    #[default]
    Clean,
    /// Kept, and said where.
    Keep,
    /// Removed, after a person has looked around in the guest.
    Shell,
}

/// Where a build works and how it behaves.
#[derive(Clone)]
pub struct Surroundings {
    /// The store it publishes to.
    pub store: Store,
    /// Folder for caches and scratch disks.
    pub cache: PathBuf,
    /// Digests of inputs that did not change.
    pub memo: Arc<Memo>,
    /// Who listens.
    pub events: Events,
    /// Makes the listener that writes a build's log to this file.
    pub open_log: fn(&Path) -> io::Result<Arc<dyn Sink>>,
    /// Cancelled by the first Ctrl-C.
    pub cancel: CancellationToken,
    /// Replace a version that came from other inputs.
    pub replace: bool,
    /// Take nothing from the step cache, and give nothing to it.
    pub no_cache: bool,
    /// Signs what is published, and what is up to date.
    pub signer: Option<Arc<Signer>>,
    /// Do not run the spec's tests.
    pub skip_tests: bool,
    /// What becomes of the scratch folder of a failed build.
    pub on_failure: OnFailure,
    /// Takes over the terminal for a shell in the guest.
    pub attach: shell::Attach,
}

/// Carries out a plan: publishes its image, or finds it up to date; which of them, it tells.
///
/// # Errors
/// Whatever went wrong first. Nothing is published then, and no process or scratch folder is left, unless
/// [`OnFailure::Keep`] asks for it.
pub async fn build(plan: &Plan, around: &Surroundings) -> Result<(Artifact, Outcome), Failure> {
    let began = Instant::now();
    let image = &plan.spec.image;
    around.events.emit(&Event::BuildStarted {
        image: image.name.clone(),
        version: image.version.clone(),
        steps: plan.steps.len(),
    });
    let result = claim_and_build(plan, around).await;
    let outcome = match &result {
        Ok((_, outcome)) => *outcome,
        Err(_) => Outcome::Failed,
    };
    around.events.emit(&Event::BuildFinished { outcome, seconds: began.elapsed().as_secs_f64() });
    result
}

async fn claim_and_build(plan: &Plan, around: &Surroundings) -> Result<(Artifact, Outcome), Failure> {
    let limits = Limits::new(around.cancel.clone(), plan.spec.build.timeout);
    let waiting = |sentence| around.events.notice(Level::Info, sentence);
    let lock = match limits.hold(around.store.claim(&publish::image_id(plan)?, waiting)).await? {
        Lookup::Exists(existing) if around.replace && (around.no_cache || plan.uncached_step().is_some()) => {
            existing.replace()
        }
        Lookup::Exists(existing) if existing.is_from(&plan.build_key.to_string()) => {
            if let Some(signer) = &around.signer {
                existing.sign(signer)?;
            }
            if let Some(uncached) = plan.uncached_step() {
                let text = format!(
                    "no input has changed, so step `{}` does not run, for all its `cache = false`: a version is built \
                     once, and `--replace` builds it again",
                    uncached.step.name
                );
                around.events.notice(Level::Info, text);
            }
            if let Some(note) = secrets::staleness_note(&plan.spec) {
                around.events.notice(Level::Info, note);
            }
            if !around.skip_tests && existing.is_untested() {
                let text = format!(
                    "its tests did not run when it was built; `kiln test {}` runs them",
                    publish::image_id(plan)?
                );
                around.events.notice(Level::Warning, text);
            }
            return Ok((existing.keep(), Outcome::UpToDate));
        }
        Lookup::Exists(existing) if around.replace => existing.replace(),
        Lookup::Exists(existing) => return Err(existing.refuse().into()),
        Lookup::Vacant(lock) => lock,
    };
    require_qemu(plan).await?;
    for note in plan.notes() {
        around.events.notice(Level::Info, note);
    }
    let build = Build::open(plan, around, limits)?;
    let staging = lock.stage()?;
    let plan_kept = if around.no_cache { Ok(()) } else { history::remember(&around.cache, plan, &Trace::of(plan)) };
    if let Err(error) = plan_kept.and_then(|()| BaseFiles { cache: &around.cache }.remember(plan)) {
        build.events.notice(Level::Debug, format!("this plan cannot be remembered: {error}"));
    }
    let mut layers = build.layers(around);
    let made = build.make(&mut layers, staging, around).await;
    layers.finish(made.as_ref().err()).await;
    if !around.no_cache {
        // Lost, it costs an explanation.
        let _ = history::remember(&around.cache, plan, &Trace::of(plan).with_finished(build.finished.get()));
    }
    match made {
        Ok(artifact) => Ok((artifact, Outcome::Published)),
        Err(failure) => Err(build.give_up(failure, around)),
    }
}

/// Checks that this host can start the plan's machine. A plan is made without, so that an image that is up to date needs no
/// QEMU, nor does a check.
pub(crate) async fn require_qemu(plan: &Plan) -> Result<(), HostError> {
    if plan.machine.has_qemu() { Ok(()) } else { host::qemu().await.map(drop) }
}

/// Does some work, and tells when it begins and that it is done.
async fn in_stage<T>(
    events: &Events,
    stage: Stage,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let began = Instant::now();
    events.emit(&Event::StageStarted { stage });
    let done = work.await?;
    events.emit(&Event::StageFinished { stage, seconds: began.elapsed().as_secs_f64() });
    Ok(done)
}

/// The scratch folder fails.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {what} ({})", path.display())]
pub struct ScratchError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl ScratchError {
    pub(crate) fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self { what, path, source }
    }
}

impl Fault for ScratchError {
    fn kind(&self) -> Kind {
        Kind::Host
    }

    fn hints(&self) -> Vec<String> {
        vec!["choose another folder with --cache or KILN_CACHE, or free some space there".into()]
    }
}

/// The disk of a sealed guest, and what is known of it that it does not say itself.
pub(crate) struct SealedDisk {
    pub(crate) disk: shutdown::CleanShutdown,
    pub(crate) evidence: GuestEvidence,
}

/// One build under way.
pub(crate) struct Build<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) memo: Arc<Memo>,
    pub(crate) events: Events,
    pub(crate) limits: Limits,
    pub(crate) secrets: secrets::Secrets,
    pub(crate) work: Workdir,
    pub(crate) started: Timestamp,
    /// How many steps the guest has come past.
    pub(crate) finished: Cell<usize>,
}

impl<'a> Build<'a> {
    /// Takes the secrets in and makes the scratch folder, with the log in it.
    fn open(plan: &'a Plan, around: &Surroundings, limits: Limits) -> Result<Self, Failure> {
        let secrets = secrets::Secrets::load(&plan.spec)?;
        if !secrets.is_empty() {
            process::forbid_core_dumps();
        }
        let work =
            Workdir::create(&around.cache.join("work")).map_err(ScratchError::at("a scratch folder", &around.cache))?;
        let base = std::fs::metadata(&plan.base.file).map_or(0, |facts| facts.blocks() * 512);
        space::check([work.path(), around.store.path()], ByteSize(base), &around.events)?;
        let events = publish::with_log(around, work.path()).map_err(ScratchError::at("the log", work.path()))?;
        let events = events.masked(secrets.mask());
        secrets.warn_of_short_ones(&events);
        let (memo, started) = (Arc::clone(&around.memo), Timestamp::now());
        Ok(Self { plan, memo, events, limits, secrets, work, started, finished: Cell::new(0) })
    }

    /// The step cache; without one, everything runs.
    fn layers(&self, around: &Surroundings) -> Layers<'a> {
        let unusable = |error: &io::Error| {
            self.events.notice(Level::Warning, format!("the step cache cannot be used: {error}"));
        };
        let opened = || Cache::open(&around.cache, Arc::clone(&around.memo)).inspect_err(unusable).ok();
        let cache = if around.no_cache { None } else { opened() };
        Layers::new(self.plan, self.events.clone(), cache, self.work.path())
    }

    async fn make(
        &self,
        layers: &mut Layers<'_>,
        staging: Staging,
        around: &Surroundings,
    ) -> Result<Artifact, Failure> {
        let mut record = publish::Record::default();
        let mut twin = BaseTwin::begin(self, layers.cache());
        let (guest, steps) = self.provisioned(layers, staging.path(), around).await?;
        let guest = if around.skip_tests { guest } else { self.testable(guest).await? };
        let sealed = self.sealed(guest, &steps, layers).await?;
        let converted =
            self.stage(Stage::Convert, convert::convert(self, sealed, twin.as_mut(), staging.path())).await?;
        record.tests = match &self.plan.spec.tests[..] {
            [] => Vec::new(),
            tests if around.skip_tests => test::skipped(tests),
            tests => self.stage(Stage::Test, self.test(tests, staging.path(), around)).await?,
        };
        record.steps = steps;
        let published = self
            .stage(Stage::Publish, publish::publish(self, record, converted, (staging, around.signer.clone())))
            .await;
        if let Some(twin) = twin {
            twin.finish().await;
        }
        published
    }

    /// The guest after the last step, and what became of the steps. What they fetch goes to `fetched`.
    async fn provisioned(
        &self,
        layers: &mut Layers<'_>,
        fetched: &Path,
        around: &Surroundings,
    ) -> Result<(Guest, Vec<Done>), Failure> {
        let (begin, done) = self.stage(Stage::Base, self.limits.hold(layers.begin())).await?;
        let (mut guest, done) = self.stage(Stage::Boot, self.start(layers, begin, done)).await?;
        let provision = provision::provision(self, &mut guest, layers, done, fetched);
        match self.stage(Stage::Provision, provision).await {
            Ok(steps) => Ok((guest, steps)),
            Err(mut failure) => {
                if around.on_failure == OnFailure::Shell {
                    self.look_around(&mut guest, &mut failure, around.attach).await;
                }
                Err(guest.abandon(failure).await)
            }
        }
    }

    /// Checks that the spec's tests can run in the image that is made of a guest.
    async fn testable(&self, guest: Guest) -> Result<Guest, Failure> {
        match cloud_init::check_tests(self, &guest) {
            Err(error) if !self.plan.spec.tests.is_empty() => Err(guest.abandon(error.into()).await),
            _ => Ok(guest),
        }
    }

    /// Seals the guest and turns it off.
    async fn sealed(&self, mut guest: Guest, steps: &[Done], layers: &Layers<'_>) -> Result<SealedDisk, Failure> {
        let ended_and_sealed = async {
            aftermath::end_processes(self, &mut guest).await?;
            contents::seal_and_ask(self, &mut guest, steps).await
        };
        let (sealed, evidence) = match self.stage(Stage::Seal, ended_and_sealed).await {
            Ok(sealed) => sealed,
            Err(failure) => {
                let failure = aftermath::blame_earlier(self, &guest.suspects, "sealing", failure);
                return Err(guest.abandon(failure).await);
            }
        };
        let disk = self.stage(Stage::Shutdown, shutdown::shut_down(self, guest, sealed, layers.chain())).await?;
        Ok(SealedDisk { disk, evidence })
    }

    /// Tests every disk file, also those that are in packages alone. QEMU boots every format.
    async fn test(
        &self,
        tests: &[Test],
        staging: &Path,
        around: &Surroundings,
    ) -> Result<Vec<manifest::Test>, Failure> {
        let image = |disk: &DiskFile| test::Image { path: convert::place(self, disk, staging), format: disk.format };
        let images: Vec<_> = self.plan.outputs.disks.iter().map(image).collect();
        let bench = test::Bench {
            machine: &self.plan.machine,
            disk_size: self.plan.disk_size(),
            folder: self.work.path(),
            limits: &self.limits,
            events: &self.events,
            mask: self.secrets.mask(),
            tests,
        };
        let mut outcomes = Vec::new();
        test::test(&bench, &images, test::Coverage::First, &mut outcomes).await?;
        let logs = self.logs(around);
        let kept = |folder: &Path| logs.join(folder.strip_prefix(self.work.path()).unwrap_or(folder));
        let image = &self.plan.spec.image;
        let id = format!("{}@{}", image.name, image.version);
        test::TestsFailed::check(&outcomes, id, &self.plan.spec.path, kept)?;
        Ok(outcomes.iter().map(test::Outcome::record).collect())
    }

    /// Where the logs of a failed build outlive it.
    fn logs(&self, around: &Surroundings) -> PathBuf {
        let image = &self.plan.spec.image;
        around.cache.join(kept::FAILED).join(format!("{}-{}", image.name, image.version))
    }

    /// Brings up the guest that a build begins with, and tells which steps are done by that. A checkpoint that does not
    /// work is left aside.
    async fn start(
        &self,
        layers: &mut Layers<'_>,
        mut begin: Begin,
        mut done: Vec<Done>,
    ) -> Result<(Guest, Vec<Done>), Failure> {
        loop {
            let Begin::Memory(stack, format, hello) = begin else {
                return Ok((self.boot(layers, begin).await?, done));
            };
            boot::prepare(self)?;
            match boot::resume_layer(self, &stack, format, hello.clone()).await {
                Ok(guest) => {
                    layers.began(Begin::Memory(stack, format, hello));
                    return Ok((guest, done));
                }
                Err(failure) if failure.fault::<limits::LimitReached>().is_some() => return Err(failure),
                Err(failure) => {
                    self.events.notice(Level::Warning, format!("the checkpoint is not used: {failure}"));
                    layers.refuse_memory(&stack);
                    (begin, done) = self.limits.hold(layers.begin()).await?;
                }
            }
        }
    }

    async fn boot(&self, layers: &mut Layers<'_>, begin: Begin) -> Result<Guest, Failure> {
        let began = Instant::now();
        let mut guest = boot::boot(self, begin.stack()).await?;
        layers.began(begin);
        match layers.after_boot(self, &mut guest, began.elapsed()).await {
            Ok(()) => Ok(guest),
            Err(failure) => Err(guest.abandon(failure).await),
        }
    }

    async fn stage<T>(&self, stage: Stage, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        in_stage(&self.events, stage, work).await
    }

    /// The logs outlive a failed build, in the cache; the rest only where the user wants to look at it.
    fn give_up(self, mut failure: Failure, around: &Surroundings) -> Failure {
        let logs = self.logs(around);
        match kept::keep_logs(self.work.path(), &logs, self.secrets.searched()) {
            Ok(leaks) => {
                failure.attach(format!("log: {}", logs.join(publish::BUILD_LOG).display()));
                for leak in leaks.named {
                    failure.attach(format!("a log is not kept: {leak}"));
                }
            }
            Err(error) => failure.attach(format!("the log could not be kept: {error}")),
        }
        if around.on_failure == OnFailure::Keep {
            for note in kept::keep_work(self.work, self.secrets.searched()) {
                failure.attach(note);
            }
        }
        failure.mask_secrets(self.secrets.mask())
    }
}
