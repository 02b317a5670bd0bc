//! Checks the files of a published version, and what cannot be published.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use crate::progress::Progress;

use super::*;

#[test]
fn a_version_is_published_as_promised() {
    let fixture = Fixture::new();
    let artifact = publish(&fixture.store, "web@1.4.0", "disk");
    assert_eq!(artifact.folder(), fixture.path("web/1.4.0"));
    assert_eq!(artifact.outputs(), [fixture.path("web/1.4.0/web-1.4.0.qcow2")]);
    let manifest = artifact.manifest();
    assert_eq!((manifest.sequence, manifest.outputs[0].bytes, manifest.fetched[0].bytes), (1, 4, 2));
    assert_eq!(fixture.litter(), Vec::<String>::new());

    for folder in ["", "web", "web/1.4.0", "web/1.4.0/reports"] {
        assert_eq!(mode(&fixture.path(folder)), 0o755, "{folder}");
    }
    for file in ["web-1.4.0.qcow2", "manifest.json", "SHA256SUMS", "build.log", "reports/a.json"] {
        assert_eq!(mode(&artifact.folder().join(file)), 0o444, "{file}");
    }
    assert_eq!(mode(&fixture.path(".kiln")), 0o700);

    let mut check = Command::new("sha256sum");
    let output = check.args(["--check", "--strict", "SHA256SUMS"]).current_dir(artifact.folder()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 4);
}

/// Covers fault row H14. The umask belongs to the process, so the test above runs again in processes of its own.
#[test]
fn h14_the_umask_has_no_say() {
    for umask in ["000", "077"] {
        let output = Command::new("sh")
            .args([
                "-c",
                r#"umask "$1"; exec "$0" --exact store::tests::publishing::a_version_is_published_as_promised"#,
            ])
            .arg(std::env::current_exe().unwrap())
            .arg(umask)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "umask {umask}: {text}");
    }
}

#[test]
fn a_version_that_exists_is_answered_with_its_key() {
    let fixture = Fixture::new();
    drop(publish(&fixture.store, "web@1", "disk"));
    let found = existing(&fixture.store, "web@1");
    assert!(found.is_from("disk") && !found.is_from("other"));
    let error = found.refuse();
    assert!(matches!(&error, StoreError::Taken(taken) if taken == &id("web@1")), "{error}");
    assert_eq!(crate::error::Failure::from(error).kind().exit_code(), 8);
    assert_sound(&fixture.store, "web@1", "disk");
}

#[test]
fn a_replacement_takes_the_name_and_a_new_number() {
    for lacks_exchange in [false, true] {
        let fixture = Fixture::new();
        if lacks_exchange {
            fixture.store.fs.faults.lack_exchange();
        }
        drop(publish(&fixture.store, "web@1", "old"));
        drop(publish(&fixture.store, "web@2", "other"));
        let new = fill(existing(&fixture.store, "web@1").replace(), "new").unwrap();
        assert_eq!(new.manifest().sequence, 3);
        assert_sound(&fixture.store, "web@1", "new");
        assert_sound(&fixture.store, "web", "new");
        assert_eq!(fixture.litter(), Vec::<String>::new());
    }
}

#[test]
fn c3_an_open_version_outlives_its_replacement() {
    let fixture = Fixture::new();
    let old = publish(&fixture.store, "web@1", "old");
    drop(fill(existing(&fixture.store, "web@1").replace(), "new").unwrap());
    assert_eq!(fixture.litter().len(), 1);
    drop(fixture.reopen());
    assert_eq!(fixture.litter().len(), 1, "somebody still reads it");
    assert!(old.verify(&Progress::unwatched()).is_ok_and(|verdict| verdict.sound.len() == 4));
    drop(old);
    drop(fixture.reopen());
    assert_eq!(fixture.litter(), Vec::<String>::new());
}

