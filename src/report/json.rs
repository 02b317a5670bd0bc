//! One JSON object a line, for programs: `{"schema":1,"at":12.345,"event":"step-started",...}`. See `docs/events.md`.

use std::io::Write;

use serde::Serialize;

use super::escape::escape_json;
use super::{SharedWriter, write_line};
use crate::event::{Event, EventOrigin, EventSink};

/// Version of the schema. Within one version fields and events are only ever added.
const SCHEMA: u32 = 1;

/// Sink that writes JSON lines. Every event is written, whatever `-q` and `-v` say.
pub struct JsonSink {
    out: SharedWriter<Box<dyn Write + Send>>,
}

#[derive(Serialize)]
struct JsonLine<'a> {
    schema: u32,
    at: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    build: Option<&'a str>,
    #[serde(flatten)]
    event: &'a Event,
}

impl JsonSink {
    /// Creates a sink that writes lines to `out`.
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Self { out: SharedWriter::new(out) }
    }
}

impl EventSink for JsonSink {
    fn emit(&self, EventOrigin { at, build }: EventOrigin<'_>, event: &Event) {
        let at = (at.as_secs_f64() * 1000.0).round() / 1000.0;
        // Serialising cannot fail, since events are plain data; and a closed output must not fail the build.
        let Ok(line) = serde_json::to_string(&JsonLine { schema: SCHEMA, at, build, event }) else { return };
        self.out.with(|out| drop(write_line(out, escape_json(&line))));
    }
}
