//! What the engine tells the world while it works. The engine emits events and never prints; `report/` consumes them.
//!
//! Stage and event names are one list, used alike in code, JSON, log and docs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::masking::SecretMask;

/// The stages of a build, in their order.
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
    /// A clean power-off.
    Shutdown,
    /// Make the output files and their digests.
    Convert,
    /// Boot the sealed image and run its tests.
    Test,
    /// Put the version into the store.
    Publish,
}

impl Stage {
    /// The name used in JSON, logs and docs.
    #[must_use]
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

/// Which stream of a guest process a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How grave a notice is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Details for the log and `-v`.
    Debug,
    /// Worth a line.
    Info,
    /// The user should know.
    Warning,
}

/// One thing that happened. Serialised with `event` as its tag; fields are only ever added.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A build begins. Always the first event of a build.
    BuildStarted {
        /// Image name.
        image: String,
        /// Image version.
        version: String,
        /// How many steps the spec has.
        steps: usize,
    },
    /// The build is over; nothing follows. `published` is false for a failure and for "up to date".
    BuildFinished {
        /// What became of it: `published`, `up-to-date` or `failed`.
        outcome: Outcome,
        /// Wall time, seconds.
        seconds: f64,
    },
    /// A base image is not here and comes from elsewhere; `progress` of the stage `base` tells how far it is.
    DownloadStarted {
        /// Where from, in the first place.
        url: String,
    },
    /// It is here.
    DownloadFinished {
        /// Its size as it was downloaded, bytes.
        bytes: u64,
        /// Wall time, seconds.
        seconds: f64,
    },
    /// A stage begins.
    StageStarted {
        /// Which one.
        stage: Stage,
    },
    /// A stage is over, and was a success.
    StageFinished {
        /// Which one.
        stage: Stage,
        /// Wall time, seconds.
        seconds: f64,
    },
    /// A step begins.
    StepStarted {
        /// Position in the spec, from 0.
        index: usize,
        /// Its name.
        name: String,
        /// Its verb.
        verb: &'static str,
        /// How many steps the spec has.
        steps: usize,
    },
    /// One line a step wrote, without its newline, secrets replaced. Longer lines than 4 KiB come in pieces.
    StepOutput {
        /// Position in the spec, from 0.
        index: usize,
        /// Which stream.
        channel: Channel,
        /// The text; bytes that are not UTF-8 are replaced.
        line: String,
    },
    /// A step does not run: what it did is in the cache.
    StepCached {
        /// Position in the spec, from 0.
        index: usize,
        /// Its name.
        name: String,
        /// Its verb.
        verb: &'static str,
        /// How many steps the spec has.
        steps: usize,
    },
    /// A step is over.
    StepFinished {
        /// Position in the spec, from 0.
        index: usize,
        /// Whether it did what it should.
        ok: bool,
        /// Wall time, seconds.
        seconds: f64,
    },
    /// Bytes moved so far by the running stage or step.
    Progress {
        /// The stage they belong to.
        stage: Stage,
        /// Bytes done.
        done: u64,
        /// Bytes in all; 0 when not known.
        total: u64,
    },
    /// A line of the guest's serial console, escape sequences removed.
    Console {
        /// The text.
        line: String,
    },
    /// A sentence from the engine.
    Notice {
        /// How grave.
        level: Level,
        /// The sentence.
        text: String,
    },
    /// A person takes over: what comes next on the terminal is the guest's.
    ShellStarted {
        /// The step that failed, and how; none where the shell is all that was asked for.
        failure: Option<String>,
        /// The last lines that step wrote.
        tail: Vec<String>,
    },
    /// The person has left.
    ShellFinished {
        /// The shell's exit code.
        code: u8,
    },
    /// A test of the sealed image is over.
    TestFinished {
        /// Its name.
        name: String,
        /// Whether it passed.
        ok: bool,
        /// Wall time, seconds.
        seconds: f64,
        /// What was found, to be read after the test's name.
        found: String,
    },
}

impl Event {
    /// Replaces secrets in what quotes the guest. Lines of steps and of the console are masked before they become lines.
    fn mask_secrets(&self, mask: &SecretMask) -> Self {
        let mut event = self.clone();
        match &mut event {
            Event::Notice { text, .. } | Event::TestFinished { found: text, .. } => *text = mask.mask_text(text),
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

/// How a build ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// A new version is in the store.
    Published,
    /// The version was there, from the same inputs.
    UpToDate,
    /// Nothing was published.
    Failed,
}

/// When an event happened, and in which build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin<'e> {
    /// Since the command began.
    pub at: Duration,
    /// `name@version` of the image, where a command builds several; each build tells its own story.
    pub build: Option<&'e str>,
}

/// Something that consumes events: a terminal, a log. Must not block for long, and must not fail the build.
pub trait Sink: Send + Sync {
    /// Takes one event.
    fn emit(&self, origin: Origin<'_>, event: &Event);
}

/// The engine's end of the event stream. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    began: Instant,
    build: Option<Arc<str>>,
    sinks: Arc<[Arc<dyn Sink>]>,
    mask: SecretMask,
}

impl Events {
    /// Events go to every sink, in the order given.
    #[must_use]
    pub fn new(sinks: Vec<Arc<dyn Sink>>) -> Self {
        Self { began: Instant::now(), build: None, sinks: sinks.into(), mask: SecretMask::default() }
    }

    /// The same stream with one more sink, such as the log of one build.
    #[must_use]
    pub fn with(&self, sink: Arc<dyn Sink>) -> Self {
        let sinks = self.sinks.iter().cloned().chain([sink]).collect();
        Self { sinks, ..self.clone() }
    }

    /// The events of one of several builds.
    #[must_use]
    pub fn of_build(&self, id: &str) -> Self {
        Self { build: Some(id.into()), ..self.clone() }
    }

    /// The same stream, with these secrets replaced in every text that quotes a guest.
    #[must_use]
    pub fn masked(&self, mask: &SecretMask) -> Self {
        Self { mask: mask.clone(), ..self.clone() }
    }

    /// Tells every sink.
    pub fn emit(&self, event: &Event) {
        let origin = Origin { at: self.began.elapsed(), build: self.build.as_deref() };
        let masked = (!self.mask.is_empty()).then(|| event.mask_secrets(&self.mask));
        let event = masked.as_ref().unwrap_or(event);
        for sink in self.sinks.iter() {
            sink.emit(origin, event);
        }
    }

    /// Emits a [`Event::Notice`].
    pub fn notice(&self, level: Level, text: impl Into<String>) {
        self.emit(&Event::Notice { level, text: text.into() });
    }
}
