//! Asks the agent to seal the guest.

use crate::wire::{HiddenBytes, Message, SealReport, SealRequest};

use super::GuestError;
use super::connection::{Session, unexpected};
use super::error::printable;

/// Limit of the records that are kept, more than the paths of a million files, bytes.
const MAX_RECORDS: usize = 64 << 20;

impl Session {
    /// Asks the agent to seal the guest. Returns its report, and its records of the files whose times it has set back.
    ///
    /// # Errors
    /// When an operation or the connection fails.
    pub async fn seal(&mut self, request: SealRequest) -> Result<(SealReport, Vec<u8>), GuestError> {
        self.begin_with(&Message::Seal { request });
        let mut report = SealReport::default();
        let mut records = Vec::new();
        loop {
            match self.next().await? {
                Message::Data { bytes: HiddenBytes(bytes) } => {
                    if records.len() < MAX_RECORDS {
                        records.extend_from_slice(&bytes);
                    }
                    self.used(bytes.len());
                }
                Message::Sealed { report: found } => report = printable_report(found),
                Message::Done { .. } => return Ok((report, records)),
                other => return Err(unexpected(other)),
            }
        }
    }
}

/// Returns the report with strings that a terminal can show.
fn printable_report(mut report: SealReport) -> SealReport {
    for text in report.unmounted.iter_mut().chain(&mut report.notes) {
        *text = printable(text);
    }
    report
}
