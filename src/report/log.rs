//! Writes `build.log`: every event on a line, with the seconds since the command began.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use crate::event::{Event, EventOrigin, EventSink};

use super::event_lines::{EventFormatter, LineTopic};
use super::{SharedWriter, write_line};

/// Size limit of a log, bytes. A guest can write for hours.
const LARGEST: u64 = 256 << 20;

/// A log file. It never fails the build: errors are returned when it is closed.
pub struct LogSink {
    state: SharedWriter<LogState<File>>,
}

struct LogState<W> {
    story: EventFormatter,
    /// `None` once closed or full.
    out: Option<W>,
    written: u64,
    limit: u64,
    error: Option<io::Error>,
}

impl LogSink {
    /// Creates the file, which must not exist.
    ///
    /// # Errors
    /// When it exists or cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::create_new(path)?;
        let mut state = LogState::new(file, LARGEST);
        state.write(format!("kiln {} {}", env!("CARGO_PKG_VERSION"), Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ")));
        Ok(Self { state: SharedWriter::new(state) })
    }

    /// Ends the log: later events are dropped, since the file is about to be digested and made read-only.
    ///
    /// # Errors
    /// The first write that failed.
    pub fn close(&self) -> io::Result<()> {
        self.state.with(|state| {
            state.out = None;
            state.error.take().map_or(Ok(()), Err)
        })
    }
}

impl EventSink for LogSink {
    fn emit(&self, origin: EventOrigin<'_>, event: &Event) {
        self.state.with(|state| state.record(origin.at, event));
    }
}

impl<W: Write> LogState<W> {
    fn new(out: W, limit: u64) -> Self {
        Self { story: EventFormatter::default(), out: Some(out), written: 0, limit, error: None }
    }

    fn record(&mut self, at: Duration, event: &Event) {
        let line = self.story.tell(event);
        let mark = match line.topic {
            LineTopic::Done => "ok ",
            LineTopic::Failed => "FAILED ",
            _ => "",
        };
        self.write(format!("{:10.3} {mark}{}", at.as_secs_f64(), line.text));
    }

    fn write(&mut self, line: String) {
        let Some(out) = &mut self.out else { return };
        self.written += line.len() as u64 + 1;
        let is_full = self.written > self.limit;
        let line = if is_full { format!("(the log ends here: it has reached {} bytes)", self.limit) } else { line };
        let result = write_line(out, line);
        if is_full || result.is_err() {
            self.out = None;
        }
        self.error = self.error.take().or(result.err());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::NoticeLevel;

    fn notice(text: &str) -> Event {
        Event::Notice { level: NoticeLevel::Info, text: text.into() }
    }

    #[test]
    fn a_log_ends_at_its_limit() {
        let mut state = LogState::new(Vec::new(), 60);
        let mut out = Vec::new();
        for _ in 0..1000 {
            state.record(Duration::from_millis(12_345), &notice("hello"));
            if let Some(written) = &state.out {
                out.clone_from(written);
            }
        }
        assert!(state.out.is_none() && state.error.is_none());
        assert_eq!(String::from_utf8(out).unwrap(), "    12.345 note: hello\n".repeat(2));
    }

    #[test]
    fn the_marker_is_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("build.log");
        let mut state = LogState::new(File::create(&path).unwrap(), 60);
        (0..9).for_each(|_| state.record(Duration::ZERO, &notice("hello")));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().last(), Some("(the log ends here: it has reached 60 bytes)"));
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn the_first_error_is_remembered_and_stops_the_log() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                if self.0 > 1 { Err(io::Error::other(format!("write {}", self.0))) } else { Ok(bytes.len()) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut state = LogState::new(Full(0), LARGEST);
        (0..9).for_each(|_| state.record(Duration::ZERO, &notice("hello")));
        assert_eq!(state.error.unwrap().to_string(), "write 2");
    }

    #[test]
    fn a_closed_log_does_not_change_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("build.log");
        let log = LogSink::create(&path).unwrap();
        log.emit(EventOrigin::default(), &notice("kept"));
        log.close().unwrap();
        log.emit(EventOrigin::default(), &notice("dropped"));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("note: kept\n"), "{text}");
        assert!(LogSink::create(&path).is_err(), "an old log is not overwritten");
    }
}
