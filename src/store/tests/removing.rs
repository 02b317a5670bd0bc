//! A version that is needed stays: because of a tag, or of an image that was built from it.

use super::*;
use crate::error::Fault;

#[test]
fn what_a_tag_names_is_not_removed() {
    let fixture = Fixture::new();
    drop(publish(&fixture.store, "web@1", "disk"));
    for name in ["stable", "candidate"] {
        set(&fixture.store, "web@1", name).unwrap();
    }
    for text in ["web", "web@1", "web@stable"] {
        // Not even by force, which applies to images that were built from it only.
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
    // A version that was replaced since is not the one that they were built from.
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
    let own = manifest::ManifestBaseImage {
        name: "web".into(),
        version: "1".into(),
        build_key: "disk".into(),
        disk_sha256: listing.versions[0].disk_sha256,
        disk_chunks_sha256: listing.versions[0].disk_chunks_sha256,
    };
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

/// Returns the decision about each version.
fn fates(store: &Store, keep: usize, images: &[&str]) -> Vec<String> {
    let listing = store.list().unwrap();
    let keep = std::num::NonZeroUsize::new(keep).unwrap();
    let fates = listing.fates(keep, |name| images.is_empty() || images.contains(&name));
    fates.iter().map(|(summary, fate)| format!("{} {fate}", summary.id)).collect()
}

#[test]
fn retention_keeps_the_newest_the_tagged_and_what_those_were_made_from() {
    let fixture = Fixture::in_memory();
    let store = &fixture.store;
    for version in ["1", "2", "3"] {
        let debian = publish(store, &format!("debian@{version}"), version);
        publish_on(store, &format!("web@{version}"), &debian);
        let web = store.artifact(&reference(&format!("web@{version}"))).unwrap();
        publish_on(store, &format!("shop@{version}"), &web);
    }
    set(store, "shop@1", "stable").unwrap();
    let expected = [
        "debian@3 among the newest",
        "debian@2 no longer kept",
        "debian@1 base of web@1",
        "shop@3 among the newest",
        "shop@2 no longer kept",
        "shop@1 tagged stable",
        "web@3 among the newest",
        "web@2 no longer kept",
        "web@1 base of shop@1",
    ];
    assert_eq!(fates(store, 1, &[]), expected);
    let expected = ["debian@3 among the newest", "debian@2 base of web@2", "debian@1 base of web@1"];
    assert_eq!(fates(store, 1, &["debian"]), expected, "all of the others are kept");
    assert!(fates(store, 3, &[]).iter().all(|fate| fate.ends_with("among the newest")));
    // In this order none is refused.
    for text in ["shop@2", "web@2", "debian@2"] {
        remove(store, text).unwrap();
    }
}
