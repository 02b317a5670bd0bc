//! Secrets on their way to people. [`SecretMask`] knows every form of every secret of a build; a [`MaskingStream`] replaces
//! them in one stream of bytes, such as the console or the standard output of a step, wherever the stream is cut.
//!
//! Line ends are passed over when secrets are looked for, so a form that is wrapped at some column is found as well. A form
//! that is interleaved with anything else, such as terminal escape sequences, is not.

mod forms;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::nfa::noncontiguous::NFA;
use aho_corasick::{Anchored, MatchKind};

pub use forms::{WrittenForm, written_forms};

/// What is shown in the place of a secret.
pub const MASK: &str = "[secret]";
/// Shorter values are not masked: they would mask half of a log's words.
pub const SHORTEST_MASKED: usize = 4;
/// Long values are masked in pieces of this length, bytes: a stream holds back no more than the longest form of one.
const PIECE: usize = 256;
/// The pieces overlap by this much, so that a base64 digit of two pieces is a digit of one.
const OVERLAP: usize = 2;

/// Finds the forms of secrets in streams. Cheap to clone; the default one finds nothing.
#[derive(Clone, Default)]
pub struct SecretMask(Option<Arc<SecretPatterns>>);

struct SecretPatterns {
    automaton: NFA,
    start: StateID,
    /// How many bytes of the longest beginning of a form lead to a state, by the state's number.
    depths: Vec<usize>,
}

impl fmt::Debug for SecretMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.as_ref().map_or(0, |patterns| patterns.automaton.patterns_len());
        write!(f, "SecretMask({count} forms)")
    }
}

impl SecretMask {
    /// Knows these values, each of their lines, and every form of them.
    ///
    /// # Panics
    /// Only for more than two gigabytes of secrets.
    #[must_use]
    pub fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut needles = BTreeSet::new();
        for piece in values.into_iter().flat_map(masked_parts).flat_map(pieces) {
            needles.extend(written_forms(piece).into_iter().map(|form| without_line_ends(&form.bytes)));
            needles.extend(forms::base64_ends(piece));
        }
        needles.retain(|needle| needle.len() >= SHORTEST_MASKED);
        if needles.is_empty() {
            return Self(None);
        }
        let builder = NFA::builder().match_kind(MatchKind::Standard).prefilter(false).build(&needles);
        let automaton = builder.expect("the forms of a few secrets fit into an automaton");
        Self(Some(Arc::new(SecretPatterns::new(automaton, &needles))))
    }

    /// Returns whether there is nothing to replace.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Begins to mask a stream.
    #[must_use]
    pub fn stream(&self) -> MaskingStream {
        let state = self.0.as_ref().map_or(StateID::ZERO, |patterns| patterns.start);
        MaskingStream { mask: self.clone(), state, held: Vec::new(), is_secret: Vec::new(), free: 0, in_secret: false }
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
        let mut patterns = Self { automaton, start, depths: Vec::new() };
        for needle in needles {
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

/// One stream of bytes, masked. It holds back what may be the beginning of a secret until more is known.
pub struct MaskingStream {
    mask: SecretMask,
    state: StateID,
    held: Vec<u8>,
    /// Which of the held bytes belong to a secret.
    is_secret: Vec<bool>,
    /// So many of the held bytes are not worth to be held.
    free: usize,
    /// The last byte that was released belonged to a secret.
    in_secret: bool,
}

impl MaskingStream {
    /// Takes the next bytes and returns what can be shown by now.
    #[must_use]
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Some(patterns) = self.mask.0.clone() else { return bytes.to_vec() };
        for byte in bytes {
            self.take(&patterns, *byte);
        }
        let begun = self.start_of_last(patterns.depth(self.state));
        self.release(self.free.max(begun))
    }

    /// Ends the stream and returns the rest of it.
    #[must_use]
    pub fn finish(&mut self) -> Vec<u8> {
        let rest = self.release(self.held.len());
        *self = self.mask.stream();
        rest
    }

    fn take(&mut self, patterns: &SecretPatterns, byte: u8) {
        self.held.push(byte);
        self.is_secret.push(false);
        if is_line_end(byte) {
            // A line is not kept from people because its last letter begins a secret.
            if patterns.depth(self.state) < SHORTEST_MASKED {
                self.free = self.held.len();
            }
            return;
        }
        self.state = patterns.next(self.state, byte);
        if let Some(length) = patterns.longest_match(self.state) {
            let start = self.start_of_last(length);
            for (byte, is_secret) in self.held.iter().zip(&mut self.is_secret).skip(start) {
                *is_secret |= !is_line_end(*byte);
            }
        }
    }

    /// Returns where the last bytes begin, so many of them without line ends.
    fn start_of_last(&self, count: usize) -> usize {
        let mut places = self.held.iter().enumerate().rev().filter(|(_, byte)| !is_line_end(**byte));
        match count {
            0 => self.held.len(),
            count => places.nth(count - 1).map_or(0, |(place, _)| place),
        }
    }

    fn release(&mut self, count: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(count);
        for (byte, is_secret) in self.held.drain(..count).zip(self.is_secret.drain(..count)) {
            match (is_secret, self.in_secret) {
                (true, false) => out.extend_from_slice(MASK.as_bytes()),
                (true, true) => {}
                (false, _) => out.push(byte),
            }
            self.in_secret = is_secret;
        }
        self.free = self.free.saturating_sub(count);
        out
    }
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

fn without_line_ends(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().filter(|byte| !is_line_end(*byte)).collect()
}

/// Returns a value without the white space around it, and each of its lines likewise, as far as they are long enough.
fn masked_parts(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    std::iter::once(value.trim_ascii()).chain(lines).filter(|part| part.len() >= SHORTEST_MASKED)
}

/// Cuts a long value into pieces that overlap; the last one is as long as the others.
fn pieces(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let last = value.len().saturating_sub(PIECE);
    let starts = (0..last).step_by(PIECE - OVERLAP).chain([last]);
    starts.map(move |start| &value[start..value.len().min(start + PIECE)])
}

#[cfg(test)]
mod tests;
