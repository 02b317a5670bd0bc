//! Tags: their targets, refused names, and concurrent changes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::*;
use crate::error::Fault;

fn named(store: &Store, name: &str) -> Option<String> {
    store.tags("web").unwrap().named.remove(name)
}

fn roll_back(store: &Store, name: &str) -> Result<String, StoreError> {
    store.roll_back("web", &tag(name)).map(|change| change.to.unwrap())
}

/// Creates a store with web@1, web@2 and web@3.
fn three() -> Fixture {
    let fixture = Fixture::in_memory();
    for version in ["1", "2", "3"] {
        drop(publish(&fixture.store, &format!("web@{version}"), version));
    }
    fixture
}

#[test]
fn a_tag_is_set_promoted_and_rolled_back() {
    let fixture = three();
    let store = &fixture.store;
    for version in ["1", "2"] {
        set(store, &format!("web@{version}"), "stable").unwrap();
    }
    // A bare name is the newest version.
    set(store, "web", "candidate").unwrap();
    let change = set(store, "web@candidate", "stable").unwrap();
    assert_eq!((change.from.as_deref(), change.to.as_deref()), (Some("2"), Some("3")));
    assert_eq!(change.promoted.as_deref(), Some("candidate"));
    assert!(set(store, "web@3", "stable").unwrap().is_nothing());
    assert_sound(store, "web@stable", "3");
    assert_eq!(roll_back(store, "stable").unwrap(), "2");
    assert_sound(store, "web@stable", "2");
    assert_eq!(roll_back(store, "stable").unwrap(), "1");
    let error = roll_back(store, "stable").unwrap_err();
    assert_eq!(error.to_string(), "web@stable has named no other version before");
    let history = store.tag_history("web", Some(&tag("stable"))).unwrap();
    let steps: Vec<_> = history.iter().map(|change| (change.how, change.to.as_deref().unwrap())).collect();
    assert_eq!(
        steps,
        [
            (TagOperation::Rollback, "1"),
            (TagOperation::Rollback, "2"),
            (TagOperation::Set, "3"),
            (TagOperation::Set, "2"),
            (TagOperation::Set, "1")
        ]
    );
    assert_eq!(mode(&fixture.path("web/tags.json")), 0o444);
    assert_eq!(fixture.litter(), Vec::<String>::new());
}

#[test]
fn a_rollback_does_not_lead_to_what_is_not_there() {
    let fixture = three();
    let store = &fixture.store;
    for version in ["1", "2", "3"] {
        set(store, &format!("web@{version}"), "stable").unwrap();
    }
    remove(store, "web@2").unwrap();
    let error = roll_back(store, "stable").unwrap_err();
    assert_eq!(error.to_string(), "web@stable named 2 before, which is no longer in the store");
    assert_eq!(error.hints(), ["`kiln tag web@1 stable` sets it to the one it named before that"]);
    assert_eq!(named(store, "stable").as_deref(), Some("3"));
    remove(store, "web@1").unwrap();
    assert_eq!(
        roll_back(store, "stable").unwrap_err().hints(),
        ["`kiln tag web@VERSION stable` sets it to another version"]
    );
}

#[test]
fn nothing_is_both_a_version_and_a_tag() {
    let fixture = three();
    let store = &fixture.store;
    let error = set(store, "web@1", "2").unwrap_err();
    assert_eq!(error.to_string(), "web@2 is a version, so `2` cannot be a tag of that image");
    set(store, "web@1", "4").unwrap();
    let error = claim(store, "web@4").unwrap_err();
    assert_eq!(error.to_string(), "web@4 is a tag, so `4` cannot be a version of that image");
    assert_eq!(error.hints()[1], "or take the tag off with `kiln tag web --delete 4`");
    // A tag that is set while the version is built.
    let lock = vacant(store, "web@5");
    set(store, "web@1", "5").unwrap();
    assert!(matches!(fill(lock, "disk"), Err(StoreError::VersionIsTag(_))));
    assert_eq!(content(store, "web@5").as_deref(), Some("1"));
    store.untag("web", &tag("5")).unwrap();
    drop(publish(store, "web@5", "disk"));
    assert_eq!(fixture.litter(), Vec::<String>::new());
    assert!("tags.json".parse::<Tag>().is_err() && "a/b".parse::<Tag>().is_err() && "".parse::<Tag>().is_err());
}

