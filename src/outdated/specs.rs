//! Checks whether the images of specs are up to date.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cache::history;
use crate::error::Failure;
use crate::event::NoticeLevel;
use crate::plan::Plan;
use crate::plan::graph::{Graph, SpecNode};
use crate::plan::kernel::KernelFacts;
use crate::plan::trace::{ChangedInput, RunReason, Trace, list_inputs};
use crate::resolve::base::{BaseError, BaseResolver, is_yet_to_come};
use crate::resolve::facts::{self, SurveyError};
use crate::resolve::path_policy::ReachPolicy;
use crate::specfile::{BaseSource, Spec};
use crate::store::manifest::ManifestKernel;
use crate::store::{Artifact, ImageId, Manifest, Reference, Store, StoreError};

use super::{OutdatedImage, OutdatedReason};

/// Finds outdated images among those that specs make and those that they are built on, with the reasons; an image that is
/// up to date is left out. Nothing is downloaded.
///
/// # Errors
/// When a file that a spec names cannot be read.
pub async fn of_specs(graph: &Graph, bases: &BaseResolver, reach: ReachPolicy) -> Result<Vec<OutdatedImage>, Failure> {
    let store = Store::open(&bases.store)?;
    let mut all: Vec<OutdatedImage> = Vec::with_capacity(graph.nodes().len());
    for node in graph.nodes() {
        let outdated = node.parent.filter(|parent| !all[*parent].reasons.is_empty());
        let reasons = match (made(&store, &node.spec)?, outdated) {
            (None, _) => vec![OutdatedReason::NotBuilt],
            // Whatever the other reasons are, it is built again once its base has been.
            (Some(_), Some(parent)) => vec![OutdatedReason::BaseOutdated { base: all[parent].id.clone() }],
            (Some(artifact), None) => of_spec(&store, node, graph, artifact.manifest(), bases, reach).await?,
        };
        all.push(OutdatedImage { id: node.id(), reasons });
    }
    Ok(all)
}

/// Returns the image that a spec makes, if it is in the store.
fn made(store: &Store, spec: &Spec) -> Result<Option<Artifact>, Failure> {
    let id = ImageId::new(&*spec.image.name, &*spec.image.version)?;
    match store.artifact(&Reference::from(&id)) {
        Err(StoreError::NoImage { .. } | StoreError::NoVersion { .. }) => Ok(None),
        other => Ok(other.map(Some)?),
    }
}

async fn of_spec(
    store: &Store,
    node: &SpecNode,
    graph: &Graph,
    manifest: &Manifest,
    bases: &BaseResolver,
    reach: ReachPolicy,
) -> Result<Vec<OutdatedReason>, Failure> {
    let spec = &node.spec;
    if let BaseSource::File(file) = &spec.base.source
        && !file.exists()
    {
        return Ok(vec![OutdatedReason::file_gone(file)]);
    }
    let parent = node.parent.map(|parent| made(store, &graph.nodes()[parent].spec)).transpose()?.flatten();
    let planned = async {
        let base = bases.locate(spec, parent.map(Arc::new)).await?;
        facts::plan(spec.clone(), &base, reach, &bases.memo, &bases.events).await
    };
    match planned.await {
        Ok(plan) if plan.build_key.to_string() == manifest.build_key => Ok(Vec::new()),
        Ok(plan) => {
            let last = history::recall(&bases.cache, &plan);
            Ok(vec![OutdatedReason::InputsChanged { what: changes(&plan, manifest, last.as_ref()) }])
        }
        Err(failure) => of_failure(failure, node, bases),
    }
}

/// Returns the reasons that an unavailable base image gives for an outdated image.
fn of_failure(failure: Failure, node: &SpecNode, bases: &BaseResolver) -> Result<Vec<OutdatedReason>, Failure> {
    if is_yet_to_come(&failure) {
        // The base image is not on this host, and other hosts are not asked.
        bases.events.notice(NoticeLevel::Warning, format!("{} is skipped: {failure}", node.id()));
        return Ok(Vec::new());
    }
    if let Some(SurveyError::WrongBase { path, .. }) = failure.fault() {
        return Ok(vec![OutdatedReason::file_changed(path)]);
    }
    let Some(BaseError::Stored { source, .. }) = failure.fault() else { return Err(failure) };
    match source {
        StoreError::NoImage { .. } | StoreError::NoVersion { .. } | StoreError::Dangling { .. } => {
            Ok(vec![OutdatedReason::InputsChanged { what: vec![ChangedInput::BaseLost(failure.to_string())] }])
        }
        _ => Err(failure),
    }
}

/// Returns the changes since the image was built.
fn changes(plan: &Plan, manifest: &Manifest, last: Option<&Trace>) -> Vec<ChangedInput> {
    let now = Trace::of(plan);
    let mut what = Vec::new();
    if plan.base.sha256 != manifest.base.sha256 {
        what.push(ChangedInput::Base);
    }
    if last.is_none() && has_other_kernel(plan, manifest) {
        what.push(ChangedInput::Other("the kernel beside the base image".to_owned()));
    }
    let machine = last.map(|last| now.base_changes(last)).unwrap_or_default();
    what.extend(machine.into_iter().filter(|input| *input != ChangedInput::Base));
    if !what.is_empty() {
        return what;
    }
    vec![ChangedInput::Other(match first_other_step(plan, manifest) {
        None => "the outputs, tests, labels or sealing".to_owned(),
        Some(index) if index >= plan.steps.len() => format!("step {} was taken away", index + 1),
        Some(index) => {
            let why = match now.reasons(plan, 0, &BTreeMap::new(), last).swap_remove(index) {
                Some(RunReason::Changed(inputs)) => format!(" ({})", list_inputs(&inputs)),
                Some(RunReason::New) => " (new)".to_owned(),
                _ => String::new(),
            };
            format!("step {} {}{why}", index + 1, plan.steps[index].step.name)
        }
    })]
}

fn has_other_kernel(plan: &Plan, manifest: &Manifest) -> bool {
    let planned = plan.base.kernel.iter().flat_map(KernelFacts::files).map(|file| file.sha256);
    let made = manifest.kernel.iter().flat_map(ManifestKernel::files).map(|file| file.sha256);
    !planned.eq(made)
}

/// Returns the index of the first step that is not the same in the plan and in the image.
fn first_other_step(plan: &Plan, manifest: &Manifest) -> Option<usize> {
    let steps = plan.steps.len().max(manifest.steps.len());
    (0..steps).find(|index| match (plan.steps.get(*index), manifest.steps.get(*index)) {
        (Some(planned), Some(made)) => planned.key.to_string() != made.key,
        _ => true,
    })
}
