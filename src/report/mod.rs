//! Consumers of the event stream, which show a build to people and programs, on standard error or in a file.
//!
//! ```text
//! Events -> bars | plain | json    one of them, chosen by `--progress` and the terminal
//!        \-> log                   build.log, every event
//! ```
//! Test results have reports of their own: `junit` for CI servers, `github` for a run of GitHub Actions. Failures of a build
//! are printed by the command line, which has the `Failure`.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use clap::ValueEnum;

use crate::event::EventSink;

mod bars;
#[cfg(test)]
#[path = "../../tests/support/ci.rs"]
pub(crate) mod ci;
pub mod escape;
mod event_lines;
#[cfg(test)]
mod forging;
pub mod github;
mod json;
pub mod junit;
pub mod log;
mod plain;
pub(crate) mod quote;
mod screen;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use bars::BarSink;
pub use json::JsonSink;
pub use plain::PlainSink;

/// Value of `--progress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ProgressMode {
    /// Bars on a terminal that can show them, else plain lines.
    #[default]
    Auto,
    /// Live bars at the bottom of the terminal.
    Bars,
    /// One line per event.
    Plain,
    /// One JSON object per event, documented in docs/events.md.
    Json,
}

/// Verbosity, set by `-q` and `-v`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Verbosity {
    /// Warnings and errors only.
    Quiet,
    /// The events that interest a user in a successful build.
    #[default]
    Normal,
    /// Also debug notices and the guest's console.
    Verbose,
}

/// Properties of the terminal at standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Terminal {
    /// Whether the cursor can be moved there.
    can_move: bool,
    /// Whether colour is wanted there.
    has_colour: bool,
}

impl Terminal {
    /// Examines a stream and the environment's `TERM` and `NO_COLOR` (no-color.org: set and not empty).
    fn of(stream: &impl IsTerminal) -> Self {
        let term = std::env::var("TERM").ok();
        let no_color = std::env::var("NO_COLOR").ok();
        Self::new(stream.is_terminal(), term.as_deref(), no_color.as_deref())
    }

    fn new(is_terminal: bool, term: Option<&str>, no_color: Option<&str>) -> Self {
        let can_move = is_terminal && !matches!(term, None | Some("" | "dumb"));
        Self { can_move, has_colour: can_move && no_color.is_none_or(str::is_empty) }
    }
}

/// Returns whether colour is wanted on a stream.
pub(crate) fn wants_colour(stream: &impl IsTerminal) -> bool {
    Terminal::of(stream).has_colour
}

/// Creates the sink for standard error.
pub fn terminal(progress: ProgressMode, verbosity: Verbosity) -> Arc<dyn EventSink> {
    let terminal = Terminal::of(&io::stderr());
    let paint = Paint(terminal.has_colour);
    match shown(progress, verbosity, terminal) {
        ProgressMode::Json => Arc::new(JsonSink::new(Box::new(io::stderr()))),
        ProgressMode::Bars => Arc::new(BarSink::on_stderr(verbosity, paint)),
        ProgressMode::Plain | ProgressMode::Auto => Arc::new(PlainSink::new(Box::new(io::stderr()), verbosity, paint)),
    }
}

/// Returns the kind of progress that is shown. Bars need a terminal even if requested, and have nothing to show when quiet.
fn shown(progress: ProgressMode, verbosity: Verbosity, terminal: Terminal) -> ProgressMode {
    match progress {
        ProgressMode::Json => ProgressMode::Json,
        ProgressMode::Auto | ProgressMode::Bars if terminal.can_move && verbosity > Verbosity::Quiet => {
            ProgressMode::Bars
        }
        _ => ProgressMode::Plain,
    }
}

/// Whether output is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint(pub bool);

impl Paint {
    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    fn bad(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    fn warn(self, text: &str) -> String {
        self.wrap("33", text)
    }

    fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    /// Formats a finished line for plain output and bars.
    fn line(self, line: &event_lines::ReportLine) -> String {
        use event_lines::LineTopic;
        let text = &line.text;
        match line.topic {
            LineTopic::Done => format!("  {} {text}", self.good("ok")),
            LineTopic::Failed => format!("  {} {text}", self.bad("FAILED")),
            LineTopic::Warning => self.warn(text),
            LineTopic::Output | LineTopic::Detail => self.dim(text),
            LineTopic::Began | LineTopic::Note | LineTopic::Progress => text.clone(),
        }
    }
}

/// Returns whether lines of this topic are shown.
fn is_shown(topic: event_lines::LineTopic, verbosity: Verbosity) -> bool {
    use event_lines::LineTopic;
    match topic {
        LineTopic::Warning => true,
        LineTopic::Began | LineTopic::Done | LineTopic::Failed | LineTopic::Note | LineTopic::Output => {
            verbosity > Verbosity::Quiet
        }
        LineTopic::Detail => verbosity > Verbosity::Normal,
        LineTopic::Progress => false,
    }
}

/// A writer that is shared by threads and ignores errors: a closed terminal must not fail a build.
struct SharedWriter<W>(Mutex<W>);

impl<W> SharedWriter<W> {
    fn new(inner: W) -> Self {
        Self(Mutex::new(inner))
    }

    fn with<T>(&self, act: impl FnOnce(&mut W) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Writes one line with one call, so that lines of several processes do not mix.
fn write_line(out: &mut dyn Write, mut line: String) -> io::Result<()> {
    line.push('\n');
    out.write_all(line.as_bytes())?;
    out.flush()
}
