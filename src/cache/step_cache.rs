//! The step cache: what a build keeps for the next one, and where the next one begins.
//!
//! A layer holds the disk, and most often the memory, of the guest at one moment. Layers are made after a boot, after the
//! last step that is cached and the one before it (the step that people work on is the last one), and wherever the steps
//! since the last layer took longer than a layer costs. The steps in between have no layer of their own: their changes are
//! in the next one. So a chain of layers grows with the time that the steps take, not with their number.
//!
//! Memory is never kept once a step has seen a secret: it holds what a program forgot to wipe. What a guest has in memory
//! alone (`/run`, processes, kernel settings) is then lost, so a build continues from a disk without memory only where the
//! guest was rebooted anyway: after a `reboot` step. See [`resume`].

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use crate::context::BuildContext;
use crate::digest::Sha256Digest;
use crate::disk::qcow2::create_overlay;
use crate::error::Failure;
use crate::event::{Events, NoticeLevel};
use crate::guest::boot::Guest;
use crate::guest::step_error::{StepError, StepFailure};
use crate::guest::step_record::StepRecord;
use crate::layer::evict::evict;
use crate::layer::{
    CoveredStep, Draft, FetchedStream, LayerCache, LayerClaim, LayerMetadata, Name, RecordedMemory, Stack,
    UnusableLayerError,
};
use crate::machine::MachineError;
use crate::machine::argv::{OVERLAY, UEFI_VARS};
use crate::machine::checkpoint::fingerprint;
use crate::plan::key::CacheKey;
use crate::plan::{Plan, reads_secret};
use crate::process;
use crate::resolve::facts::check_base;
use crate::secret_scan::{SearchedSecrets, SecretLeakError};
use crate::session::FetchedTree;
use crate::specfile::{Action, DiskFormat};

mod resume;
mod room;

pub(crate) use resume::ResumePoint;
pub use resume::{CacheView, view_cache};
use room::CheckpointRoom;

/// The cost of a checkpoint that is assumed before one was made.
const USUAL_COST: Duration = Duration::from_secs(2);
/// The largest share of the time of all steps so far that may pass without a layer, as a divisor. It keeps the number of
/// layers small however long a build is.
const LARGEST_GAP: u32 = 16;
/// The most layers between the base image and the guest. QEMU's time to open a chain grows faster than its square: 200
/// layers take seconds, 500 minutes.
const MOST_LAYERS: usize = 96;
/// The number of those layers that are reserved for the last steps of builds that add steps.
const RESERVED_LAYERS: usize = 8;
/// The number of last steps that always get a layer each where memory can be kept.
const STEPS_AT_THE_END: usize = 2;
/// The deadline for small requests to the guest.
const PATIENCE: Duration = Duration::from_secs(120);
/// The size limit of the cache, bytes; a tenth of its disk if that is less.
pub const CACHE_LIMIT: u64 = 20 << 30;

/// The size of the page cache that is kept in a checkpoint, bytes: the next steps would read most of it again.
const WARM: u64 = 256 << 20;

/// The content of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LayerKind {
    /// The disk alone.
    Disk,
    /// The disk and the memory.
    Memory,
}

/// A step that is finished, with the tree that it fetched.
struct FinishedStep {
    covered: CoveredStep,
    /// The file with the tree that it fetched, as the guest sent it.
    stream: Option<PathBuf>,
}

impl FinishedStep {
    fn new(key: CacheKey, done: &StepRecord, stream: Option<PathBuf>) -> Self {
        Self { covered: CoveredStep { key: key.to_string(), during: done.during }, stream }
    }

    fn fetched(&self) -> Option<FetchedStream> {
        Some(FetchedStream { step: self.covered.key.clone(), stream: self.stream.clone()? })
    }
}

