//! What people and programs see of a build: consumers of the event stream, all on standard error or in a file.
//!
//! ```text
//! Events -> bars | plain | json    one of them, chosen by `--progress` and the terminal
//!        \-> log                   build.log, every event
//! ```
//! What came of tests has reports of its own: `junit` for CI servers, `github` for a run of GitHub Actions.
//! How a build ended in failure is not told here but by the command line, which has the `Failure`.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use crate::event::Sink;

mod bars;
#[cfg(test)]
#[path = "../../tests/support/ci.rs"]
pub(crate) mod ci;
pub mod escape;
#[cfg(test)]
mod forging;
pub mod github;
mod json;
pub mod junit;
pub mod log;
mod plain;
pub(crate) mod quote;
mod screen;
mod story;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use bars::Bars;
pub use json::{Json, SCHEMA};
pub use plain::Plain;

/// `--progress`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Progress {
    /// Bars on a terminal that can show them, else plain.
    #[default]
    Auto,
    /// Live lines at the bottom of the terminal.
    Bars,
    /// One line for each change.
    Plain,
    /// One JSON object a line, documented in docs/events.md.
    Json,
}

/// `-q` and `-v`
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Verbosity {
    /// Warnings and errors only.
    Quiet,
    /// What a user wants to see of a build that goes well.
    #[default]
    Normal,
    /// Also debug notices and the guest's console.
    Verbose,
}

/// What standard error is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Terminal {
    /// Whether the cursor can be moved there.
    can_move: bool,
    /// Whether colour is wanted there.
    has_colour: bool,
}

impl Terminal {
    /// Standard error, by the environment's `TERM` and `NO_COLOR` (no-color.org: set and not empty).
    fn of_stderr() -> Self {
        let read = |name| std::env::var(name).ok();
        Self::new(io::stderr().is_terminal(), read("TERM").as_deref(), read("NO_COLOR").as_deref())
    }

    fn new(is_terminal: bool, term: Option<&str>, no_color: Option<&str>) -> Self {
        let can_move = is_terminal && !matches!(term, None | Some("" | "dumb"));
        Self { can_move, has_colour: can_move && no_color.is_none_or(str::is_empty) }
    }
}

/// The consumer for standard error.
#[must_use]
pub fn terminal(progress: Progress, verbosity: Verbosity) -> Arc<dyn Sink> {
    let terminal = Terminal::of_stderr();
    let paint = Paint(terminal.has_colour);
    match shown(progress, verbosity, terminal) {
        Progress::Json => Arc::new(Json::new(Box::new(io::stderr()))),
        Progress::Bars => Arc::new(Bars::on_stderr(verbosity, paint)),
        Progress::Plain | Progress::Auto => Arc::new(Plain::new(Box::new(io::stderr()), verbosity, paint)),
    }
}

/// Bars need a terminal even when asked for, and have nothing to show when quiet.
fn shown(progress: Progress, verbosity: Verbosity, terminal: Terminal) -> Progress {
    match progress {
        Progress::Json => Progress::Json,
        Progress::Auto | Progress::Bars if terminal.can_move && verbosity > Verbosity::Quiet => Progress::Bars,
        _ => Progress::Plain,
    }
}

/// Colours, or none.
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

    /// A finished line as plain output and bars show it.
    fn line(self, line: &story::Line) -> String {
        use story::Topic;
        let text = &line.text;
        match line.topic {
            Topic::Done => format!("  {} {text}", self.good("ok")),
            Topic::Failed => format!("  {} {text}", self.bad("FAILED")),
            Topic::Warning => self.warn(text),
            Topic::Output | Topic::Detail => self.dim(text),
            Topic::Began | Topic::Note | Topic::Progress => text.clone(),
        }
    }
}

/// Whether a line of this topic is shown at all.
fn is_shown(topic: story::Topic, verbosity: Verbosity) -> bool {
    use story::Topic;
    match topic {
        Topic::Warning => true,
        Topic::Began | Topic::Done | Topic::Failed | Topic::Note | Topic::Output => verbosity > Verbosity::Quiet,
        Topic::Detail => verbosity > Verbosity::Normal,
        Topic::Progress => false,
    }
}

/// A writer that several threads share, and that may be gone: a closed terminal must not fail a build.
struct Shared<W>(Mutex<W>);

impl<W> Shared<W> {
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
