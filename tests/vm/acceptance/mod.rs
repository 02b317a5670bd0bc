//! Tests that take many minutes and rarely break: `scripts/acceptance` runs them, `scripts/test` does not.

mod formats;
mod histories;
mod kills;
