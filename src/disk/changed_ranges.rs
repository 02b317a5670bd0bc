//! The parts of a disk that may differ from its base: those that any file above the last one decides.

use std::ops::Range;

/// Ranges of bytes of a disk, sorted, with gaps between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChangedRanges(Vec<Range<u64>>);

impl ChangedRanges {
    /// Merges ranges that come in any order.
    pub fn new(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    /// Returns whether a byte of this range may have changed.
    pub fn overlap(&self, range: &Range<u64>) -> bool {
        let next = self.0.partition_point(|changed| changed.end <= range.start);
        self.0.get(next).is_some_and(|changed| changed.start < range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_found_whatever_the_order() {
        let changed = ChangedRanges::new(vec![40..50, 10..20, 15..18, 20..30, 60..61]);
        assert_eq!(changed, ChangedRanges(vec![10..30, 40..50, 60..61]));
        let overlapping: Vec<u64> = (0..70).filter(|at| changed.overlap(&(*at..at + 1))).collect();
        assert_eq!(overlapping, (10..30).chain(40..50).chain(60..61).collect::<Vec<_>>());
        assert!(changed.overlap(&(0..100)) && changed.overlap(&(29..40)));
        assert!(!changed.overlap(&(30..40)) && !changed.overlap(&(61..u64::MAX)));
    }
}
