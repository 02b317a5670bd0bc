//! The step cache, with the fake QEMU: what runs again after which change, and what happens when the cache is damaged.

mod support;

use std::fs;
use std::path::PathBuf;

use support::{Ended, Kiln, fake_qemu};

const STEPS: &str = "[vars]\nwho = 'world'\n[[step]]\nwrite = 'one'\nto = '/one'\n[[step]]\nrun = 'echo two'\n\
                     [[step]]\nrun = 'echo three'\n";

/// Which steps a build took from the cache, by its manifest.
fn cached(ended: &Ended, version: &str) -> Vec<bool> {
    let manifest = fs::read(ended.place().store().join(format!("web/{version}/manifest.json"))).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    manifest["steps"].as_array().unwrap().iter().map(|step| step["cached"].as_bool().unwrap()).collect()
}

/// Builds another version of another spec in the same place.
fn again(before: &Ended, version: &str, steps: &str) -> Kiln {
    before.then(["build", ".", "--version", version]).spec(steps)
}

fn layers(ended: &Ended) -> Vec<PathBuf> {
    let entries = fs::read_dir(ended.place().cache().join("layers")).unwrap();
    let folders = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    folders.collect()
}

fn restores(ended: &Ended) -> usize {
    ended.place().fake_log().iter().filter(|line| *line == "restore").count()
}

#[test]
fn a_changed_last_step_is_all_that_runs() {
    let first = Kiln::new().spec(STEPS).build().run();
    assert_eq!(cached(&first, "1"), [false, false, false]);
    assert_eq!(layers(&first).len(), 5, "the compressed base, the boot and each step");
    let second = again(&first, "2", &STEPS.replace("three", "four")).stderr_has("step 2/3 run echo two  cached").run();
    assert_eq!(cached(&second, "2"), [true, true, false]);
    assert_eq!(restores(&second), 1);
    let ran = |text: &str| second.place().fake_log().iter().filter(|line| line.contains(text)).count();
    assert_eq!((ran("step echo two"), ran("step echo four")), (1, 1));
}

#[test]
fn a_change_runs_everything_after_it() {
    let first = Kiln::new().spec(STEPS).build().run();
    let second = again(&first, "2", &STEPS.replace("'one'", "'ONE'")).run();
    assert_eq!(cached(&second, "2"), [false, false, false]);
    assert_eq!(restores(&second), 1, "the boot is the same");
    // Only commands see the variables.
    let third = again(&second, "3", &STEPS.replace("world", "moon")).run();
    assert_eq!(cached(&third, "3"), [true, false, false]);
    let fourth = again(&third, "4", STEPS).run();
    assert_eq!(cached(&fourth, "4"), [true, true, true]);
}

#[test]
fn another_machine_boots_and_shares_nothing() {
    let first = Kiln::new().spec(STEPS).build().run();
    let second = first.then(["build", ".", "--version", "2"]).machine("memory = '2GiB'").spec(STEPS).run();
    assert_eq!((cached(&second, "2"), restores(&second)), (vec![false; 3], 0));
}

#[test]
fn a_step_that_is_not_to_be_cached_ends_the_caching() {
    let steps = STEPS.replace("run = 'echo two'", "run = 'echo two'\ncache = false");
    let first = Kiln::new().spec(&steps).build().run();
    assert_eq!(layers(&first).len(), 3, "the compressed base, the boot and the step before");
    let second = again(&first, "2", &steps).run();
    assert_eq!(cached(&second, "2"), [true, false, false]);
}

#[test]
fn no_cache_takes_nothing_and_gives_nothing() {
    let first = Kiln::new().spec(STEPS).args(["build", ".", "--no-cache"]).run();
    assert!(!first.place().cache().join("layers").exists());
    let second = again(&first, "2", STEPS).run();
    assert_eq!(cached(&second, "2"), [false; 3]);
    let third = second.then(["build", ".", "--version", "3", "--no-cache"]).run();
    assert_eq!((cached(&third, "3"), restores(&third)), (vec![false; 3], 0));
    // The same version from the same inputs is up to date, unless it is to be replaced.
    third.then(["build", ".", "--version", "3", "--no-cache"]).stderr_has("up to date").run();
    third.then(["build", ".", "--version", "3", "--no-cache", "--replace"]).stderr_has("published").run();
}

