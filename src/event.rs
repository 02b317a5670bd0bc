//! Events of the engine. The engine emits events and never prints; `report/` consumes them.
//!
//! Stage and event names are the same in code, JSON, log and docs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::masking::SecretMask;

/// The stages of a build, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Inspect and hash the base image, create the overlay.
    Base,
    /// Start QEMU and wait for the agent.
    Boot,
    /// Run the steps.
    Provision,
    /// Generalise the guest and trim its file systems.
    Seal,
    /// Power off the guest cleanly.
    Shutdown,
    /// Create the output files and their digests.
    Convert,
    /// Boot the sealed image and run its tests.
    Test,
    /// Put the version into the store.
    Publish,
}

impl Stage {
    /// Returns the name used in JSON, logs and docs.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Base => "base",
            Stage::Boot => "boot",
            Stage::Provision => "provision",
            Stage::Seal => "seal",
            Stage::Shutdown => "shutdown",
            Stage::Convert => "convert",
            Stage::Test => "test",
            Stage::Publish => "publish",
        }
    }
}

/// The stream of a guest process that a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Severity of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoticeLevel {
    /// Details for the log and `-v`.
    Debug,
    /// Information that is worth a line.
    Info,
    /// A warning for the user.
    Warning,
}

/// An event. Serialised with `event` as its tag; fields are only ever added.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A build begins. Always the first event of a build.
    BuildStarted {
        /// Name of the image.
        image: String,
        /// Version of the image.
        version: String,
        /// Number of steps in the spec.
        steps: usize,
    },
    /// A build ended; no event of it follows.
    BuildFinished {
        /// Outcome of the build: `published`, `up-to-date` or `failed`.
        outcome: Outcome,
        /// Wall time, seconds.
        seconds: f64,
    },
    /// The download of a base image begins; `progress` of the stage `base` reports how far it is.
    DownloadStarted {
        /// URL of its first place.
        url: String,
    },
    /// The download is complete.
    DownloadFinished {
        /// Its size as it was downloaded, bytes.
        bytes: u64,
        /// Wall time, seconds.
        seconds: f64,
    },
    /// A stage begins.
    StageStarted {
        /// The stage.
        stage: Stage,
    },
    /// A stage ended successfully.
    StageFinished {
        /// The stage.
        stage: Stage,
        /// Wall time, seconds.
        seconds: f64,
    },
    /// A step begins.
    StepStarted {
        /// Index of the step in the spec, from 0.
        index: usize,
        /// Name of the step.
        name: String,
        /// Action of the step.
        verb: &'static str,
        /// Number of steps in the spec.
        steps: usize,
    },
    /// An output line of a step, without its newline, with secrets replaced. Lines that are longer than 4 KiB are split.
    StepOutput {
        /// Index of the step in the spec, from 0.
        index: usize,
        /// Stream of the line.
        channel: Channel,
        /// The line; bytes that are not UTF-8 are replaced.
        line: String,
    },
    /// A try of a step failed, and the next one follows after a pause.
    StepRetried {
        /// Index of the step in the spec, from 0.
        index: usize,
        /// Number of the try that failed, from 1.
        attempt: u32,
        /// Number of tries that the step has.
        attempts: u32,
        /// How the try failed, such as `failed with exit status 1`.
        reason: String,
        /// The pause before the next try, seconds.
        pause: f64,
    },
    /// A step is not run, because its result is in the cache.
    StepCached {
        /// Index of the step in the spec, from 0.
        index: usize,
        /// Name of the step.
        name: String,
        /// Action of the step.
        verb: &'static str,
        /// Number of steps in the spec.
        steps: usize,
    },
    /// A step is not part of the build, because its condition does not hold.
    StepSkipped {
        /// Name of the step.
        name: String,
        /// Action of the step.
        verb: &'static str,
        /// The condition.
        when: String,
    },
    /// A step ended.
    StepFinished {
        /// Index of the step in the spec, from 0.
        index: usize,
        /// Whether the step succeeded.
        ok: bool,
        /// Wall time, seconds.
        seconds: f64,
    },
    /// Progress in bytes of the running stage or step.
    Progress {
        /// The stage that the bytes belong to.
        stage: Stage,
        /// Number of bytes so far.
        done: u64,
        /// Number of bytes in all; 0 if it is not known.
        total: u64,
    },
    /// A line of the guest's serial console, escape sequences removed.
    Console {
        /// The line.
        line: String,
    },
    /// A message from the engine.
    Notice {
        /// Severity of the notice.
        level: NoticeLevel,
        /// The text of the message.
        text: String,
    },
    /// An interactive shell begins: the following output on the terminal is the guest's.
    ShellStarted {
        /// Description of the failed step; `None` if the shell itself was requested.
        failure: Option<String>,
        /// The last lines of that step's output.
        tail: Vec<String>,
    },
    /// The interactive shell ended.
    ShellFinished {
        /// The shell's exit code.
        code: u8,
    },
    /// A test of the sealed image ended.
    TestFinished {
        /// Name of the test.
        name: String,
        /// Whether the test passed.
        ok: bool,
        /// Wall time, seconds.
        seconds: f64,
        /// Result of the test, to be read after the test's name.
        found: String,
    },
}

