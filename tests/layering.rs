//! Imports point downwards only: between rooms, and between the files of a room.
//!
//! ```text
//! cli > scheduler, shell, reproduce > pipeline, outdated > test > output > provision > cache > guest > context > resolve > ...
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The rooms by their height. Those of one row do not know each other.
const ROWS: [&[&str]; 18] = [
    &["address", "digest", "ignore_patterns", "masking", "process", "progress", "rfc3339", "size", "url", "wire"],
    &["copy_filter", "error", "fs", "initramfs", "network_record"],
    &["event", "ownership", "seed", "signal", "sign", "project", "user_data", "workdir", "try_join"],
    &["digest_cache", "free_space", "machine_registry", "specfile"],
    &["plan"],
    &["disk", "download", "session", "store"],
    &["layer", "machine", "package", "proxy", "secret_scan"],
    &["deadline", "resolve"],
    &["context"],
    &["guest"],
    &["cache"],
    &["provision"],
    &["output"],
    &["test"],
    &["pipeline", "outdated"],
    &["reproduce", "scheduler", "shell"],
    &["report"],
    &["cli"],
];
/// The agent is a program of its own: it knows `wire` and nothing else.
const AGENT: &str = "agent";
/// The other ends of the agent's ports, which alone may use its parts.
const ENDS: [&str; 2] = ["proxy", "session"];

/// A module by its path below the crate.
type Module = Vec<String>;

/// Returns the source files with their modules.
fn sources() -> BTreeMap<Module, PathBuf> {
    fn visit(folder: &Path, found: &mut BTreeMap<Module, PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                visit(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.insert(module(&path), path);
            }
        }
    }
    let mut found = BTreeMap::new();
    visit(Path::new("src"), &mut found);
    // The roots of the crates alone are above everything.
    found.remove(&Module::new());
    found.retain(|_, path| !matches!(path.to_str(), Some("src/lib.rs" | "src/main.rs")));
    found
}

fn module(path: &Path) -> Module {
    let below = path.strip_prefix("src").expect("below src").with_extension("");
    let mut names: Module = below.iter().map(|name| name.to_str().expect("UTF-8").to_owned()).collect();
    if names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    names
}

/// Returns the paths below the crate that the code of a module names, its tests left out.
fn named_paths(text: &str, module: &Module) -> BTreeSet<Module> {
    let mut found = BTreeSet::new();
    scan(text.parse().expect("Rust"), module, &mut found);
    found
}

fn scan(stream: TokenStream, module: &Module, found: &mut BTreeSet<Module>) {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Punct(hash) if hash.as_char() == '#' && is_test_attribute(tokens.get(at + 1)) => {
                at = end_of_item(&tokens, at + 2);
                continue;
            }
            TokenTree::Ident(word) if *word == "mod" => {
                if let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) =
                    (tokens.get(at + 1), tokens.get(at + 2))
                {
                    let inner = [module.as_slice(), &[name.to_string()]].concat();
                    scan(body.stream(), &inner, found);
                    at += 2;
                }
            }
            TokenTree::Ident(word) if *word == "crate" => read_paths(&tokens, at + 1, Module::new(), found),
            // Alone it is the value, or the module that a list of a `use` begins with.
            TokenTree::Ident(word) if *word == "self" && precedes_path(&tokens, at) => {
                read_paths(&tokens, at + 1, module.clone(), found);
            }
            // The first of `super::super` counts.
            TokenTree::Ident(word) if *word == "super" && !follows_path(&tokens, at) => {
                let mut parent = module.clone();
                let mut next = at;
                while matches!(tokens.get(next), Some(TokenTree::Ident(word)) if *word == "super") {
                    parent.pop();
                    next += 3;
                }
                read_paths(&tokens, next - 2, parent, found);
            }
            TokenTree::Group(group) => scan(group.stream(), module, found),
            _ => {}
        }
        at += 1;
    }
}

fn is_test_attribute(token: Option<&TokenTree>) -> bool {
    matches!(token, Some(TokenTree::Group(group)) if group.stream().to_string().replace(' ', "") == "cfg(test)")
}

/// Returns the index behind an item: behind its `;` or its braces.
fn end_of_item(tokens: &[TokenTree], from: usize) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        _ => false,
    };
    tokens[from..].iter().position(ends).map_or(tokens.len(), |offset| from + offset + 1)
}

fn precedes_path(tokens: &[TokenTree], at: usize) -> bool {
    matches!(tokens.get(at + 1), Some(TokenTree::Punct(punct)) if punct.as_char() == ':')
}

fn follows_path(tokens: &[TokenTree], at: usize) -> bool {
    at > 0 && matches!(&tokens[at - 1], TokenTree::Punct(punct) if punct.as_char() == ':')
}

