//! Where a build begins, and what it keeps for the next one.
//!
//! A build looks for the steps that were done before, from the last one back, and begins with the layer from which the
//! end is reached soonest: the memory of a checkpoint, with the steps after it done again, or a boot from a frozen disk.
//! Every layer fits by its key, so this is a question of time alone.
//!
//! After each step the disk is frozen. Memory goes with it after a boot, after the last step that is cached and the one
//! before it (the step people work on is the last one), and wherever the steps since the last checkpoint took longer than
//! a checkpoint is worth. There is none once a step has seen a secret: memory keeps what a program forgot to wipe.

use std::io;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use crate::disk::qcow2::create_overlay;
use crate::error::Failure;
use crate::event::{Events, Level};
use crate::guest::{GuestError, Hello};
use crate::layer::evict::evict;
use crate::layer::{Cache, Claim, Draft, Made, Name, Recorded, Stack, Unusable};
use crate::machine::argv::OVERLAY;
use crate::machine::checkpoint::{RamFormat, fingerprint};
use crate::plan::key::Key;
use crate::plan::{Plan, PlannedStep};
use crate::process;
use crate::spec::{Action, DiskFormat};

use super::boot::Guest;
use super::provision::Done;
use super::{Build, ScratchError};

/// What a checkpoint takes before one was made.
const USUAL_COST: Duration = Duration::from_secs(2);
/// What going on from a checkpoint takes, seconds.
const RESUME_SECONDS: f64 = 2.0;
/// For small requests to the guest.
const PATIENCE: Duration = Duration::from_secs(120);
/// The cache may take this much, bytes, or a tenth of its disk if that is less.
pub const CACHE_LIMIT: u64 = 20 << 30;

/// A page cache of this many bytes is kept in a checkpoint: what comes next would read most of it again.
const WARM: u64 = 256 << 20;

/// Where a build begins.
pub(crate) enum Begin {
    /// With the base image.
    Base,
    /// With the frozen disk of a layer, booted.
    Disk(Stack),
    /// With a layer's memory.
    Memory(Stack, RamFormat, Hello),
}

impl Begin {
    /// What the overlay lies on besides the base image.
    pub(crate) fn stack(&self) -> Option<&Stack> {
        match self {
            Begin::Base => None,
            Begin::Disk(stack) | Begin::Memory(stack, ..) => Some(stack),
        }
    }
}

/// A layer a build could begin with.
struct Way {
    /// Until the build is where the deepest layer would put it.
    seconds: f64,
    /// Its place among the keys.
    at: usize,
    stack: Stack,
    /// Go on from its memory, rather than boot its disk.
    memory: bool,
    /// No layer is deeper, so without memory its disk is the one to boot.
    worth_booting: bool,
}

/// What one build takes from the cache and gives to it.
pub(crate) struct Layers<'a> {
    plan: &'a Plan,
    events: Events,
    /// None where nothing is kept: `--no-cache`, or a folder that cannot be used.
    cache: Option<Cache>,
    machine: String,
    stack: Option<Stack>,
    /// Overlays of this build that are frozen, first one first.
    frozen: Vec<PathBuf>,
    /// The overlay that takes the writes.
    top: PathBuf,
    parent: Option<Name>,
    since_memory: Duration,
    cost: Duration,
    memory: bool,
    commits: Vec<JoinHandle<io::Result<()>>>,
    claim: Option<Claim>,
}

impl<'a> Layers<'a> {
    pub(crate) fn new(plan: &'a Plan, events: Events, cache: Option<Cache>, work: &Path) -> Self {
        let machine = fingerprint(&plan.machine);
        Self {
            plan,
            events,
            cache,
            machine,
            stack: None,
            frozen: Vec::new(),
            top: work.join(OVERLAY),
            parent: None,
            since_memory: Duration::ZERO,
            cost: USUAL_COST,
            memory: true,
            commits: Vec::new(),
            claim: None,
        }
    }

    /// The keys of what may be taken from the cache and given to it: the boot, and the steps up to the first that is
    /// not to be cached.
    fn keys(plan: &Plan) -> Vec<Key> {
        let cached = plan.steps.iter().take_while(|planned| planned.step.cache).map(|planned| planned.key);
        std::iter::once(plan.base_key).chain(cached).collect()
    }

    /// The cache, for what else may be kept there.
    pub(crate) fn cache(&self) -> Option<Cache> {
        self.cache.clone()
    }

