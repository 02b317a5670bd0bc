//! Tables with kiln's own keys: one declaration gives the reading, the check for unknown keys, and the JSON Schema.

use std::collections::BTreeSet;

use serde_json::{Map as JsonMap, Value as Json, json};
use toml::de::{DeTable, DeValue};

use super::complaint::SpecError;
use super::compound_kinds::{read_spanned, wrong_brackets};
use super::document::SpannedValue;
use super::reader::{Node, Section, SpecReader};
use super::suggest::{list, suggest};
use super::value_kinds::{Shape, not_yet, quoted};

/// Keys and values as read: types and ranges are valid, checks between keys are left to `validate`.
pub(super) trait Table: Sized {
    /// The description of the table.
    const ABOUT: &'static str;
    fn keys() -> Vec<KeySchema>;
    fn key_names() -> Vec<String>;
    fn read(section: &Section, reader: &mut SpecReader) -> Self;
}

/// A key of a table, for the schema.
pub(super) struct KeySchema {
    pub name: String,
    pub schema: Json,
    pub required: bool,
}

/// A required or optional key.
pub(super) trait Field {
    /// The type of the value that is kept.
    type Stored;
    fn read(&self, name: &str, section: &Section, reader: &mut SpecReader) -> Self::Stored;
    fn key(&self, name: String, about: &str) -> KeySchema;
}

