//! QEMU that is missing, old, dies or speaks another language.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::support::Kiln;
use crate::{STEP, fault, refused, refused_at_once, step};

#[test]
fn h3_a_qemu_that_dies_at_start_is_named_with_its_last_words() {
    refused(fault("dies-at-start").fails(4).stderr_has("exit status 1").stderr_has("could not set up host forwarding"));
}

#[test]
fn h3_a_qemu_that_refuses_its_command_line_says_why() {
    refused(fault("refuses-argv").fails(4).stderr_has("-sandbox: invalid option"));
}

#[test]
fn h3_a_qemu_that_crashes_is_named_with_its_signal() {
    refused(fault("segv").fails(4).stderr_has("SIGSEGV"));
}

#[test]
fn h3_a_qemu_that_crashes_while_the_guest_boots_is_given_a_second_try() {
    let ended = fault("crashes-at-start-1").stderr_has("SIGSEGV").stderr_has("booted once more").run();
    assert_eq!(ended.place().starts(), 2);
    let ended = refused(fault("crashes-at-boot").fails(4).stderr_has("did not boot").stderr_has("SIGSEGV"));
    assert_eq!(ended.place().starts(), 2);
}

#[test]
fn h3_a_qemu_that_crashes_while_a_tested_image_boots_is_given_a_second_try() {
    let kiln = Kiln::new().spec(&format!("{STEP}[[test]]\nrun = 'true'")).build();
    let ended = kiln.fake("clone-crashes-at-start-2").stderr_has("booted once more").run();
    assert_eq!(ended.place().starts(), 3);
}

#[test]
fn h3_a_qemu_that_crashes_when_asked_for_its_version_boots_nothing() {
    refused_at_once(fault("segv-at-version").fails(4).stderr_has("SIGSEGV").stderr_has("help: "));
}

#[test]
fn h3_a_qemu_that_is_too_old_is_told_with_what_to_do() {
    refused_at_once(fault("too-old").fails(4).stderr_has("QEMU 5.2.0").stderr_has("help: "));
}

#[test]
fn h3_a_missing_qemu_is_told_with_what_to_do() {
    let kiln = Kiln::new().spec(STEP).build().env("KILN_QEMU", "/nowhere/qemu-system-x86_64");
    refused_at_once(kiln.fails(4).stderr_has("/nowhere/qemu-system-x86_64").stderr_has("help: "));
}

#[test]
fn h3_a_missing_qemu_is_reported_with_the_package_to_install() {
    let kiln = Kiln::new().spec(STEP).build().env("PATH", "/nowhere").env("KILN_QEMU", "");
    refused_at_once(kiln.fails(4).stderr_has("`qemu-system-x86_64` is not installed").stderr_has("apt-get install"));
}

#[test]
fn h3_a_monitor_that_speaks_another_language_is_quoted() {
    refused(fault("no-monitor").fails(4).stderr_has("monitor").stderr_has("I am no monitor"));
}

#[test]
fn h3_a_silent_monitor_does_not_outlast_the_builds_limit() {
    let kiln = Kiln::new().spec(&format!("{STEP}[build]\ntimeout = '1s'")).build().fake("silent-monitor");
    let ended = refused(kiln.fails(7).stderr_has("`build.timeout`"));
    assert!(ended.took < Duration::from_secs(20), "{:?}", ended.took);
}

#[test]
fn h4_a_qemu_killed_in_a_step_is_named_with_its_signal_and_advice_on_memory() {
    refused(step("killed").fails(4).stderr_has("greet").stderr_has("SIGKILL").stderr_has("`machine.memory`"));
}

#[test]
fn h4_a_qemu_killed_from_outside_ends_the_step_at_once() {
    let live = step("echo waiting; hang").fails(4).stderr_has("SIGKILL").start();
    live.stderr_shows("| waiting");
    kill(live.place().qemu(), Signal::SIGKILL).expect("it runs");
    let began = Instant::now();
    let ended = live.finish();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    ended.place().assert_nothing_published();
}

#[test]
fn h2_an_unasked_stop_is_final() {
    refused(step("stop").fails(4).stderr_has("stopped the guest").stderr_has("accel = \"tcg\""));
}

#[test]
fn h8_a_full_host_disk_is_the_hosts_fault() {
    refused(step("disk-full").fails(4).stderr_has("No space left on device").stderr_has("KILN_CACHE"));
}
