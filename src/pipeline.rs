//! A build as a table of contents: each stage is one call.
//!
//! ```text
//! survey ─> Plan ─> claim the version ─> Overlay + seed ─> boot ─> Guest ─> provision ─> seal ─> CleanShutdown
//!                                                                                                    │
//!                              Artifact <─ publish <─ test <─ Converted (outputs + digests) <─ convert ┘
//! ```
//!
//! A stage's result is the next stage's argument: conversion takes a [`shutdown::CleanShutdown`], which only a guest that
//! said goodbye and powered itself off can give, so an image of a guest that died cannot be published.

use std::cell::{Cell, OnceCell, RefCell};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

use crate::cache::base_files::BaseFileDigests;
use crate::cache::base_twin::BaseTwin;
use crate::cache::history::{self, BaseFiles};
use crate::cache::step_cache::{ResumePoint, StepCache};
use crate::context::{BuildContext, BuildOptions, OnFailure, ScratchError, in_stage};
use crate::deadline::{Deadline, DeadlineError};
use crate::download::DownloadCache;
use crate::error::Failure;
use crate::event::{Event, NoticeLevel, Outcome, Stage};
use crate::free_space;
use crate::guest::boot::{Guest, MachineSite};
use crate::guest::run::DiskImage;
use crate::guest::step_record::StepRecord;
use crate::guest::{build_boot, cloud_init, leftovers, shutdown};
use crate::layer::LayerCache;
use crate::machine::host::{self, HostError};
use crate::output::contents::{self, SealedDisk};
use crate::output::{convert, kept_logs, locked_downloads, publish};
use crate::plan::Plan;
use crate::plan::agent::AgentStart;
use crate::plan::machine::PlannedMachine;
use crate::plan::trace::Trace;
use crate::process;
use crate::provision;
use crate::proxy::{Proxy, ProxyOptions};
use crate::resolve::base::LockfileMode;
use crate::resolve::secrets;
use crate::size::ByteSize;
use crate::specfile::{NetworkBackend, Test};
use crate::store::{Artifact, Lookup, Staging, manifest};
use crate::test;
use crate::workdir::Workdir;

/// Carries out a plan: publishes its image, or finds it up to date; the outcome tells which.
///
/// # Errors
/// The first failure. Nothing is published then, and no process or scratch folder is left, unless [`OnFailure::Keep`] is
/// set.
pub async fn build(plan: &Plan, around: &BuildOptions) -> Result<(Artifact, Outcome), Failure> {
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

async fn claim_and_build(plan: &Plan, around: &BuildOptions) -> Result<(Artifact, Outcome), Failure> {
    let limits = Deadline::new(around.cancel.clone(), plan.spec.build.timeout);
    let id = publish::image_id(plan)?;
    let claimed = around.store.claim(&id, |sentence| around.events.notice(NoticeLevel::Info, sentence));
    let lock = match limits.hold(claimed).await? {
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
                around.events.notice(NoticeLevel::Info, text);
            }
            if let Some(note) = secrets::staleness_note(&plan.spec) {
                around.events.notice(NoticeLevel::Info, note);
            }
            if !around.skip_tests && existing.is_untested() {
                let text = format!("its tests did not run when it was built; `kiln test {id}` runs them");
                around.events.notice(NoticeLevel::Warning, text);
            }
            return Ok((existing.keep(), Outcome::UpToDate));
        }
        Lookup::Exists(existing) if around.replace => existing.replace(),
        Lookup::Exists(existing) => return Err(existing.refuse().into()),
        Lookup::Vacant(lock) => lock,
    };
    require_qemu(plan).await?;
    for note in plan.notes() {
        around.events.notice(NoticeLevel::Info, note);
    }
    let build = BuildContext::open(plan, around, limits)?;
    let staging = lock.stage()?;
    let plan_kept = if around.no_cache { Ok(()) } else { history::remember(&around.cache, plan, &Trace::of(plan)) };
    if let Err(error) = plan_kept.and_then(|()| BaseFiles { cache: &around.cache }.remember(plan)) {
        build.events.notice(NoticeLevel::Debug, format!("this plan cannot be remembered: {error}"));
    }
    let mut layers = build.layers(around);
    let made = build.make(&mut layers, staging, around).await;
    layers.finish(made.as_ref().err()).await;
    if !around.no_cache {
        // If the trace is lost, only an explanation is lost.
        let trace = Trace::of(build.recorded_plan()).with_finished(build.finished.get());
        let _ = history::remember(&around.cache, plan, &trace);
    }
    match made {
        Ok(artifact) => Ok((artifact, Outcome::Published)),
        Err(failure) => Err(build.give_up(failure, around)),
    }
}

/// Checks that this host can start the plan's machine. A plan is made without this check, so that an image that is up to
/// date needs no QEMU, and neither does `kiln check`.
pub(crate) async fn require_qemu(plan: &Plan) -> Result<(), HostError> {
    if plan.machine.has_qemu() { Ok(()) } else { host::qemu().await.map(drop) }
}