/// The layers that one build takes from the cache and adds to it.
pub(crate) struct StepCache<'a> {
    plan: &'a Plan,
    /// The plan with the keys of what the steps have downloaded so far.
    planned: Cow<'a, Plan>,
    events: Events,
    /// The cache, or `None` where nothing is kept: with `--no-cache`, or where the folder is not usable.
    cache: Option<LayerCache>,
    machine: Sha256Digest,
    stack: Option<Stack>,
    /// Frozen overlays of this build, oldest first.
    frozen: Vec<PathBuf>,
    /// The overlay that receives the writes.
    top: PathBuf,
    parent: Option<Name>,
    /// Checkpoints that turned out to be unusable.
    refused: Vec<Name>,
    /// Steps since the last layer.
    uncovered: Vec<FinishedStep>,
    since_layer: Duration,
    /// The time of all steps of this build so far.
    spent: Duration,
    cost: Duration,
    memory: bool,
    room: CheckpointRoom,
    commits: Vec<JoinHandle<io::Result<()>>>,
    claim: Option<LayerClaim>,
    /// The cache, also where nothing more is kept.
    place: Option<LayerCache>,
}

impl<'a> StepCache<'a> {
    pub(crate) fn new(plan: &'a Plan, events: Events, cache: Option<LayerCache>, work: &Path) -> Self {
        let machine = fingerprint(&plan.machine);
        Self {
            plan,
            planned: Cow::Borrowed(plan),
            events,
            place: cache.clone(),
            cache,
            machine,
            stack: None,
            frozen: Vec::new(),
            top: work.join(OVERLAY),
            parent: None,
            refused: Vec::new(),
            uncovered: Vec::new(),
            since_layer: Duration::ZERO,
            spent: Duration::ZERO,
            cost: USUAL_COST,
            memory: true,
            room: CheckpointRoom::new(plan),
            commits: Vec::new(),
            claim: None,
        }
    }

    /// Returns the keys of possible layers: the boot, and the steps up to the first that is not cached.
    fn keys(&self) -> Vec<CacheKey> {
        let cached = self.planned.steps.iter().take_while(|planned| planned.step.cache).map(|planned| planned.key);
        std::iter::once(self.plan.base_key).chain(cached).collect()
    }

    /// Computes the keys of a step and of all later ones anew, after the step got these downloads over a locked network.
    pub(crate) fn rekey(&mut self, index: usize, downloads: Sha256Digest) {
        let mut digests: Vec<_> = self.planned.steps.iter().map(|planned| planned.downloads).collect();
        if digests[index].is_some_and(|planned| planned != downloads) {
            digests[index] = Some(downloads);
            self.planned = Cow::Owned(self.planned.with_downloads(&digests));
        }
    }

    /// Returns whether layers are kept.
    pub(crate) fn keeps(&self) -> bool {
        self.cache.is_some()
    }

    /// Returns the cache, for other uses.
    pub(crate) fn cache(&self) -> Option<LayerCache> {
        self.cache.clone()
    }

    /// Records where the build has begun.
    pub(crate) fn began(&mut self, begin: ResumePoint) {
        let stack = match begin {
            ResumePoint::Base => return,
            ResumePoint::Disk(stack) | ResumePoint::Memory(stack, ..) => stack,
        };
        stack.touch();
        self.parent = Some(stack.top().facts.name.clone());
        self.stack = Some(stack);
    }

    /// Returns the files of the guest's disk, the top one first.
    pub(crate) fn chain(&self) -> Vec<(PathBuf, DiskFormat)> {
        let base = &self.plan.base;
        let frozen = self.frozen.iter().rev().cloned();
        let layers = self.stack.iter().flat_map(Stack::disks);
        let overlays = std::iter::once(self.top.clone()).chain(frozen).chain(layers);
        overlays.map(|path| (path, DiskFormat::Qcow2)).chain([(base.file.clone(), base.format.into())]).collect()
    }

