//! Fault row D4: the power fails between any two calls, of a kiln that runs or of one that was killed before and whose
//! leftovers the next one removes. Of what was not synced, anything may be lost ([`crate::fs::testing::crash`]). In every state the
//! store opens, every version in it is complete, nothing that was there before is missing, and nothing that was reported as
//! done.

use super::*;
use crate::fs::testing::crash::CrashScenario;
use crate::progress::Progress;

/// Path of the store: a new store needs a new parent folder as well.
const STORE: &str = "deep/store";

/// An action on a store, and its expected results.
#[derive(Clone, Copy)]
struct Scenario {
    what: &'static str,
    lacks_exchange: bool,
    /// Versions that exist and are not touched, by their contents.
    others: &'static [&'static str],
    act: fn(&Store) -> Result<(), StoreError>,
    /// Content of web@1, the version that is acted on, before and after.
    before: Option<&'static str>,
    after: Option<&'static str>,
}

const FIRST: Scenario = Scenario {
    what: "a first version",
    lacks_exchange: false,
    others: &["app@1"],
    act: publish_new,
    before: None,
    after: Some("new"),
};

impl Scenario {
    fn play(&self) {
        let play = CrashScenario {
            what: self.what,
            prepare: &|root| self.prepare(&root.join(STORE)),
            act: &|root, calls| {
                if self.lacks_exchange {
                    calls.faults.lack_exchange();
                }
                Store::open_on(&root.join(STORE), calls.clone()).and_then(|store| (self.act)(&store)).is_ok()
            },
            clear: &|root, calls| drop(Store::open_on(&root.join(STORE), calls.clone()).unwrap()),
            check: &|root, is_done| self.check(&root.join(STORE), is_done),
        };
        play.run();
    }

    fn prepare(&self, path: &Path) {
        if self.others.is_empty() && self.before.is_none() {
            return;
        }
        let store = Store::open(path).unwrap();
        for other in self.others {
            drop(publish(&store, other, other));
        }
        if let Some(before) = self.before {
            drop(publish(&store, "web@1", before));
            set(&store, "web@1", "stable").unwrap();
            if self.after.is_none() {
                // A version with a tag cannot be removed. The history of the tag stays, and is removed with the image.
                store.untag("web", &tag("stable")).unwrap();
            }
        }
    }

    fn check(&self, path: &Path, is_done: bool) -> Result<(), String> {
        let store = Store::open(path).map_err(|error| error.to_string())?;
        let litter = entries(&store.private("tmp")).unwrap();
        if !litter.is_empty() {
            return Err(format!("litter is left: {litter:?}"));
        }
        for other in self.others {
            expect(&store, other, &[Some(*other)])?;
        }
        if is_done && self.after.is_none() && self.others.iter().all(|other| !other.starts_with("web@")) {
            let image = store.image_path("web");
            return if image.exists() { Err(format!("{} is left", image.display())) } else { Ok(()) };
        }
        let expected = [self.after, self.before];
        expect(&store, "web@1", if is_done { &expected[..1] } else { &expected })
    }
}

fn expect(store: &Store, text: &str, expected: &[Option<&str>]) -> Result<(), String> {
    let now = content(store, text)?;
    if expected.contains(&now.as_deref()) { Ok(()) } else { Err(format!("{text} holds {now:?}, not {expected:?}")) }
}

