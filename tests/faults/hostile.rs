//! A guest that lies to kiln on purpose: in frames, in trees, in text, about itself. `fake_qemu/hostile.rs` has the lies.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{Kiln, names};
use crate::{fault, fifo, open_gate, refused, step};

/// Most memory that kiln may use, whatever its guest does, bytes.
const MOST_MEMORY: u64 = 64 << 20;

/// Builds that must all fail, at once: kiln waits two seconds to hear whether QEMU is at fault.
fn all_refused(kilns: impl IntoIterator<Item = Kiln>) {
    thread::scope(|scope| kilns.into_iter().for_each(|kiln| drop(scope.spawn(|| refused(kiln)))));
}

/// Builds in whose step the guest says, in turn, what no agent says.
fn saying<'a>(lies: &'a [&str]) -> impl Iterator<Item = Kiln> + 'a {
    lies.iter().map(|what| step(&format!("say {what}")).stderr_has("greet"))
}

#[test]
fn g1_frames_without_a_length_or_with_a_negative_one_are_the_agents_failure() {
    all_refused(saying(&["no-length", "negative-length"]).map(|kiln| kiln.fails(6).stderr_has("language")));
}

#[test]
fn g2_what_is_unknown_replayed_or_out_of_turn_is_the_agents_failure() {
    let lies = ["unknown", "old-nonce", "unasked-pong", "exit-of-another", "done"];
    all_refused(saying(&lies).map(|kiln| kiln.fails(6).stderr_has("language")));
}

#[test]
fn g6_an_exit_that_is_none_is_no_success() {
    let lies = ["exit-status-256", "exit-by-no-way", "bye"];
    all_refused(saying(&lies).map(|kiln| kiln.fails(6).stderr_has("language")));
}

/// Success counts when the step's end, the goodbye and the guest's own power-off have come in this order.
#[test]
fn g6_a_guest_that_claims_success_and_ends_otherwise_is_not_published() {
    all_refused([
        fault("powers-off-after-the-step").ends_with(&[6, 7]).stderr_has("powered itself off"),
        fault("panics-after-bye").fails(6).stderr_has("panicked"),
        fault("ends-after-bye").fails(4).stderr_has("QEMU ended unexpectedly"),
    ]);
}

#[test]
fn g7_another_agent_on_the_port_is_not_taken_for_the_first() {
    refused(step("say another-agent").fails(6).stderr_has("another agent spoke").stderr_has("help: "));
}

/// A build that fetches this hostile tree.
fn fetch(what: &str) -> Kiln {
    Kiln::new().spec(&format!("[[step]]\nname = 'greet'\nfetch = '/hostile/{what}'\nto = 'brought'")).build()
}

/// Where below a folder this name is, links not followed.
fn places(folder: &Path, name: &str) -> Vec<PathBuf> {
    let paths = names(folder).into_iter().map(|name| folder.join(name));
    let found =
        paths.flat_map(|path| if path.is_dir() && !path.is_symlink() { places(&path, name) } else { vec![path] });
    found.filter(|path| path.ends_with(name)).collect()
}

#[test]
fn g5_trees_that_lead_out_or_lie_are_refused() {
    let lies = [
        "path-above",
        "path-through-above",
        "path-of-the-root",
        "path-beyond-4-kib",
        "name-of-256",
        "name-with-nul",
        "link-above",
        "link-to-the-root",
        "file-through-a-link",
        "unknown",
        "same-file-twice",
        "more-than-it-says",
        "larger-than-allowed",
        "nothing-in-it-for-ever",
        "too-many-long-names",
        "another-total",
        "cut",
    ];
    thread::scope(|scope| {
        for what in lies {
            scope.spawn(move || {
                let ended = refused(fetch(what).fails(7).stderr_has("greet").stderr_has("the guest sent"));
                assert_eq!(places(ended.place().path(), "canary"), [""; 0].map(PathBuf::from), "{what} has led out");
            });
        }
    });
    assert!(!Path::new("/etc/canary").exists() && !Path::new("/canary").exists());
}

