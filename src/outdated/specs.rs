//! Checks whether the images of specs are up to date.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cache::history;
use crate::error::Failure;
use crate::event::NoticeLevel;
use crate::plan::Plan;
use crate::plan::graph::{Graph, SpecNode};
use crate::plan::trace::{self, Trace};
use crate::resolve::base::{BaseError, BaseResolver, is_yet_to_come};
use crate::resolve::facts::{self, SurveyError};
use crate::resolve::path_policy::ReachPolicy;
use crate::specfile::{BaseSource, Spec};
use crate::store::{Artifact, ImageId, Manifest, Reference, Store, StoreError};

use super::{BASE, OutdatedImage, OutdatedReason};

/// Finds outdated images among those that specs make and those that they are built on, with the reasons; an image that is
/// up to date is left out. Nothing is downloaded.
///
/// # Errors
/// When a file that a spec names cannot be read.
pub async fn of_specs(graph: &Graph, bases: &BaseResolver, reach: ReachPolicy) -> Result<Vec<OutdatedImage>, Failure> {
    let store = Store::open(&bases.store)?;
    let mut all: Vec<OutdatedImage> = Vec::with_capacity(graph.nodes().len());
    for node in graph.nodes() {
        let outdated = |parent: &usize| !all[*parent].reasons.is_empty();
        let reasons = match (made(&store, &node.spec)?, node.parent.filter(outdated)) {
            (None, _) => vec![OutdatedReason::NotBuilt],
            // Whatever the other reasons are, it is built again once its base has been.
            (Some(_), Some(parent)) => vec![OutdatedReason::BaseOutdated { base: all[parent].id.clone() }],
            (Some(artifact), None) => of_spec(&store, node, graph, artifact.manifest(), (bases, reach)).await?,
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
    (bases, reach): (&BaseResolver, ReachPolicy),
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
            Ok(vec![OutdatedReason::InputsChanged { what: vec![format!("{BASE}: {failure}")] }])
        }
        _ => Err(failure),
    }
}

/// Returns the changes since the image was built, in words.
fn changes(plan: &Plan, manifest: &Manifest, last: Option<&Trace>) -> Vec<String> {
    let now = Trace::of(plan);
    let mut what = Vec::new();
    if plan.base.sha256 != manifest.base.sha256 {
        what.push(BASE.to_owned());
    }
    let machine = last.map(|last| now.base_changes(last)).unwrap_or_default();
    what.extend(machine.into_iter().filter(|words| words != BASE));
    if !what.is_empty() {
        return what;
    }
    let is_same = |index: &usize| match (plan.steps.get(*index), manifest.steps.get(*index)) {
        (Some(planned), Some(made)) => planned.key.to_string() == made.key,
        _ => false,
    };
    let steps = plan.steps.len().max(manifest.steps.len());
    let Some(first) = (0..steps).find(|index| !is_same(index)) else {
        return vec!["the outputs, tests, labels or sealing".to_owned()];
    };
    let Some(planned) = plan.steps.get(first) else { return vec![format!("step {} was taken away", first + 1)] };
    let reason = now.reasons(plan, 0, &BTreeMap::new(), last).swap_remove(first);
    let why = match reason {
        Some(trace::RunReason::Changed(words)) => format!(" ({})", words.join(", ")),
        Some(trace::RunReason::New) => " (new)".to_owned(),
        _ => String::new(),
    };
    vec![format!("step {} {}{why}", first + 1, planned.step.name)]
}
