//! `kiln list`: lists the images and versions of the store.

use std::io::Write;

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{print, print_json};
use crate::error::Failure;
use crate::report::escape::escape;
use crate::size::ByteSize;
use crate::store::{Ancestor, Store, StoreListing, Summary};

/// Arguments of `kiln list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Writes all versions, by name and newest first.
///
/// # Errors
/// When the store cannot be read; when a version cannot be, after the others were listed.
pub fn run(store: &Store, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let listing = store.list()?;
    if json {
        print_json(out, &entries(&listing))?;
    } else {
        print(out, &table(&listing, Timestamp::now()))?;
    }
    unreadable(listing)
}

/// Returns the failure for the versions that could not be listed, if there are any.
pub(super) fn unreadable(listing: StoreListing) -> Result<(), Failure> {
    let mut unreadable = listing.unreadable.into_iter();
    let Some(first) = unreadable.next() else { return Ok(()) };
    let mut failure = Failure::from(first);
    unreadable.for_each(|error| failure.attach(Failure::from(error)));
    Err(failure)
}

fn entries(listing: &StoreListing) -> String {
    let entries: Vec<_> = listing.versions.iter().map(|summary| entry(summary, listing)).collect();
    format!("{:#}\n", json!(entries))
}

fn entry(summary: &Summary, listing: &StoreListing) -> Value {
    json!({
        "name": summary.id.name(), "version": summary.id.version(), "tags": summary.tags, "sequence": summary.sequence,
        "created": summary.finished.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "description": summary.image.description, "labels": summary.image.labels,
        "bytes": summary.bytes(),
        "virtual_bytes": summary.outputs.iter().map(|output| output.virtual_bytes).max().unwrap_or(0),
        "formats": summary.formats(), "base": summary.base,
        // The image that it was built from, the image that that one was built from, and so on.
        "lineage": listing.lineage(summary).iter().map(Ancestor::to_string).collect::<Vec<_>>(),
        "build_key": summary.build_key, "disk_sha256": summary.disk_sha256,
        "disk_chunks_sha256": summary.disk_chunks_sha256, "path": summary.folder.display().to_string(),
    })
}

fn table(listing: &StoreListing, now: Timestamp) -> String {
    let head = ["NAME", "VERSION", "TAGS", "SIZE", "CREATED", "FORMATS", "BASE"].map(str::to_owned);
    let rows = listing.versions.iter().map(|summary| {
        let base: Vec<_> = listing.lineage(summary).iter().map(Ancestor::to_string).collect();
        [
            summary.id.name().to_owned(),
            summary.id.version().to_owned(),
            summary.tags.join(","),
            ByteSize(summary.bytes()).to_string(),
            age(now.duration_since(summary.finished).as_secs()),
            summary.formats().join(","),
            base.join(" <- "),
        ]
    });
    align(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// Aligns columns two spaces apart, without spaces at the end of a line. Cells are escaped, since the values in manifests
/// may be anybody's; the first cell of a row must be a word of kiln's or a validated name.
pub(super) fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<_> = rows.iter().map(|row| row.each_ref().map(|cell| escape(cell))).collect();
    let widths: [usize; N] = std::array::from_fn(|n| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0));
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    });
    lines.collect()
}

/// Returns a number with its noun, such as `1 step` or `3 steps`.
pub(super) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Formats an age in the largest unit that gives two or more.
pub(super) fn age(seconds: i64) -> String {
    const UNITS: [(i64, &str); 4] = [(86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds")];
    match UNITS.iter().find(|(length, _)| seconds >= 2 * length) {
        Some((length, unit)) => format!("{} {unit} ago", seconds / length),
        // This includes times in the future, from before a clock was set back.
        None => "just now".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Sha256Digest;
    use crate::store::testing::{TestStore, written};

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
        let shelf = TestStore::with(&["web@1", "web@2", "app@1.0.0-rc1"]);
        for (image, tag) in [("web@1", "stable"), ("web@1", "old"), ("web", "edge")] {
            shelf.store.tag(&image.parse().unwrap(), &tag.parse().unwrap()).unwrap();
        }
        let now = "2026-01-04T03:05:05Z".parse().unwrap();
        let expected = "\
NAME  VERSION    TAGS        SIZE  CREATED     FORMATS  BASE
app   1.0.0-rc1              4B    2 days ago  qcow2    debian-12.qcow2
web   2          edge        4B    2 days ago  qcow2    debian-12.qcow2
web   1          old,stable  4B    2 days ago  qcow2    debian-12.qcow2
";
        assert_eq!(table(&shelf.store.list().unwrap(), now), expected);
        assert_eq!(written(|out| run(&shelf.store, false, out)).unwrap().lines().count(), 4);
    }

    #[test]
    fn json_lists_the_same() {
        let shelf = TestStore::with(&["web@1"]);
        let text = written(|out| run(&shelf.store, true, out)).unwrap();
        let list: Value = serde_json::from_str(&text).unwrap();
        let path = shelf.store.path().join("web/1");
        let [base, disk, chunks] = ["debian-12.qcow2", "disk", "chunks"].map(Sha256Digest::of);
        let expected = serde_json::json!([{
            "name": "web", "version": "1", "tags": [], "sequence": 1, "created": "2026-01-02T03:05:05Z",
            "description": "", "labels": {}, "bytes": 4, "virtual_bytes": 8_u64 << 30, "formats": ["qcow2"],
            "base": { "source": "debian-12.qcow2", "sha256": base, "format": "qcow2", "image": null },
            "lineage": ["debian-12.qcow2"], "build_key": "disk", "disk_sha256": disk, "disk_chunks_sha256": chunks, "path": path,
        }]);
        assert_eq!(list, expected);
    }

    #[test]
    fn an_empty_store_is_a_head_without_rows() {
        let shelf = TestStore::with(&[]);
        assert_eq!(written(|out| run(&shelf.store, true, out)).unwrap(), "[]\n");
        assert_eq!(written(|out| run(&shelf.store, false, out)).unwrap().lines().count(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_said_after_the_rest() {
        let shelf = TestStore::with(&["web@1", "web@2"]);
        shelf.overwrite("web/1/manifest.json", "{");
        let mut out = Vec::new();
        let failure = run(&shelf.store, false, &mut out).unwrap_err();
        assert_eq!(failure.kind().exit_code(), 8);
        assert!(
            failure.to_string().contains("failed to parse") && failure.to_string().contains("web/1/manifest.json"),
            "{failure}"
        );
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 2);
    }
}