/// Everything below a folder, by its path: the content of a file, the target of a link.
fn listing(folder: &Path) -> Vec<(PathBuf, String)> {
    let (mut found, mut waiting) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = waiting.pop() {
        for path in names(&folder).into_iter().map(|name| folder.join(name)) {
            let what = if path.is_symlink() {
                format!("-> {}", fs::read_link(&path).expect("a link").display())
            } else if path.is_dir() {
                waiting.push(path.clone());
                "a folder".into()
            } else {
                fs::read_to_string(&path).expect("readable")
            };
            found.push((path, what));
        }
    }
    found.sort();
    let relative = |path: PathBuf| path.strip_prefix(folder).expect("below").to_owned();
    found.into_iter().map(|(path, what)| (relative(path), what)).collect()
}

#[test]
fn a_fetched_tree_is_the_same_from_the_guest_the_cache_and_the_store() {
    let left_out = "not fetched: README: a link to ../../usr/share/doc/README, which leads out";
    let fresh = fetch("links")
        .stderr_has(left_out)
        .stderr_has("not fetched: python")
        .stderr_has("not fetched: pipe: a named pipe");
    let fresh = fresh.stderr_has("not fetched: socket: a socket").stderr_has("not fetched: null: a device").run();
    let again = fresh.then(["build", ".", "--version", "2"]).stderr_has("greet  cached");
    let again = again.stderr_has("not fetched: README").stderr_has("not fetched: null: a device");
    let cached = again.run();
    let version = |number: &str| listing(&cached.place().store().join("web").join(number).join("brought"));
    assert_eq!(version("1"), version("2"));
    let links = ["d/absolute -> ../a", "d/up -> ../a", "lib64 -> d"];
    let shown: Vec<_> = version("1").iter().map(|(path, what)| format!("{} {what}", path.display())).collect();
    assert!(
        links.iter().all(|link| shown.contains(&(*link).to_owned())) && shown.contains(&"empty a folder".into()),
        "{shown:?}"
    );
    assert_eq!(shown.len(), 6, "{shown:?}");
    for image in ["web@1", "web@2"] {
        cached.then(["verify", image]).run();
    }
    let exported = cached.then(["build", ".", "--version", "2", "-o", "out"]).run();
    assert_eq!(listing(&exported.place().join("out/brought")).len(), 5, "all but the empty folder");
    // A link is vouched for by the manifest.
    let link = cached.place().store().join("web/2/brought/lib64");
    fs::remove_file(&link).expect("removed");
    symlink("empty", &link).expect("made");
    cached.then(["verify", "web@2"]).fails(8).stderr_has("brought/lib64 is not the link").run();
}

#[test]
fn a_fetched_tree_of_many_files_needs_few_descriptors() {
    let count = std::env::var("KILN_FETCHED_FILES").map_or(2000, |count| count.parse().expect("a number"));
    let fresh = fetch(&format!("files-{count}")).after("ulimit -n 256").within(Duration::from_secs(600)).run();
    let again = fresh.then(["build", ".", "--version", "2"]).after("ulimit -n 256").stderr_has("greet  cached");
    let again = again.within(Duration::from_secs(600)).run();
    let verified = again.then(["verify", "web@2"]).after("ulimit -n 256").within(Duration::from_secs(600)).run();
    assert_eq!(names(&verified.place().store().join("web/2/brought")).len(), count);
}

#[test]
fn what_the_store_cannot_hold_is_refused_in_the_step() {
    refused(fetch("not-utf-8").fails(7).stderr_has("greet").stderr_has("not UTF-8"));
}

#[test]
fn g5_a_false_count_is_the_agents_failure() {
    refused(fetch("another-count").fails(6).stderr_has("greet").stderr_has("counted other entries"));
}

#[test]
fn g5_a_tree_without_an_end_is_cut_off() {
    refused(fetch("entries-for-ever").fails(7).stderr_has("greet").stderr_has("99000 files, folders and links"));
}

/// The base of these tests is a disk that kiln cannot read, so its guest is asked for its files.
#[test]
fn g5_a_list_of_files_is_believed_only_where_it_makes_sense() {
    let ended = fault("lists").run();
    let manifest = fs::read_to_string(ended.place().store().join("web/1/manifest.json")).unwrap();
    assert!(!manifest.contains("\"content_sha256\": null"), "{manifest}");
    assert!(ended.place().store().join("web/1/files.zst").exists());
    all_refused(["lists-out-of-order", "lists-no-root"].map(|mode| fault(mode).fails(8).stderr_has("is invalid")));
    let ended = fault("list-refused").stderr_has("could not list its files").run();
    let manifest = fs::read_to_string(ended.place().store().join("web/1/manifest.json")).unwrap();
    assert!(manifest.contains("\"content_sha256\": null"), "{manifest}");
}