/// Reads what follows a path's first segment: `::a::b`, also as the tree of a `use`.
fn read_paths(tokens: &[TokenTree], at: usize, prefix: Module, found: &mut BTreeSet<Module>) {
    let is_colon = |index: usize| matches!(tokens.get(index), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    if !(is_colon(at) && is_colon(at + 1)) {
        found.insert(prefix);
        return;
    }
    match tokens.get(at + 2) {
        Some(TokenTree::Ident(name)) => {
            let path = [prefix.as_slice(), &[name.to_string()]].concat();
            read_paths(tokens, at + 3, path, found);
        }
        Some(TokenTree::Group(group)) => {
            let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
            let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',');
            for branch in tokens.split(is_comma) {
                match branch.first() {
                    Some(TokenTree::Ident(name)) if *name == "self" => drop(found.insert(prefix.clone())),
                    Some(TokenTree::Ident(name)) => {
                        let path = [prefix.as_slice(), &[name.to_string()]].concat();
                        read_paths(branch, 1, path, found);
                    }
                    _ => {}
                }
            }
        }
        _ => drop(found.insert(prefix)),
    }
}

/// Returns what each file imports of the others.
fn imports(sources: &BTreeMap<Module, PathBuf>) -> BTreeMap<Module, BTreeSet<Module>> {
    let file_of = |path: &Module| (1..=path.len()).rev().find_map(|length| sources.get_key_value(&path[..length]));
    let imports_of = |(module, path): (&Module, &PathBuf)| {
        let text = fs::read_to_string(path).expect("read");
        let named = named_paths(&text, module);
        let files = named.iter().filter_map(file_of).map(|(file, _)| file.clone());
        (module.clone(), files.filter(|file| file != module).collect())
    };
    sources.iter().filter(|(module, _)| !is_test(module)).map(imports_of).collect()
}

/// Modules that are compiled for tests alone.
fn is_test(module: &Module) -> bool {
    module.iter().any(|name| matches!(name.as_str(), "tests" | "testing" | "histories" | "forging"))
}

fn height(room: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&room))
}

fn may_import(from: &str, to: &str) -> bool {
    match (from, to) {
        _ if from == to => true,
        (AGENT, _) => to == "wire",
        (_, AGENT) => ENDS.contains(&from),
        _ => height(from).zip(height(to)).is_some_and(|(from, to)| to < from),
    }
}

#[test]
fn rooms_import_what_is_below_them() {
    let imports = imports(&sources());
    let mut upwards = Vec::new();
    for (from, all) in &imports {
        assert!(from[0] == AGENT || height(&from[0]).is_some(), "{} is in no row", from[0]);
        let wrong = all.iter().filter(|to| !may_import(&from[0], &to[0]));
        upwards.extend(wrong.map(|to| format!("{} imports {}", from.join("::"), to.join("::"))));
    }
    assert_eq!(upwards, [""; 0], "{upwards:#?}");
    assert!(imports.len() > 200, "the sources are not all there");
}

/// A file and those of its folder are one family: what the others of a folder import of it counts, not what parent and child do.
#[test]
fn files_of_a_folder_import_each_other_in_one_direction() {
    let imports = imports(&sources());
    let mut siblings: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for (from, all) in &imports {
        for to in all {
            let shared = from.iter().zip(to).take_while(|(from, to)| from == to).count();
            if shared < from.len() && shared < to.len() {
                siblings.entry(from[..=shared].to_vec()).or_default().insert(to[..=shared].to_vec());
            }
        }
    }
    let circles = circles(&siblings);
    assert_eq!(circles, [""; 0], "{circles:#?}");
}

/// Returns the shortest circle through each node that is in one.
fn circles(graph: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<String> {
    let mut found = BTreeSet::new();
    for start in graph.keys() {
        let mut paths = vec![vec![start.clone()]];
        let mut seen = BTreeSet::new();
        while let Some(path) = paths.pop() {
            for next in graph.get(path.last().expect("not empty")).into_iter().flatten() {
                if next == start {
                    let mut names: Vec<String> = path.iter().map(|module| module.join("::")).collect();
                    let first =
                        names.iter().enumerate().min_by_key(|(_, name)| (*name).clone()).map_or(0, |(at, _)| at);
                    names.rotate_left(first);
                    found.insert(names.join(" > "));
                } else if seen.insert(next.clone()) {
                    paths.push([path.as_slice(), std::slice::from_ref(next)].concat());
                }
            }
        }
    }
    found.into_iter().collect()
}

#[test]
fn paths_are_found_in_every_form() {
    let text = "use crate::plan::{Plan, with};\n// crate::cli\nuse crate::{spec, size::ByteSize, disk::{self, a::*}};\n\
                fn f() { crate::x::y(); super::z!(super::super::w); \"crate::no\"; }\n#[cfg(test)]\nmod tests { use crate::no; }";
    let module = vec!["a".to_owned(), "b".to_owned()];
    let found: Vec<String> = named_paths(text, &module).iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["a::z", "disk", "disk::a", "plan::Plan", "plan::with", "size::ByteSize", "spec", "w", "x::y"]);
}
