use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use serde_json::json;

use super::evict::{LayerEviction, evict};
use super::*;
use crate::digest::Sha256Digest;
use crate::fs::testing::crash::{CrashScenario, scratch};
use crate::fs::testing::faults::on_a_small_disk;

struct Bench {
    folder: tempfile::TempDir,
    cache: LayerCache,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), Fs::default()).unwrap();
    Bench { folder, cache }
}

fn cache(folder: &Path, calls: Fs) -> io::Result<LayerCache> {
    LayerCache::open_on(folder, Arc::new(DigestCache::load(folder)), calls)
}

/// Creates a layer with a disk, and memory and a fetched file if it is `large`.
fn make(cache: &LayerCache, name: Name, parent: Option<Name>, large: bool) -> io::Result<()> {
    let below = |file: &str| cache.root.parent().unwrap().join(file);
    let draft = cache.draft()?;
    let (disk, report) = (below("overlay.qcow2"), below("report"));
    for left in [&disk, &report] {
        let _ = fs::remove_file(left);
    }
    cache.fs.put(&disk, &format!("disk of {}", name.key))?;
    draft.take_disk(&disk)?;
    fs::remove_file(&disk)?;
    let (mut memory, mut fetched) = (None, Vec::new());
    if large {
        cache.fs.put(&draft.ram(), "memory")?;
        memory = Some(RecordedMemory { format: "stream".into(), machine: Sha256Digest::of("m"), hello: json!({}) });
        cache.fs.put(&report, "report")?;
        fetched.push(FetchedStream { step: name.key.clone(), stream: report.clone() });
    }
    draft.commit(LayerMetadata { name, parent, seconds: 1.5, during: None, memory, fetched, covers: Vec::new() })
}

fn key(name: &str) -> CacheKey {
    CacheKey::root().then(&json!(name))
}

impl Bench {
    fn make(&self, name: &str, parent: Option<&Stack>, large: bool) -> Stack {
        let parent = parent.map(|parent| parent.top().facts.name.clone());
        let key = key(name);
        let name = Name::new(key);
        make(&self.cache, name.clone(), parent, large).unwrap();
        LayerIndex::read(&self.cache)
            .find(key, &mut |problem| panic!("{problem}"))
            .into_iter()
            .find(|stack| stack.top().facts.name == name)
            .unwrap()
    }

