//! Records of finished steps.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use crate::layer::GuestInterval;
use crate::session::FetchedTree;

/// The time for which a step continues the clock of the steps before it, seconds: longer than builds take, and shorter than
/// signed indices are valid.
const CONTINUED: f64 = 12.0 * 3600.0;

/// A step that is finished.
#[derive(Debug, Clone)]
pub struct StepRecord {
    /// Wall time of the step; zero for one from the cache.
    pub took: Duration,
    /// Whether the step did not run, because its result was in the cache.
    pub cached: bool,
    /// When it began and ended, by the guest's clock: what was written meanwhile is attributed to the step.
    pub during: Option<GuestInterval>,
    /// The files that were fetched, by paths in the version's folder.
    pub fetched: FetchedTree,
}

/// Returns the time that a guest's clock shows at the beginning of a step that was recorded at this time: that time, or where
/// the steps before left it soon after. No two steps run at the same time of the guest then, also if they are of several builds.
pub(crate) fn continue_clock(recorded: Timestamp, earlier: &[StepRecord]) -> SystemTime {
    let recorded = recorded.as_duration().as_secs_f64().max(0.0);
    let ends = earlier.iter().filter_map(|step| Some(step.during?.end));
    let latest = ends.filter(|end| (recorded..recorded + CONTINUED).contains(end)).fold(recorded, f64::max);
    SystemTime::UNIX_EPOCH + Duration::from_secs_f64(latest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n31_the_clock_of_a_step_continues_that_of_the_steps_before() {
        let hour = 3600.0;
        let step = |start: f64, end: f64| StepRecord {
            took: Duration::ZERO,
            cached: false,
            during: Some(GuestInterval { start, end }),
            fetched: FetchedTree::default(),
        };
        let unknown = StepRecord { during: None, ..step(0.0, 0.0) };
        let recorded = Timestamp::from_second(100 * 3600).unwrap();
        let starts_at = |earlier: &[StepRecord]| {
            let start = continue_clock(recorded, earlier).duration_since(SystemTime::UNIX_EPOCH);
            start.unwrap().as_secs_f64() / hour
        };
        let begun = || step(100.0 * hour, 101.0 * hour);
        let later = || step(200.0 * hour, 201.0 * hour);
        for (earlier, expected) in [
            (vec![], 100.0),
            (vec![unknown], 100.0),
            (vec![step(10.0 * hour, 99.0 * hour)], 100.0),
            (vec![begun()], 101.0),
            (vec![later()], 100.0),
            (vec![begun(), later()], 101.0),
            (vec![step(101.0 * hour, 102.0 * hour), begun()], 102.0),
        ] {
            assert!((starts_at(&earlier) - expected).abs() < 0.001, "{earlier:?}");
        }
        assert_eq!(continue_clock(Timestamp::MIN, &[]), SystemTime::UNIX_EPOCH);
        continue_clock(Timestamp::MAX, &[]);
    }
}
