//! The step cache, with the fake QEMU: what runs again after which change, and what happens when the cache is damaged.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
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
    assert_eq!(layers(&first).len(), 4, "the compressed base, the boot and the last two steps");
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
    assert_eq!(cached(&third, "3"), [false; 3], "a step that takes no time leaves no layer");
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

/// Changes what is known of each layer.
fn edit_layers(ended: &Ended, edit: impl Fn(&mut serde_json::Value)) {
    for layer in layers(ended) {
        let path = layer.join("layer.json");
        let mut facts = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut facts);
        fs::write(path, serde_json::to_vec(&facts).unwrap()).unwrap();
    }
}

#[test]
fn a_plan_says_why_a_layer_that_is_there_is_not_used() {
    let first = Kiln::new().spec(STEPS).build().run();
    let kept = |expected: &str| {
        let lines = planned(&first, STEPS);
        assert!(lines.len() == 3 && lines[1..].iter().all(|line| line.ends_with(expected)), "{expected}: {lines:#?}");
    };
    edit_layers(&first, |facts| {
        if let Some(memory) = facts["memory"].as_object_mut() {
            memory["machine"] = "0".repeat(64).into();
        }
    });
    kept("in the cache with the memory of another QEMU, processor or firmware");
    edit_layers(&first, |facts| facts["memory"] = serde_json::Value::Null);
    kept("in the cache without the guest's memory, which the next step may need");
}

#[test]
fn a_plan_tells_a_disk_that_is_not_worth_booting_from_none() {
    let steps = format!("{SECRET}[[step]]\nreboot = true\n[[step]]\nrun = 'echo three'\n");
    let first = Kiln::new().spec(&steps).build().secret("TOKEN", "hunter2hunter2").run();
    edit_layers(&first, |facts| facts["seconds"] = if facts["parent"].is_null() { 100 } else { 0 }.into());
    let plan = first.then(["plan", "."]).secret("TOKEN", "hunter2hunter2");
    plan.stdout_has("reboot: in the cache, but running it again is faster than booting its disk").run();
}

#[test]
fn a_plan_after_a_change_of_the_key_scheme_blames_nothing_else() {
    let first = Kiln::new().spec(STEPS).build().run();
    first.then(["gc", "--keep-cache", "0MiB"]).run();
    let path = first.place().cache().join("plans/web.json");
    let trace = fs::read_to_string(&path).unwrap();
    for other in [trace.replace("kiln-key-", "another-"), trace.replace("\"scheme\":", "\"unknown\":")] {
        fs::write(&path, other).unwrap();
        let lines = planned(&first, STEPS);
        assert!(lines[0].ends_with("changed how cache keys are made"), "{lines:#?}");
        let why = "built last by a version of kiln whose cache keys are made otherwise";
        assert!(lines.len() == 4 && lines[1..].iter().all(|line| line.ends_with(why)), "{lines:#?}");
    }
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
fn a_plan_names_old_results_that_depend_on_a_network() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    for (network, days, notes) in [("user", 8.0, 2), ("user", 6.0, 0), ("none", 8.0, 0)] {
        let first = Kiln::new().machine(&format!("network = '{network}'")).spec(STEPS).build().run();
        let ended = serde_json::json!({ "start": now - days * 86_400.0, "end": now - days * 86_400.0 });
        edit_layers(&first, |facts| {
            facts["during"] = ended.clone();
            for covered in facts["covers"].as_array_mut().into_iter().flatten() {
                covered["during"] = ended.clone();
            }
        });
        let plan = first.then(["plan", "."]).run().stdout;
        let stale = plan.lines().filter(|line| line.contains("is cached from 8 days ago")).count();
        assert_eq!(stale, notes, "{network} {days}: {plan}");
        let plan = first.then(["plan", ".", "--json"]).run().stdout;
        assert_eq!(plan.matches("\"stale_days\": 8").count(), notes, "{plan}");
    }
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
        assert_eq!(cached(&second, "2"), [false; 3], "{what}: its disk alone is not what the guest was");
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
    assert_eq!((restores(&second), cached(&second, "2")), (0, vec![false; 3]));
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
    let first = Kiln::new().spec(steps).build().secret("TOKEN", "hunter2hunter2").run();
    let with_memory = layers(&first).iter().filter(|layer| layer.join("ram").exists()).count();
    assert_eq!((layers(&first).len(), with_memory), (2, 1), "the compressed base and the boot");
}

