//! Masks secrets in output. [`SecretMask`] contains every form of every secret of a build; a [`MaskingStream`] replaces them
//! in one stream of bytes, such as the console or the standard output of a step, wherever the stream is cut.
//!
//! Line ends are skipped in the search, escaped ones (`\n` in JSON) included, so a form that is wrapped at some column is
//! found as well. A form that is interleaved with anything else, such as terminal escape sequences, is not.

mod digits;
mod escapes;
mod forms;
mod leaf;
mod parts;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::nfa::noncontiguous::NFA;
use aho_corasick::{Anchored, MatchKind};

use digits::base64_ends;
use forms::common_forms;
use parts::pieces;

pub use forms::{WrittenForm, written_forms};
pub(crate) use leaf::is_secret_name;
pub(crate) use parts::{SecretParts, pieces_of_unit};

/// The replacement of a secret.
pub const MASK: &str = "[secret]";
/// Minimum length of masked values: shorter ones would mask half of a log's words.
pub const SHORTEST_MASKED: usize = 4;
/// Length of the pieces in which long values are masked, bytes: a stream holds back no more than the longest form of one.
const PIECE: usize = 256;
/// Length of the pieces in which long units that look random are masked, bytes: a line of a key that another program's
/// output interrupts shows less than two pieces of itself.
const DENSE_PIECE: usize = 16;
/// Overlap of the pieces, so that a base64 digit of two pieces is a digit of one.
const OVERLAP: usize = 2;
/// Number of readings of a stream: without line ends, and without line ends and escaped ones.
const READINGS: usize = 2;
const PLAIN: usize = 0;
const UNESCAPED: usize = 1;
/// Limit of backslashes before the letter of an escaped line end: JSON within JSON within JSON has four.
const MOST_BACKSLASHES: usize = 4;

/// Finds the forms of secrets in streams. Cheap to clone; the default one finds nothing.
#[derive(Clone, Default)]
pub struct SecretMask(Option<Arc<SecretPatterns>>);

struct SecretPatterns {
    automaton: NFA,
    start: StateID,
    /// Length of the longest beginning of a form for each state of the automaton.
    depths: Vec<usize>,
    /// The pairs of bytes that forms begin with, a bit each.
    beginnings: Vec<u64>,
}

impl fmt::Debug for SecretMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.as_ref().map_or(0, |patterns| patterns.automaton.patterns_len());
        write!(f, "SecretMask({count} forms)")
    }
}

impl SecretMask {
    /// Creates a mask for these values, their parts, and every form of them.
    ///
    /// # Panics
    /// Only for more than two gigabytes of secrets.
    #[must_use]
    pub fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let long_enough = values.into_iter().filter(|value| value.trim_ascii().len() >= SHORTEST_MASKED);
        let needles: BTreeSet<Vec<u8>> = long_enough.flat_map(masked_forms).collect();
        if needles.is_empty() {
            return Self(None);
        }
        let builder = NFA::builder().match_kind(MatchKind::Standard).prefilter(false).build(&needles);
        let automaton = builder.expect("the forms of a few secrets fit into an automaton");
        Self(Some(Arc::new(SecretPatterns::new(automaton, &needles))))
    }

    /// Returns whether there are no secrets to replace.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Starts masking a stream.
    #[must_use]
    pub fn stream(&self) -> MaskingStream {
        MaskingStream::new(self.clone())
    }

    /// Returns the text with every form of a secret replaced.
    #[must_use]
    pub fn mask_text(&self, text: &str) -> String {
        if self.0.is_none() {
            return text.to_owned();
        }
        String::from_utf8_lossy(&self.mask_bytes(text.as_bytes())).into_owned()
    }

    /// Returns the bytes with every form of a secret replaced.
    #[must_use]
    pub fn mask_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.stream();
        let mut masked = stream.push(bytes);
        masked.extend(stream.finish());
        masked
    }
}

