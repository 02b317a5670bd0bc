//! Failures of steps.

use std::path::PathBuf;
use std::time::Duration;

use crate::context::BuildContext;
use crate::error::{Failure, Fault, Kind};
use crate::machine::MachineExit;
use crate::plan::Plan;
use crate::plan::machine::PlannedMachine;
use crate::process::describe_signal;
use crate::size::format_duration;

use super::hints;

/// The failure of a step.
#[derive(Debug, thiserror::Error)]
#[error("step {number} `{name}` ({}:{line}) {how}", spec.display())]
pub struct StepError {
    /// Position of the step in the spec, from 1.
    pub number: usize,
    /// Name of the step.
    pub name: String,
    /// Path of the spec file.
    pub spec: PathBuf,
    /// Line of the step in the spec file.
    pub line: usize,
    /// The kind of failure.
    pub how: StepFailure,
    /// The last lines that the step wrote.
    pub tail: Vec<String>,
    /// A hint on how to fix it, as far as the output allows.
    pub hint: Option<String>,
}

/// The kind of a step's failure.
#[derive(Debug, thiserror::Error)]
pub enum StepFailure {
    /// The command ended with another status than 0.
    #[error("failed with exit status {0}")]
    Status(u8),
    /// The command was killed by a signal.
    #[error("was killed by {}", describe_signal((*.0).into()))]
    Signal(u8),
    /// The command could not be started.
    #[error("could not be started: {0}")]
    NotStarted(String),
    /// The step took longer than its timeout.
    #[error("took longer than {} (`timeout`)", format_duration(*.0))]
    TimedOut(Duration),
    /// The machine ended while the step ran.
    #[error("ended with the machine: {0}")]
    Machine(MachineExit),
    /// A copy, write or fetch failed.
    #[error("failed: {0}")]
    Transfer(Failure),
    /// The kernel killed processes of the step, or of the guest meanwhile, because memory ran out.
    #[error("{}", describe_oom(*exit, killed))]
    OutOfMemory {
        /// The exit status, or `None` where the step's own process was killed.
        exit: Option<u8>,
        /// The processes that the kernel killed.
        killed: Vec<String>,
    },
    /// The agent would not start again after the reboot.
    #[error("cannot be done: {0}, so cloud-init would not start kiln's agent again")]
    NoWayBack(String),
    /// The agent ended while the guest kept running.
    #[error("ended kiln's agent, which runs the steps")]
    AgentEnded,
    /// The step asked the guest to reboot or to power off, and did not wait for that.
    #[error("asked for a reboot or power-off of the guest{}", describe_later(during.as_deref()))]
    PowerRequest {
        /// What was running when the guest went down, where that was something else.
        during: Option<String>,
    },
}

fn describe_oom(exit: Option<u8>, killed: &[String]) -> String {
    let names = killed.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match exit {
        None => format!("was killed by the kernel's OOM killer, which chose {names}"),
        Some(code) => format!("failed with exit status {code}: {names} was killed by the kernel's OOM killer"),
    }
}

fn describe_later(during: Option<&str>) -> String {
    during.map_or(String::new(), |during| format!(", as far as its text tells; it came during {during}"))
}

/// Formats the number and the name of a step; returns `None` if the plan has no such step.
pub(crate) fn step_title(plan: &Plan, index: usize) -> Option<String> {
    let name = &plan.steps.get(index)?.step.name;
    Some(format!("step {} `{name}`", index + 1))
}

impl StepError {
    /// Creates the error for a step of a build.
    pub(crate) fn new(build: &BuildContext<'_>, index: usize, how: StepFailure, tail: Vec<String>) -> Self {
        let step = &build.plan.steps[index].step;
        let spec = build.plan.spec.path.clone();
        Self { number: index + 1, name: step.name.clone(), spec, line: step.line, how, tail, hint: None }
    }

    /// Adds a hint on how to fix it, if these lines of its output allow one.
    pub(crate) fn with_hint(self, lines: &[String], machine: &PlannedMachine) -> Self {
        Self { hint: hints::hint(lines, machine), ..self }
    }
}

impl Fault for StepError {
    fn kind(&self) -> Kind {
        match &self.how {
            StepFailure::Machine(MachineExit::PoweredOff | MachineExit::Panicked | MachineExit::Rebooted) => Kind::Step,
            StepFailure::Machine(fate) => fate.kind(),
            StepFailure::Transfer(failure) => failure.kind(),
            _ => Kind::Step,
        }
    }

    fn hints(&self) -> Vec<String> {
        match &self.how {
            StepFailure::Machine(fate) => fate.hints(),
            StepFailure::Transfer(failure) => failure.hints(),
            StepFailure::NoWayBack(_) => vec![
                "leave `agent` out of [machine], so that kiln plants its agent; or reboot before that step".into(),
            ],
            StepFailure::TimedOut(_) => {
                self.hint.iter().cloned().chain(["give the step a larger `timeout`".to_owned()]).collect()
            }
            StepFailure::OutOfMemory { .. } => vec!["give the guest more memory: set `machine.memory`".into()],
            StepFailure::PowerRequest { .. } => vec![
                "write `reboot = true` as a step of its own where a reboot is wanted".into(),
                "a build turns the guest off by itself at its end".into(),
            ],
            StepFailure::AgentEnded => vec![
                "no step may end all processes (`kill -9 -1`), stop `kiln-agent.service` or shut the guest down: end \
                 processes by their name or user, and write `reboot = true` as a step of its own where a reboot is wanted"
                    .into(),
            ],
            StepFailure::Status(_) | StepFailure::Signal(_) | StepFailure::NotStarted(_) => self.hint.iter().cloned().collect(),
        }
    }

    fn evidence(&self) -> Vec<String> {
        self.tail.clone()
    }
}
