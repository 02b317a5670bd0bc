//! Attribution of files to the steps that wrote them.
//!
//! The kernel records when anything about a file changed last (`ctime`, inode(7)), by the guest's clock, and no program can
//! set that. Every step records when it ran by the same clock. So the last step that changed a file is determined on the
//! host, at no cost for the guest, and also for steps that came from the cache. What a service wrote while a step ran is
//! attributed to the step.

use crate::disk::entry::{DiskEntry, Time};
use crate::guest::seal::ClampedTimes;
use crate::guest::step_record::StepRecord;
use crate::layer::GuestInterval;

/// The times at which each step ran, and the times that sealing set back.
#[derive(Debug)]
pub struct Attribution {
    steps: Vec<Option<GuestInterval>>,
    clamped: ClampedTimes,
}

impl Attribution {
    pub(crate) fn new(steps: &[StepRecord], clamped: ClampedTimes) -> Self {
        Self { steps: steps.iter().map(|done| done.during).collect(), clamped }
    }

    /// Returns the index of the step that changed a file last, from 0; `None` where it was the base image, a boot or
    /// sealing.
    pub fn step_of(&self, entry: &DiskEntry) -> Option<usize> {
        let changed = self.clamped.changed(&entry.path).unwrap_or_else(|| seconds(entry.changed));
        let until = changed + rounding(changed);
        let mut steps = self.steps.iter();
        steps.position(|span| span.is_some_and(|span| span.start <= until && changed <= span.end))
    }
}

/// Returns by how many seconds a time may be too early. Some file systems count in seconds, and FAT in two of them, rounded
/// down; one that counts in nanoseconds has a fraction.
fn rounding(time: f64) -> f64 {
    match (time.fract() == 0.0, time.rem_euclid(2.0) == 0.0) {
        (true, true) => 2.0,
        (true, false) => 1.0,
        (false, _) => 0.0,
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of this century fit")]
fn seconds(time: Time) -> f64 {
    time.seconds as f64 + f64::from(time.nanoseconds) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::entry::FileKind;
    use crate::session::FetchedTree;
    use std::time::Duration;

    fn file(path: &str, changed: i64) -> DiskEntry {
        let time = |seconds| Time { seconds, nanoseconds: 500_000_000 };
        DiskEntry {
            path: path.into(),
            kind: FileKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            digest: None,
            target: None,
            device: None,
            xattrs: Vec::new(),
            modified: time(0),
            changed: time(changed),
            file: (0, 1),
        }
    }

    fn step(start: f64, end: f64) -> StepRecord {
        let during = Some(GuestInterval { start, end });
        StepRecord { took: Duration::ZERO, cached: false, during, fetched: FetchedTree::default() }
    }

    #[test]
    fn a_file_belongs_to_the_step_that_ran_when_it_changed() {
        let writers = Attribution::new(&[step(10.0, 11.0), step(11.2, 13.0)], ClampedTimes::default());
        let found = [5, 10, 11, 12, 13].map(|changed| writers.step_of(&file("/a", changed)));
        assert_eq!(found, [None, Some(0), Some(1), Some(1), None]);
    }

    #[test]
    fn a_time_without_nanoseconds_is_rounded_down() {
        let writers = Attribution::new(&[step(10.9, 11.5), step(12.1, 13.5)], ClampedTimes::default());
        let found = [8, 9, 10, 11, 12, 13, 14].map(|seconds| {
            let changed = Time { seconds, nanoseconds: 0 };
            writers.step_of(&DiskEntry { changed, ..file("/boot/efi/a", 0) })
        });
        assert_eq!(found, [None, None, Some(0), Some(0), Some(1), Some(1), None]);
    }

    #[test]
    fn what_sealing_touched_belongs_to_who_changed_it_before() {
        let clamped = ClampedTimes::parse(b"10.25 /a b\0junk\x0011.5 /c\n\0");
        let writers = Attribution::new(&[step(10.0, 11.0), step(11.2, 13.0)], clamped);
        assert_eq!(writers.step_of(&file("/a b", 20)), Some(0));
        assert_eq!(writers.step_of(&file("/c\n", 20)), Some(1));
        assert_eq!(writers.step_of(&file("/d", 20)), None);
    }
}
