//! A tree that a guest sends: nothing is written but beneath its place, nothing is special, and links stay within.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};

use kiln::session::receive::{FetchLimits, FetchRequest, receive};

const LIMIT: u64 = 1 << 20;

pub fn check(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let into = folder.path().join("tree");
    let limits = FetchLimits::new(LIMIT);
    let request = FetchRequest { from: "/srv".into(), root: folder.path().to_owned(), to: "tree".into(), limits };
    if let Ok((tree, _)) = receive(bytes, &request) {
        assert!(tree.paths().all(|path| Path::new(path).starts_with("tree")), "{tree:?}");
    }
    for entry in fs::read_dir(folder.path()).expect("there") {
        assert_eq!(entry.expect("an entry").path(), into, "written elsewhere");
    }
    if into.symlink_metadata().is_ok() {
        check_entry(&into, 0);
    }
}

fn check_entry(path: &Path, depth: usize) {
    let metadata = path.symlink_metadata().expect("there");
    let kind = metadata.file_type();
    if kind.is_symlink() {
        assert!(stays(&fs::read_link(path).expect("a link"), depth), "{} leads out", path.display());
        return;
    }
    assert!(kind.is_file() || kind.is_dir(), "{} is special", path.display());
    assert!(
        metadata.permissions().mode() & 0o7022 == 0,
        "{} has mode {:o}",
        path.display(),
        metadata.permissions().mode()
    );
    if kind.is_file() {
        assert!(metadata.len() <= LIMIT, "{} is too large", path.display());
        return;
    }
    for entry in fs::read_dir(path).expect("readable") {
        check_entry(&entry.expect("an entry").path(), depth + 1);
    }
}

/// Whether a link this deep in the tree names something in it.
fn stays(target: &Path, depth: usize) -> bool {
    let mut depth = depth.saturating_sub(1);
    target.components().all(|component| match component {
        Component::ParentDir if depth == 0 => false,
        Component::ParentDir => {
            depth -= 1;
            true
        }
        Component::Normal(_) => {
            depth += 1;
            true
        }
        Component::CurDir => true,
        Component::RootDir | Component::Prefix(_) => false,
    })
}
