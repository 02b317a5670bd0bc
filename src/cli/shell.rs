//! `kiln shell`: opens a terminal in the guest, in its state before or after a step, or in a clone of an image.

use std::path::Path;

use clap::Args;

use crate::error::{Failure, Fault, Kind};
use crate::event::Events;
use crate::specfile::{Spec, StepSpec};
use crate::test::visit::visit;
use crate::{scheduler, shell};

use super::args::{SourceArgs, SpecArgs};
use super::configuration::allowed_variables;
use super::{CommandContext, target, terminal};

/// Arguments of `kiln shell`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln shell images/nginx --at 3\n  kiln shell web@1.4.0\n  \
        echo 'dpkg -l' | kiln shell images/nginx\n\n\
        Steps that are not in the cache are run first. For an image, a throw-away clone is booted. Changes that \
        are made in the shell are discarded. kiln exits with the shell's exit code. Press Ctrl-] three times within \
        a second to end a shell that hangs.")]
pub struct ShellArgs {
    /// Spec file, folder with a kiln.toml, or image: `name`, `name@version` or `name@tag`
    #[arg(value_name = "SPEC|IMAGE")]
    pub target: String,
    /// Open the shell before this step, given by its number or name
    #[arg(long, value_name = "STEP", conflicts_with = "after")]
    pub at: Option<String>,
    /// Open the shell after this step [default: the last one]
    #[arg(long, value_name = "STEP")]
    pub after: Option<String>,
    /// Options for reading specs.
    #[command(flatten)]
    pub reading: SpecArgs,
    /// Options for where base images may come from.
    #[command(flatten)]
    pub sources: SourceArgs,
}

/// A step was named for an image, whose steps are over.
#[derive(Debug, thiserror::Error)]
#[error("`{target}` is an image, and {option} names a step of a spec")]
pub struct StepOfImageError {
    target: String,
    option: &'static str,
}

impl Fault for StepOfImageError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        vec![format!("name the spec file or its folder, as in `kiln shell ./{} {} 2`", self.target, self.option)]
    }
}

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
pub(super) async fn run(args: ShellArgs, context: CommandContext<'_>) -> Result<u8, Failure> {
    let events = context.events();
    if !target::is_spec(&args.target) {
        return run_in_clone(args, context, events).await;
    }
    target::tell_which_is_meant(&args.target, &context.folders.store()?, &events);
    let reach = args.reading.reach();
    let spec = Spec::load(Path::new(&args.target), reach.files, &args.reading.overrides(None))?;
    allowed_variables(&args.reading)?.check(&spec)?;
    let around = super::build::surroundings(&context, args.sources, events)?;
    let bases = context.bases(args.sources, reach.files, &around.events)?;
    let (plan, _held) = scheduler::plan(spec, &bases, reach).await?;
    // Steps are numbered without those that are skipped.
    let planned = &plan.spec.steps;
    let steps = match (&args.at, &args.after) {
        (Some(step), _) => find(planned, step)?,
        (None, Some(step)) => find(planned, step)? + 1,
        (None, None) => planned.len(),
    };
    shell::shell(&plan, steps, &around).await
}

/// Opens a shell in a throw-away clone of an image.
async fn run_in_clone(args: ShellArgs, context: CommandContext<'_>, events: Events) -> Result<u8, Failure> {
    let step = args.at.map(|_| "--at").or(args.after.map(|_| "--after"));
    if let Some(option) = step {
        return Err(StepOfImageError { target: args.target, option }.into());
    }
    let artifact = context.folders.store()?.artifact(&args.target.parse()?)?;
    let reach = args.reading.reach().network;
    visit(&artifact, &context.folders.cache()?, reach, &events, context.cancel, terminal::attach).await
}

/// Returns the index of a step, by its name or by its number from 1. Names are unique.
fn find(steps: &[StepSpec], wanted: &str) -> Result<usize, UnknownStepError> {
    let named = steps.iter().position(|step| step.name == wanted);
    let numbered = wanted.parse().ok().and_then(|number: usize| number.checked_sub(1));
    let numbered = numbered.filter(|index| *index < steps.len());
    named.or(numbered).ok_or_else(|| {
        let steps = steps.iter().zip(1..).map(|(step, number)| format!("{number} `{}`", step.name)).collect();
        UnknownStepError { wanted: wanted.to_owned(), steps }
    })
}