    /// Keeps a layer after a boot: this machine's memory, for all builds that would begin with the same boot.
    pub(crate) async fn after_boot(
        &mut self,
        build: &BuildContext<'_>,
        guest: &mut Guest,
        took: Duration,
    ) -> Result<(), Failure> {
        let Some(boot) = self.note_boot(took) else { return Ok(()) };
        let kept = self.keep(build, guest, LayerKind::Memory, boot).await;
        self.claim = None;
        kept
    }

    /// Records a boot, and returns what a layer of it represents.
    fn note_boot(&mut self, took: Duration) -> Option<FinishedStep> {
        let key = match &self.stack {
            None => Some(self.plan.base_key),
            Some(stack) => self.keys().into_iter().find(|key| key.to_string() == stack.top().facts.name.key),
        };
        let key = key?;
        self.since_layer = took;
        let boot = StepRecord { took, cached: false, during: None, fetched: FetchedTree::default() };
        Some(FinishedStep::new(key, &boot, None))
    }

    /// Keeps a layer after a step, if it is worth one.
    pub(crate) async fn after_step(
        &mut self,
        build: &BuildContext<'_>,
        guest: &mut Guest,
        index: usize,
        done: &StepRecord,
        fetched: Option<PathBuf>,
    ) -> Result<(), Failure> {
        let Some((kind, step)) = self.note_step(index, done, fetched) else { return Ok(()) };
        self.keep(build, guest, kind, step).await
    }

    /// Records a step, and returns the layer to make of it, if any.
    fn note_step(
        &mut self,
        index: usize,
        done: &StepRecord,
        fetched: Option<PathBuf>,
    ) -> Option<(LayerKind, FinishedStep)> {
        self.since_layer += done.took;
        self.spent += done.took;
        let keys = self.keys();
        let Some(key) = keys.get(index + 1).copied() else {
            // Nothing after this step is kept either.
            self.cache = None;
            return None;
        };
        let action = &self.plan.steps[index].step.action;
        if fetches(action) && fetched.is_none() {
            // A later build could not fetch it again.
            self.cache = None;
            return None;
        }
        self.memory &= !reads_secret(action);
        let step = FinishedStep::new(key, done, fetched);
        let is_near_the_end = index + 1 + STEPS_AT_THE_END >= keys.len();
        let Some(kind) = self.layer_kind(is_near_the_end, matches!(action, Action::Reboot)) else {
            self.uncovered.push(step);
            return None;
        };
        Some((kind, step))
    }

    /// Counts the layers that the guest's disk lies on.
    fn depth(&self) -> usize {
        self.frozen.len() + self.stack.as_ref().map_or(0, Stack::depth)
    }

    /// Decides whether the guest is worth a layer as it is now.
    fn layer_kind(&self, is_near_the_end: bool, has_rebooted: bool) -> Option<LayerKind> {
        let gap = (2 * self.cost).max(self.spent / LARGEST_GAP);
        let has_room = self.depth() < MOST_LAYERS - RESERVED_LAYERS;
        if self.memory && (is_near_the_end || (has_room && self.since_layer > gap)) {
            return Some(LayerKind::Memory);
        }
        // Without memory, a layer is of use only where a boot follows in any case.
        (has_rebooted && has_room).then_some(LayerKind::Disk)
    }

