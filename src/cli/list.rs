//! `kiln list`: the images and versions of the store.

use std::io::Write;

use jiff::Timestamp;
use serde::Serialize;

use super::print;
use crate::error::Failure;
use crate::size::ByteSize;
use crate::store::{Store, Summary};

/// A version in `--json`.
#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    version: &'a str,
    sequence: u64,
    created: String,
    bytes: u64,
    formats: &'a [String],
    path: String,
}

impl<'a> From<&'a Summary> for Entry<'a> {
    fn from(summary: &'a Summary) -> Self {
        Self {
            name: summary.id.name(),
            version: summary.id.version(),
            sequence: summary.sequence,
            created: summary.finished.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            bytes: summary.bytes,
            formats: &summary.formats,
            path: summary.folder.display().to_string(),
        }
    }
}

/// Writes all versions, by name and newest first.
///
/// # Errors
/// When the store cannot be read; when a version cannot be, after the others were listed.
pub fn run(store: &Store, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let listing = store.list()?;
    let text = if json { entries(&listing.versions) } else { table(&listing.versions, Timestamp::now()) };
    print(out, &text)?;
    let mut unreadable = listing.unreadable.into_iter();
    let Some(first) = unreadable.next() else { return Ok(()) };
    let mut failure = Failure::from(first);
    unreadable.for_each(|error| failure.attach(Failure::from(error)));
    Err(failure)
}

fn entries(versions: &[Summary]) -> String {
    format!("{:#}\n", serde_json::json!(versions.iter().map(Entry::from).collect::<Vec<_>>()))
}

fn table(versions: &[Summary], now: Timestamp) -> String {
    let head = ["NAME", "VERSION", "SIZE", "CREATED", "FORMATS"].map(str::to_owned);
    let row = |summary: &Summary| {
        let (name, version) = (summary.id.name().to_owned(), summary.id.version().to_owned());
        let age = age(now.duration_since(summary.finished).as_secs());
        [name, version, ByteSize(summary.bytes).to_string(), age, summary.formats.join(",")]
    };
    let rows: Vec<_> = std::iter::once(head).chain(versions.iter().map(row)).collect();
    align(&rows)
}

/// Columns two spaces apart, no spaces at the end of a line.
pub(super) fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|n| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// How long ago, in the largest unit of which there are two or so.
pub(super) fn age(seconds: i64) -> String {
    const UNITS: [(i64, &str); 4] = [(86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds")];
    match UNITS.iter().find(|(length, _)| seconds >= 2 * length) {
        Some((length, unit)) => format!("{} {unit} ago", seconds / length),
        // A clock that was set back since counts as well.
        None => "just now".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::shelf::{Shelf, written};

    #[test]
    fn ages_are_rough() {
        let cases = [
            (-100, "just now"),
            (1, "just now"),
            (2, "2 seconds ago"),
            (119, "119 seconds ago"),
            (120, "2 minutes ago"),
            (7200, "2 hours ago"),
            (86_400 * 400, "400 days ago"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(age(seconds), expected);
        }
    }

    #[test]
    fn a_table_has_a_row_for_each_version() {
        let shelf = Shelf::with(&["web@1", "web@2", "app@1.0.0-rc1"]);
        let now = "2026-01-04T03:05:05Z".parse().unwrap();
        let expected = "\
NAME  VERSION    SIZE  CREATED     FORMATS
app   1.0.0-rc1  4B    2 days ago  qcow2
web   2          4B    2 days ago  qcow2
web   1          4B    2 days ago  qcow2
";
        assert_eq!(table(&shelf.store.list().unwrap().versions, now), expected);
        assert_eq!(written(|out| run(&shelf.store, false, out)).unwrap().lines().count(), 4);
    }

    #[test]
    fn json_lists_the_same() {
        let shelf = Shelf::with(&["web@1"]);
        let text = written(|out| run(&shelf.store, true, out)).unwrap();
        let list: serde_json::Value = serde_json::from_str(&text).unwrap();
        let path = shelf.store.path().join("web/1");
        let expected = serde_json::json!([{
            "name": "web", "version": "1", "sequence": 1, "created": "2026-01-02T03:05:05Z", "bytes": 4,
            "formats": ["qcow2"], "path": path,
        }]);
        assert_eq!(list, expected);
    }

    #[test]
    fn an_empty_store_is_a_head_without_rows() {
        let shelf = Shelf::with(&[]);
        assert_eq!(written(|out| run(&shelf.store, true, out)).unwrap(), "[]\n");
        assert_eq!(written(|out| run(&shelf.store, false, out)).unwrap().lines().count(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_said_after_the_rest() {
        let shelf = Shelf::with(&["web@1", "web@2"]);
        shelf.overwrite("web/1/manifest.json", "{");
        let mut out = Vec::new();
        let failure = run(&shelf.store, false, &mut out).unwrap_err();
        assert_eq!(failure.kind().exit_code(), 8);
        assert!(failure.to_string().contains("web/1/manifest.json cannot be understood"), "{failure}");
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 2);
    }
}
