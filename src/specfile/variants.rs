//! `[variants.NAME]`: other images of the same file. A variant is merged into the document before it is read, so that what
//! it changes is checked like everything else, and errors point at where it is written.

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::complaint::SpecError;
use super::reader::SpecReader;
use super::suggest::{list, suggest};

const TABLE: &str = "variants";
/// The name that stands for all variants of a spec.
pub const EVERY_VARIANT: &str = "all";

/// Returns the variants that the text of a spec has, sorted; empty where it is not TOML, which reading it reports.
pub(super) fn variants(text: &str) -> Vec<String> {
    let (table, _) = DeTable::parse_recoverable(text.strip_prefix('\u{feff}').unwrap_or(text));
    names(table.get_ref())
}

fn names(document: &DeTable) -> Vec<String> {
    let variants = document.get(TABLE).and_then(|node| node.get_ref().as_table());
    let mut names: Vec<String> =
        variants.into_iter().flat_map(|table| table.keys()).map(|name| name.get_ref().to_string()).collect();
    names.sort_unstable();
    names
}

/// Merges a variant into the rest: variables and keys of the machine one by one, the base and the outputs as a whole. The
/// table of variants is kept: errors in it are reported where all variants are read.
pub(super) fn lay_over(document: &mut DeTable, variant: &str, reader: &mut SpecReader) {
    let known = names(document);
    let variants = document.get(TABLE).and_then(|node| node.get_ref().as_table());
    let Some(overlay) = variants.and_then(|variants| variants.get(variant)).cloned() else {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let there = if known.is_empty() { "has none".to_owned() } else { format!("has {}", list(&known)) };
        let error = SpecError::of_option(format!("`--variant {variant}` is no variant of the spec, which {there}"));
        return reader.report_missing(error.maybe_help(suggest(variant, known)));
    };
    let DeValue::Table(overlay) = overlay.into_inner() else { return };
    for (key, value) in overlay {
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("base" | "output", _) => put(document, key, value),
            ("vars", DeValue::Table(above)) => {
                let Some(below) = table_mut(document, "vars") else { continue };
                let declared = above.iter().filter(|(name, _)| below.contains_key(name.get_ref().as_ref()));
                let declared: Vec<_> = declared.map(|(name, value)| (name.clone(), value.clone())).collect();
                for (name, value) in declared {
                    put(below, name, value);
                }
            }
            ("machine", DeValue::Table(above)) => match table_mut(document, "machine") {
                Some(below) => above.iter().for_each(|(name, value)| put(below, name.clone(), value.clone())),
                None => put(document, key, value),
            },
            _ => {}
        }
    }
}

fn table_mut<'t, 'd>(document: &'t mut DeTable<'d>, name: &str) -> Option<&'t mut DeTable<'d>> {
    match document.get_mut(name)?.get_mut() {
        DeValue::Table(table) => Some(table),
        _ => None,
    }
}

/// Replaces a value. The old key is removed first: it would keep its place in the text.
fn put<'d>(table: &mut DeTable<'d>, key: Spanned<DeString<'d>>, value: Spanned<DeValue<'d>>) {
    table.remove(key.get_ref().as_ref());
    table.insert(key, value);
}
