//! The forms in which programs write a secret. The search of disks and files and the masking of output share this list.

use std::collections::BTreeSet;

use super::digits::{
    BASE32, BASE32_ALIGNMENTS, BASE64, BASE64_ALIGNMENTS, BASE64_URL, LOWER_HEX, UPPER_HEX, encode_digits,
};
use super::escapes::{
    JsonStyle, PercentStyle, backslashed, each_byte, each_unit, html_variants, json, percent, replaced, systemd,
};

/// One way to write a secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WrittenForm {
    /// Name of the form, to be read after "the secret is there": `in base64`.
    pub how: &'static str,
    /// The bytes of the form.
    pub bytes: Vec<u8>,
}

impl WrittenForm {
    /// Returns whether programs break this form into lines.
    #[must_use]
    pub fn is_wrapped(&self) -> bool {
        matches!(self.how, HEX | BASE32_TEXT | BASE64_TEXT | BASE64_TWICE)
    }
}

const PLAIN: &str = "as it is";
const HEX: &str = "in hex";
const BASE32_TEXT: &str = "in base32";
const BASE64_TEXT: &str = "in base64";
const BASE64_TWICE: &str = "in base64 of base64";
const JSON: &str = "JSON-escaped";
const SHELL: &str = "shell-quoted";
const HTML: &str = "HTML-escaped";
const PERCENT: &str = "percent-encoded";
const BACKSLASH: &str = "backslash-escaped";
const DOUBLED: &str = "with doubled quotes";
const UTF16: &str = "in UTF-16";
const SYSTEMD: &str = "systemd-escaped";