impl Event {
    /// Returns the event with secrets replaced in strings that quote the guest. Lines of steps and of the console are masked
    /// before they become lines.
    fn mask_secrets(&self, mask: &SecretMask) -> Self {
        let mut event = self.clone();
        match &mut event {
            Event::Notice { text, .. }
            | Event::TestFinished { found: text, .. }
            | Event::StepRetried { reason: text, .. } => *text = mask.mask_text(text),
            Event::ShellStarted { failure, tail } => {
                for text in failure.iter_mut().chain(tail) {
                    *text = mask.mask_text(text);
                }
            }
            _ => {}
        }
        event
    }
}

/// Outcome of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// A new version was published.
    Published,
    /// The version existed, from the same inputs.
    UpToDate,
    /// Nothing was published.
    Failed,
}

/// The time and the build of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventOrigin<'e> {
    /// Time since the command began.
    pub at: Duration,
    /// `name@version` of the image, if a command builds several; reports keep the builds apart.
    pub build: Option<&'e str>,
}

/// A consumer of events: a terminal, a log. It must not block for long, and must not fail the build.
pub trait EventSink: Send + Sync {
    /// Takes the next event.
    fn emit(&self, origin: EventOrigin<'_>, event: &Event);
}

/// The engine's end of the event stream. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    began: Instant,
    build: Option<Arc<str>>,
    sinks: Arc<[Arc<dyn EventSink>]>,
    mask: SecretMask,
}

impl Events {
    /// Creates a stream that passes events to every sink, in the order given.
    pub fn new(sinks: Vec<Arc<dyn EventSink>>) -> Self {
        Self { began: Instant::now(), build: None, sinks: sinks.into(), mask: SecretMask::default() }
    }

    /// Returns the stream with one more sink, such as the log of one build.
    pub fn with(&self, sink: Arc<dyn EventSink>) -> Self {
        let sinks = self.sinks.iter().cloned().chain([sink]).collect();
        Self { sinks, ..self.clone() }
    }

    /// Returns a stream for the events of one of several builds.
    pub fn of_build(&self, id: &str) -> Self {
        Self { build: Some(id.into()), ..self.clone() }
    }

    /// Returns the stream, with these secrets replaced in every string that quotes a guest.
    pub fn masked(&self, mask: &SecretMask) -> Self {
        Self { mask: mask.clone(), ..self.clone() }
    }

    /// Emits an event to every sink.
    pub fn emit(&self, event: &Event) {
        let origin = EventOrigin { at: self.began.elapsed(), build: self.build.as_deref() };
        let masked = (!self.mask.is_empty()).then(|| event.mask_secrets(&self.mask));
        let event = masked.as_ref().unwrap_or(event);
        for sink in self.sinks.iter() {
            sink.emit(origin, event);
        }
    }

    /// Emits a [`Event::Notice`] of this level.
    pub fn notice(&self, level: NoticeLevel, text: impl Into<String>) {
        self.emit(&Event::Notice { level, text: text.into() });
    }
}
