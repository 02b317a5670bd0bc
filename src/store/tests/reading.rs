//! Finding, listing and verifying.

use std::os::unix::fs::PermissionsExt;

use crate::progress::Progress;

use super::*;

/// Replaces a read-only file of a published version.
fn overwrite(path: &Path, content: impl AsRef<[u8]>) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, content).unwrap();
}

#[test]
fn names_versions_and_tags_are_found() {
    const THERE: &str = "versions and tags there are: edge, 2, 1, bad, edge, gone, stable";
    let fixture = Fixture::new();
    for version in ["1", "2", "edge"] {
        drop(publish(&fixture.store, &format!("web@{version}"), version));
    }
    let tags = r#"{"schema": 1, "tags": {"stable": "1", "edge": "1", "gone": "7", "bad": "../x"}}"#;
    fs::write(fixture.path("web/tags.json"), tags).unwrap();
    let find = |text: &str| fixture.store.artifact(&reference(text)).map(|artifact| artifact.id().to_string());
    assert_eq!(find("web").unwrap(), "web@edge");
    assert_eq!(find("web@1").unwrap(), "web@1");
    assert_eq!(find("web@stable").unwrap(), "web@1");
    assert_eq!(find("web@edge").unwrap(), "web@edge", "a version goes before a tag");
    let error = find("web@nope").unwrap_err();
    assert_eq!(error.to_string(), "`web` has no version or tag `nope`");
    assert_eq!(crate::error::Fault::hints(&error), [THERE]);
    assert_eq!(find("web@gone").unwrap_err().to_string(), "web@gone is web@7, which is no longer in the store");
    assert!(matches!(find("web@bad"), Err(StoreError::Reference(_))));
    let hints = |text| crate::error::Fault::hints(&find(text).unwrap_err());
    assert_eq!(hints("web@stabel"), ["did you mean `stable`?", THERE]);
    assert_eq!(hints("web@latest"), ["`web` alone means its newest version"]);
    assert_eq!(hints("wib"), ["did you mean `web`?", "images there are: web"]);
}

#[test]
fn a_listing_names_what_it_cannot_read_and_skips_what_is_not_an_image() {
    let fixture = Fixture::new();
    for text in ["app@1", "web@1", "web@2"] {
        drop(publish(&fixture.store, text, "disk"));
    }
    overwrite(&fixture.path("web/1/manifest.json"), r#"{"schema": 2}"#);
    fs::create_dir_all(fixture.path("notes/2026")).unwrap();
    fs::create_dir_all(fixture.path("lost+found")).unwrap();
    fs::write(fixture.path("README"), "").unwrap();
    let listing = fixture.store.list().unwrap();
    let listed: Vec<_> = listing.versions.iter().map(|summary| summary.id.to_string()).collect();
    assert_eq!(listed, ["app@1", "web@2"]);
    let first = &listing.versions[0];
    assert_eq!((first.bytes(), first.formats()), (4, vec!["qcow2"]));
    assert!(matches!(listing.unreadable.as_slice(), [StoreError::NewerSchema { found: 2, .. }]));
}

#[test]
fn a_version_that_cannot_be_read_stops_neither_builds_nor_its_removal() {
    let fixture = Fixture::new();
    drop(publish(&fixture.store, "web@1", "disk"));
    overwrite(&fixture.path("web/1/manifest.json"), "{");
    assert_eq!(publish(&fixture.store, "web@2", "disk").manifest().sequence, 1);
    assert!(matches!(claim(&fixture.store, "web@1"), Err(StoreError::Malformed { .. })));
    assert!(matches!(fixture.store.artifact(&reference("web")), Err(StoreError::Malformed { .. })));
    remove(&fixture.store, "web@1").unwrap();
    assert_sound(&fixture.store, "web", "disk");
}

/// Covers fault row D1.
#[test]
fn d1_verify_names_what_is_damaged() {
    type Hurt = fn(&Path);
    let cases: [(Hurt, &[&str]); 8] = [
        (|v| overwrite(&v.join("web-1.qcow2"), "dosk"), &["web-1.qcow2 differs from its checksum"]),
        (|v| overwrite(&v.join("build.log"), ""), &["build.log differs from its checksum"]),
        (|v| fs::remove_file(v.join("reports/a.json")).unwrap(), &["reports/a.json is missing"]),
        (|v| fs::write(v.join("extra"), "").unwrap(), &["extra is not in SHA256SUMS"]),
        (
            |v| {
                let text = fs::read_to_string(v.join("manifest.json")).unwrap();
                overwrite(&v.join("manifest.json"), text.replace("\"web\"", "\"wab\""));
            },
            &["manifest.json differs from its checksum", "manifest.json is that of wab@1"],
        ),
        (
            |v| {
                let text = fs::read_to_string(v.join("SHA256SUMS")).unwrap();
                let kept: Vec<_> = text.lines().filter(|line| !line.ends_with("qcow2")).collect();
                overwrite(&v.join("SHA256SUMS"), kept.join("\n") + "\n");
            },
            &["manifest.json and SHA256SUMS disagree on web-1.qcow2", "web-1.qcow2 is not in SHA256SUMS"],
        ),
        (|v| overwrite(&v.join("SHA256SUMS"), "torn"), &["SHA256SUMS has a line that is no checksum"]),
        (|v| fs::remove_file(v.join("SHA256SUMS")).unwrap(), &["SHA256SUMS is missing"]),
    ];
    for (hurt, expected) in cases {
        let fixture = Fixture::new();
        drop(publish(&fixture.store, "web@1", "disk"));
        hurt(&fixture.path("web/1"));
        let artifact = fixture.store.artifact(&reference("web@1")).unwrap();
        let error = artifact.verify(&Progress::unwatched()).and_then(VerifyReport::into_result).unwrap_err();
        let StoreError::Damaged { id: damaged, damage } = &error else { panic!("{error}") };
        assert_eq!(damaged, &id("web@1"));
        assert_eq!(damage, expected);
        assert_eq!(crate::error::Failure::from(error).kind().exit_code(), 8);
    }
}

#[test]
fn d1_a_truncated_image_is_not_up_to_date() {
    let fixture = Fixture::new();
    drop(publish(&fixture.store, "web@1", "disk"));
    overwrite(&fixture.path("web/1/web-1.qcow2"), "dis");
    let error = claim(&fixture.store, "web@1").unwrap_err().to_string();
    assert_eq!(error, "web@1 is damaged: web-1.qcow2 has 3 bytes and should have 4");
}

#[test]
fn a_manifest_without_end_is_not_read() {
    let fixture = Fixture::new();
    drop(publish(&fixture.store, "web@1", "disk"));
    let path = fixture.path("web/1/manifest.json");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(fixture.store.artifact(&reference("web@1")), Err(StoreError::TooLarge { .. })));
}
