//! Errors in the files that a spec names, or in its keys for this base image and host: all of them at once, each with its
//! place in the spec.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use crate::error::{Failure, Fault, Kind};
use crate::plan::PlanError;
use crate::plan::host_paths::PathOwner;
use crate::project::FileReach;
use crate::specfile::{
    Action, BaseSource, SecretSource, Spec, SpecDocument, SpecError, SpecErrors, SpecFile, StepSpec, resolve_path,
};

use super::conditions::UnknownSystemError;
use super::host_variables::HostVariableError;
use super::kernel_error::BaseKernelError;

/// All errors in the base image and the inputs of a spec, or in its keys for them; never empty.
#[derive(Debug)]
pub struct SourceErrors {
    kind: Kind,
    /// The errors with their places.
    pub errors: Box<SpecErrors>,
    evidence: Vec<String>,
}

/// Stands for the base image as a whole.
const BASE: ProblemSubject = ProblemSubject::Path(PathOwner::Base("file"));

/// The part of a spec that a problem is about.
enum ProblemSubject {
    Path(PathOwner),
    /// A key of `[machine]`.
    MachineKey(&'static str),
    /// This string in the step on this line.
    StepString(usize, String),
}

/// One problem with a base image or an input.
pub(crate) struct SourceProblem {
    kind: Kind,
    subject: ProblemSubject,
    message: String,
    hints: Vec<String>,
    evidence: Vec<String>,
}

impl From<&PlanError> for SourceProblem {
    fn from(error: &PlanError) -> Self {
        let subject = ProblemSubject::MachineKey(match error {
            PlanError::KvmUnusable(_) => "accel",
            PlanError::NoFirmware => "firmware",
            PlanError::NoCloudInit { .. } => "agent",
            PlanError::TooLarge { .. } | PlanError::DiskTooSmall { .. } | PlanError::Size(_) => "disk",
        });
        Self { kind: error.kind(), subject, message: error.to_string(), hints: error.hints(), evidence: Vec::new() }
    }
}

impl From<&UnknownSystemError> for SourceProblem {
    fn from(error: &UnknownSystemError) -> Self {
        let subject = ProblemSubject::StepString(error.line, error.when.clone());
        Self { kind: error.kind(), subject, message: error.to_string(), hints: error.hints(), evidence: Vec::new() }
    }
}

impl From<&HostVariableError> for SourceProblem {
    fn from(error: &HostVariableError) -> Self {
        let subject = ProblemSubject::StepString(error.line, error.name.clone());
        Self { kind: error.kind(), subject, message: error.to_string(), hints: error.hints(), evidence: Vec::new() }
    }
}

impl SourceProblem {
    /// Describes an error of a subject of the spec as a problem.
    pub(crate) fn new(subject: PathOwner, error: &impl Fault, message: String) -> Self {
        let subject = ProblemSubject::Path(subject);
        Self { kind: error.kind(), subject, message, hints: error.hints(), evidence: Vec::new() }
    }

