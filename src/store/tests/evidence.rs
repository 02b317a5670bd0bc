//! Documents and signatures of a version.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use super::*;
use crate::progress::Progress;
use crate::sign::tests::{minisign_key, ssh_key};
use crate::sign::{SignError, SignatureTrust, Signer, Tool};

/// Publishes `web@1` with a document, signed by a key.
fn publish_signed(fixture: &Fixture, key: &Path) -> SignatureTrust {
    let staging = vacant(&fixture.store, "web@1").stage().unwrap();
    fs::write(staging.path().join("web-1.qcow2"), "disk".repeat(100)).unwrap();
    let documents = Documents::new(|manifest| vec![("sbom.cdx.json", format!("{}\n", manifest.outputs[0].sha256))]);
    let evidence = Evidence { documents, signer: Some(Arc::new(Signer::open(key).unwrap())) };
    drop(staging.finish(sample("web", "1", "key"), &evidence, &Progress::unwatched()).unwrap());
    SignatureTrust::Key(key.with_extension("pub"))
}

/// Performs the check of `kiln verify --key`.
fn verify(store: &Store, trust: &SignatureTrust) -> Result<String, StoreError> {
    let artifact = store.artifact(&reference("web@1"))?;
    let signer = artifact.check_signature(trust)?;
    artifact.verify(&Progress::unwatched())?.into_result().map(|()| signer)
}

#[test]
fn documents_know_the_manifest_and_are_summed_and_signed() {
    for make in [ssh_key, minisign_key] {
        let fixture = Fixture::new();
        let key = make(fixture.dir.path(), "one");
        let trust = publish_signed(&fixture, &key);
        verify(&fixture.store, &trust).unwrap();
        let artifact = fixture.store.artifact(&reference("web@1")).unwrap();
        let document = fs::read_to_string(fixture.path("web/1/sbom.cdx.json")).unwrap();
        assert_eq!(document.trim(), artifact.manifest().outputs[0].sha256.to_string());
        let signature = fixture.path("web/1").join(trust.tool().unwrap().file());
        assert_eq!(mode(&signature), 0o444);
        // A copy for the user can be verified as well.
        let target = fixture.dir.path().join("out");
        artifact.export(&target, OnConflict::Refuse, &Progress::unwatched()).unwrap();
        let copied = fs::read(target.join(trust.tool().unwrap().file())).unwrap();
        trust.check(&fs::read(target.join("SHA256SUMS")).unwrap(), &copied).unwrap();
    }
}

#[test]
fn a_version_that_is_there_can_be_signed_and_only_if_it_is_sound() {
    let fixture = Fixture::new();
    let (key, other) = (ssh_key(fixture.dir.path(), "one"), ssh_key(fixture.dir.path(), "two"));
    let trust = |key: &Path| SignatureTrust::Key(key.with_extension("pub"));
    drop(publish(&fixture.store, "web@1", "disk"));
    let missing = verify(&fixture.store, &trust(&key)).unwrap_err();
    assert!(matches!(missing, StoreError::Sign(SignError::Missing(Tool::Ssh))), "{missing}");
    for key in [&key, &key, &other] {
        existing(&fixture.store, "web@1").sign(&Signer::open(key).unwrap()).unwrap();
        verify(&fixture.store, &trust(key)).unwrap();
        assert!(fixture.litter().is_empty());
    }
    assert!(verify(&fixture.store, &trust(&key)).is_err(), "the last one has signed");
    let path = fixture.path("web/1/web-1.qcow2");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, "dosk").unwrap();
    let error = existing(&fixture.store, "web@1").sign(&Signer::open(&key).unwrap()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

#[test]
fn nobody_else_brings_files_of_these_names() {
    for name in RESERVED {
        let fixture = Fixture::in_memory();
        let staging = vacant(&fixture.store, "web@1").stage().unwrap();
        fs::write(staging.path().join("web-1.qcow2"), "disk").unwrap();
        fs::write(staging.path().join(name), "mine").unwrap();
        let error =
            staging.finish(sample("web", "1", "key"), &Evidence::default(), &Progress::unwatched()).unwrap_err();
        assert!(matches!(error, StoreError::Unpublishable { .. }), "{error}");
    }
}
