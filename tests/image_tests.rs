//! Tests of sealed images, with the fake QEMU: where each runs, what a failure leaves, and the reports.

mod support;

use std::fs;
use std::path::PathBuf;

use support::{Ended, Kiln};

fn three(second: &str) -> String {
    format!(
        "[[test]]\nname = 'one'\nrun = 'echo first'\n[[test]]\nname = 'two'\nrun = '{second}'\n\
         [[test]]\nname = 'three'\nrun = 'echo third'\n"
    )
}

fn count(ended: &Ended, line: &str) -> usize {
    ended.place().fake_log().iter().filter(|logged| *logged == line).count()
}

fn manifest(ended: &Ended) -> serde_json::Value {
    let text = fs::read(ended.place().store().join("web/1/manifest.json")).expect("published");
    serde_json::from_slice(&text).expect("JSON")
}

fn logs(ended: &Ended) -> PathBuf {
    ended.place().cache().join("failed/web-1/tests/qcow2")
}

#[test]
fn each_test_runs_in_a_clone_of_one_boot() {
    let ended = Kiln::new().spec(&three("echo second")).build().run();
    // The build's own guest, the shared boot, and three clones.
    assert_eq!((ended.place().starts(), count(&ended, "restore")), (5, 3));
    let tests = manifest(&ended)["tests"].clone();
    let names: Vec<&str> = tests.as_array().unwrap().iter().map(|test| test["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["one", "two", "three"]);
    assert!(tests.as_array().unwrap().iter().all(|test| test["ok"] == true && test["format"] == "qcow2"));
}

#[test]
fn one_test_needs_no_clone_and_a_fresh_boot_is_one() {
    let one = Kiln::new().spec("[[test]]\nrun = 'true'").build().run();
    assert_eq!((one.place().starts(), count(&one, "restore")), (2, 0));
    let fresh = three("echo second").replace("name = 'two'", "name = 'two'\nneeds-fresh-boot = true");
    let fresh = Kiln::new().spec(&fresh).build().run();
    assert_eq!((fresh.place().starts(), count(&fresh, "restore")), (5, 2));
}

#[test]
fn each_format_that_qemu_boots_is_tested() {
    let spec = format!("{}[[output]]\nformat = 'raw'\n[[output]]\nformat = 'qcow2'", three("true"));
    let ended = Kiln::new().spec(&spec).build().run();
    let tests = manifest(&ended)["tests"].clone();
    let formats: Vec<&str> = tests.as_array().unwrap().iter().map(|test| test["format"].as_str().unwrap()).collect();
    assert_eq!(formats, ["raw", "raw", "raw", "qcow2"]);
    assert_eq!(tests[3]["name"], "boots from qcow2");
    // What the image was built with is known by the first format; all of it runs on every file if that is asked for.
    let counted = |args: &[&str]| ended.then(args).run().stdout.lines().last().map(str::to_owned);
    assert_eq!(counted(&["test", "web"]).as_deref(), Some("4 of 4 tests passed"));
    assert_eq!(counted(&["test", "web", "--all-formats"]).as_deref(), Some("6 of 6 tests passed"));
}

#[test]
fn all_tests_run_and_those_that_fail_are_told_and_kept() {
    let spec = format!("{}[[test]]\nname = 'four/../x'\nrun = 'exit 4'", three("warn the reason; exit 2"));
    let ended = Kiln::new().spec(&spec).build().fails(9).stderr_has("2 of 4 tests failed: test `two`").run();
    for text in ["kiln.toml:11", "exited with code 2", "`four/../x`", "code 4", "| the reason", "test three"] {
        assert!(ended.stderr.contains(text), "no {text}: {}", ended.stderr);
    }
    ended.place().assert_nothing_published();
    let mut kept: Vec<_> =
        fs::read_dir(logs(&ended)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    kept.sort();
    assert_eq!(kept, ["02-two", "04-four-..-x", "console.log"]);
    assert_eq!(fs::read_to_string(logs(&ended).join("02-two/output.log")).unwrap(), "the reason\n");
    assert!(logs(&ended).join("02-two/journal.log").is_file() && logs(&ended).join("02-two/console.log").is_file());
    assert!(ended.stderr.contains(logs(&ended).join("02-two").to_str().unwrap()), "{}", ended.stderr);
}

#[test]
fn a_failed_test_says_what_to_do_as_a_step_does() {
    let resolving = "warn curl: (6) Could not resolve host: example.org; exit 6";
    let ended = Kiln::new().spec(&three(resolving)).build().fails(9).stderr_has("test `two`").run();
    assert!(ended.stderr.contains("help: the guest has no network card: set `machine.network"), "{}", ended.stderr);
    let missing = three("warn sh: 1: nc: not found; exit 127");
    Kiln::new().spec(&missing).build().fails(9).stderr_has("the guest does not have `nc`").run();
}

#[test]
fn a_test_that_ends_its_guest_fails_and_hurts_no_other() {
    for (second, told) in [("panic", "kernel panicked"), ("poweroff", "powered itself off"), ("agent-dies", "anew")] {
        let ended = Kiln::new().spec(&three(second)).build().fails(9).stderr_has("test `two`").stderr_has(told).run();
        ended.place().assert_nothing_published();
        assert!(!ended.stderr.contains("`one`") && !ended.stderr.contains("`three`"), "{}", ended.stderr);
    }
}

#[test]
fn a_host_that_fails_is_not_the_tests_fault() {
    let ended = Kiln::new().spec(&three("killed")).build().fails(4).stderr_has("SIGKILL").run();
    ended.place().assert_nothing_published();
}

#[test]
fn a_test_is_tried_again_for_as_long_as_it_says() {
    let spec = "[[test]]\nname = 'late'\nrun = 'exit 1'\nretry-for = '1s'";
    let ended = Kiln::new().spec(spec).build().fails(9).stderr_has("exited with code 1, for 1s").run();
    assert!(count(&ended, "step exit 1") >= 2);
}

#[test]
fn a_reboot_comes_before_the_check() {
    let spec = "[[test]]\nname = 'again'\nrun = 'echo back'\nreboot = true";
    let ended = Kiln::new().spec(spec).build().run();
    let log = ended.place().fake_log();
    let at = |line: &str| log.iter().position(|logged| logged == line).expect(line);
    assert!(at("reboot") < at("step echo back"));
}

#[test]
fn tests_that_were_skipped_are_in_the_manifest_and_can_be_run_later() {
    let built = Kiln::new().spec(&three("exit 3")).build().args(["--no-test"]).run();
    let tests = manifest(&built)["tests"].clone();
    assert_eq!((&tests[1]["skipped"], &tests[1]["ok"]), (&true.into(), &false.into()));
    built.then(["inspect", "web"]).stdout_has("NOT RUN two (--no-test)").run();

    let tested = built.then(["test", "web", "--junit", "report.xml"]).fails(9).stdout_has("2 of 3 tests passed").run();
    assert!(tested.stdout.contains("ok      one") && tested.stdout.contains("FAILED  two"), "{}", tested.stdout);
    let report = fs::read_to_string(tested.place().join("report.xml")).unwrap();
    assert!(
        report.contains("tests=\"3\" skipped=\"0\" failures=\"1\"") && report.contains("exited with code 3"),
        "{report}"
    );
    assert!(logs(&tested).join("02-two/output.log").is_file());
    // Somebody else reads it, too: fixtures/reports/validate.
    if let Some(wanted) = std::env::var_os("KILN_REPORT") {
        fs::write(wanted, &report).unwrap();
    }

    // The spec as it is now, against the image as it is in the store.
    built.then(["test", "."]).spec(&three("true")).stdout_has("3 of 3 tests passed").run();
    built.then(["test", "web@1", "--filter", "^t"]).fails(9).stdout_has("1 of 2 tests passed").run();
    built.then(["test", "web", "--filter", "zzz"]).fails(2).stderr_has("the tests are `one`, `two`, `three`").run();
    built.then(["test", "web", "--filter", "(["]).fails(2).run();
    let json = built.then(["test", "web", "--json"]).fails(9).run();
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["tests"][1]["found"], "exited with code 3");
}

#[test]
fn an_image_that_is_not_there_or_has_no_tests_is_told() {
    let built = Kiln::new().spec("").build().run();
    built.then(["test", "web"]).fails(2).stderr_has("web@1 has no tests").run();
    built.then(["test", "wob"]).fails(8).stderr_has("images there are: web").run();
    built.then(["test", ".", "--version", "9"]).fails(8).stderr_has("web").run();
    built.then(["test", "no/such.toml"]).fails(3).run();
    built.then(["test", "web2", "--filter", "a"]).fails(8).stderr_has("did you mean `web`?").run();
    // Nothing is built yet.
    let fresh = Kiln::new().spec("[[test]]\nrun = 'true'");
    let ended = fresh.args(["test", "kiln.toml"]).fails(8).stderr_has("build it first: `kiln build kiln.toml`").run();
    for command in ["run", "test", "inspect"] {
        ended.then([command, "web"]).fails(8).stderr_has("build it first: `kiln build SPEC`").run();
    }
}

#[test]
fn a_run_of_github_actions_gets_annotations_and_a_summary() {
    let built = Kiln::new().spec(&three("exit 3")).build().args(["--no-test"]).run();
    let summary = built.place().join("summary.md");
    let test = built.then(["test", "."]).env("GITHUB_ACTIONS", "true").env("GITHUB_STEP_SUMMARY", &summary).fails(9);
    let ended =
        test.stderr_has("::error file=kiln.toml,line=11,title=web@1%3A two::test `two` exited with code 3").run();
    assert!(!ended.stdout.contains("::error"));
    assert!(fs::read_to_string(summary).unwrap().contains("| **failed** | two | qcow2 |"));
}

#[test]
fn a_build_whose_tests_fail_is_annotated_too() {
    let build = Kiln::new().spec(&three("exit 3")).build().env("GITHUB_ACTIONS", "true").fails(9);
    build.stderr_has("kiln.toml,line=11,title=web@1%3A two::test `two` exited with code 3").run();
}

#[test]
fn tests_that_never_ran_are_not_forgotten() {
    let built = Kiln::new().spec(&three("true")).build().args(["--no-test"]).run();
    let again = built.then(["build", "."]).run();
    assert!(again.stderr.contains("its tests did not run when it was built; `kiln test web@1` runs them"));
    let quiet = built.then(["build", ".", "--no-test"]).run();
    assert!(!quiet.stderr.contains("did not run"), "{}", quiet.stderr);
}

#[test]
fn an_image_that_does_not_boot_is_a_failure_in_the_report() {
    let built = Kiln::new().spec(&three("true")).build().args(["--no-test"]).run();
    fs::write(built.place().join("report.xml"), "<an older one/>").unwrap();
    let test = built.then(["test", "web", "--junit", "report.xml"]).fake("grub-rescue").fails(9);
    let ended = test.stderr_has("does not boot from the qcow2 file").run();
    let report = fs::read_to_string(built.place().join("report.xml")).unwrap();
    assert!(report.contains("failures=\"1\"") && report.contains("does not boot: "), "{report}");
    assert!(ended.stdout.contains("FAILED  boots from qcow2"), "{}", ended.stdout);
}

#[test]
fn what_a_check_found_is_shown_and_the_last_newline_does_not_count() {
    let test =
        |pattern: &str| format!("[[test]]\nname = 'host'\ncommand = 'echo golden'\nstdout-matches = '{pattern}'\n");
    Kiln::new().spec(&test("^golden$")).build().run();
    let wrong = Kiln::new().spec(&test("^silver$")).build().fails(9);
    wrong.stderr_has("wrote `golden`, which does not match `^silver$`").run();
}
