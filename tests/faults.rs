//! Faults, one test each: the documented exit code in bounded time, one error that says what, where and what to do, and
//! nothing left behind. Rows of the fault table give their names to tests.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use support::{Ended, Kiln, Live, PATIENCE, Place, names, qemu_img};

const STEP: &str = "[[step]]\nname = 'greet'\nrun = 'echo hello'\n";
/// A second under KVM, and what kiln makes of it under software emulation.
const BOOT_TIMEOUT: &str = "boot-timeout = '1s'";
/// What a user may be kept waiting after one Ctrl-C, and after the second.
const ONCE: Duration = Duration::from_secs(5);
const TWICE: Duration = Duration::from_secs(1);

/// A build of one step with this script.
fn step(script: &str) -> Kiln {
    Kiln::new().spec(&format!("[[step]]\nname = 'greet'\nrun = '{script}'\n")).build()
}

/// A build whose QEMU misbehaves.
fn fault(mode: &str) -> Kiln {
    Kiln::new().spec(STEP).build().fake(mode)
}

/// Runs a build that must fail: one error, and nothing in the store.
fn refused(kiln: Kiln) -> Ended {
    let ended = kiln.run();
    assert_eq!(ended.stdout, "", "a failure has no result");
    assert_eq!(ended.errors(), 1, "one error explains it: {}", ended.stderr);
    ended.place().assert_nothing_published();
    ended
}

/// A refused build that never got as far as starting a machine.
fn refused_at_once(kiln: Kiln) -> Ended {
    let ended = refused(kiln);
    assert_eq!(ended.place().starts(), 0, "nothing is booted");
    ended
}

fn fifo(place: &Place) -> PathBuf {
    let path = place.join("gate");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("made");
    path
}

/// Lets a step go on that awaits this FIFO, when it has come so far.
fn open_gate(gate: &Path) {
    let gate = gate.to_owned();
    let (tell, told) = mpsc::channel();
    // Opening waits for the other end: for ever, where the step never runs.
    thread::spawn(move || tell.send(fs::write(gate, "")));
    told.recv_timeout(PATIENCE).expect("the step runs").expect("written");
}

