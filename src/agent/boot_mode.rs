//! Whether an init runs in this guest.

use std::sync::atomic::{AtomicBool, Ordering};

static IS_DIRECT: AtomicBool = AtomicBool::new(false);

/// Records that the guest was booted directly.
pub fn declare_direct() {
    IS_DIRECT.store(true, Ordering::Relaxed);
}

/// Returns whether the guest was booted directly, so that neither an init nor a service runs in it.
#[must_use]
pub fn is_direct() -> bool {
    IS_DIRECT.load(Ordering::Relaxed)
}