/// Covers fault row H13.
#[test]
fn h13_the_newest_is_told_by_a_counter_not_by_the_clock() {
    let fixture = Fixture::new();
    for (version, finished) in [("1", "2030-01-01T00:00:00Z"), ("2", "1970-01-01T00:00:00Z")] {
        let staging = vacant(&fixture.store, &format!("web@{version}")).stage().unwrap();
        let mut manifest = sample("web", version, "k");
        manifest.outputs.clear();
        manifest.finished = finished.parse().unwrap();
        drop(staging.finish(manifest, &Evidence::default(), &Progress::unwatched()).unwrap());
    }
    assert_eq!(fixture.store.artifact(&reference("web")).unwrap().id(), &id("web@2"));
    let listed: Vec<_> = fixture.store.list().unwrap().versions.into_iter().map(|summary| summary.id).collect();
    assert_eq!(listed, [id("web@2"), id("web@1")]);
}

#[test]
fn an_unfinished_version_leaves_nothing() {
    let fixture = Fixture::new();
    vacant(&fixture.store, "web@1").stage().unwrap().abort().unwrap();
    drop(vacant(&fixture.store, "web@1").stage().unwrap());
    let staging = vacant(&fixture.store, "web@1").stage().unwrap();
    fs::write(staging.path().join("web-1.qcow2"), "disk").unwrap();
    let stopped = staging.finish(sample("web", "1", "k"), &Evidence::default(), &cancelled());
    assert!(matches!(stopped, Err(StoreError::Cancelled(_))));
    assert_eq!(fixture.litter(), Vec::<String>::new());
    assert!(!fixture.path("web").exists());
    drop(vacant(&fixture.store, "web@1"));
}

#[test]
fn what_must_not_be_published_is_refused() {
    type Put = fn(&Path);
    let cases: [(&str, Put); 7] = [
        ("a link that leads elsewhere", |path| symlink("/etc/passwd", path.join("web-1.qcow2")).unwrap()),
        ("no step has fetched that link", |path| symlink("console.log", path.join("web-1.qcow2")).unwrap()),
        ("neither a file nor a folder", |path| {
            nix::unistd::mkfifo(&path.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }),
        ("the store writes that file itself", |path| fs::write(path.join("SHA256SUMS"), "").unwrap()),
        ("the store writes that file itself", |path| fs::create_dir(path.join("manifest.json")).unwrap()),
        ("not UTF-8", |path| {
            use std::os::unix::ffi::OsStrExt;
            fs::write(path.join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
        }),
        ("lists `web-1.qcow2`, which was never written", |_| {}),
    ];
    for (expected, put) in cases {
        let fixture = Fixture::new();
        let staging = vacant(&fixture.store, "web@1").stage().unwrap();
        put(staging.path());
        let error = staging
            .finish(sample("web", "1", "k"), &Evidence::default(), &Progress::unwatched())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!fixture.path("web").exists());
        assert_eq!(fixture.litter(), Vec::<String>::new());
    }
}

/// Covers fault row D3.
#[test]
fn d3_an_unfit_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(Store::open(&file), Err(StoreError::NotAFolder(_))));
    assert!(matches!(Store::open(&file.join("below")), Err(StoreError::Io { action: "create the store at", .. })));

    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(Store::open(&open), Err(StoreError::WorldWritable(_))));
    assert_eq!(entries(&open).unwrap(), Vec::<String>::new(), "nothing is written to an unfit store");

    // The root folder belongs to another user, except for root, who can give a folder away.
    let foreign = if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(dir.path(), Some(1), None).unwrap();
        dir.path()
    } else {
        Path::new("/")
    };
    assert!(matches!(Store::open(foreign), Err(StoreError::NotOwned { .. })));
}

#[test]
fn d3_a_store_behind_a_link_is_a_store_but_a_linked_version_is_none() {
    let fixture = Fixture::new();
    drop(publish(&fixture.store, "web@1", "disk"));
    let link = fixture.dir.path().join("link");
    symlink(fixture.store.path(), &link).unwrap();
    assert_sound(&Store::open(&link).unwrap(), "web@1", "disk");
    symlink("1", fixture.path("web/2")).unwrap();
    assert!(matches!(fixture.store.artifact(&reference("web@2")), Err(StoreError::Io { action: "open", .. })));
}