    fn find(&self, name: &str) -> (Vec<Stack>, Vec<UnusableLayerError>) {
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
    assert!(matches!(bench.cache.check_memory(step.top()), Err(UnusableLayerError::Missing)));
    // Another result of the same step is another layer, and the step is still based on the first.
    thread::sleep(Duration::from_millis(10));
    let again = bench.make("boot", None, true);
    let found = bench.find("boot").0;
    assert_eq!(found[0].top().facts.name, again.top().facts.name);
    assert_eq!(found[1].top().facts.name, boot.top().facts.name);
    assert_eq!(bench.find("step").0[0].0[0].facts.name, boot.top().facts.name);
}

#[test]
fn d1_d5_damage_of_any_kind_is_noticed_and_cleared_away() {
    type Damage = fn(&Layer);
    let damages: [(&str, Damage); 7] = [
        ("a changed byte", |layer| {
            File::options().write(true).open(layer.disk()).unwrap().write_all_at(b"x", 3).unwrap();
        }),
        ("a shorter file", |layer| File::options().write(true).open(layer.disk()).unwrap().set_len(3).unwrap()),
        ("no disk", |layer| fs::remove_file(layer.disk()).unwrap()),
        ("no facts", |layer| fs::remove_file(layer.folder.join(FACTS)).unwrap()),
        ("torn facts", |layer| fs::write(layer.folder.join(FACTS), "{").unwrap()),
        ("a changed fetched file", |layer| {
            fs::write(layer.fetched_by(&layer.facts.name.key).unwrap(), "Report").unwrap();
        }),
        ("no fetched file", |layer| fs::remove_file(layer.fetched_by(&layer.facts.name.key).unwrap()).unwrap()),
    ];
    for (what, damage) in damages {
        let bench = bench();
        let boot = bench.make("boot", None, true);
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
    assert!(matches!(bench.cache.check_memory(layer.top()), Err(UnusableLayerError::Damaged { .. })));
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
    assert!(matches!(bench.find("other").1[..], [UnusableLayerError::Damaged { .. }]));
}

#[test]
fn c3_drafts_of_the_dead_go_and_those_of_the_living_stay() {
    let bench = bench();
    let living = bench.cache.draft().unwrap();
    fs::create_dir(bench.cache.root.join("draft-dead")).unwrap();
    LayerCache::open(bench.folder.path(), Arc::new(DigestCache::load(bench.folder.path()))).unwrap();
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
    // All three layers are in use.
    assert_eq!(evict(&bench.cache, 0).unwrap(), LayerEviction { layers: 0, bytes: 0, left: total });
    let left = total - size(&old);
    drop(old);
    // The boot is as old as the other, and yet stays: another layer is based on it.
    assert_eq!(evict(&bench.cache, total - 1).unwrap().left, left);
    assert!(bench.find("old").0.is_empty());
    assert_eq!(bench.find("new").0.len(), 1);
    drop((boot, new));
    assert_eq!(evict(&bench.cache, 0).unwrap().left, 0);
    assert_eq!(bench.layers(), 0);
}

#[test]
fn a_layer_that_lies_on_itself_is_damaged() {
    let bench = bench();
    let Stack(mut layers) = bench.make("boot", None, false);
    let layer = layers.remove(0);
    let (mut facts, folder) = (layer.facts.clone(), layer.folder.clone());
    facts.parent = Some(facts.name.clone());
    fs::write(folder.join(FACTS), serde_json::to_vec(&facts).unwrap()).unwrap();
    let (found, problems) = bench.find("boot");
    assert!(found.is_empty());
    assert!(matches!(problems[..], [UnusableLayerError::Damaged { what: "it lies on itself", .. }]), "{problems:?}");
}

#[test]
fn the_second_claim_waits_for_the_first() {
    let bench = bench();
    let first = bench.cache.claim(key("boot"), || panic!("nobody else is here")).unwrap();
    thread::scope(|scope| {
        let (waiting, waits) = std::sync::mpsc::channel();
        let second = scope.spawn(|| bench.cache.claim(key("boot"), move || waiting.send(()).unwrap()).map(|_| ()));
        waits.recv().unwrap();
        drop(first);
        second.join().unwrap().unwrap();
    });
}

/// Checks the layer `name` on `boot`, and returns what is wrong with it.
fn check_step(folder: &Path, name: &Name, must_be_there: bool) -> Result<(), String> {
    let cache = cache(folder, Fs::default()).map_err(|error| error.to_string())?;
    let mut problems = Vec::new();
    let found = cache.find(key("step"), &mut |problem| problems.push(problem.to_string()));
    if !problems.is_empty() {
        return Err(problems.join(", "));
    }
    let Some(stack) = found.first() else {
        return if must_be_there { Err("the layer is not found".into()) } else { Ok(()) };
    };
    cache.check_memory(stack.top()).map_err(|error| error.to_string())?;
    let is_right = stack.top().facts.name == *name && stack.layers().count() == 2;
    if is_right { Ok(()) } else { Err(format!("found {stack:?}")) }
}

/// Checks that nothing but complete layers is left in the cache.
fn check_litter(folder: &Path) -> Result<(), String> {
    let litter: Vec<_> = fs::read_dir(folder.join("layers"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(DRAFT))
        .collect();
    if litter.is_empty() { Ok(()) } else { Err(format!("litter is left: {litter:?}")) }
}

fn fixed(name: &str) -> Name {
    Name { key: key(name).to_string(), id: "0".into() }
}

#[test]
fn d4_a_layer_is_whole_or_not_found_after_a_power_cut() {
    let (boot, step) = (fixed("boot"), fixed("step"));
    let play = CrashScenario {
        what: "a layer",
        prepare: &|folder| make(&cache(folder, Fs::default()).unwrap(), boot.clone(), None, false).unwrap(),
        act: &|folder, calls| {
            cache(folder, calls.clone()).and_then(|cache| make(&cache, step.clone(), Some(boot.clone()), true)).is_ok()
        },
        clear: &|folder, calls| drop(cache(folder, calls.clone()).unwrap()),
        check: &|folder, is_done| check_step(folder, &step, is_done).and_then(|()| check_litter(folder)),
    };
    play.run();
}

#[test]
fn d4_a_removed_layer_is_whole_or_not_found_after_a_power_cut() {
    let boot = fixed("boot");
    let play = CrashScenario {
        what: "a layer's eviction",
        prepare: &|folder| make(&cache(folder, Fs::default()).unwrap(), boot.clone(), None, true).unwrap(),
        act: &|folder, calls| {
            let evicted = cache(folder, calls.clone()).and_then(|cache| evict(&cache, 0));
            evicted.is_ok_and(|evicted| evicted.layers == 1)
        },
        clear: &|folder, calls| drop(cache(folder, calls.clone()).unwrap()),
        check: &|folder, _| {
            let cache = cache(folder, Fs::default()).unwrap();
            // Files may be missing before their folder is, which the digests show.
            for stack in cache.find(key("boot"), &mut |_| {}) {
                assert!(stack.top().fetched_by(&stack.top().facts.name.key).unwrap().is_file());
            }
            check_litter(folder)
        },
    };
    play.run();
}

#[test]
fn h10_a_layer_that_cannot_be_kept_leaves_nothing() {
    for errno in [Errno::EIO, Errno::ENOSPC, Errno::EDQUOT, Errno::EROFS] {
        let mut failures = 0;
        for calls in 0.. {
            let folder = scratch();
            let cache = cache(folder.path(), Fs::default()).unwrap();
            cache.fs.faults.fail_at(calls, errno);
            let made = make(&cache, fixed("boot"), None, true);
            let found = cache.find(key("boot"), &mut |problem| panic!("{problem}"));
            let Some(failed) = cache.fs.faults.failed() else {
                made.unwrap();
                assert_eq!(found.len(), 1);
                break;
            };
            failures += 1;
            assert_eq!(made.expect_err(&failed).raw_os_error(), Some(errno as i32), "{failed}");
            assert!(found.is_empty(), "{failed}");
            check_litter(folder.path()).expect(&failed);
        }
        assert!(failures > 15, "{failures}");
    }
}

#[test]
fn d6_a_full_disk_does_not_stop_an_eviction() {
    let bench = bench();
    drop(bench.make("boot", None, true));
    bench.cache.fs.faults.fill_disk();
    assert!(bench.cache.draft().is_err());
    assert_eq!(evict(&bench.cache, 0).unwrap().layers, 1);
    assert_eq!(bench.layers(), 0);
}

#[test]
fn d6_room_is_made_on_a_disk_that_really_is_full() {
    on_a_small_disk("layer::tests::d6_room_is_made_on_a_disk_that_really_is_full", |disk| {
        let cache = cache(disk, Fs::default()).unwrap();
        make(&cache, fixed("boot"), None, true).unwrap();
        let filler = File::create(disk.join("filler")).unwrap();
        while io::Write::write(&mut &filler, &[1; 4096]).is_ok() {}
        assert!(make(&cache, fixed("step"), Some(fixed("boot")), true).is_err());
        assert_eq!(evict(&cache, 0).unwrap().layers, 1);
        make(&cache, fixed("boot"), None, true).unwrap();
    });
}

#[test]
fn d5_torn_facts_are_never_believed_and_are_cleared_away() {
    let folder = scratch();
    let cache = cache(folder.path(), Fs::default()).unwrap();
    make(&cache, fixed("boot"), None, true).unwrap();
    let path = cache.root.join(fixed("boot").folder()).join(FACTS);
    let sound = fs::read(&path).unwrap();
    for length in 0..sound.len() {
        for rest in [0, sound.len() - length] {
            fs::write(&path, [&sound[..length], &vec![0; rest]].concat()).unwrap();
            let opened = Layer::open(path.parent().unwrap());
            assert!(
                matches!(opened, Err(UnusableLayerError::Damaged { path: named, .. }) if named == path),
                "{length}"
            );
        }
    }
    let mut problems = 0;
    assert!(cache.find(key("boot"), &mut |_| problems += 1).is_empty());
    assert_eq!((problems, fs::read_dir(&cache.root).unwrap().count()), (1, 0));
}

#[test]
fn c3_no_sweep_takes_a_draft_that_is_just_being_made() {
    let bench = bench();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                DraftFolder::clear_in(&bench.cache.fs, &bench.cache.root, DRAFT).unwrap();
            }
        });
        for _ in 0..2000 {
            let draft = bench.cache.draft();
            let is_there = draft.is_ok_and(|draft| draft.folder.path().is_dir());
            done.store(!is_there, Ordering::Relaxed);
            assert!(is_there);
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn c3_what_is_evicted_is_never_in_use() {
    const TURNS: usize = 200;
    let bench = bench();
    thread::scope(|scope| {
        for name in ["one", "two"] {
            let cache = &bench.cache;
            scope.spawn(move || {
                let folder = tempfile::tempdir().unwrap();
                for _ in 0..TURNS {
                    let disk = folder.path().join("overlay.qcow2");
                    fs::write(&disk, name).unwrap();
                    let draft = cache.draft().unwrap();
                    fs::copy(&disk, draft.disk()).unwrap();
                    let made = LayerMetadata {
                        name: Name::new(key(name)),
                        parent: None,
                        seconds: 0.0,
                        during: None,
                        memory: None,
                        fetched: Vec::new(),
                        covers: Vec::new(),
                    };
                    draft.commit(made).unwrap();
                    for stack in cache.find(key(name), &mut |problem| panic!("{problem}")) {
                        assert_eq!(fs::read_to_string(stack.top().disk()).unwrap(), name);
                    }
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..TURNS {
                    evict(&bench.cache, 0).unwrap();
                    cache(bench.folder.path(), Fs::default()).unwrap();
                }
            });
        }
    });
    evict(&bench.cache, 0).unwrap();
    assert_eq!(bench.layers(), 0);
}

#[test]
fn h13_a_clock_that_jumps_hides_no_layer() {
    let bench = bench();
    let made = [bench.make("boot", None, false), bench.make("boot", None, false)];
    let far = [SystemTime::UNIX_EPOCH, SystemTime::now() + Duration::from_secs(400 * 24 * 3600)];
    for (stack, time) in made.iter().zip(far) {
        File::open(&stack.top().folder).unwrap().set_modified(time).unwrap();
    }
    drop(made);
    let (found, problems) = bench.find("boot");
    assert_eq!((found.len(), problems.len()), (2, 0));
    drop(found);
    assert_eq!(evict(&bench.cache, 0).unwrap().layers, 2);
}
