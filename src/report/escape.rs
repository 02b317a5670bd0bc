//! Escapes foreign strings for a terminal, a CI log and a pager (fault row G4). All foreign output passes through here.
//!
//! Guest output can hold escape sequences that write the clipboard (OSC 52) or retitle the window, carriage returns that
//! overwrite earlier output, direction marks that reorder it, and lines that a CI service takes for its commands.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

/// Strings that CI services look for anywhere in a line: the older form of GitHub's commands, Azure's and `TeamCity`'s, and
/// the markers of GitLab's and Travis' sections.
const CI_COMMANDS: [&str; 6] = ["##[", "##vso[", "##teamcity[", "section_start:", "section_end:", "travis_fold:"];

/// Characters that may be invisible or reorder their neighbours: those of the property `Default_Ignorable_Code_Point` and of
/// the categories Cf, Zl and Zp in Unicode 16.
const INVISIBLE: [RangeInclusive<char>; 25] = [
    '\u{ad}'..='\u{ad}',
    '\u{34f}'..='\u{34f}',
    '\u{600}'..='\u{605}',
    '\u{61c}'..='\u{61c}',
    '\u{6dd}'..='\u{6dd}',
    '\u{70f}'..='\u{70f}',
    '\u{890}'..='\u{891}',
    '\u{8e2}'..='\u{8e2}',
    '\u{115f}'..='\u{1160}',
    '\u{17b4}'..='\u{17b5}',
    '\u{180b}'..='\u{180f}',
    '\u{200b}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2060}'..='\u{206f}',
    '\u{3164}'..='\u{3164}',
    '\u{fe00}'..='\u{fe0f}',
    '\u{feff}'..='\u{feff}',
    '\u{ffa0}'..='\u{ffa0}',
    '\u{fff0}'..='\u{fffb}',
    '\u{110bd}'..='\u{110bd}',
    '\u{110cd}'..='\u{110cd}',
    '\u{13430}'..='\u{1343f}',
    '\u{1bca0}'..='\u{1bca3}',
    '\u{1d173}'..='\u{1d17a}',
    '\u{e0000}'..='\u{e0fff}',
];

/// Returns whether a character moves the cursor, hides itself or reorders its neighbours.
pub(super) fn is_hostile(c: char) -> bool {
    c != '\t' && (c.is_control() || !c.is_ascii() && INVISIBLE.iter().any(|range| range.contains(&c)))
}

/// Returns one line of text with every hostile character escaped, as in `\x1b` and `\u{202e}`. A carriage return at the end
/// is dropped, since some programs end lines with it.
pub fn escape(text: &str) -> Cow<'_, str> {
    let text = text.trim_end_matches(['\r', '\n']);
    if !text.contains(is_hostile) && !CI_COMMANDS.iter().any(|command| text.contains(command)) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for (at, c) in text.char_indices() {
        match c {
            '\r' => safe.push_str("\\r"),
            '\n' => safe.push_str("\\n"),
            c if starts_command(&text[at..]) => drop(write!(safe, "\\x{:02x}", u32::from(c))),
            c if !is_hostile(c) => safe.push(c),
            // Writing to a string cannot fail.
            c if c.is_ascii() => drop(write!(safe, "\\x{:02x}", u32::from(c))),
            c => drop(write!(safe, "\\u{{{:x}}}", u32::from(c))),
        }
    }
    Cow::Owned(safe)
}

fn starts_command(text: &str) -> bool {
    CI_COMMANDS.iter().any(|command| text.starts_with(command))
}

/// Escapes text that a renderer has laid out, whose line breaks and colours are kiln's own.
pub(crate) fn escape_rendered(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        match c {
            '\n' | '\x1b' => safe.push(c),
            c if is_hostile(c) => safe.extend(c.escape_unicode()),
            // Writing to a string cannot fail.
            c if starts_command(&text[at..]) => drop(write!(safe, "\\x{:02x}", u32::from(c))),
            c => safe.push(c),
        }
    }
    safe
}

/// Escapes JSON, on one line or several, without changing what a JSON parser reads from it.
pub fn escape_json(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for (at, c) in json.char_indices() {
        // A line break in JSON stands between values: those in strings are escaped already.
        if is_hostile(c) && c != '\n' || starts_command(&json[at..]) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn g4_what_a_guest_might_try() {
        for (hostile, shown) in [
            ("plain text, \tumlauts äöü and 日本", "plain text, \tumlauts äöü and 日本"),
            ("\x1b]52;c;cm0gLXJm\x07", r"\x1b]52;c;cm0gLXJm\x07"),
            ("\x1b[2J\x1b[1;1H$ ", r"\x1b[2J\x1b[1;1H$ "),
            ("\u{9b}31m", r"\u{9b}31m"),
            ("failed\rpassed", r"failed\rpassed"),
            ("dos line\r", "dos line"),
            ("a\nb", r"a\nb"),
            ("user\u{202e}cod.exe", r"user\u{202e}cod.exe"),
            ("zero\u{200b}width\u{feff}", r"zero\u{200b}width\u{feff}"),
            ("soft\u{ad}hyphen \u{34f}\u{3164}\u{fe0f}", r"soft\u{ad}hyphen \u{34f}\u{3164}\u{fe0f}"),
            ("\u{180e}\u{600}\u{e01ef}", r"\u{180e}\u{600}\u{e01ef}"),
            ("\u{e0041}tag", r"\u{e0041}tag"),
            ("##[group]x ##vso[task.setvariable]", r"\x23#[group]x \x23#vso[task.setvariable]"),
            ("section_start:1:x[collapsed=true]\r\x1b[0Kx", r"\x73ection_start:1:x[collapsed=true]\r\x1b[0Kx"),
            ("\0\x7f", r"\x00\x7f"),
        ] {
            assert_eq!(escape(hostile), shown);
        }
    }

    proptest! {
        #[test]
        fn g4_nothing_hostile_is_left(text in any::<String>()) {
            let safe = escape(&text);
            prop_assert!(!safe.contains(is_hostile) && !safe.contains("##[") && !safe.contains("##vso["), "{safe:?}");
        }

        #[test]
        fn json_means_the_same(text in any::<String>(), suffix in "(##\\[|\u{202e}|\u{e0041}|\u{9b})?") {
            let text = text + &suffix;
            let safe = escape_json(&serde_json::to_string(&text).unwrap());
            prop_assert!(!safe.contains(is_hostile) && !safe.contains("##["));
            prop_assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), text);
        }
    }
}
