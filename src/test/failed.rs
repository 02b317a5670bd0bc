//! Errors of tests that failed, and of an image that cannot be tested.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Fault, Kind};
use crate::guest::boot::{BootError, ConsoleEvidence};
use crate::resolve::agent_support::PUBLISH_UNTESTED;
use crate::size::format_duration;

use super::Outcome;

/// At least one test failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct TestsFailed {
    message: String,
    tail: Vec<String>,
    /// Advice, and the paths of the folders of failed tests.
    hints: Vec<String>,
    /// The failed tests, for detailed reports.
    pub tests: Box<Failed>,
}

/// The tests that failed.
#[derive(Debug)]
pub struct Failed {
    /// The image that was tested.
    pub image: String,
    /// Path of the spec that the tests come from.
    pub spec: PathBuf,
    /// The outcomes of the failed tests.
    pub outcomes: Vec<Outcome>,
}

impl TestsFailed {
    /// Fails if a test has failed.
    ///
    /// # Errors
    /// When a test has failed. `image` names the tested image and `source` the spec of the tests; the folders of failed
    /// tests are in `work`, and will be in `logs` when the message is read.
    pub fn check(outcomes: &[Outcome], image: String, source: &Path, work: &Path, logs: &Path) -> Result<(), Self> {
        let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.ok).collect();
        let Some(first) = failed.first() else { return Ok(()) };
        let told: Vec<String> = failed.iter().map(|outcome| sentence(outcome, source)).collect();
        let message = match &told[..] {
            [only] => only.clone(),
            all => format!("{} of {} tests failed: {}", all.len(), outcomes.len(), all.join("; ")),
        };
        let mut hints: Vec<String> =
            failed.iter().filter_map(|outcome| outcome.hint.clone()).collect::<BTreeSet<_>>().into_iter().collect();
        for folder in failed.iter().filter_map(|outcome| outcome.kept.as_deref()) {
            let kept = logs.join(folder.strip_prefix(work).unwrap_or(folder));
            hints.push(format!("its output, console and journal: {}", kept.display()));
        }
        let tail = first.tail.clone();
        let outcomes = failed.into_iter().cloned().collect();
        Err(Self { message, tail, hints, tests: Box::new(Failed { image, spec: source.to_owned(), outcomes }) })
    }
}

/// Formats an outcome as `test NAME (FILE:LINE) FOUND, for 30s`.
fn sentence(outcome: &Outcome, source: &Path) -> String {
    let Outcome { test, found, format, .. } = outcome;
    let line = if test.line == 0 { String::new() } else { format!(":{}", test.line) };
    let tried =
        if test.retry_for.is_zero() { String::new() } else { format!(", for {}", format_duration(test.retry_for)) };
    let raw = if *format == "qcow2" { String::new() } else { format!(" of the {format} image") };
    format!("test `{}`{raw} ({}{line}) {found}{tried}", test.name, source.display())
}

impl Fault for TestsFailed {
    fn kind(&self) -> Kind {
        Kind::Test
    }

    fn hints(&self) -> Vec<String> {
        self.hints.clone()
    }

    fn evidence(&self) -> Vec<String> {
        self.tail.clone()
    }
}

/// The image could not be tested at all.
#[derive(Debug, thiserror::Error)]
#[error("the sealed image {}", describe(format, why))]
pub struct DoesNotBoot {
    /// The format of the image file.
    pub format: &'static str,
    /// The failure to boot it.
    pub why: Failure,
}

impl DoesNotBoot {
    /// Returns the result, to follow the name of its format.
    pub(super) fn found(&self) -> String {
        describe_silence(&self.why).unwrap_or_else(|| format!("does not boot: {}", self.why))
    }
}

fn describe(format: &str, why: &Failure) -> String {
    match describe_silence(why) {
        Some(silence) => format!("{silence} ({format})"),
        None => format!("does not boot from the {format} file: {why}"),
    }
}

/// Describes an image whose guest has shown a login prompt: it boots, although the agent did not start.
fn describe_silence(why: &Failure) -> Option<String> {
    match why.fault() {
        Some(BootError::NoAgent { after, seen: ConsoleEvidence::LoginPrompt, .. }) => {
            Some(format!("boots, but kiln's agent did not start in it within {}", format_duration(*after)))
        }
        _ => None,
    }
}

impl Fault for DoesNotBoot {
    fn kind(&self) -> Kind {
        match self.why.kind() {
            Kind::Boot => Kind::Test,
            other => other,
        }
    }

    fn hints(&self) -> Vec<String> {
        self.why.hints()
    }

    fn evidence(&self) -> Vec<String> {
        self.why.evidence()
    }
}

/// The agent cannot be planted in a copy of the image, so that the image cannot be tested.
#[derive(Debug, thiserror::Error)]
#[error("the tests cannot run: {why}")]
pub struct NotPlanted {
    /// The failure to plant the agent.
    pub why: Failure,
}

impl Fault for NotPlanted {
    fn kind(&self) -> Kind {
        Kind::Test
    }

    fn hints(&self) -> Vec<String> {
        self.why.hints().into_iter().chain([PUBLISH_UNTESTED.to_owned()]).collect()
    }
}
