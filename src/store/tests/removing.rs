//! What is needed stays: by a tag, or by an image that was made from it.

use super::*;
use crate::error::Fault;

/// Publishes a version that was made from another.
fn publish_on(store: &Store, text: &str, base: &Artifact) {
    let Lookup::Vacant(lock) = claim(store, text).unwrap() else { panic!("{text} exists") };
    let (name, version) = text.split_once('@').unwrap();
    let staging = lock.stage().unwrap();
    let mut manifest = sample(name, version, text);
    manifest.outputs.clear();
    manifest.base.image = Some(manifest::BaseImage {
        name: base.id().name().into(),
        version: base.id().version().into(),
        build_key: base.manifest().build_key.clone(),
        disk_sha256: base.manifest().disk_sha256.clone(),
    });
    drop(staging.finish(manifest, &Evidence::default(), UNWATCHED).unwrap());
}

#[test]
fn what_a_tag_names_is_not_removed() {
    let fixture = Fixture::new();
    drop(publish(&fixture.store, "web@1", "disk"));
    for name in ["stable", "candidate"] {
        set(&fixture.store, "web@1", name).unwrap();
    }
    for text in ["web", "web@1", "web@stable"] {
        // Not even by force: that is for what was made from it.
        let error = fixture.store.remove(&reference(text), IfBase::Remove).unwrap_err();
        assert_eq!(error.to_string(), "web@1 is web@candidate and web@stable");
        assert_eq!(error.hints()[1], "or take it off with `kiln tag web --delete candidate`");
        assert_eq!(crate::error::Failure::from(error).kind().exit_code(), 8);
    }
    for name in ["stable", "candidate"] {
        fixture.store.untag("web", &tag(name)).unwrap();
    }
    remove(&fixture.store, "web@1").unwrap();
    assert!(!fixture.path("web").exists(), "the history of tags goes with the image");
    assert_eq!(fixture.litter(), Vec::<String>::new());
}

#[test]
fn what_an_image_was_made_from_is_not_removed_unless_forced() {
    let fixture = Fixture::new();
    let base = publish(&fixture.store, "debian@12", "disk");
    publish_on(&fixture.store, "web@1", &base);
    publish_on(&fixture.store, "web@2", &base);
    drop(base);
    let error = remove(&fixture.store, "debian").unwrap_err();
    assert_eq!(error.to_string(), "debian@12 is the base of web@1, web@2");
    assert!(error.hints()[1].contains("--force"));
    // One that was replaced since is not what they were made from.
    drop(fill(existing(&fixture.store, "debian@12").replace(), "other").unwrap());
    remove(&fixture.store, "debian").unwrap();
    drop(publish(&fixture.store, "debian@12", "disk"));
    fixture.store.remove(&reference("debian"), IfBase::Remove).unwrap();
    let listing = fixture.store.list().unwrap();
    let lineage = listing.lineage(&listing.versions[0]);
    assert_eq!(lineage.iter().map(Ancestor::to_string).collect::<Vec<_>>(), ["debian@12 (gone)"]);
}

#[test]
fn a_lineage_leads_to_what_came_from_elsewhere() {
    let fixture = Fixture::new();
    let debian = publish(&fixture.store, "debian@12", "disk");
    publish_on(&fixture.store, "web@1", &debian);
    let web = fixture.store.artifact(&reference("web")).unwrap();
    publish_on(&fixture.store, "shop@1", &web);
    let listing = fixture.store.list().unwrap();
    let shop = listing.newest("shop").unwrap();
    let lineage: Vec<_> = listing.lineage(shop).iter().map(Ancestor::to_string).collect();
    assert_eq!(lineage, ["web@1", "debian@12", "debian-12.qcow2"]);
}

#[test]
fn a_lineage_that_somebody_has_bent_into_a_circle_ends() {
    let fixture = Fixture::new();
    drop(publish(&fixture.store, "web@1", "disk"));
    let mut listing = fixture.store.list().unwrap();
    let own =
        manifest::BaseImage { name: "web".into(), version: "1".into(), build_key: "disk".into(), ..Default::default() };
    listing.versions[0].base.image = Some(own);
    assert_eq!(listing.lineage(&listing.versions[0]).len(), 2);
}

#[test]
fn an_image_of_the_name_of_a_mark_is_an_image() {
    let fixture = Fixture::new();
    let lock = vacant(&fixture.store, "aside.web@1");
    let staging = lock.stage().unwrap();
    fs::write(staging.path().join("half"), "").unwrap();
    drop(fixture.reopen());
    assert!(staging.path().join("half").exists() && !fixture.path("web").exists());
    staging.abort().unwrap();
}
