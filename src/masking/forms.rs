//! The forms in which programs write a secret down. The search of disks and files and the masking of output share this list.

use std::collections::BTreeSet;

/// One way to write a secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WrittenForm {
    /// How, to be read after "the secret is there": `in base64`.
    pub how: &'static str,
    /// The bytes.
    pub bytes: Vec<u8>,
}

const LOWER: &[u8; 16] = b"0123456789abcdef";
const UPPER: &[u8; 16] = b"0123456789ABCDEF";
const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// What stands before a value in an encoded text moves it by 0, 8 or 16 bits against the digits of 6 bits: so many bits
/// of its first digit belong to what stands before.
const BASE64_ALIGNMENTS: [usize; 3] = [0, 4, 2];

/// Returns every form of a value, each once. The first one is the value itself.
#[must_use]
pub fn written_forms(value: &[u8]) -> Vec<WrittenForm> {
    let mut forms = vec![
        ("as it is", value.to_vec()),
        ("in hex", hex(value, LOWER)),
        ("in hex", hex(value, UPPER)),
        ("JSON-escaped", json(value, &JsonStyle::default())),
        ("JSON-escaped", json(value, &JsonStyle { escaped: b"/", ascii: false })),
        ("JSON-escaped", json(value, &JsonStyle { escaped: b"<>&", ascii: false })),
        ("JSON-escaped", json(value, &JsonStyle { escaped: b"", ascii: true })),
        ("shell-quoted", replaced(value, &[(b'\'', r"'\''")])),
        ("shell-quoted", replaced(value, &[(b'\'', r#"'"'"'"#)])),
        ("shell-quoted", replaced(value, &[(b'"', "\\\""), (b'$', "\\$"), (b'`', "\\`"), (b'\\', "\\\\")])),
        ("shell-quoted", backslashed(value)),
        ("HTML-escaped", html(value, "&#39;", "&#34;")),
        ("HTML-escaped", html(value, "&#x27;", "&quot;")),
        ("HTML-escaped", html(value, "&apos;", "&quot;")),
        ("HTML-escaped", html(value, "'", "\"")),
    ];
    for digits in [UPPER, LOWER] {
        forms.push(("percent-encoded", percent(value, digits, &PercentStyle::default())));
        forms.push(("percent-encoded", percent(value, digits, &PercentStyle { kept: b"/", plus: false })));
        forms.push(("percent-encoded", percent(value, digits, &PercentStyle { kept: b"*", plus: true })));
    }
    for skipped in BASE64_ALIGNMENTS {
        forms.extend([STANDARD, URL_SAFE].map(|digits| ("in base64", base64(value, skipped, digits))));
    }
    let mut known = BTreeSet::new();
    forms.retain(|(_, bytes)| known.insert(bytes.clone()));
    forms.into_iter().map(|(how, bytes)| WrittenForm { how, bytes }).collect()
}

/// Returns the forms in which base64 writes the end of a text that ends with the value: with the last digit, whose bits are
/// not all the value's, and with the padding.
pub(super) fn base64_ends(value: &[u8]) -> Vec<Vec<u8>> {
    let mut ends = Vec::new();
    for skipped in BASE64_ALIGNMENTS {
        for digits in [STANDARD, URL_SAFE] {
            let rest = (value.len() * 8).saturating_sub(skipped) % 6;
            if let (Some(last), 2 | 4) = (value.last(), rest) {
                let mut end = base64(value, skipped, digits);
                end.push(digits[usize::from(last << (6 - rest) & 63)]);
                ends.push(end.clone());
                end.extend(if rest == 2 { "==" } else { "=" }.bytes());
                ends.push(end);
            }
        }
    }
    ends
}

fn hex(bytes: &[u8], digits: &[u8; 16]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| [digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]).collect()
}

/// What a percent-encoder leaves alone besides letters, digits and `-._~`, and whether it writes a blank as `+`.
#[derive(Default)]
struct PercentStyle {
    kept: &'static [u8],
    plus: bool,
}

fn percent(bytes: &[u8], digits: &[u8; 16], style: &PercentStyle) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b' ' if style.plus => out.push(b'+'),
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || style.kept.contains(byte) => {
                out.push(*byte);
            }
            byte => {
                out.push(b'%');
                out.extend(hex(&[*byte], digits));
            }
        }
    }
    out
}

