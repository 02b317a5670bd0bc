//! Obstacles that keep cloud-init from starting kiln's agent at a guest's next boot. With one there is no `reboot` step,
//! there are no tests, and no image can be built on top of this one. An obstacle is reported after the step that introduced
//! it, since the image itself may be as intended.

use std::time::Duration;

use crate::context::BuildContext;
use crate::event::NoticeLevel;
use crate::plan::Plan;
use crate::resolve::agent_support::UntestableError;
use crate::specfile::Action;

use super::agent_obstacles::{KnownObstacle, NextBoot};
use super::boot::Guest;
use super::step_error::{StepFailure, step_title};

/// The deadline for examining a few files of the guest.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks the guest for obstacles to the agent's next start, and warns of new ones.
pub(crate) async fn watch(build: &BuildContext<'_>, guest: &mut Guest, step: Option<usize>) {
    let request = guest.session.find_seed_obstacles();
    // If the guest does not answer, the next request to it reports that as well.
    let Ok(found) = build.limits.call(&guest.machine, PATIENCE, request).await else { return };
    let new = guest.obstacles.update(found, step);
    if !new.is_empty() {
        build.events.notice(NoticeLevel::Warning, warning(build.plan, &new, step));
    }
}

fn warning(plan: &Plan, new: &[KnownObstacle], step: Option<usize>) -> String {
    let who = step.and_then(|index| step_title(plan, index)).unwrap_or_else(|| "a cached step".to_owned());
    let reasons: Vec<&str> = new.iter().map(|known| known.obstacle.reason.as_str()).collect();
    let consequence = if new.iter().any(|known| known.obstacle.is_lasting) {
        "no `reboot` step can follow, no test can run, and no image can be built on this one"
    } else {
        "no `reboot` step can follow"
    };
    let reasons = reasons.join(", and ");
    format!("{who}: {reasons}, so kiln's agent will not start when the guest boots again: {consequence}")
}

/// Returns whether a step may change what [`watch`] looks at.
pub(crate) fn may_change(action: &Action) -> bool {
    !matches!(action, Action::Fetch { .. } | Action::Reboot)
}

/// Checks that the agent will start again after a reboot.
///
/// # Errors
/// When the agent would not start.
pub(crate) fn check_reboot(build: &BuildContext<'_>, guest: &Guest) -> Result<(), StepFailure> {
    guest.obstacles.explain(build.plan, NextBoot::Same).map_or(Ok(()), |why| Err(StepFailure::NoWayBack(why)))
}

/// Checks that tests can run in clones of the image that is built from this guest.
///
/// # Errors
/// When the agent would not start in a clone.
pub(crate) fn check_tests(build: &BuildContext<'_>, guest: &Guest) -> Result<(), UntestableError> {
    guest.obstacles.explain(build.plan, NextBoot::Clone).map_or(Ok(()), |why| Err(UntestableError { why }))
}
