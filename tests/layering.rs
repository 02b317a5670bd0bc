//! Imports point downwards only.
//!
//! ```text
//! cli > report > build > package > machine | session | layer | disk | download | seed | store > plan > specfile > leaves     agent > wire alone
//! ```

use std::fs;
use std::path::{Path, PathBuf};

/// The modules by their height. Those of one row do not know each other, but for the leaves.
const ROWS: [&[&str]; 8] = [
    &[
        "address",
        "digest",
        "error",
        "event",
        "fs",
        "masking",
        "digest_cache",
        "ownership",
        "process",
        "project",
        "sign",
        "signal",
        "size",
        "url",
        "wire",
        "workdir",
    ],
    &["specfile"],
    &["plan"],
    &["machine", "session", "layer", "disk", "download", "seed", "store"],
    &["package"],
    &["build"],
    &["report"],
    &["cli"],
];
/// The agent is a program of its own: it knows `wire` and nothing else. Only `session`, its other end, may use its parts.
const AGENT: &str = "agent";

fn height(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

fn may_use(from: &str, to: &str) -> bool {
    match (from, to) {
        _ if from == to => true,
        (AGENT, _) => to == "wire",
        (_, AGENT) => from == "session",
        _ => match (height(from), height(to)) {
            (Some(0), Some(0)) => true,
            (Some(from), Some(to)) => to < from,
            _ => false,
        },
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules that a line of code names behind `crate::`, also in a list of a `use`.
fn used(text: &str) -> Vec<String> {
    let code: String =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| line.to_owned() + "\n").collect();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => found.extend(first_segments(list)),
            None => found.push(word(rest)),
        }
    }
    found
}

/// The first names in `a::b, c::{d, e}, f}`.
fn first_segments(list: &str) -> Vec<String> {
    let (mut depth, mut found, mut at_start) = (0, Vec::new(), true);
    for (index, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            c if at_start && c.is_ascii_alphabetic() => {
                found.push(word(&list[index..]));
                at_start = false;
            }
            _ => {}
        }
    }
    found
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

/// The top module that a source file belongs to.
fn module(path: &Path) -> String {
    let relative = path.strip_prefix("src").expect("below src");
    let first = relative.components().next().expect("a file").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn imports_point_downwards() {
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| !matches!(file.to_str(), Some("src/lib.rs" | "src/main.rs"))) {
        let from = module(file);
        assert!(from == AGENT || height(&from).is_some(), "{} is in no row", file.display());
        for to in used(&fs::read_to_string(file).expect("read")) {
            if !may_use(&from, &to) {
                violations.push(format!("{}: {from} uses {to}", file.display()));
            }
        }
    }
    violations.sort();
    violations.dedup();
    assert_eq!(violations, [""; 0], "{violations:#?}");
    assert!(files.len() > 80, "the sources are not all there");
}

#[test]
fn imports_are_found_in_every_form() {
    let text = "use crate::plan::{Plan, with};\n// crate::cli\nuse crate::{spec, size::ByteSize, disk::{a, b}};\nfn f() { crate::build::x() }";
    assert_eq!(used(text), ["plan", "spec", "size", "disk", "build"]);
}
