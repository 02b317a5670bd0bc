//! Keys of steps that decide whether and how often a step runs, and what it gets from the host.

use std::time::Duration;

use serde_json::Value as Json;

mod support;

use support::Kiln;
use support::ext4::ext4_image;

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

/// Returns the key of a spec's first step.
fn first_key(kiln: Kiln) -> String {
    let plan = kiln.args(["plan", ".", "--json"]).run();
    let plan: Json = serde_json::from_str(&plan.stdout).expect("JSON");
    plan["steps"][0]["key"].as_str().expect("a key").to_owned()
}

#[test]
fn what_a_copy_leaves_out_is_neither_copied_nor_in_the_key() {
    let spec = "[[step]]\ncopy = 'site/'\nto = '/srv/'\nexclude = ['*.swp', '/cache/']\n\
                [[step]]\nrun = 'cat /srv/page'\n[[step]]\nrun = 'cat /srv/sub/cache/kept'\n";
    let kiln = Kiln::new().file("site/page", "a page").file("site/sub/cache/kept", "kept").file("site/.page.swp", "1");
    let kiln = kiln.file("site/cache/large", "1").file(".kilnignore", "# editors\n*~\n/site/notes\n");
    let kiln = kiln.file("site/page~", "1").file("site/notes", "1").spec(spec);
    let ended = kiln.build().stderr_has("| a page").stderr_has("| kept").run();
    let place = ended.place();
    let before = first_key(place.kiln());
    for name in ["site/.page.swp", "site/cache/large", "site/page~", "site/notes", "site/cache/new"] {
        assert_eq!(first_key(place.kiln().file(name, "2")), before, "{name}");
    }
    assert_ne!(first_key(place.kiln().file("site/sub/notes", "2")), before);
    for absent in ["/srv/.page.swp", "/srv/cache/large", "/srv/page~", "/srv/notes"] {
        let spec = format!("{spec}[[step]]\nrun = 'cat {absent}'\n");
        let kiln = place.kiln().spec(&spec).build().args(["--version", "2"]).fails(7);
        kiln.stderr_has(format!("cat {absent}: not found")).run();
    }
}

