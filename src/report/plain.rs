//! One line for each change, for pipes, files and CI.

use std::io::Write;

use crate::event::{Event, EventOrigin, EventSink};

use super::escape::escape;
use super::event_lines::EventFormatters;
use super::{Paint, SharedWriter, Verbosity, is_shown, write_line};

/// Sink that writes plain lines.
pub struct PlainSink {
    verbosity: Verbosity,
    paint: Paint,
    state: SharedWriter<(EventFormatters, Box<dyn Write + Send>)>,
}

impl PlainSink {
    /// Creates a sink that writes lines to `out`.
    pub fn new(out: Box<dyn Write + Send>, verbosity: Verbosity, paint: Paint) -> Self {
        Self { verbosity, paint, state: SharedWriter::new((EventFormatters::default(), out)) }
    }
}

impl EventSink for PlainSink {
    fn emit(&self, origin: EventOrigin<'_>, event: &Event) {
        self.state.with(|(stories, out)| {
            let line = stories.of(origin.build).tell(event);
            if is_shown(line.topic, self.verbosity) {
                let whose =
                    origin.build.map(|build| self.paint.dim(&format!("{}: ", escape(build)))).unwrap_or_default();
                // An error means that standard error is closed, and nothing can be printed.
                let _ = write_line(out, format!("{whose}{}", self.paint.line(&line)));
            }
        });
    }
}
