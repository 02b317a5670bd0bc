//! The guest's serial console: always on disk, bounded, its last lines available for error messages.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::event::{Event, Events};
use crate::masking::MaskingStream;

/// Limit of the host's disk space that a guest can fill through its console, bytes.
const FILE_LIMIT: u64 = 64 << 20;
const TAIL_LINES: usize = 200;
const LINE_LIMIT: usize = 400;
/// How long nothing comes from a console that has nothing more to show.
const QUIET: Duration = Duration::from_millis(50);
/// The longest wait for that.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The last lines of the console. Cheap to clone; all clones share them.
#[derive(Clone, Default)]
pub struct Console(Rc<ConsoleBuffer>);

#[derive(Default)]
struct ConsoleBuffer {
    lines: RefCell<ConsoleLines>,
    /// Notified of new output.
    more: Notify,
}

#[derive(Default)]
struct ConsoleLines {
    done: VecDeque<String>,
    current: Vec<u8>,
}

impl Console {
    /// Returns the last `count` lines that are not empty, oldest first.
    #[must_use]
    pub fn tail(&self, count: usize) -> Vec<String> {
        let lines = self.0.lines.borrow();
        let current = clean(&lines.current);
        let all = lines.done.iter().cloned().chain((!current.is_empty()).then_some(current));
        let all: Vec<_> = all.collect();
        all[all.len().saturating_sub(count)..].to_vec()
    }

    /// Returns whether any of the last lines contains the string.
    #[must_use]
    pub fn shows(&self, text: &str) -> bool {
        self.tail(TAIL_LINES).iter().any(|line| line.contains(text))
    }

    /// Waits until one of the last lines contains one of these strings, and returns that string.
    pub async fn until(&self, texts: &[&'static str]) -> &'static str {
        loop {
            // Registered before looking, so that no later output is missed.
            let more = self.0.more.notified();
            let tail = self.tail(TAIL_LINES);
            let found = texts.iter().find(|text| tail.iter().any(|line| line.contains(**text)));
            match found {
                Some(text) => return text,
                None => more.await,
            }
        }
    }

    /// Waits until nothing more comes: what the guest wrote right before its end may arrive after the news of that.
    pub async fn settle(&self) {
        let quiet = async { while timeout(QUIET, self.0.more.notified()).await.is_ok() {} };
        // A guest that writes on and on has said enough.
        let _ = timeout(LONGEST_WAIT, quiet).await;
    }

    fn feed(&self, bytes: &[u8], events: &Events) {
        self.take(bytes, events);
        self.0.more.notify_waiters();
    }

    fn take(&self, bytes: &[u8], events: &Events) {
        for byte in bytes {
            let mut lines = self.0.lines.borrow_mut();
            if *byte != b'\n' && lines.current.len() < LINE_LIMIT {
                lines.current.push(*byte);
                continue;
            }
            let line = clean(&std::mem::take(&mut lines.current));
            if *byte != b'\n' {
                lines.current.push(*byte);
            }
            if line.is_empty() {
                continue;
            }
            if lines.done.len() == TAIL_LINES {
                lines.done.pop_front();
            }
            lines.done.push_back(line.clone());
            drop(lines);
            events.emit(&Event::Console { line });
        }
    }
}

/// Removes terminal escape sequences (ECMA-48 5.4: CSI ends with a byte of 0x40 to 0x7e) and control characters.
fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => match chars.next() {
                Some('[') => while chars.next().is_some_and(|c| !('\u{40}'..='\u{7e}').contains(&c)) {},
                Some(']') => while chars.next().is_some_and(|c| c != '\u{7}' && c != '\u{1b}') {},
                _ => {}
            },
            '\t' => out.push(' '),
            c if !c.is_control() => out.push(c),
            _ => {}
        }
    }
    out.trim_end().to_owned()
}

/// Copies the console, masked, to its file until QEMU closes it. A file that cannot be written does not stop the console: a
/// guest blocks when nobody reads its serial port.
pub async fn record(mut stream: UnixStream, file: File, mut masking: MaskingStream, console: Console, events: Events) {
    let mut buffer = vec![0; 16 << 10];
    let mut file = BoundedFile { file, room: FILE_LIMIT };
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let masked = masking.push(&buffer[..count]);
        file.write(&masked);
        console.feed(&masked, &events);
    }
    let rest = masking.finish();
    file.write(&rest);
    console.feed(&rest, &events);
}