type NamedForm = (&'static str, Vec<u8>);

/// Returns every form of a value, each once. The first one is the value itself.
#[must_use]
pub fn written_forms(value: &[u8]) -> Vec<WrittenForm> {
    let mut forms = common(value);
    forms.extend(digit_forms(value));
    forms.extend(escaped_throughout(value));
    distinct(forms)
}

/// Returns the most common forms, each once. The first one is the value itself.
pub(super) fn common_forms(value: &[u8]) -> Vec<WrittenForm> {
    distinct(common(value))
}

fn distinct(mut forms: Vec<NamedForm>) -> Vec<WrittenForm> {
    let mut known = BTreeSet::new();
    forms.retain(|(_, bytes)| known.insert(bytes.clone()));
    forms.into_iter().map(|(how, bytes)| WrittenForm { how, bytes }).collect()
}

fn common(value: &[u8]) -> Vec<NamedForm> {
    let mut forms = vec![
        (PLAIN, value.to_vec()),
        (HEX, encode_digits(value, 0, LOWER_HEX)),
        (HEX, encode_digits(value, 0, UPPER_HEX)),
    ];
    forms.extend(json_forms(value));
    forms.extend(shell_forms(value));
    forms.extend(html_variants(value).into_iter().map(|bytes| (HTML, bytes)));
    for digits in [UPPER_HEX, LOWER_HEX] {
        forms.push((PERCENT, percent(value, digits, &PercentStyle::default())));
        forms.push((PERCENT, percent(value, digits, &PercentStyle { kept: b"/", plus: false })));
        forms.push((PERCENT, percent(value, digits, &PercentStyle { kept: b"*", plus: true })));
    }
    for skipped in BASE64_ALIGNMENTS {
        forms.extend([BASE64, BASE64_URL].map(|digits| (BASE64_TEXT, encode_digits(value, skipped, digits))));
    }
    forms
}

fn json_forms(value: &[u8]) -> Vec<NamedForm> {
    let styles = [
        JsonStyle::default(),
        JsonStyle { escaped: b"/", ascii: false },
        JsonStyle { escaped: b"<>&", ascii: false },
        JsonStyle { escaped: b"", ascii: true },
    ];
    let once: Vec<Vec<u8>> = styles.iter().map(|style| json(value, style)).collect();
    let twice = once.iter().map(|text| json(text, &JsonStyle::default())).collect::<Vec<_>>();
    once.into_iter().chain(twice).map(|bytes| (JSON, bytes)).collect()
}

fn shell_forms(value: &[u8]) -> Vec<NamedForm> {
    let single = [(b'\'', r"'\''")];
    let quoted = replaced(value, &single);
    let ansi = [(b'\'', r"\'"), (b'\\', r"\\"), (b'\n', r"\n"), (b'\r', r"\r"), (b'\t', r"\t"), (0x1b, r"\E")];
    vec![
        // A word of bash's xtrace may hold quoted words, and those others.
        (SHELL, replaced(&replaced(&quoted, &single), &single)),
        (SHELL, replaced(&quoted, &single)),
        (SHELL, quoted),
        (SHELL, replaced(value, &[(b'\'', r#"'"'"'"#)])),
        (SHELL, replaced(value, &[(b'"', "\\\""), (b'$', "\\$"), (b'`', "\\`"), (b'\\', "\\\\")])),
        // In double quotes a backslash may stand for itself, and a `$` before what is no name.
        (SHELL, replaced(value, &[(b'"', "\\\""), (b'$', "\\$"), (b'`', "\\`")])),
        (SHELL, replaced(value, &[(b'"', "\\\"")])),
        (SHELL, backslashed(value)),
        (SHELL, backslashed(&backslashed(value))),
        (SHELL, replaced(value, &ansi)),
        (SHELL, replaced(&replaced(value, &ansi), &single)),
        (BACKSLASH, replaced(value, &[(b'\\', r"\\"), (b'\n', r"\n"), (b'\r', r"\r"), (b'\t', r"\t")])),
        (DOUBLED, replaced(value, &[(b'\'', "''")])),
        (DOUBLED, replaced(value, &[(b'"', "\"\"")])),
    ]
}

/// Returns the rare forms in digits.
fn digit_forms(value: &[u8]) -> Vec<NamedForm> {
    let mut forms: Vec<NamedForm> =
        BASE32_ALIGNMENTS.iter().map(|skipped| (BASE32_TEXT, encode_digits(value, *skipped, BASE32))).collect();
    for inner in BASE64_ALIGNMENTS {
        let once = encode_digits(value, inner, BASE64);
        forms.extend(BASE64_ALIGNMENTS.map(|outer| (BASE64_TWICE, encode_digits(&once, outer, BASE64))));
    }
    let separated: [fn(u8) -> String; 4] = [
        |byte| format!("{byte:02x}:"),
        |byte| format!("{byte:02X}:"),
        |byte| format!("{byte:02x} "),
        |byte| format!("{byte:02X} "),
    ];
    for write in separated {
        let mut bytes = each_byte(value, write);
        bytes.pop();
        forms.push((HEX, bytes));
    }
    forms
}

/// Returns the forms in which every character is escaped, and those that are escaped twice.
fn escaped_throughout(value: &[u8]) -> Vec<NamedForm> {
    let once = percent(value, UPPER_HEX, &PercentStyle::default());
    vec![
        (PERCENT, each_byte(value, |byte| format!("%{byte:02X}"))),
        (PERCENT, each_byte(value, |byte| format!("%{byte:02x}"))),
        (PERCENT, percent(&once, UPPER_HEX, &PercentStyle::default())),
        (BACKSLASH, each_byte(value, |byte| format!("\\x{byte:02x}"))),
        (BACKSLASH, each_byte(value, |byte| format!("\\x{byte:02X}"))),
        (BACKSLASH, each_byte(value, |byte| format!("\\{byte:03o}"))),
        (BACKSLASH, each_unit(value, |unit| format!("\\u{unit:04x}").into_bytes())),
        (BACKSLASH, each_unit(value, |unit| format!("\\u{unit:04X}").into_bytes())),
        (HTML, each_unit(value, |unit| format!("&#{unit};").into_bytes())),
        (HTML, each_unit(value, |unit| format!("&#x{unit:x};").into_bytes())),
        (HTML, each_unit(value, |unit| format!("&#x{unit:X};").into_bytes())),
        (UTF16, each_unit(value, |unit| unit.to_le_bytes().to_vec())),
        (UTF16, each_unit(value, |unit| unit.to_be_bytes().to_vec())),
        (SYSTEMD, systemd(value)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o3_special_characters_have_a_form_in_every_notation() {
        let forms = written_forms("it's \"a\" $5 & <b>/é".as_bytes());
        for (how, text) in [
            (JSON, r#"it's \"a\" $5 & <b>/é"#),
            (JSON, r#"it's \"a\" $5 & <b>\/é"#),
            (JSON, r#"it's \"a\" $5 \u0026 \u003cb\u003e/é"#),
            (JSON, r#"it's \"a\" $5 & <b>/\u00e9"#),
            (JSON, r#"it's \\\"a\\\" $5 & <b>/é"#),
            (SHELL, r#"it'\''s "a" $5 & <b>/é"#),
            (SHELL, r#"it'\''\'\'''\''s "a" $5 & <b>/é"#),
            (SHELL, r#"it'"'"'s "a" $5 & <b>/é"#),
            (SHELL, r#"it's \"a\" \$5 & <b>/é"#),
            (SHELL, r#"it\'s\ \"a\"\ \$5\ \&\ \<b\>/é"#),
            (SHELL, r#"it\'s "a" $5 & <b>/é"#),
            (DOUBLED, r#"it''s "a" $5 & <b>/é"#),
            (DOUBLED, r#"it's ""a"" $5 & <b>/é"#),
            (HTML, "it&#39;s &#34;a&#34; $5 &amp; &lt;b&gt;/é"),
            (HTML, "it&#39;s &quot;a&quot; $5 &amp; &lt;b&gt;/é"),
            (HTML, "it&#x27;s &quot;a&quot; $5 &amp; &lt;b&gt;/é"),
            (HTML, "it&#x27;s &#34;a&#34; $5 &amp; &lt;b&gt;/é"),
            (HTML, "it&#039;s &quot;a&quot; $5 &amp; &lt;b&gt;/é"),
            (HTML, "it&#39;s &quot;a&quot; $5 &amp; &lt;b&gt;&#x2F;é"),
            (PERCENT, "it%27s%20%22a%22%20%245%20%26%20%3Cb%3E%2F%C3%A9"),
            (PERCENT, "it%27s+%22a%22+%245+%26+%3Cb%3E%2F%C3%A9"),
            (PERCENT, "it%27s%20%22a%22%20%245%20%26%20%3cb%3e/%c3%a9"),
            (SYSTEMD, r"it\x27s\x20\x22a\x22\x20\x245\x20\x26\x20\x3cb\x3e-\xc3\xa9"),
        ] {
            assert!(forms.contains(&WrittenForm { how, bytes: text.as_bytes().to_vec() }), "{text}");
        }
    }

    #[test]
    fn o3_a_backslash_in_double_quotes_may_stand_for_itself() {
        let forms = written_forms(br#"a"b\c$d`e"#);
        for text in [r#"a\"b\c\$d\`e"#, r#"a\"b\c$d`e"#, r#"a\"b\c\$d\`e"#] {
            assert!(forms.iter().any(|form| form.how == SHELL && form.bytes == text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn o3_every_character_can_be_escaped() {
        let forms = written_forms("a/é".as_bytes());
        for (how, bytes) in [
            (PERCENT, &b"%61%2F%C3%A9"[..]),
            (PERCENT, b"%61%2f%c3%a9"),
            (PERCENT, b"a%252F%25C3%25A9"),
            (BACKSLASH, br"\x61\x2f\xc3\xa9"),
            (BACKSLASH, br"\141\057\303\251"),
            (BACKSLASH, br"\u0061\u002f\u00e9"),
            (HTML, b"&#97;&#47;&#233;"),
            (HTML, b"&#x61;&#x2f;&#xe9;"),
            (HEX, b"61:2f:c3:a9"),
            (HEX, b"61 2F C3 A9"),
            (UTF16, b"a\0/\0\xe9\0"),
            (UTF16, b"\0a\0/\0\xe9"),
            (BASE32_TEXT, b"MEX4HK"),
        ] {
            let form = WrittenForm { how, bytes: bytes.to_vec() };
            assert!(forms.contains(&form), "{how}: {}", String::from_utf8_lossy(bytes));
        }
        let twice = b"WVdKalpHVm1aMmhw";
        assert!(written_forms(b"abcdefghi").iter().any(|form| form.how == BASE64_TWICE && form.bytes == twice));
    }
}
