//! Keys of steps that decide whether and how often a step runs, and what it gets from the host.

use std::time::Duration;

use serde_json::Value as Json;

mod support;

use support::Kiln;

/// Returns the events of a build with `--progress json`.
fn events(stderr: &str) -> Vec<Json> {
    stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn a_step_is_tried_again_until_it_succeeds() {
    let spec = "[[step]]\nname = 'fetch it'\nrun = 'flaky 2; echo done'\nretry = 3";
    let ended = Kiln::new().spec(spec).build().stderr_has("| done").run();
    for line in [
        "warning: step 1/1 fetch it: try 1 of 4 failed with exit status 75; the next one begins in 1.0s",
        "warning: step 1/1 fetch it: try 2 of 4 failed with exit status 75; the next one begins in 2.0s",
    ] {
        assert!(ended.stderr.contains(line), "{}", ended.stderr);
    }
    assert!(!ended.stderr.contains("try 3") && ended.took >= Duration::from_secs(3), "{}", ended.stderr);
}

#[test]
fn a_step_fails_when_its_retries_are_used_up() {
    let spec = "[[step]]\nrun = 'echo a try; flaky 9'\nretry = 1";
    let ended = Kiln::new().spec(spec).build().args(["--progress", "json"]).fails(7).run();
    ended.place().assert_nothing_published();
    let retried: Vec<Json> =
        events(&ended.stderr).into_iter().filter(|event| event["event"] == "step-retried").collect();
    assert_eq!(retried.len(), 1, "{}", ended.stderr);
    assert_eq!(retried[0]["attempt"], 1);
    assert_eq!(retried[0]["attempts"], 2);
    assert_eq!(retried[0]["reason"], "failed with exit status 75");
    assert_eq!(retried[0]["pause"], 1.0);
    assert!(ended.stderr.contains("the last of 2 tries"), "{}", ended.stderr);
    let shown = ended.stderr.lines().filter(|line| line.trim() == "| a try").count();
    assert_eq!(shown, 1, "the error shows the output of the last try alone: {}", ended.stderr);
}

#[test]
fn a_timeout_bounds_each_try() {
    let spec = "[[step]]\nrun = 'hang'\ntimeout = '1s'\nretry = 1";
    let ended = Kiln::new().spec(spec).build().fails(7).stderr_has("try 1 of 2 took longer than 1s").run();
    assert!(ended.took >= Duration::from_secs(3), "{:?}", ended.took);
    assert!(ended.took < Duration::from_secs(25), "{:?}", ended.took);
}

#[test]
fn a_build_timeout_bounds_all_tries() {
    let spec = "[[step]]\nrun = 'flaky 99'\nretry = 99\n[build]\ntimeout = '5s'";
    let ended = Kiln::new().spec(spec).build().fails(7).stderr_has("`build.timeout`").run();
    assert!(ended.took < Duration::from_secs(25), "{:?}", ended.took);
}

#[test]
fn what_another_try_cannot_mend_is_not_tried_again() {
    for (script, code) in [("'poweroff'", 7), ("'agent-ends'", 7), ("'asks-to-stop'", 7), ("['/no/such']", 7)] {
        let kiln = Kiln::new().spec(&format!("[[step]]\nrun = {script}\nretry = 5")).build();
        let ended = kiln.fails(code).run();
        assert!(!ended.stderr.contains("try 1"), "{script}: {}", ended.stderr);
    }
}

#[test]
fn retries_are_not_part_of_the_key() {
    let spec = |retry: u8| format!("[[step]]\nrun = 'echo hello'\nretry = {retry}");
    let built = Kiln::new().spec(&spec(0)).build().run();
    let plan = built.place().kiln().spec(&spec(3)).args(["plan", ".", "--json"]).run();
    let plan: Json = serde_json::from_str(&plan.stdout).expect("JSON");
    assert_eq!(plan["steps"][0]["retry"], 3);
    built.then(["build", "."]).stderr_has("up to date").run();
    assert_eq!(built.place().starts(), 1, "nothing is booted");
}
