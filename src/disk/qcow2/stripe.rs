//! The clusters of a part of the disk in a file that kiln has written: contiguous, so that they can be copied at once.

use std::ops::Range;

use crate::disk::source::LayerError;

use super::layout::{BLOCK, CLUSTER, CLUSTER_BITS, STRIPE, alignment};
use super::reader::{COMPRESSED, Qcow2Reader, SECTOR};

/// The L2 entries of a stripe, with the place of its clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::disk) struct Stripe {
    entries: Vec<u64>,
    /// The bytes of the file that the clusters take, to the end of the last block; `None` if all of them are zero.
    span: Option<Range<u64>>,
}

impl Stripe {
    pub(super) fn span(&self) -> Option<Range<u64>> {
        self.span.clone()
    }

    /// Returns whether any of the clusters is uncompressed.
    pub(super) fn has_plain(&self) -> bool {
        self.entries.iter().any(|entry| is_plain(*entry))
    }

    /// Returns the same clusters in another place.
    pub(super) fn moved_to(&self, at: u64) -> Self {
        let Some(span) = &self.span else { return self.clone() };
        let moved = |entry: u64| if entry == 0 { 0 } else { entry.wrapping_sub(span.start).wrapping_add(at) };
        let entries = self.entries.iter().map(|entry| moved(*entry)).collect();
        Self { entries, span: Some(at..at + (span.end - span.start)) }
    }

    /// Returns whether another file has the same clusters in one place. Their bytes are not compared.
    pub(in crate::disk) fn is_placed_as(&self, other: &Self) -> bool {
        match &other.span {
            Some(span) => self.moved_to(span.start) == *other,
            None => self == other,
        }
    }

    /// Returns the allocated clusters of the stripe with this number, with their entries.
    pub(super) fn allocated(&self, number: u64) -> impl Iterator<Item = (u64, u64)> {
        let clusters = (number * STRIPE..).zip(self.entries.iter().copied());
        clusters.filter(|(_, entry)| *entry != 0)
    }
}

impl Qcow2Reader {
    /// Returns the stripe with this number; `None` if its clusters are not as kiln's writer places them.
    pub(in crate::disk) fn stripe(&self, number: u64) -> Result<Option<Stripe>, LayerError> {
        if !self.has_cluster_bits(CLUSTER_BITS) {
            return Ok(None);
        }
        let first = number * STRIPE;
        let mut entries = self.entries(first..first + STRIPE)?;
        entries.resize(usize::try_from(STRIPE).unwrap_or(0), 0);
        let mut span: Option<Range<u64>> = None;
        for entry in entries.iter().filter(|entry| **entry != 0) {
            let next = self.span(*entry)?;
            let before = span.get_or_insert(next.start..next.start);
            if !follows(before, &next, is_plain(*entry)) {
                return Ok(None);
            }
            before.end = next.end;
        }
        let mut stripe = Stripe { entries, span };
        let alignment = alignment(stripe.has_plain());
        if let Some(span) = &mut stripe.span {
            if !span.start.is_multiple_of(alignment) {
                return Ok(None);
            }
            span.end = span.end.next_multiple_of(BLOCK);
        }
        Ok(Some(stripe))
    }
}

fn is_plain(entry: u64) -> bool {
    entry != 0 && entry & COMPRESSED == 0
}

/// Returns whether a cluster begins where the writer puts the next one: compressed ones are packed to the byte, and the last
/// sector of the one before is known but not its last byte.
fn follows(before: &Range<u64>, next: &Range<u64>, is_plain: bool) -> bool {
    if before.is_empty() {
        return next.start == before.start && !next.is_empty();
    }
    if is_plain {
        return next.start == before.end.next_multiple_of(CLUSTER as u64);
    }
    next.start <= before.end && before.end - next.start < SECTOR && next.end > before.end - SECTOR
}
