//! What the keys of a plan were made of, part by part, so that the next plan can say which input changed.
//!
//! Parts are kept as digests: a trace tells that a variable changed, never what it was.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::digest::hex;
use crate::specfile::Action;

use super::key::SCHEME;
use super::{Plan, reads_secret};

/// Digests by the path of the part, as in `do.context.env.SITE`.
pub type Parts = BTreeMap<String, String>;

/// The parts of a whole plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// How the keys were made: those of another scheme cannot be compared.
    #[serde(default)]
    scheme: String,
    base: Parts,
    steps: Vec<Traced>,
    /// How many of the steps the build came past; `None` of one that is running, or was killed.
    #[serde(default)]
    finished: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Traced {
    name: String,
    parts: Parts,
}

/// Why a step runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// These inputs are other ones than last time, in words.
    Changed(Vec<String>),
    /// It was not there last time.
    New,
    /// What it stands on is another: the step of this number, from 1, or the machine for 0.
    After(usize),
    /// The spec says so.
    Uncached,
    /// It is as it was, but there is no layer of it.
    NoLayer,
    /// It is as it was, and the last build ended before it.
    NotReached,
    /// It is as it was, but the step of this number, from 1, reads a secret, and there was no reboot since.
    AfterSecret(usize),
    /// There is a layer of it, from which the build does not go on.
    Unused(UnusedLayer),
    /// The keys of the last build were made by another scheme.
    OtherScheme,
    /// Nothing is known of an earlier build.
    NeverBuilt,
}

/// Why a build does not go on from a layer that is in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnusedLayer {
    /// Going on from an earlier one takes less time than booting its disk.
    Slower,
    /// It has no memory, and no reboot comes before it: what the guest had in memory alone would be missing.
    WithoutMemory,
    /// Its memory is that of another machine.
    OtherMachine,
    /// It lies on too many layers for QEMU to open it in a short time.
    Deep,
    /// It cannot be read, or has changed.
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

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reason::Changed(what) => write!(f, "{} changed", what.join(", ")),
            Reason::New => write!(f, "new"),
            Reason::After(0) => write!(f, "the machine or its base is another"),
            Reason::After(step) => write!(f, "comes after step {step}"),
            Reason::Uncached => write!(f, "`cache = false`"),
            Reason::NoLayer => write!(f, "not in the cache"),
            Reason::NotReached => write!(f, "not built yet: the last build ended before this step"),
            Reason::AfterSecret(step) => {
                write!(f, "nothing is kept after step {step}, which reads a secret, until a `reboot` step")
            }
            Reason::Unused(why) => write!(f, "{why}"),
            Reason::OtherScheme => write!(f, "built last by a version of kiln whose cache keys are made otherwise"),
            Reason::NeverBuilt => write!(f, "not built before"),
        }
    }
}

/// The parts of a value that goes into a key.
#[must_use]
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
            parts.insert(path.to_owned(), hex(&Sha256::digest(leaf.to_string())[..8]));
        }
    }
}

impl Trace {
    /// The parts of this plan.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let step =
            |planned: &super::PlannedStep| Traced { name: planned.step.name.clone(), parts: planned.parts.clone() };
        let steps = plan.steps.iter().map(step).collect();
        Self { scheme: SCHEME.to_owned(), base: plan.base_parts.clone(), steps, finished: None }
    }

    /// Notes how many of the steps a build came past.
    #[must_use]
    pub fn with_finished(self, steps: usize) -> Self {
        Self { finished: Some(steps), ..self }
    }

    /// What is another in the machine and its base than it was in `last`, in words.
    #[must_use]
    pub fn base_changes(&self, last: &Trace) -> Vec<String> {
        if self.scheme != last.scheme {
            return vec!["how cache keys are made".to_owned()];
        }
        differences(&self.base, &last.base)
    }

    /// Why each step that is not among the first `cached` ones runs. `unused` has the layers of steps that are in the cache
    /// all the same, by the step's number, from 1.
    #[must_use]
    pub fn reasons(
        &self,
        plan: &Plan,
        cached: usize,
        unused: &BTreeMap<usize, UnusedLayer>,
        last: Option<&Trace>,
    ) -> Vec<Option<Reason>> {
        let unknown = if last.is_some() { Reason::OtherScheme } else { Reason::NeverBuilt };
        let last = last.filter(|last| last.scheme == self.scheme);
        let mut uncached = false;
        let mut secret = None;
        // The first thing that is another: everything after it runs for that reason.
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
                _ if uncached && !planned.step.cache => Reason::Uncached,
                (Some(why), ..) => Reason::Unused(*why),
                _ if last.is_none() => unknown.clone(),
                (_, Some(own), _) => own,
                (.., Some(before)) => Reason::After(before),
                _ if last.and_then(|last| last.finished).is_some_and(|steps| index >= steps) => Reason::NotReached,
                _ => secret.map_or(Reason::NoLayer, Reason::AfterSecret),
            };
            let moves = matches!(reason, Reason::Changed(_) | Reason::New | Reason::Uncached);
            first = first.or(moves.then_some(index + 1));
            (index >= cached).then_some(reason)
        });
        reasons.collect()
    }
}

impl Traced {
    /// What is another in this step than last time.
    fn change(&self, index: usize, last: &Trace) -> Option<Reason> {
        if last.steps.get(index).is_some_and(|before| before.parts == self.parts) {
            return None;
        }
        if last.steps.iter().any(|before| before.parts == self.parts) {
            return Some(Reason::Changed(vec!["its place".into()]));
        }
        // A default name is made from the command, so a step with another name may be the same one, changed.
        let same_name = last.steps.iter().find(|before| before.name == self.name);
        let same_verb = || last.steps.get(index).filter(|before| before.verb() == self.verb());
        match same_name.or_else(same_verb) {
            Some(before) => Some(Reason::Changed(differences(&self.parts, &before.parts))),
            None => Some(Reason::New),
        }
    }

    fn verb(&self) -> Option<&str> {
        let verbs = ["do.run", "do.script", "do.copy", "do.write", "do.fetch"];
        verbs.into_iter().find(|verb| self.parts.keys().any(|part| part.starts_with(verb)))
    }
}

/// The parts that one has and the other has not, or has otherwise, in the words of a spec.
fn differences(one: &Parts, other: &Parts) -> Vec<String> {
    let differs = |part: &&String| one.get(*part) != other.get(*part);
    let mut words: Vec<String> = one.keys().chain(other.keys()).filter(differs).map(|part| in_words(part)).collect();
    words.sort();
    words.dedup();
    words
}

fn in_words(part: &str) -> String {
    let inside = part.strip_prefix("do.").unwrap_or(part);
    let inside = inside.strip_prefix("context.").unwrap_or(inside);
    match inside.split_once('.').unwrap_or((inside, "")) {
        ("run", _) => "the command".into(),
        ("script", _) => "the script".into(),
        ("copy", _) => "what is copied".into(),
        ("write", _) => "the text".into(),
        ("name" | "contents" | "into", "") => "how it is copied".into(),
        ("vars", name) => format!("variable `{name}`"),
        ("env", name) => format!("`env.{name}`"),
        ("base", _) => "the base image".into(),
        ("host", "cpus") => "the number of processors".into(),
        ("host", "processor") => "the processor".into(),
        ("host", "type") => "QEMU's machine type".into(),
        ("host", "uefi" | "uefi.0" | "uefi.1") => "the UEFI firmware".into(),
        ("agent", _) => "kiln itself".into(),
        ("source_date_epoch", _) => "SOURCE_DATE_EPOCH".into(),
        _ => format!("`{inside}`"),
    }
}