#[test]
fn g5_setuid_and_sticky_bits_stay_in_the_guest() {
    let ended = fetch("setuid").run();
    let mode = |path| fs::metadata(ended.place().store().join("web/1").join(path)).expect("fetched").mode() & 0o7777;
    assert_eq!(["brought", "brought/d/sticky"].map(mode), [0o755; 2]);
    assert_eq!(mode("brought/d/tool"), 0o444, "as everything in the store");
}

/// Nothing that a terminal obeys, and no line that a CI service takes for a command.
fn assert_harmless(text: &str) {
    assert!(text.contains("set-output"), "the guest's text is not in it: {text}");
    for line in text.lines() {
        assert!(!line.contains(|c: char| c.is_control() && c != '\t' || c == '\u{202e}'), "{line:?}");
        assert!(!line.trim_start().starts_with("::") && !line.contains("##[") && !line.contains("##vso["), "{line:?}");
    }
}

#[test]
fn g4_what_a_step_writes_is_harmless_on_a_terminal_and_to_a_ci_service() {
    let ended = refused(step("obeyed; exit 1").args(["-v"]).fails(7));
    assert_harmless(&ended.stderr);
    let log = ended.place().cache().join("failed/web-1/build.log");
    assert_harmless(&fs::read_to_string(log).expect("kept"));
}

#[test]
fn g4_what_an_agent_or_a_console_says_is_harmless_in_an_error() {
    let kilns = [step("say trouble").fails(6), step("say refusal").fails(7), fault("obeyed-console").fails(6)];
    thread::scope(|scope| {
        for kiln in kilns {
            scope.spawn(|| assert_harmless(&refused(kiln).stderr));
        }
    });
}

#[test]
fn g4_g5_fetched_names_are_shown_harmlessly() {
    let built = fetch("obeyed-names").run();
    for command in ["verify", "inspect"] {
        assert_harmless(&built.then([command, "web"]).run().stdout);
    }
}

#[test]
fn g14_a_guest_with_a_wrong_clock_is_warned_of_and_built() {
    let warns = |mode: &str| fault(mode).run().stderr.lines().find(|line| line.contains("clock")).map(str::to_owned);
    let ahead = warns("clock-ahead");
    assert_eq!(ahead.as_deref(), Some("warning: the guest's clock is 2h ahead of this host's"));
    let behind = warns("clock-of-1970").expect("a warning");
    assert!(behind.starts_with("warning: ") && behind.ends_with("h behind this host's"), "{behind}");
    assert_eq!(warns("clock-a-little-behind"), None);
}

#[test]
fn g3_g5_a_hostile_guest_takes_little_of_the_hosts_memory() {
    let kiln = Kiln::new();
    let gate = fifo(kiln.place());
    let fetch = "[[step]]\nfetch = '/hostile/long-names'\nto = 'brought'\n";
    let gate_step = format!("[[step]]\nrun = 'await {}; hang'\n", gate.display());
    let flood = "[[step]]\nrun = 'flood 16'\n";
    let live = kiln.spec(&format!("{flood}{fetch}{gate_step}")).build().args(["-q"]).fails(130).start();
    open_gate(&gate);
    let peak = live.peak_memory();
    live.signal(Signal::SIGINT);
    live.finish();
    println!("host memory under a hostile guest: {} MiB", peak >> 20);
    assert!(peak < MOST_MEMORY, "kiln used {} MiB", peak >> 20);
}

/// From the fault to kiln's end. Of silence it is the limits' business, which are not waited for here.
#[test]
fn g8_h2_h4_h8_the_end_of_a_machine_is_noticed_within_two_seconds() {
    for (what, script, code) in [
        ("panic", "panic", 7),
        ("QEMU's death", "killed", 4),
        ("KVM internal error", "stop", 4),
        ("full disk of the host", "disk-full", 4),
    ] {
        let live = step(&format!("echo now; {script}")).fails(code).start();
        live.stderr_shows("| now");
        let began = Instant::now();
        let ended = live.finish();
        let took = began.elapsed();
        println!("detected: {what} {:.2} s", took.as_secs_f64());
        assert!(took < Duration::from_secs(2), "{what}: {took:?}");
        ended.place().assert_nothing_published();
    }
}
