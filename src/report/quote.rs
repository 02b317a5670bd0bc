//! Quotes text of guests, disks, registries and manifests among lines of kiln's own. No line begins with it: a label of
//! kiln's or a visible mark comes first, since GitHub's runner ignores blanks before a command.

use std::fmt::Write as _;

use super::escape::{escape, is_hostile};

/// Mark in front of each quoted line.
pub(crate) const MARK: &str = "  | ";

/// Returns one line of foreign text behind the mark.
pub(crate) fn quote_line(line: &str) -> String {
    format!("{MARK}{}", escape(line))
}

/// Returns an escaped message whose second and further lines stand behind the mark. It must be printed after a word of
/// kiln's own, such as `error: `.
pub(crate) fn quote_message(message: &str) -> String {
    let mut lines = message.lines();
    let first = escape(lines.next().unwrap_or_default()).into_owned();
    lines.fold(first, |shown, line| format!("{shown}\n{}", quote_line(line).trim_start()))
}

/// Returns a name as text on one line, with bytes that are not UTF-8 written out, as in `\xff`. A backslash is doubled, so
/// that no two names are shown alike.
pub(crate) fn quote_name(name: &[u8]) -> String {
    let mut shown = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        chunk.valid().chars().for_each(|c| push_escaped(&mut shown, c));
        chunk.invalid().iter().for_each(|byte| push_escaped_byte(&mut shown, *byte));
    }
    escape(&shown).into_owned()
}

fn push_escaped(shown: &mut String, c: char) {
    match c {
        '\t' => shown.push_str("\\t"),
        '\n' => shown.push_str("\\n"),
        '\r' => shown.push_str("\\r"),
        '\\' => shown.push_str("\\\\"),
        c if c.is_ascii_control() => push_escaped_byte(shown, c as u8),
        c if is_hostile(c) => shown.extend(c.escape_unicode()),
        c => shown.push(c),
    }
}

fn push_escaped_byte(shown: &mut String, byte: u8) {
    // Writing to a string cannot fail.
    let _ = write!(shown, "\\x{byte:02x}");
}

/// The text of a command's result. Each line begins with a label of kiln's own, and the rest of it is escaped.
#[derive(Debug, Default)]
pub(crate) struct TextPage(String);

impl TextPage {
    /// Adds a line of a label and foreign text.
    pub(crate) fn line(&mut self, label: &'static str, text: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{label}{}", escape(text));
    }

    /// Adds foreign text, each of its lines behind the mark.
    pub(crate) fn quote(&mut self, text: &str) {
        for line in text.lines() {
            self.0.push_str(&quote_line(line));
            self.0.push('\n');
        }
    }

    /// Returns the text of the page.
    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_several_lines_has_a_mark_before_all_but_the_first() {
        assert_eq!(quote_message("zz\n::error::x\r\n  ::y\n"), "zz\n| ::error::x\n|   ::y");
        assert_eq!(quote_message(""), "");
    }

    #[test]
    fn a_name_is_one_line_whatever_its_bytes_are() {
        assert_eq!(quote_name(b"a\n::error::x\xff\x1b\t"), r"a\n::error::x\xff\x1b\t");
        assert_eq!(quote_name("\u{202e}ä##[x".as_bytes()), r"\u{202e}ä\x23#[x");
        assert_eq!(quote_name(b"tail\n"), r"tail\n");
        assert_eq!(quote_name(br"a\nb\xff"), r"a\\nb\\xff", "the name has backslashes itself");
        assert_eq!(quote_name(br"\x23#[x"), r"\\x23#[x");
    }

    #[test]
    fn a_page_has_a_label_or_a_mark_before_each_line() {
        let mut page = TextPage::default();
        page.line("+ ", "a\n::error::x");
        page.quote("::one\n\x1btwo\n");
        assert_eq!(page.into_text(), "+ a\\n::error::x\n  | ::one\n  | \\x1btwo\n");
    }
}