    /// Returns a problem of the base image.
    pub(crate) fn of_base(failure: &Failure) -> Self {
        let kernel = failure.fault().map(BaseKernelError::key);
        Self {
            kind: failure.kind(),
            subject: kernel.map_or(BASE, |key| ProblemSubject::Path(PathOwner::Base(key))),
            message: failure.to_string(),
            hints: failure.hints(),
            evidence: failure.evidence(),
        }
    }
}

impl SourceErrors {
    /// Finds each problem's place in the spec; without problems there is no error.
    ///
    /// # Errors
    /// When there are problems.
    pub(crate) fn check(spec: &Spec, reach: FileReach, problems: Vec<SourceProblem>) -> Result<(), Self> {
        // An error in the spec takes precedence over one in its base image, whose exit code is greater.
        let Some(kind) = problems.iter().map(|problem| problem.kind).min() else { return Ok(()) };
        // The spec was read a moment ago; without its text the problems have no places.
        let file = SpecFile::read(&spec.path, reach).ok();
        let document = SpecDocument::new(&spec.path, file.as_ref().map_or("", SpecFile::text));
        let evidence = problems.iter().flat_map(|problem| problem.evidence.clone()).collect();
        let located = problems.into_iter().map(|problem| {
            let span = find_place(spec, &document, &problem.subject);
            let help = (!problem.hints.is_empty()).then(|| problem.hints.join("; "));
            SpecError::located(span, &problem.message).maybe_help(help)
        });
        let errors = located.collect();
        Err(Self { kind, errors: Box::new(SpecErrors::new(document, errors)), evidence })
    }
}

/// Returns the place of the string that names the subject; where there is none, as for a value with a variable, that of its
/// line.
fn find_place(spec: &Spec, document: &SpecDocument, subject: &ProblemSubject) -> Option<Range<usize>> {
    let owner = match subject {
        ProblemSubject::MachineKey(key) => return document.find_value(spec.variant.as_deref(), ["machine", key]),
        ProblemSubject::StepString(line, string) => {
            let named = document.find_string(*line, |text| text == string);
            return named.or_else(|| document.trimmed_line(*line));
        }
        ProblemSubject::Path(owner) => owner,
    };
    match owner {
        PathOwner::Base(key) => document
            .find_string(1, |text| names_base(spec, key, text))
            .or_else(|| document.find_line(|line| line == "[base]" || line.starts_with("base"))),
        PathOwner::Secret(name) => {
            let secret = spec.secrets.get(name)?;
            let named = document.find_string(secret.line, |text| match &secret.source {
                SecretSource::File(path) => is_path(spec, text, path),
                SecretSource::Env(variable) => text == variable,
            });
            named.or_else(|| document.trimmed_line(secret.line))
        }
        PathOwner::Step(line) => {
            let path = spec.steps.iter().find(|step| step.line == *line).and_then(step_path);
            let named = path.and_then(|path| document.find_string(*line, |text| is_path(spec, text, path)));
            named.or_else(|| document.trimmed_line(*line))
        }
    }
}

fn is_path(spec: &Spec, text: &str, path: &Path) -> bool {
    resolve_path(&spec.path, Path::new(text)) == path
}

/// Returns whether a string of the spec names the file of a key of `[base]`, or else the base image.
fn names_base(spec: &Spec, key: &str, text: &str) -> bool {
    let resolved = resolve_path(&spec.path, Path::new(text));
    match (key, &spec.base.kernel) {
        ("kernel", Some(kernel)) => return resolved == kernel.file,
        ("initrd", Some(kernel)) => return kernel.initrd.as_ref() == Some(&resolved),
        _ => {}
    }
    match &spec.base.source {
        BaseSource::File(file) => resolved == *file,
        BaseSource::Url(remote) => remote.urls.iter().any(|url| url.as_str() == text),
        BaseSource::Image(image) => image == text,
        BaseSource::Spec { file, .. } => resolved == *file || resolved.join("kiln.toml") == *file,
    }
}

fn step_path(step: &StepSpec) -> Option<&Path> {
    match &step.action {
        Action::Script { file, .. } => Some(file),
        Action::Copy(copy) => Some(&copy.from),
        _ => None,
    }
}

/// Formats the only error with its place, or the number of errors.
impl fmt::Display for SourceErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.errors.lines()[..] {
            [only] => f.write_str(only),
            _ => self.errors.fmt(f),
        }
    }
}

impl std::error::Error for SourceErrors {}

impl Fault for SourceErrors {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn hints(&self) -> Vec<String> {
        self.errors.errors.iter().filter_map(|error| error.help.clone()).collect()
    }

    fn evidence(&self) -> Vec<String> {
        self.evidence.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::specfile::Overrides;

    fn places(text: &str, subject: &ProblemSubject) -> Option<(usize, String)> {
        let path = Path::new("/project/kiln.toml");
        let text = format!("[image]\nname = 'a'\nversion = '1'\n{text}");
        let spec = Spec::parse(path, &text, &Overrides::default()).unwrap();
        let document = SpecDocument::new(path, &text);
        let span = find_place(&spec, &document, subject)?;
        Some((document.line(span.start), text[span].to_owned()))
    }

    #[test]
    fn a_problem_is_located_by_what_names_it() {
        let spec = "[base] # 'x'\nfile = \"b.qcow2\"\n[[step]]\nrun = 'true'\n[[step]]\nname = \"it's\"\ncopy = 'site/'\nto = '/srv'\n";
        assert_eq!(places(spec, &BASE), Some((5, "\"b.qcow2\"".into())));
        let kernel = "[base]\nfile = 'x'\nkernel = 'vmlinux'\ninitrd = 'i'\n";
        let of_key = |key| places(kernel, &ProblemSubject::Path(PathOwner::Base(key)));
        assert_eq!(of_key("kernel"), Some((6, "'vmlinux'".into())));
        assert_eq!(of_key("initrd"), Some((7, "'i'".into())));
        assert_eq!(places(spec, &ProblemSubject::Path(PathOwner::Step(8))), Some((10, "'site/'".into())));
        let variable = "[base]\nfile = \"{{ b }}\"\n[vars]\nb = 'x'\n[[step]]\ncopy = '{{ b }}'\nto = '/srv/'\n";
        assert_eq!(places(variable, &BASE), Some((7, "'x'".into())), "the value of the variable");
        assert_eq!(places(variable, &ProblemSubject::Path(PathOwner::Step(8))), Some((8, "[[step]]".into())));
    }
}
