//! The scheduler: builds several images in one command, bases before what is built on them, as many at once as the host can
//! bear. A failure stops only what is built on the failed image.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use crate::context::BuildOptions;
use crate::error::Failure;
use crate::event::Outcome;
use crate::machine::host;
use crate::pipeline::build;
use crate::plan::Plan;
use crate::plan::graph::{Graph, SpecNode};
use crate::resolve::base::{BaseResolver, LocatedBase};
use crate::resolve::facts;
use crate::resolve::path_policy::ReachPolicy;
use crate::specfile::Spec;
use crate::store::{Artifact, ImageId, Reference, Store};

/// The memory that QEMU and kiln need besides a guest's memory, bytes.
const OVERHEAD: u64 = 256 << 20;

/// The resources that concurrent builds may use.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// The number of concurrent builds; at least 1.
    pub jobs: usize,
    /// The memory that all guests may have together, bytes. A single build may exceed it, since it could never run
    /// otherwise.
    pub memory: u64,
}

impl Budget {
    /// Returns the budget of this host: a build for each processor, since a guest seldom keeps more than one busy, and
    /// three quarters of the free memory.
    #[must_use]
    pub fn of_host(jobs: Option<usize>) -> Self {
        let memory = host::memory().map_or(0, |memory| memory.available.bytes() / 4 * 3);
        Self { jobs: jobs.unwrap_or_else(host::cpus).max(1), memory }
    }
}

/// The result of one node of a graph.
#[derive(Debug)]
pub enum NodeOutcome {
    /// The image is in the store.
    Done(Arc<Artifact>, Outcome),
    /// The build failed.
    Failed(Failure),
    /// The build was not begun, because this other node failed.
    NotBuilt(usize),
    /// The build was not begun, because the user interrupted the command.
    Interrupted,
}

/// The context in which specs are built.
pub struct BuildScheduler<'a> {
    /// Locates the base images.
    pub bases: &'a BaseResolver,
    /// What the specs may access on the host and its network.
    pub reach: ReachPolicy,
    /// The places and options of the builds.
    pub around: &'a BuildOptions,
}

impl BuildScheduler<'_> {
    /// Builds a whole graph; returns the result of each node, in the graph's order.
    pub async fn build(&self, graph: &Graph, budget: Budget) -> Vec<NodeOutcome> {
        let nodes = graph.nodes();
        let mut ended: Vec<Option<NodeOutcome>> = nodes.iter().map(|_| None).collect();
        let mut running: Vec<RunningBuild<'_>> = Vec::new();
        loop {
            settle(nodes, &mut ended);
            if self.around.cancel.is_cancelled() {
                for (index, outcome) in ended.iter_mut().enumerate() {
                    if !is_running(&running, index) {
                        outcome.get_or_insert(NodeOutcome::Interrupted);
                    }
                }
            }
            while let Some(index) = next(nodes, &ended, &running, budget) {
                let parent = nodes[index].parent.and_then(|parent| match &ended[parent] {
                    Some(NodeOutcome::Done(artifact, _)) => Some(Arc::clone(artifact)),
                    _ => None,
                });
                let work = Box::pin(self.one(&nodes[index], parent, nodes.len() > 1));
                running.push(RunningBuild { index, memory: cost(&nodes[index]), work });
            }
            if running.is_empty() {
                return ended.into_iter().flatten().collect();
            }
            let (index, result) = first(&mut running).await;
            ended[index] = Some(match result {
                Ok((artifact, outcome)) => NodeOutcome::Done(Arc::new(artifact), outcome),
                Err(failure) => NodeOutcome::Failed(failure),
            });
        }
    }

    async fn one(&self, node: &SpecNode, parent: Option<Arc<Artifact>>, among_others: bool) -> Built {
        let events = self.around.events.clone();
        let events = if among_others { events.of_build(&node.id()) } else { events };
        let around = BuildOptions { events: events.clone(), ..self.around.clone() };
        let bases = BaseResolver { events, ..self.bases.clone() };
        // Held until the build is over: an image of the store must not be removed while another image is built on it.
        let base = locate_base(node, parent, &bases, self.reach).await?;
        let plan = facts::plan(node.spec.clone(), &base, self.reach, &around.memo, &around.events).await?;
        build(&plan, &around).await
    }
}

