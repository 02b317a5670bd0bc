//! How the guest was booted, and the agent started.

use std::sync::OnceLock;

static MODE: OnceLock<BootMode> = OnceLock::new();

/// What has started the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BootMode {
    /// cloud-init, from a seed.
    Seed,
    /// The agent itself, as the first process: neither an init nor a service runs in the guest.
    Direct,
    /// The guest's init, from the guest's disk.
    Planted,
}

/// Records that the guest was booted directly.
pub fn declare_direct() {
    let _ = MODE.set(BootMode::Direct);
}

/// Records that the guest's init has started a planted agent.
pub fn declare_planted() {
    let _ = MODE.set(BootMode::Planted);
}

/// Returns whether the guest was booted directly, so that neither an init nor a service runs in it.
#[must_use]
pub fn is_direct() -> bool {
    mode() == BootMode::Direct
}

/// Returns whether cloud-init has started the agent, so that it has taken kiln's seed.
#[must_use]
pub fn is_from_seed() -> bool {
    mode() == BootMode::Seed
}

fn mode() -> BootMode {
    MODE.get().copied().unwrap_or(BootMode::Seed)
}