/// Returns the proxy of the locked network, for a spec that has it.
fn open_proxy(plan: &Plan, around: &BuildOptions, secrets: &secrets::SecretValues) -> Result<Option<Proxy>, Failure> {
    if plan.spec.machine.network != NetworkBackend::Locked {
        return Ok(None);
    }
    let mask = secrets.mask().clone();
    let proxy = Proxy::new(ProxyOptions {
        cache: DownloadCache::open(&around.cache, Arc::clone(&around.memo), around.reach)?,
        record: plan.network.as_ref(),
        allow: plan.spec.network.allow.clone(),
        is_strict: around.locking == LockfileMode::Require,
        holds_secret: Box::new(move |text| mask.mask_text(text) != text),
        cancel: around.cancel.clone(),
    })?;
    Ok(Some(proxy))
}

impl<'a> BuildContext<'a> {
    /// Reads the secrets and creates the scratch folder, with the log in it.
    pub(crate) fn open(plan: &'a Plan, around: &BuildOptions, limits: Deadline) -> Result<Self, Failure> {
        let secrets = secrets::SecretValues::load(&plan.spec)?;
        if !secrets.is_empty() {
            process::forbid_core_dumps();
        }
        let work =
            Workdir::create(&around.cache.join("work")).map_err(ScratchError::at("a scratch folder", &around.cache))?;
        let base = std::fs::metadata(&plan.base.file).map_or(0, |facts| facts.blocks() * 512);
        free_space::check([work.path(), around.store.path()], ByteSize(base), &around.events)?;
        let events = publish::with_log(around, work.path()).map_err(ScratchError::at("the log", work.path()))?;
        let events = events.masked(secrets.mask());
        secrets.warn_of_short_ones(&events);
        let memo = Arc::clone(&around.memo);
        let proxy = open_proxy(plan, around, &secrets)?;
        let started = Timestamp::now();
        Ok(Self {
            plan,
            memo,
            events,
            limits,
            secrets,
            work,
            started,
            finished: Cell::new(0),
            answers: RefCell::default(),
            recorded: OnceCell::new(),
            proxy,
        })
    }

