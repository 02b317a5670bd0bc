//! The starting point of a build.
//!
//! A build may begin with the memory of any checkpoint whose key is one of its own, or with the disk of a layer that was
//! made after a `reboot` step: in both cases the guest is what it would be without a cache. The choice among them depends
//! on time alone: the time to start, and that of the steps after it that have to be repeated. A checkpoint that turns out bad
//! when it is resumed is refused, and the choice is made again (`BuildContext::start` in `pipeline`).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::task::spawn_blocking;

use crate::error::Failure;
use crate::event::{Events, NoticeLevel};
use crate::guest::step_record::StepRecord;
use crate::layer::index::LayerIndex;
use crate::layer::{LayerCache, LayerFacts, Stack};
use crate::machine::checkpoint::RamFormat;
use crate::plan::Plan;
use crate::plan::trace::UnusedLayer;
use crate::session::{FetchedTree, Hello};
use crate::specfile::Action;

use super::{MOST_LAYERS, STEPS_AT_THE_END, StepCache, fetches, unusable};

/// The time to resume from a checkpoint, seconds.
const RESUME_SECONDS: f64 = 2.0;

/// The starting point of a build.
pub(crate) enum ResumePoint {
    /// The base image.
    Base,
    /// The frozen disk of a layer, booted.
    Disk(Stack),
    /// The memory of a layer, resumed.
    Memory(Stack, RamFormat, Hello),
}

impl ResumePoint {
    /// Returns the layers that the overlay lies on besides the base image.
    pub(crate) fn stack(&self) -> Option<&Stack> {
        match self {
            ResumePoint::Base => None,
            ResumePoint::Disk(stack) | ResumePoint::Memory(stack, ..) => Some(stack),
        }
    }
}

/// A layer that a build could begin with.
struct StartingPoint {
    /// The time until the build is where the deepest layer would put it.
    seconds: f64,
    /// Index of the layer's key among the plan's keys.
    at: usize,
    stack: Stack,
    /// Whether to resume its memory, rather than to boot its disk.
    memory: bool,
    /// Whether the guest was booted there without a cache too.
    is_bootable: bool,
}

impl StartingPoint {
    /// Returns the number of layers at the end of the build, including those that a boot and the last steps leave in any
    /// case.
    fn final_depth(&self, last: usize) -> usize {
        let boots = usize::from(!self.memory);
        self.stack.depth() + boots + last.saturating_sub(self.at).min(STEPS_AT_THE_END)
    }
}

/// The part of the cache that a build would use.
#[derive(Debug)]
pub struct CacheView {
    /// The number of steps that the layer covers with which the build begins.
    pub cached: usize,
    /// The time at which each of these steps ended, by the guest's clock, if it is known.
    pub ended: Vec<Option<Timestamp>>,
    /// The reasons for not beginning with other layers of the plan, by the number of their step, from 1; 0 is the boot.
    pub unused: BTreeMap<usize, UnusedLayer>,
}

/// The layers that a build could begin with.
struct StartingPoints {
    all: Vec<StartingPoint>,
    /// For every key with a layer, the reason why the build does not begin there, unless it does.
    unused: BTreeMap<usize, UnusedLayer>,
    /// Whether some layers have the memory of another machine.
    has_foreign_memory: bool,
}

impl StartingPoints {
    /// Excludes layers from which the chain would become too long. Where no other layer is left at that place, the build
    /// goes back far enough for the steps that it repeats to fit into few layers, with which the next builds begin.
    fn leave_out_deep_ones(&mut self, last: usize) {
        let Some(deepest) = self.all.iter().map(|point| point.at).max() else { return };
        let mut deepest = self.all.iter().filter(|point| point.at == deepest);
        let has_one_that_fits = deepest.any(|point| point.final_depth(last) <= MOST_LAYERS);
        let most = if has_one_that_fits { MOST_LAYERS } else { MOST_LAYERS / 2 };
        let deep = self.all.extract_if(.., |point| point.final_depth(last) > most).map(|point| point.at);
        self.unused.extend(deep.map(|at| (at, UnusedLayer::Deep)));
    }
}