/// Every file below a folder that holds the text, by its name.
fn files_with(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in names(folder) {
        let path = folder.join(name);
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if fs::read(&path).expect("read").windows(text.len()).any(|window| window == text.as_bytes()) {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_build_publishes_and_the_next_one_is_up_to_date() {
    let built = Kiln::new().spec(STEP).build().stderr_has("| hello").run();
    let place = built.place();
    assert_eq!(built.stdout, format!("{}\n", place.store().join("web/1/web-1.qcow2").display()));
    assert_eq!(place.published(), ["web@1"]);
    assert_eq!(place.starts(), 1);
    let log = place.fake_log();
    assert!(log.iter().any(|line| line.starts_with("seal ") && line.contains("machine_id")), "{log:?}");
    assert_eq!(log.last().map(String::as_str), Some("bye"));
    built.then(["build", "."]).stderr_has("up to date").run();
    assert_eq!(place.starts(), 1, "nothing is booted");
}

// QEMU

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
fn h3_a_missing_qemu_img_is_told_with_what_to_do() {
    let kiln = Kiln::new().spec(STEP).build().env("PATH", "/nowhere");
    refused_at_once(kiln.fails(4).stderr_has("`qemu-img` is not installed").stderr_has("apt-get install"));
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

// Boot

#[test]
fn b13_a_base_that_never_speaks_is_given_up_with_what_the_console_showed() {
    let kiln = Kiln::new().machine(BOOT_TIMEOUT).spec(STEP).build().fake("never-boots");
    refused(kiln.fails(6).stderr_has("did not answer within 4s").stderr_has("Linux version").stderr_has("help: "));
}

#[test]
fn b14_a_login_prompt_without_an_agent_hints_at_cloud_init() {
    let kiln = Kiln::new().machine(BOOT_TIMEOUT).spec(STEP).build().fake("login-prompt");
    refused(kiln.fails(6).stderr_has("fake login:").stderr_has("NoCloud"));
}

#[test]
fn b15_a_guest_with_another_seed_is_refused() {
    refused(fault("other-instance").fails(6).stderr_has("i-0123456789").stderr_has("help: "));
}

#[test]
fn g1_noise_on_the_port_before_the_hello_is_thrown_away() {
    assert_eq!(fault("garbage").run().place().published(), ["web@1"]);
}

#[test]
fn g7_an_agent_of_another_build_is_refused() {
    refused(fault("wrong-build").fails(6).stderr_has("another agent").stderr_has("help: "));
}

#[test]
fn g8_a_panic_at_boot_shows_the_console() {
    refused(fault("panics-at-boot").fails(6).stderr_has("panicked").stderr_has("Unable to mount root fs"));
}

#[test]
fn g10_a_boot_loop_is_given_up() {
    refused(fault("boot-loop").fails(6).stderr_has("rebooted"));
}

// Steps

#[test]
fn a_failing_step_is_told_with_name_line_status_last_lines_and_log() {
    let ended = refused(step("echo first; warn the reason; exit 3").fails(7));
    let log = ended.place().cache().join("failed/web-1/build.log");
    for text in ["step 1 `greet`", "kiln.toml:8", "exit status 3", "| the reason", log.to_str().expect("UTF-8")] {
        assert!(ended.stderr.contains(text), "no {text}: {}", ended.stderr);
    }
    let log = fs::read_to_string(log).expect("the log outlives the build");
    assert!(log.contains("the reason"), "{log}");
}

#[test]
fn a_failing_step_shows_its_last_twenty_lines() {
    let lines: Vec<_> = (1..=30).map(|number| format!("echo line-{number:02}")).collect();
    let ended = refused(step(&format!("{}; exit 1", lines.join("; "))).args(["-q"]).fails(7));
    assert!(!ended.stderr.contains("line-10") && ended.stderr.contains("line-11"), "{}", ended.stderr);
    assert!(ended.stderr.contains("line-30"), "{}", ended.stderr);
}

#[test]
fn a_step_killed_by_a_signal_says_which() {
    refused(step("kill 11").fails(7).stderr_has("signal 11"));
}

#[test]
fn a_step_that_cannot_start_says_why() {
    let kiln = Kiln::new().spec("[[step]]\nrun = ['/no/such', 'program']").build();
    refused(kiln.fails(7).stderr_has("/no/such").stderr_has("No such file"));
}

#[test]
fn a_step_past_its_timeout_is_told_with_what_to_do() {
    let kiln = Kiln::new().spec("[[step]]\nname = 'greet'\nrun = 'hang'\ntimeout = '1s'").build();
    let ended = refused(kiln.fails(7).stderr_has("took longer than 1s").stderr_has("larger `timeout`"));
    assert!(ended.took < Duration::from_secs(20), "{:?}", ended.took);
}

#[test]
fn a_build_past_its_limit_ends() {
    let kiln = Kiln::new().spec("[[step]]\nrun = 'hang'\n[build]\ntimeout = '2s'").build();
    refused(kiln.fails(7).stderr_has("`build.timeout`"));
}

#[test]
fn g1_a_garbled_frame_in_a_step_is_the_agents_failure() {
    refused(step("garbage").fails(6).stderr_has("greet").stderr_has("language"));
}

#[test]
fn g1_a_port_dropped_in_the_middle_of_a_frame_is_the_agents_failure() {
    refused(step("half-frame").fails(6).stderr_has("greet").stderr_has("port was closed"));
}

#[test]
fn g3_endless_output_without_a_newline_costs_no_memory() {
    let kiln = Kiln::new();
    let gate = fifo(kiln.place());
    let spec = format!("[[step]]\nrun = 'flood 48'\n[[step]]\nrun = 'await {}; hang'", gate.display());
    let live = kiln.spec(&spec).build().args(["-q"]).fails(130).start();
    open_gate(&gate);
    let peak = live.peak_memory();
    live.signal(Signal::SIGINT);
    live.finish();
    assert!(peak < 64 << 20, "kiln used {} MiB", peak >> 20);
}

#[test]
fn g6_a_guest_that_powers_off_in_a_step_is_no_success() {
    refused(step("poweroff").fails(7).stderr_has("greet").stderr_has("powered itself off"));
}

#[test]
fn g8_a_panic_in_a_step_is_noticed_within_two_seconds() {
    let live = step("echo waiting; panic").fails(7).stderr_has("greet").stderr_has("panicked").start();
    live.stderr_shows("| waiting");
    let began = Instant::now();
    live.finish().place().assert_nothing_published();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn g10_a_reboot_in_a_step_must_be_declared() {
    refused(step("reboot").fails(7).stderr_has("greet").stderr_has("reboot = true"));
}

#[test]
fn g10_a_declared_reboot_goes_on_when_the_agent_is_back() {
    let spec = format!("{STEP}[[step]]\nreboot = true\n[[step]]\nrun = 'echo after'");
    let ended = Kiln::new().spec(&spec).build().stderr_has("| after").run();
    assert!(ended.place().fake_log().contains(&"reboot".to_owned()));
}

#[test]
fn an_agent_that_starts_anew_fails_the_step() {
    refused(step("agent-dies").fails(7).stderr_has("started anew"));
}

#[test]
fn g12_a_full_guest_disk_hints_at_the_disks_size() {
    let kiln = Kiln::new().spec("[[step]]\nwrite = 'x'\nto = '/etc/motd'").build().fake("no-space");
    refused(kiln.fails(7).stderr_has("No space left on device").stderr_has("`disk`"));
    refused(step("warn cp: No space left on device; exit 1").fails(7).stderr_has("`machine.disk`"));
}

// Inputs

#[test]
fn s6_a_missing_source_is_found_before_anything_boots() {
    for text in ["copy = 'nothing'\nto = '/srv/'", "script = 'nothing'"] {
        let kiln = Kiln::new().spec(&format!("[[step]]\n{text}")).build();
        refused_at_once(kiln.fails(3).stderr_has("line 8").stderr_has("nothing").stderr_has("No such file"));
    }
}

#[test]
fn s6_an_input_that_changes_during_the_build_is_not_published() {
    let kiln = Kiln::new().file("data", "one");
    let gate = fifo(kiln.place());
    let wait = format!("[[step]]\nrun = 'await {}'\n", gate.display());
    let live = kiln.spec(&format!("{wait}[[step]]\ncopy = 'data'\nto = '/srv/data'")).build();
    let live = live.fails(5).stderr_has("data changed during the build").start();
    live.stderr_shows("provision");
    fs::write(live.place().join("data"), "two").expect("written");
    open_gate(&gate);
    live.finish().place().assert_nothing_published();
}

#[test]
fn a_missing_base_is_told() {
    let kiln = Kiln::new().spec(STEP);
    fs::remove_file(kiln.place().join("base.qcow2")).expect("removed");
    refused_at_once(kiln.build().fails(5).stderr_has("base.qcow2"));
}

#[test]
fn b1_a_base_with_another_digest_is_told_with_both() {
    let wanted = "0".repeat(64);
    let spec = format!(
        "[image]\nname = 'web'\nversion = '1'\n[base]\nfile = 'base.qcow2'\nsha256 = '{wanted}'\n[machine]\naccel = 'tcg'\n"
    );
    let kiln = Kiln::new().file("kiln.toml", spec);
    let digest = std::process::Command::new("sha256sum").arg(kiln.place().join("base.qcow2")).output().expect("runs");
    let digest = String::from_utf8_lossy(&digest.stdout[..64]).into_owned();
    refused_at_once(kiln.build().fails(5).stderr_has(wanted).stderr_has(digest).stderr_has("base.sha256"));
}

#[test]
fn b2_a_base_with_a_backing_file_is_refused_and_nothing_of_it_is_read() {
    let kiln = Kiln::new().file("canary", "canary ".repeat(200_000)).spec(STEP);
    let (canary, base) = (kiln.place().join("canary"), kiln.place().join("base.qcow2"));
    let paths = [&canary, &base].map(|path| path.to_str().expect("UTF-8"));
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", paths[0], paths[1]]);
    let ended = refused_at_once(kiln.build().fails(5).stderr_has("backing file"));
    for folder in [ended.place().store(), ended.place().cache()] {
        assert_eq!(files_with(&folder, "canary canary"), [""; 0].map(PathBuf::from));
    }
}

// Seal, shutdown, tests

#[test]
fn a_guest_that_cannot_be_sealed_is_not_published() {
    refused(fault("seal-fails").fails(8).stderr_has("sealed").stderr_has("logfiles failed"));
}

#[test]
fn g6_a_guest_that_dies_at_the_goodbye_is_not_published() {
    refused(fault("dies-at-bye").fails(4).stderr_has("SIGKILL"));
}

/// The build's own limit stands for the three minutes that a guest may take to stop its services.
fn never_off(mode: &str) {
    let kiln = Kiln::new().spec(&format!("{STEP}[build]\ntimeout = '4s'")).build().fake(mode);
    let ended = refused(kiln.fails(7).stderr_has("`build.timeout`"));
    assert_eq!(ended.place().fake_log().last().map(String::as_str), Some("bye"));
}

#[test]
fn g11_a_guest_that_does_not_power_off_is_not_published() {
    never_off("ignores-power-off");
}

#[test]
fn g11_a_guest_that_does_not_answer_the_goodbye_is_not_published() {
    never_off("silent-bye");
}

#[test]
fn o6_a_failing_test_keeps_the_image_out_of_the_store() {
    let kiln = Kiln::new().spec("[[test]]\nname = 'answers'\nrun = 'warn nobody there; exit 7'").build();
    let ended =
        refused(kiln.fails(9).stderr_has("test `answers`").stderr_has("kiln.toml:8").stderr_has("nobody there"));
    assert_eq!(ended.place().starts(), 2, "the sealed image was booted");
}

#[test]
fn o6_an_image_that_does_not_boot_again_fails_its_test() {
    let kiln = Kiln::new().machine(BOOT_TIMEOUT).spec("[[test]]\nname = 'answers'\nrun = 'true'").build();
    refused(kiln.fake("clone-never-boots").fails(9).stderr_has("does not boot"));
}

#[test]
fn a_passing_test_is_in_the_manifest() {
    let kiln = Kiln::new().spec("[[test]]\nname = 'answers'\nrun = 'true'").args(["build", ".", "--json"]);
    let ended = kiln.run();
    let manifest: serde_json::Value = serde_json::from_str(&ended.stdout).expect("--json prints the manifest");
    assert_eq!(manifest["tests"][0]["name"], "answers");
    assert_eq!(manifest["image"]["version"], "1");
    let stored = fs::read_to_string(ended.place().store().join("web/1/manifest.json")).expect("published");
    assert_eq!(stored, ended.stdout);
}

// Transfers

#[test]
fn files_go_in_and_come_back() {
    let spec = "[[step]]\ncopy = 'site/'\nto = '/srv/site/'\n[[step]]\nwrite = 'written'\nto = '/etc/motd'\n\
                [[step]]\nrun = 'cat /srv/site/sub/page'\n[[step]]\nscript = 'run.sh'\n\
                [[step]]\nfetch = '/etc/motd'\nto = 'brought/motd'";
    let kiln = Kiln::new().file("site/sub/page", "a page").file("run.sh", "#!/bin/sh\necho from a script\n");
    let ended = kiln.spec(spec).build().stderr_has("| a page").stderr_has("| from a script").run();
    let brought = ended.place().store().join("web/1/brought/motd");
    assert_eq!(fs::read_to_string(brought).expect("fetched"), "written");
    ended.then(["verify", "web"]).stdout_has("ok brought/motd").run();
}

#[test]
fn a_large_copy_goes_over_a_plugged_disk() {
    let large = vec![b'x'; 9 << 20];
    let spec = "[[step]]\ncopy = 'large'\nto = '/srv/large'\n[[step]]\nrun = 'size /srv/large'";
    Kiln::new().file("large", large).spec(spec).build().stderr_has("| 9437184").run();
}

// Interruptions and kills

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

// Secrets

const SECRET: &str = "hunter2-hunter2-hunter2";
const SECRET_SPEC: &str = "[secrets]\ntoken = { env = 'TOKEN' }\n\
                           [[step]]\nname = 'greet'\nrun = 'secret token'\nsecrets = ['token']\n";

#[test]
fn s10_an_unset_secret_is_told_before_anything_boots() {
    let kiln = Kiln::new().spec(SECRET_SPEC).build();
    refused_at_once(kiln.fails(3).stderr_has("`token`").stderr_has("TOKEN"));
}

#[test]
fn o3_a_secret_is_shown_and_kept_nowhere() {
    let ended = Kiln::new().spec(SECRET_SPEC).build().env("TOKEN", SECRET).args(["-v"]).stderr_has("| [secret]").run();
    let failed = ended.place().kiln().file("kiln.toml", {
        let spec = fs::read_to_string(ended.place().join("kiln.toml")).expect("read");
        spec.replace("secret token", "secret token; exit 1")
    });
    let failed = failed.args(["build", ".", "--version", "2"]).env("TOKEN", SECRET).fails(7).run();
    for text in [&ended.stdout, &ended.stderr, &failed.stdout, &failed.stderr] {
        assert!(!text.contains(SECRET), "{text}");
    }
    assert_eq!(files_with(ended.place().path(), SECRET), [""; 0].map(PathBuf::from));
}

// The store

#[test]
fn a_version_of_other_inputs_stays_until_replaced() {
    let built = Kiln::new().spec(STEP).build().run();
    let place = built.place();
    let manifest = || fs::read(place.store().join("web/1/manifest.json")).expect("published");
    let before = manifest();
    let other = || place.kiln().spec("[[step]]\nrun = 'echo other'");
    other().build().fails(8).stderr_has("web@1").stderr_has("--replace").run();
    assert_eq!((manifest() == before, place.starts()), (true, 1), "the old version stays and nothing is booted");
    other().args(["build", ".", "--replace"]).run();
    assert_ne!(manifest(), before);
    assert_eq!(place.published(), ["web@1"]);
}

#[test]
fn a_failed_replacement_leaves_the_old_version() {
    let built = Kiln::new().spec(STEP).build().run();
    let manifest = || fs::read(built.place().store().join("web/1/manifest.json")).expect("published");
    let before = manifest();
    let other = built.place().kiln().spec("[[step]]\nrun = 'exit 1'");
    other.args(["build", ".", "--replace"]).fails(7).run();
    assert_eq!(manifest(), before);
    built.then(["verify", "web@1"]).run();
}

#[test]
fn c1_of_two_builds_of_one_version_the_second_waits_and_is_up_to_date() {
    let kiln = Kiln::new();
    let gate = fifo(kiln.place());
    let first = kiln.spec(&format!("[[step]]\nname = 'greet'\nrun = 'await {}'\n", gate.display())).build().start();
    first.stderr_shows("step 1/1 greet");
    let second = first.place().kiln().build().stderr_has("up to date").start();
    second.stderr_shows("waiting for another kiln that builds web@1");
    open_gate(&gate);
    let first = first.finish();
    assert_eq!(first.stdout, second.finish().stdout);
    assert_eq!((first.place().starts(), first.place().published()), (1, vec!["web@1".to_owned()]));
}

#[test]
fn an_output_folder_gets_the_files_too() {
    let built = Kiln::new().spec(STEP).args(["build", ".", "-o", "out"]).run();
    let place = built.place();
    assert_eq!(built.stdout, "out/web-1.qcow2\n");
    let bytes = |path: &Path| fs::read(path).expect("there");
    assert!(bytes(&place.join("out/web-1.qcow2")) == bytes(&place.store().join("web/1/web-1.qcow2")));
    assert_eq!(place.published(), ["web@1"]);
}

#[test]
fn o1_a_store_that_is_no_folder_is_told() {
    let kiln = Kiln::new().file("store", "not a folder").spec(STEP).build();
    let ended = kiln.fails(8).stderr_has("store").run();
    assert_eq!((ended.place().starts(), ended.errors()), (0, 1));
}

#[test]
fn a_cache_that_cannot_be_made_is_told_with_what_to_do() {
    let kiln = Kiln::new().file("cache", "not a folder").spec(STEP).build();
    refused_at_once(kiln.fails(4).stderr_has("cache").stderr_has("KILN_CACHE"));
}

#[test]
fn h9_a_full_disk_under_the_store_is_told_and_nothing_is_published() {
    // Twelve MiB of base content that compression cannot shrink, and a limit of 8 MiB on files in the place of a full disk.
    let noise = (0..12 << 20_u32).scan(1_u32, |seed, _| {
        *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*seed >> 24) as u8)
    });
    let kiln = Kiln::new().spec("[[output]]\nformat = 'raw'").file("noise", noise.collect::<Vec<u8>>());
    let (noise, base) = (kiln.place().join("noise"), kiln.place().join("base.qcow2"));
    let paths = [&noise, &base].map(|path| path.to_str().expect("UTF-8"));
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", paths[0], paths[1]]);
    let kiln = kiln.build().after("prlimit --pid $$ --fsize=8388608; trap '' XFSZ").fails(4).stderr_has("no space for");
    refused(kiln);
}

#[test]
fn published_files_are_read_only_under_any_umask() {
    for umask in ["umask 077", "umask 000"] {
        let ended = Kiln::new().spec(STEP).build().after(umask).run();
        let mode =
            |name: &str| fs::metadata(ended.place().store().join(name)).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode("web/1"), mode("web/1/web-1.qcow2"), mode("web/1/manifest.json")), (0o755, 0o444, 0o444));
    }
}