/// Locates the base image of a spec; where there is none, the error also contains the errors in the spec's inputs.
async fn locate_base(
    node: &SpecNode,
    parent: Option<Arc<Artifact>>,
    bases: &BaseResolver,
    reach: ReachPolicy,
) -> Result<LocatedBase, Failure> {
    let located = bases.locate(&node.spec, parent).await;
    located.map_err(|failure| facts::explain_missing_base(&node.spec, reach, failure, bases))
}

/// Plans the build of one spec. Its base image must exist already, and be up to date.
///
/// # Errors
/// When the base image does not exist or is outdated, or when the plan cannot be made.
///
/// # Panics
/// Never: a graph has a node for each spec.
pub async fn plan(spec: Spec, bases: &BaseResolver, reach: ReachPolicy) -> Result<(Plan, LocatedBase), Failure> {
    let graph = Graph::new(vec![spec], reach.files)?;
    let mut parent = None;
    let mut planned = None;
    for node in graph.nodes() {
        let base = locate_base(node, parent.take(), bases, reach).await?;
        let plan = facts::plan(node.spec.clone(), &base, reach, &bases.memo, &bases.events).await?;
        parent = up_to_date(&plan, bases)?.map(Arc::new);
        planned = Some((plan, base));
    }
    // The graph of one spec ends with that spec.
    Ok(planned.expect("a graph has a node for each spec"))
}

/// Returns the image that a plan makes, if it is in the store already.
fn up_to_date(plan: &Plan, bases: &BaseResolver) -> Result<Option<Artifact>, Failure> {
    let image = &plan.spec.image;
    if !bases.store.exists() {
        return Ok(None);
    }
    let id = ImageId::new(&*image.name, &*image.version)?;
    let found = Store::open(&bases.store)?.artifact(&Reference::from(&id)).ok();
    Ok(found.filter(|artifact| artifact.manifest().build_key == plan.build_key.to_string()))
}

/// The result of a build.
type Built = Result<(Artifact, Outcome), Failure>;

/// A build in progress.
struct RunningBuild<'b> {
    index: usize,
    memory: u64,
    work: Pin<Box<dyn Future<Output = Built> + 'b>>,
}

fn cost(node: &SpecNode) -> u64 {
    node.spec.machine.memory.bytes() + OVERHEAD
}

/// Marks nodes as not built whose base image failed.
fn settle(nodes: &[SpecNode], ended: &mut [Option<NodeOutcome>]) {
    for (index, node) in nodes.iter().enumerate() {
        let Some(parent) = node.parent.filter(|_| ended[index].is_none()) else { continue };
        // Parents come first, so a whole branch is settled in one pass.
        match &ended[parent] {
            Some(NodeOutcome::Failed(_)) => ended[index] = Some(NodeOutcome::NotBuilt(parent)),
            Some(NodeOutcome::NotBuilt(cause)) => ended[index] = Some(NodeOutcome::NotBuilt(*cause)),
            _ => {}
        }
    }
}

