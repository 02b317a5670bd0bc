//! Compound values: lists, tables with the user's own keys, commands.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use toml::Spanned;
use toml::de::{DeArray, DeString, DeValue};

use super::Command;
use super::arguments::{argument, script};
use super::complaint::SpecError;
use super::document::SpannedValue;
use super::longest_argument::too_long;
use super::reader::{Node, SpecReader};
use super::suggest::suggest;
use super::value_kinds::{Shape, Word};

/// The most arguments that a command of a spec may have.
const MAX_ARGUMENTS: usize = 1000;

/// A list of one kind of value, with the most elements that it may have.
pub(super) struct List<S>(pub S, pub usize);

impl<S: Shape> Shape for List<S> {
    type Value = Vec<SpannedValue<S::Value>>;

    fn expects(&self) -> String {
        format!("a list of at most {}, each {}", self.1, self.0.expects())
    }

    fn read(&self, node: &Node, reader: &mut SpecReader) -> Option<Self::Value> {
        let DeValue::Array(elements) = node.get_ref() else {
            wrong_brackets(node, reader, &self.expects());
            return None;
        };
        Some(read_elements(&self.0, elements, self.1, reader))
    }

    fn schema(&self) -> Json {
        json!({ "type": "array", "items": self.0.schema(), "maxItems": self.1 })
    }
}

/// Reads the elements of a list, at most this many; those that are wrong are reported and left out.
fn read_elements<S: Shape>(
    shape: &S,
    elements: &DeArray,
    most: usize,
    reader: &mut SpecReader,
) -> Vec<SpannedValue<S::Value>> {
    if let Some(extra) = elements.get(most) {
        reader.report(SpecError::new(extra.span(), format!("more than {most} of these")));
    }
    elements.iter().take(most).filter_map(|node| read_spanned(shape, node, reader)).collect()
}

/// Reads a value, and keeps its place in the document.
pub(super) fn read_spanned<S: Shape>(
    shape: &S,
    node: &Node,
    reader: &mut SpecReader,
) -> Option<SpannedValue<S::Value>> {
    shape.read(node, reader).map(|value| SpannedValue { value, span: node.span() })
}

/// One value, or a list of them with the most elements that it may have.
pub(super) struct OneOrMore<S>(pub S, pub usize);

impl<S: Shape> Shape for OneOrMore<S> {
    type Value = Vec<SpannedValue<S::Value>>;

    fn expects(&self) -> String {
        format!("{}, or a list of them", self.0.expects())
    }

    fn read(&self, node: &Node, reader: &mut SpecReader) -> Option<Self::Value> {
        match node.get_ref() {
            DeValue::Array(elements) => Some(read_elements(&self.0, elements, self.1, reader)),
            _ => read_spanned(&self.0, node, reader).map(|one| vec![one]),
        }
    }

    fn schema(&self) -> Json {
        let one = self.0.schema();
        json!({ "anyOf": [one, { "type": "array", "items": one, "maxItems": self.1 }] })
    }
}

/// Reports a value of the wrong type, with help for `[step]` where `[[step]]` is meant and the other way round.
pub(super) fn wrong_brackets(node: &Node, reader: &mut SpecReader, expected: &str) {
    let header = reader.document.text().get(node.span()).unwrap_or_default();
    let help = match node.get_ref() {
        DeValue::Table(_) if header.starts_with('[') => format!("write `[{header}]`, once for each"),
        DeValue::Array(_) if header.starts_with("[[") => format!("write `{}`, once", &header[1..header.len() - 1]),
        _ => return reader.wrong_type(node, expected),
    };
    reader.report(SpecError::new(node.span(), format!("expected {expected}")).help(help));
}

/// A table with keys of the user's choice, all with one kind of value.
pub(super) struct Map<S>(pub Word, pub S);

impl<S: Shape> Shape for Map<S> {
    type Value = BTreeMap<String, SpannedValue<S::Value>>;

    fn expects(&self) -> String {
        format!("a table, each value {}", self.1.expects())
    }

    fn read(&self, node: &Node, reader: &mut SpecReader) -> Option<Self::Value> {
        let DeValue::Table(entries) = node.get_ref() else {
            wrong_brackets(node, reader, &self.expects());
            return None;
        };
        let mut map = BTreeMap::new();
        for (key, value) in entries {
            check_name(&self.0, key, reader);
            if let Some(read) = self.1.read(value, reader) {
                map.insert(key.get_ref().to_string(), SpannedValue { value: read, span: key.span() });
            }
        }
        Some(map)
    }

