//! Asks servers whether the indices that the steps of specs downloaded have changed since they were recorded.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::download::{DownloadCache, NetworkMode};
use crate::error::{Failure, Fault, Kind};
use crate::event::{Events, NoticeLevel};
use crate::network_record::NetworkRecord;
use crate::plan::graph::Graph;
use crate::proxy::{IndexState, UpstreamCheck};
use crate::resolve::base::BaseResolver;
use crate::resolve::facts::recorded_network;

use super::{OutdatedImage, OutdatedReason};

/// Adds the changed indices to the images of specs, which are in the order of the graph.
///
/// # Errors
/// When a lock file cannot be read, or the command is interrupted. A server that does not answer is a warning.
pub async fn add_changed_indices(
    images: &mut [OutdatedImage],
    graph: &Graph,
    bases: &BaseResolver,
) -> Result<(), Failure> {
    for (image, node) in images.iter_mut().zip(graph.nodes()) {
        let Some(record) = recorded_network(&node.spec)? else { continue };
        let cache = DownloadCache::open(&bases.cache, Arc::clone(&bases.memo), NetworkMode::Online)?;
        let check = UpstreamCheck::new(cache, node.spec.network.allow.clone(), bases.cancel.clone())?;
        let events = bases.events.clone();
        let changed = spawn_blocking(move || changed_indices(check, &record, &events));
        image.reasons.extend(changed.await.expect("asking servers does not panic")?);
    }
    Ok(())
}

/// Returns a reason for each host with changed indices.
fn changed_indices(
    mut check: UpstreamCheck,
    record: &NetworkRecord,
    events: &Events,
) -> Result<Vec<OutdatedReason>, Failure> {
    let mut changed: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut unknown = 0;
    for answer in &record.answers {
        match check.ask(answer) {
            Ok(IndexState::Changed) => {
                changed.entry(answer.request.host()).or_default().push(answer.request.url.clone());
            }
            Ok(IndexState::Unknown) => unknown += 1,
            Ok(IndexState::Unchanged | IndexState::NotAsked) => {}
            Err(error) if error.kind() == Kind::Interrupted => return Err(error.into()),
            Err(error) => events.notice(
                NoticeLevel::Warning,
                format!("cannot ask whether the indices of {} have changed: {error}", answer.request.host()),
            ),
        }
    }
    if unknown > 0 {
        let why = "the server has an error, or sends neither ETag nor Last-Modified";
        events.notice(NoticeLevel::Warning, format!("cannot compare {unknown} recorded indices: {why}"));
    }
    Ok(changed.into_iter().map(|(host, urls)| OutdatedReason::IndicesChanged { host, urls }).collect())
}
