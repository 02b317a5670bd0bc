//! Ranges of bytes of a disk, such as those that may differ from its base.

use std::ops::Range;

/// Ranges of bytes of a disk, sorted, with gaps between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ByteRanges(Vec<Range<u64>>);

impl ByteRanges {
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

    /// Returns whether a byte of this range is in one of them.
    pub fn overlap(&self, range: &Range<u64>) -> bool {
        self.overlapping(range).next().is_some()
    }

    /// Returns those that have a byte of this range.
    pub fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = &Range<u64>> {
        let next = self.0.partition_point(|known| known.end <= range.start);
        let end = range.end;
        self.0[next..].iter().take_while(move |known| known.start < end)
    }

    /// Returns the numbers of the clusters of this size of which a part is in one of them, in order.
    pub fn clusters(&self, size: u64) -> impl Iterator<Item = u64> {
        let mut next = 0;
        self.0.iter().flat_map(move |range| {
            let first = next.max(range.start / size);
            next = range.end.div_ceil(size).max(first);
            first..next
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_found_whatever_the_order() {
        let changed = ByteRanges::new(vec![40..50, 10..20, 15..18, 20..30, 60..61]);
        assert_eq!(changed, ByteRanges(vec![10..30, 40..50, 60..61]));
        let overlapping: Vec<u64> = (0..70).filter(|at| changed.overlap(&(*at..at + 1))).collect();
        assert_eq!(overlapping, (10..30).chain(40..50).chain(60..61).collect::<Vec<_>>());
        assert!(changed.overlap(&(0..100)) && changed.overlap(&(29..40)));
        assert!(!changed.overlap(&(30..40)) && !changed.overlap(&(61..u64::MAX)));
        assert_eq!(changed.overlapping(&(29..41)).cloned().collect::<Vec<_>>(), [10..30, 40..50]);
    }

    #[test]
    fn each_cluster_is_counted_once() {
        let ranges = ByteRanges::new(vec![1..2, 3..4, 9..21, 22..24, 40..40]);
        assert_eq!(ranges.clusters(10).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(ranges.clusters(4).collect::<Vec<_>>(), [0, 2, 3, 4, 5]);
    }
}