    /// Decides where to begin, and how many steps are done by that. Who has to boot first waits for another build that
    /// boots the same.
    pub(crate) async fn begin(&mut self) -> Result<(Begin, Vec<Done>), Failure> {
        let Some(cache) = self.cache.clone() else { return Ok((Begin::Base, Vec::new())) };
        let (mut begin, mut done) = self.look(&cache);
        if matches!(begin, Begin::Base) {
            let (events, key) = (self.events.clone(), self.plan.base_key);
            let waiting = move || events.notice(Level::Info, "another build boots the same machine; waiting for it");
            let claimed = spawn_blocking(move || cache.claim(key, waiting));
            match claimed.await.expect("waiting does not panic") {
                Ok(claim) => self.claim = Some(claim),
                Err(error) => self.without_cache(&error),
            }
            if let Some(cache) = self.cache.clone() {
                (begin, done) = self.look(&cache);
            }
        }
        if begin.stack().is_some() {
            self.claim = None;
        }
        Ok((begin, done))
    }

    fn look(&self, cache: &Cache) -> (Begin, Vec<Done>) {
        let (mut ways, mut foreign) = self.ways(cache);
        loop {
            ways.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
            let best = ways.pop();
            if foreign && !best.as_ref().is_some_and(|way| way.memory) {
                foreign = false;
                let why = "the checkpoint is another machine's (QEMU, CPU or firmware changed): booting";
                self.events.notice(Level::Info, why);
            }
            let Some(mut way) = best else { return (Begin::Base, Vec::new()) };
            if !way.memory {
                let done = self.done(way.at, &way.stack);
                return (Begin::Disk(way.stack), done);
            }
            match Self::memory_of(cache, &way.stack) {
                Ok((format, hello)) => {
                    let done = self.done(way.at, &way.stack);
                    return (Begin::Memory(way.stack, format, hello), done);
                }
                Err(why) => {
                    self.events.notice(Level::Warning, format!("the checkpoint is not used: {why}"));
                    if way.worth_booting {
                        (way.memory, way.seconds) = (false, way.stack.boot_seconds());
                        ways.push(way);
                    }
                }
            }
        }
    }

    /// Every layer the build could begin with, and whether there is memory of another machine.
    fn ways(&self, cache: &Cache) -> (Vec<Way>, bool) {
        let mut problem = unusable(&self.events);
        let (mut ways, mut foreign) = (Vec::new(), false);
        // What the steps after this layer, which were done before, take to do again; none for the deepest layer.
        let mut again = None;
        for (at, key) in Self::keys(self.plan).into_iter().enumerate().rev() {
            let stacks = cache.find(key, &mut problem);
            let Some(newest) = stacks.first() else { continue };
            let took = newest.top().facts.seconds;
            // Booting the disk of the very first layer takes what a boot of the base does.
            let mut worth_booting = again.is_none() && at > 0;
            for stack in stacks {
                let owner = stack.top().facts.memory.as_ref().map(|memory| memory.machine == self.machine);
                let memory = owner == Some(true);
                foreign |= owner == Some(false);
                if memory || worth_booting {
                    let seconds = if memory { RESUME_SECONDS + again.unwrap_or(0.0) } else { stack.boot_seconds() };
                    ways.push(Way { seconds, at, stack, memory, worth_booting });
                }
                worth_booting = false;
            }
            again = Some(again.unwrap_or(0.0) + took);
        }
        (ways, foreign)
    }

    fn memory_of(cache: &Cache, stack: &Stack) -> Result<(RamFormat, Hello), String> {
        cache.check_memory(stack.top()).map_err(|why| why.to_string())?;
        let memory = stack.top().facts.memory.as_ref().ok_or("there is none")?;
        let format = RamFormat::named(&memory.format).ok_or("its format is unknown")?;
        let hello = serde_json::from_value(memory.hello.clone()).map_err(|error| error.to_string())?;
        Ok((format, hello))
    }

    /// The steps that a layer at this place in the keys stands for.
    fn done(&self, at: usize, stack: &Stack) -> Vec<Done> {
        let step = |planned: &PlannedStep| {
            let key = planned.key.to_string();
            let layer = stack.layers().find(|layer| layer.facts.name.key == key);
            let during = layer.and_then(|layer| layer.facts.during);
            Done { took: Duration::ZERO, fetched: Vec::new(), cached: true, during }
        };
        self.plan.steps.iter().take(at).map(step).collect()
    }

    /// The build has begun so.
    pub(crate) fn began(&mut self, begin: Begin) {
        let stack = match begin {
            Begin::Base => return,
            Begin::Disk(stack) | Begin::Memory(stack, ..) => stack,
        };
        stack.touch();
        self.parent = Some(stack.top().facts.name.clone());
        self.stack = Some(stack);
    }