#[test]
fn the_plan_says_what_is_cached() {
    let first = Kiln::new().spec(STEPS).build().run();
    let plan = first.then(["plan", "."]).spec(&STEPS.replace("three", "four")).run().stdout;
    let fates: Vec<_> =
        plan.lines().filter(|line| line.starts_with("step ")).map(|line| line.contains(" cached ")).collect();
    assert_eq!(fates, [true, true, false], "{plan}");
}

#[test]
fn memory_that_is_damaged_is_not_used() {
    type Damage = fn(&PathBuf);
    let damages: [(&str, Damage); 3] = [
        ("truncated", |ram| fs::File::options().write(true).open(ram).unwrap().set_len(5).unwrap()),
        ("changed", |ram| fs::write(ram, "the memory of a machine that was two").unwrap()),
        ("gone", |ram| fs::remove_file(ram).unwrap()),
    ];
    for (what, damage) in damages {
        let first = Kiln::new().spec(STEPS).build().run();
        layers(&first).iter().map(|layer| layer.join("ram")).filter(|ram| ram.exists()).for_each(|ram| damage(&ram));
        let second = again(&first, "2", &STEPS.replace("three", "four")).stderr_has("checkpoint is not used").run();
        assert_eq!(restores(&second), 0, "{what}");
        assert_eq!(cached(&second, "2"), [true, true, false], "{what}: the disk is as good as before");
        // What was booted is a checkpoint again.
        let third = again(&second, "3", &STEPS.replace("three", "five")).run();
        assert_eq!((restores(&third), cached(&third, "3")), (1, vec![true, true, false]), "{what}");
    }
}

#[test]
fn memory_of_another_qemu_is_not_used() {
    let first = Kiln::new().spec(STEPS).build().run();
    let other = first.place().join("qemu-system-x86_64");
    fs::copy(fake_qemu(), &other).unwrap();
    let second = again(&first, "2", &STEPS.replace("three", "four")).env("KILN_QEMU", &other);
    let second = second.stderr_has("the checkpoint is another machine's").run();
    assert_eq!((restores(&second), cached(&second, "2")), (0, vec![true, true, false]));
    let third = again(&second, "3", &STEPS.replace("three", "five")).env("KILN_QEMU", &other).run();
    assert_eq!((restores(&third), cached(&third, "3")), (1, vec![true, true, false]));
}

#[test]
fn a_layer_whose_disk_is_damaged_is_made_again() {
    let first = Kiln::new().spec(STEPS).build().run();
    for layer in layers(&first) {
        let disk = layer.join("disk.qcow2");
        let size = fs::metadata(&disk).unwrap().len();
        fs::File::options().write(true).open(disk).unwrap().set_len(size + 1).unwrap();
    }
    let second = again(&first, "2", STEPS).stderr_has("a layer is not used").run();
    assert_eq!(cached(&second, "2"), [false; 3]);
    let third = again(&second, "3", STEPS).run();
    assert_eq!(cached(&third, "3"), [true; 3]);
}

#[test]
fn what_went_before_a_failed_step_stays() {
    let broken = format!("{STEPS}[[step]]\nrun = 'exit 3'\n");
    let first = Kiln::new().spec(&broken).build().fails(7).run();
    let second = again(&first, "2", &broken.replace("exit 3", "echo mended")).run();
    assert_eq!(cached(&second, "2"), [true, true, true, false]);
}

#[test]
fn memory_is_not_kept_once_a_secret_was_seen() {
    let steps = "[secrets]\ntoken = { env = 'TOKEN' }\n[[step]]\nrun = 'echo one'\n\
                 [[step]]\nrun = 'secret token'\nsecrets = ['token']\n[[step]]\nrun = 'echo three'\n";
    let first = Kiln::new().spec(steps).env("TOKEN", "hunter2hunter2").build().run();
    let with_memory = layers(&first).iter().filter(|layer| layer.join("ram").exists()).count();
    assert_eq!((layers(&first).len(), with_memory), (5, 1), "the boot's alone");
}

