//! Draws live lines on a terminal, independently of its autowrap mode, which an earlier program may have turned off: a line
//! ends with a newline, never by filling the row.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use indicatif::TermLike;
use terminal_size::{Height, Width};

use super::SharedWriter;

/// Assumed size of a terminal that does not report one.
const USUAL_SIZE: ScreenSize = ScreenSize { rows: 24, columns: 80 };
/// Erases from the cursor to the end of the row.
const ERASE_REST: &str = "\x1b[K";

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ScreenSize {
    pub(super) rows: u16,
    pub(super) columns: u16,
}

impl ScreenSize {
    /// Returns the size of the terminal at standard error.
    fn of_stderr() -> Self {
        let size = terminal_size::terminal_size_of(io::stderr());
        size.map_or(USUAL_SIZE, |(Width(columns), Height(rows))| Self { rows, columns })
    }
}

/// Position of the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CursorPlace {
    /// At the beginning of an empty row.
    EmptyRow,
    /// Behind the text of a row, which the next text may continue.
    InText,
    /// Behind a row that is complete; what follows begins on the next one.
    RowEnd,
}

/// A terminal that live lines are drawn on, and permanent lines are printed on. Cheap to clone.
#[derive(Clone)]
pub(super) struct Screen {
    output: Arc<SharedWriter<ScreenOutput>>,
    /// A fixed size, for tests; by default the size is queried each time.
    fixed_size: Option<ScreenSize>,
}

struct ScreenOutput {
    terminal: Box<dyn Write + Send>,
    pending: Vec<u8>,
    place: CursorPlace,
}

impl Screen {
    /// Returns the terminal at standard error.
    pub(super) fn on_stderr() -> Self {
        Self::new(Box::new(io::stderr()), None)
    }

    pub(super) fn new(terminal: Box<dyn Write + Send>, fixed_size: Option<ScreenSize>) -> Self {
        let output = ScreenOutput { terminal, pending: Vec::new(), place: CursorPlace::EmptyRow };
        Self { output: Arc::new(SharedWriter::new(output)), fixed_size }
    }

    fn size(&self) -> ScreenSize {
        self.fixed_size.unwrap_or_else(ScreenSize::of_stderr)
    }

    /// Prints a permanent line, if no live line is in its way; returns whether it did.
    pub(super) fn print_line(&self, line: &str) -> io::Result<bool> {
        self.output.with(|output| {
            if output.place != CursorPlace::EmptyRow {
                return Ok(false);
            }
            output.put(line);
            output.put("\r\n");
            output.flush().map(|()| true)
        })
    }

    fn control(&self, sequence: &str, place: CursorPlace) {
        self.output.with(|output| {
            output.put(sequence);
            output.place = place;
        });
    }

    fn move_cursor(&self, count: usize, direction: char) {
        if count > 0 {
            self.output.with(|output| output.put(&format!("\x1b[{count}{direction}")));
        }
    }
}

impl ScreenOutput {
    fn put(&mut self, text: &str) {
        self.pending.extend_from_slice(text.as_bytes());
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = self.terminal.write_all(&self.pending);
        self.pending.clear();
        written.and_then(|()| self.terminal.flush())
    }

    /// Writes text as indicatif draws it: each line, and then the spaces that fill its last row, if there is room for any.
    fn draw(&mut self, text: &str) {
        if text == "\r" {
            self.put(text);
            self.place = CursorPlace::EmptyRow;
        } else if self.place == CursorPlace::InText && text.trim_start_matches(' ').is_empty() {
            // In a row without room, the cursor stands on the last character.
            self.put(if text.is_empty() { "" } else { ERASE_REST });
            self.place = CursorPlace::RowEnd;
        } else {
            self.put(if self.place == CursorPlace::RowEnd { "\r\n" } else { "" });
            self.put(text);
            self.place = CursorPlace::InText;
        }
    }
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Screen").field(&self.size()).finish()
    }
}

impl TermLike for Screen {
    /// Returns the width without room for the `^C` that a terminal writes behind a live line. On the next line it would keep
    /// this one from being cleared.
    fn width(&self) -> u16 {
        self.size().columns.saturating_sub(2).max(1)
    }

    fn height(&self) -> u16 {
        self.size().rows
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'A');
        Ok(())
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'B');
        Ok(())
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'C');
        Ok(())
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'D');
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.control(&format!("{text}\r\n"), CursorPlace::EmptyRow);
        Ok(())
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.output.with(|output| output.draw(text));
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.control("\r\x1b[2K", CursorPlace::EmptyRow);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.output.with(ScreenOutput::flush)
    }
}