fn content(store: &Store, text: &str) -> Result<Option<String>, String> {
    let artifact = match store.artifact(&reference(text)) {
        Ok(artifact) => artifact,
        Err(StoreError::NoVersion { .. } | StoreError::NoImage { .. }) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    artifact.verify(&Progress::unwatched()).and_then(VerifyReport::into_result).map_err(|error| error.to_string())?;
    Ok(Some(fs::read_to_string(&artifact.outputs()[0]).unwrap()))
}

fn publish_new(store: &Store) -> Result<(), StoreError> {
    let Lookup::Vacant(lock) = claim(store, "web@1")? else { panic!("there is no web@1") };
    fill(lock, "new").map(drop)
}

fn replace(store: &Store) -> Result<(), StoreError> {
    let Lookup::Exists(existing) = claim(store, "web@1")? else { panic!("there is a web@1") };
    fill(existing.replace(), "new").map(drop)
}

#[test]
fn d4_a_first_version_is_whole_or_not_there() {
    FIRST.play();
    Scenario { what: "a first version of a new store", others: &[], ..FIRST }.play();
}

#[test]
fn d4_a_second_version_is_whole_or_not_there() {
    Scenario { what: "a second version", others: &["app@1", "web@0"], ..FIRST }.play();
}

#[test]
fn d4_a_replacement_is_the_old_or_the_new() {
    let replacement = Scenario { what: "a replacement", act: replace, before: Some("old"), ..FIRST };
    replacement.play();
    Scenario { what: "a replacement in two renames", lacks_exchange: true, ..replacement }.play();
}

#[test]
fn d4_a_removal_is_before_or_after() {
    let act = |store: &Store| remove(store, "web@1").map(drop);
    let removal = Scenario { what: "a removal", act, before: Some("old"), after: None, ..FIRST };
    removal.play();
    Scenario { what: "a removal of one of two", others: &["app@1", "web@0"], ..removal }.play();
}

/// Plays an action on the tags of web@1 and web@2, where web@stable names the first before and the second afterwards.
fn play_tags(what: &str, act: fn(&Store) -> Result<TagChange, StoreError>) {
    let prepare = |path: &Path| {
        let store = Store::open(path).unwrap();
        for text in ["web@1", "web@2"] {
            drop(publish(&store, text, text));
            set(&store, text, "stable").unwrap();
        }
        store
    };
    let other = crate::fs::testing::crash::scratch();
    let store = prepare(&other.path().join("store"));
    let before = state(&store).unwrap();
    act(&store).unwrap();
    let after = state(&store).unwrap();
    assert_ne!(before, after);
    let play = CrashScenario {
        what,
        prepare: &|root| drop(prepare(&root.join(STORE))),
        act: &|root, calls| Store::open_on(&root.join(STORE), calls.clone()).and_then(|store| act(&store)).is_ok(),
        clear: &|root, calls| drop(Store::open_on(&root.join(STORE), calls.clone()).unwrap()),
        check: &|root, is_done| {
            let store = Store::open(&root.join(STORE)).map_err(|error| error.to_string())?;
            let now = state(&store)?;
            let litter = entries(&store.private("tmp")).unwrap();
            let is_fit = litter.is_empty() && (now == after || (!is_done && now == before));
            if is_fit { Ok(()) } else { Err(format!("{now}, litter {litter:?}")) }
        },
    };
    play.run();
}

/// Returns all tags of `web` without times, after checking that its versions are intact.
fn state(store: &Store) -> Result<String, String> {
    for text in ["web@1", "web@2"] {
        expect(store, text, &[Some(text)])?;
    }
    let tags = store.tags("web").map_err(|error| error.to_string())?;
    let changes = tags.history.iter().map(|change| (&change.tag, &change.from, &change.to, change.how));
    Ok(format!("{:?} {:?}", tags.named, changes.collect::<Vec<_>>()))
}

#[test]
fn d4_a_tag_and_its_history_are_before_or_after() {
    play_tags("a tag that moves", |store| set(store, "web@1", "stable"));
    play_tags("a rollback", |store| store.roll_back("web", &tag("stable")));
    play_tags("a tag that is taken off", |store| store.untag("web", &tag("stable")));
}

#[test]
fn d4_a_first_tag_is_there_or_not() {
    let act = |root: &Path, calls: &Fs| {
        Store::open_on(&root.join(STORE), calls.clone()).and_then(|store| set(&store, "web@1", "stable")).is_ok()
    };
    let check = |root: &Path, is_done: bool| {
        let store = Store::open(&root.join(STORE)).map_err(|error| error.to_string())?;
        expect(&store, "web@1", &[Some("disk")])?;
        let tags = store.tags("web").map_err(|error| error.to_string())?;
        let named = tags.named.get("stable").map(String::as_str);
        let is_fit = matches!((named, tags.history.len()), (Some("1"), 1)) || (!is_done && tags == Tags::default());
        if is_fit { Ok(()) } else { Err(format!("{tags:?}")) }
    };
    let play = CrashScenario {
        what: "a first tag",
        prepare: &|root| drop(publish(&Store::open(&root.join(STORE)).unwrap(), "web@1", "disk")),
        act: &act,
        clear: &|root, calls| drop(Store::open_on(&root.join(STORE), calls.clone()).unwrap()),
        check: &check,
    };
    play.run();
}
