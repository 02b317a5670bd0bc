//! What a guest may do in a step, and afterwards: fail, hang, flood, panic, lie about its end.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::Kiln;
use crate::{BOOT_TIMEOUT, STEP, fault, fifo, open_gate, refused, step};

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
    refused(step("kill 11").fails(7).stderr_has("signal 11 (SIGSEGV)"));
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
fn a_step_that_ends_the_agent_is_at_fault_within_seconds() {
    let ended = refused(step("agent-ends").fails(7).stderr_has("greet").stderr_has("ended kiln's agent"));
    assert!(ended.took < Duration::from_secs(20), "{:?}", ended.took);
}

#[test]
fn g12_a_full_guest_disk_hints_at_the_disks_size() {
    let kiln = Kiln::new().spec("[[step]]\nwrite = 'x'\nto = '/etc/motd'").build().fake("no-space");
    refused(kiln.fails(7).stderr_has("No space left on device").stderr_has("`disk`"));
    refused(step("warn cp: No space left on device; exit 1").fails(7).stderr_has("`machine.disk`"));
}

#[test]
fn a_guest_that_cannot_be_sealed_is_not_published() {
    refused(
        fault("seal-fails").fails(8).stderr_has("failed to seal the guest").stderr_has("`logfiles` failed: /var/log"),
    );
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

#[test]
fn g17_an_oom_kill_is_named_with_a_hint() {
    let killed = refused(step("oom tail; kill 9").fails(7).stderr_has("OOM killer").stderr_has("`machine.memory`"));
    assert!(killed.stderr.contains("step 1 `greet`") && killed.stderr.contains("`tail`"), "{}", killed.stderr);
    refused(step("oom cc1plus; exit 137").fails(7).stderr_has("exit status 137").stderr_has("`cc1plus` was killed"));
}

#[test]
fn g18_a_step_that_asks_for_a_reboot_and_returns_is_named_and_not_cached() {
    let spec = "[[step]]\nname = 'asks'\nrun = 'asks-to-stop'\n[[step]]\nname = 'innocent'\nrun = 'echo innocent'";
    let ended =
        refused(Kiln::new().spec(spec).build().fails(7).stderr_has("step 1 `asks`").stderr_has("reboot = true"));
    assert!(!ended.stderr.contains("| innocent"), "{}", ended.stderr);
    ended.then(["plan", ".", "--json"]).stdout_has("\"cached\": false").run();
    // As the last step: before anything is sealed.
    let last = refused(step("asks-to-stop").fails(7).stderr_has("step 1 `greet`"));
    assert!(!last.place().fake_log().iter().any(|line| line.starts_with("seal")));
}

#[test]
fn g18_a_reboot_that_comes_later_is_that_of_the_step_that_asked() {
    let spec = "[[step]]\nname = 'asks'\nrun = 'leaves sh -c reboot'\n\
                [[step]]\nname = 'innocent'\nrun = 'is-turned-off'";
    let ended = refused(Kiln::new().spec(spec).build().fails(7).stderr_has("step 1 `asks`"));
    assert!(ended.stderr.contains("during step 2 `innocent`"), "{}", ended.stderr);
}

#[test]
fn g19_processes_that_steps_left_are_ended_before_sealing() {
    let ended = step("leaves noisy --for ever").stderr_has("`noisy --for ever` (process 77, step 1 `greet`)").run();
    let log = ended.place().fake_log();
    let at = |what: &str| log.iter().position(|line| line.starts_with(what)).expect("logged");
    assert!(at("end processes") < at("seal"), "{log:?}");
}

#[test]
fn g19_file_systems_that_steps_left_mounted_are_named() {
    fault("leaves-mounts").stderr_has("unmounted what steps had left mounted: /tmp/chroot/data").run();
}

#[test]
fn what_a_spec_skips_is_left_out_of_sealing() {
    let ended = Kiln::new().spec(&format!("{STEP}\n[seal]\nskip = ['ssh-hostkeys']")).build().run();
    let log = ended.place().fake_log();
    let sealed = log.iter().find_map(|line| line.strip_prefix("seal ")).expect("sealed");
    assert!(sealed.contains("machine-id") && !sealed.contains("ssh-hostkeys"), "{sealed}");
}

#[test]
fn g16_what_comes_late_is_the_logs_and_not_the_next_steps() {
    let spec = "[[step]]\nname = 'serves'\nrun = 'true'\n[[step]]\nname = 'next'\nrun = 'late tick; exit 3'";
    let ended = refused(Kiln::new().spec(spec).build().fails(7));
    let log = ended.place().cache().join("failed/web-1/build.log");
    let log = fs::read_to_string(log).expect("the log outlives the build");
    assert!(log.contains("step 1 `serves`, after its end: tick"), "{log}");
    assert!(!ended.stderr.contains("tick"), "{}", ended.stderr);
}