    /// The disk of the guest, top first.
    pub(crate) fn chain(&self) -> Vec<(PathBuf, DiskFormat)> {
        let base = &self.plan.base;
        let frozen = self.frozen.iter().rev().cloned();
        let layers = self.stack.iter().flat_map(Stack::disks);
        let overlays = std::iter::once(self.top.clone()).chain(frozen).chain(layers);
        overlays.map(|path| (path, DiskFormat::Qcow2)).chain([(base.file.clone(), base.format.into())]).collect()
    }

    /// After a boot: this machine's memory, for all builds that would begin with the same boot.
    pub(crate) async fn after_boot(
        &mut self,
        build: &Build<'_>,
        guest: &mut Guest,
        took: Duration,
    ) -> Result<(), Failure> {
        let key = match &self.stack {
            None => Some(self.plan.base_key),
            Some(stack) => Self::keys(self.plan).into_iter().find(|key| key.to_string() == stack.top().facts.name.key),
        };
        let Some(key) = key else { return Ok(()) };
        let boot = Done { took, cached: false, during: None, fetched: Vec::new() };
        let kept = self.keep(build, guest, key, &boot, true, Vec::new()).await;
        self.claim = None;
        kept
    }

    /// After a step.
    pub(crate) async fn after_step(
        &mut self,
        build: &Build<'_>,
        guest: &mut Guest,
        index: usize,
        done: &Done,
        fetched: &Path,
    ) -> Result<(), Failure> {
        self.since_memory += done.took;
        let keys = Self::keys(self.plan);
        let Some(key) = keys.get(index + 1).copied() else {
            // Nothing after this step is kept either.
            self.cache = None;
            return Ok(());
        };
        if sees_secret(&self.plan.steps[index].step.action) {
            self.memory = false;
        }
        let near_the_end = index + 3 >= keys.len();
        let memory = self.memory && (near_the_end || self.since_memory > 2 * self.cost);
        let files = done.fetched.iter().map(|file| (fetched.join(file), file.clone())).collect();
        self.keep(build, guest, key, done, memory, files).await
    }

    /// Freezes what is there now as a layer. What goes wrong with that is said, and ends the keeping, not the build.
    async fn keep(
        &mut self,
        build: &Build<'_>,
        guest: &mut Guest,
        key: Key,
        done: &Done,
        memory: bool,
        fetched: Vec<(PathBuf, PathBuf)>,
    ) -> Result<(), Failure> {
        let Some(cache) = self.cache.clone() else { return Ok(()) };
        let began = Instant::now();
        let overlay = format!("overlay-{}.qcow2", self.frozen.len() + 1);
        let next = build.work.join(&overlay);
        create_overlay(&next, self.plan.disk_size()).map_err(ScratchError::at("an overlay", &next))?;
        let cached = if memory { WARM } else { u64::MAX };
        let late = || GuestError::Overdue(PATIENCE).into();
        build.limits.hold_guest(&guest.machine, PATIENCE, late, guest.session.sync(cached)).await?;
        let draft = match cache.draft() {
            Ok(draft) => draft,
            Err(error) => {
                self.without_cache(&error);
                return Ok(());
            }
        };
        let recorded = if memory {
            match self.checkpoint(build, guest, &overlay, &draft).await? {
                Some(recorded) => recorded,
                None => return Ok(()),
            }
        } else {
            let freeze = async { Ok::<_, Failure>(guest.machine.freeze_disk(&overlay).await) };
            if let Err(error) = build.limits.hold(freeze).await? {
                self.without_cache(&error);
                return Ok(());
            }
            None
        };
        let frozen = std::mem::replace(&mut self.top, next);
        let linked = draft.take_disk(&frozen);
        self.frozen.push(frozen);
        if let Err(error) = linked {
            self.without_cache(&error);
            return Ok(());
        }
        let name = Name::new(key);
        let parent = self.parent.replace(name.clone());
        let (seconds, during) = (done.took.as_secs_f64(), done.during);
        let made = Made { name, parent, seconds, during, memory: recorded, fetched };
        // Who waits for the boot may look when it is there.
        let claim = self.claim.take();
        let searched = build.secrets.searched().cloned();
        // A thread of its own, since one that has stepped back never comes forward again.
        self.commits.push(thread::spawn(move || {
            process::step_back();
            let leak = searched.map(|searched| searched.scan_file(&draft.disk())).transpose()?.flatten();
            let committed = leak.map_or(Ok(()), |leak| Err(io::Error::other(leak))).and_then(|()| draft.commit(made));
            drop(claim);
            committed
        }));
        if memory {
            self.cost = began.elapsed();
            self.since_memory = Duration::ZERO;
        }
        let seconds = began.elapsed().as_secs_f64();
        let what = if memory { "disk and memory" } else { "disk" };
        self.events.notice(Level::Debug, format!("layer: {what} kept in {seconds:.2} s"));
        Ok(())
    }

