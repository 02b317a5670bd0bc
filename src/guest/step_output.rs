//! Output of a guest process for people: cut into lines, bounded, with secrets masked, and its last lines remembered.

use std::collections::VecDeque;

use crate::event::Channel;
use crate::masking::{MaskingStream, SecretMask};

/// The longest line, bytes; longer ones are cut into pieces.
const LINE_LIMIT: usize = 4 << 10;
/// The number of lines that are shown with an error message.
const TAIL: usize = 20;
/// The number of lines that are remembered, in which the cause of an error is looked for.
const RECENT: usize = 200;

/// Cuts the output of one process into lines, after secrets were masked in it: no cut can hide one.
#[derive(Clone)]
pub struct LineSplitter {
    masking: [MaskingStream; 2],
    partial: [Vec<u8>; 2],
    recent: VecDeque<String>,
}

impl LineSplitter {
    /// Creates an empty buffer that masks these secrets.
    #[must_use]
    pub fn new(mask: &SecretMask) -> Self {
        let masking = [mask.stream(), mask.stream()];
        Self { masking, partial: Default::default(), recent: VecDeque::new() }
    }

    /// Adds bytes, and passes each whole line to `emit`.
    pub fn feed(&mut self, channel: Channel, bytes: &[u8], emit: &mut dyn FnMut(Channel, String)) {
        let masked = self.masking[channel as usize].push(bytes);
        self.cut(channel, &masked, emit);
    }

    fn cut(&mut self, channel: Channel, bytes: &[u8], emit: &mut dyn FnMut(Channel, String)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            for part in piece.chunks(LINE_LIMIT) {
                let partial = &mut self.partial[channel as usize];
                partial.extend_from_slice(part);
                if partial.last() == Some(&b'\n') || partial.len() >= LINE_LIMIT {
                    self.flush(channel, emit);
                }
            }
        }
    }

    /// Passes the rest, which has no newline, to `emit`.
    pub fn finish(&mut self, emit: &mut dyn FnMut(Channel, String)) {
        for channel in [Channel::Stdout, Channel::Stderr] {
            let held = self.masking[channel as usize].finish();
            self.cut(channel, &held, emit);
            if !self.partial[channel as usize].is_empty() {
                self.flush(channel, emit);
            }
        }
    }

    /// Returns the last lines, oldest first.
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        self.recent.iter().skip(self.recent.len().saturating_sub(TAIL)).cloned().collect()
    }

    /// Returns the remembered lines, oldest first.
    #[must_use]
    pub(crate) fn recent(&self) -> Vec<String> {
        self.recent.iter().cloned().collect()
    }

    fn flush(&mut self, channel: Channel, emit: &mut dyn FnMut(Channel, String)) {
        let bytes = std::mem::take(&mut self.partial[channel as usize]);
        let text = String::from_utf8_lossy(&bytes);
        let line = text.strip_suffix('\n').unwrap_or(&text).to_owned();
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(line.clone());
        emit(channel, line);
    }
}

/// Appends bytes to a buffer, and drops those beyond its limit.
pub(crate) fn append_within(limit: usize, buffer: &mut Vec<u8>, bytes: &[u8]) {
    let room = limit - buffer.len();
    buffer.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masking::written_forms;

    fn lines(chunks: &[&[u8]]) -> (Vec<String>, Vec<String>) {
        let (mut lines, mut seen) = (LineSplitter::new(&SecretMask::default()), Vec::new());
        for chunk in chunks {
            lines.feed(Channel::Stdout, chunk, &mut |_, line| seen.push(line));
        }
        lines.finish(&mut |_, line| seen.push(line));
        (seen, lines.tail())
    }

    #[test]
    fn lines_survive_any_cut() {
        assert_eq!(lines(&[b"one\ntw", b"o\n\nthree"]).0, ["one", "two", "", "three"]);
    }

    #[test]
    fn an_endless_line_comes_in_pieces() {
        let (seen, tail) = lines(&[&vec![b'x'; 1 << 20]]);
        assert_eq!(seen.len(), (1 << 20) / LINE_LIMIT);
        assert!(seen.iter().all(|line| line.len() <= LINE_LIMIT));
        assert_eq!(tail.len(), TAIL);
    }

    #[test]
    fn streams_do_not_mix_within_a_line() {
        let (mut lines, mut seen) = (LineSplitter::new(&SecretMask::default()), Vec::new());
        lines.feed(Channel::Stdout, b"out", &mut |channel, line| seen.push((channel, line)));
        lines.feed(Channel::Stderr, b"err\n", &mut |channel, line| seen.push((channel, line)));
        lines.feed(Channel::Stdout, b"put\n", &mut |channel, line| seen.push((channel, line)));
        assert_eq!(seen, [(Channel::Stderr, "err".into()), (Channel::Stdout, "output".into())]);
    }

    #[test]
    fn o3_no_secret_lies_across_the_cut_of_a_long_line() {
        let mask = SecretMask::new([&b"hunter2-hunter2"[..]]);
        for before in LINE_LIMIT - 20..LINE_LIMIT + 5 {
            let text = format!("{}hunter2-hunter2 and more\n", "0".repeat(before));
            for write in [1, 7, text.len()] {
                let (mut lines, mut seen) = (LineSplitter::new(&mask), Vec::new());
                for piece in text.as_bytes().chunks(write) {
                    lines.feed(Channel::Stderr, piece, &mut |_, line| seen.push(line));
                }
                lines.finish(&mut |_, line| seen.push(line));
                assert_eq!(seen.concat(), format!("{}[secret] and more", "0".repeat(before)));
                assert!(!lines.tail().concat().contains("hunter2"));
            }
        }
    }

    /// A value with characters that every notation writes in another way.
    const SPECIAL: &[u8] = b"p@ss 'word' & \"more\"\\/<b>";

    #[test]
    fn o3_no_form_at_any_place_around_the_cut_and_in_three_writes_gets_through() {
        let (mask, mut runs) = (SecretMask::new([SPECIAL]), 0);
        for form in written_forms(SPECIAL) {
            let length = form.bytes.len();
            let (first_start, mut begun) = (LINE_LIMIT - length - 1, LineSplitter::new(&mask));
            begun.feed(Channel::Stdout, &vec![0x1f; first_start], &mut |_, _| panic!("no line is whole"));
            for start in 0..=length + 2 {
                let text = [&vec![0x1f; start][..], &form.bytes, b"\x1f and more\n"].concat();
                for first in [0, 1, length / 2] {
                    for second in [length - 1, length + 5] {
                        let cuts = [start + first, start + second.max(first), text.len()];
                        let (mut lines, mut seen, mut from) = (begun.clone(), Vec::new(), 0);
                        for cut in cuts {
                            lines.feed(Channel::Stdout, &text[from..cut], &mut |_, line| seen.push(line));
                            from = cut;
                        }
                        lines.finish(&mut |_, line| seen.push(line));
                        let shown = seen.concat();
                        assert!(!shown.as_bytes().windows(length).any(|window| window == form.bytes), "{}", form.how);
                        assert!(shown.contains("[secret]") && shown.ends_with("\u{1f} and more"), "{}", form.how);
                        runs += 1;
                    }
                }
            }
        }
        println!(
            "masked: {} forms, {runs} ways to write them around the limit of a line, 0 found",
            written_forms(SPECIAL).len()
        );
    }
}