    /// Freezes the guest's present state as a layer. An error is reported and ends the use of the cache, not the build.
    async fn keep(
        &mut self,
        build: &BuildContext<'_>,
        guest: &mut Guest,
        wanted: LayerKind,
        step: FinishedStep,
    ) -> Result<(), Failure> {
        let Some(cache) = self.cache.clone() else { return Ok(()) };
        let began = Instant::now();
        let kind = self.room.check(wanted, build, guest, &self.chain());
        let overlay = format!("overlay-{}.qcow2", self.frozen.len() + 1);
        let next = build.work.join(&overlay);
        if let Err(error) = create_overlay(&next, self.plan.disk_size()) {
            self.without_cache(&error);
            return Ok(());
        }
        let cached = if kind == LayerKind::Memory { WARM } else { u64::MAX };
        build.limits.call(&guest.machine, PATIENCE, guest.session.sync(cached)).await?;
        let draft = match cache.draft() {
            Ok(draft) => draft,
            Err(error) => {
                self.without_cache(&error);
                return Ok(());
            }
        };
        let recorded = if kind == LayerKind::Memory {
            match self.checkpoint(build, guest, &overlay, &draft).await? {
                Some(recorded) => recorded,
                None => return Ok(()),
            }
        } else {
            let freeze = async { Ok::<_, Failure>(self.freeze(guest, &overlay).await) };
            if let Err(error) = build.limits.hold(freeze).await? {
                self.without_cache(&error);
                return Ok(());
            }
            None
        };
        let frozen = std::mem::replace(&mut self.top, next);
        let taken = draft.take_disk(&frozen).and_then(|()| self.take_uefi_vars(build, &draft));
        self.frozen.push(frozen);
        if let Err(error) = taken {
            self.without_cache(&error);
            return Ok(());
        }
        // Until here, the guest may have read from the base image.
        check_base(build.plan)?;
        let has_memory = recorded.is_some();
        let made = self.describe(step, recorded);
        self.commit(build, draft, made);
        if has_memory {
            self.cost = began.elapsed();
        }
        let seconds = began.elapsed().as_secs_f64();
        let what = if has_memory { "disk and memory" } else { "disk" };
        self.events.notice(NoticeLevel::Debug, format!("layer: {what} kept in {seconds:.2} s"));
        Ok(())
    }

    async fn freeze(&self, guest: &mut Guest, overlay: &str) -> Result<(), MachineError> {
        if self.plan.machine.started_uefi().is_some() {
            guest.machine.flush().await?;
        }
        guest.machine.freeze_disk(overlay).await
    }

    fn take_uefi_vars(&self, build: &BuildContext<'_>, draft: &Draft) -> io::Result<()> {
        match self.plan.machine.started_uefi() {
            Some(_) => draft.take_uefi_vars(&build.work.join(UEFI_VARS)),
            None => Ok(()),
        }
    }

    /// Describes the layer of a step and of those before it that have none. The next layer will lie on this one.
    fn describe(&mut self, step: FinishedStep, memory: Option<RecordedMemory>) -> LayerMetadata {
        let before = std::mem::take(&mut self.uncovered);
        let fetched = before.iter().chain([&step]).filter_map(FinishedStep::fetched).collect();
        let covers = before.into_iter().map(|step| step.covered).collect();
        let CoveredStep { key, during, .. } = step.covered;
        let name = Name::fresh(key);
        let parent = self.parent.replace(name.clone());
        let seconds = std::mem::take(&mut self.since_layer).as_secs_f64();
        LayerMetadata { name, parent, seconds, during, memory, fetched, covers }
    }

    /// Commits a draft as a layer, on a separate thread.
    fn commit(&mut self, build: &BuildContext<'_>, draft: Draft, made: LayerMetadata) {
        // A build that waits for this boot continues when the layer is there.
        let claim = self.claim.take();
        let searched = build.secrets.searched().cloned();
        let streams = made.fetched.iter().map(|fetched| fetched.stream.clone());
        let files: Vec<PathBuf> = std::iter::once(draft.disk()).chain(streams).collect();
        // A separate thread, since a thread that has lowered its priority cannot raise it again.
        self.commits.push(thread::spawn(move || {
            process::step_back();
            let leak = searched.map(|searched| find_leak(&searched, &files)).transpose()?.flatten();
            let committed = leak.map_or(Ok(()), |leak| Err(io::Error::other(leak))).and_then(|()| draft.commit(made));
            drop(claim);
            committed
        }));
    }

