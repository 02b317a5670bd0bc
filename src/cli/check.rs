//! `kiln check`: everything that can be known about specs without booting, offline.

use crate::build::survey;
use crate::error::Failure;
use crate::event::Level;
use crate::spec::{Overrides, Spec};

use super::args::{Global, Specs};
use super::folders::Folders;

/// Checks every spec; all are looked at, and the first failure is the command's.
///
/// # Errors
/// The first failure; the others are printed as they are found.
pub async fn run(args: Specs, global: &Global, folders: &Folders) -> Result<(), Failure> {
    let events = super::events(global);
    let memo = folders.memo()?;
    let reach = args.reading.reach();
    let overrides = Overrides { version: None, vars: args.reading.vars };
    let mut first = None;
    for path in &args.specs {
        let checked = async { survey::plan(Spec::load(path, &overrides)?, reach, &memo, &events).await };
        match checked.await {
            Ok(plan) => events.notice(Level::Info, format!("{}: ok, {} steps", path.display(), plan.steps.len())),
            Err(failure) if first.is_none() => first = Some(failure),
            Err(failure) => super::diagnostics::print(&failure),
        }
    }
    first.map_or(Ok(()), Err)
}
