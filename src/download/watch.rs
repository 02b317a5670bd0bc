//! How a caller sees a download go on, hears of what went wrong, and stops it.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// How often the caller is asked whether to go on while nothing happens.
const TICK: Duration = Duration::from_millis(100);

/// How far a download is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are there.
    pub done: u64,
    /// Bytes in all, where that is known.
    pub total: Option<u64>,
    /// Whether bytes of the file come from a place, rather than that what is here already is read.
    pub is_download: bool,
}

/// The caller's ears.
pub struct Watch<'a> {
    progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
    notice: &'a mut dyn FnMut(String),
    warning: Option<&'a mut dyn FnMut(String)>,
    last: Progress,
    /// Whether it is no list of checksums that comes, but the file.
    is_file: bool,
}

/// The caller wants no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stopped;

impl<'a> Watch<'a> {
    /// `progress` is called ten times a second or more, whatever the download waits for, and `Break` stops it; `notice`
    /// is told what the user should know, a sentence each.
    pub fn new(progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>, notice: &'a mut dyn FnMut(String)) -> Self {
        Self { progress, notice, warning: None, last: Progress::default(), is_file: true }
    }

    /// `warning` is told what the user should not miss, instead of `notice`.
    #[must_use]
    pub fn with_warnings(self, warning: &'a mut dyn FnMut(String)) -> Self {
        Self { warning: Some(warning), ..self }
    }

    pub(super) fn warning(&mut self, text: String) {
        match &mut self.warning {
            Some(warning) => warning(text),
            None => (self.notice)(text),
        }
    }

    pub(super) fn notice(&mut self, text: String) {
        (self.notice)(text);
    }

    /// So many bytes are there, the last of which came from a place just now.
    pub(super) fn came(&mut self, done: u64, total: Option<u64>) -> Result<(), Stopped> {
        self.progress(Progress { done, total, is_download: self.is_file })
    }

    /// So many bytes of what is here already were read.
    pub(super) fn read(&mut self, done: u64, total: Option<u64>) -> Result<(), Stopped> {
        self.progress(Progress { done, total, is_download: false })
    }

    /// Gets something beside the file: its bytes are not the file's.
    pub(super) fn beside<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let was = std::mem::replace(&mut self.is_file, false);
        let done = work(self);
        (self.is_file, self.last) = (was, Progress::default());
        done
    }

    fn progress(&mut self, now: Progress) -> Result<(), Stopped> {
        self.last = now;
        match (self.progress)(now) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Stopped),
        }
    }

    /// What another thread sends; `None` when it is gone.
    pub(super) fn receive<T>(&mut self, from: &Receiver<T>) -> Result<Option<T>, Stopped> {
        loop {
            match from.recv_timeout(TICK) {
                Ok(message) => return Ok(Some(message)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => self.progress(self.last)?,
            }
        }
    }

    /// Waits.
    pub(super) fn pause(&mut self, length: Duration) -> Result<(), Stopped> {
        let end = Instant::now() + length;
        loop {
            self.progress(self.last)?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(TICK));
        }
    }
}
