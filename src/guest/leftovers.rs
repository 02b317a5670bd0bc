//! What a step leaves in the guest besides files: processes, their output, and a pending reboot.

use std::time::Duration;

use crate::context::BuildContext;
use crate::error::Failure;
use crate::event::{Channel, NoticeLevel};
use crate::machine::MachineExit;
use crate::session::Aftermath;
use crate::wire::LeftProcess;

use super::boot::Guest;
use super::power_requests::PowerSuspects;
use super::step_error::{StepError, StepFailure, step_title};
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
        let whose = reported_step(build, late.step);
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
    let ended = build.limits.call(&guest.machine, PATIENCE, guest.session.end_processes()).await?;
    report(build, &Aftermath { left: Vec::new(), ..ended.clone() });
    if !ended.left.is_empty() {
        let names = name_processes(build, &ended.left);
        build.events.notice(NoticeLevel::Info, format!("ended what steps had left running: {names}"));
    }
    Ok(())
}

fn name_processes(build: &BuildContext<'_>, processes: &[LeftProcess]) -> String {
    let names = processes.iter().map(|process| {
        // Masked before it is cut, so that no part of a secret remains.
        let command: String = build.secrets.mask().mask_text(&process.command).chars().take(LONGEST).collect();
        format!("`{command}` (process {}, {})", process.pid, reported_step(build, process.step))
    });
    names.collect::<Vec<_>>().join(", ")
}

/// Returns number and name of a step. The number comes from the guest and may be anything.
fn reported_step(build: &BuildContext<'_>, number: u32) -> String {
    let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    index.and_then(|index| step_title(build.plan, index)).unwrap_or_else(|| "no step".to_owned())
}
