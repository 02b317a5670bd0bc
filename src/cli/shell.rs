//! `kiln shell`: opens a terminal in the guest, in its state before or after a step.

use tokio_util::sync::CancellationToken;

use crate::error::{Failure, Fault, Kind};
use crate::specfile::{Spec, StepSpec};
use crate::{scheduler, shell};

use super::args::{self, GlobalArgs};
use super::configuration::allowed_variables;
use super::folders::Folders;

/// The requested step does not exist.
#[derive(Debug, thiserror::Error)]
#[error("the spec has no step `{wanted}`")]
pub struct UnknownStepError {
    wanted: String,
    /// The existing steps.
    steps: Vec<String>,
}

impl Fault for UnknownStepError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match &self.steps[..] {
            [] => vec!["it has no steps at all".into()],
            steps => vec![format!("its steps are {}", steps.join(", "))],
        }
    }
}

/// Opens the shell and returns its exit code.
///
/// # Errors
/// When the guest cannot reach the state in which the shell should open.
pub async fn run(
    args: args::ShellArgs,
    global: &GlobalArgs,
    folders: &Folders,
    cancel: CancellationToken,
) -> Result<u8, Failure> {
    let reach = args.reading.reach();
    let spec = Spec::load(&args.spec, reach.files, &args.reading.overrides(None))?;
    allowed_variables(&args.reading)?.check(&spec)?;
    let steps = match (&args.at, &args.after) {
        (Some(step), _) => find(&spec.steps, step)?,
        (None, Some(step)) => find(&spec.steps, step)? + 1,
        (None, None) => spec.steps.len(),
    };
    let around = super::build::surroundings(folders, super::events(global), cancel.clone())?;
    let bases = folders.bases(args.sources, reach.files, &around.events, cancel)?;
    let (plan, _held) = scheduler::plan(spec, &bases, reach).await?;
    shell::shell(&plan, steps, &around).await
}

/// Returns the index of a step, by its name or by its number from 1. Names are unique.
fn find(steps: &[StepSpec], wanted: &str) -> Result<usize, UnknownStepError> {
    let named = steps.iter().position(|step| step.name == wanted);
    let number = || wanted.parse().ok().filter(|number| (1..=steps.len()).contains(number));
    named.or_else(|| number().map(|number| number - 1)).ok_or_else(|| {
        let steps = steps.iter().zip(1..).map(|(step, number)| format!("{number} `{}`", step.name)).collect();
        UnknownStepError { wanted: wanted.to_owned(), steps }
    })
}
