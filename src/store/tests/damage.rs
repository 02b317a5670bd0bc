//! Fault rows D1, D2, D3 and D5: the content of the store differs from what was published.

use std::os::unix::fs::{PermissionsExt, chown, symlink};

use super::*;
use crate::error::Failure;
use crate::progress::Progress;

/// Replaces a read-only file of a published version.
fn overwrite(path: &Path, content: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, content).unwrap();
}

fn verify(store: &Store) -> Result<(), StoreError> {
    store.artifact(&reference("web@1"))?.verify(&Progress::unwatched())?.into_result()
}

/// Returns the message of an error, after checking that it ends in exit code 8.
fn told(error: StoreError) -> String {
    let failure = Failure::from(error);
    assert_eq!(failure.kind().exit_code(), 8, "{failure}");
    failure.to_string()
}

/// A kind of damage to a file, given its content and a position.
type Damage = fn(&[u8], usize) -> Vec<u8>;

#[test]
fn d1_a_flipped_bit_or_another_length_of_any_file_is_told_with_its_name() {
    let fixture = Fixture::in_memory();
    drop(publish(&fixture.store, "web@1", "disk"));
    let flipped: Damage = |content, at| {
        let mut content = content.to_vec();
        content[at] ^= 1 << (at % 8);
        content
    };
    let shorter: Damage = |content, at| content[..at].to_vec();
    let longer: Damage = |content, at| [content, &content[at..]].concat();
    for name in ["web-1.qcow2", "build.log", "reports/a.json", "manifest.json", "SHA256SUMS"] {
        let path = fixture.path("web/1").join(name);
        let sound = fs::read(&path).unwrap();
        for damage in [flipped, shorter, longer] {
            for at in 0..sound.len() {
                overwrite(&path, &damage(&sound, at));
                let error = told(verify(&fixture.store).expect_err(name));
                // A damaged sum is reported as damage of its file.
                assert!(error.contains(name) || name == "SHA256SUMS", "{name} at {at}: {error}");
            }
        }
        overwrite(&path, &sound);
        verify(&fixture.store).unwrap();
    }
}

#[test]
fn d1_a_folder_that_was_added_is_reported_and_one_that_was_fetched_is_not() {
    let fixture = Fixture::new();
    let staging = vacant(&fixture.store, "web@1").stage().unwrap();
    fs::write(staging.path().join("web-1.qcow2"), "disk").unwrap();
    fs::create_dir_all(staging.path().join("fetched/empty")).unwrap();
    drop(staging.finish(sample("web", "1", "disk"), &Evidence::default(), &Progress::unwatched()).unwrap());
    verify(&fixture.store).unwrap();
    for added in ["added", "fetched/added"] {
        let folder = fixture.path("web/1").join(added);
        fs::create_dir(&folder).unwrap();
        let error = told(verify(&fixture.store).unwrap_err());
        assert!(error.contains(&format!("{added} is a folder that holds no file")), "{error}");
        fs::remove_dir(&folder).unwrap();
    }
    fs::remove_dir(fixture.path("web/1/fetched/empty")).unwrap();
    assert!(told(verify(&fixture.store).unwrap_err()).contains("fetched/empty is missing"));
}

#[test]
fn d1_what_others_may_write_to_or_own_is_reported() {
    let fixture = Fixture::new();
    drop(publish(&fixture.store, "web@1", "disk"));
    for name in ["manifest.json", "SHA256SUMS", "reports/a.json", "reports"] {
        let path = fixture.path("web/1").join(name);
        let sound = fs::metadata(&path).unwrap().permissions();
        for writers in [0o002, 0o020] {
            fs::set_permissions(&path, fs::Permissions::from_mode(sound.mode() | writers)).unwrap();
            let error = told(verify(&fixture.store).unwrap_err());
            assert!(error.contains(&format!("{name} is writable for others")), "{error}");
        }
        fs::set_permissions(&path, sound).unwrap();
        verify(&fixture.store).unwrap();
        if nix::unistd::geteuid().is_root() {
            chown(&path, Some(65_534), None).unwrap();
            let error = told(verify(&fixture.store).unwrap_err());
            assert!(error.contains(&format!("{name} belongs to user 65534")), "{error}");
            chown(&path, Some(0), None).unwrap();
        }
    }
}

#[test]
fn d1_a_file_of_another_length_is_not_used() {
    for content in ["", "dis", "disks"] {
        let fixture = Fixture::new();
        let artifact = publish(&fixture.store, "web@1", "disk");
        overwrite(&fixture.path("web/1/web-1.qcow2"), content.as_bytes());
        let target = fixture.dir.path().join("out");
        let error = told(artifact.export(&target, OnConflict::Replace, &Progress::unwatched()).unwrap_err());
        assert!(error.contains("web-1.qcow2 has"), "{error}");
        assert!(!target.exists());
        assert!(told(claim(&fixture.store, "web@1").unwrap_err()).contains("web-1.qcow2 has"));
    }
}