/// `[secrets]` with a token, and a step that reads it.
const SECRET: &str = "[secrets]\ntoken = { env = 'TOKEN' }\n[[step]]\nrun = 'secret token'\nsecrets = ['token']\n";

#[test]
fn what_a_step_left_in_memory_alone_is_there_for_the_next_one_or_the_step_runs_again() {
    // The fake guest's files live in its memory alone.
    let steps = format!(
        "{SECRET}[[step]]\nwrite = 'from step two'\nto = '/run/state'\n[[step]]\nfetch = '/run/state'\nto = 'one'\n"
    );
    let first = Kiln::new().spec(&steps).build().secret("TOKEN", "hunter2hunter2").run();
    let second = again(&first, "2", &steps.replace("'one'", "'two'")).secret("TOKEN", "hunter2hunter2").run();
    assert_eq!(cached(&second, "2"), [false; 3]);
    let fetched = |version: &str, name: &str| fs::read(second.place().store().join(format!("web/{version}/{name}")));
    assert_eq!(fetched("1", "one").unwrap(), fetched("2", "two").unwrap());
}

#[test]
fn after_a_reboot_a_disk_without_memory_is_gone_on_from() {
    let steps = format!("{SECRET}[[step]]\nreboot = true\n[[step]]\nrun = 'echo three'\n");
    let first = Kiln::new().spec(&steps).build().secret("TOKEN", "hunter2hunter2").run();
    let with_memory = layers(&first).iter().filter(|layer| layer.join("ram").exists()).count();
    assert_eq!((layers(&first).len(), with_memory), (3, 1), "the compressed base, the boot and the reboot");
    let second = again(&first, "2", &steps.replace("three", "four")).secret("TOKEN", "hunter2hunter2").run();
    assert_eq!((restores(&second), cached(&second, "2")), (0, vec![true, true, false]));
    // A machine that was started after the secret was seen may be kept with its memory.
    let with_memory = layers(&second).iter().filter(|layer| layer.join("ram").exists()).count();
    assert_eq!(with_memory, 3, "the first boot, the boot of the disk, and the last step");
}

#[test]
fn the_plan_says_that_nothing_is_kept_after_a_secret() {
    let steps = format!("{SECRET}[[step]]\nrun = 'echo two'\n[[step]]\nreboot = true\n[[step]]\nrun = 'echo four'\n");
    let first = Kiln::new().spec(&steps).build().secret("TOKEN", "hunter2hunter2").run();
    let shorter = steps.replace("[[step]]\nreboot = true\n", "");
    let why = "run echo two: nothing is kept after step 1, which reads a secret, until a `reboot` step";
    first.then(["plan", "."]).spec(&shorter).secret("TOKEN", "hunter2hunter2").stdout_has(why).run();
}

#[test]
fn what_a_step_without_a_layer_fetched_comes_from_the_next_layer() {
    let steps = "[[step]]\nwrite = 'one'\nto = '/one'\n[[step]]\nfetch = '/one'\nto = 'one'\n[[step]]\nrun = 'echo'\n\
                 [[step]]\nfetch = '/one'\nto = 'again'\n[[step]]\nrun = 'echo four'\n";
    let first = Kiln::new().spec(steps).build().run();
    let second = again(&first, "2", &steps.replace("four", "five")).run();
    assert_eq!(cached(&second, "2"), [true, true, true, true, false]);
    let sums =
        |version: &str| fs::read_to_string(second.place().store().join(format!("web/{version}/SHA256SUMS"))).unwrap();
    for name in ["one", "again"] {
        assert!(sums("2").lines().any(|line| line.ends_with(&format!(" {name}"))), "{}", sums("2"));
        let fetched = second.place().store().join(format!("web/2/{name}"));
        assert_eq!(fs::read_to_string(fetched).unwrap(), "one");
    }
}

