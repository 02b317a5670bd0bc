//! Fault rows H5 and C4: kiln is killed between any two calls that change the file system. At whatever point, the next
//! opener finds every version complete, the old one or the new one, and removes the rest.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::*;

/// Runs `act` on a store that dies after 0, 1, 2, ... calls until it survives; after each death the store is opened anew and
/// `check`ed. Returns how many points were tried.
fn at_every_point(
    lacks_exchange: bool,
    prepare: impl Fn(&Store),
    act: impl Fn(&Store) -> Result<(), StoreError>,
    check: impl Fn(&Store),
) -> usize {
    for calls in 0..1000 {
        let fixture = Fixture::new();
        prepare(&fixture.store);
        let doomed = Store::open_on(fixture.store.path(), Fs::default()).unwrap();
        if lacks_exchange {
            doomed.fs.faults.lack_exchange();
        }
        doomed.fs.faults.die_after(calls);
        let result = act(&doomed);
        let next = fixture.reopen();
        check(&next);
        // A process that another test has just forked keeps the locks of the dead until it executes; then a later opener
        // removes what they left.
        for _ in 0..100 {
            if fixture.litter().is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
            fixture.reopen();
        }
        assert_eq!(fixture.litter(), Vec::<String>::new(), "killed after {calls} calls");
        if result.is_ok() {
            return calls;
        }
    }
    panic!("it never ends");
}

#[test]
fn h5_a_publication_is_whole_or_not_at_all() {
    let tried = at_every_point(
        false,
        |store| drop(publish(store, "web@1", "first")),
        |store| {
            let Lookup::Vacant(lock) = claim(store, "web@2")? else { panic!("there is no web@2") };
            fill(lock, "second").map(drop)
        },
        |store| {
            assert_eq!(content(store, "web@1").as_deref(), Some("first"));
            let second = content(store, "web@2");
            assert!(matches!(second.as_deref(), None | Some("second")), "{second:?}");
        },
    );
    assert!(tried >= 20, "{tried}");
}

#[test]
fn h5_a_first_version_leaves_no_empty_folder_behind() {
    at_every_point(
        false,
        |_| {},
        |store| {
            let Lookup::Vacant(lock) = claim(store, "web@1")? else { panic!("there is no web@1") };
            fill(lock, "disk").map(drop)
        },
        |store| assert_eq!(store.path().join("web").exists(), content(store, "web@1").is_some()),
    );
}

#[test]
fn h5_a_replacement_is_the_old_or_the_new() {
    for lacks_exchange in [false, true] {
        let tried = at_every_point(
            lacks_exchange,
            |store| drop(publish(store, "web@1", "old")),
            |store| {
                let Lookup::Exists(existing) = claim(store, "web@1")? else { panic!("there is a web@1") };
                fill(existing.replace(), "new").map(drop)
            },
            |store| {
                let now = content(store, "web@1");
                assert!(matches!(now.as_deref(), Some("old" | "new")), "{now:?}");
            },
        );
        assert!(tried >= 20, "{tried}");
    }
}

#[test]
fn h5_a_removal_is_before_or_after() {
    let tried = at_every_point(
        false,
        |store| drop(publish(store, "web@1", "disk")),
        |store| remove(store, "web@1").map(drop),
        |store| assert!(matches!(content(store, "web@1").as_deref(), None | Some("disk"))),
    );
    assert!(tried >= 5, "{tried}");
}

#[test]
fn h5_a_tag_names_the_old_version_or_the_new() {
    let tried = at_every_point(
        false,
        |store| {
            for text in ["web@1", "web@2"] {
                drop(publish(store, text, text));
            }
            set(store, "web@1", "stable").unwrap();
        },
        |store| set(store, "web@2", "stable").and_then(|_| store.roll_back("web", &tag("stable"))).map(drop),
        |store| {
            let tags = store.tags("web").unwrap();
            assert_eq!(tags.history.last().unwrap().to.as_ref(), tags.named.get("stable"));
            assert!(matches!(content(store, "web@stable").as_deref(), Some("web@1" | "web@2")));
        },
    );
    assert!(tried >= 12, "{tried}");
}

/// Spawns a process that holds the flock of a file or folder until it is killed.
fn holder(path: &Path) -> Child {
    let mut child = Command::new("sh")
        .args(["-c", r#"exec 9<"$0"; flock 9; echo locked; exec cat"#])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "locked\n");
    child
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn c4_the_lock_of_a_killed_process_is_free() {
    let fixture = Fixture::new();
    drop(vacant(&fixture.store, "web@1"));
    let mut other = Some(holder(&fixture.path(".kiln/locks/web@1")));
    assert!(matches!(fixture.store.try_version_lock(&id("web@1")), Ok(None)));
    let lookup = wait_for(fixture.store.claim(&id("web@1"), |sentence| {
        assert_eq!(sentence, "waiting for another kiln that builds web@1");
        kill(other.take().unwrap());
    }));
    assert!(matches!(lookup.unwrap(), Lookup::Vacant(_)));
    assert!(other.is_none(), "it had to wait");
}

#[test]
fn c3_the_folder_of_a_live_process_is_left_alone() {
    let fixture = Fixture::new();
    let folder = fixture.path(".kiln/tmp/web@1.0");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("half"), "").unwrap();
    fs::write(fixture.path(".kiln/tmp/file"), "").unwrap();
    let other = holder(&folder);
    drop(fixture.reopen());
    assert_eq!(fixture.litter(), ["web@1.0"]);
    kill(other);
    drop(fixture.reopen());
    assert_eq!(fixture.litter(), Vec::<String>::new());
}
