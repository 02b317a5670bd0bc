use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde_json::json;

use super::evict::{Evicted, evict};
use super::*;

struct Bench {
    folder: tempfile::TempDir,
    cache: Cache,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let memo = Arc::new(Memo::load(folder.path()));
    let cache = Cache::open(folder.path(), memo).unwrap();
    Bench { folder, cache }
}

fn key(name: &str) -> Key {
    Key::root().then(&json!(name))
}

impl Bench {
    fn make(&self, name: &str, parent: Option<&Stack>, ram: bool) -> Stack {
        let disk = self.folder.path().join("overlay.qcow2");
        fs::write(&disk, format!("disk of {name}")).unwrap();
        let draft = self.cache.draft().unwrap();
        draft.take_disk(&disk).unwrap();
        fs::remove_file(&disk).unwrap();
        let memory = ram.then(|| {
            fs::write(draft.ram(), format!("memory of {name}")).unwrap();
            Recorded { format: "stream".into(), machine: "m".into(), hello: json!({}) }
        });
        let parent_name = parent.map(|parent| parent.top().facts.name.clone());
        let name = Name::new(key(name));
        let made = Made { name: name.clone(), parent: parent_name, seconds: 1.5, memory, fetched: Vec::new() };
        draft.commit(made).unwrap();
        self.cache.stack(&self.cache.root.join(name.folder())).unwrap()
    }

    fn find(&self, name: &str) -> (Vec<Stack>, Vec<Unusable>) {
        let mut problems = Vec::new();
        (self.cache.find(key(name), &mut |problem| problems.push(problem)), problems)
    }

    fn layers(&self) -> usize {
        let entries = fs::read_dir(&self.cache.root).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir()).count()
    }
}

#[test]
fn a_layer_is_found_by_its_key_with_all_it_lies_on() {
    let bench = bench();
    let boot = bench.make("boot", None, true);
    let step = bench.make("step", Some(&boot), false);
    assert_eq!(step.top().facts.parent, Some(boot.top().facts.name.clone()));
    assert_eq!(step.disks().collect::<Vec<_>>(), [step.top().disk(), boot.top().disk()]);
    assert!(bench.find("other").0.is_empty());
    bench.cache.check_memory(boot.top()).unwrap();
    assert!(matches!(bench.cache.check_memory(step.top()), Err(Unusable::Missing)));
    // Another making of the same step is another layer, and the step stays on the first.
    std::thread::sleep(Duration::from_millis(10));
    let again = bench.make("boot", None, true);
    let found = bench.find("boot").0;
    assert_eq!(found[0].top().facts.name, again.top().facts.name);
    assert_eq!(found[1].top().facts.name, boot.top().facts.name);
    assert_eq!(bench.find("step").0[0].0[0].facts.name, boot.top().facts.name);
}

#[test]
fn damage_of_any_kind_is_noticed_and_cleared_away() {
    type Damage = fn(&Layer);
    let damages: [(&str, Damage); 5] = [
        ("a changed byte", |layer| {
            File::options().write(true).open(layer.disk()).unwrap().write_all_at(b"x", 3).unwrap();
        }),
        ("a shorter file", |layer| File::options().write(true).open(layer.disk()).unwrap().set_len(3).unwrap()),
        ("no disk", |layer| fs::remove_file(layer.disk()).unwrap()),
        ("no facts", |layer| fs::remove_file(layer.folder.join(FACTS)).unwrap()),
        ("torn facts", |layer| fs::write(layer.folder.join(FACTS), "{").unwrap()),
    ];
    for (what, damage) in damages {
        let bench = bench();
        let boot = bench.make("boot", None, false);
        drop(bench.make("step", Some(&boot), false));
        damage(boot.top());
        drop(boot);
        for layer in ["step", "boot"] {
            let (found, problems) = bench.find(layer);
            assert!(found.is_empty() && problems.len() == 1, "{what}: {found:?} {problems:?}");
        }
        assert_eq!(bench.layers(), 0, "{what}");
    }
    let bench = bench();
    let layer = bench.make("boot", None, true);
    File::options().write(true).open(layer.top().ram()).unwrap().write_all_at(b"x", 3).unwrap();
    assert!(matches!(bench.cache.check_memory(layer.top()), Err(Unusable::Damaged { .. })));
    // The disk is as good as before.
    assert_eq!(bench.find("boot").0.len(), 1);
}

#[test]
fn a_layer_under_another_name_is_foreign() {
    let bench = bench();
    let layer = bench.make("boot", None, false);
    let other = Name::new(key("other")).folder();
    fs::rename(&layer.top().folder, bench.cache.root.join(other)).unwrap();
    drop(layer);
    assert!(matches!(bench.find("other").1[..], [Unusable::Damaged { .. }]));
}

#[test]
fn drafts_of_the_dead_go_and_those_of_the_living_stay() {
    let bench = bench();
    let living = bench.cache.draft().unwrap();
    fs::create_dir(bench.cache.root.join("draft-dead")).unwrap();
    Cache::open(bench.folder.path(), Arc::new(Memo::load(bench.folder.path()))).unwrap();
    assert_eq!(bench.layers(), 1);
    drop(living);
    assert_eq!(bench.layers(), 0);
}

#[test]
fn eviction_takes_what_was_used_longest_ago_and_nothing_in_use() {
    let bench = bench();
    let boot = bench.make("boot", None, false);
    let old = bench.make("old", Some(&boot), false);
    let new = bench.make("new", Some(&boot), false);
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    for (layer, ago) in [(&boot, long_ago), (&old, long_ago), (&new, SystemTime::now())] {
        File::open(&layer.top().folder).unwrap().set_modified(ago).unwrap();
    }
    let size = |stack: &Stack| stack.top().size();
    let total = size(&boot) + size(&old) + size(&new);
    // All three are in use.
    assert_eq!(evict(&bench.cache, 0).unwrap(), Evicted { layers: 0, bytes: 0, left: total });
    let left = total - size(&old);
    drop(old);
    // The boot is as old as the other, and yet stays: something lies on it.
    assert_eq!(evict(&bench.cache, total - 1).unwrap().left, left);
    assert!(bench.find("old").0.is_empty());
    assert_eq!(bench.find("new").0.len(), 1);
    drop((boot, new));
    assert_eq!(evict(&bench.cache, 0).unwrap().left, 0);
    assert_eq!(bench.layers(), 0);
}

#[test]
fn the_second_claim_waits_for_the_first() {
    let bench = bench();
    let first = bench.cache.claim(key("boot"), || panic!("nobody else is here")).unwrap();
    std::thread::scope(|scope| {
        let (waiting, waits) = std::sync::mpsc::channel();
        let second = scope.spawn(|| bench.cache.claim(key("boot"), move || waiting.send(()).unwrap()).map(|_| ()));
        waits.recv().unwrap();
        drop(first);
        second.join().unwrap().unwrap();
    });
}
