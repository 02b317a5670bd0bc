//! `kiln shell`: a shell in the guest as it stands before a step.

use crate::context::{BuildContext, BuildOptions};
use crate::deadline::Deadline;
use crate::error::Failure;
use crate::event::Event;
use crate::pipeline::require_qemu;
use crate::plan::Plan;

/// Opens a shell in the guest as it is after so many steps, in the environment of the next step. Steps that are not in the
/// cache run first, and are cached as a build would. Returns the shell's exit code.
///
/// # Errors
/// The first failure, up to the shell's start or of the guest.
pub async fn shell(plan: &Plan, steps: usize, around: &BuildOptions) -> Result<u8, Failure> {
    let next = plan.steps.get(steps).map(|planned| planned.step.action.clone());
    let plan = plan.until(steps);
    let limits = Deadline::new(around.cancel.clone(), plan.spec.build.timeout);
    require_qemu(&plan).await?;
    let build = BuildContext::open(&plan, around, limits)?;
    let mut layers = build.layers(around);
    let fetched = build.work.join("fetched");
    let visit = async {
        let (mut guest, _) = build.provisioned(&mut layers, &fetched, around).await?;
        let why = Event::ShellStarted { failure: None, tail: Vec::new() };
        let left = build.visit(&mut guest, next.as_ref(), why, around.attach).await;
        guest.machine.abort().await;
        left
    };
    let left = visit.await;
    layers.finish(left.as_ref().err()).await;
    left.map_err(|failure| build.give_up(failure, around))
}