impl SecretPatterns {
    fn new(automaton: NFA, needles: &BTreeSet<Vec<u8>>) -> Self {
        let start = automaton.start_state(Anchored::No).unwrap_or(StateID::ZERO);
        let mut patterns = Self { automaton, start, depths: Vec::new(), beginnings: vec![0; (1 << 16) / 64] };
        for needle in needles {
            if let [first, second, ..] = needle[..] {
                let pair = usize::from(first) << 8 | usize::from(second);
                patterns.beginnings[pair / 64] |= 1 << (pair % 64);
            }
            let mut state = start;
            for (byte, depth) in needle.iter().zip(1..) {
                state = patterns.automaton.next_state(Anchored::No, state, *byte);
                let number = state.as_usize();
                if patterns.depths.len() <= number {
                    patterns.depths.resize(number + 1, 0);
                }
                patterns.depths[number] = depth;
            }
        }
        patterns
    }

    fn next(&self, state: StateID, byte: u8) -> StateID {
        self.automaton.next_state(Anchored::No, state, byte)
    }

    /// Returns whether no form begins at this byte, given the bytes that follow.
    fn is_plain(&self, byte: u8, rest: &[u8]) -> bool {
        let Some(next) = rest.first() else { return false };
        let pair = usize::from(byte) << 8 | usize::from(*next);
        let is_beginning = self.beginnings[pair / 64] >> (pair % 64) & 1 == 1;
        !is_beginning && ![byte, *next].iter().any(|byte| is_line_end(*byte) || *byte == b'\\')
    }

    /// Returns how many bytes belong to no form, whatever follows them.
    fn count_plain(&self, bytes: &[u8]) -> usize {
        (0..bytes.len()).take_while(|index| self.is_plain(bytes[*index], &bytes[index + 1..])).count()
    }

    /// Returns how many of the last bytes may be the beginning of a form.
    fn depth(&self, state: StateID) -> usize {
        self.depths.get(state.as_usize()).copied().unwrap_or(0)
    }

    /// Returns the length of the longest form that ends here.
    fn longest_match(&self, state: StateID) -> Option<usize> {
        if !self.automaton.is_match(state) {
            return None;
        }
        let ending = (0..self.automaton.match_len(state)).map(|index| self.automaton.match_pattern(state, index));
        ending.map(|pattern| self.automaton.pattern_len(pattern)).max()
    }
}

/// A byte that may belong to a secret.
#[derive(Clone)]
struct HeldByte {
    byte: u8,
    is_secret: bool,
    /// The readings of the stream that contain it.
    is_read: [bool; READINGS],
}

/// Masks one stream of bytes. It holds back a possible beginning of a secret until more is known.
///
/// The stream is read twice at once: without its line ends, and without those that are escaped too, as in JSON.
#[derive(Clone)]
pub struct MaskingStream {
    mask: SecretMask,
    states: [StateID; READINGS],
    held: Vec<HeldByte>,
    /// Number of backslashes at the end of the held bytes that may belong to an escaped line end.
    backslashes: usize,
    /// Number of held bytes that can be released.
    free: usize,
    /// Whether the last released byte belonged to a secret.
    in_secret: bool,
}

impl MaskingStream {
    fn new(mask: SecretMask) -> Self {
        let start = mask.0.as_ref().map_or(StateID::ZERO, |patterns| patterns.start);
        Self { mask, states: [start; READINGS], held: Vec::new(), backslashes: 0, free: 0, in_secret: false }
    }

