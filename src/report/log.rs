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

/// A log file. It never fails the build: it ends at the first error.
pub struct LogSink {
    state: SharedWriter<LogState<File>>,
}

struct LogState<W> {
    story: EventFormatter,
    /// `None` once the log is full, or a write has failed.
    out: Option<W>,
    written: u64,
    limit: u64,
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
}

impl EventSink for LogSink {
    fn emit(&self, origin: EventOrigin<'_>, event: &Event) {
        self.state.with(|state| state.record(origin.at, event));
    }
}

impl<W: Write> LogState<W> {
    fn new(out: W, limit: u64) -> Self {
        Self { story: EventFormatter::default(), out: Some(out), written: 0, limit }
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
        if write_line(out, line).is_err() || is_full {
            self.out = None;
        }
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
        assert!(state.out.is_none());
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
    fn the_first_error_stops_the_log() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut state = LogState::new(Full, LARGEST);
        state.record(Duration::ZERO, &notice("hello"));
        assert!(state.out.is_none());
    }

    #[test]
    fn a_log_is_complete_at_once_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("build.log");
        let log = LogSink::create(&path).unwrap();
        log.emit(EventOrigin::default(), &notice("kept"));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("note: kept\n"), "{text}");
        assert!(LogSink::create(&path).is_err());
    }
}
