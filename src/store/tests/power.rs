//! Fault row D4: the power fails between any two calls, of a kiln that goes on or of one that was killed before and whose
//! leavings the next one clears. Of what was not synced, anything may be lost ([`crate::fs::crash`]). In every state the
//! store opens, every version in it is whole, nothing that was there before is gone, and what was reported as done is.

use super::*;
use crate::fs::crash::Play;

/// Where it is: a new store needs a folder that is new as well.
const STORE: &str = "deep/store";

/// What is done to a store, and what may be seen of it.
#[derive(Clone, Copy)]
struct Scenario {
    what: &'static str,
    lacks_exchange: bool,
    /// Versions that are there and nothing is done to, by their contents.
    others: &'static [&'static str],
    act: fn(&Store) -> Result<(), StoreError>,
    /// What web@1, to which it is done, holds before and after.
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
        let play = Play {
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
            fs::write(store.image_path("web").join("tags.json"), r#"{"schema": 1, "tags": {"stable": "1"}}"#).unwrap();
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
    artifact.verify(UNWATCHED).and_then(Verdict::into_result).map_err(|error| error.to_string())?;
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
    let act = |store: &Store| store.remove(&reference("web@stable")).map(drop);
    Scenario { what: "a removal", act, before: Some("old"), after: None, ..FIRST }.play();
}
