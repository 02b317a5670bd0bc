//! Fault rows C1 to C5: several concurrent kilns.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use crate::progress::Progress;

use super::*;

#[test]
fn c1_of_many_builds_of_one_version_one_builds_and_the_rest_find_it() {
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

/// Covers fault row C5.
#[test]
fn c5_ten_thousand_reads_see_the_old_or_the_new_version() {
    const READERS: usize = 2;
    let fixture = Fixture::in_memory();
    drop(publish(&fixture.store, "web@1", "0"));
    let read = |store: &Store| {
        for n in 0..10_000 / READERS {
            let artifact = store.artifact(&reference("web@1")).unwrap();
            // The key is the content of the disk, so that one shows whether the other is of the same version.
            let disk = artifact.open_folder().read("web-1.qcow2", 9).unwrap();
            assert_eq!(disk, artifact.manifest().build_key.as_bytes());
            if n % 10 == 0 {
                match artifact.verify(&Progress::unwatched()) {
                    // The version was replaced between two looks: this is an error of its own, not reported as damage.
                    Err(StoreError::InUse(_)) => {}
                    verdict => verdict.unwrap().into_result().unwrap(),
                }
            }
        }
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(|| read(&fixture.reopen()))).collect();
        let mut replacements = 0;
        while replacements < 40 || !readers.iter().all(thread::ScopedJoinHandle::is_finished) {
            replacements += 1;
            let lookup = wait_for(fixture.store.claim(&id("web@1"), |_| {})).unwrap();
            let Lookup::Exists(existing) = lookup else { panic!("there is a web@1") };
            drop(fill(existing.replace(), &replacements.to_string()).unwrap());
        }
    });
    drop(fixture.reopen());
    assert_eq!(fixture.litter(), Vec::<String>::new());
}

/// Covers fault row C3.
#[test]
fn c3_what_is_built_or_read_is_not_removed() {
    let fixture = Fixture::new();
    let artifact = publish(&fixture.store, "web@1", "disk");
    assert!(matches!(remove(&fixture.reopen(), "web@1"), Err(StoreError::InUse(_))));
    drop(artifact);
    let lock = existing(&fixture.store, "web@1").replace();
    assert!(matches!(remove(&fixture.reopen(), "web@1"), Err(StoreError::Busy(_))));
    drop(lock);
    assert_eq!(remove(&fixture.store, "web@1").unwrap(), id("web@1"));
    assert!(!fixture.path("web").exists());
    assert_eq!(fixture.litter(), Vec::<String>::new());
    assert!(matches!(remove(&fixture.store, "web@1"), Err(StoreError::NoImage { .. })));
}

/// Covers fault row C3.
#[test]
fn c3_what_takes_the_name_of_litter_is_not_cleared_away() {
    let fixture = Fixture::new();
    let litter = fixture.path(".kiln/tmp/web@1.litter");
    fs::create_dir(&litter).unwrap();
    let folder = Folder::open(&litter).unwrap();
    fs::rename(&litter, fixture.path(".kiln/published")).unwrap();
    fs::create_dir(&litter).unwrap();
    let read = Folder::open(&litter).unwrap();
    read.file().lock_shared().unwrap();
    fixture.store.discard_opened(&folder).unwrap();
    assert!(litter.exists() && fixture.path(".kiln/published").exists());
}

/// Covers fault row C3.
#[test]
fn c3_builds_removals_readers_and_openers_do_not_hurt_each_other() {
    const TURNS: usize = 150;
    for lacks_exchange in [false, true] {
        let fixture = Fixture::in_memory();
        let store = || {
            let store = fixture.reopen();
            if lacks_exchange {
                store.fs.faults.lack_exchange();
            }
            store
        };
        let build = |version: &str| {
            let store = store();
            for turn in 0..TURNS {
                let lock = match wait_for(store.claim(&id(version), |_| {})).unwrap() {
                    Lookup::Vacant(lock) => lock,
                    Lookup::Exists(existing) => existing.replace(),
                };
                let built = fill(lock, &turn.to_string()).unwrap();
                built.verify(&Progress::unwatched()).unwrap();
            }
        };
        let remove = |text: &str| {
            for _ in 0..TURNS {
                match remove(&store(), text) {
                    Ok(_)
                    | Err(
                        StoreError::Busy(_)
                        | StoreError::InUse(_)
                        | StoreError::NoImage { .. }
                        | StoreError::NoVersion { .. },
                    ) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let read = |text: &str| {
            for _ in 0..TURNS {
                match store().artifact(&reference(text)) {
                    Ok(artifact) => {
                        let disk = artifact.open_folder().read("web-1.qcow2", 9);
                        let disk = disk.or_else(|_| artifact.open_folder().read("web-2.qcow2", 9)).unwrap();
                        assert_eq!(disk, artifact.manifest().build_key.as_bytes());
                    }
                    Err(StoreError::NoImage { .. } | StoreError::NoVersion { .. } | StoreError::InUse(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        };
        thread::scope(|scope| {
            for version in ["web@1", "web@2"] {
                scope.spawn(move || build(version));
                scope.spawn(move || remove(version));
            }
            scope.spawn(|| read("web@1"));
            scope.spawn(|| read("web"));
        });
        let store = store();
        assert!(store.list().unwrap().unreadable.is_empty());
        assert_eq!(fixture.litter(), Vec::<String>::new());
        for version in ["web@1", "web@2"] {
            let _ = super::remove(&store, version);
        }
        assert!(!fixture.path("web").exists());
    }
}

/// Covers fault row C3.
#[test]
fn c3_a_removed_version_does_not_come_back_as_an_older_one() {
    let fixture = Fixture::new();
    let old = publish(&fixture.store, "web@1", "old");
    drop(fill(existing(&fixture.store, "web@1").replace(), "new").unwrap());
    // The state after a kiln that cannot swap names died when the new version had just got its own.
    let tmp = fixture.path(".kiln/tmp");
    fs::rename(tmp.join(&fixture.litter()[0]), fixture.store.aside_path(&id("web@1"))).unwrap();
    remove(&fixture.store, "web@1").unwrap();
    assert_eq!(content(&fixture.reopen(), "web@1"), None);
    drop(old);
    drop(fixture.reopen());
    assert_eq!((content(&fixture.store, "web@1"), fixture.litter()), (None, Vec::new()));
}

/// Covers fault row C3.
#[test]
fn c3_a_version_that_was_moved_aside_comes_back_after_the_last_other_one_was_removed() {
    let fixture = Fixture::new();
    for text in ["web@1", "web@2"] {
        drop(publish(&fixture.store, text, text));
    }
    fs::rename(fixture.path("web/1"), fixture.store.aside_path(&id("web@1"))).unwrap();
    remove(&fixture.store, "web@2").unwrap();
    assert!(!fixture.path("web").exists());
    assert_eq!(content(&fixture.reopen(), "web@1").as_deref(), Some("web@1"));
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
