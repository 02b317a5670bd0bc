//! The state of reading a spec: the document, its variables, and the errors so far.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Overrides;
use super::complaint::SpecError;
use super::document::SpecDocument;
use super::longest_argument::too_long;
use super::suggest::suggest;
use super::template::{TemplatePart, pieces};

/// A TOML value with its place in the document.
pub(super) type Node<'d> = Spanned<DeValue<'d>>;

/// The most bytes that all variables of a spec together may expand to: a short string that names a long variable many times
/// must not fill the memory.
const MAX_EXPANSION: usize = 8 << 20;

/// A reader that collects errors, and that knows the variables once `[vars]` was read.
pub(super) struct SpecReader<'d> {
    pub document: &'d SpecDocument,
    pub overrides: &'d Overrides,
    pub vars: BTreeMap<String, String>,
    errors: Vec<SpecError>,
    /// Lines with syntax errors; values that the parser recovered from them are not reported again.
    broken_lines: BTreeSet<usize>,
    expanded: usize,
}

/// A table of the document: its entries and, for errors, its header.
pub(super) struct Section<'t, 'd> {
    pub entries: &'t DeTable<'d>,
    pub span: Range<usize>,
}

impl<'d> SpecReader<'d> {
    pub fn new(document: &'d SpecDocument, overrides: &'d Overrides) -> Self {
        let vars = BTreeMap::new();
        Self { document, overrides, vars, errors: Vec::new(), broken_lines: BTreeSet::new(), expanded: 0 }
    }

    /// Returns all errors. What a variant has changed in the document was read twice, and is reported once.
    pub fn finish(self) -> Vec<SpecError> {
        let mut told = HashSet::new();
        self.errors.into_iter().filter(|error| told.insert(error.clone())).collect()
    }

    /// Reports a syntax error; missing or contradictory keys after that may be due to the parser's recovery.
    pub fn report_syntax(&mut self, error: SpecError) {
        self.broken_lines.extend(error.span.as_ref().map(|span| self.document.line(span.start)));
        self.errors.push(error);
    }

    pub fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }

    pub fn is_broken(&self) -> bool {
        !self.broken_lines.is_empty()
    }

    pub fn report(&mut self, error: SpecError) {
        let line = error.span.as_ref().map(|span| self.document.line(span.start));
        if line.is_none_or(|line| !self.broken_lines.contains(&line)) {
            self.errors.push(error);
        }
    }

    /// Reports a missing value, unless a syntax error may have hidden it.
    pub fn report_missing(&mut self, error: SpecError) {
        if !self.is_broken() {
            self.report(error);
        }
    }

    /// Applies `--var` to what `[vars]` declares.
    pub fn override_variables(&mut self) {
        for (name, value) in &self.overrides.vars {
            if let Some(declared) = self.vars.get_mut(name) {
                value.clone_into(declared);
                if let Some(refusal) = too_long(name, value) {
                    self.report(SpecError::of_option(format!("`--var`: {refusal}")));
                }
                continue;
            }
            let help = suggest(name, self.vars.keys().map(String::as_str));
            let message = format!("`--var {name}=...` names a variable that `[vars]` does not declare");
            self.report_missing(SpecError::of_option(message).maybe_help(help));
        }
    }

    pub fn wrong_type(&mut self, node: &Node, expected: &str) {
        let found = match node.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.report(SpecError::new(node.span(), format!("expected {expected}, found {found}")));
    }

    /// Returns the string in a node, with variables expanded.
    pub fn text(&mut self, node: &Node, expected: &str) -> Option<String> {
        if let DeValue::String(text) = node.get_ref() {
            return self.fill(text, node.span());
        }
        self.wrong_type(node, expected);
        None
    }

    fn fill(&mut self, text: &str, span: Range<usize>) -> Option<String> {
        let mut filled = String::with_capacity(text.len());
        let mut complete = true;
        let mut searched = span.start;
        for piece in pieces(text) {
            match piece {
                TemplatePart::Text(text) => filled.push_str(text),
                TemplatePart::Variable { name, written } => {
                    let place = self.find(written, searched..span.end).unwrap_or_else(|| span.clone());
                    searched = if place == span { searched } else { place.end };
                    match self.variable(name, place) {
                        Some(value) => filled.push_str(value),
                        None => complete = false,
                    }
                }
            }
        }
        complete.then_some(filled)
    }

    /// Finds a part of a decoded string in the document; its offset is useless there, because the string may have escapes.
    fn find(&self, written: &str, within: Range<usize>) -> Option<Range<usize>> {
        let start = within.start + self.document.text().get(within.clone())?.find(written)?;
        Some(start..start + written.len())
    }

    fn variable(&mut self, name: &str, place: Range<usize>) -> Option<&str> {
        if !self.vars.contains_key(name) {
            let help = suggest(name, self.vars.keys().map(String::as_str))
                .unwrap_or_else(|| "declare it in `[vars]`, or write `{{{{` for two literal braces".to_owned());
            self.report_missing(SpecError::new(place, format!("unknown variable `{name}`")).help(help));
            return None;
        }
        let was_within = self.expanded <= MAX_EXPANSION;
        self.expanded = self.expanded.saturating_add(self.vars[name].len());
        if self.expanded <= MAX_EXPANSION {
            return self.vars.get(name).map(String::as_str);
        }
        if was_within {
            self.report(SpecError::new(place, "the variables of this spec expand to more than 8 MiB"));
        }
        None
    }
}
