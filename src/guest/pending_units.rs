//! Units that an unfinished boot still waits for, according to systemd's queue of jobs and the console.

use std::fmt;
use std::time::Duration;

use crate::deadline::Deadline;
use crate::machine::RunningMachine;
use crate::session::{Exec, Session};

use super::step_output::append_within;

/// The deadline for the guest's answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The number of units that are named; the others are counted.
const NAMED: usize = 5;
/// The most bytes of the answer that are read.
const LONGEST_ANSWER: usize = 64 << 10;
/// Separates the jobs from the failed units.
const SEPARATOR: &str = "--";
/// A command that lists systemd's jobs, and the units that have failed.
const QUESTION: &str = "systemctl list-jobs --no-legend --no-pager --full 2>/dev/null; echo --
    systemctl list-units --failed --plain --no-legend --no-pager --full 2>/dev/null";
/// The prefix of a unit's description in what systemd writes to the console while it waits for the unit.
const START_JOB: &str = "A start job is running for ";

/// The units of a boot that has not ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnfinishedUnits {
    /// Units whose job is running: what the boot waits for.
    running: Vec<String>,
    /// Units whose job waits for others.
    waiting: Vec<String>,
    /// Units that have failed.
    failed: Vec<String>,
}

impl UnfinishedUnits {
    /// Asks the guest's systemd for unfinished units; returns none for a guest that does not answer.
    pub(crate) async fn ask(session: &mut Session, machine: &RunningMachine, limits: &Deadline) -> Self {
        let exec = Exec { timeout: Some(PATIENCE), ..Exec::new(["sh", "-c", QUESTION]) };
        let mut answer = Vec::new();
        let request =
            async { session.exec(&exec, &mut |_, bytes| append_within(LONGEST_ANSWER, &mut answer, bytes)).await };
        let answered = limits.call_with_grace(machine, PATIENCE, request).await;
        answered.map(|_| Self::parse(&String::from_utf8_lossy(&answer))).unwrap_or_default()
    }

    fn parse(answer: &str) -> Self {
        let mut units = Self::default();
        let mut lines = answer.lines().map(str::trim);
        for line in lines.by_ref().take_while(|line| *line != SEPARATOR) {
            // A line is `JOB UNIT TYPE STATE`.
            if let [_, unit, _, state] = line.split_whitespace().collect::<Vec<_>>()[..] {
                let list = if state == "running" { &mut units.running } else { &mut units.waiting };
                list.push(unit.to_owned());
            }
        }
        units.failed = lines.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect();
        units
    }

    /// Returns whether at least one unit is known that the boot waits for.
    pub(crate) fn is_known(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty()
    }
}

/// Formats the units to follow `did not finish booting`.
impl fmt::Display for UnfinishedUnits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [("still starting", &self.running), ("waiting", &self.waiting), ("failed", &self.failed)];
        for (what, units) in lists {
            if !units.is_empty() {
                write!(f, "; {what}: {}", name_units(units))?;
            }
        }
        Ok(())
    }
}

fn name_units(units: &[String]) -> String {
    let named = units[..units.len().min(NAMED)].join(", ");
    match units.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// Returns the description of the unit that systemd waits for, from the last line of the console that names one.
pub(crate) fn console_start_job(console: &[String]) -> Option<String> {
    let job = console.iter().rev().find_map(|line| line.split_once(START_JOB))?.1;
    let name = job.rsplit_once(" (").map_or(job, |(name, _)| name).trim();
    Some(name.trim_end_matches(['.', '\u{2026}']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_units_that_a_boot_waits_for_are_named() {
        let answer = "  145 wait-for-cloud.service              start running\n\
                      2 multi-user.target  start waiting\n  1 graphical.target start waiting\n\
                      --\nssh.service loaded failed failed OpenBSD Secure Shell server\n";
        let units = UnfinishedUnits::parse(answer);
        assert_eq!(
            units.to_string(),
            "; still starting: wait-for-cloud.service; waiting: multi-user.target, graphical.target; failed: ssh.service"
        );
        assert!(units.is_known());
        let many = (0..9).map(|n| format!("{n} u{n}.service start running\n")).collect::<String>();
        assert_eq!(
            UnfinishedUnits::parse(&many).to_string(),
            "; still starting: u0.service, u1.service, u2.service, \
             u3.service, u4.service and 4 more"
        );
        assert_eq!(UnfinishedUnits::parse("No jobs running.\n--\n"), UnfinishedUnits::default());
    }

    #[test]
    fn the_console_names_a_start_job() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let console = lines(&[
            "[  OK  ] Started a.",
            "[***   ] A start job is running for Waits for a cloud (1min 2s / no limit)",
            "[ ***  ] A start job is running for dev-disk-by\\x2dlabel-x.device (5s / 1min 30s)",
        ]);
        assert_eq!(console_start_job(&console).as_deref(), Some("dev-disk-by\\x2dlabel-x.device"));
        assert_eq!(console_start_job(&console[..2]).as_deref(), Some("Waits for a cloud"));
        assert_eq!(console_start_job(&console[..1]), None);
    }
}