/// A required key.
pub(super) struct Required<S>(pub S);
/// An optional key.
pub(super) struct Optional<S>(pub S);
/// A key with a default, which is written as TOML and read in the same way as the user's text.
pub(super) struct DefaultedKey<S>(pub S, pub &'static str);

fn find<S: Shape>(shape: &S, name: &str, section: &Section, reader: &mut SpecReader) -> Option<SpannedValue<S::Value>> {
    read_spanned(shape, section.entries.get(name)?, reader)
}

fn describe<S: Shape>(shape: &S, about: &str) -> Json {
    let mut schema = shape.schema();
    schema["description"] = format!("{} Expects {}.", about.trim(), shape.expects()).into();
    schema
}

impl<S: Shape> Field for Required<S> {
    type Stored = Option<SpannedValue<S::Value>>;

    fn read(&self, name: &str, section: &Section, reader: &mut SpecReader) -> Self::Stored {
        if !section.entries.contains_key(name) {
            let message = format!("the key `{name}` is missing");
            let help = format!("`{name}` is {}", self.0.expects());
            reader.report_missing(SpecError::new(section.span.clone(), message).help(help));
        }
        find(&self.0, name, section, reader)
    }

    fn key(&self, name: String, about: &str) -> KeySchema {
        KeySchema { name, schema: describe(&self.0, about), required: true }
    }
}

impl<S: Shape> Field for Optional<S> {
    type Stored = Option<SpannedValue<S::Value>>;

    fn read(&self, name: &str, section: &Section, reader: &mut SpecReader) -> Self::Stored {
        find(&self.0, name, section, reader)
    }

    fn key(&self, name: String, about: &str) -> KeySchema {
        KeySchema { name, schema: describe(&self.0, about), required: false }
    }
}

impl<S: Shape> Field for DefaultedKey<S> {
    type Stored = S::Value;

    fn read(&self, name: &str, section: &Section, reader: &mut SpecReader) -> Self::Stored {
        if let Some(found) = find(&self.0, name, section, reader) {
            return found.value;
        }
        let default = DeValue::parse(self.1).expect("a default is TOML");
        self.0.read(&default, reader).expect("a default is valid")
    }

    fn key(&self, name: String, about: &str) -> KeySchema {
        let mut schema = describe(&self.0, about);
        schema["default"] = to_json(DeValue::parse(self.1).expect("a default is TOML").get_ref());
        KeySchema { name, schema, required: false }
    }
}

/// Converts a default to JSON. Defaults are short: they have no dates, and their lists and tables are empty.
fn to_json(value: &DeValue) -> Json {
    match value {
        DeValue::String(text) => json!(text),
        DeValue::Integer(number) => json!(number.as_str().parse::<i64>().ok()),
        DeValue::Boolean(yes) => json!(yes),
        DeValue::Array(_) => json!([]),
        DeValue::Table(_) => json!({}),
        DeValue::Float(_) | DeValue::Datetime(_) => Json::Null,
    }
}

/// Declares a table: its keys with their documentation, the type kept and the kind of value. Underscores in the names of
/// fields are hyphens in keys.
macro_rules! table {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $field:ident: $stored:ty = $kind:expr,)* }) => {
        $(#[doc = $about])+
        pub(super) struct $name { $($(#[doc = $doc])+ pub $field: $stored,)* }

        impl Table for $name {
            const ABOUT: &'static str = concat!($($about),+);

            fn keys() -> Vec<KeySchema> {
                vec![$($kind.key(stringify!($field).replace('_', "-"), concat!($($doc),+)),)*]
            }

            fn key_names() -> Vec<String> {
                vec![$(stringify!($field).replace('_', "-"),)*]
            }

            fn read(section: &Section, reader: &mut SpecReader) -> Self {
                $(let $field = $kind.read(&stringify!($field).replace('_', "-"), section, reader);)*
                // A table without keys of its own does not use these.
                let _ = (section, reader);
                Self { $($field,)* }
            }
        }
    };
}
pub(super) use table;

/// The shape of a [`Table`].
pub(super) struct TableShape<T>(std::marker::PhantomData<T>);

pub(super) fn of<T: Table>() -> TableShape<T> {
    TableShape(std::marker::PhantomData)
}

impl<T: Table> Shape for TableShape<T> {
    type Value = T;

    fn expects(&self) -> String {
        "a table".into()
    }

    fn read(&self, node: &Node, reader: &mut SpecReader) -> Option<T> {
        let DeValue::Table(entries) = node.get_ref() else {
            wrong_brackets(node, reader, &self.expects());
            return None;
        };
        let known = T::key_names();
        for (key, _) in entries {
            if !known.iter().any(|name| name == key.get_ref()) {
                let help = suggest(key.get_ref(), known.iter().map(String::as_str));
                reader.report(SpecError::new(key.span(), unknown(key.get_ref())).maybe_help(help));
            }
        }
        Some(T::read(&Section { entries, span: node.span() }, reader))
    }

    fn schema(&self) -> Json {
        object(T::keys())
    }
}

/// Returns the schema of a table with these keys.
pub(super) fn object(keys: Vec<KeySchema>) -> Json {
    let required: Vec<String> = keys.iter().filter(|key| key.required).map(|key| key.name.clone()).collect();
    let properties: JsonMap<String, Json> = keys.into_iter().map(|key| (key.name, key.schema)).collect();
    let mut object = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        object["required"] = required.into();
    }
    object
}

fn unknown(key: &str) -> String {
    format!("unknown key {}", quoted(key))
}

/// Tables of several kinds; which of a few keys is present determines the kind.
pub(super) trait Variants: Sized {
    /// The name of what these keys select, with its article, for messages.
    const ONE: &'static str;
    /// Returns the keys, each with the keys that may stand beside it.
    fn all() -> Vec<Variant>;
    fn read(key: &str, section: &Section, reader: &mut SpecReader) -> Option<Self>;
    /// Kinds that the format of specs foresees, and that this version does not support.
    const LATER: &'static [&'static str];
}

/// One kind of table of [`Variants`].
pub(super) struct Variant {
    pub key: &'static str,
    pub about: &'static str,
    pub key_names: fn() -> Vec<String>,
    pub keys: fn() -> Vec<KeySchema>,
}

/// Declares [`Variants`]: an enum of tables, each with the key that tells it apart.
macro_rules! variants {
    ($(#[doc = $about:literal])+ $name:ident, $one:literal { $($key:literal: $table:ident,)+ } later $later:expr) => {
        $(#[doc = $about])+
        pub(super) enum $name { $(#[doc = concat!("`", $key, "`")] $table($table),)+ }

        impl Variants for $name {
            const ONE: &'static str = $one;
            const LATER: &'static [&'static str] = &$later;

            fn all() -> Vec<Variant> {
                vec![$(Variant {
                    key: $key,
                    about: $table::ABOUT,
                    key_names: $table::key_names,
                    keys: $table::keys,
                },)+]
            }

            fn read(key: &str, section: &Section, reader: &mut SpecReader) -> Option<Self> {
                match key {
                    $($key => Some(Self::$table($table::read(section, reader))),)+
                    _ => None,
                }
            }
        }
    };
}
pub(super) use variants;

/// The shape of [`Variants`] with keys that all of them share.
pub(super) struct OneOf<C, V>(std::marker::PhantomData<(C, V)>);

pub(super) fn one_of<C: Table, V: Variants>() -> OneOf<C, V> {
    OneOf(std::marker::PhantomData)
}

/// The shared keys that were read, and the variant if there was exactly one.
pub(super) struct ChosenVariant<C, V> {
    pub common: C,
    pub variant: Option<V>,
}

impl<C: Table, V: Variants> Shape for OneOf<C, V> {
    type Value = ChosenVariant<C, V>;

    fn expects(&self) -> String {
        let all = V::all();
        let keys: Vec<&str> = all.iter().map(|variant| variant.key).collect();
        match keys[..] {
            [only] => format!("a table with `{only}`"),
            _ => format!("a table with exactly one of {}", list(&keys)),
        }
    }

    fn read(&self, node: &Node, reader: &mut SpecReader) -> Option<Self::Value> {
        let DeValue::Table(entries) = node.get_ref() else {
            wrong_brackets(node, reader, &self.expects());
            return None;
        };
        let section = Section { entries, span: node.span() };
        let chosen = choose::<V>(&section, reader);
        check_keys::<C, V>(entries, chosen, reader);
        let common = C::read(&section, reader);
        Some(ChosenVariant { common, variant: chosen.and_then(|key| V::read(key, &section, reader)) })
    }

    /// Returns a schema in which every key is declared once, so that a validator names the one that is wrong. Which keys
    /// belong together is expressed as a condition for each variant, and not as a choice among all, of which a validator
    /// only reports that none fits.
    fn schema(&self) -> Json {
        let variants: Vec<(Variant, Vec<KeySchema>)> = V::all().into_iter().map(with_keys).collect();
        let own = variants.iter().flat_map(|(_, keys)| keys);
        let shared = C::keys();
        let mut schema =
            json!({ "type": "object", "properties": declare(shared.iter().chain(own)), "additionalProperties": false });
        let conditions = variants.iter().map(|(variant, keys)| condition(variant, keys, &shared));
        schema["allOf"] = conditions.collect();
        schema["oneOf"] = variants.iter().map(|(variant, _)| json!({ "required": [variant.key] })).collect();
        schema
    }
}

fn with_keys(variant: Variant) -> (Variant, Vec<KeySchema>) {
    let keys = (variant.keys)();
    (variant, keys)
}

/// Returns the declarations of keys; a key that variants declare in different ways may have any value here.
fn declare<'k>(keys: impl Iterator<Item = &'k KeySchema>) -> JsonMap<String, Json> {
    let mut declared: JsonMap<String, Json> = JsonMap::new();
    for key in keys {
        let known = declared.entry(key.name.clone()).or_insert_with(|| key.schema.clone());
        if *known != key.schema {
            *known = json!({});
        }
    }
    declared
}

/// Returns the schema of a table that has the key of a variant: which keys it may and must have.
fn condition(variant: &Variant, keys: &[KeySchema], shared: &[KeySchema]) -> Json {
    let allowed = shared.iter().map(|key| (key.name.clone(), json!(true)));
    let own = keys.iter().map(|key| (key.name.clone(), key.schema.clone()));
    let properties: JsonMap<String, Json> = allowed.chain(own).collect();
    let required: Vec<&str> =
        keys.iter().chain(shared).filter(|key| key.required).map(|key| key.name.as_str()).collect();
    json!({
        "if": { "required": [variant.key] },
        "then": {
            "description": variant.about.trim(), "properties": properties, "required": required,
            "additionalProperties": false,
        },
    })
}

/// Returns the one key that selects the variant; reports none, several, and those of a later version.
fn choose<V: Variants>(section: &Section, reader: &mut SpecReader) -> Option<&'static str> {
    let all: Vec<&str> = V::all().iter().map(|variant| variant.key).collect();
    let mut found: Vec<_> = section.entries.keys().filter(|key| all.contains(&key.get_ref().as_ref())).collect();
    found.sort_by_key(|key| key.span().start);
    let mut later = section.entries.keys().filter(|key| V::LATER.contains(&key.get_ref().as_ref())).peekable();
    match found[..] {
        [] if later.peek().is_some() => {}
        [] => {
            let one_of = if all.len() > 1 { "one of " } else { "" };
            let message = format!("{} is missing: {one_of}{}", V::ONE, list(&all));
            reader.report_missing(SpecError::new(section.span.clone(), message));
        }
        [_] => {}
        [first, second, ..] => {
            let message = format!("`{second}` beside `{first}`, where only one of {} can be", list(&all));
            let error = SpecError::new(second.span(), message).related(first.span(), "the first one");
            reader.report(error);
        }
    }
    for key in later {
        reader.report(SpecError::new(key.span(), not_yet(key.get_ref(), &all)));
    }
    let only = found.first().filter(|_| found.len() == 1)?;
    all.into_iter().find(|key| *key == only.get_ref())
}

/// Reports unknown keys, and those that belong to another variant than the chosen one.
fn check_keys<C: Table, V: Variants>(entries: &DeTable, chosen: Option<&str>, reader: &mut SpecReader) {
    let common = C::key_names();
    let variants: Vec<(&str, Vec<String>)> = V::all().iter().map(|v| (v.key, (v.key_names)())).collect();
    for (key, _) in entries {
        let name: &str = key.get_ref();
        if V::LATER.contains(&name) || common.iter().any(|known| known == name) {
            continue;
        }
        let owners = variants.iter().filter(|(_, keys)| keys.iter().any(|known| known == name));
        let owners: Vec<&str> = owners.map(|(variant, _)| *variant).collect();
        match chosen {
            _ if owners.is_empty() => {
                let beside = variants.iter().filter(|(variant, _)| chosen.is_none_or(|chosen| chosen == *variant));
                let valid: BTreeSet<&str> =
                    common.iter().chain(beside.flat_map(|(_, keys)| keys)).map(|key| &**key).collect();
                reader.report(SpecError::new(key.span(), unknown(name)).maybe_help(suggest(name, valid)));
            }
            Some(chosen) if !owners.contains(&chosen) => {
                let message = format!("`{name}` belongs to {}, not to `{chosen}`", list(&owners));
                reader.report(SpecError::new(key.span(), message));
            }
            _ => {}
        }
    }
}
