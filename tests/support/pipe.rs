//! What a child writes, readable while it is being written.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The reading end of a child's pipe, with a thread behind it.
pub struct Pipe(Arc<Shared>);

#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    ended: bool,
}

impl Pipe {
    pub fn new(mut pipe: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                theirs.seen().bytes.extend_from_slice(&buffer[..count]);
                theirs.changed.notify_all();
            }
            theirs.seen().ended = true;
            theirs.changed.notify_all();
        });
        Self(shared)
    }

    /// Waits until the text was written; panics where it never is.
    pub fn wait_for(&self, text: &str, limit: Duration) {
        let shows = |seen: &Seen| String::from_utf8_lossy(&seen.bytes).contains(text);
        let seen = self.wait(limit, |seen| shows(seen) || seen.ended);
        assert!(shows(&seen), "`{text}` did not come: {}", String::from_utf8_lossy(&seen.bytes));
    }

    /// Whether every writer has closed it in time.
    pub fn wait_for_end(&self, limit: Duration) -> bool {
        self.wait(limit, |seen| seen.ended).ended
    }

    /// Everything, once every writer has closed it.
    pub fn rest(&self, limit: Duration) -> String {
        let seen = self.wait(limit, |seen| seen.ended);
        assert!(seen.ended, "somebody holds the pipe: {}", String::from_utf8_lossy(&seen.bytes));
        String::from_utf8_lossy(&seen.bytes).into_owned()
    }

    fn wait(&self, limit: Duration, until: impl Fn(&Seen) -> bool) -> MutexGuard<'_, Seen> {
        let waited = self.0.changed.wait_timeout_while(self.0.seen(), limit, |seen| !until(seen));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