#[test]
fn a_thousand_steps_build_rebuild_and_plan() {
    let steps = |last: &str| -> String {
        let text = |number| if number == 1000 { last.to_owned() } else { format!("step {number}") };
        (1..=1000).map(|number| format!("[[step]]\nwrite = '{}'\nto = '/f{number}'\n", text(number))).collect()
    };
    let patience = Duration::from_secs(300);
    let first = Kiln::new().spec(&steps("one")).after("ulimit -Sn 256").build().within(patience).run();
    assert!(layers(&first).len() < 100, "{} layers", layers(&first).len());
    let second = again(&first, "2", &steps("two")).after("ulimit -Sn 256").within(patience).run();
    assert_eq!(cached(&second, "2").iter().filter(|cached| **cached).count(), 999);
    let plan = second.then(["plan", "."]).spec(&steps("two")).run();
    assert_eq!(plan.stdout.lines().filter(|line| line.contains("  cached  ")).count(), 1000);
    println!("1,000 steps: {:?} to build, {:?} to build again, {:?} to plan", first.took, second.took, plan.took);
    assert!(plan.took < Duration::from_secs(5), "{:?}", plan.took);
}

#[test]
fn a_chain_of_layers_has_a_limit_and_the_last_step_is_still_all_that_runs() {
    const MOST_LAYERS: usize = 96;
    let patience = Duration::from_secs(300);
    let steps = |appended: usize, last: &str| -> String {
        let appended = (0..appended).map(|number| format!("[[step]]\nrun = 'echo {number}'\n"));
        format!(
            "{}{}[[step]]\nrun = 'echo {last}'\n",
            "[[step]]\nreboot = true\n".repeat(110),
            appended.collect::<String>()
        )
    };
    let mut ended = Kiln::new().spec(&steps(0, "first")).build().within(patience).run();
    assert!(layers(&ended).len() < MOST_LAYERS, "{} layers", layers(&ended).len());
    let mut repeated = 0;
    for build in 1..=8_usize {
        let version = (2 * build).to_string();
        ended = again(&ended, &version, &steps(2 * build, "one")).within(patience).run();
        repeated += usize::from(!cached(&ended, &version)[..100].iter().all(|cached| *cached));
        let version = (2 * build + 1).to_string();
        ended = again(&ended, &version, &steps(2 * build, "two")).within(patience).run();
        let cached = cached(&ended, &version);
        assert!(cached[..cached.len() - 1].iter().all(|cached| *cached), "build {build}: {cached:?}");
    }
    assert_eq!(repeated, 1, "the chain became too long once, and was made shorter");
    let opened = |line: &String| line.strip_prefix("layers ").map(|count| count.parse().unwrap());
    let longest = ended.place().fake_log().iter().filter_map(opened).max();
    assert!(longest.is_some_and(|longest: usize| (MOST_LAYERS - 4..=MOST_LAYERS).contains(&longest)), "{longest:?}");
}

/// The UEFI variable of each machine that was started, but for those that tests and conversions start.
fn uefi_variables(ended: &Ended) -> Vec<String> {
    let value = |line: &String| line.strip_prefix("uefi variable ").map(str::to_owned);
    ended.place().fake_log().iter().filter_map(value).collect()
}

#[test]
fn a_machine_begins_with_the_uefi_variables_of_the_layer_below() {
    let steps =
        |last: &str| format!("[[step]]\nrun = 'uefi one'\n[[step]]\nrun = 'uefi two'\n[[step]]\nrun = 'echo {last}'\n");
    let first = Kiln::new().machine("firmware = 'uefi'").spec(&steps("three")).build().run();
    assert!(!uefi_variables(&first).iter().any(|value| value == "`one`" || value == "`two`"), "the firmware's own");
    let before = uefi_variables(&first).len();
    let second = again(&first, "2", "").machine("firmware = 'uefi'").spec(&steps("four")).run();
    assert_eq!((restores(&second), cached(&second, "2")), (1, vec![true, true, false]));
    assert_eq!(uefi_variables(&second)[before..], ["`two`"]);
    // A disk is booted with them as well.
    let steps = |last: &str| {
        format!(
            "{SECRET}[[step]]\nrun = 'uefi three'\n[[step]]\nreboot = true\n[[step]]\nrun = 'uefi four'\n\
             [[step]]\nrun = 'echo {last}'\n"
        )
    };
    let build = |version: &str, last: &str| {
        let kiln = second.then(["build", ".", "--version", version]).machine("firmware = 'uefi'").spec(&steps(last));
        kiln.secret("TOKEN", "hunter2hunter2").run()
    };
    build("3", "five");
    let before = uefi_variables(&second).len();
    let fourth = build("4", "six");
    assert_eq!(cached(&fourth, "4"), [true, true, true, false, false]);
    assert_eq!(uefi_variables(&fourth)[before..], ["`three`"]);
}

