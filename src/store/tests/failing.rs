//! Fault rows H10 and D6: a call fails while kiln lives on, or the disk is full. The failure is reported, the old state is
//! kept, and nothing is left behind.

use nix::errno::Errno;

use super::*;
use crate::error::Kind;
use crate::fs::testing::faults::{CompletedCall, on_a_small_disk};

const ERRORS: [(Errno, Kind); 4] = [
    (Errno::EIO, Kind::Output),
    (Errno::ENOSPC, Kind::Host),
    (Errno::EDQUOT, Kind::Host),
    (Errno::EROFS, Kind::Output),
];

fn kind(error: StoreError) -> Kind {
    crate::error::Failure::from(error).kind()
}

/// Runs `act` on stores whose call 0, 1, 2, ... fails, until none does, and passes each store to `check` with whether it was
/// reported as a success.
fn at_every_call(
    lacks_exchange: bool,
    prepare: impl Fn(&Store),
    act: impl Fn(&Store) -> Result<(), StoreError>,
    check: impl Fn(&Store, bool),
) {
    for (errno, expected) in ERRORS {
        let mut failures = 0;
        for calls in 0.. {
            let fixture = Fixture::in_memory();
            prepare(&fixture.store);
            let store = Store::open_on(fixture.store.path(), Fs::default()).unwrap();
            if lacks_exchange {
                store.fs.faults.lack_exchange();
            }
            store.fs.faults.record();
            store.fs.faults.fail_at(calls, errno);
            let result = act(&store);
            let Some(failed) = store.fs.faults.failed() else {
                result.unwrap();
                break;
            };
            failures += usize::from(result.is_err());
            let is_sync = failed.starts_with("Sync");
            // The store syncs its tmp before it deletes something from there, which can wait.
            assert!(result.is_err() || !is_sync || failed.contains(".kiln/tmp\""), "{failed} went unnoticed");
            if is_sync {
                let again = |done: &CompletedCall| matches!(done, CompletedCall::Sync(path) if failed.contains(&format!("{path:?}")));
                assert!(!store.fs.faults.recorded().iter().any(again), "{failed} was tried again");
            }
            let is_done = result.is_ok();
            if let Err(error) = result {
                assert_eq!(kind(error), expected, "{failed}");
            }
            let next = fixture.reopen();
            check(&next, is_done);
            assert_eq!(fixture.litter(), Vec::<String>::new(), "{failed}");
        }
        assert!(failures > 4, "{failures}");
    }
}

#[test]
fn h10_a_publication_that_fails_publishes_nothing_and_succeeds_when_repeated() {
    at_every_call(
        false,
        |store| drop(publish(store, "web@1", "first")),
        |store| {
            let Lookup::Vacant(lock) = claim(store, "web@2")? else { panic!("there is no web@2") };
            fill(lock, "second").map(drop)
        },
        |store, is_done| {
            assert_eq!(content(store, "web@1").as_deref(), Some("first"));
            assert_eq!(content(store, "web@2").as_deref(), is_done.then_some("second"));
            if !is_done {
                drop(publish(store, "web@2", "second"));
            }
        },
    );
}

#[test]
fn h10_a_replacement_that_fails_keeps_the_old_version() {
    for lacks_exchange in [false, true] {
        at_every_call(
            lacks_exchange,
            |store| drop(publish(store, "web@1", "old")),
            |store| {
                let Lookup::Exists(existing) = claim(store, "web@1")? else { panic!("there is a web@1") };
                fill(existing.replace(), "new").map(drop)
            },
            |store, is_done| {
                assert_eq!(content(store, "web@1").as_deref(), Some(if is_done { "new" } else { "old" }));
                drop(fill(existing(store, "web@1").replace(), "newer").unwrap());
            },
        );
    }
}

#[test]
fn h10_a_removal_that_fails_is_before_or_after() {
    at_every_call(
        false,
        |store| drop(publish(store, "web@1", "disk")),
        |store| remove(store, "web@1").map(drop),
        |store, is_done| {
            let left = content(store, "web@1");
            assert!(left.is_none() || (!is_done && left.as_deref() == Some("disk")), "{left:?}");
        },
    );
}

#[test]
fn h10_a_tag_that_cannot_be_moved_names_the_old_version_or_the_new() {
    type Act = fn(&Store) -> Result<TagChange, StoreError>;
    let prepare = |store: &Store| {
        for text in ["web@1", "web@2"] {
            drop(publish(store, text, text));
        }
        set(store, "web@1", "stable").unwrap();
        set(store, "web@2", "stable").unwrap();
    };
    let acts: [(Act, &[Option<&str>]); 3] = [
        (|store| set(store, "web@1", "stable"), &[Some("2"), Some("1")]),
        (|store| store.roll_back("web", &tag("stable")), &[Some("2"), Some("1")]),
        (|store| store.untag("web", &tag("stable")), &[Some("2"), None]),
    ];
    for (act, [old, new]) in acts.map(|(act, states)| (act, [states[0], states[1]])) {
        at_every_call(
            false,
            prepare,
            |store| act(store).map(drop),
            |store, is_done| {
                let tags = store.tags("web").unwrap();
                let now = tags.named.get("stable").map(String::as_str);
                assert!(now == new || (!is_done && now == old), "{now:?}");
                assert_eq!(tags.history.last().unwrap().to.as_deref(), now, "tags and history agree");
                for text in ["web@1", "web@2"] {
                    assert_sound(store, text, text);
                }
            },
        );
    }
}

/// Leaves a version in tmp as a dead process would.
fn litter(store: &Store) {
    let folder = store.private("tmp").join("web@9.0");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("half"), "half").unwrap();
}

#[test]
fn d6_a_full_disk_stops_neither_removal_nor_clearing() {
    let fixture = Fixture::new();
    drop(publish(&fixture.store, "web@1", "disk"));
    litter(&fixture.store);
    let calls = Fs::default();
    calls.faults.fill_disk();
    let full = Store::open_on(fixture.store.path(), calls).unwrap();
    assert_eq!(fixture.litter(), Vec::<String>::new());
    let error = claim(&full, "web@2").unwrap_err();
    assert_eq!(kind(error), Kind::Host);
    remove(&full, "web@1").unwrap();
    assert!(!fixture.path("web").exists());
    assert_eq!(fixture.litter(), Vec::<String>::new());
}

#[test]
fn d6_room_is_made_on_a_disk_that_really_is_full() {
    on_a_small_disk("store::tests::failing::d6_room_is_made_on_a_disk_that_really_is_full", |disk| {
        let store = Store::open(&disk.join("store")).unwrap();
        let large = "x".repeat(100_000);
        drop(publish(&store, "web@1", &large));
        litter(&store);
        let filler = fs::File::create(disk.join("filler")).unwrap();
        while io::Write::write(&mut &filler, &[1; 4096]).is_ok() {}
        let no_room = |store: &Store| {
            let lookup = claim(store, "web@2").unwrap();
            let Lookup::Vacant(lock) = lookup else { panic!("there is no web@2") };
            fill(lock, &large).map(drop)
        };
        assert_eq!(kind(no_room(&store).unwrap_err()), Kind::Host);
        let store = Store::open(store.path()).unwrap();
        assert_eq!(content(&store, "web@1").as_deref(), Some(large.as_str()));
        remove(&store, "web@1").unwrap();
        no_room(&store).unwrap();
    });
}
