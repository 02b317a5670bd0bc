//! Variables of the host's environment that steps ask for with `env-from-host`. Their values are no secrets: they become part
//! of the steps' environments, and so of their keys.

use std::env;

use crate::error::{Fault, Kind};
use crate::masking::is_secret_name;
use crate::specfile::{Action, Spec, variable_too_long};

/// A variable that a step asks for and does not get.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the environment variable {name} {problem}")]
pub(crate) struct HostVariableError {
    /// Line of the step in the spec.
    pub(crate) line: usize,
    /// Name of the variable.
    pub(crate) name: String,
    problem: HostVariableProblem,
}

/// The reason why a step does not get a variable.
#[derive(Debug, Clone, thiserror::Error)]
enum HostVariableProblem {
    /// The user has not allowed specs to read it.
    #[error("must not be read by specs")]
    NotAllowed,
    /// It is not set.
    #[error("is not set")]
    Unset,
    /// Its value is not UTF-8.
    #[error("has a value that is not UTF-8")]
    NotText,
    /// Its value is too long for a program.
    #[error("cannot be passed to a program: {0}")]
    TooLong(String),
}

impl Fault for HostVariableError {
    fn kind(&self) -> Kind {
        Kind::Spec
    }

    fn hints(&self) -> Vec<String> {
        let name = &self.name;
        match &self.problem {
            HostVariableProblem::NotAllowed => vec![
                format!("if the spec may put its value into an image, allow it with --host-env {name}"),
                format!("or for every spec, with `host-env = [\"{name}\"]` in ~/.config/kiln/config.toml"),
            ],
            HostVariableProblem::Unset => {
                vec![format!("set it, or give the step a value with `env = {{ {name} = \"...\" }}`")]
            }
            HostVariableProblem::NotText | HostVariableProblem::TooLong(_) => Vec::new(),
        }
    }
}

/// Returns errors for the variables that the steps of a spec ask for, and that specs must not read.
pub(crate) fn find_refused(spec: &Spec, is_allowed: impl Fn(&str) -> bool) -> Vec<HostVariableError> {
    let refused = asked(spec).filter(|(_, name)| !is_allowed(name));
    let problem = HostVariableProblem::NotAllowed;
    refused.map(|(line, name)| HostVariableError { line, name: name.to_owned(), problem: problem.clone() }).collect()
}

/// Returns warnings about variables whose names look like those of secrets.
pub(crate) fn find_suspicious(spec: &Spec) -> Vec<String> {
    let suspicious = asked(spec).filter(|(_, name)| is_secret_name(name));
    let warnings = suspicious.map(|(line, name)| {
        let place = format!("{}:{line}", spec.path.display());
        format!(
            "{place}: {name} of `env-from-host` looks like a secret, and its value would be in cache keys and maybe in the \
             image; give it to the step by [secrets] instead"
        )
    });
    warnings.collect()
}

/// Returns the variables that steps ask for, with the lines of the steps.
fn asked(spec: &Spec) -> impl Iterator<Item = (usize, &str)> {
    spec.steps.iter().flat_map(|step| {
        let names = step.action.context().into_iter().flat_map(|context| &context.env_from_host);
        names.map(|name| (step.line, name.as_str()))
    })
}

/// Puts the variables that steps ask for into the steps' environments.
pub(crate) fn resolve(spec: &mut Spec) -> Vec<HostVariableError> {
    let mut errors = Vec::new();
    for step in &mut spec.steps {
        let (Action::Run { context, .. } | Action::Script { context, .. }) = &mut step.action else { continue };
        for name in context.env_from_host.clone() {
            match read(&name) {
                Ok(value) => drop(context.env.insert(name, value)),
                Err(problem) => errors.push(HostVariableError { line: step.line, name, problem }),
            }
        }
    }
    errors
}

fn read(name: &str) -> Result<String, HostVariableProblem> {
    let value = env::var_os(name).ok_or(HostVariableProblem::Unset)?;
    let value = value.into_string().map_err(|_| HostVariableProblem::NotText)?;
    match variable_too_long(name, &value) {
        Some(why) => Err(HostVariableProblem::TooLong(why)),
        None => Ok(value),
    }
}
