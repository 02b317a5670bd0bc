//! Obstacles that keep cloud-init from starting kiln's agent at a guest's next boot. With one, the agent is planted before a
//! `reboot` step and in tests, unless the spec asks for cloud-init. An obstacle is reported after the step that introduced it,
//! since the image itself may be as intended.

use std::time::Duration;

use crate::context::BuildContext;
use crate::event::NoticeLevel;
use crate::plan::Plan;
use crate::plan::agent::AgentStart;
use crate::resolve::agent_support::UntestableError;
use crate::specfile::{Action, AgentChoice};

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
    if let Some((level, consequence)) = consequence(build.plan, &new) {
        build.events.notice(level, describe(build.plan, &new, step) + consequence);
    }
}

/// Returns the consequence of new obstacles for the build, if they have one.
fn consequence(plan: &Plan, new: &[KnownObstacle]) -> Option<(NoticeLevel, &'static str)> {
    let is_lasting = new.iter().any(|known| known.obstacle.is_lasting);
    let starts_by_cloud_init = plan.machine.agent == AgentStart::CloudInit;
    if new.is_empty() || !(is_lasting || starts_by_cloud_init) {
        return None;
    }
    match plan.spec.machine.agent {
        AgentChoice::CloudInit if !starts_by_cloud_init => Some((NoticeLevel::Warning, "no test can run")),
        AgentChoice::CloudInit if is_lasting => {
            Some((NoticeLevel::Warning, "no `reboot` step can follow, and no test can run"))
        }
        AgentChoice::CloudInit => Some((NoticeLevel::Warning, "no `reboot` step can follow")),
        AgentChoice::Auto if starts_by_cloud_init => {
            Some((NoticeLevel::Info, "it is planted for `reboot` steps and tests"))
        }
        AgentChoice::Auto | AgentChoice::Planted => None,
    }
}

fn describe(plan: &Plan, new: &[KnownObstacle], step: Option<usize>) -> String {
    let who = step.and_then(|index| step_title(plan, index)).unwrap_or_else(|| "a cached step".to_owned());
    let reasons: Vec<&str> = new.iter().map(|known| known.obstacle.reason.as_str()).collect();
    let reasons = reasons.join(", and ");
    format!("{who}: {reasons}, so cloud-init will not start kiln's agent when the guest boots again: ")
}

/// Returns whether a step may change what [`watch`] looks at.
pub(crate) fn may_change(action: &Action) -> bool {
    !matches!(action, Action::Fetch { .. } | Action::Reboot)
}

/// Returns whether the agent has to be planted, so that it starts again after a reboot.
///
/// # Errors
/// When cloud-init would not start the agent, and the spec asks for it.
pub(crate) fn needs_planting(build: &BuildContext<'_>, guest: &Guest) -> Result<bool, StepFailure> {
    if build.plan.machine.agent != AgentStart::CloudInit {
        return Ok(false);
    }
    let obstacle = guest.obstacles.explain(build.plan, NextBoot::Same);
    let chosen = AgentStart::choose(build.plan.spec.machine.agent, obstacle);
    Ok(chosen.map_err(StepFailure::NoWayBack)? != AgentStart::CloudInit)
}

/// Decides what starts the agent in clones of the image that is built from this guest.
///
/// # Errors
/// When cloud-init would not start the agent in a clone, and the spec asks for it.
pub(crate) fn choose_for_tests(build: &BuildContext<'_>, guest: &Guest) -> Result<AgentStart, UntestableError> {
    let obstacle = guest.obstacles.explain(build.plan, NextBoot::Clone);
    AgentStart::choose(build.plan.spec.machine.agent, obstacle).map_err(|why| UntestableError { why })
}
