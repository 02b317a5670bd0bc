//! A cache of what was read or unpacked last: bounded, and shared by threads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Keeps what was read last for each key modulo a number of slots: suitable for reading in order.
#[derive(Debug)]
pub(super) struct SlotCache<T>(Vec<Mutex<Slot<T>>>);

type Slot<T> = Option<(u64, Arc<T>)>;

impl<T> SlotCache<T> {
    /// Creates a cache with `count` slots, limited to 1 to 256.
    pub fn new(count: u64) -> Self {
        Self((0..count.clamp(1, 256)).map(|_| Mutex::new(None)).collect())
    }

    /// Returns the cached value of `key`, or the one that `read` returns. Threads do not wait for each other, so two may
    /// call it for one key.
    pub fn get<E>(&self, key: u64, read: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        if let Some((_, value)) = self.slot(key).as_ref().filter(|(there, _)| *there == key) {
            return Ok(Arc::clone(value));
        }
        let value = Arc::new(read()?);
        *self.slot(key) = Some((key, Arc::clone(&value)));
        Ok(value)
    }

    fn slot(&self, key: u64) -> MutexGuard<'_, Slot<T>> {
        let slot = &self.0[usize::try_from(key % self.0.len() as u64).unwrap_or(0)];
        slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
