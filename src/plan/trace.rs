//! The parts that the keys of a plan were computed from, so that the next plan can report which input changed.
//!
//! Parts are kept as digests: a trace shows that a variable changed, never its value.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::digest::Sha256Digest;
use crate::specfile::Action;

use super::key::SCHEME;
use super::{Plan, reads_secret};

/// Digests by the path of the part, such as `do.context.env.SITE`.
pub type Parts = BTreeMap<String, String>;

/// The parts of a whole plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Version of the hashed form: keys of another version cannot be compared.
    #[serde(default)]
    scheme: String,
    base: Parts,
    steps: Vec<TracedStep>,
    /// The number of steps that the build finished; `None` for a build that is running, or was killed.
    #[serde(default)]
    finished: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TracedStep {
    name: String,
    parts: Parts,
}

/// An input of an image that has changed since its last build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangedInput {
    /// The base image.
    Base,
    /// The base image is no longer available, for this reason.
    BaseLost(String),
    /// Any other input, in the words of a spec.
    Other(String),
}

impl std::fmt::Display for ChangedInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ChangedInput::Base => f.write_str("the base image"),
            ChangedInput::BaseLost(reason) => write!(f, "the base image: {reason}"),
            ChangedInput::Other(words) => f.write_str(words),
        }
    }
}

impl Serialize for ChangedInput {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Lists changed inputs with commas between them.
pub fn list_inputs(inputs: &[ChangedInput]) -> String {
    inputs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The reason why a step runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunReason {
    /// These inputs have changed since the last build.
    Changed(Vec<ChangedInput>),
    /// The step did not exist in the last build.
    New,
    /// A step before it has changed, given by its number, from 1; 0 is the machine.
    After(usize),
    /// The spec disables the cache for it.
    Uncached,
    /// The step is unchanged, but the cache has no layer of it.
    NoLayer,
    /// The step is unchanged, but the last build ended before it.
    NotReached,
    /// The step is unchanged, but the step of this number, from 1, reads a secret, and there was no reboot since.
    AfterSecret(usize),
    /// The cache has a layer of the step, from which the build does not continue.
    Unused(UnusedLayer),
    /// The keys of the last build have another version of the hashed form.
    OtherScheme,
    /// No earlier build is recorded.
    NeverBuilt,
}

/// The reason why a build does not continue from a layer that is in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnusedLayer {
    /// Continuing from an earlier layer takes less time than booting this one's disk.
    Slower,
    /// The layer has no memory, and no reboot comes before it: what the guest had in memory alone would be missing.
    WithoutMemory,
    /// The memory of the layer is that of another machine.
    OtherMachine,
    /// The layer lies on too many others for QEMU to open it in a short time.
    Deep,
    /// The layer cannot be read, or has changed.
    Damaged,
}

impl std::fmt::Display for UnusedLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Slower => "in the cache, but running it again is faster than booting its disk",
            Self::WithoutMemory => "in the cache without the guest's memory, which the next step may need",
            Self::OtherMachine => "in the cache with the memory of another QEMU, processor or firmware",
            Self::Deep => "in the cache on too many layers",
            Self::Damaged => "damaged in the cache",
        })
    }
}

impl std::fmt::Display for RunReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RunReason::Changed(inputs) => write!(f, "{} changed", list_inputs(inputs)),
            RunReason::New => write!(f, "new"),
            RunReason::After(0) => write!(f, "the machine or its base is another"),
            RunReason::After(step) => write!(f, "comes after step {step}"),
            RunReason::Uncached => write!(f, "`cache = false`"),
            RunReason::NoLayer => write!(f, "not in the cache"),
            RunReason::NotReached => write!(f, "not built yet: the last build ended before this step"),
            RunReason::AfterSecret(step) => {
                write!(f, "nothing is kept after step {step}, which reads a secret, until a `reboot` step")
            }
            RunReason::Unused(why) => write!(f, "{why}"),
            RunReason::OtherScheme => write!(f, "built last by a version of kiln whose cache keys are made otherwise"),
            RunReason::NeverBuilt => write!(f, "not built before"),
        }
    }
}

/// Returns the digests of the parts of a value that goes into a key.
pub fn parts(content: &Value) -> Parts {
    let mut parts = Parts::new();
    flatten(content, "", &mut parts);
    parts
}

fn flatten(content: &Value, path: &str, parts: &mut Parts) {
    match content {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(value, &path, parts);
            }
        }
        Value::Null => {}
        leaf => {
            parts.insert(path.to_owned(), format!("{:.16}", Sha256Digest::of(leaf.to_string())));
        }
    }
}

impl Trace {
    /// Returns the trace of a plan.
    pub fn of(plan: &Plan) -> Self {
        let steps = plan
            .steps
            .iter()
            .map(|planned| TracedStep { name: planned.step.name.clone(), parts: planned.parts.clone() });
        Self { scheme: SCHEME.to_owned(), base: plan.base_parts.clone(), steps: steps.collect(), finished: None }
    }

    /// Records how many of the steps a build finished.
    pub fn with_finished(self, steps: usize) -> Self {
        Self { finished: Some(steps), ..self }
    }