/// Which characters a JSON writer escapes besides those that it must, and whether it escapes all that are not ASCII.
#[derive(Default)]
struct JsonStyle {
    escaped: &'static [u8],
    ascii: bool,
}

fn json(bytes: &[u8], style: &JsonStyle) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(bytes) else { return bytes.to_vec() };
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '/' if style.escaped.contains(&b'/') => out.push_str("\\/"),
            char if is_escaped(char, style) => {
                let mut units = [0; 2];
                out.extend(char.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
            }
            char => out.push(char),
        }
    }
    out.into_bytes()
}

fn is_escaped(char: char, style: &JsonStyle) -> bool {
    let is_listed = u8::try_from(char).is_ok_and(|byte| style.escaped.contains(&byte));
    char.is_control() || is_listed || style.ascii && !char.is_ascii()
}

fn html(bytes: &[u8], apostrophe: &'static str, quote: &'static str) -> Vec<u8> {
    let names = [(b'&', "&amp;"), (b'<', "&lt;"), (b'>', "&gt;"), (b'\'', apostrophe), (b'"', quote)];
    replaced(bytes, &names)
}

fn replaced(bytes: &[u8], by: &[(u8, &'static str)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for byte in bytes {
        match by.iter().find(|(from, _)| from == byte) {
            Some((_, to)) => out.extend_from_slice(to.as_bytes()),
            None => out.push(*byte),
        }
    }
    out
}

/// As `printf %q` of bash writes words.
fn backslashed(bytes: &[u8]) -> Vec<u8> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || !byte.is_ascii() || b"#%+-./:=@_~".contains(byte);
    let mut out = Vec::with_capacity(bytes.len());
    for byte in bytes {
        if !is_plain(byte) {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out
}

/// Returns the digits that are the bytes' alone, whatever stands before and after, when the first begins after so many bits.
fn base64(bytes: &[u8], skipped: usize, digits: &[u8; 64]) -> Vec<u8> {
    let bit = |at: usize| usize::from(bytes[at / 8] >> (7 - at % 8) & 1);
    let starts = (skipped..).step_by(6).take_while(|start| start + 6 <= bytes.len() * 8);
    starts.map(|start| digits[(start..start + 6).fold(0, |digit, at| digit << 1 | bit(at))]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o3_special_characters_have_a_form_in_every_notation() {
        let forms = written_forms("it's \"a\" $5 & <b>/é".as_bytes());
        for (how, text) in [
            ("JSON-escaped", r#"it's \"a\" $5 & <b>/é"#),
            ("JSON-escaped", r#"it's \"a\" $5 & <b>\/é"#),
            ("JSON-escaped", r#"it's \"a\" $5 \u0026 \u003cb\u003e/é"#),
            ("JSON-escaped", r#"it's \"a\" $5 & <b>/\u00e9"#),
            ("shell-quoted", r#"it'\''s "a" $5 & <b>/é"#),
            ("shell-quoted", r#"it'"'"'s "a" $5 & <b>/é"#),
            ("shell-quoted", r#"it's \"a\" \$5 & <b>/é"#),
            ("shell-quoted", r#"it\'s\ \"a\"\ \$5\ \&\ \<b\>/é"#),
            ("HTML-escaped", "it&#39;s &#34;a&#34; $5 &amp; &lt;b&gt;/é"),
            ("percent-encoded", "it%27s%20%22a%22%20%245%20%26%20%3Cb%3E%2F%C3%A9"),
            ("percent-encoded", "it%27s+%22a%22+%245+%26+%3Cb%3E%2F%C3%A9"),
            ("percent-encoded", "it%27s%20%22a%22%20%245%20%26%20%3cb%3e/%c3%a9"),
        ] {
            assert!(forms.contains(&WrittenForm { how, bytes: text.as_bytes().to_vec() }), "{text}");
        }
    }

    #[test]
    fn o3_the_end_of_base64_has_its_last_digit_and_its_padding() {
        use base64::Engine;
        for before in ["", "x", "xy"] {
            for length in 4..10 {
                let value = &b"q?>\xff~zzab"[..length];
                let text = base64::prelude::BASE64_STANDARD.encode([before.as_bytes(), value].concat());
                let padded = text.ends_with('=');
                let ends = base64_ends(value);
                assert!(!padded || ends.iter().any(|end| text.as_bytes().ends_with(end)), "{before} {length}");
            }
        }
    }
}