    /// Takes the next bytes and returns those that can be shown by now.
    #[must_use]
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Some(patterns) = self.mask.0.clone() else { return bytes.to_vec() };
        let mut out = Vec::with_capacity(bytes.len());
        let mut left = bytes;
        while let Some((byte, rest)) = left.split_first() {
            self.take(&patterns, *byte);
            left = rest;
            // If the last byte begins nothing, no held bytes are the beginning of a form.
            let is_read = self.held.last().is_some_and(|held| held.is_read == [true; READINGS]);
            if is_read && self.depth(&patterns) <= 1 && patterns.is_plain(*byte, rest) {
                self.states = [patterns.start; READINGS];
                self.release(self.held.len(), &mut out);
                let plain = patterns.count_plain(rest);
                out.extend_from_slice(&rest[..plain]);
                self.in_secret &= plain == 0;
                left = &rest[plain..];
            }
        }
        let begun = (0..READINGS).map(|reading| {
            let depth = patterns.depth(self.states[reading]);
            self.start_of_last(reading, depth, self.held.len())
        });
        let begun = begun.min().unwrap_or(0).min(self.held.len() - self.backslashes);
        self.release(self.free.max(begun), &mut out);
        out
    }

    /// Ends the stream and returns the rest of it.
    #[must_use]
    pub fn finish(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        if let Some(patterns) = self.mask.0.clone() {
            self.read_backslashes(&patterns, self.held.len());
        }
        self.release(self.held.len(), &mut rest);
        *self = self.mask.stream();
        rest
    }

    fn take(&mut self, patterns: &SecretPatterns, byte: u8) {
        if is_line_end(byte) {
            self.read_backslashes(patterns, self.held.len());
            self.held.push(HeldByte { byte, is_secret: false, is_read: [false; READINGS] });
            // A line is not held back because its last letter begins a secret.
            if self.depth(patterns) < SHORTEST_MASKED {
                self.free = self.held.len();
            }
            return;
        }
        let index = self.held.len();
        self.held.push(HeldByte { byte, is_secret: false, is_read: [false; READINGS] });
        self.read(patterns, PLAIN, index);
        match byte {
            b'\\' if self.backslashes < MOST_BACKSLASHES => self.backslashes += 1,
            b'n' | b'r' if self.backslashes > 0 => self.backslashes = 0,
            _ => {
                self.read_backslashes(patterns, index);
                self.read(patterns, UNESCAPED, index);
            }
        }
    }

    /// Adds the backslashes that end here to the reading without escaped line ends: they belong to none of them.
    fn read_backslashes(&mut self, patterns: &SecretPatterns, end: usize) {
        for index in end - self.backslashes..end {
            self.read(patterns, UNESCAPED, index);
        }
        self.backslashes = 0;
    }

    fn read(&mut self, patterns: &SecretPatterns, reading: usize, index: usize) {
        self.held[index].is_read[reading] = true;
        self.states[reading] = patterns.next(self.states[reading], self.held[index].byte);
        if let Some(length) = patterns.longest_match(self.states[reading]) {
            let start = self.start_of_last(reading, length, index + 1);
            for held in &mut self.held[start..=index] {
                held.is_secret |= !is_line_end(held.byte);
            }
        }
    }

    /// Returns how many of the last bytes may be the beginning of a form, in any reading.
    fn depth(&self, patterns: &SecretPatterns) -> usize {
        self.states.iter().map(|state| patterns.depth(*state)).max().unwrap_or(0)
    }

    /// Returns the position of the last `count` bytes of a reading before `end`.
    fn start_of_last(&self, reading: usize, count: usize, end: usize) -> usize {
        let mut places = self.held[..end].iter().enumerate().rev().filter(|(_, held)| held.is_read[reading]);
        match count {
            0 => end,
            count => places.nth(count - 1).map_or(0, |(place, _)| place),
        }
    }

    fn release(&mut self, count: usize, out: &mut Vec<u8>) {
        for HeldByte { byte, is_secret, .. } in self.held.drain(..count) {
            match (is_secret, self.in_secret) {
                (true, false) => out.extend_from_slice(MASK.as_bytes()),
                (true, true) => {}
                (false, _) => out.push(byte),
            }
            self.in_secret = is_secret;
        }
        self.free = self.free.saturating_sub(count);
    }
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

fn without_line_ends(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().filter(|byte| !is_line_end(*byte)).collect()
}

/// Returns the masked forms of a secret, without line ends.
fn masked_forms(value: &[u8]) -> BTreeSet<Vec<u8>> {
    let parts = SecretParts::new(value);
    let mut needles = BTreeSet::new();
    for piece in pieces(parts.whole(), PIECE) {
        needles.extend(common_forms(piece).iter().map(|form| without_line_ends(&form.bytes)));
        needles.extend(base64_ends(piece));
    }
    for piece in parts.units().flat_map(|unit| pieces_of_unit(unit, DENSE_PIECE)) {
        needles.extend(parts.forms_of(piece).iter().map(|form| without_line_ends(&form.bytes)));
        needles.extend(base64_ends(piece));
    }
    needles.retain(|needle| needle.len() >= SHORTEST_MASKED);
    needles
}

#[cfg(test)]
mod tests;
