//! What a guest says it has mounted, true or not, and what the evidence of its image then claims.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::fault;
use crate::support::ext4::ext4_image;
use crate::support::{Ended, Kiln};

/// The manifest of the image, and whether it has a list of files.
fn published(ended: &Ended) -> (Value, bool) {
    let folder = ended.place().store().join("web/1");
    let manifest = fs::read_to_string(folder.join("manifest.json")).expect("published");
    (serde_json::from_str(&manifest).expect("JSON"), folder.join("files.zst").exists())
}

/// Builds over a disk that is an ext4 file system as a whole, without partitions. It has a cloud-init, which a base needs.
fn over_ext4(mode: &str) -> Kiln {
    let base = ext4_image(&[("etc/motd", &b"hello\n"[..]), ("usr/bin/cloud-init", b"")]);
    fault(mode).file("base.qcow2", base)
}

fn has_listed(place: &Path) -> bool {
    let log = fs::read_to_string(place.join("fake.log")).expect("the fake wrote it");
    log.lines().any(|line| line == "list")
}

#[test]
fn a_disk_that_kiln_reads_as_the_guest_has_mounted_it_is_read_by_kiln() {
    let ended = over_ext4("mounts-whole-disk").run();
    let (manifest, has_list) = published(&ended);
    assert_eq!(manifest["contents"], serde_json::json!({ "complete": true, "missing": [] }));
    assert!(manifest["content_sha256"].is_string() && has_list);
    assert!(!has_listed(ended.place().path()), "the guest was asked in vain");
    ended.then(["diff", "web", "web", "--exit-code"]).run();
}

#[test]
fn what_kiln_cannot_read_or_is_not_told_is_listed_by_the_guest() {
    for mode in ["mounts-xfs", "mounts-nothing", "mounts-forged"] {
        let ended = fault(mode).stderr_has("the guest lists its files").run();
        let (manifest, has_list) = published(&ended);
        assert_eq!(manifest["contents"]["complete"], true, "{mode}");
        assert!(manifest["content_sha256"].is_string() && has_list && has_listed(ended.place().path()), "{mode}");
        assert!(!ended.stderr.lines().any(|line| line.trim_start().starts_with("::")), "{}", ended.stderr);
    }
}

#[test]
fn a_guest_that_contradicts_its_disk_makes_the_evidence_incomplete() {
    for (mode, words) in [
        ("mounts-xfs", "a boot mounts the whole disk on /"),
        ("mounts-nothing", "a boot mounts the whole disk on /"),
        ("mounts-forged", "a boot mounts the whole disk on /"),
        ("mounts-refused", "the guest failed to report its mounts"),
    ] {
        let ended = over_ext4(mode).stderr_has(words).run();
        let (manifest, has_list) = published(&ended);
        assert_eq!((&manifest["contents"]["complete"], &manifest["content_sha256"]), (&false.into(), &Value::Null));
        let missing = manifest["contents"]["missing"][0].as_str().expect("named");
        assert!(missing.contains(words) && !has_list, "{mode}: {missing}");
        assert!(!ended.stderr.lines().any(|line| line.trim_start().starts_with("::")), "{}", ended.stderr);
    }
}

#[test]
fn a_mount_that_the_disk_does_not_have_makes_the_evidence_incomplete() {
    let ended = over_ext4("mounts-what-is-not-there").stderr_has("not all files of the image are known").run();
    let (manifest, has_list) = published(&ended);
    assert_eq!((&manifest["contents"]["complete"], &manifest["content_sha256"]), (&false.into(), &Value::Null));
    assert!(manifest["contents"]["missing"][0].as_str().is_some_and(|missing| missing.contains("cannot read")));
    assert!(!has_list, "no list of a part");
    let folder = ended.place().store().join("web/1");
    let document = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(folder.join(name)).expect("published")).expect("JSON")
    };
    assert_eq!(document("sbom.cdx.json")["compositions"][0]["aggregate"], "incomplete");
    assert!(document("sbom.spdx.json")["packages"][0]["comment"].is_string());
    let diff = ended.then(["diff", "web", "web", "--exit-code"]).fails(1).run();
    assert!(diff.stdout.contains("not comparable: web@1"), "{}", diff.stdout);
}

#[test]
fn a_guest_that_can_list_nothing_makes_the_evidence_incomplete() {
    let ended = fault("list-refused")
        .stderr_has("sealing was not verified for machine-id, host keys and the like: not all files are known")
        .run();
    let (manifest, has_list) = published(&ended);
    assert_eq!((&manifest["contents"]["complete"], has_list), (&false.into(), false));
    let missing = manifest["contents"]["missing"][0].as_str().expect("named");
    assert!(missing.contains("/ is xfs") && missing.contains("could not list its files"), "{missing}");
    ended
        .then(["build", ".", "--check-reproducible"])
        .fake("list-refused")
        .fails(8)
        .stderr_has("cannot determine whether the build is reproducible")
        .run();
}

#[test]
fn a_table_without_bounds_or_paths_is_the_agents_failure() {
    for mode in ["mounts-too-many", "mounts-no-paths"] {
        fault(mode).fails(6).stderr_has("language").run();
    }
}
