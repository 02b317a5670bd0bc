//! Tests that take many minutes and rarely break: `scripts/acceptance` runs them, `scripts/test` does not.

mod bases;
mod broken;
mod clones;
mod families;
mod formats;
mod histories;
mod images;
mod kills;
mod older_qemu;
