//! Steps that may have asked for a reboot or power-off of the guest that comes later.

use crate::plan::PlannedStep;
use crate::session::Aftermath;
use crate::specfile::{Action, Command};
use crate::wire::power_words::mentions_power;

/// The size of the largest script that is searched for words of such commands, bytes.
const LARGEST_SCRIPT: u64 = 1 << 20;

/// Steps since the last boot that may have asked for a reboot or power-off that comes later.
#[derive(Debug, Default)]
pub(crate) struct PowerSuspects(Vec<usize>);

impl PowerSuspects {
    /// Records a step that has ended. Returns whether a process that it left running may still turn the guest off.
    pub(crate) fn note(&mut self, index: usize, step: &PlannedStep, found: &Aftermath) -> bool {
        let is_suspect =
            mentions_power(&step_text(step)) || found.left.iter().any(|left| mentions_power(&left.command));
        if is_suspect {
            self.0.push(index);
        }
        is_suspect && !found.left.is_empty()
    }

    /// Forgets all steps, after a reboot.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the last of these steps.
    pub(crate) fn last(&self) -> Option<usize> {
        self.0.last().copied()
    }

    /// Returns the step that has most probably asked for it when the guest goes down during or after `index`.
    pub(crate) fn culprit(&self, index: usize, step: &PlannedStep) -> usize {
        if mentions_power(&step_text(step)) { index } else { self.last().unwrap_or(index) }
    }
}

/// Returns the string of what a step runs: its command or its script.
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
