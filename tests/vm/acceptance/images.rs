//! The images of this repository but hello, which every run of the tests builds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench::{Bench, root};

/// Copies the images, without what git ignores: a lock file that an earlier build has left there may list files that the
/// mirror no longer has.
fn copy_images(to: &Path) -> PathBuf {
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "images"];
    let output = Command::new("git").arg("-C").arg(root()).args(list).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in String::from_utf8(output.stdout).unwrap().split_terminator('\0') {
        let copy = to.join(name);
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(root().join(name), copy).unwrap();
    }
    std::os::unix::fs::symlink(root().join("fixtures"), to.join("fixtures")).unwrap();
    to.join("images")
}

#[test]
#[ignore = "boots a VM"]
fn the_other_images_build() {
    let bench = Bench::new();
    let images = copy_images(bench.folder.path());
    let mut folders: Vec<_> = fs::read_dir(images).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir() && !path.ends_with("hello"));
    folders.sort();
    assert!(folders.len() >= 9, "{folders:?}");
    for folder in folders {
        // What the specs name in `fixtures` lies outside of the copy.
        let output = bench.kiln(&["build", "--allow-outside", folder.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        bench.nothing_left();
    }
}
