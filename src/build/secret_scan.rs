//! Looks for secrets where none may be: on the sealed disk, free blocks included, and on a disk that is to be kept in the
//! cache. A step that writes a secret into a file and removes it again leaves it in a free block, for whoever gets the image.
//!
//! Each is looked for as it is and as programs write such things down: in base64, in hex and percent-encoded. Of a secret
//! of several lines, such as a key, the longest line is what is looked for: the others are headings.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use aho_corasick::AhoCorasick;

use crate::error::{Fault, Kind};

use super::secrets::Secrets;

/// Anything shorter is found in every disk by chance, bytes.
const SHORTEST: usize = 8;
/// What is longer is known by its beginning, bytes.
const LONGEST: usize = 64;
const SECTOR: u64 = 512;

/// A secret is where none may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the secret `{name}` is in the image, {form}, at byte {at} of its disk (sector {})", at / SECTOR)]
pub struct Leak {
    /// The secret's name.
    pub name: String,
    /// How it is written there.
    pub form: &'static str,
    /// Where it begins, bytes.
    pub at: u64,
}

impl Fault for Leak {
    fn kind(&self) -> Kind {
        Kind::Output
    }

    fn hints(&self) -> Vec<String> {
        vec![
            "a step has written it to the disk; what is removed later stays in free blocks".into(),
            "read it from the file under $KILN_SECRETS, which is gone after the step, and let no program keep it"
                .into(),
        ]
    }
}

/// Looks at a disk from its first byte to its last.
pub struct Search {
    needles: AhoCorasick,
    /// Which secret each needle is, and how written.
    meaning: Vec<(String, &'static str)>,
    longest: usize,
    /// The end of what was seen last, and where that ended: a secret may lie across.
    before: Vec<u8>,
    end: u64,
}

impl Search {
    /// For every secret that is long enough; nothing if there is none. Names those that are too short to `too_short`.
    ///
    /// # Panics
    /// Never: a few short needles always make a searcher.
    pub fn new(secrets: &Secrets, too_short: &mut dyn FnMut(&str)) -> Option<Self> {
        let (mut needles, mut meaning) = (Vec::new(), Vec::new());
        for (name, value) in secrets.all() {
            let Some(line) = longest_line(value) else {
                too_short(name);
                continue;
            };
            for (form, needle) in forms(line) {
                meaning.push((name.to_owned(), form));
                needles.push(needle);
            }
        }
        let longest = needles.iter().map(Vec::len).max()?;
        let needles = AhoCorasick::new(needles).expect("a few short needles");
        Some(Self { needles, meaning, longest, before: Vec::new(), end: 0 })
    }

    /// Looks at the bytes of this place.
    pub fn look(&mut self, at: u64, bytes: &[u8]) -> Option<Leak> {
        if at != self.end {
            self.before.clear();
        }
        let kept = self.longest - 1;
        let head = &bytes[..bytes.len().min(kept)];
        let across = [&self.before, head].concat();
        let start = at - self.before.len() as u64;
        let found = self.find(start, &across).or_else(|| self.find(at, bytes));
        // A short piece may lie within a secret that begins before it.
        let tail = if bytes.len() < kept { &across } else { bytes };
        self.before = tail[tail.len().saturating_sub(kept)..].to_vec();
        self.end = at + bytes.len() as u64;
        found
    }

    fn find(&self, start: u64, bytes: &[u8]) -> Option<Leak> {
        let found = self.needles.find(bytes)?;
        let (name, form) = &self.meaning[found.pattern().as_usize()];
        Some(Leak { name: name.clone(), form, at: start + found.start() as u64 })
    }

    /// Looks at a whole file, as it lies there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn look_at_file(mut self, path: &Path) -> io::Result<Option<Leak>> {
        let (mut file, mut at) = (File::open(path)?, 0);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                return Ok(None);
            }
            if let Some(leak) = self.look(at, &buffer[..count]) {
                return Ok(Some(leak));
            }
            at += count as u64;
        }
    }
}

fn longest_line(value: &[u8]) -> Option<&[u8]> {
    let lines = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines
        .filter(|line| line.len() >= SHORTEST)
        .max_by_key(|line| line.len())
        .map(|line| &line[..line.len().min(LONGEST)])
}

