//! Values in notations that escape some or all characters.

use super::digits::{LOWER_HEX, encode_digits};

/// The characters that a percent-encoder does not escape besides letters, digits and `-._~`, and whether it writes a blank
/// as `+`.
#[derive(Default)]
pub(super) struct PercentStyle {
    pub(super) kept: &'static [u8],
    pub(super) plus: bool,
}

pub(super) fn percent(bytes: &[u8], digits: &[u8; 16], style: &PercentStyle) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b' ' if style.plus => out.push(b'+'),
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || style.kept.contains(byte) => {
                out.push(*byte);
            }
            byte => {
                out.push(b'%');
                out.extend(encode_digits(&[*byte], 0, digits));
            }
        }
    }
    out
}

/// The characters that a JSON writer escapes besides those that it must, and whether it escapes all that are not ASCII.
#[derive(Default)]
pub(super) struct JsonStyle {
    pub(super) escaped: &'static [u8],
    pub(super) ascii: bool,
}

pub(super) fn json(bytes: &[u8], style: &JsonStyle) -> Vec<u8> {
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

/// Forms of an apostrophe and a quotation mark in HTML, in all combinations.
const APOSTROPHES: [&str; 5] = ["&#39;", "&#x27;", "&apos;", "&#039;", "'"];
const QUOTES: [&str; 4] = ["&quot;", "&#34;", "&#x22;", "\""];

/// Returns the value as different writers of HTML escape it.
pub(super) fn html_variants(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut variants = Vec::new();
    for apostrophe in APOSTROPHES {
        for quote in QUOTES {
            let names = [(b'&', "&amp;"), (b'<', "&lt;"), (b'>', "&gt;"), (b'\'', apostrophe), (b'"', quote)];
            variants.push(replaced(bytes, &names));
            // The templates of Mustache's family.
            let more = [(b'/', "&#x2F;"), (b'`', "&#x60;"), (b'=', "&#x3D;")];
            variants.push(replaced(bytes, &[&names[..], &more[..]].concat()));
            variants.push(replaced(bytes, &[&names[..], &more[1..]].concat()));
        }
    }
    variants
}

pub(super) fn replaced(bytes: &[u8], by: &[(u8, &'static str)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for byte in bytes {
        match by.iter().find(|(from, _)| from == byte) {
            Some((_, to)) => out.extend_from_slice(to.as_bytes()),
            None => out.push(*byte),
        }
    }
    out
}

/// Escapes a value as `printf %q` of bash does.
pub(super) fn backslashed(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii() && !byte.is_ascii_alphanumeric() && !b"#%+-./:=@_~".contains(byte) {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out
}

/// Escapes a value as systemd-escape(1) does.
pub(super) fn systemd(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'/' => out.push(b'-'),
            byte if byte.is_ascii_alphanumeric() || b":_.".contains(byte) => out.push(*byte),
            byte => {
                out.extend_from_slice(b"\\x");
                out.extend(encode_digits(&[*byte], 0, LOWER_HEX));
            }
        }
    }
    out
}

/// Formats every byte with the same function.
pub(super) fn each_byte(bytes: &[u8], write: fn(u8) -> String) -> Vec<u8> {
    bytes.iter().flat_map(|byte| write(*byte).into_bytes()).collect()
}

/// Formats every unit of UTF-16 with the same function. Bytes that are not UTF-8 are not changed.
pub(super) fn each_unit(bytes: &[u8], write: fn(u16) -> Vec<u8>) -> Vec<u8> {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.encode_utf16().flat_map(write).collect(),
        Err(_) => bytes.to_vec(),
    }
}
