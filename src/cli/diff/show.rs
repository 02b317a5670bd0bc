//! Text output of a difference. All of it comes from guests, so each line begins with a mark or a label of kiln's own.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use similar::TextDiff;

use crate::disk::compare::TreeChange;
use crate::disk::listing::ListingRecord;
use crate::report::quote::{TextPage, quote_name};
use crate::size::ByteSize;

use super::secrets::ShownText;
use super::{Difference, PackageChange, PackageChangeKind};

/// Number of folders in the list of size changes.
const FOLDERS: usize = 20;

/// Returns the lines of a unified diff without its header.
fn unified(old: &str, new: &str) -> String {
    TextDiff::from_lines(old, new).unified_diff().context_radius(3).to_string()
}

/// Returns the difference of a changed file's texts, or a note that it is hidden.
pub(super) fn changed_text(shown: &ShownText) -> String {
    match shown {
        ShownText::Texts(old, new) => unified(old, new),
        ShownText::Hidden => "a private key, which is not shown without --show-secrets\n".to_owned(),
    }
}

/// Renders the whole difference, with every file.
pub(super) fn full(names: (&str, &str), difference: &Difference) -> String {
    let mut page = head(names, difference);
    let mut texts = difference.texts.iter().peekable();
    for (place, change) in difference.files.iter().enumerate() {
        page.line(mark(change), &file(change, &difference.steps));
        if let Some((_, text)) = texts.next_if(|(at, _)| *at == place) {
            page.quote(text);
        }
    }
    sum_up(&mut page, difference);
    page.into_text()
}

/// Renders the numbers only.
pub(super) fn stat(names: (&str, &str), difference: &Difference) -> String {
    let mut page = head(names, difference);
    sum_up(&mut page, difference);
    page.into_text()
}

/// Begins a page with the names of both sides, and what could not be compared.
fn head(names: (&str, &str), difference: &Difference) -> TextPage {
    let mut page = TextPage::default();
    page.line("--- ", names.0);
    page.line("+++ ", names.1);
    for (name, gaps) in [names.0, names.1].into_iter().zip(&difference.gaps) {
        gaps.missing.iter().for_each(|missing| page.line("not comparable: ", &format!("{name}: {missing}")));
        gaps.left_over.iter().for_each(|gap| page.line("not compared: ", &format!("{name}: {gap}")));
    }
    page
}

/// Writes packages, metadata, folders and the totals.
fn sum_up(page: &mut TextPage, difference: &Difference) {
    for pair in &difference.packages {
        page.line("package ", &package(pair));
    }
    for (name, old, new) in &difference.metadata {
        page.line(name, &format!(": {old} -> {new}"));
    }
    let folders = folders(&difference.files);
    if !folders.is_empty() {
        page.line("size by folder", "");
    }
    for (folder, bytes) in folders {
        page.line("    ", &format!("{:>10}  {folder}", signed(bytes)));
    }
    let added = difference.files.iter().filter(|change| matches!(change, TreeChange::Added(_))).count();
    let removed = difference.files.iter().filter(|change| matches!(change, TreeChange::Removed(_))).count();
    let changed = difference.files.len() - added - removed;
    let packages = difference.packages.len();
    let rest = match difference.incomparable() {
        0 => String::new(),
        count => format!("; {count} not comparable"),
    };
    page.line("", &format!("{added} added, {removed} removed, {changed} changed; {packages} packages differ{rest}"));
}

fn mark(change: &TreeChange) -> &'static str {
    match change {
        TreeChange::Added(_) => "+ ",
        TreeChange::Removed(_) => "- ",
        TreeChange::Changed { .. } => "~ ",
    }
}

/// Returns a line such as `/etc/motd (content, mode; 12 B -> 20 B; step 2 `write /etc/motd`)`.
fn file(change: &TreeChange, steps: &[String]) -> String {
    let path = quote_name(change.path());
    let mut notes = match change {
        TreeChange::Added(record) | TreeChange::Removed(record) => vec![kind(record)],
        TreeChange::Changed { what, .. } => vec![what.join(", ")],
    };
    match change.sizes() {
        (old, new) if old == new => {}
        (0, size) | (size, 0) => notes.push(ByteSize(size).to_string()),
        (old, new) => notes.push(format!("{} -> {}", ByteSize(old), ByteSize(new))),
    }
    if let Some(step) = step(change) {
        notes.push(step_name(step, steps));
    }
    format!("{path} ({})", notes.join("; "))
}