#[test]
fn d2_a_version_of_a_newer_schema_is_neither_read_nor_replaced() {
    let fixture = Fixture::new();
    drop(publish(&fixture.store, "web@1", "disk"));
    let path = fixture.path("web/1/manifest.json");
    let newer = fs::read_to_string(&path).unwrap().replacen("\"schema\": 1", "\"schema\": 2", 1);
    overwrite(&path, newer.as_bytes());
    for error in [verify(&fixture.store).unwrap_err(), claim(&fixture.store, "web@1").unwrap_err()] {
        let error = told(error);
        assert!(error.contains("manifest.json has schema 2, and this kiln reads 1"), "{error}");
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
    let tags = fixture.path("web/tags.json");
    fs::write(&tags, r#"{"schema": 2, "tags": {"stable": "1"}}"#).unwrap();
    let error = told(fixture.store.artifact(&reference("web@stable")).unwrap_err());
    assert!(error.contains("tags.json has schema 2"), "{error}");
}

#[test]
fn d2_a_tag_without_its_version_is_told_and_dangling_folders_are_cleared() {
    let fixture = Fixture::new();
    drop(publish(&fixture.store, "web@1", "disk"));
    fs::write(fixture.path("web/tags.json"), r#"{"schema": 1, "tags": {"stable": "7"}}"#).unwrap();
    let error = told(fixture.store.artifact(&reference("web@stable")).unwrap_err());
    assert!(error.contains("web@stable is web@7, which is no longer in the store"), "{error}");
    fs::create_dir_all(fixture.path(".kiln/tmp/web@2.0/reports")).unwrap();
    fs::create_dir(fixture.path("empty")).unwrap();
    drop(fixture.reopen());
    assert_eq!(fixture.litter(), Vec::<String>::new());
    assert!(!fixture.path("empty").exists());
}

/// Opens a bad store, and returns the error and the folder that it names.
fn refused(store: &Path) -> (StoreError, PathBuf) {
    let opened = Store::open(store).and_then(|store| store.artifact(&reference("web@1")));
    let error = opened.expect_err("a part of the store is somebody else's");
    let path = match &error {
        StoreError::NotAFolder(path) | StoreError::WorldWritable(path) | StoreError::NotOwned { path, .. } => {
            path.clone()
        }
        StoreError::Io { path, .. } => path.clone(),
        other => panic!("{other}"),
    };
    (error, path)
}

const PARTS: [&str; 6] = ["", ".kiln", ".kiln/locks", ".kiln/tmp", "web", "web/1"];

#[test]
fn d3_a_part_that_everybody_may_write_to_is_refused() {
    for part in PARTS {
        let fixture = Fixture::new();
        drop(publish(&fixture.store, "web@1", "disk"));
        let path = fixture.path(part);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let (error, named) = refused(fixture.store.path());
        assert!(matches!(error, StoreError::WorldWritable(_)), "{part}: {error}");
        assert_eq!(fs::canonicalize(named).unwrap(), path.canonicalize().unwrap());
    }
}

#[test]
fn d3_a_part_of_another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: only root can give a folder away");
        return;
    }
    for part in PARTS {
        let fixture = Fixture::new();
        drop(publish(&fixture.store, "web@1", "disk"));
        chown(fixture.path(part), Some(1), None).unwrap();
        let (error, _) = refused(fixture.store.path());
        assert!(matches!(error, StoreError::NotOwned { owner: 1, .. }), "{part}: {error}");
    }
}

#[test]
fn d3_a_part_behind_a_link_is_refused() {
    for part in &PARTS[1..] {
        let fixture = Fixture::new();
        drop(publish(&fixture.store, "web@1", "disk"));
        let elsewhere = fixture.dir.path().join("elsewhere");
        fs::rename(fixture.path(part), &elsewhere).unwrap();
        symlink(&elsewhere, fixture.path(part)).unwrap();
        let (error, named) = refused(fixture.store.path());
        assert_eq!(named, fixture.path(part), "{error}");
    }
}

/// Returns the possible contents after a torn write: the beginning, and nothing or zeros for the rest.
fn torn(content: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let shorter = (0..content.len()).map(|length| content[..length].to_vec());
    shorter.flat_map(move |beginning| {
        let zeros = vec![0; content.len() - beginning.len()];
        [beginning.clone(), [beginning, zeros].concat()]
    })
}

#[test]
fn d5_a_torn_manifest_is_never_believed() {
    let fixture = Fixture::in_memory();
    drop(publish(&fixture.store, "web@1", "disk"));
    let path = fixture.path("web/1/manifest.json");
    let sound = fs::read(&path).unwrap();
    // The last byte is a line break, whose loss only the checksum notices.
    for content in torn(sound.trim_ascii_end()) {
        overwrite(&path, &content);
        let error = told(fixture.store.artifact(&reference("web@1")).unwrap_err());
        assert!(error.contains("web/1/manifest.json"), "{error}");
        let listing = fixture.store.list().unwrap();
        assert!(listing.versions.is_empty() && listing.unreadable.len() == 1);
    }
    overwrite(&path, sound.trim_ascii_end());
    assert!(told(verify(&fixture.store).unwrap_err()).contains("manifest.json differs from its checksum"));
}

#[test]
fn d5_torn_tags_are_never_believed() {
    let fixture = Fixture::in_memory();
    drop(publish(&fixture.store, "web@1", "disk"));
    set(&fixture.store, "web@1", "stable").unwrap();
    fixture.store.untag("web", &tag("stable")).unwrap();
    set(&fixture.store, "web@1", "edge").unwrap();
    let path = fixture.path("web/tags.json");
    let sound = fs::read(&path).unwrap();
    for content in torn(sound.trim_ascii_end()) {
        overwrite(&path, &content);
        let refused = [
            fixture.store.artifact(&reference("web@edge")).map(drop),
            fixture.store.roll_back("web", &tag("stable")).map(drop),
            remove(&fixture.store, "web@1").map(drop),
        ];
        for result in refused {
            let error = told(result.unwrap_err());
            assert!(error.contains("web/tags.json"), "{error}");
        }
        assert_eq!(fixture.store.list().unwrap().versions.len(), 1);
    }
    assert_sound(&fixture.store, "web", "disk");
}
