//! Text that others wrote, made harmless for a terminal, a CI log and a pager (fault row G4). All of it passes here.
//!
//! Guest output can hold escape sequences that write the clipboard (OSC 52) or retitle the window, carriage returns that
//! overwrite what was said before, direction marks that reorder it, and lines that a CI service takes for its commands.

use std::borrow::Cow;
use std::fmt::Write as _;

/// What CI services look for: GitHub and Azure at the start of a line, Azure also inside.
const CI_COMMANDS: [&str; 2] = ["##[", "##vso["];

/// Whether a character moves the cursor, hides itself or reorders its neighbours.
fn is_hostile(c: char) -> bool {
    match c {
        '\t' => false,
        // Marks and isolates of direction, separators of lines and paragraphs, invisible operators.
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        // Byte order mark, annotations, tags.
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' => true,
        c => c.is_control(),
    }
}

/// One line of text with every hostile character written out, as in `\x1b` and `\u{202e}`. A carriage return at the end
/// is dropped, since it is how some programs end lines.
#[must_use]
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
            '#' if starts_command(&text[at..]) => safe.push_str("\\x23"),
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

/// The same for a line of JSON: what a JSON parser reads from it does not change.
#[must_use]
pub fn escape_json(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for (at, c) in json.char_indices() {
        if is_hostile(c) || c == '#' && starts_command(&json[at..]) {
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
            ("\u{e0041}tag", r"\u{e0041}tag"),
            ("##[group]x ##vso[task.setvariable]", r"\x23#[group]x \x23#vso[task.setvariable]"),
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