fn kind(record: &ListingRecord) -> String {
    record.field("type").unwrap_or("file").to_owned()
}

/// Returns the step that wrote the current content.
fn step(change: &TreeChange) -> Option<usize> {
    match change {
        TreeChange::Added(new) | TreeChange::Changed { new, .. } => new.step,
        TreeChange::Removed(_) => None,
    }
}

fn step_name(step: usize, steps: &[String]) -> String {
    let name = steps.get(step).map(|name| format!(" `{name}`")).unwrap_or_default();
    format!("step {}{name}", step + 1)
}

fn package(PackageChange { how, old, new }: &PackageChange) -> String {
    let mark = match how {
        PackageChangeKind::Added => "+",
        PackageChangeKind::Removed => "-",
        PackageChangeKind::Up => "up",
        PackageChangeKind::Down => "down",
        PackageChangeKind::Changed => "~",
    };
    match (old, new) {
        (Some(old), Some(new)) => {
            format!("{mark} {} {} -> {} ({})", old.name, old.version, new.version, new.arch)
        }
        (Some(one), None) | (None, Some(one)) => format!("{mark} {} {} ({})", one.name, one.version, one.arch),
        (None, None) => String::new(),
    }
}

/// Returns the size change of each folder in bytes, two levels deep, the largest first.
fn folders(changes: &[TreeChange]) -> Vec<(String, i64)> {
    let mut sizes: BTreeMap<String, i64> = BTreeMap::new();
    for change in changes {
        let (old, new) = change.sizes();
        let path = quote_name(change.path());
        let parts: Vec<&str> = path.split('/').skip(1).take(3).collect();
        let folder = match parts[..] {
            [first, second, _] => format!("/{first}/{second}"),
            [first, _] => format!("/{first}"),
            _ => "/".to_owned(),
        };
        *sizes.entry(folder).or_default() += new.cast_signed() - old.cast_signed();
    }
    let mut sizes: Vec<_> = sizes.into_iter().filter(|(_, bytes)| *bytes != 0).collect();
    sizes.sort_by_key(|(_, bytes)| std::cmp::Reverse(bytes.unsigned_abs()));
    sizes.truncate(FOLDERS);
    sizes
}

fn signed(bytes: i64) -> String {
    format!("{}{}", if bytes < 0 { '-' } else { '+' }, ByteSize(bytes.unsigned_abs()))
}

