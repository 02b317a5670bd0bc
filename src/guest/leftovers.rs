//! What a step leaves in the guest besides files: processes, their output, and a pending reboot.

use std::time::Duration;

use crate::context::BuildContext;
use crate::error::Failure;
use crate::event::{Channel, NoticeLevel};
use crate::machine::MachineExit;
use crate::session::{Aftermath, GuestError};
use crate::wire::LeftProcess;

use super::boot::Guest;
use super::power_requests::PowerSuspects;
use super::step_error::{StepError, StepFailure};
use super::step_output::LineSplitter;

/// The deadline for ending processes; the agent gives them eight seconds to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest command line that is shown, in characters.
const LONGEST: usize = 100;

/// Adds the step that has asked for it to a failure of a guest that goes down outside any step.
pub(crate) fn blame_earlier(
    build: &BuildContext<'_>,
    suspects: &PowerSuspects,
    during: &str,
    failure: Failure,
) -> Failure {
    let went_down = matches!(failure.fault::<MachineExit>(), Some(MachineExit::Rebooted | MachineExit::PoweredOff));
    match suspects.last() {
        Some(index) if went_down => {
            StepError::new(build, index, StepFailure::PowerRequest { during: Some(during.to_owned()) }, Vec::new())
                .into()
        }
        _ => failure,
    }
}

/// Reports to the log what the agent noticed around a command.
pub(crate) fn report(build: &BuildContext<'_>, found: &Aftermath) {
    for late in &found.late {
        let whose = step_title(build, late.step);
        let mut lines = LineSplitter::new(build.secrets.mask());
        let mut emit = |_, line| build.events.notice(NoticeLevel::Debug, format!("{whose}, after its end: {line}"));
        lines.feed(Channel::Stdout, &late.bytes.0, &mut emit);
        lines.finish(&mut emit);
    }
    if !found.left.is_empty() {
        build.events.notice(NoticeLevel::Debug, format!("left running: {}", name_processes(build, &found.left)));
    }
    for note in &found.notes {
        build.events.notice(NoticeLevel::Debug, note.as_str());
    }
}

/// Ends the processes that steps have left, so that they do not undo what sealing does.
pub(crate) async fn end_processes(build: &BuildContext<'_>, guest: &mut Guest) -> Result<(), Failure> {
    let late = || GuestError::Overdue(PATIENCE).into();
    let work = guest.session.end_processes();
    let ended = build.limits.hold_guest(&guest.machine, PATIENCE, late, work).await?;
    report(build, &Aftermath { left: Vec::new(), ..ended.clone() });
    if !ended.left.is_empty() {
        let names = name_processes(build, &ended.left);
        build.events.notice(NoticeLevel::Info, format!("ended what steps had left running: {names}"));
    }
    Ok(())
}

fn name_processes(build: &BuildContext<'_>, processes: &[LeftProcess]) -> String {
    let name = |process: &LeftProcess| {
        // Masked before it is cut, so that no part of a secret remains.
        let command: String = build.secrets.mask().mask_text(&process.command).chars().take(LONGEST).collect();
        format!("`{command}` (process {}, {})", process.pid, step_title(build, process.step))
    };
    processes.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Returns number and name of a step. The number comes from the guest and may be anything.
fn step_title(build: &BuildContext<'_>, number: u32) -> String {
    let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    match index.and_then(|index| build.plan.steps.get(index)) {
        Some(planned) => format!("step {number} `{}`", planned.step.name),
        None => "no step".to_owned(),
    }
}
