//! What a step leaves behind in the guest besides files: processes, what those write, and a reboot that is yet to come.

use std::time::Duration;

use crate::error::Failure;
use crate::event::{Channel, Level};
use crate::machine::Fate;
use crate::plan::PlannedStep;
use crate::session::{Aftermath, GuestError};
use crate::specfile::{Action, Command};
use crate::wire::LeftProcess;

use super::Build;
use super::boot::Guest;
use super::output::Lines;
use super::provision::{How, StepError};

/// The agent gives processes eight seconds to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Words of commands that turn a machine off or restart it.
const POWER_WORDS: [&str; 7] = ["reboot", "poweroff", "shutdown", "halt", "kexec", "telinit", "sysrq"];
/// Longer command lines are cut, in characters.
const LONGEST: usize = 100;
/// Larger scripts are not searched for those words, bytes.
const LARGEST_SCRIPT: u64 = 1 << 20;

/// Steps since the last boot that may have asked for a reboot or power-off that comes later.
#[derive(Debug, Default)]
pub(crate) struct PowerSuspects(Vec<usize>);

impl PowerSuspects {
    /// Takes note of a step that has ended. Returns whether something that it left running may still turn the guest off.
    pub(crate) fn note(&mut self, index: usize, step: &PlannedStep, found: &Aftermath) -> bool {
        let is_suspect =
            mentions_power(&step_text(step)) || found.left.iter().any(|left| mentions_power(&left.command));
        if is_suspect {
            self.0.push(index);
        }
        is_suspect && !found.left.is_empty()
    }

    /// Forgets all of them, after a reboot.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the step that has asked, as far as can be known, when the guest goes down during or after `index`.
    pub(crate) fn culprit(&self, index: usize, step: &PlannedStep) -> usize {
        if mentions_power(&step_text(step)) { index } else { self.0.last().copied().unwrap_or(index) }
    }
}

/// Names the step that has asked for it where the guest goes down outside any step.
pub(crate) fn blame_earlier(build: &Build<'_>, suspects: &PowerSuspects, during: &str, failure: Failure) -> Failure {
    let went_down = matches!(failure.fault::<Fate>(), Some(Fate::Rebooted | Fate::PoweredOff));
    match suspects.0.last() {
        Some(index) if went_down => {
            StepError::new(build, *index, How::PowerRequest { during: Some(during.to_owned()) }, Vec::new()).into()
        }
        _ => failure,
    }
}

/// Tells the log what the agent noticed around a command.
pub(crate) fn report(build: &Build<'_>, found: &Aftermath) {
    for late in &found.late {
        let whose = step_title(build, late.step);
        let mut lines = Lines::new(build.secrets.mask());
        let mut emit = |_, line| build.events.notice(Level::Debug, format!("{whose}, after its end: {line}"));
        lines.feed(Channel::Stdout, &late.bytes.0, &mut emit);
        lines.finish(&mut emit);
    }
    if !found.left.is_empty() {
        build.events.notice(Level::Debug, format!("left running: {}", name_processes(build, &found.left)));
    }
    for note in &found.notes {
        build.events.notice(Level::Debug, note.as_str());
    }
}

/// Ends the processes that steps have left behind, so that they do not undo what sealing does.
pub(crate) async fn end_processes(build: &Build<'_>, guest: &mut Guest) -> Result<(), Failure> {
    let late = || GuestError::Overdue(PATIENCE).into();
    let work = guest.session.end_processes();
    let ended = build.limits.hold_guest(&guest.machine, PATIENCE, late, work).await?;
    report(build, &Aftermath { left: Vec::new(), ..ended.clone() });
    if !ended.left.is_empty() {
        let names = name_processes(build, &ended.left);
        build.events.notice(Level::Info, format!("ended what steps had left running: {names}"));
    }
    Ok(())
}

fn name_processes(build: &Build<'_>, processes: &[LeftProcess]) -> String {
    let name = |process: &LeftProcess| {
        // Masked before it is cut, so that no part of a secret is left.
        let command: String = build.secrets.mask().mask_text(&process.command).chars().take(LONGEST).collect();
        format!("`{command}` (process {}, {})", process.pid, step_title(build, process.step))
    };
    processes.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Returns the step by number and name. The number comes from the guest and may be anything.
fn step_title(build: &Build<'_>, number: u32) -> String {
    let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    match index.and_then(|index| build.plan.steps.get(index)) {
        Some(planned) => format!("step {number} `{}`", planned.step.name),
        None => "no step".to_owned(),
    }
}

/// Returns what a step runs: the text of its command or its script.
fn step_text(step: &PlannedStep) -> String {
    match &step.step.action {
        Action::Run { command: Command::Shell(text), .. } => text.clone(),
        Action::Run { command: Command::Argv(argv), .. } => argv.join(" "),
        Action::Script { file, .. } => {
            let is_small = file.metadata().is_ok_and(|facts| facts.len() <= LARGEST_SCRIPT);
            if is_small {
                std::fs::read(file).map_or(String::new(), |text| String::from_utf8_lossy(&text).into())
            } else {
                String::new()
            }
        }
        _ => String::new(),
    }
}

fn mentions_power(text: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric()).any(|word| POWER_WORDS.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_words_turn_a_machine_off() {
        assert!(mentions_power("(sleep 60; /sbin/reboot) &"));
        assert!(mentions_power("systemctl poweroff"));
        assert!(!mentions_power("echo rebooted; touch /var/run/reboots"));
    }
}