fn forms(line: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut forms = vec![
        ("as it is", line.to_vec()),
        ("in hex", hex(line, b"0123456789abcdef")),
        ("in hex", hex(line, b"0123456789ABCDEF")),
        ("percent-encoded", percent(line, b"0123456789ABCDEF")),
        ("percent-encoded", percent(line, b"0123456789abcdef")),
    ];
    // What stands before it in the encoded text moves it by 0, 8 or 16 bits against the digits of 6 bits.
    for skipped in [0, 4, 2] {
        forms.extend([STANDARD, URL_SAFE].map(|digits| ("in base64", base64(line, skipped, digits))));
    }
    let mut known = std::collections::BTreeSet::new();
    forms.retain(|(_, needle)| known.insert(needle.clone()));
    forms
}

fn hex(bytes: &[u8], digits: &[u8; 16]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| [digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]).collect()
}

fn percent(bytes: &[u8], digits: &[u8; 16]) -> Vec<u8> {
    let encode = |byte: &u8| match byte {
        byte if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) => vec![*byte],
        byte => [b"%".as_slice(), &hex(&[*byte], digits)].concat(),
    };
    bytes.iter().flat_map(encode).collect()
}

/// The digits that are the bytes' alone, whatever stands before and after, when the first begins after so many bits.
fn base64(bytes: &[u8], skipped: usize, digits: &[u8; 64]) -> Vec<u8> {
    let bit = |at: usize| usize::from(bytes[at / 8] >> (7 - at % 8) & 1);
    let starts = (skipped..).step_by(6).take_while(|start| start + 6 <= bytes.len() * 8);
    starts.map(|start| digits[(start..start + 6).fold(0, |digit, at| digit << 1 | bit(at))]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &[u8] = b"p@ss word+/?~and more";

    fn search() -> Search {
        Search::new(&Secrets::from([("token", VALUE)]), &mut |name| panic!("{name} is long enough")).unwrap()
    }

    fn shell(script: &str) -> Vec<u8> {
        let output = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "{script}");
        output.stdout
    }

    #[test]
    fn o3_every_form_is_found_wherever_the_pieces_are_cut() {
        let text = String::from_utf8(VALUE.to_vec()).unwrap();
        let forms = [
            ("as it is", VALUE.to_vec()),
            ("in hex", shell(&format!("printf '%s' '{text}' | od -An -v -tx1 | tr -d ' \\n'"))),
            ("in base64", shell(&format!("printf '%s' '{text}' | base64"))),
            ("in base64", shell(&format!("printf 'x%s' '{text}' | base64"))),
            ("in base64", shell(&format!("printf 'user:%s more' '{text}' | base64"))),
            ("percent-encoded", b"p%40ss%20word%2B%2F%3F~and%20more".to_vec()),
        ];
        for (form, written) in forms {
            let disk = [vec![b'.'; 1000], written, vec![b'.'; 1000]].concat();
            for size in [1, 7, 64, 999, 1001, 4096] {
                let mut search = search();
                let pieces =
                    disk.chunks(size).scan(0, |at, piece| Some((std::mem::replace(at, *at + piece.len()), piece)));
                let found: Vec<_> = pieces.filter_map(|(at, piece)| search.look(at as u64, piece)).collect();
                let leak = found.first().unwrap_or_else(|| panic!("{form} in pieces of {size}"));
                assert_eq!((leak.name.as_str(), leak.form), ("token", form));
                assert!((1000..1010).contains(&leak.at), "{leak}");
            }
        }
    }

    #[test]
    fn o3_what_is_apart_is_no_secret() {
        let mut search = search();
        assert_eq!(search.look(0, &VALUE[..10]), None);
        assert_eq!(search.look(4096, &VALUE[10..]), None);
    }

    #[test]
    fn o3_of_a_key_the_longest_line_counts_and_a_pin_is_too_short() {
        let key = b"-----BEGIN KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ7kQz4rO0Yp3v\n-----END KEY-----\n";
        let mut short = Vec::new();
        let secrets = Secrets::from([("key", key.as_slice()), ("pin", b"1234")]);
        let mut search = Search::new(&secrets, &mut |name| short.push(name.to_owned())).unwrap();
        assert_eq!(short, ["pin"]);
        assert_eq!(search.look(0, b"-----BEGIN KEY-----\n"), None);
        assert_eq!(search.look(512, b"MC4CAQAwBQYDK2VwBCIEIJ7kQz4rO0Yp3v").unwrap().name, "key");
    }
}
