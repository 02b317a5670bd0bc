//! Tests that take many minutes and rarely break: `scripts/acceptance` runs them, `scripts/test` does not.

mod bases;
mod broken;
mod clones;
mod direct;
mod families;
mod formats;
mod histories;
mod images;
mod kills;
mod listing;
mod nested_kvm;
mod networks;
mod older_qemu;
mod planted;
mod run;

use std::path::PathBuf;

use crate::bench::root;

/// Returns a base that `scripts/acceptance` has made.
fn base(name: &str) -> PathBuf {
    let base = root().join(format!("fixtures/cache/{name}.qcow2"));
    assert!(base.exists(), "{} is not there: scripts/acceptance makes it", base.display());
    base
}
