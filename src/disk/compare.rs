//! Compares two lists of files entry by entry, in their order, without holding either in memory.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use super::listing::{ListingRecord, order};

/// The fields that have the digest of a content.
const CONTENT_FIELDS: [&str; 2] = ["sha256", "sparse_sha256"];

/// A path that differs between two lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeChange {
    /// The path is only in the second list.
    Added(ListingRecord),
    /// The path is only in the first list.
    Removed(ListingRecord),
    /// The path is in both lists.
    Changed {
        /// The entry in the first list.
        old: ListingRecord,
        /// The entry in the second list.
        new: ListingRecord,
        /// The names of the differing fields: those of the canonical line, and `mtime`. Never empty.
        what: Vec<String>,
    },
}

impl TreeChange {
    /// Returns the path that differs.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        match self {
            TreeChange::Added(record) | TreeChange::Removed(record) | TreeChange::Changed { new: record, .. } => {
                &record.path
            }
        }
    }

    /// Drops the values of extended attributes, which are only needed to detect that they differ.
    pub fn forget_attributes(&mut self) {
        match self {
            TreeChange::Added(record) | TreeChange::Removed(record) => record.forget_attributes(),
            TreeChange::Changed { old, new, .. } => {
                old.forget_attributes();
                new.forget_attributes();
            }
        }
    }

    /// Returns the sizes in the first and the second list, in bytes; 0 if the path is not in the list.
    #[must_use]
    pub fn sizes(&self) -> (u64, u64) {
        match self {
            TreeChange::Added(new) => (0, new.size()),
            TreeChange::Removed(old) => (old.size(), 0),
            TreeChange::Changed { old, new, .. } => (old.size(), new.size()),
        }
    }
}

/// Compares two lists. Modification times count only if `mtime` is set. Ends with the first error of either list.
///
/// # Errors
/// The errors of the lists.
pub fn compare<E>(
    mut old: impl Iterator<Item = Result<ListingRecord, E>>,
    mut new: impl Iterator<Item = Result<ListingRecord, E>>,
    mtime: bool,
    visit: &mut dyn FnMut(TreeChange),
) -> Result<(), E> {
    let mut left = old.next().transpose()?;
    let mut right = new.next().transpose()?;
    loop {
        let first = match (&left, &right) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => order(&old.path, &new.path),
        };
        let gone = if first.is_le() { std::mem::replace(&mut left, old.next().transpose()?) } else { None };
        let come = if first.is_ge() { std::mem::replace(&mut right, new.next().transpose()?) } else { None };
        match (gone, come) {
            (Some(old), Some(new)) => {
                let what = differing(&old, &new, mtime);
                if !what.is_empty() {
                    visit(TreeChange::Changed { old, new, what });
                }
            }
            (Some(old), None) => visit(TreeChange::Removed(old)),
            (None, Some(new)) => visit(TreeChange::Added(new)),
            (None, None) => {}
        }
    }
}

