//! What is searched for, and the search of bytes that come piece by piece.

use std::fmt;
use std::sync::Arc;

use crate::masking::{SecretParts, WrittenForm, pieces_of_unit};

use super::{LeakPlace, SHORTEST, SecretLeak};

/// Longer values that look random are searched for in pieces of this length, bytes.
const LONGEST: usize = 64;
/// The shortest line at which programs wrap base64 and hex, characters: `xxd -p` does it at 60.
const SHORTEST_LINE: usize = 60;
/// The shortest part of a form that is wrapped: shorter ones are found in lists of digests by chance, characters.
const SHORTEST_PART: usize = 12;
/// The filter has a bit for each value of so many bits, which is small enough to stay in the processor's first cache.
const FILTER_BITS: u32 = 18;
/// Spreads the first bytes of a needle over the filter, as Fibonacci hashing does.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The parts of secrets in all their forms.
pub(super) struct Needles {
    /// Sorted by their first bytes.
    sorted: Vec<Needle>,
    /// Which first bytes some needle may have.
    filter: Vec<u64>,
    longest: usize,
}

struct Needle {
    /// The first eight bytes.
    head: u64,
    bytes: Vec<u8>,
    /// Which secret it is, and how written.
    name: String,
    form: &'static str,
}

/// A needle that was found, and where it begins.
pub(super) struct FoundNeedle {
    name: String,
    form: &'static str,
    start: u64,
}

impl FoundNeedle {
    pub(super) fn at(self, place: impl FnOnce(u64) -> LeakPlace) -> SecretLeak {
        SecretLeak { name: self.name, form: self.form, place: place(self.start) }
    }
}

impl fmt::Debug for Needles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Needles({})", self.sorted.len())
    }
}

impl Needles {
    /// Takes every part that is long enough; `None` if there is none.
    pub(super) fn new<'a>(secrets: impl Iterator<Item = (&'a str, &'a [u8])>) -> Option<Self> {
        let mut sorted = Vec::new();
        for (name, value) in secrets {
            let parts = SecretParts::new(value);
            let units = parts.units().filter(|unit| unit.len() >= SHORTEST);
            for form in units.flat_map(|unit| pieces_of_unit(unit, LONGEST)).flat_map(|piece| parts.forms_of(piece)) {
                sorted.extend(searched_parts(&form).into_iter().filter_map(|bytes| Needle::new(name, form.how, bytes)));
            }
        }
        sorted.sort_by_key(|needle: &Needle| needle.head);
        let longest = sorted.iter().map(|needle| needle.bytes.len()).max()?;
        let mut filter = vec![0; (1 << FILTER_BITS) / 64];
        for needle in &sorted {
            let (word, bit) = filter_place(needle.head);
            filter[word] |= bit;
        }
        Some(Self { sorted, filter, longest })
    }

    /// Returns the first needle in these bytes, which begin at `start`.
    pub(super) fn find(&self, start: u64, bytes: &[u8]) -> Option<FoundNeedle> {
        let mut head = 0;
        for (index, byte) in bytes.iter().enumerate() {
            head = head >> 8 | u64::from(*byte) << 56;
            let (word, bit) = filter_place(head);
            if self.filter[word] & bit != 0
                && let Some(first) = (index + 1).checked_sub(SHORTEST)
                && let Some(needle) = self.beginning_of(head, &bytes[first..])
            {
                return Some(FoundNeedle { name: needle.name.clone(), form: needle.form, start: start + first as u64 });
            }
        }
        None
    }

    /// Returns the needle that these bytes begin with.
    fn beginning_of(&self, head: u64, bytes: &[u8]) -> Option<&Needle> {
        let first = self.sorted.partition_point(|needle| needle.head < head);
        let mut same = self.sorted[first..].iter().take_while(|needle| needle.head == head);
        same.find(|needle| bytes.starts_with(&needle.bytes))
    }
}

impl Needle {
    fn new(name: &str, form: &'static str, bytes: Vec<u8>) -> Option<Self> {
        let head = u64::from_le_bytes(*bytes.first_chunk()?);
        Some(Self { head, bytes, name: name.to_owned(), form })
    }
}

/// Returns which word of the filter the first bytes of a needle belong to, and which bit of it.
fn filter_place(head: u64) -> (usize, u64) {
    let place = head.wrapping_mul(SPREAD) >> (u64::BITS - FILTER_BITS);
    let word = (place / 64) as usize;
    (word, 1 << (place % 64))
}

/// Searches a disk, or anything else that is read piece by piece.
pub struct SecretScan {
    needles: Arc<Needles>,
    /// The end of what was seen last, and where that ended: a secret may lie across.
    before: Vec<u8>,
    end: u64,
}

impl SecretScan {
    pub(super) fn new(needles: Arc<Needles>) -> Self {
        Self { needles, before: Vec::new(), end: 0 }
    }

    /// Searches the bytes of this place of the disk.
    pub fn look(&mut self, at: u64, bytes: &[u8]) -> Option<SecretLeak> {
        self.find(at, bytes).map(|found| found.at(LeakPlace::Disk))
    }

    pub(super) fn find(&mut self, at: u64, bytes: &[u8]) -> Option<FoundNeedle> {
        if at != self.end {
            self.before.clear();
        }
        let kept = self.needles.longest - 1;
        let head = &bytes[..bytes.len().min(kept)];
        let across = [&self.before, head].concat();
        let start = at - self.before.len() as u64;
        let begun = if self.before.is_empty() { None } else { self.needles.find(start, &across) };
        let found = begun.or_else(|| self.needles.find(at, bytes));
        // A short piece may lie within a secret that begins before it.
        let tail = if bytes.len() < kept { &across } else { bytes };
        self.before = tail[tail.len().saturating_sub(kept)..].to_vec();
        self.end = at + bytes.len() as u64;
        found
    }
}

/// Returns a form or, where it may be wrapped, so many parts of it that line ends leave one of them whole.
fn searched_parts(form: &WrittenForm) -> Vec<Vec<u8>> {
    let line_ends = form.bytes.len().div_ceil(SHORTEST_LINE);
    let length = form.bytes.len() / (line_ends + 1);
    if form.is_wrapped() && length >= SHORTEST_PART {
        return form.bytes.chunks_exact(length).map(<[u8]>::to_vec).collect();
    }
    vec![form.bytes.clone()]
}
