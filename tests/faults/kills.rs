//! kiln itself interrupted or killed.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::support::{Kiln, Live, names};
use crate::{ONCE, STEP, TWICE, fault, step};

/// A build in the middle of a step.
fn in_a_step(exit: i32) -> Live {
    let live = step("echo waiting; hang").fails(exit).start();
    live.stderr_shows("| waiting");
    live
}

#[test]
fn h5_a_killed_kiln_leaves_no_process_and_the_next_build_sweeps_up() {
    let live = in_a_step(-9);
    let place = Arc::clone(live.place());
    live.kill();
    assert_eq!(names(&place.cache().join("work")).len(), 1, "the killed build's scratch folder is there");
    assert_eq!(names(&place.store().join(".kiln/tmp")).len(), 1, "and what it had begun in the store");
    place.assert_nothing_published();
    place.kiln().spec(STEP).build().run();
    assert_eq!(place.published(), ["web@1"]);
}

#[test]
fn h5_a_kiln_killed_in_any_stage_leaves_a_sound_store() {
    let spec = format!("{STEP}[[test]]\nrun = 'true'");
    let built = Kiln::new().spec(&spec).build().run();
    let place = built.place();
    for stage in ["base", "boot", "provision", "seal", "shutdown", "convert", "test", "publish"] {
        let live = place.kiln().args(["build", ".", "--version", stage]).start();
        live.stderr_shows(&format!("{stage}..."));
        live.kill();
        // The last stage may have been over by then: a version that is there is whole.
        for image in place.published() {
            built.then(["verify", &image]).start().finish_killed();
        }
        built.then(["list"]).stdout_has("web").start().finish_killed();
    }
    built.then(["build", ".", "--version", "2"]).run();
    assert!(place.published().contains(&"web@2".to_owned()));
}

#[test]
fn h6_one_interrupt_ends_the_build_in_order() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let live = in_a_step(130);
        let began = Instant::now();
        live.signal(signal);
        let ended = live.finish();
        assert!(began.elapsed() < ONCE, "{signal}: {:?}", began.elapsed());
        assert!(ended.stderr.contains("interrupted"), "{}", ended.stderr);
        ended.place().assert_nothing_published();
    }
}

#[test]
fn h6_an_interrupt_ends_a_boot_and_a_silent_monitor() {
    for mode in ["never-boots", "silent-monitor"] {
        let live = fault(mode).fails(130).start();
        live.stderr_shows("boot...");
        let began = Instant::now();
        live.signal(Signal::SIGINT);
        live.finish().place().assert_nothing_published();
        assert!(began.elapsed() < ONCE, "{mode}: {:?}", began.elapsed());
    }
}

#[test]
fn h6_an_interrupt_in_a_test_does_not_blame_the_image() {
    let built = Kiln::new().spec("[[test]]\nrun = 'true'\n").build().run();
    let live = built.then(["test", "web"]).fake("never-boots").fails(130).start();
    thread::sleep(Duration::from_millis(500));
    live.signal(Signal::SIGINT);
    let ended = live.finish();
    assert!(ended.stderr.contains("interrupted") && !ended.stderr.contains("does not boot"), "{}", ended.stderr);
}

#[test]
fn h6_two_interrupts_end_it_at_once() {
    let live = in_a_step(130);
    let place = Arc::clone(live.place());
    let began = Instant::now();
    live.signal(Signal::SIGINT);
    // A signal that is still pending is not counted twice: the second must come after the first was taken.
    thread::sleep(Duration::from_millis(20));
    let _ = kill(live.id(), Signal::SIGINT);
    live.finish_killed();
    assert!(began.elapsed() < TWICE, "{:?}", began.elapsed());
    place.assert_nothing_published();
}

/// Xorshift: the same kills in each run, wherever the machine's speed puts them.
fn roll(seed: &mut u64, sides: u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed % sides
}

/// kiln, or its QEMU, is killed anywhere in a build that makes a new version or replaces the one there is, `KILN_KILLS` times
/// (40 if that is not set). The store holds the image of before or the one of after.
#[test]
fn h5_a_kiln_or_qemu_killed_anywhere_loses_nothing() {
    let wanted = std::env::var("KILN_KILLS").map_or(40, |text| text.parse().expect("KILN_KILLS is a number"));
    let spec = |text: &str| format!("[[step]]\nrun = 'echo {text}'\n[[step]]\nrun = 'echo more'\n");
    let built = Kiln::new().spec(&spec("0")).build().run();
    let (place, whole) = (built.place(), u64::try_from(built.took.as_millis()).expect("a short build"));
    let digest = |version: &str| fs::read(place.store().join("web").join(version).join("manifest.json"));
    let (mut seed, mut before, mut after) = (0x9e37_79b9_7f4a_7c15, 0, 0);
    for number in 0..wanted {
        let (new, replaces) = (format!("n{number}"), roll(&mut seed, 2) == 0);
        let old = digest("1").expect("published");
        let kiln = place.kiln().spec(&spec(&number.to_string()));
        let args: &[&str] = if replaces { &["build", ".", "--replace"] } else { &["build", ".", "--version", &new] };
        let live = kiln.args(args).ends_with(&[0, 4, 6, 7]).start();
        thread::sleep(Duration::from_millis(roll(&mut seed, whole + whole / 4)));
        if roll(&mut seed, 3) > 0 {
            live.kill();
        } else {
            for (id, _) in place.processes().iter().filter(|(_, line)| line.contains("fake_qemu")) {
                // It may have ended by now.
                let _ = kill(*id, Signal::SIGKILL);
            }
            live.finish_killed();
        }
        let done = if replaces { digest("1").expect("never gone") != old } else { digest(&new).is_ok() };
        *(if done { &mut after } else { &mut before }) += 1;
        for image in place.published() {
            built.then(["verify", &image]).start().finish_killed();
        }
    }
    place.kiln().spec(&spec("the end")).args(["build", ".", "--replace"]).run();
    println!("kills: {wanted} tried, {before} before, {after} after, 0 neither, 0 orphans");
    assert_eq!(before + after, wanted);
}

#[test]
fn h6_a_reader_that_goes_away_is_no_error_to_speak_of() {
    let kiln = env!("CARGO_BIN_EXE_kiln");
    // By the time kiln writes, nobody reads.
    let script = "{ sleep 0.3; \"$0\" schema; echo \"ended with $?\" >&2; } | true";
    let output = Command::new("sh").args(["-c", script, kiln]).output().expect("sh runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr, "ended with 0\n");
}
