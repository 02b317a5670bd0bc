//! Outcomes for the tests of reports.

use std::time::Duration;

use crate::build::test::Outcome;
use crate::spec::{Check, Test};

/// A test that took a second and a half.
pub fn outcome(name: &str, ok: bool, found: &str) -> Outcome {
    let test = Test {
        name: name.to_owned(),
        check: Check::NoFailedUnits,
        reboot: false,
        needs_fresh_boot: false,
        retry_for: Duration::ZERO,
        timeout: Duration::from_secs(1),
        line: 7,
    };
    Outcome { test, format: "qcow2", ok, found: found.to_owned(), tail: Vec::new(), seconds: 1.5, kept: None }
}