    fn schema(&self) -> Json {
        let names = json!({ "pattern": format!("^{}$", self.0.pattern()) });
        json!({ "type": "object", "propertyNames": names, "additionalProperties": self.1.schema() })
    }
}

fn check_name(allowed: &Word, key: &Spanned<DeString>, reader: &mut SpecReader) {
    if let Err(refusal) = allowed.check(key.get_ref()) {
        reader.report(SpecError::new(key.span(), refusal.message).maybe_help(refusal.help));
    }
}

/// A command: a string for the shell, or a list of strings that is run without one.
pub(super) struct CommandShape;

impl Shape for CommandShape {
    type Value = Command;

    fn expects(&self) -> String {
        "a string for `sh -eu`, or a list of strings to run without a shell".into()
    }

    fn read(&self, node: &Node, reader: &mut SpecReader) -> Option<Command> {
        let command = match node.get_ref() {
            DeValue::String(_) => Command::Shell(script().read(node, reader)?),
            DeValue::Array(words) => {
                let argv: Vec<_> = List(argument(), MAX_ARGUMENTS).read(node, reader)?;
                if argv.len() < words.len() {
                    return None;
                }
                Command::Argv(argv.into_iter().map(|word| word.value).collect())
            }
            _ => {
                reader.wrong_type(node, &self.expects());
                return None;
            }
        };
        let program = match &command {
            Command::Shell(text) => Some(text),
            Command::Argv(words) => words.first(),
        };
        if program.is_none_or(|program| program.trim().is_empty()) {
            reader.report(SpecError::new(node.span(), "there is nothing to run"));
        }
        Some(command)
    }

    fn schema(&self) -> Json {
        let mut argv = List(argument(), MAX_ARGUMENTS).schema();
        argv["minItems"] = 1.into();
        json!({ "anyOf": [{ "type": "string", "minLength": 1 }, argv] })
    }
}

fn check_variable(value: &Node, reader: &mut SpecReader) {
    match value.get_ref() {
        DeValue::String(text) if text.contains('\0') => {
            reader.report(SpecError::new(value.span(), "a NUL byte cannot be in an environment variable"));
        }
        DeValue::String(_) => {}
        _ => reader.wrong_type(value, "a string"),
    }
}

/// New values for variables that `[vars]` declares. They are only validated here: the caller merges them into the document
/// before it is read.
pub(super) struct DeclaredVariables(pub Word);

impl Shape for DeclaredVariables {
    type Value = Self;

    fn expects(&self) -> String {
        Variables(self.0).expects()
    }

    fn read(&self, node: &Node, reader: &mut SpecReader) -> Option<Self> {
        let DeValue::Table(entries) = node.get_ref() else {
            wrong_brackets(node, reader, &self.expects());
            return None;
        };
        for (key, value) in entries {
            check_variable(value, reader);
            if !reader.vars.contains_key(key.get_ref().as_ref()) {
                let help = suggest(key.get_ref(), reader.vars.keys().map(String::as_str));
                let message = format!("`{}` is a variable that `[vars]` does not declare", key.get_ref());
                reader.report_missing(SpecError::new(key.span(), message).maybe_help(help));
            }
        }
        Some(Self(self.0))
    }

    fn schema(&self) -> Json {
        Variables(self.0).schema()
    }
}

/// The `[vars]` table. Its values are taken literally; then `--var` overrides them, and every string read later sees the
/// variables.
pub(super) struct Variables(pub Word);

impl Shape for Variables {
    type Value = BTreeMap<String, String>;

    fn expects(&self) -> String {
        "a table of strings".into()
    }

    fn read(&self, node: &Node, reader: &mut SpecReader) -> Option<Self::Value> {
        let DeValue::Table(entries) = node.get_ref() else {
            wrong_brackets(node, reader, &self.expects());
            return None;
        };
        for (key, value) in entries {
            check_name(&self.0, key, reader);
            check_variable(value, reader);
            // A variable with a wrong value still counts as declared, so that its uses are not reported too.
            let text = value.get_ref().as_str().unwrap_or_default();
            if let Some(refusal) = too_long(key.get_ref(), text) {
                reader.report(SpecError::new(key.span(), refusal).help("write long strings where they are used"));
            }
            reader.vars.insert(key.get_ref().to_string(), text.to_owned());
        }
        reader.override_variables();
        Some(reader.vars.clone())
    }

    fn schema(&self) -> Json {
        let names = json!({ "pattern": format!("^{}$", self.0.pattern()) });
        json!({ "type": "object", "propertyNames": names, "additionalProperties": { "type": "string" } })
    }
}