#[test]
fn gc_makes_room() {
    let first = Kiln::new().spec(STEPS).build().run();
    first.then(["gc"]).stderr_has("removed 0 layers").run();
    first.then(["gc", "--keep-cache", "0MiB"]).stderr_has("removed 5 layers").run();
    assert!(layers(&first).is_empty());
    let second = again(&first, "2", STEPS).run();
    assert_eq!(cached(&second, "2"), [false; 3]);
}

#[test]
fn builds_that_need_the_same_boot_boot_it_once() {
    let first = Kiln::new().spec("[[step]]\nrun = 'echo one'\n");
    let place = first.place().clone();
    let other = place.kiln().args(["build", ".", "--version", "2"]);
    let (one, two) = (first.build().start(), other.start());
    let (one, two) = (one.finish(), two.finish());
    assert_eq!(place.published(), ["web@1", "web@2"]);
    assert!(restores(&one) >= 1, "{:?} {} {}", place.fake_log(), one.stderr, two.stderr);
}

/// The lines of `kiln plan` about the steps, without their keys.
fn planned(before: &Ended, steps: &str) -> Vec<String> {
    let ended = before.then(["plan", "."]).spec(steps).run();
    let lines = ended.stdout.lines().filter(|line| line.starts_with("step ") || line.starts_with("changed "));
    lines.map(|line| line.split_whitespace().filter(|word| word.len() != 12).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn a_plan_says_which_input_changed() {
    let steps = format!("{STEPS}[[step]]\ncopy = 'site'\nto = '/srv'\n");
    let first = Kiln::new().file("site/index.html", "one").spec(&steps);
    let never = first.args(["plan", "."]).stdout_has("write /one: not built before").run();
    let built = never.then(["build", "."]).run();
    let all = planned(&built, &steps);
    assert!(all.iter().all(|line| line.contains("cached")), "{all:?}");
    let after = |steps: &str, expected: [&str; 4]| {
        let lines = planned(&built, steps);
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.ends_with(expected), "`{expected}` in {lines:#?}");
        }
        assert_eq!(lines.len(), 4);
    };
    let command = "run echo 2: the command changed";
    after(&steps.replace("echo two", "echo 2"), ["/one", command, "comes after step 2", "comes after step 2"]);
    let variable = "echo two: variable `who` changed";
    after(&steps.replace("world", "moon"), ["/one", variable, "echo three: variable `who` changed", "after step 2"]);
    let text = "/one: `mode`, the text changed";
    let written = steps.replace("'one'\nto", "'uno'\nmode = '0600'\nto");
    after(&written, [text, "after step 1", "after step 1", "after step 1"]);
    let name = "run = 'echo three'\nenv = { A = 'b' }\nuser = 'web'\ncache = false";
    after(&steps.replace("run = 'echo three'", name), ["/one", "two", "three: `cache = false`", "after step 3"]);
    let name = "run = 'echo three'\nenv = { A = 'b' }\nuser = 'web'";
    after(
        &steps.replace("run = 'echo three'", name),
        ["/one", "two", "three: `env.A`, `user` changed", "after step 3"],
    );
    fs::write(built.place().join("site/index.html"), "two").unwrap();
    after(&steps, ["/one", "two", "three", "(3B): what is copied changed"]);
    fs::write(built.place().join("site/index.html"), "one").unwrap();
    let other = built.then(["plan", "."]).machine("memory = '2GiB'").spec(&steps);
    other.stdout_has("changed  `machine.memory`").stdout_has("write /one: the machine or its base is another").run();
    built.then(["gc", "--keep-cache", "0MiB"]).run();
    after(&steps, ["not in the cache", "not in the cache", "not in the cache", "not in the cache"]);
}
