//! Fault row O1: copies for the user.

use std::os::unix::fs::MetadataExt;

use crate::progress::Progress;

use super::*;

fn names(path: &Path) -> Vec<String> {
    entries(path).unwrap()
}

#[test]
fn o1_all_files_are_exported_and_again_without_harm() {
    let fixture = Fixture::new();
    let artifact = publish(&fixture.store, "web@1", "disk");
    let target = fixture.dir.path().join("new/out");
    for _ in 0..2 {
        let outputs = artifact.export(&target, OnConflict::Refuse, &Progress::unwatched()).unwrap();
        assert_eq!(outputs, [target.join("web-1.qcow2")]);
    }
    assert_eq!(names(&target), ["SHA256SUMS", "build.log", "manifest.json", "reports", "web-1.qcow2"]);
    assert_eq!(fs::read_to_string(target.join("reports/a.json")).unwrap(), "{}");
    assert_eq!(fs::read_to_string(target.join("web-1.qcow2")).unwrap(), "disk");
    assert_eq!(mode(&target.join("web-1.qcow2")), 0o644);
}

#[test]
fn o1_an_export_to_another_file_system_is_whole() {
    let fixture = Fixture::new();
    let artifact = publish(&fixture.store, "web@1", "disk");
    let elsewhere = crate::fs::testing::crash::scratch();
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    if device(elsewhere.path()) == device(fixture.dir.path()) {
        println!("SKIPPED: there is no second file system to export to");
        return;
    }
    let target = elsewhere.path().join("out");
    artifact.export(&target, OnConflict::Refuse, &Progress::unwatched()).unwrap();
    assert_eq!(names(&target), ["SHA256SUMS", "build.log", "manifest.json", "reports", "web-1.qcow2"]);
    assert_eq!(fs::read_to_string(target.join("web-1.qcow2")).unwrap(), "disk");
}

#[test]
fn o1_a_target_below_a_file_is_told_and_left_alone() {
    let fixture = Fixture::new();
    let artifact = publish(&fixture.store, "web@1", "disk");
    let file = fixture.dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    let error = artifact.export(&file.join("out"), OnConflict::Replace, &Progress::unwatched()).unwrap_err();
    assert!(matches!(error, StoreError::Io { action: "create", .. }), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn o1_a_file_that_differs_is_overwritten_only_on_demand() {
    let fixture = Fixture::new();
    let artifact = publish(&fixture.store, "web@1", "disk");
    let target = fixture.dir.path().join("out");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("web-1.qcow2"), "mine").unwrap();
    let error = artifact.export(&target, OnConflict::Refuse, &Progress::unwatched()).unwrap_err();
    assert!(matches!(&error, StoreError::Conflict(path) if path == &target.join("web-1.qcow2")), "{error}");
    assert_eq!(names(&target), ["web-1.qcow2"], "it fails before anything is written");
    artifact.export(&target, OnConflict::Replace, &Progress::unwatched()).unwrap();
    assert_eq!(fs::read_to_string(target.join("web-1.qcow2")).unwrap(), "disk");
}

#[test]
fn o1_a_link_in_the_way_is_replaced_and_not_followed() {
    let fixture = Fixture::new();
    let artifact = publish(&fixture.store, "web@1", "disk");
    let target = fixture.dir.path().join("out");
    fs::create_dir(&target).unwrap();
    let precious = fixture.dir.path().join("precious");
    fs::write(&precious, "mine").unwrap();
    std::os::unix::fs::symlink(&precious, target.join("web-1.qcow2")).unwrap();
    assert!(matches!(
        artifact.export(&target, OnConflict::Refuse, &Progress::unwatched()),
        Err(StoreError::Conflict(_))
    ));
    artifact.export(&target, OnConflict::Replace, &Progress::unwatched()).unwrap();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "mine");
}

#[test]
fn o1_an_interrupted_export_leaves_no_half_file() {
    let fixture = Fixture::new();
    let artifact = publish(&fixture.store, "web@1", "disk");
    let target = fixture.dir.path().join("out");
    let cancel = CancellationToken::new();
    let progress = Progress::new(&cancel, |done, total| {
        if done == total {
            cancel.cancel();
        }
    });
    assert!(matches!(artifact.export(&target, OnConflict::Refuse, &progress), Err(StoreError::Cancelled(_))));
    assert!(!target.join("web-1.qcow2").exists());
    assert!(names(&target).iter().all(|name| !name.starts_with(".kiln-")));
}

#[test]
fn d1_a_damaged_image_is_not_exported() {
    let fixture = Fixture::new();
    let artifact = publish(&fixture.store, "web@1", "disk");
    fs::remove_file(artifact.folder().join("web-1.qcow2")).unwrap();
    let target = fixture.dir.path().join("out");
    assert!(matches!(
        artifact.export(&target, OnConflict::Refuse, &Progress::unwatched()),
        Err(StoreError::Damaged { .. })
    ));
    assert!(!target.exists());
}
