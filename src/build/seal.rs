//! Generalises the guest: what makes it one machine among many goes, so that each clone becomes itself at first boot.

use std::collections::BTreeSet;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::digest::hex;
use crate::error::{Failure, Fault, Kind};
use crate::event::{Channel, Level};
use crate::guest::{Exec, Exit};
use crate::plan::with_grace;
use crate::spec::seal::OPERATIONS;

use super::Build;
use super::boot::Guest;
use super::output::Lines;
use super::writers::Clamped;

/// The operations, one shell function each.
const SCRIPT: &str = include_str!("seal.sh");
/// Sealing takes seconds; a guest that stops large services first may take minutes under software emulation.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// More than the paths of a million files, bytes.
const MAX_RECORDS: usize = 64 << 20;

/// The guest is generalised; it has to power off now, and nothing may be done in it any more.
#[derive(Debug)]
#[must_use]
pub struct Sealed(());

/// Sealing failed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The script failed.
    #[error("the guest could not be sealed: the script {how}")]
    Failed {
        /// What happened.
        how: String,
        /// The last lines it wrote.
        tail: Vec<String>,
    },
    /// It did not end.
    #[error("sealing did not end within {} s", PATIENCE.as_secs())]
    Late,
}

impl Fault for SealError {
    fn kind(&self) -> Kind {
        Kind::Output
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            SealError::Failed { tail, .. } => tail.clone(),
            SealError::Late => Vec::new(),
        }
    }
}

/// Which sealing this is: another script makes another image of the same guest.
pub(crate) fn build() -> String {
    hex(&Sha256::digest(SCRIPT))
}

/// Runs every operation that the spec does not skip, sets back times that are later than the build's epoch, if it has one,
/// then discards free blocks. Also tells which files had such times.
pub(crate) async fn seal(build: &Build<'_>, guest: &mut Guest) -> Result<(Sealed, Clamped), Failure> {
    let script = ["sh", "-u", "-c", SCRIPT, "seal"].into_iter().map(str::to_owned);
    let argv = script.chain(operations(&build.plan.spec.seal.skip));
    let epoch = build.plan.source_date_epoch.map(|epoch| ("EPOCH".to_owned(), epoch.to_string()));
    let exec = Exec { timeout: Some(PATIENCE), env: epoch.into_iter().collect(), ..Exec::new(argv) };
    let mut records = Vec::new();
    let mut lines = Lines::new(build.secrets.mask());
    let mut emit = |_, line| build.events.notice(Level::Debug, format!("seal: {line}"));
    let mut output = |channel: Channel, bytes: &[u8]| match channel {
        Channel::Stdout if records.len() < MAX_RECORDS => records.extend_from_slice(bytes),
        Channel::Stdout => {}
        Channel::Stderr => lines.feed(channel, bytes, &mut emit),
    };
    let work = guest.session.exec(&exec, &mut output);
    let late = || SealError::Late.into();
    let exit = build.limits.hold_guest(&guest.machine, with_grace(PATIENCE), late, work).await?;
    lines.finish(&mut |_, line| build.events.notice(Level::Debug, format!("seal: {line}")));
    match exit {
        Exit::Code(0) => Ok((Sealed(()), Clamped::parse(&records))),
        Exit::TimedOut => Err(SealError::Late.into()),
        other => Err(SealError::Failed { how: other.to_string(), tail: lines.tail() }.into()),
    }
}

/// The functions to call.
fn operations(skip: &BTreeSet<String>) -> impl Iterator<Item = String> {
    OPERATIONS.iter().filter(|(name, _)| !skip.contains(*name)).map(|(name, _)| function(name))
}

fn function(operation: &str) -> String {
    operation.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_a_function_of_the_script() {
        for (name, _) in OPERATIONS {
            let function = format!("{}() {{", function(name));
            assert!(SCRIPT.lines().any(|line| line.starts_with(&function)), "{name} has no function");
        }
    }
}
