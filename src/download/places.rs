//! Tries one place after the other until one of them has the file, and repeats attempts as long as that is useful.

use std::time::Duration;

use super::DownloadLimits;
use super::error::{AttemptError, DownloadError, FailedAttempt, TransferError};
use super::transfer::{TransferTarget, transfer};
use super::watch::DownloadWatch;
use crate::size::ByteSize;
use crate::url::Url;

/// Number of bytes after which an attempt counts as progress, so that the next one is the first again.
const OF_USE: u64 = ByteSize::mib(8).bytes();
/// Limit of the pause before an attempt.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Downloads a file from the first place that has it.
pub(super) fn fetch<T: TransferTarget>(
    urls: &[Url],
    target: &mut T,
    limits: &DownloadLimits,
    watch: &mut DownloadWatch<'_>,
) -> Result<T::Whole, DownloadError> {
    let mut tried = Vec::new();
    for url in urls {
        match persist(url, target, limits, watch) {
            Ok(whole) => return Ok(whole),
            Err(AttemptError::Error(error)) => return Err(error),
            Err(AttemptError::Problem(problem)) => {
                if let Some(next) = urls.get(tried.len() + 1) {
                    watch.notice(format!("{url}: {problem}; going on with {next}"));
                }
                tried.push(FailedAttempt { url: url.clone(), problem });
            }
        }
    }
    let file = urls.first().map(Url::file_name).unwrap_or_default();
    Err(DownloadError::Failed { file, tried })
}

/// Tries one place repeatedly.
pub(super) fn persist<T: TransferTarget>(
    url: &Url,
    target: &mut T,
    limits: &DownloadLimits,
    watch: &mut DownloadWatch<'_>,
) -> Result<T::Whole, AttemptError> {
    let mut failures = 0;
    loop {
        let before = target.length();
        let problem = match transfer(url, target, limits, watch) {
            Err(AttemptError::Problem(problem)) => problem,
            other => return other,
        };
        if target.length() >= before + OF_USE {
            failures = 0;
        }
        failures += 1;
        if problem.is_final() || failures >= limits.attempts {
            return Err(problem.into());
        }
        watch.notice(format!("{url}: {problem}; trying again"));
        watch.pause(pause(limits.pause, failures, &problem))?;
    }
}

/// Returns the pause before the next attempt, twice as long each time.
fn pause(first: Duration, failures: u32, problem: &TransferError) -> Duration {
    match problem {
        // The server works.
        TransferError::Stale => Duration::ZERO,
        _ => first.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST_PAUSE),
    }
}