    /// Returns the changes of the machine and its base image since `last`.
    pub fn base_changes(&self, last: &Trace) -> Vec<ChangedInput> {
        if self.scheme != last.scheme {
            return vec![ChangedInput::Other("how cache keys are made".to_owned())];
        }
        differences(&self.base, &last.base)
    }

    /// Returns the reason for each step after the first `cached` ones. `unused` has the layers of steps that are in the
    /// cache nevertheless, by the step's number, from 1.
    pub fn reasons(
        &self,
        plan: &Plan,
        cached: usize,
        unused: &BTreeMap<usize, UnusedLayer>,
        last: Option<&Trace>,
    ) -> Vec<Option<RunReason>> {
        let unknown = if last.is_some() { RunReason::OtherScheme } else { RunReason::NeverBuilt };
        let last = last.filter(|last| last.scheme == self.scheme);
        let mut uncached = false;
        let mut secret = None;
        // The first thing that has changed: everything after it runs for that reason.
        let mut first = last.is_some_and(|last| self.base != last.base).then_some(0);
        let steps = self.steps.iter().zip(&plan.steps).enumerate();
        let reasons = steps.map(|(index, (step, planned))| {
            uncached |= !planned.step.cache;
            match &planned.step.action {
                Action::Reboot => secret = None,
                action if reads_secret(action) => secret = Some(index + 1),
                _ => {}
            }
            let own = last.and_then(|last| step.change(index, last));
            let layer = unused.get(&(index + 1)).filter(|_| !uncached);
            let reason = match (layer, own, first) {
                _ if uncached && !planned.step.cache => RunReason::Uncached,
                (Some(why), ..) => RunReason::Unused(*why),
                _ if last.is_none() => unknown.clone(),
                (_, Some(own), _) => own,
                (.., Some(before)) => RunReason::After(before),
                _ if last.and_then(|last| last.finished).is_some_and(|steps| index >= steps) => RunReason::NotReached,
                _ => secret.map_or(RunReason::NoLayer, RunReason::AfterSecret),
            };
            let moves = matches!(reason, RunReason::Changed(_) | RunReason::New | RunReason::Uncached);
            first = first.or(moves.then_some(index + 1));
            (index >= cached).then_some(reason)
        });
        reasons.collect()
    }
}

impl TracedStep {
    /// Returns what has changed in this step since last time.
    fn change(&self, index: usize, last: &Trace) -> Option<RunReason> {
        if last.steps.get(index).is_some_and(|before| before.parts == self.parts) {
            return None;
        }
        if last.steps.iter().any(|before| before.parts == self.parts) {
            return Some(RunReason::Changed(vec![ChangedInput::Other("its place".into())]));
        }
        // A default name is derived from the command, so a step with another name may be the same step, changed.
        let same_name = last.steps.iter().find(|before| before.name == self.name);
        let same_verb = last.steps.get(index).filter(|before| before.verb() == self.verb());
        match same_name.or(same_verb) {
            Some(before) => Some(RunReason::Changed(differences(&self.parts, &before.parts))),
            None => Some(RunReason::New),
        }
    }

    fn verb(&self) -> Option<&str> {
        let verbs = ["do.run", "do.script", "do.copy", "do.write", "do.fetch"];
        verbs.into_iter().find(|verb| self.parts.keys().any(|part| part.starts_with(verb)))
    }
}

/// Lists the parts that only one of two keys has, or that differ.
fn differences(one: &Parts, other: &Parts) -> Vec<ChangedInput> {
    let parts = one.keys().chain(other.keys()).filter(|part| one.get(*part) != other.get(*part));
    let mut changed: Vec<ChangedInput> = parts.map(|part| changed_input(part)).collect();
    changed.sort_by_key(ToString::to_string);
    changed.dedup();
    changed
}

fn changed_input(part: &str) -> ChangedInput {
    let inside = part.strip_prefix("do.").unwrap_or(part);
    let inside = inside.strip_prefix("context.").unwrap_or(inside);
    ChangedInput::Other(match inside.split_once('.').unwrap_or((inside, "")) {
        ("base", _) => return ChangedInput::Base,
        ("kernel", "image") => "the kernel beside the base image".into(),
        ("kernel", "initrd") => "the initrd".into(),
        ("kernel", _) => "the command line of the kernel".into(),
        ("run", _) => "the command".into(),
        ("script", _) => "the script".into(),
        ("copy", _) => "what is copied".into(),
        ("write", _) => "the text".into(),
        ("downloads", _) => "what it downloads".into(),
        ("allow", _) => "`network.allow`".into(),
        ("name" | "contents" | "into", "") => "how it is copied".into(),
        ("vars", name) => format!("variable `{name}`"),
        ("env", name) => format!("`env.{name}`"),
        ("host", "cpus") => "the number of processors".into(),
        ("host", "processor") => "the processor".into(),
        ("host", "type") => "QEMU's machine type".into(),
        ("host", "uefi" | "uefi.0" | "uefi.1") => "the UEFI firmware".into(),
        ("agent", _) => "kiln itself".into(),
        ("source_date_epoch", _) => "SOURCE_DATE_EPOCH".into(),
        _ => format!("`{inside}`"),
    })
}
