//! Decides which steps of a spec are part of its build: those whose conditions hold for its base image. These get the variables
//! of the host that they ask for.

use std::path::{Path, PathBuf};

use crate::disk::chain::open_files;
use crate::disk::os_release::{self, OsRelease};
use crate::disk::tree::Tree;
use crate::error::{Fault, Kind};
use crate::plan::SkippedStep;
use crate::specfile::{BaseSystem, Condition, DiskFormat, Spec, UnknownSystem};

use super::host_variables::{self, HostVariableError};

/// The system of a base image cannot be told, and a step has a condition about it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the condition is about the system of the base image {}, and {why}", base.display())]
pub(crate) struct UnknownSystemError {
    /// Line of the step in the spec.
    pub(crate) line: usize,
    /// The condition.
    pub(crate) when: String,
    base: PathBuf,
    why: String,
}

impl Fault for UnknownSystemError {
    fn kind(&self) -> Kind {
        Kind::Base
    }

    fn hints(&self) -> Vec<String> {
        vec!["use a variable in the condition, such as `vars.os`, which `[vars]` and --var set".into()]
    }
}

/// A spec with only the steps that are part of its build.
pub(crate) struct SelectedSteps {
    pub(crate) spec: Spec,
    pub(crate) skipped: Vec<SkippedStep>,
    /// The conditions that cannot be evaluated; their steps are kept.
    pub(crate) errors: Vec<UnknownSystemError>,
    /// The variables of the host that the steps do not get.
    pub(crate) variables: Vec<HostVariableError>,
}

impl SelectedSteps {
    /// Selects the steps of a spec whose base image is this file.
    pub(crate) fn for_base(spec: &Spec, (base, format): (&Path, DiskFormat)) -> Self {
        let is_needed = spec.steps.iter().filter_map(|step| step.when.as_ref()).any(Condition::needs_base);
        let system = if is_needed { read_system(base, format) } else { Err(String::new()) };
        let mut selected = select(spec, system.as_ref().ok());
        for error in &mut selected.errors {
            base.clone_into(&mut error.base);
            error.why = system.as_ref().err().cloned().unwrap_or_default();
        }
        selected
    }

    /// Selects the steps of a spec whose base image is not known. Steps with a condition about it are kept.
    pub(crate) fn without_base(spec: &Spec) -> Self {
        Self { errors: Vec::new(), ..select(spec, None) }
    }
}

fn select(spec: &Spec, system: Option<&BaseSystem>) -> SelectedSteps {
    let mut steps = Vec::new();
    let mut skipped = Vec::new();
    let mut errors = Vec::new();
    for step in &spec.steps {
        let Some(when) = &step.when else {
            steps.push(step.clone());
            continue;
        };
        match when.holds(spec, system) {
            Ok(false) => skipped.push(SkippedStep {
                position: steps.len(),
                name: step.name.clone(),
                verb: step.action.key(),
                line: step.line,
                when: when.clone(),
            }),
            Ok(true) => steps.push(step.clone()),
            Err(UnknownSystem) => {
                let (base, why) = (PathBuf::new(), String::new());
                errors.push(UnknownSystemError { line: step.line, when: when.to_string(), base, why });
                steps.push(step.clone());
            }
        }
    }
    let mut spec = Spec { steps, ..spec.clone() };
    let variables = host_variables::resolve(&mut spec);
    SelectedSteps { spec, skipped, errors, variables }
}

/// Reads the system of an image from its disk, or returns the reason why that is not possible.
fn read_system(base: &Path, format: DiskFormat) -> Result<BaseSystem, String> {
    let chain = open_files(vec![(base.to_owned(), format)]).map_err(|error| format!("it cannot be opened: {error}"))?;
    let tree = Tree::open(&chain).map_err(|error| format!("kiln cannot read its file systems: {error}"))?;
    let found = os_release::os(&tree).map_err(|error| format!("its /etc/os-release cannot be read: {error}"))?;
    let OsRelease { id, version, codename, mut like, .. } =
        found.ok_or("it has no /etc/os-release that kiln can read")?;
    if !like.contains(&id) {
        like.push(id.clone());
    }
    Ok(BaseSystem { os: id, version, codename, like })
}
