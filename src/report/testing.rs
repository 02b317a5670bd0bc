//! Outcomes and writers for the tests of reports.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::{InMemoryTerm, TermLike};

use crate::specfile::{Check, Test};
use crate::test::Outcome;

/// Returns the outcome of a test that took a second and a half.
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
    Outcome {
        test,
        format: "qcow2",
        ok,
        found: found.to_owned(),
        tail: Vec::new(),
        hint: None,
        seconds: 1.5,
        kept: None,
    }
}

/// A writer whose content can be read while somebody else owns it.
#[derive(Clone, Default)]
pub(crate) struct Tape(Arc<Mutex<Vec<u8>>>);

impl Tape {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Tape {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The screen of an in-memory terminal.
pub(crate) struct Glass(pub(crate) InMemoryTerm);

impl Write for Glass {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_str(std::str::from_utf8(bytes).unwrap())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
