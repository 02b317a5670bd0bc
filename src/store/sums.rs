//! `SHA256SUMS` as coreutils' `sha256sum` writes and checks it.

use std::collections::BTreeMap;

use crate::digest::Sha256Digest;

use super::digest::Digest;
use super::reference::ImageId;

/// Name of the file inside a version folder.
pub(super) const FILE: &str = "SHA256SUMS";
/// Size limit of a file that is read, bytes.
pub(super) const LARGEST: u64 = 64 << 20;

/// Returns the content of the file: a line for each digest, sorted by name.
pub(super) fn render(digests: &BTreeMap<String, Digest>) -> String {
    digests.iter().map(|(file, digest)| line(file, digest.sha256)).collect()
}

/// Formats a line. A name with a backslash or line break is escaped, and the whole line then starts with a backslash
/// (coreutils manual, "md5sum invocation").
fn line(file: &str, sha256: Sha256Digest) -> String {
    let escaped = file.replace('\\', r"\\").replace('\n', r"\n").replace('\r', r"\r");
    let mark = if escaped == file { "" } else { r"\" };
    format!("{mark}{sha256}  {escaped}\n")
}

/// Returns the digest of each file; `None` if a line differs from what [`render`] writes, the last one is incomplete, or a
/// file is listed twice.
pub(super) fn parse(text: &str) -> Option<BTreeMap<String, Sha256Digest>> {
    let mut sums = BTreeMap::new();
    if !text.is_empty() && !text.ends_with('\n') {
        return None;
    }
    for line in text.split_terminator('\n') {
        let (line, is_escaped) = line.strip_prefix('\\').map_or((line, false), |rest| (rest, true));
        let (digits, file) = line.split_once("  ")?;
        let sha256: Sha256Digest = digits.parse().ok()?;
        if sha256.to_string() != digits {
            return None;
        }
        let file = if is_escaped { unescape(file)? } else { file.to_owned() };
        if sums.insert(file, sha256).is_some() {
            return None;
        }
    }
    Some(sums)
}

fn unescape(text: &str) -> Option<String> {
    let mut chars = text.chars();
    let mut plain = String::new();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next()? {
                'n' => '\n',
                'r' => '\r',
                '\\' => '\\',
                _ => return None,
            },
            c => c,
        });
    }
    Some(plain)
}

/// Returns the comment that minisign signs along with the sums, and which names the version.
pub(super) fn comment(id: &ImageId, sums: &[u8]) -> String {
    format!("{id} {}", Sha256Digest::of(sums))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest(byte: u8) -> Digest {
        Digest { bytes: 0, sha256: Sha256Digest::new([byte; 32]) }
    }

    #[test]
    fn lines_are_sorted_and_odd_names_escaped() {
        let digests = [("b", 1), ("a\nb\\", 2)].map(|(name, byte)| (name.to_owned(), digest(byte))).into();
        let expected = format!("\\{}  a\\nb\\\\\n{}  b\n", "02".repeat(32), "01".repeat(32));
        assert_eq!(render(&digests), expected);
    }

    #[test]
    fn torn_and_foreign_lines_are_refused() {
        let good = line("a", Sha256Digest::new([0; 32]));
        assert!(parse(&good).is_some());
        for bad in [&good[..40], "no sums\n", &good.replace("  a", " *a"), &good.repeat(2), &good.replace('0', "F")] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_names_survive_a_round_trip(names in proptest::collection::btree_set("[a-z \\\\\n\r/]{1,8}", 0..6)) {
            let digests: BTreeMap<_, _> = names.into_iter().zip(0..).map(|(name, n)| (name, digest(n))).collect();
            let expected: BTreeMap<_, _> = digests.iter().map(|(n, d)| (n.clone(), d.sha256)).collect();
            prop_assert_eq!(parse(&render(&digests)), Some(expected));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