/// Returns the fields of a record by name; of several with one name, the first.
fn by_name(record: &ListingRecord) -> HashMap<&str, &str> {
    record.fields.iter().rev().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// Returns the names of the differing fields. A size is not named beside the content that it belongs to; the content of
/// sparse files can be the same while the sizes differ.
fn differing(old: &ListingRecord, new: &ListingRecord, mtime: bool) -> Vec<String> {
    // A disk can have thousands of attributes on one file.
    let olds = by_name(old);
    let news = by_name(new);
    let mut seen = HashSet::new();
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in old.fields.iter().chain(&new.fields) {
        let name = name.as_str();
        if olds.get(name) != news.get(name) && seen.insert(name) {
            names.push(name);
        }
    }
    if names.iter().any(|name| CONTENT_FIELDS.contains(name)) {
        names.retain(|name| *name != "size");
    }
    if mtime && old.mtime != new.mtime {
        names.push("mtime");
    }
    let mut names: Vec<String> = names.into_iter().map(plain_name).collect();
    names.dedup();
    names
}

fn plain_name(name: &str) -> String {
    match name {
        name if CONTENT_FIELDS.contains(&name) => "content".to_owned(),
        "to" => "link".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(lines: &[(&str, &str)]) -> Vec<ListingRecord> {
        let record = |(path, fields): &(&str, &str)| {
            let pair = |field: &str| field.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
            ListingRecord {
                path: path.as_bytes().to_vec(),
                fields: fields.split_whitespace().filter_map(pair).collect(),
                mtime: "1.0".into(),
                step: None,
            }
        };
        lines.iter().map(record).collect()
    }

    fn told(old: &[(&str, &str)], new: &[(&str, &str)]) -> Vec<String> {
        let mut told = Vec::new();
        let ok = |records: Vec<ListingRecord>| records.into_iter().map(Ok::<_, ()>);
        compare(ok(list(old)), ok(list(new)), false, &mut |change| {
            let path = String::from_utf8_lossy(change.path()).into_owned();
            told.push(match &change {
                TreeChange::Added(_) => format!("+{path}"),
                TreeChange::Removed(_) => format!("-{path}"),
                TreeChange::Changed { what, .. } => format!("~{path} {}", what.join(",")),
            });
        })
        .unwrap();
        told
    }

    #[test]
    fn each_path_is_told_once_in_order() {
        let old = [("/", "type=dir"), ("/a", "type=dir"), ("/a/b", "mode=1"), ("/a.b", "mode=1"), ("/z", "mode=1")];
        let new = [
            ("/", "type=dir"),
            ("/a", "type=file size=3 sha256=0"),
            ("/a.b", "mode=2"),
            ("/c", "mode=1"),
            ("/z", "mode=1"),
        ];
        assert_eq!(told(&old, &new), ["~/a type,content", "-/a/b", "~/a.b mode", "+/c"]);
        assert!(told(&old, &old).is_empty());
        assert_eq!(told(&[], &new[..1]), ["+/"]);
        assert_eq!(told(&old[..2], &[]), ["-/", "-/a"]);
    }

    #[test]
    fn fields_of_all_kinds_count_and_times_on_demand() {
        let old = [("/a", "size=1 sha256=0 xattr:user.a=00 owner=0:0")];
        let new = [("/a", "size=2 sha256=1 xattr:user.a=01 owner=0:1")];
        assert_eq!(told(&old, &new), ["~/a content,xattr:user.a,owner"]);
        let sparse = |size: &str, digest: &str| format!("type=file size={size} sparse_sha256={digest}");
        let (shorter, longer, other) = (sparse("3", "0"), sparse("4", "0"), sparse("4", "1"));
        assert_eq!(told(&[("/s", &shorter)], &[("/s", &longer)]), ["~/s size"]);
        assert_eq!(told(&[("/s", &shorter)], &[("/s", &other)]), ["~/s content"]);
        let whole = [("/s", "type=file size=3 sha256=0")];
        assert_eq!(told(&whole, &[("/s", &longer)]), ["~/s content"]);
        assert_eq!(told(&[("/l", "to=a")], &[("/l", "to=b")]), ["~/l link"]);
        let mut later = list(&[("/a", "mode=1")]);
        later[0].mtime = "2.0".into();
        let mut count = 0;
        let ok = |records: Vec<ListingRecord>| records.into_iter().map(Ok::<_, ()>);
        for mtime in [false, true] {
            compare(ok(list(&[("/a", "mode=1")])), ok(later.clone()), mtime, &mut |_| count += 1).unwrap();
            assert_eq!(count, usize::from(mtime));
        }
    }

    #[test]
    fn an_error_of_either_list_ends_it() {
        let bad = || [Ok(list(&[("/", "a=b")]).remove(0)), Err("bad")].into_iter();
        let good = || list(&[("/", "a=b"), ("/x", "a=b")]).into_iter().map(Ok);
        assert_eq!(compare(bad(), good(), false, &mut |_| {}), Err("bad"));
        assert_eq!(compare(good(), bad(), false, &mut |_| {}), Err("bad"));
    }
}