    /// Returns the step cache; with `--no-cache` or without a usable folder, every step runs.
    pub(crate) fn layers(&self, around: &BuildOptions) -> StepCache<'a> {
        let opened = (!around.no_cache).then(|| LayerCache::open(&around.cache, Arc::clone(&around.memo)));
        if let Some(Err(error)) = &opened {
            self.events.notice(NoticeLevel::Warning, format!("the step cache cannot be used: {error}"));
        }
        StepCache::new(self.plan, self.events.clone(), opened.and_then(Result::ok), self.work.path())
    }

    async fn make(
        &self,
        layers: &mut StepCache<'_>,
        staging: Staging,
        around: &BuildOptions,
    ) -> Result<Artifact, Failure> {
        let mut record = publish::BuildRecord::default();
        let mut twin = BaseTwin::begin(self, around, layers.cache());
        let (guest, steps) = match self.provisioned(layers, staging.path(), around).await {
            Ok((guest, steps)) => (self.recording(guest, around.locking).await?, steps),
            Err(failure) => return Err(locked_downloads::record_finished(self, around.locking, failure).await),
        };
        let tests = if around.skip_tests { &[] } else { &self.plan.spec.tests[..] };
        let (guest, agent) = self.testable(guest, tests).await?;
        let sealed = self.sealed(guest, &steps, layers).await?;
        record.had_agent = sealed.disk.had_agent();
        let known_files = BaseFileDigests::new(self.plan, (!around.no_cache).then_some(&around.cache));
        let converting = convert::convert(self, sealed, twin.as_mut(), known_files, staging.path());
        let converted = self.stage(Stage::Convert, converting).await?;
        record.tests = if tests.is_empty() {
            test::skipped(&self.plan.spec.tests)
        } else {
            let machine = self.plan.machine.started_by(agent);
            self.stage(Stage::Test, self.test((tests, &machine), staging.path(), around)).await?
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

    /// Returns the guest after the last step, and the records of the steps. Fetched files are written to `fetched`.
    pub(crate) async fn provisioned(
        &self,
        layers: &mut StepCache<'_>,
        fetched: &Path,
        around: &BuildOptions,
    ) -> Result<(Guest, Vec<StepRecord>), Failure> {
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

    /// Records what the steps downloaded.
    async fn recording(&self, guest: Guest, locking: LockfileMode) -> Result<Guest, Failure> {
        match locked_downloads::record(self, locking).await {
            Ok(()) => Ok(guest),
            Err(failure) => Err(guest.abandon(failure).await),
        }
    }

    /// Decides what starts the agent in tests of the image that is built from a guest.
    async fn testable(&self, guest: Guest, tests: &[Test]) -> Result<(Guest, AgentStart), Failure> {
        match cloud_init::choose_for_tests(self, &guest) {
            Ok(agent) => Ok((guest, agent)),
            Err(_) if tests.is_empty() => Ok((guest, AgentStart::CloudInit)),
            Err(error) => Err(guest.abandon(error.into()).await),
        }
    }

    /// Seals the guest and shuts it down.
    pub(crate) async fn sealed(
        &self,
        mut guest: Guest,
        steps: &[StepRecord],
        layers: &StepCache<'_>,
    ) -> Result<SealedDisk, Failure> {
        let ended_and_sealed = async {
            leftovers::end_processes(self, &mut guest).await?;
            contents::seal_and_ask(self, &mut guest, steps).await
        };
        let (sealed, evidence) = match self.stage(Stage::Seal, ended_and_sealed).await {
            Ok(sealed) => sealed,
            Err(failure) => {
                let failure = leftovers::blame_earlier(self, &guest.suspects, "sealing", failure);
                return Err(guest.abandon(failure).await);
            }
        };
        let disk = self.stage(Stage::Shutdown, shutdown::shut_down(self, guest, sealed, layers.chain())).await?;
        Ok(SealedDisk { disk, evidence })
    }

    /// Tests every disk file, including those that are only in packages. QEMU boots every format.
    async fn test(
        &self,
        (tests, machine): (&[Test], &PlannedMachine),
        staging: &Path,
        around: &BuildOptions,
    ) -> Result<Vec<manifest::ManifestTest>, Failure> {
        let disks = self.plan.outputs.disks.iter();
        let images = disks.map(|disk| DiskImage { path: convert::place(self, disk, staging), format: disk.format });
        let images: Vec<_> = images.collect();
        let site = MachineSite { machine, ..self.site() };
        let bench = test::Bench { site, disk_size: self.plan.disk_size(), tests };
        let mut outcomes = Vec::new();
        test::test(&bench, &images, test::Coverage::First, &mut outcomes).await?;
        let id = publish::image_id(self.plan)?.to_string();
        test::TestsFailed::check(&outcomes, id, &self.plan.spec.path, self.work.path(), &self.logs(around))?;
        Ok(outcomes.iter().map(test::Outcome::record).collect())
    }

    /// Returns the folder in which the logs of a failed build are kept.
    fn logs(&self, around: &BuildOptions) -> PathBuf {
        let image = &self.plan.spec.image;
        around.cache.join(kept_logs::FAILED).join(format!("{}-{}", image.name, image.version))
    }

    /// Starts the guest that a build begins with, and returns the steps that are covered by that. A checkpoint that does
    /// not work is not used.
    async fn start(
        &self,
        layers: &mut StepCache<'_>,
        mut begin: ResumePoint,
        mut done: Vec<StepRecord>,
    ) -> Result<(Guest, Vec<StepRecord>), Failure> {
        loop {
            let ResumePoint::Memory(stack, format, hello) = begin else {
                return Ok((self.boot(layers, begin).await?, done));
            };
            build_boot::prepare(self, &build_boot::backing(self.plan, Some(&stack))).await?;
            match build_boot::resume_layer(self, &stack, format, hello.clone()).await {
                Ok(guest) => {
                    layers.began(ResumePoint::Memory(stack, format, hello));
                    return Ok((guest, done));
                }
                Err(failure) if failure.fault::<DeadlineError>().is_some() => return Err(failure),
                Err(failure) => {
                    self.events.notice(NoticeLevel::Warning, format!("the checkpoint is not used: {failure}"));
                    layers.refuse_memory(&stack);
                    (begin, done) = self.limits.hold(layers.begin()).await?;
                }
            }
        }
    }

    async fn boot(&self, layers: &mut StepCache<'_>, begin: ResumePoint) -> Result<Guest, Failure> {
        let began = Instant::now();
        let mut guest = build_boot::boot(self, begin.stack()).await?;
        layers.began(begin);
        match layers.after_boot(self, &mut guest, began.elapsed()).await {
            Ok(()) => Ok(guest),
            Err(failure) => Err(guest.abandon(failure).await),
        }
    }

    async fn stage<T>(&self, stage: Stage, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        in_stage(&self.events, stage, work).await
    }

    /// Keeps the logs of a failed build in the cache, and the rest of the scratch folder only where the user asked for it.
    pub(crate) fn give_up(self, mut failure: Failure, around: &BuildOptions) -> Failure {
        let logs = self.logs(around);
        match kept_logs::keep_logs(self.work.path(), &logs, self.secrets.searched()) {
            Ok(leaks) => {
                failure.attach(format!("log: {}", logs.join(publish::BUILD_LOG).display()));
                for leak in leaks.named {
                    failure.attach(format!("a log is not kept: {leak}"));
                }
            }
            Err(error) => failure.attach(format!("the log could not be kept: {error}")),
        }
        if around.on_failure == OnFailure::Keep {
            for note in kept_logs::keep_work(self.work, self.secrets.searched()) {
                failure.attach(note);
            }
        }
        failure.mask_secrets(self.secrets.mask())
    }
}
