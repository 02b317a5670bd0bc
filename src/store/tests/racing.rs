//! Fault rows C1 to C5: several kilns at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use super::*;

#[test]
fn of_many_builds_of_one_version_one_builds_and_the_rest_find_it() {
    const BUILDS: usize = 8;
    let fixture = Fixture::new();
    let (built, found) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let start = Barrier::new(BUILDS);
    thread::scope(|scope| {
        for _ in 0..BUILDS {
            scope.spawn(|| {
                let store = fixture.reopen();
                start.wait();
                let mut waits = 0;
                match wait_for(store.claim(&id("web@1"), |_| waits += 1)).unwrap() {
                    Lookup::Vacant(lock) => {
                        drop(fill(lock, "disk").unwrap());
                        built.fetch_add(1, Ordering::Relaxed);
                    }
                    Lookup::Exists(existing) => {
                        assert!(existing.is_from("disk"));
                        found.fetch_add(1, Ordering::Relaxed);
                    }
                }
                assert!(waits <= 1);
            });
        }
    });
    assert_eq!((built.into_inner(), found.into_inner()), (1, BUILDS - 1));
    assert_eq!(fixture.litter(), Vec::<String>::new());
}

#[test]
fn versions_published_at_once_get_different_numbers() {
    let fixture = Fixture::new();
    thread::scope(|scope| {
        for version in 0..8 {
            let store = fixture.reopen();
            scope.spawn(move || publish(&store, &format!("web@{version}"), "disk"));
        }
    });
    let mut numbers: Vec<_> = fixture.store.list().unwrap().versions.iter().map(|version| version.sequence).collect();
    numbers.reverse();
    assert_eq!(numbers, (1..=8).collect::<Vec<_>>());
}

#[test]
fn who_gives_up_waiting_does_not_keep_the_lock() {
    let fixture = Fixture::new();
    let held = vacant(&fixture.store, "web@1");
    let mut waited = false;
    let id = id("web@1");
    let gave_up = wait_for(async {
        let waiting = fixture.store.claim(&id, |_| waited = true);
        tokio::time::timeout(Duration::from_millis(20), waiting).await
    });
    assert!(gave_up.is_err() && waited);
    drop(held);
    // The thread left behind may have the lock for a moment; a third one gets it nevertheless.
    assert!(matches!(wait_for(fixture.store.claim(&id, |_| {})).unwrap(), Lookup::Vacant(_)));
}

/// Fault row C5.
#[test]
fn a_reader_sees_the_old_or_the_new_version() {
    let fixture = Fixture::new();
    drop(publish(&fixture.store, "web@1", "0"));
    let done = AtomicBool::new(false);
    let reads = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let store = fixture.reopen();
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) {
                let artifact = store.artifact(&reference("web@1")).unwrap();
                match artifact.verify(UNWATCHED) {
                    // Replaced between two looks: said, not mistaken for damage.
                    Err(StoreError::InUse(_)) => {}
                    verdict => verdict.unwrap().into_result().unwrap(),
                }
                reads += 1;
            }
            reads
        });
        for n in 1..=40 {
            let lookup = wait_for(fixture.store.claim(&id("web@1"), |_| {})).unwrap();
            let Lookup::Exists(existing) = lookup else { panic!("there is a web@1") };
            drop(fill(existing.replace(), &n.to_string()).unwrap());
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    assert!(reads > 0);
    drop(fixture.reopen());
    assert_eq!(fixture.litter(), Vec::<String>::new());
}

/// Fault row C3.
#[test]
fn what_is_built_or_read_is_not_removed() {
    let fixture = Fixture::new();
    let web = reference("web@1");
    let artifact = publish(&fixture.store, "web@1", "disk");
    assert!(matches!(fixture.reopen().remove(&web), Err(StoreError::InUse(_))));
    drop(artifact);
    let lock = existing(&fixture.store, "web@1").replace();
    assert!(matches!(fixture.reopen().remove(&web), Err(StoreError::Busy(_))));
    drop(lock);
    assert_eq!(fixture.store.remove(&web).unwrap(), id("web@1"));
    assert!(!fixture.path("web").exists());
    assert_eq!(fixture.litter(), Vec::<String>::new());
    assert!(matches!(fixture.store.remove(&web), Err(StoreError::NoImage { .. })));
}

#[test]
fn opening_waits_for_nobody() {
    let fixture = Fixture::new();
    let _staging = vacant(&fixture.store, "web@1").stage().unwrap();
    let _guard = {
        let guard = fixture.store.fs.open_lock(&fixture.path(".kiln/tmp.lock")).unwrap();
        guard.lock().unwrap();
        guard
    };
    let (opened, is_open) = mpsc::channel();
    let path = fixture.store.path().to_owned();
    thread::spawn(move || opened.send(Store::open(&path).and_then(|store| store.list()).is_ok()));
    assert_eq!(is_open.recv_timeout(Duration::from_secs(30)), Ok(true));
}
