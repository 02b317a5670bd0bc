//! Progress, notices and cancellation of a download.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::progress::CancelledError;

/// Interval at which the caller is asked whether to continue while nothing happens.
const TICK: Duration = Duration::from_millis(100);

/// Progress of a download.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DownloadProgress {
    /// Number of bytes so far.
    pub done: u64,
    /// Number of bytes in all, if that is known.
    pub total: Option<u64>,
    /// Whether bytes are being downloaded, rather than existing ones read again.
    pub is_download: bool,
}

/// Callbacks of the caller.
pub struct DownloadWatch<'a> {
    cancel: &'a CancellationToken,
    progress: &'a mut dyn FnMut(DownloadProgress),
    notice: &'a mut dyn FnMut(String),
    warning: Option<&'a mut dyn FnMut(String)>,
    last: DownloadProgress,
    /// Whether the file itself is downloaded, and not a list of checksums.
    is_file: bool,
}

impl<'a> DownloadWatch<'a> {
    /// Creates a watch of a download that ends soon after `cancel` is cancelled. `progress` is called ten times a second or
    /// more, whatever the download waits for; `notice` is called with messages for the user, a sentence each.
    pub fn new(
        cancel: &'a CancellationToken,
        progress: &'a mut dyn FnMut(DownloadProgress),
        notice: &'a mut dyn FnMut(String),
    ) -> Self {
        Self { cancel, progress, notice, warning: None, last: DownloadProgress::default(), is_file: true }
    }

    /// Sets a callback for warnings, which go to `notice` otherwise.
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

    /// Reports the number of bytes, the last of which were downloaded just now.
    pub(super) fn came(&mut self, done: u64, total: Option<u64>) -> Result<(), CancelledError> {
        self.progress(DownloadProgress { done, total, is_download: self.is_file })
    }

    /// Reports the number of existing bytes that were read.
    pub(super) fn read(&mut self, done: u64, total: Option<u64>) -> Result<(), CancelledError> {
        self.progress(DownloadProgress { done, total, is_download: false })
    }

    /// Runs work on another file: its bytes are not counted as those of the file.
    pub(super) fn beside<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let was = std::mem::replace(&mut self.is_file, false);
        let done = work(self);
        (self.is_file, self.last) = (was, DownloadProgress::default());
        done
    }

    fn progress(&mut self, now: DownloadProgress) -> Result<(), CancelledError> {
        self.last = now;
        (self.progress)(now);
        if self.cancel.is_cancelled() { Err(CancelledError) } else { Ok(()) }
    }

    /// Receives from another thread; returns `None` when that is gone.
    pub(super) fn receive<T>(&mut self, from: &Receiver<T>) -> Result<Option<T>, CancelledError> {
        loop {
            match from.recv_timeout(TICK) {
                Ok(message) => return Ok(Some(message)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => self.progress(self.last)?,
            }
        }
    }

    /// Waits for this time, or until the download is cancelled.
    pub(super) fn pause(&mut self, length: Duration) -> Result<(), CancelledError> {
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