impl StepCache<'_> {
    /// Chooses where to begin, and returns the steps that are covered by that. Waits for a concurrent build that boots the
    /// same machine, so that its checkpoint can be reused.
    pub(crate) async fn begin(&mut self) -> Result<(ResumePoint, Vec<StepRecord>), Failure> {
        let Some(cache) = self.cache.clone() else { return Ok((ResumePoint::Base, Vec::new())) };
        let (mut begin, mut done) = self.look(&cache);
        if matches!(begin, ResumePoint::Base) && self.claim.is_none() {
            let events = self.events.clone();
            let key = self.plan.base_key;
            let waiting =
                move || events.notice(NoticeLevel::Info, "another build boots the same machine; waiting for it");
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

    /// Excludes the memory of a layer from now on.
    pub(crate) fn refuse_memory(&mut self, stack: &Stack) {
        self.refused.push(stack.top().facts.name.clone());
    }

    pub(super) fn look(&self, cache: &LayerCache) -> (ResumePoint, Vec<StepRecord>) {
        self.choose(cache, &mut self.starting_points(cache))
    }

    fn choose(&self, cache: &LayerCache, points: &mut StartingPoints) -> (ResumePoint, Vec<StepRecord>) {
        loop {
            points.all.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
            let best = points.all.pop();
            if points.has_foreign_memory && !best.as_ref().is_some_and(|point| point.memory) {
                points.has_foreign_memory = false;
                let why = "the checkpoint is another machine's (QEMU, CPU or firmware changed): booting";
                self.events.notice(NoticeLevel::Info, why);
            }
            let Some(mut point) = best else { return (ResumePoint::Base, Vec::new()) };
            if !point.memory {
                let done = self.done(point.at, &point.stack);
                return (ResumePoint::Disk(point.stack), done);
            }
            match Self::memory_of(cache, &point.stack) {
                Ok((format, hello)) => {
                    let done = self.done(point.at, &point.stack);
                    return (ResumePoint::Memory(point.stack, format, hello), done);
                }
                Err(why) => {
                    self.events.notice(NoticeLevel::Warning, format!("the checkpoint is not used: {why}"));
                    points.unused.insert(point.at, UnusedLayer::Damaged);
                    if point.is_bootable {
                        point.memory = false;
                        point.seconds += point.stack.boot_seconds() - RESUME_SECONDS;
                        points.all.push(point);
                    }
                }
            }
        }
    }

    /// Finds every layer the build could begin with.
    fn starting_points(&self, cache: &LayerCache) -> StartingPoints {
        let mut problem = unusable(&self.events);
        let mut index = LayerIndex::read(cache);
        let mut points = StartingPoints { all: Vec::new(), unused: BTreeMap::new(), has_foreign_memory: false };
        // The time to repeat the steps after this layer; `None` for the deepest layer.
        let mut again = None;
        let keys = self.keys();
        let last = keys.len() - 1;
        for (at, key) in keys.into_iter().enumerate().rev() {
            let mut stacks = index.find(key, &mut problem);
            stacks.retain(|stack| self.has_fetched_trees(at, stack));
            let Some(newest) = stacks.first() else { continue };
            let took = newest.top_seconds();
            let is_bootable = self.follows_a_reboot(at);
            points.unused.insert(at, self.reason_against(&stacks, is_bootable));
            for stack in stacks {
                let memory = self.can_resume(&stack);
                points.has_foreign_memory |= self.has_foreign_memory(&stack);
                let start = if memory { RESUME_SECONDS } else { stack.boot_seconds() };
                if memory || is_bootable {
                    let seconds = start + again.unwrap_or(0.0);
                    points.all.push(StartingPoint { seconds, at, stack, memory, is_bootable });
                }
            }
            again = Some(again.unwrap_or(0.0) + took);
        }
        points.leave_out_deep_ones(last);
        points
    }

    /// Returns whether the build can resume from the memory of a layer.
    fn can_resume(&self, stack: &Stack) -> bool {
        let LayerFacts { memory, name, .. } = &stack.top().facts;
        memory.as_ref().is_some_and(|memory| memory.machine == self.machine) && !self.refused.contains(name)
    }

    fn has_foreign_memory(&self, stack: &Stack) -> bool {
        stack.top().facts.memory.as_ref().is_some_and(|memory| memory.machine != self.machine)
    }

    /// Returns the reason why a build that begins elsewhere does not begin with one of these layers of one step.
    fn reason_against(&self, stacks: &[Stack], is_bootable: bool) -> UnusedLayer {
        if is_bootable || stacks.iter().any(|stack| self.can_resume(stack)) {
            UnusedLayer::Slower
        } else if stacks.iter().any(|stack| self.has_foreign_memory(stack)) {
            UnusedLayer::OtherMachine
        } else {
            UnusedLayer::WithoutMemory
        }
    }

    /// Returns whether the trees that the steps before this place fetched are in the cache as well.
    fn has_fetched_trees(&self, at: usize, stack: &Stack) -> bool {
        let mut fetching = self.planned.steps.iter().take(at).filter(|planned| fetches(&planned.step.action));
        fetching.all(|planned| {
            let key = planned.key.to_string();
            stack.layers().any(|layer| layer.fetched_by(&key).is_some())
        })
    }

    /// Returns whether the guest was rebooted right before this place in the keys. Booting the disk of the first layer is
    /// no substitute for the first boot of the base image.
    fn follows_a_reboot(&self, at: usize) -> bool {
        let before = at.checked_sub(1).and_then(|index| self.plan.steps.get(index));
        before.is_some_and(|planned| matches!(planned.step.action, Action::Reboot))
    }

    fn memory_of(cache: &LayerCache, stack: &Stack) -> Result<(RamFormat, Hello), String> {
        cache.check_memory(stack.top()).map_err(|why| why.to_string())?;
        let memory = stack.top().facts.memory.as_ref().ok_or("there is none")?;
        let format = RamFormat::named(&memory.format).ok_or("its format is unknown")?;
        let hello = serde_json::from_value(memory.hello.clone()).map_err(|error| error.to_string())?;
        Ok((format, hello))
    }

    /// Returns the steps that a layer at this place in the keys covers.
    fn done(&self, at: usize, stack: &Stack) -> Vec<StepRecord> {
        let covered = self.planned.steps.iter().take(at).map(|planned| {
            let key = planned.key.to_string();
            let during = stack.layers().find_map(|layer| layer.during(&key));
            StepRecord { took: Duration::ZERO, fetched: FetchedTree::default(), cached: true, during }
        });
        covered.collect()
    }
}

/// Determines what a build would take from the cache, without changing anything.
#[must_use]
pub fn view_cache(plan: &Plan, cache: &LayerCache, events: &Events) -> CacheView {
    let layers = StepCache::new(plan, events.clone(), None, Path::new(""));
    let mut points = layers.starting_points(cache);
    let (_, done) = layers.choose(cache, &mut points);
    CacheView { cached: done.len(), ended: done.iter().map(ended_at).collect(), unused: points.unused }
}

fn ended_at(step: &StepRecord) -> Option<Timestamp> {
    let since_1970 = SignedDuration::try_from_secs_f64(step.during?.end).ok()?;
    Timestamp::from_duration(since_1970).ok()
}
