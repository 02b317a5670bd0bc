//! The text of a spec file and places in it, so that every error can point at what it is about.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeTable;

/// A value, with the bytes of the document that it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SpannedValue<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// Returns the values of a table without their places.
pub(super) fn values<V>(table: BTreeMap<String, SpannedValue<V>>) -> BTreeMap<String, V> {
    table.into_iter().map(|(name, value)| (name, value.value)).collect()
}

/// The text of a spec file, without the byte order mark it may begin with, and with LF for line ends. TOML lets a parser
/// choose the line ends of multi-line strings: a shell takes a CR for a part of the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecDocument {
    path: PathBuf,
    text: String,
    line_starts: Vec<usize>,
}

/// A place in a document as editors count: from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Line number, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl SpecDocument {
    pub(crate) fn new(path: &Path, text: &str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n");
        let after_newlines = text.match_indices('\n').map(|(newline, _)| newline + 1);
        let line_starts = std::iter::once(0).chain(after_newlines).collect();
        Self { path: path.to_owned(), text, line_starts }
    }

    /// Returns the path of the file as the user gave it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the whole text; spans are byte ranges of it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the line number of a byte offset, from 1.
    #[must_use]
    pub fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    /// Returns the position of a byte offset.
    #[must_use]
    pub fn position(&self, offset: usize) -> Position {
        let line = self.line(offset);
        let before = self.text.get(self.line_starts[line - 1]..offset).unwrap_or_default();
        Position { line, column: before.chars().count() + 1 }
    }

    /// Returns the first quoted string, from this line on, whose content is the wanted one. Escapes are not resolved.
    pub(crate) fn find_string(&self, from_line: usize, is_wanted: impl Fn(&str) -> bool) -> Option<Range<usize>> {
        let first = from_line.saturating_sub(1);
        let strings = (first..self.line_starts.len()).flat_map(|line| self.strings(line));
        strings.into_iter().find(|span| is_wanted(&self.text[span.start + 1..span.end - 1]))
    }

    /// Returns the quoted strings of a line, counted from 0.
    fn strings(&self, line: usize) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        let mut open = None;
        let start = self.line_starts[line];
        let end = self.line_starts.get(line + 1).copied().unwrap_or(self.text.len());
        for (at, c) in self.text[start..end].char_indices() {
            match open {
                None if c == '#' => break,
                None if matches!(c, '"' | '\'') => open = Some((c, start + at)),
                Some((quote, begin)) if quote == c => {
                    found.push(begin..start + at + 1);
                    open = None;
                }
                _ => {}
            }
        }
        found
    }

    /// Returns the place of a key's value in a table of the document, or in that of the variant where the variant sets the
    /// key.
    pub(crate) fn find_value(&self, variant: Option<&str>, path: [&str; 2]) -> Option<Range<usize>> {
        let (document, _) = DeTable::parse_recoverable(&self.text);
        let document = document.get_ref();
        let overlay = variant.and_then(|name| document.get("variants")?.get_ref().as_table()?.get(name));
        let overlaid = overlay.and_then(|overlay| find_key(overlay.get_ref().as_table()?, path));
        overlaid.or_else(|| find_key(document, path))
    }

    /// Returns the first line that, without surrounding white space, is the wanted one.
    pub(crate) fn find_line(&self, is_wanted: impl Fn(&str) -> bool) -> Option<Range<usize>> {
        let mut lines = (1..=self.line_starts.len()).filter_map(|line| self.trimmed_line(line));
        lines.find(|span| is_wanted(&self.text[span.clone()]))
    }

    /// Returns a line, counted from 1, without surrounding white space, or `None` where it is empty.
    pub(crate) fn trimmed_line(&self, line: usize) -> Option<Range<usize>> {
        let start = *self.line_starts.get(line.checked_sub(1)?)?;
        let text = self.text[start..].lines().next()?;
        let begin = start + (text.len() - text.trim_start().len());
        let span = begin..begin + text.trim().len();
        (!span.is_empty()).then_some(span)
    }

    /// Returns the bytes of the whole lines that a span touches.
    #[must_use]
    pub fn lines_around(&self, span: &Range<usize>) -> Range<usize> {
        let start = self.line_starts[self.line(span.start) - 1];
        // A span that ends with a newline does not touch the line after it.
        let last = self.line(span.end.saturating_sub(1).max(span.start));
        start..self.line_starts.get(last).copied().unwrap_or(self.text.len())
    }
}

fn find_key(document: &DeTable, [table, key]: [&str; 2]) -> Option<Range<usize>> {
    document.get(table)?.get_ref().as_table()?.get(key).map(Spanned::span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_as_editors_do() {
        let document = SpecDocument::new(Path::new("kiln.toml"), "\u{feff}a\r\nübc\n");
        assert_eq!(document.text(), "a\nübc\n");
        assert_eq!(document.position(0), Position { line: 1, column: 1 });
        assert_eq!(document.position(5), Position { line: 2, column: 3 });
        assert_eq!(document.position(7), Position { line: 3, column: 1 });
        assert_eq!(document.lines_around(&(4..5)), 2..7);
        assert_eq!(document.lines_around(&(0..2)), 0..2);
        assert_eq!(document.lines_around(&(7..7)), 7..7);
    }
}
