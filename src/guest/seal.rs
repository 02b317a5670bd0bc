//! Generalises the guest: removes what makes it one machine among many, so that each clone gets its own identity at first
//! boot.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::context::BuildContext;
use crate::error::{Failure, Fault, Kind};
use crate::event::NoticeLevel;
use crate::plan::with_grace;
use crate::session::GuestError;
use crate::specfile::seal::OPERATIONS;
use crate::wire::{SealReport, SealRequest};

use super::boot::Guest;

/// The deadline for sealing. It takes a second; a guest that stops large services first may take minutes under software
/// emulation.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Proof that the guest is sealed; it has to power off now, and nothing may be done in it any more.
#[derive(Debug)]
#[must_use]
pub struct SealedGuest {
    /// Whether an agent was planted on the guest's disk until then.
    pub(crate) had_agent: bool,
    _proof: (),
}

/// The reason why sealing failed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The agent failed to carry out an operation.
    #[error("failed to seal the guest: {0}")]
    Failed(String),
    /// Sealing did not end in time.
    #[error("sealing did not end within {} s", PATIENCE.as_secs())]
    Late,
}

impl Fault for SealError {
    fn kind(&self) -> Kind {
        Kind::Output
    }
}

/// Files whose modification time sealing has set back, each with the time of its last change before that.
#[derive(Debug, Default)]
pub struct ClampedTimes(HashMap<Vec<u8>, f64>);

impl ClampedTimes {
    /// Parses records of `SECONDS PATH`, each with a NUL at its end. Malformed records are ignored.
    #[must_use]
    pub fn parse(records: &[u8]) -> Self {
        Self(records.split(|byte| *byte == 0).filter_map(parse_record).collect())
    }

    /// Returns the time of a file's last change before that, in seconds since 1970 by the guest's clock.
    pub(crate) fn changed(&self, path: &[u8]) -> Option<f64> {
        self.0.get(path).copied()
    }
}

fn parse_record(record: &[u8]) -> Option<(Vec<u8>, f64)> {
    let space = record.iter().position(|byte| *byte == b' ')?;
    let changed = std::str::from_utf8(&record[..space]).ok()?.parse().ok()?;
    Some((record[space + 1..].to_vec(), changed))
}

/// Runs every operation that the spec does not skip, sets back times that are later than the build's epoch, if it has one,
/// then discards free blocks. Also returns the files whose times were set back.
pub(crate) async fn seal(build: &BuildContext<'_>, guest: &mut Guest) -> Result<(SealedGuest, ClampedTimes), Failure> {
    let request =
        SealRequest { operations: operations(&build.plan.spec.seal.skip), epoch: build.plan.source_date_epoch };
    let sealing = async {
        match guest.session.seal(request).await {
            Err(GuestError::Refused { text, .. }) => Ok(Err(text)),
            sealed => sealed.map(Ok),
        }
    };
    let patience = with_grace(PATIENCE);
    let sealed = build.limits.hold_guest(&guest.machine, patience, || SealError::Late.into(), sealing).await?;
    let (report, records) = sealed.map_err(SealError::Failed)?;
    tell(build, &report);
    Ok((SealedGuest { had_agent: report.had_agent, _proof: () }, ClampedTimes::parse(&records)))
}

/// Reports to the log what sealing has found and done.
fn tell(build: &BuildContext<'_>, report: &SealReport) {
    for note in &report.notes {
        build.events.notice(NoticeLevel::Debug, format!("seal: {}", build.secrets.mask().mask_text(note)));
    }
    if !report.unmounted.is_empty() {
        let places = build.secrets.mask().mask_text(&report.unmounted.join(", "));
        build.events.notice(NoticeLevel::Info, format!("unmounted what steps had left mounted: {places}"));
    }
}

/// Returns the names of the operations that are not skipped.
fn operations(skip: &BTreeSet<String>) -> Vec<String> {
    let all = OPERATIONS.iter().map(|operation| operation.name.to_owned());
    all.filter(|name| !skip.contains(name)).collect()
}
