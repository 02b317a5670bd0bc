//! One line for each change, for pipes, files and CI.

use std::io::Write;
use std::time::Duration;

use super::story::Story;
use super::{Paint, Shared, Verbosity, is_shown, write_line};
use crate::event::{Event, Sink};

/// Plain lines.
pub struct Plain {
    verbosity: Verbosity,
    paint: Paint,
    state: Shared<(Story, Box<dyn Write + Send>)>,
}

impl Plain {
    /// Lines go to `out`.
    #[must_use]
    pub fn new(out: Box<dyn Write + Send>, verbosity: Verbosity, paint: Paint) -> Self {
        Self { verbosity, paint, state: Shared::new((Story::default(), out)) }
    }
}

impl Sink for Plain {
    fn emit(&self, _at: Duration, event: &Event) {
        self.state.with(|(story, out)| {
            let line = story.tell(event);
            if is_shown(line.topic, self.verbosity) {
                // Standard error is gone: nobody is left to tell.
                let _ = write_line(out, self.paint.line(&line));
            }
        });
    }
}
