//! Progress and cancellation of long work on threads.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

/// The work was cancelled before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct CancelledError;

/// The progress of one piece of work, which may be done by several threads, and the request to stop it.
pub struct Progress<'a> {
    cancel: CancellationToken,
    done: AtomicU64,
    total: AtomicU64,
    report: Box<dyn Fn(u64, u64) + Send + Sync + 'a>,
}

impl<'a> Progress<'a> {
    /// Creates the progress of work that ends soon after `cancel` is cancelled. `report` is called from any thread, several
    /// times a second, with the number of bytes that are done and of those in all, which is 0 while it is not known.
    pub fn new(cancel: &CancellationToken, report: impl Fn(u64, u64) + Send + Sync + 'a) -> Self {
        let (done, total) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { cancel: cancel.clone(), done, total, report: Box::new(report) }
    }

    /// Creates progress that is reported to nobody.
    #[must_use]
    pub fn unreported(cancel: &CancellationToken) -> Self {
        Self::new(cancel, |_, _| {})
    }

    /// Creates progress that is reported to nobody, of work that nobody cancels.
    #[must_use]
    pub fn unwatched() -> Self {
        Self::unreported(&CancellationToken::new())
    }

    /// Begins a part of the work, of so many bytes.
    pub(crate) fn begin(&self, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// Adds bytes to those that are done.
    ///
    /// # Errors
    /// When the work was cancelled.
    pub(crate) fn advance(&self, bytes: u64) -> Result<(), CancelledError> {
        self.report(self.done.fetch_add(bytes, Ordering::Relaxed) + bytes)
    }

    /// Sets the number of bytes that are done, for work in order.
    ///
    /// # Errors
    /// When the work was cancelled.
    pub(crate) fn advance_to(&self, done: u64) -> Result<(), CancelledError> {
        self.done.store(done, Ordering::Relaxed);
        self.report(done)
    }

    fn report(&self, done: u64) -> Result<(), CancelledError> {
        (self.report)(done, self.total.load(Ordering::Relaxed));
        if self.cancel.is_cancelled() { Err(CancelledError) } else { Ok(()) }
    }
}

/// Runs work on a thread for blocking calls. It is cancelled when the future is dropped.
///
/// # Panics
/// When the work panics.
pub(crate) async fn run_blocking<T: Send + 'static>(work: impl FnOnce(&Progress<'_>) -> T + Send + 'static) -> T {
    run_reported(|_, _| {}, work).await
}

/// Runs work as [`run_blocking`] does, and reports its progress as [`Progress::new`] does.
///
/// # Panics
/// When the work panics.
pub(crate) async fn run_reported<T: Send + 'static>(
    report: impl Fn(u64, u64) + Send + Sync + 'static,
    work: impl FnOnce(&Progress<'_>) -> T + Send + 'static,
) -> T {
    let cancel = CancellationToken::new();
    let _guard = cancel.clone().drop_guard();
    let progress = Progress::new(&cancel, report);
    spawn_blocking(move || work(&progress)).await.expect("the work does not panic")
}

impl fmt::Debug for Progress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cancel, done, total, report: _ } = self;
        f.debug_struct("Progress").field("cancel", cancel).field("done", done).field("total", total).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn every_byte_of_every_thread_is_reported() {
        let most = Mutex::new((0, 0));
        let progress = Progress::new(&CancellationToken::new(), |done, total| {
            let mut most = most.lock().unwrap();
            *most = (most.0.max(done), total);
        });
        progress.begin(400);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|_| progress.advance(1).unwrap()));
            }
        });
        assert_eq!(*most.lock().unwrap(), (400, 400));
        progress.begin(5);
        progress.advance_to(2).unwrap();
        progress.advance(1).unwrap();
        assert_eq!((progress.done.into_inner(), *most.lock().unwrap()), (3, (400, 5)));
    }

    #[test]
    fn cancelled_work_is_stopped_after_its_last_report() {
        let cancel = CancellationToken::new();
        let progress = Progress::new(&cancel, |done, _| {
            if done == 2 {
                cancel.cancel();
            }
        });
        assert_eq!(
            [progress.advance(1), progress.advance(1), progress.advance(1)],
            [Ok(()), Err(CancelledError), Err(CancelledError)]
        );
        assert_eq!(Progress::unwatched().advance_to(7), Ok(()));
    }

    #[test]
    fn work_on_a_thread_is_cancelled_with_its_future() {
        let (started, has_started) = mpsc::channel();
        let (ended, has_ended) = mpsc::channel();
        let work = run_blocking(move |progress| {
            started.send(()).unwrap();
            let began = Instant::now();
            let is_over = || began.elapsed() > Duration::from_secs(60) || progress.advance(1).is_err();
            while !is_over() {
                thread::yield_now();
            }
            ended.send(progress.advance(1)).unwrap();
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let task = tokio::spawn(work);
            while has_started.try_recv().is_err() {
                tokio::task::yield_now().await;
            }
            task.abort();
            task.await.unwrap_err();
        });
        assert_eq!(has_ended.recv().unwrap(), Err(CancelledError));
    }
}
