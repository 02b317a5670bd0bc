//! The searched strings, and the search of bytes that arrive piece by piece.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::masking::{SecretParts, WrittenForm, pieces_of_unit};

use super::{LeakPlace, SHORTEST, SecretLeakError};

/// Length of the pieces in which longer values that look random are searched for, bytes.
const LONGEST: usize = 64;
/// The shortest line length at which programs wrap base64 and hex, characters: `xxd -p` does it at 60.
const SHORTEST_LINE: usize = 60;
/// Minimum length of a part of a wrapped form: shorter ones are found in lists of digests by chance, characters.
const SHORTEST_PART: usize = 12;
/// Number of bits whose values have a bit each in the filter, which fits into the processor's first cache.
const FILTER_BITS: u32 = 18;
/// Factor that spreads the first bytes of a needle over the filter, as Fibonacci hashing does.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The parts of secrets in all their forms, which are searched for.
pub(super) struct Needles {
    /// The needles, sorted by their first bytes.
    sorted: Vec<Needle>,
    /// A filter of the first bytes of all needles.
    filter: Vec<u64>,
    longest: usize,
    /// Number of secrets that they belong to.
    secrets: usize,
}

struct Needle {
    /// The first eight bytes of the needle.
    head: u64,
    bytes: Vec<u8>,
    /// The secret's name, and its form.
    name: String,
    form: &'static str,
}

/// A needle that was found, and its offset.
pub(super) struct FoundNeedle {
    pub(super) name: String,
    form: &'static str,
    start: u64,
}

impl FoundNeedle {
    pub(super) fn at(self, place: impl FnOnce(u64) -> LeakPlace) -> SecretLeakError {
        SecretLeakError { name: self.name, form: self.form, place: place(self.start) }
    }
}

impl fmt::Debug for Needles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Needles({})", self.sorted.len())
    }
}

impl Needles {
    /// Takes every part that is long enough; returns `None` if there is none.
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
        let secrets = sorted.iter().map(|needle| &needle.name).collect::<BTreeSet<_>>().len();
        Some(Self { sorted, filter, longest, secrets })
    }

    /// Adds the first needle of each secret in these bytes, which begin at `start`, unless that secret was found before.
    pub(super) fn find(&self, start: u64, bytes: &[u8], found: &mut Vec<FoundNeedle>) {
        if found.len() == self.secrets {
            return;
        }
        let mut head = 0;
        for (index, byte) in bytes.iter().enumerate() {
            head = head >> 8 | u64::from(*byte) << 56;
            let (word, bit) = filter_place(head);
            if self.filter[word] & bit != 0
                && let Some(first) = (index + 1).checked_sub(SHORTEST)
            {
                let same = self.beginnings_of(head, &bytes[first..]);
                for needle in same {
                    if found.iter().all(|other| other.name != needle.name) {
                        let start = start + first as u64;
                        found.push(FoundNeedle { name: needle.name.clone(), form: needle.form, start });
                    }
                }
            }
        }
    }

    /// Returns the needles that match at the beginning of these bytes.
    fn beginnings_of(&self, head: u64, bytes: &[u8]) -> impl Iterator<Item = &Needle> {
        let first = self.sorted.partition_point(|needle| needle.head < head);
        let same = self.sorted[first..].iter().take_while(move |needle| needle.head == head);
        same.filter(move |needle| bytes.starts_with(&needle.bytes))
    }
}

impl Needle {
    fn new(name: &str, form: &'static str, bytes: Vec<u8>) -> Option<Self> {
        let head = u64::from_le_bytes(*bytes.first_chunk()?);
        Some(Self { head, bytes, name: name.to_owned(), form })
    }
}

/// Returns the word and the bit of the filter for the first bytes of a needle.
fn filter_place(head: u64) -> (usize, u64) {
    let place = head.wrapping_mul(SPREAD) >> (u64::BITS - FILTER_BITS);
    let word = (place / 64) as usize;
    (word, 1 << (place % 64))
}

/// Searches a disk, or anything else that is read piece by piece, for one place of each secret.
pub struct SecretScan {
    needles: Arc<Needles>,
    /// The end of the last bytes, and its offset: a secret may lie across.
    before: Vec<u8>,
    end: u64,
    found: Vec<FoundNeedle>,
}

impl SecretScan {
    pub(super) fn new(needles: Arc<Needles>) -> Self {
        Self { needles, before: Vec::new(), end: 0, found: Vec::new() }
    }

    /// Searches the bytes that follow the last ones.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.look(self.end, bytes);
    }

    /// Searches the bytes at this offset.
    pub fn look(&mut self, at: u64, bytes: &[u8]) {
        if at != self.end {
            self.before.clear();
        }
        let kept = self.needles.longest - 1;
        let head = &bytes[..bytes.len().min(kept)];
        let across = [&self.before, head].concat();
        if !self.before.is_empty() {
            self.needles.find(at - self.before.len() as u64, &across, &mut self.found);
        }
        self.needles.find(at, bytes, &mut self.found);
        // A short piece may be within a secret that begins before it.
        let tail = if bytes.len() < kept { &across } else { bytes };
        self.before = tail[tail.len().saturating_sub(kept)..].to_vec();
        self.end = at + bytes.len() as u64;
    }

    /// Takes the findings, as places on a disk.
    pub fn take_leaks(&mut self) -> Vec<SecretLeakError> {
        self.take_found().into_iter().map(|found| found.at(LeakPlace::Disk)).collect()
    }

    /// Returns whether all secrets were found.
    pub(super) fn is_complete(&self) -> bool {
        self.found.len() == self.needles.secrets
    }

    pub(super) fn into_found(self) -> Vec<FoundNeedle> {
        self.found
    }

    pub(super) fn take_found(&mut self) -> Vec<FoundNeedle> {
        std::mem::take(&mut self.found)
    }
}

/// Returns a form or, if it may be wrapped, so many parts of it that line ends leave one of them intact.
fn searched_parts(form: &WrittenForm) -> Vec<Vec<u8>> {
    let line_ends = form.bytes.len().div_ceil(SHORTEST_LINE);
    let length = form.bytes.len() / (line_ends + 1);
    if form.is_wrapped() && length >= SHORTEST_PART {
        return form.bytes.chunks_exact(length).map(<[u8]>::to_vec).collect();
    }
    vec![form.bytes.clone()]
}
