//! What was read or unpacked last, kept for whoever asks again: bounded, and shared by threads.

use std::sync::{Arc, Mutex, PoisonError};

/// Remembers what was read last under each key modulo a number of slots: good for reading in order.
#[derive(Debug)]
pub(super) struct Slots<T>(Vec<Mutex<Slot<T>>>);

type Slot<T> = Option<(u64, Arc<T>)>;

impl<T> Slots<T> {
    /// Between 1 and 256 slots.
    pub fn new(count: u64) -> Self {
        Self((0..count.clamp(1, 256)).map(|_| Mutex::new(None)).collect())
    }

    /// What is remembered for `key`, or what `read` gives. Nobody waits for another one's `read`, so two may do the same.
    pub fn get<E>(&self, key: u64, read: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        let slot = &self.0[usize::try_from(key % self.0.len() as u64).unwrap_or(0)];
        let remembered = || slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, value)) = remembered().as_ref().filter(|(there, _)| *there == key) {
            return Ok(Arc::clone(value));
        }
        let value = Arc::new(read()?);
        *remembered() = Some((key, Arc::clone(&value)));
        Ok(value)
    }
}
