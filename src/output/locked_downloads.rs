//! The record of what the steps of a build downloaded over a locked network, in `kiln.lock`.

use std::collections::BTreeSet;

use tokio::task::spawn_blocking;

use crate::context::BuildContext;
use crate::error::Failure;
use crate::event::NoticeLevel;
use crate::network_record::NetworkRecord;
use crate::plan::Plan;
use crate::resolve::base::LockfileMode;
use crate::resolve::lockfile::{self, FILE, PinError};

/// Writes what the steps that ran downloaded into `kiln.lock`, and plans the version anew with that: the next build, which
/// reads the lock, has the same keys. Nothing changes if no step ran.
///
/// # Errors
/// When the lock file must not change and lacks an answer, or when it cannot be written.
pub(crate) async fn record(build: &BuildContext<'_>, locking: LockfileMode) -> Result<(), Failure> {
    match changed_record(build) {
        None => Ok(()),
        Some(record) if locking == LockfileMode::Require => {
            Ok(lockfile::check_recorded(&build.plan.spec, build.plan.network.as_ref(), &record)?)
        }
        Some(record) => Ok(write(build, record).await?),
    }
}

/// Writes what the finished steps of a failed build downloaded, so that the next build finds their layers.
pub(crate) async fn record_finished(build: &BuildContext<'_>, locking: LockfileMode, mut failure: Failure) -> Failure {
    let Some(record) = changed_record(build).filter(|_| locking != LockfileMode::Require) else { return failure };
    if let Err(error) = write(build, record).await {
        failure.attach(format!("the downloads of the finished steps are not recorded: {error}"));
    }
    failure
}

async fn write(build: &BuildContext<'_>, record: NetworkRecord) -> Result<(), PinError> {
    let count = record.answers.len();
    let (spec, entry) = (build.plan.spec.clone(), record.clone());
    let writing = spawn_blocking(move || lockfile::record_network(&spec, &entry));
    if writing.await.expect("writing does not panic")? {
        let unit = if count == 1 { "download" } else { "downloads" };
        build.events.notice(NoticeLevel::Info, format!("{FILE}: {count} {unit} recorded"));
    }
    let is_first = build.recorded.set(build.plan.with_network(record)).is_ok();
    debug_assert!(is_first, "a build is recorded once");
    Ok(())
}

/// Returns what the steps of a build got, for another build that is to get the same.
pub(crate) fn current_record(build: &BuildContext<'_>) -> Option<NetworkRecord> {
    changed_record(build).or_else(|| build.plan.network.clone())
}

/// Returns the record after the steps, if it is another one than that of the plan.
fn changed_record(build: &BuildContext<'_>) -> Option<NetworkRecord> {
    let Plan { network, steps, .. } = build.plan;
    let ran = build.answers.borrow();
    if ran.is_empty() {
        return None;
    }
    let names: BTreeSet<String> = steps.iter().map(|planned| planned.step.name.clone()).collect();
    let record = NetworkRecord::after_build(network.as_ref(), &names, &ran, lockfile::now());
    let is_known = match network {
        Some(known) => *known == record,
        None => record.answers.is_empty(),
    };
    (!is_known).then_some(record)
}