#[test]
fn what_a_copy_leaves_out_is_not_read() {
    let spec = "[[step]]\ncopy = 'site/'\nto = '/srv/'\nexclude = ['private', 'pipe', 'device/']\n";
    let kiln =
        Kiln::new().file("site/page", "a page").file("site/private/key", "1").file("site/device/x", "").spec(spec);
    let private = kiln.place().join("site/private");
    // Nobody but root may list it, and root has no need to.
    std::fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o000)).expect("ours");
    nix::unistd::mkfifo(&kiln.place().join("site/pipe"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    let ended = kiln.build().run();
    std::fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    ended.then(["build", "."]).stderr_has("up to date").run();
}

#[test]
fn a_pattern_that_matches_nothing_is_fine_and_one_that_matches_all_is_not() {
    let spec = |copy: &str, exclude: &str| format!("[[step]]\ncopy = '{copy}'\nto = '/srv/'\nexclude = ['{exclude}']");
    let kiln = Kiln::new().file("site/page", "a page").file("vendor/lib/x", "1").file("a.swp", "1");
    let place = std::sync::Arc::clone(kiln.place());
    let check = |spec: &str| place.kiln().spec(spec).args(["check", "."]);
    check(&spec("site/", "*.nothing")).run();
    for (copy, exclude) in [("site/", "*"), ("site", "page"), ("a.swp", "*.swp")] {
        let all = check(&spec(copy, exclude)).fails(3).stderr_has("leave out all of it").stderr_has("kiln.toml:9:8");
        all.run();
    }
    let vendor = |ignored: &str| check(&spec("vendor/lib", "*.swp")).file(".kilnignore", ignored);
    vendor("/lib\nvendor\n!vendor\n").run();
    vendor("vendor/\n").fails(3).stderr_has("leave out all of it").run();
    vendor("a\n[b\n").fails(3).stderr_has(".kilnignore:2: a `[` in the pattern has no `]`").run();
    std::fs::remove_file(place.join(".kilnignore")).expect("there");
    std::os::unix::fs::symlink("/etc/shadow", place.join(".kilnignore")).expect("made");
    check(&spec("site/", "*.swp")).fails(3).stderr_has("it is a symbolic link").run();
}

/// Returns a base image of Debian 12, as far as its os-release goes.
fn debian() -> Vec<u8> {
    let release = b"ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n";
    ext4_image(&[("etc/os-release", &release[..]), ("usr/bin/cloud-init", b"")])
}

#[test]
fn a_step_whose_condition_does_not_hold_is_skipped() {
    let spec = "[vars]\nsite = 'a'\n[[step]]\nname = 'dnf'\nrun = 'exit 3'\nwhen = \"base.os == 'fedora'\"\n\
                [[step]]\nname = 'apt'\nrun = 'echo apt'\nwhen = \"base.os == 'debian' and base.version >= '12'\"\n\
                [[step]]\nname = 'missing'\ncopy = 'missing'\nto = '/srv/'\nwhen = \"vars.site == 'b'\"\n";
    let kiln = Kiln::new().file("base.qcow2", debian()).spec(spec);
    let place = std::sync::Arc::clone(kiln.place());
    kiln.args(["check", "."]).stderr_has("ok").run();
    let plan = place.kiln().args(["plan", "."]).stdout_has("skipped dnf: not base.os == 'fedora'");
    plan.stdout_has("skipped missing: not vars.site == 'b'").run();
    let plan = place.kiln().args(["plan", ".", "--json"]).run();
    let plan: Json = serde_json::from_str(&plan.stdout).expect("JSON");
    assert_eq!((plan["steps"].as_array().map(Vec::len), &plan["steps"][0]["name"]), (Some(1), &"apt".into()));
    assert_eq!((&plan["skipped"][0]["name"], &plan["skipped"][0]["position"]), (&"dnf".into(), &0.into()));
    assert_eq!(plan["skipped"][1]["position"], 1);
    let built = place.kiln().build().args(["--progress", "json"]).stderr_has("\"line\":\"apt\"").run();
    let skipped: Vec<Json> =
        events(&built.stderr).into_iter().filter(|event| event["event"] == "step-skipped").collect();
    assert_eq!((skipped.len(), &skipped[0]["name"], &skipped[1]["verb"]), (2, &"dnf".into(), &"copy".into()));
    // Neither the skipped steps nor the condition of the other are in a key.
    place
        .kiln()
        .spec("[vars]\nsite = 'a'\n[[step]]\nname = 'apt'\nrun = 'echo apt'")
        .build()
        .stderr_has("up to date")
        .run();
    place.kiln().spec(spec).args(["check", ".", "--var", "site=b"]).fails(3).stderr_has("cannot read").run();
}

#[test]
fn a_condition_about_a_base_that_cannot_be_read_is_an_error_with_its_place() {
    let spec = |when: &str| format!("[vars]\nos = 'debian'\n[[step]]\nrun = 'true'\nwhen = \"{when}\"");
    let kiln = Kiln::new().spec(&spec("base.os == 'debian'")).args(["check", "."]).fails(5);
    let ended =
        kiln.stderr_has("kiln.toml:12:8").stderr_has("the condition is about the system of the base image").run();
    ended.place().kiln().spec(&spec("vars.os == 'debian'")).args(["check", "."]).run();
    let empty = ended.place().kiln().file("base.qcow2", ext4_image(&[("etc/fstab", b"")]));
    empty.spec(&spec("base.os == 'debian'")).args(["check", "."]).fails(5).stderr_has("no /etc/os-release").run();
}

#[test]
fn packages_ask_no_questions_unless_the_spec_lets_them() {
    let step = |more: &str| format!("[[step]]\nrun = 'env DEBIAN_FRONTEND'\n{more}");
    Kiln::new().spec(&step("")).build().stderr_has("| noninteractive").run();
    Kiln::new().spec(&step("env = { DEBIAN_FRONTEND = 'readline' }")).build().stderr_has("| readline").run();
    let vars = format!("[vars]\nDEBIAN_FRONTEND = 'teletype'\n{}", step(""));
    Kiln::new().spec(&vars).build().stderr_has("| teletype").run();
    let script = Kiln::new().file("s.sh", "#!/bin/sh\nenv DEBIAN_FRONTEND\n").spec("[[step]]\nscript = 's.sh'");
    script.build().stderr_has("| noninteractive").run();
}

#[test]
fn a_step_gets_the_variables_of_the_host_that_the_user_allows() {
    let spec = "[[step]]\nrun = 'env BUILD'\nenv-from-host = ['BUILD']\n[[step]]\nrun = 'echo other'";
    let kiln = Kiln::new().spec(spec);
    let place = std::sync::Arc::clone(kiln.place());
    let with = |value: &str| place.kiln().env("BUILD", value);
    let refused = with("77").args(["check", "."]).fails(3).stderr_has("kiln.toml:10:18");
    refused.stderr_has("BUILD must not be read by specs").stderr_has("--host-env BUILD").run();
    let secret = with("77").args(["check", ".", "--secret-env", "BUILD"]);
    secret.fails(3).stderr_has("must not be read by specs").run();
    let unset = place.kiln().args(["check", ".", "--host-env", "BUILD"]).fails(3);
    unset.stderr_has("kiln.toml:10:18").stderr_has("BUILD is not set").run();
    with("77").build().args(["--host-env", "BUILD"]).stderr_has("| 77").run();
    let configured = with("77").file("home/.config/kiln/config.toml", "host-env = ['BUILD']\n");
    configured.build().stderr_has("up to date").run();
    assert_ne!(first_key(with("77")), first_key(with("78")), "the value is in the key");
}

#[test]
fn a_variable_of_the_host_that_looks_like_a_secret_is_warned_of() {
    let spec = "[[step]]\nrun = 'true'\nenv-from-host = ['NPM_TOKEN', 'BUILD_URL']";
    let kiln = Kiln::new().spec(spec).env("NPM_TOKEN", "x").env("BUILD_URL", "y");
    let args = ["check", ".", "--host-env", "NPM_TOKEN", "--host-env", "BUILD_URL"];
    let ended = kiln.args(args).stderr_has("NPM_TOKEN of `env-from-host` looks like a secret").run();
    assert!(!ended.stderr.contains("BUILD_URL") && ended.stderr.contains("[secrets]"), "{}", ended.stderr);
    let ended =
        Kiln::new().spec(&spec.replace("'true'", "'true'\nwhen = \"machine.boot == 'direct'\"")).args(args).run();
    assert!(ended.stderr.contains("ok"), "a skipped step needs no variable: {}", ended.stderr);
}
