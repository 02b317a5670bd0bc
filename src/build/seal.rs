//! Generalises the guest: what makes it one machine among many goes, so that each clone becomes itself at first boot.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::error::{Failure, Fault, Kind};
use crate::event::Level;
use crate::plan::with_grace;
use crate::session::GuestError;
use crate::specfile::seal::OPERATIONS;
use crate::wire::{SealReport, SealRequest};

use super::Build;
use super::boot::Guest;
use super::writers::Clamped;

/// Sealing takes a second; a guest that stops large services first may take minutes under software emulation.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// The guest is generalised; it has to power off now, and nothing may be done in it any more.
#[derive(Debug)]
#[must_use]
pub struct Sealed(());

/// Sealing failed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The agent could not carry it out.
    #[error("failed to seal the guest: {0}")]
    Failed(String),
    /// It did not end.
    #[error("sealing did not end within {} s", PATIENCE.as_secs())]
    Late,
}

impl Fault for SealError {
    fn kind(&self) -> Kind {
        Kind::Output
    }
}

/// Returns which sealing this is: another one makes another image of the same guest.
pub(crate) fn build() -> String {
    env!("KILN_SEAL_BUILD").to_owned()
}

/// Runs every operation that the spec does not skip, sets back times that are later than the build's epoch, if it has one,
/// then discards free blocks. Also returns which files had such times.
pub(crate) async fn seal(build: &Build<'_>, guest: &mut Guest) -> Result<(Sealed, Clamped), Failure> {
    let request =
        SealRequest { operations: operations(&build.plan.spec.seal.skip), epoch: build.plan.source_date_epoch };
    let work = async {
        match guest.session.seal(request).await {
            Err(GuestError::Refused { text, .. }) => Ok(Err(text)),
            sealed => sealed.map(Ok),
        }
    };
    let late = || SealError::Late.into();
    let sealed = build.limits.hold_guest(&guest.machine, with_grace(PATIENCE), late, work).await?;
    let (report, records) = sealed.map_err(SealError::Failed)?;
    tell(build, &report);
    Ok((Sealed(()), Clamped::parse(&records)))
}

/// Tells the log what sealing has found and done.
fn tell(build: &Build<'_>, report: &SealReport) {
    for note in &report.notes {
        build.events.notice(Level::Debug, format!("seal: {}", build.secrets.mask().mask_text(note)));
    }
    if !report.unmounted.is_empty() {
        let places = build.secrets.mask().mask_text(&report.unmounted.join(", "));
        build.events.notice(Level::Info, format!("unmounted what steps had left mounted: {places}"));
    }
}

/// Returns the names of the operations that are not skipped.
fn operations(skip: &BTreeSet<String>) -> Vec<String> {
    let all = OPERATIONS.iter().map(|operation| operation.name.to_owned());
    all.filter(|name| !skip.contains(name)).collect()
}