/// Returns the node to begin next: of those whose base exists and that the budget allows, the one with the longest chain of
/// images on it.
fn next(
    nodes: &[SpecNode],
    ended: &[Option<NodeOutcome>],
    running: &[RunningBuild<'_>],
    budget: Budget,
) -> Option<usize> {
    let waiting = (0..nodes.len()).filter(|index| ended[*index].is_none() && !is_running(running, *index));
    let ready = waiting.filter(|index| nodes[*index].parent.is_none_or(|parent| is_done(ended[parent].as_ref())));
    let used: u64 = running.iter().map(|build| build.memory).sum();
    let affordable = ready.filter(|index| {
        running.is_empty() || running.len() < budget.jobs && used + cost(&nodes[*index]) <= budget.memory
    });
    affordable.max_by_key(|index| (nodes[*index].height, std::cmp::Reverse(*index)))
}

fn is_done(outcome: Option<&NodeOutcome>) -> bool {
    matches!(outcome, Some(NodeOutcome::Done(..)))
}

fn is_running(running: &[RunningBuild<'_>], index: usize) -> bool {
    running.iter().any(|build| build.index == index)
}

/// Drives all builds on this one thread until one is over: QEMU's parent-death signal is bound to the thread that starts
/// it.
async fn first(running: &mut Vec<RunningBuild<'_>>) -> (usize, Built) {
    std::future::poll_fn(|context| {
        for at in 0..running.len() {
            if let Poll::Ready(result) = running[at].work.as_mut().poll(context) {
                return Poll::Ready((running.swap_remove(at).index, result));
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Fault, Kind};
    use crate::specfile::Overrides;
    use std::path::Path;

    #[derive(Debug, thiserror::Error)]
    #[error("it broke")]
    struct Broke;

    impl Fault for Broke {
        fn kind(&self) -> Kind {
            Kind::Step
        }
    }

    /// Creates nodes from their parents, with 1 GiB of memory each.
    fn nodes(parents: &[Option<usize>]) -> Vec<SpecNode> {
        let node = |(index, parent): (usize, &Option<usize>)| {
            let text = format!("[image]\nname = 'n{index}'\nversion = '1'\n[base]\nfile = 'x'\n");
            let spec = Spec::parse(Path::new("/kiln.toml"), &text, &Overrides::default()).unwrap();
            let above = |of: usize| parents.iter().filter(|parent| **parent == Some(of)).count();
            SpecNode { spec, parent: *parent, wanted: true, height: above(index) }
        };
        parents.iter().enumerate().map(node).collect()
    }

    fn running(index: usize) -> RunningBuild<'static> {
        RunningBuild { index, memory: (1 << 30) + OVERHEAD, work: Box::pin(std::future::pending()) }
    }

    #[test]
    fn what_most_is_built_on_begins_first_and_the_budget_is_kept() {
        let nodes = nodes(&[None, None, Some(1), Some(1)]);
        let none: Vec<Option<NodeOutcome>> = (0..4).map(|_| None).collect();
        let budget = |jobs, gib: u64| Budget { jobs, memory: gib << 30 };
        assert_eq!(next(&nodes, &none, &[], budget(2, 8)), Some(1));
        assert_eq!(next(&nodes, &none, &[running(1)], budget(2, 8)), Some(0));
        assert_eq!(next(&nodes, &none, &[running(1)], budget(1, 8)), None);
        assert_eq!(next(&nodes, &none, &[running(1)], budget(2, 2)), None);
        assert_eq!(next(&nodes, &none, &[], budget(2, 0)), Some(1), "alone it may take all there is");
        assert_eq!(next(&nodes, &none, &[running(1), running(0)], budget(9, 99)), None, "their base is not there");
    }

    #[test]
    fn a_failure_stops_what_is_built_on_it_and_nothing_else() {
        let nodes = nodes(&[None, Some(0), Some(1), None]);
        let mut ended: Vec<Option<NodeOutcome>> = vec![Some(NodeOutcome::Failed(Broke.into())), None, None, None];
        settle(&nodes, &mut ended);
        assert!(
            matches!(ended[..], [_, Some(NodeOutcome::NotBuilt(0)), Some(NodeOutcome::NotBuilt(0)), None]),
            "{ended:?}"
        );
        assert_eq!(next(&nodes, &ended, &[], Budget { jobs: 1, memory: 0 }), Some(3));
    }
}