    /// Writes a checkpoint. Returns `None` where nothing was frozen, and `Some(None)` where only the disk was.
    async fn checkpoint(
        &mut self,
        build: &BuildContext<'_>,
        guest: &mut Guest,
        overlay: &str,
        draft: &Draft,
    ) -> Result<Option<Option<RecordedMemory>>, Failure> {
        build.limits.call(&guest.machine, PATIENCE, guest.session.park()).await?;
        let frozen = guest.machine.frozen();
        let checkpoint = async { Ok::<_, Failure>(guest.machine.checkpoint(overlay, &draft.ram()).await) };
        let written = build.limits.hold(checkpoint).await?;
        build.limits.call(&guest.machine, PATIENCE, guest.session.resume()).await?;
        let hello = serde_json::to_value(&guest.hello).expect("a hello is plain data");
        match written {
            Ok(format) => {
                let machine = self.machine;
                Ok(Some(Some(RecordedMemory { format: format.name().to_owned(), machine, hello })))
            }
            Err(error) if guest.machine.frozen() > frozen => {
                self.memory = false;
                self.events.notice(NoticeLevel::Info, format!("no checkpoints: {error}"));
                Ok(Some(None))
            }
            Err(error) => {
                self.without_cache(&error);
                Ok(None)
            }
        }
    }

    /// Stops keeping layers: from here on the guest's state is not the result of the steps alone.
    pub(crate) fn stop_keeping(&mut self) {
        self.cache = None;
    }

    fn without_cache(&mut self, why: &dyn std::error::Error) {
        self.cache = None;
        self.events.notice(NoticeLevel::Warning, format!("nothing more is kept in the cache: {why}"));
    }

    /// Waits until all layers are on the disk, removes those that the build's failure makes useless, then evicts old ones.
    /// The layers that this build used stay in use until then.
    pub(crate) async fn finish(mut self, failure: Option<&Failure>) {
        for commit in self.commits.drain(..) {
            let committed = spawn_blocking(move || commit.join()).await.expect("joining does not panic");
            if let Err(error) = committed.expect("committing does not panic") {
                self.events.notice(NoticeLevel::Warning, format!("a layer could not be kept: {error}"));
            }
        }
        drop(self.stack.take());
        if let (Some(index), Some(cache)) = (failure.and_then(find_power_request), &self.place) {
            self.planned.steps.iter().skip(index).for_each(|planned| cache.forget(planned.key));
        }
        let Some(cache) = self.cache.take() else { return };
        let limit = cache.limit(CACHE_LIMIT);
        match spawn_blocking(move || evict(&cache, limit)).await.expect("evicting does not panic") {
            Ok(evicted) if evicted.layers > 0 => {
                let text = format!("cache: {} old layers removed", evicted.layers);
                self.events.notice(NoticeLevel::Debug, text);
            }
            Ok(_) => {}
            Err(error) => self.events.notice(NoticeLevel::Debug, format!("cache: {error}")),
        }
    }

    /// Returns the tree that a cached step has fetched, as the guest sent it.
    pub(crate) fn fetched(&self, index: usize) -> Option<PathBuf> {
        let key = self.planned.steps[index].key.to_string();
        self.stack.iter().flat_map(Stack::layers).find_map(|layer| layer.fetched_by(&key))
    }
}

/// Returns the index of the step that asked for a reboot or power-off. By the time it is identified, layers may have been
/// kept whose guest is about to go down.
fn find_power_request(failure: &Failure) -> Option<usize> {
    let error = failure.fault::<StepError>()?;
    matches!(error.how, StepFailure::PowerRequest { .. }).then(|| error.number - 1)
}

fn fetches(action: &Action) -> bool {
    matches!(action, Action::Fetch { .. })
}

/// Returns a listener that reports why a layer of the cache is not used.
pub(crate) fn unusable(events: &Events) -> impl FnMut(UnusableLayerError) {
    |why| events.notice(NoticeLevel::Warning, format!("cache: a layer is not used: {why}"))
}

/// Searches the files of a layer for secrets.
fn find_leak(searched: &SearchedSecrets, files: &[PathBuf]) -> io::Result<Option<SecretLeakError>> {
    for file in files {
        if let Some(leak) = searched.scan_file(file)? {
            return Ok(Some(leak));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;
