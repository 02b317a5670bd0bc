//! Disks and guests that try to write lines of kiln's own, against the binary: `kiln diff`, a build, and what reads the
//! store.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use support::Kiln;

#[path = "support/ci.rs"]
mod ci;

use ci::{assert_harmless, hostile_texts};

/// An ext4 disk of these files.
fn make_disk(path: &Path, folder: &Path) {
    let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).args([folder, path]).arg("16M").output();
    let made = made.expect("mke2fs is installed (scripts/setup)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Files with hostile names and hostile content, and a link to a hostile target.
fn write_files(folder: &Path, content: &[u8]) {
    fs::create_dir_all(folder.join("etc")).unwrap();
    fs::write(folder.join("etc/os-release"), "ID=x\n").unwrap();
    for (number, text) in hostile_texts().iter().enumerate() {
        let name: Vec<u8> = text.iter().copied().filter(|byte| *byte != b'/' && *byte != 0).collect();
        let directory = folder.join("etc").join(OsStr::from_bytes(&name));
        if fs::create_dir(&directory).is_ok() {
            fs::write(directory.join("file"), content).unwrap();
            std::os::unix::fs::symlink(OsStr::from_bytes(&name), directory.join("link")).unwrap();
        }
        fs::write(folder.join(format!("etc/{number}")), [b"same\n", text.as_slice(), b"\n", content].concat()).unwrap();
    }
}

#[test]
fn forging_through_a_difference_of_disks() {
    let kiln = Kiln::new();
    let place = kiln.place().clone();
    for (name, content) in [("a", "::error::FORGED one\n"), ("b", "\t::error::FORGED two\n")] {
        write_files(&place.join(name), content.as_bytes());
        make_disk(&place.join(format!("{name}.raw")), &place.join(name));
    }
    fs::create_dir(place.join("empty")).unwrap();
    fs::create_dir(place.join("empty/etc")).unwrap();
    fs::write(place.join("empty/etc/os-release"), "ID=x\n").unwrap();
    make_disk(&place.join("empty.raw"), &place.join("empty"));
    for (old, new, most) in
        [("a.raw", "b.raw", "changed"), ("empty.raw", "b.raw", "added"), ("a.raw", "empty.raw", "removed")]
    {
        for form in [None, Some("--stat"), Some("--json")] {
            let ended = place.kiln().args(["diff", old, new]).args(form).stdout_has(most).run();
            assert!(ended.stdout.len() > 100);
            assert_harmless("kiln diff", &ended.stdout, &[]);
            assert_harmless("kiln diff", &ended.stderr, &[]);
        }
    }
}

#[test]
fn forging_through_a_guest_and_the_store() {
    let script = |text: &str| format!("echo ::error::FORGED\necho  \t##[error]FORGED\nwarn ::add-mask::FORGED\n{text}");
    let spec = |end: &str| {
        format!(
            "[[step]]\nname = '::error::FORGED'\nrun = '''\n{}'''\n[[test]]\nname = '::warning::FORGED'\nrun = '''\n{}'''\n",
            script(""),
            script(end)
        )
    };
    let github = |kiln: Kiln| kiln.env("GITHUB_ACTIONS", "true");
    let built = github(Kiln::new().spec(&spec("")).build()).run();
    let place = built.place();
    let check = |ended: &support::Ended| {
        assert_harmless("stdout", &ended.stdout, &[]);
        assert_harmless("stderr", &ended.stderr, &["::error file="]);
    };
    check(&built);
    let log = fs::read_to_string(place.store().join("web/1/build.log")).unwrap();
    assert_harmless("build.log", &log, &[]);
    for args in [
        vec!["inspect", "web"],
        vec!["inspect", "web", "--json"],
        vec!["list"],
        vec!["list", "--json"],
        vec!["plan", "."],
        vec!["plan", ".", "--json"],
        vec!["check", "."],
        vec!["verify", "web"],
    ] {
        check(&place.kiln().args(args).run());
    }
    let replaced = place.kiln().spec(&spec("exit 3")).args(["build", ".", "--replace"]).fails(9);
    check(&github(replaced).run());
    let failing = format!("[[step]]\nname = '::error::FORGED'\nrun = '''\n{}'''\n", script("exit 3"));
    check(&github(place.kiln().spec(&failing).args(["build", ".", "--replace"]).fails(7)).run());
}