/// A file system of this size in memory, until it is dropped; nothing where only root may mount one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&folder).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "kiln"]).arg(&folder);
        mount.output().is_ok_and(|output| output.status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_checkpoint_does_not_take_the_room_that_the_guest_may_need() {
    let kiln = Kiln::new().machine("disk = '8GiB'").spec(STEPS);
    let Some(_small) = SmallDisk::mount(kiln.place().cache(), "200m") else {
        println!("SKIPPED: only root may mount a small file system");
        return;
    };
    let first = kiln.build().stderr_has("no checkpoints: ").run();
    assert_eq!(first.stderr.matches("no checkpoints").count(), 1, "{}", first.stderr);
    assert!(layers(&first).iter().all(|layer| !layer.join("ram").exists()));
    again(&first, "2", STEPS).machine("disk = '8GiB'").spec(STEPS).run();
}

#[test]
fn half_a_checkpoint_is_gone_before_the_guest_goes_on() {
    let first = Kiln::new().spec(STEPS).fake("half-a-checkpoint").build().stderr_has("no checkpoints: ").run();
    let log = first.place().fake_log();
    assert!(log.iter().any(|line| line == "half a checkpoint"), "{log:?}");
    assert!(!log.iter().any(|line| line == "goes on beside half a checkpoint"), "{log:?}");
    assert!(layers(&first).iter().all(|layer| !layer.join("ram").exists()));
}

#[test]
fn gc_makes_room() {
    let first = Kiln::new().spec(STEPS).build().run();
    first.then(["gc"]).stderr_has("removed 0 layers").run();
    first.then(["gc", "--keep-cache", "0MiB"]).stderr_has("removed 4 layers").run();
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
fn a_plan_says_which_steps_the_last_build_did_not_come_to() {
    let interrupted = |kiln: Kiln, shown: &str| {
        let live = kiln.build().fails(130).start();
        live.stderr_shows(shown);
        live.signal(Signal::SIGINT);
        live.finish()
    };
    let never = "not built yet: the last build ended before this step";
    let ended = interrupted(Kiln::new().fake("never-boots").spec(STEPS), "boot...");
    assert!(planned(&ended, STEPS).iter().all(|line| line.ends_with(never)));
    let steps = format!("{STEPS}[[step]]\nrun = 'hang'\n");
    let ended = interrupted(Kiln::new().spec(&steps), "step 4/4");
    let lines = planned(&ended, &steps);
    assert!(lines[3].ends_with(never) && !lines[..3].iter().any(|line| line.ends_with(never)), "{lines:?}");
    let built = Kiln::new().spec(STEPS).build().run();
    built.then(["gc", "--keep-cache", "0MiB"]).run();
    assert!(planned(&built, STEPS).iter().all(|line| line.ends_with("not in the cache")));
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
    // The first two steps take no time, so nothing was kept between them.
    let early = "/one: not in the cache";
    let early_too = "two: not in the cache";
    let command = "run echo 2: the command changed";
    after(&steps.replace("echo two", "echo 2"), [early, command, "comes after step 2", "comes after step 2"]);
    let variable = "echo two: variable `who` changed";
    after(&steps.replace("world", "moon"), [early, variable, "echo three: variable `who` changed", "after step 2"]);
    let text = "/one: `mode`, the text changed";
    let written = steps.replace("'one'\nto", "'uno'\nmode = '0600'\nto");
    after(&written, [text, "after step 1", "after step 1", "after step 1"]);
    let name = "run = 'echo three'\nenv = { A = 'b' }\nuser = 'web'\ncache = false";
    after(&steps.replace("run = 'echo three'", name), [early, early_too, "three: `cache = false`", "after step 3"]);
    let name = "run = 'echo three'\nenv = { A = 'b' }\nuser = 'web'";
    after(
        &steps.replace("run = 'echo three'", name),
        [early, early_too, "three: `env.A`, `user` changed", "after step 3"],
    );
    fs::write(built.place().join("site/index.html"), "two").unwrap();
    after(&steps, ["/one", "two", "three", "(3B): what is copied changed"]);
    fs::write(built.place().join("site/index.html"), "one").unwrap();
    let other = built.then(["plan", "."]).machine("memory = '2GiB'").spec(&steps);
    other.stdout_has("changed  `machine.memory`").stdout_has("write /one: the machine or its base is another").run();
    built.then(["gc", "--keep-cache", "0MiB"]).run();
    after(&steps, ["not in the cache", "not in the cache", "not in the cache", "not in the cache"]);
}