/// A file that ends with a note when it is full.
struct BoundedFile {
    file: File,
    room: u64,
}

impl BoundedFile {
    fn write(&mut self, bytes: &[u8]) {
        if self.room == 0 {
            return;
        }
        let count = bytes.len().min(usize::try_from(self.room).unwrap_or(bytes.len()));
        let _ = self.file.write_all(&bytes[..count]);
        self.room -= count as u64;
        if self.room == 0 {
            let _ = self.file.write_all(b"\n[kiln: the console is longer than 64 MiB; the rest is left out]\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::event::{EventOrigin, EventSink};
    use crate::masking::{SecretMask, written_forms};

    #[test]
    fn the_tail_holds_the_last_lines_without_escapes() {
        let console = Console::default();
        let events = Events::new(Vec::new());
        console.feed(b"one\r\n\r\n\x1b[0;32m  OK  \x1b[0m two\n\x1b]0;title\x07login: ", &events);
        assert_eq!(console.tail(10), ["one", "  OK   two", "login:"]);
        assert_eq!(console.tail(1), ["login:"]);
        assert!(console.shows("login:"));
    }

    #[test]
    fn a_text_is_waited_for_wherever_it_appears() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let console = Console::default();
            let events = Events::new(Vec::new());
            let feeding = async {
                for piece in [&b"one\r\n"[..], b"grub res", b"cue> "] {
                    tokio::task::yield_now().await;
                    console.feed(piece, &events);
                }
            };
            let (found, ()) = tokio::join!(console.until(&["panic", "grub rescue>"]), feeding);
            assert_eq!(found, "grub rescue>");
            assert_eq!(console.until(&["one"]).await, "one", "it is there already");
        });
    }

    #[test]
    fn an_endless_line_is_cut_into_pieces() {
        let console = Console::default();
        let events = Events::new(Vec::new());
        console.feed(&vec![b'x'; 10 * LINE_LIMIT], &events);
        assert!(console.tail(100).iter().all(|line| line.len() <= LINE_LIMIT));
    }

    /// A sink that collects the console's lines.
    #[derive(Default)]
    struct Heard(std::sync::Mutex<String>);

    impl EventSink for Heard {
        fn emit(&self, _: EventOrigin<'_>, event: &Event) {
            if let Event::Console { line } = event {
                self.0.lock().unwrap().push_str(line);
            }
        }
    }

    /// Returns the content of the file, the events and the tail for a console that writes these pieces.
    async fn recorded(mask: &SecretMask, pieces: &[&[u8]]) -> [Vec<u8>; 3] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (file, heard, console) =
            (tempfile::NamedTempFile::new().unwrap(), Arc::new(Heard::default()), Console::default());
        let events = Events::new(vec![heard.clone()]);
        let recording = record(ours, file.reopen().unwrap(), mask.stream(), console.clone(), events);
        let writing = async {
            let mut theirs = theirs;
            for piece in pieces {
                theirs.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(recording, writing);
        let heard = heard.0.lock().unwrap().clone();
        [std::fs::read(file.path()).unwrap(), heard.into_bytes(), console.tail(TAIL_LINES).concat().into_bytes()]
    }

    #[test]
    fn o3_no_form_at_any_place_around_the_buffers_reaches_file_events_or_tail() {
        let value = b"p@ss 'word' & \"more\"\\/<b>";
        let (mask, mut runs) = (SecretMask::new([&value[..]]), 0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for form in written_forms(value) {
            let length = form.bytes.len();
            let around = |edge: usize, step: usize| (edge - length - 1..=edge + 1).step_by(step);
            for start in around(LINE_LIMIT, 3).chain(around(16 << 10, length / 2)) {
                let text = [&vec![b'.'; start][..], &form.bytes, b". and more\r\n"].concat();
                for cut in [0, length / 2] {
                    let pieces =
                        [&text[..start + cut], &text[start + cut..start + length - 1], &text[start + length - 1..]];
                    for sink in runtime.block_on(recorded(&mask, &pieces)) {
                        assert!(!sink.windows(length).any(|window| window == form.bytes), "{} at {start}", form.how);
                        runs += 1;
                    }
                }
            }
        }
        println!("console: {runs} ways to write a secret into file, events and tail, 0 found");
    }
}