/// Renders the whole difference as one JSON document.
pub(super) fn json(names: (&str, &str), difference: &Difference) -> String {
    let texts: BTreeMap<usize, &String> = difference.texts.iter().map(|(place, text)| (*place, text)).collect();
    let files = difference.files.iter().enumerate().map(|(place, change)| {
        let (how, what) = match change {
            TreeChange::Added(_) => ("added", Vec::new()),
            TreeChange::Removed(_) => ("removed", Vec::new()),
            TreeChange::Changed { what, .. } => ("changed", what.clone()),
        };
        let (old, new) = change.sizes();
        json!({
            "path": String::from_utf8_lossy(change.path()), "change": how, "what": what, "bytes": [old, new],
            "step": step(change).map(|step| step_name(step, &difference.steps)), "text": texts.get(&place),
        })
    });
    let packages = difference.packages.iter().filter_map(|PackageChange { how, old, new }| {
        let any = old.as_ref().or(new.as_ref())?;
        let old = old.as_ref().map(|package| &package.version);
        let new = new.as_ref().map(|package| &package.version);
        Some(json!({ "name": any.name, "arch": any.arch, "change": how, "old": old, "new": new }))
    });
    let metadata = difference.metadata.iter().map(|(name, old, new)| json!({ "name": name, "old": old, "new": new }));
    let folders = folders(&difference.files).into_iter().map(|(path, bytes)| json!({ "path": path, "bytes": bytes }));
    let document = json!({
        "a": names.0, "b": names.1, "files": files.collect::<Vec<Value>>(), "packages": packages.collect::<Vec<Value>>(),
        "metadata": metadata.collect::<Vec<Value>>(), "folders": folders.collect::<Vec<Value>>(),
        "not_comparable": difference.gaps.each_ref().map(|gaps| &gaps.missing),
        "left_over": difference.gaps.each_ref().map(|gaps| &gaps.left_over),
    });
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests {
    use super::super::SideGaps;
    use super::*;
    use crate::store::manifest::ManifestPackage;

    fn record(path: &str, size: u64, step: Option<usize>) -> ListingRecord {
        let fields = vec![("type".to_owned(), "file".to_owned()), ("size".to_owned(), size.to_string())];
        ListingRecord { path: path.into(), fields, mtime: "1.0".into(), step }
    }

    fn difference() -> Difference {
        let what = vec!["content".to_owned(), "mode".to_owned()];
        let changed =
            TreeChange::Changed { old: record("/etc/motd", 4, None), new: record("/etc/motd", 8, Some(0)), what };
        let package = |version: &str| {
            Some(ManifestPackage { name: "a".into(), version: version.into(), arch: "all".into(), kind: None })
        };
        Difference {
            files: vec![
                changed,
                TreeChange::Removed(record("/etc/x\x1b[2J", 0, None)),
                TreeChange::Added(record("/usr/lib/a/b", 4096, Some(7))),
            ],
            texts: vec![(0, unified("one\ntwo\n", "one\n\x1btwo\n"))],
            packages: vec![
                PackageChange { how: PackageChangeKind::Up, old: package("1"), new: package("2") },
                PackageChange { how: PackageChangeKind::Removed, old: package("3"), new: None },
            ],
            metadata: vec![("kiln", "0.1".into(), "0.2".into())],
            steps: vec!["write /etc/motd".into()],
            gaps: Default::default(),
        }
    }

    #[test]
    fn everything_is_told_and_nothing_obeyed() {
        let expected = "--- a@1
+++ a@2
~ /etc/motd (content, mode; 4B -> 8B; step 1 `write /etc/motd`)
  | @@ -1,2 +1,2 @@
  |  one
  | -two
  | +\\x1btwo
- /etc/x\\x1b[2J (file)
+ /usr/lib/a/b (file; 4KiB; step 8)
package up a 1 -> 2 (all)
package - a 3 (all)
kiln: 0.1 -> 0.2
size by folder
         +4KiB  /usr/lib
           +4B  /etc
1 added, 1 removed, 1 changed; 2 packages differ
";
        assert_eq!(full(("a@1", "a@2"), &difference()), expected);
    }

    #[test]
    fn what_could_not_be_compared_is_named_and_counted() {
        let missing = vec!["/srv is xfs on partition 3, which kiln cannot read".to_owned()];
        let gaps =
            [SideGaps { missing, left_over: vec!["nothing mounts ext4 on partition 4".into()] }, SideGaps::default()];
        let difference = Difference { gaps, ..Difference::default() };
        assert!(!difference.is_empty());
        let expected = "--- a@1
+++ a@2
not comparable: a@1: /srv is xfs on partition 3, which kiln cannot read
not compared: a@1: nothing mounts ext4 on partition 4
0 added, 0 removed, 0 changed; 0 packages differ; 1 not comparable
";
        assert_eq!(full(("a@1", "a@2"), &difference), expected);
        assert_eq!(stat(("a@1", "a@2"), &difference), expected);
        let document: Value = serde_json::from_str(&json(("a@1", "a@2"), &difference)).unwrap();
        assert_eq!(document["not_comparable"][0].as_array().map(Vec::len), Some(1));
        assert_eq!(document["not_comparable"][1].as_array().map(Vec::len), Some(0));
    }

    #[test]
    fn stat_has_no_files_and_json_has_all() {
        let text = stat(("a@1", "a@2"), &difference());
        assert!(!text.contains("motd") && text.contains("1 added, 1 removed, 1 changed"));
        let document: Value = serde_json::from_str(&json(("a@1", "a@2"), &difference())).unwrap();
        assert_eq!(document["files"][0]["step"], "step 1 `write /etc/motd`");
        assert_eq!(document["files"][1]["change"], "removed");
        assert_eq!(document["packages"][0]["change"], "up");
        assert_eq!(document["packages"][1]["new"], Value::Null);
    }
}
