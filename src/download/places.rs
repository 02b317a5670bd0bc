//! Goes from place to place until one of them has the file, and tries each again as long as that is of use.

use std::time::Duration;

use super::Limits;
use super::error::{DownloadError, Halt, Problem, Tried};
use super::transfer::{Target, transfer};
use super::watch::Watch;
use crate::size::ByteSize;
use crate::url::Url;

/// An attempt that brought so much was of use: the next is the first again.
const OF_USE: u64 = ByteSize::mib(8).bytes();
/// Nobody waits longer for the next attempt.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Gets a file from the first place that has it.
pub(super) fn fetch<T: Target>(
    urls: &[Url],
    target: &mut T,
    limits: &Limits,
    watch: &mut Watch<'_>,
) -> Result<T::Whole, DownloadError> {
    let mut tried = Vec::new();
    for url in urls {
        match persist(url, target, limits, watch) {
            Ok(whole) => return Ok(whole),
            Err(Halt::Error(error)) => return Err(error),
            Err(Halt::Problem(problem)) => {
                if let Some(next) = urls.get(tried.len() + 1) {
                    watch.notice(format!("{url}: {problem}; going on with {next}"));
                }
                tried.push(Tried { url: url.clone(), problem });
            }
        }
    }
    let file = urls.first().map(Url::file_name).unwrap_or_default();
    Err(DownloadError::Failed { file, tried })
}

/// Tries one place, again and again.
fn persist<T: Target>(url: &Url, target: &mut T, limits: &Limits, watch: &mut Watch<'_>) -> Result<T::Whole, Halt> {
    let mut failures = 0;
    loop {
        let before = target.length();
        let problem = match transfer(url, target, limits, watch) {
            Err(Halt::Problem(problem)) => problem,
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

/// Twice as long each time.
fn pause(first: Duration, failures: u32, problem: &Problem) -> Duration {
    match problem {
        // Nothing is wrong with the server.
        Problem::Stale => Duration::ZERO,
        _ => first.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST_PAUSE),
    }
}