#[test]
fn what_is_not_there_is_told_with_what_there_is() {
    let fixture = three();
    let store = &fixture.store;
    set(store, "web@1", "stable").unwrap();
    let hints = |result: Result<TagChange, StoreError>| result.unwrap_err().hints().remove(0);
    assert_eq!(hints(set(store, "wbe@1", "stable")), "did you mean `web`?");
    assert_eq!(hints(set(store, "web@stabel", "candidate")), "did you mean `stable`?");
    assert_eq!(hints(store.untag("web", &tag("stble"))), "did you mean `stable`?");
    assert_eq!(hints(store.roll_back("web", &tag("stble"))), "did you mean `stable`?");
    assert!(matches!(store.tags("app"), Err(StoreError::NoImage { .. })));
    assert!(!fixture.path(".kiln/locks/wbe").exists(), "asking for what is not there leaves nothing");
}

#[test]
fn d2_a_tag_of_a_newer_kiln_or_of_nothing_is_not_believed() {
    let fixture = three();
    let path = fixture.path("web/tags.json");
    fs::write(&path, r#"{"schema": 2, "tags": ["stable"]}"#).unwrap();
    for result in [set(&fixture.store, "web@1", "stable").map(drop), remove(&fixture.store, "web@1").map(drop)] {
        assert!(matches!(result, Err(StoreError::NewerSchema { found: 2, .. })));
    }
    let listing = fixture.store.list().unwrap();
    assert_eq!((listing.versions.len(), listing.unreadable.len()), (3, 1));
    // Somebody has deleted a version by hand.
    fs::write(&path, r#"{"schema": 1, "tags": {"stable": "7"}}"#).unwrap();
    assert!(matches!(set(&fixture.store, "web@stable", "candidate"), Err(StoreError::Dangling { .. })));
}

/// Covers fault row C5. Every read begins and ends between two flips, or has some in between: it must return a version that
/// the tag named meanwhile, and all of it.
#[test]
fn c5_ten_thousand_reads_during_a_hundred_flips_see_one_version() {
    const READERS: usize = 2;
    const READS: usize = 10_000;
    const FLIPS: usize = 100;
    // On the file system of temporary files: in memory, flips would cost nothing.
    let fixture = Fixture::new();
    for version in 0..5 {
        drop(publish(&fixture.store, &format!("web@{version}"), &version.to_string()));
    }
    // Flip 0 is the first tag. Odd ones promote one of four versions, even ones roll back.
    let version = |flip: usize| if flip.is_multiple_of(2) { 0 } else { 1 + flip / 2 % 4 };
    set(&fixture.store, "web@0", "stable").unwrap();
    let (begun, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let read = |store: &Store| {
        let (mut seen, mut moved) = (BTreeMap::new(), 0);
        for _ in 0..READS / READERS {
            let first = done.load(Ordering::SeqCst);
            let artifact = store.artifact(&reference("web@stable")).unwrap();
            let last = begun.load(Ordering::SeqCst);
            let found = artifact.id().version().to_owned();
            assert!(
                (first..=last).any(|flip| version(flip).to_string() == found),
                "{found} in flips {first} to {last}"
            );
            // The key and the disk are those of the version, so that each shows what the others must be.
            let disk = artifact.open_folder().read(&format!("web-{found}.qcow2"), 9).unwrap();
            assert_eq!((disk.as_slice(), &*artifact.manifest().build_key), (found.as_bytes(), &*found));
            *seen.entry(found).or_insert(0) += 1;
            moved += usize::from(last > first);
        }
        (seen, moved)
    };
    let mut flips = 0;
    let tallies: Vec<_> = thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(|| read(&fixture.reopen()))).collect();
        while flips < FLIPS || !readers.iter().all(thread::ScopedJoinHandle::is_finished) {
            flips += 1;
            begun.store(flips, Ordering::SeqCst);
            if flips.is_multiple_of(2) {
                assert_eq!(roll_back(&fixture.store, "stable").unwrap(), "0");
            } else {
                set(&fixture.store, &format!("web@{}", version(flips)), "stable").unwrap();
            }
            done.store(flips, Ordering::SeqCst);
        }
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (version, count) in tallies.iter().flat_map(|(seen, _)| seen) {
        *seen.entry(version.clone()).or_default() += count;
    }
    let moved: usize = tallies.iter().map(|(_, moved)| moved).sum();
    assert_eq!(seen.values().sum::<usize>(), READS);
    assert!(seen.len() > 1, "the tag was seen to move");
    println!("rollback: {READS} reads during {flips} flips, by version {seen:?}, {moved} across a flip, 0 mixed");
    assert_eq!(fixture.litter(), Vec::<String>::new());
}

/// Covers fault row C5. The version that a reader was led to is removed before it is opened.
#[test]
fn c5_a_tag_leads_somewhere_while_what_it_named_is_removed() {
    let fixture = Fixture::in_memory();
    drop(publish(&fixture.store, "web@0", "0"));
    set(&fixture.store, "web@0", "stable").unwrap();
    let is_over = AtomicBool::new(false);
    let read = || {
        let store = fixture.reopen();
        let mut reads = 0;
        while !is_over.load(Ordering::SeqCst) {
            for text in ["web@stable", "web"] {
                let artifact = store.artifact(&reference(text)).unwrap();
                assert_eq!(artifact.manifest().build_key, artifact.id().version());
            }
            reads += 1;
        }
        assert!(reads > 0);
    };
    thread::scope(|scope| {
        let reader = scope.spawn(read);
        for version in 1..100 {
            drop(publish(&fixture.store, &format!("web@{version}"), &version.to_string()));
            set(&fixture.store, "web", "stable").unwrap();
            let removed = remove(&fixture.store, &format!("web@{}", version - 1));
            assert!(matches!(removed, Ok(_) | Err(StoreError::InUse(_))), "{removed:?}");
            if reader.is_finished() {
                break;
            }
        }
        is_over.store(true, Ordering::SeqCst);
    });
}

/// Covers fault row C3.
#[test]
fn c3_no_change_of_a_tag_is_lost_and_no_tag_names_what_was_removed() {
    const TURNS: usize = 20;
    let fixture = three();
    let change = |name: &str| {
        let store = fixture.reopen();
        let mut changes = 0;
        for turn in 0..TURNS {
            match set(&store, &format!("web@{}", 1 + turn % 2), name) {
                Ok(change) => changes += usize::from(!change.is_nothing()),
                Err(StoreError::NoVersion { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        changes
    };
    let expected: Vec<(&str, usize)> = thread::scope(|scope| {
        let changes = ["a", "b", "c"].map(|name| (name, scope.spawn(move || change(name))));
        for _ in 0..TURNS {
            // Meanwhile openers clear tmp, and removals read the tags.
            match remove(&fixture.reopen(), "web@1") {
                Ok(_) => drop(publish(&fixture.store, "web@1", "1")),
                Err(StoreError::Tagged { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        changes.map(|(name, changes)| (name, changes.join().unwrap())).into()
    });
    let tags = fixture.store.tags("web").unwrap();
    for (name, changes) in expected {
        assert_eq!(tags.history.iter().filter(|change| change.tag == name).count(), changes);
        assert!(fixture.path("web").join(&tags.named[name]).is_dir());
    }
    assert_eq!(fixture.litter(), Vec::<String>::new());
}