    /// `None` where nothing was frozen; `Some(None)` where only the disk was.
    async fn checkpoint(
        &mut self,
        build: &Build<'_>,
        guest: &mut Guest,
        overlay: &str,
        draft: &Draft,
    ) -> Result<Option<Option<Recorded>>, Failure> {
        let late = || GuestError::Overdue(PATIENCE).into();
        build.limits.hold_guest(&guest.machine, PATIENCE, late, guest.session.park()).await?;
        let frozen = guest.machine.frozen();
        let written = {
            let checkpoint = async { Ok::<_, Failure>(guest.machine.checkpoint(overlay, &draft.ram()).await) };
            build.limits.hold(checkpoint).await?
        };
        let late = || GuestError::Overdue(PATIENCE).into();
        build.limits.hold_guest(&guest.machine, PATIENCE, late, guest.session.resume()).await?;
        let hello = serde_json::to_value(&guest.hello).expect("a hello is plain data");
        match written {
            Ok(format) => {
                let machine = self.machine.clone();
                Ok(Some(Some(Recorded { format: format.name().to_owned(), machine, hello })))
            }
            Err(error) if guest.machine.frozen() > frozen => {
                // A half-written file is no layer's.
                let _ = std::fs::remove_file(draft.ram());
                self.memory = false;
                self.events.notice(Level::Info, format!("no checkpoints: {error}"));
                Ok(Some(None))
            }
            Err(error) => {
                self.without_cache(&error);
                Ok(None)
            }
        }
    }

    fn without_cache(&mut self, why: &dyn std::error::Error) {
        self.cache = None;
        self.events.notice(Level::Warning, format!("nothing more is kept in the cache: {why}"));
    }

    /// Waits until what was kept is on the disk, then makes room. The layers this build used stay in use until here.
    pub(crate) async fn finish(mut self) {
        for commit in self.commits.drain(..) {
            let committed = spawn_blocking(move || commit.join()).await.expect("joining does not panic");
            if let Err(error) = committed.expect("committing does not panic") {
                self.events.notice(Level::Warning, format!("a layer could not be kept: {error}"));
            }
        }
        let Some(cache) = self.cache.take() else { return };
        drop(self.stack.take());
        let limit = cache.limit(CACHE_LIMIT);
        match spawn_blocking(move || evict(&cache, limit)).await.expect("evicting does not panic") {
            Ok(evicted) if evicted.layers > 0 => {
                let text = format!("cache: {} old layers removed", evicted.layers);
                self.events.notice(Level::Debug, text);
            }
            Ok(_) => {}
            Err(error) => self.events.notice(Level::Debug, format!("cache: {error}")),
        }
    }

    /// Brings what a cached step has fetched.
    pub(crate) fn fetched(&self, index: usize, to: &Path) -> io::Result<Vec<PathBuf>> {
        let key = self.plan.steps[index].key.to_string();
        let layer = self.stack.iter().flat_map(Stack::layers).find(|layer| layer.facts.name.key == key);
        let Some(layer) = layer else { return Ok(Vec::new()) };
        let files: Vec<_> = layer.facts.fetched.iter().map(|fetched| fetched.file.clone()).collect();
        for file in &files {
            let target = to.join(file);
            std::fs::create_dir_all(target.parent().unwrap_or(to))?;
            std::fs::copy(layer.fetched(file), target)?;
        }
        Ok(files)
    }
}

/// Says of a layer that is there why it is not used.
pub(super) fn unusable(events: &Events) -> impl FnMut(Unusable) {
    |why| events.notice(Level::Warning, format!("cache: a layer is not used: {why}"))
}

/// How many of a plan's steps a build would take from the cache; changes nothing.
#[must_use]
pub fn cached_steps(plan: &Plan, cache: &Cache, events: &Events) -> usize {
    let layers = Layers::new(plan, events.clone(), None, Path::new(""));
    let (_, done) = layers.look(cache);
    done.len()
}

/// A step's secrets stay in the memory of the machine.
fn sees_secret(action: &Action) -> bool {
    match action {
        Action::Run { context, .. } | Action::Script { context, .. } => !context.secrets.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
