//! The command line as its users meet it: help, exit codes, mistakes, and verbs on a published image.

mod support;

use std::fs;
use std::io::pipe;
use std::path::Path;
use std::process::{Command, Stdio};

use support::redact::redact;
use support::{Ended, Kiln, Place};

const VERBS: [&str; 23] = [
    "build",
    "check",
    "plan",
    "shell",
    "run",
    "ps",
    "stop",
    "logs",
    "list",
    "inspect",
    "verify",
    "tag",
    "outdated",
    "remove",
    "gc",
    "export",
    "lock",
    "seal",
    "doctor",
    "init",
    "schema",
    "completions",
    "man",
];
const STEPS: &str = "[vars]\nsite = 'example.org'\n[[step]]\nname = 'greet'\nrun = 'echo hello'\n\
                     [[step]]\ncopy = 'page'\nto = '/srv/'\n[[test]]\nname = 'answers'\nrun = 'true'\n\
                     [[output]]\nformat = 'qcow2'\n[[output]]\nformat = 'raw'\n";

fn kiln<const N: usize>(args: [&str; N]) -> Kiln {
    Kiln::new().args(args)
}

fn published() -> Ended {
    Kiln::new().file("page", "a page").spec(STEPS).build().run()
}

#[test]
fn every_verb_explains_itself() {
    let help = kiln(["--help"]).run().stdout;
    for verb in VERBS {
        assert!(help.contains(&format!("\n  {verb}")), "{verb} is not in the list: {help}");
        let ended = kiln([verb, "--help"]).stdout_has("Usage: kiln").run();
        assert_eq!(ended.stderr, "", "help is a result");
    }
    for verb in ["build", "check", "plan", "run", "ps", "stop", "logs", "inspect", "init", "completions"] {
        kiln([verb, "--help"]).stdout_has("Example:\n  kiln ").run();
    }
}

#[test]
fn mistakes_of_typing_are_exit_2_with_a_suggestion() {
    kiln([]).fails(2).stderr_has("Usage: kiln").run();
    kiln(["biuld"]).fails(2).stderr_has("'build'").run();
    kiln(["build"]).fails(2).stderr_has("SPEC").run();
    kiln(["build", ".", "--replaec"]).fails(2).stderr_has("'--replace'").run();
    kiln(["build", ".", "--var", "novalue"]).fails(2).stderr_has("NAME=VALUE").run();
    kiln(["list", "--progress", "colourful"]).fails(2).stderr_has("plain").run();
    kiln(["list", "-q", "-v"]).fails(2).stderr_has("cannot be used with").run();
    kiln(["completions", "tcsh"]).fails(2).stderr_has("bash").run();
    kiln(["inspect", "We@b"]).fails(2).run();
}

#[test]
fn the_exit_codes_are_listed() {
    let codes = kiln(["help-exit-codes"]).run().stdout;
    let numbers: Vec<_> = codes.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(numbers, ["0", "2", "3", "4", "5", "6", "7", "8", "9", "70", "130"]);
}

#[test]
fn the_version_is_the_packages() {
    assert_eq!(kiln(["--version"]).run().stdout, format!("kiln {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn init_makes_a_spec_that_check_accepts() {
    let made = kiln(["init", "web"]).run();
    assert_eq!(made.stdout, "web/kiln.toml\n");
    let check = || made.then(["check", "web"]);
    check().fails(5).stderr_has("base.qcow2").run();
    fs::copy(made.place().join("base.qcow2"), made.place().join("web/base.qcow2")).expect("copied");
    let checked = check().run();
    assert_eq!(checked.stdout, "", "there is no result but the exit code");
    made.then(["init", "web"]).fails(8).stderr_has("never overwrites").run();
}

#[test]
fn check_looks_at_every_spec() {
    let kiln = Kiln::new().file("one.toml", "[image]\nname = 3\n").file("two.toml", "[[[").spec("");
    let ended = kiln.args(["check", "one.toml", ".", "two.toml", "nowhere"]).fails(3).run();
    for text in ["one.toml:2:8", "two.toml:1:", "nowhere", ".: ok, 0 steps"] {
        assert!(ended.stderr.contains(text), "no {text}: {}", ended.stderr);
    }
    assert_eq!(ended.place().starts(), 0);
}

#[test]
fn a_bad_spec_is_shown_with_a_caret_and_boots_nothing() {
    let ended = Kiln::new().spec("[[step]]\nrunn = 'true'").build().fails(3).stderr_has("`run`").run();
    assert!(ended.stderr.contains("kiln.toml:9:1") && ended.stderr.contains("^^^^"), "{}", ended.stderr);
    assert_eq!(ended.place().starts(), 0);
}

#[test]
fn the_plan_is_what_it_was() {
    let kiln = Kiln::new().file("page", "a page").machine("cpus = 1").spec(STEPS);
    let text = kiln.args(["plan", "."]).run();
    insta::assert_snapshot!("plan-text", redact(&text.stdout, text.place()));
    let json = text.then(["plan", ".", "--json"]).run();
    insta::assert_snapshot!("plan-json", redact(&json.stdout, json.place()));
    assert_eq!(text.place().starts(), 0, "planning boots nothing");
    assert_eq!(support::names(&text.place().store()), [""; 0], "planning writes nothing");
}

#[test]
fn the_plans_keys_are_the_manifests() {
    let built = published();
    let plan = json(&built.then(["plan", ".", "--json"]).run().stdout);
    let manifest = json(&built.then(["inspect", "web", "--json"]).run().stdout);
    assert_eq!(plan["build_key"], manifest["build_key"]);
    assert_eq!(plan["steps"][1]["key"], manifest["steps"][1]["key"]);
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn the_schema_is_the_committed_one() {
    let committed = fs::read_to_string("docs/kiln.schema.json").expect("committed");
    assert!(kiln(["schema"]).run().stdout == committed, "run `kiln schema >docs/kiln.schema.json`");
}

#[test]
fn the_completions_are_valid_bash() {
    let script = kiln(["completions", "bash"]).stdout_has("build").run();
    let path = script.place().join("kiln.bash");
    fs::write(&path, &script.stdout).expect("written");
    let output = Command::new("bash").arg("-n").arg(path).output().expect("bash is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        kiln(["completions", shell]).stdout_has("build").run();
    }
}

#[test]
fn the_manual_is_a_valid_page() {
    let page = kiln(["man"]).stdout_has(".TH kiln").stdout_has(".TH kiln-build").run();
    for verb in VERBS {
        assert!(
            page.stdout.contains(&format!("kiln {verb}")) || page.stdout.contains(&format!("kiln\\-{verb}")),
            "{verb}"
        );
    }
    let path = page.place().join("kiln.1");
    fs::write(&path, &page.stdout).expect("written");
    match Command::new("mandoc").args(["-Tlint", "-W", "error"]).arg(path).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(_) => eprintln!("SKIPPED: mandoc is not installed, so the manual was not checked by it"),
    }
}

#[test]
fn mistakes_in_a_spec_are_annotated_where_github_runs() {
    let kiln = || Kiln::new().spec("[[step]]\nrun = 'true'\ntimeuot = '1s'\n").env("GITHUB_ACTIONS", "true");
    for verb in ["check", "plan", "build"] {
        let ended = kiln().args([verb, "."]).fails(3).run();
        let lines: Vec<_> = ended.stderr.lines().filter(|line| line.starts_with("::error ")).collect();
        assert_eq!(lines.len(), 1, "{}", ended.stderr);
        assert!(lines[0].starts_with("::error file=") && lines[0].contains("kiln.toml,line="), "{lines:?}");
        assert!(lines[0].contains(",col=1,title=spec::") && lines[0].contains("timeuot"), "{lines:?}");
    }
    let failed = Kiln::new().spec("[[step]]\nname = 'it'\nrun = 'exit 3'\n").env("GITHUB_ACTIONS", "true").build();
    failed.fails(7).stderr_has(",title=step 1 `it`::step 1 `it`").run();
}

#[test]
fn seal_names_its_operations() {
    kiln(["seal", "--list"]).stdout_has("machine-id").stdout_has("ssh-hostkeys").run();
}

#[test]
fn doctor_answers_with_a_finding_for_the_fake() {
    let ended = kiln(["doctor"]).stdout_has("10.0.2").run();
    assert_eq!(ended.place().starts(), 0);
}

#[test]
fn a_published_image_can_be_listed_inspected_verified_and_removed() {
    let built = published();
    let folder = built.place().store().join("web/1");
    assert_eq!(
        support::names(&folder),
        [
            "SHA256SUMS",
            "build.log",
            "console.log",
            "disk.chunks",
            "files.zst",
            "manifest.json",
            "provenance.json",
            "sbom.cdx.json",
            "sbom.spdx.json",
            "web-1.qcow2",
            "web-1.raw"
        ]
    );
    built.then(["list"]).stdout_has("web").stdout_has("qcow2,raw").run();
    let listed = json(&built.then(["list", "--json"]).run().stdout);
    assert_eq!(listed[0]["path"], folder.to_str().expect("UTF-8"));
    built.then(["inspect", "web@1"]).stdout_has("greet").run();
    let manifest = json(&built.then(["inspect", "web", "--json"]).run().stdout);
    assert_eq!((&manifest["schema"], &manifest["tests"][0]["ok"]), (&1.into(), &true.into()));
    built.then(["verify", "web"]).stdout_has("ok web-1.qcow2").stdout_has("ok web-1.raw").run();
    let sums = Command::new("sha256sum").args(["-c", "--quiet", "SHA256SUMS"]).current_dir(&folder).status();
    assert!(sums.expect("sha256sum is installed").success());
    built.then(["remove", "web@1"]).run();
    assert_eq!(built.place().published(), [""; 0]);
    built.then(["verify", "web"]).fails(8).stderr_has("web").run();
}

#[test]
fn the_digest_is_that_of_the_disk_in_every_format() {
    let built = published();
    let manifest = json(&built.then(["inspect", "web", "--json"]).run().stdout);
    let raw = built.place().store().join("web/1/web-1.raw");
    let digest = Command::new("sha256sum").arg(raw).output().expect("sha256sum is installed");
    assert_eq!(manifest["disk_sha256"], String::from_utf8_lossy(&digest.stdout[..64]).as_ref());
    let qcow2 = built.place().store().join("web/1/web-1.qcow2");
    let unpacked = built.place().join("unpacked.raw");
    let paths = [&qcow2, &unpacked].map(|path| path.to_str().expect("UTF-8"));
    support::qemu_img(&["convert", "-f", "qcow2", "-O", "raw", paths[0], paths[1]]);
    let digest = Command::new("sha256sum").arg(unpacked).output().expect("sha256sum is installed");
    assert_eq!(manifest["disk_sha256"], String::from_utf8_lossy(&digest.stdout[..64]).as_ref());
}

/// An image without a raw file has the digests of its disk's chunks, which anybody can check, and no digest of the whole.
#[test]
fn the_digest_of_a_disk_is_computed_for_who_asks() {
    let built = Kiln::new().spec("[[output]]\nformat = 'qcow2'\n").build().run();
    let manifest = json(&built.then(["inspect", "web", "--json"]).run().stdout);
    assert!(manifest["disk_sha256"].is_null());
    let folder = built.place().store().join("web/1");
    let sum = |path: &Path| {
        let sum = Command::new("sha256sum").arg(path).output().expect("sha256sum is installed");
        String::from_utf8_lossy(&sum.stdout[..64]).into_owned()
    };
    assert_eq!(manifest["disk_chunks_sha256"], sum(&folder.join("disk.chunks")));
    let (qcow2, raw) = (folder.join("web-1.qcow2"), built.place().join("unpacked.raw"));
    let paths = [&qcow2, &raw].map(|path| path.to_str().expect("UTF-8"));
    support::qemu_img(&["convert", "-f", "qcow2", "-O", "raw", paths[0], paths[1]]);
    let asked = built.then(["inspect", "web", "--disk-sha256"]).run().stdout;
    assert_eq!(asked.trim_end(), sum(&raw));
    let chunks = fs::read_to_string(folder.join("disk.chunks")).expect("published");
    let bytes = fs::read(&raw).expect("converted");
    assert_eq!(chunks.lines().next(), Some(&*format!("kiln chunks 1 disk={} chunk={}", bytes.len(), 4 << 20)));
    let piece = built.place().join("piece");
    for (line, chunk) in chunks.lines().skip(1).zip(bytes.chunks(4 << 20)) {
        fs::write(&piece, chunk).expect("written");
        let is_zero = chunk.iter().all(|byte| *byte == 0);
        assert_eq!(line, if is_zero { "zero".to_owned() } else { sum(&piece) });
    }
    built.then(["verify", "web"]).stdout_has("ok disk.chunks").run();
    let path = folder.join("disk.chunks");
    support::make_writable(&path);
    fs::write(path, chunks.replacen("zero", &"0".repeat(64), 1)).expect("damaged");
    built.then(["verify", "web"]).fails(8).stderr_has("disk.chunks").run();
}

#[test]
fn d1_a_damaged_image_is_named() {
    let built = published();
    let image = built.place().store().join("web/1/web-1.raw");
    support::make_writable(&image);
    let mut bytes = fs::read(&image).expect("published");
    bytes[4096] ^= 1;
    fs::write(image, bytes).expect("damaged");
    built.then(["verify", "web"]).fails(8).stdout_has("ok web-1.qcow2").stderr_has("web-1.raw differs").run();
}

#[test]
fn a_missing_image_is_told_with_what_there_is() {
    let built = published();
    built.then(["inspect", "wbe"]).fails(8).stderr_has("web").run();
    built.then(["inspect", "web@2"]).fails(8).stderr_has("1").run();
}

#[test]
fn progress_as_json_is_an_event_a_line() {
    let ended = Kiln::new().file("page", "a page").spec(STEPS).build().args(["--progress", "json"]).run();
    let events: Vec<_> = ended.stderr.lines().map(json).collect();
    let first = events.iter().find(|event| event["event"] != "notice").expect("there are events");
    assert_eq!(first["event"], "build-started");
    assert_eq!(events[events.len() - 1]["event"], "build-finished");
    assert!(events.iter().any(|event| event["event"] == "step-output" && event["line"] == "hello"));
}

#[test]
fn quiet_is_silent_where_all_is_well() {
    let ended = Kiln::new().file("page", "a page").spec(STEPS).build().args(["-q"]).run();
    assert_eq!(ended.stderr, "");
}

#[test]
fn h6_a_reader_that_has_gone_away_is_no_failure() {
    for args in [["schema", "--quiet"], ["man", "--quiet"], ["completions", "bash"]] {
        let (reader, writer) = pipe().expect("a pipe");
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_kiln")).args(args).stdout(writer).stderr(Stdio::piped()).output();
        let output = output.expect("kiln runs");
        assert!(output.status.success(), "{args:?}: {}", output.status);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
}

#[test]
fn h14_without_a_home_the_folders_must_be_named() {
    let homeless = |kiln: Kiln| kiln.without_env("HOME").without_env("KILN_STORE").without_env("KILN_CACHE");
    homeless(kiln(["list"])).fails(4).stderr_has("--store").run();
    let ended = homeless(Kiln::new().file("page", "").spec(STEPS)).args(["build", ".", "--store", "store"]);
    ended.fails(4).stderr_has("--cache").run();
    let ended = homeless(Kiln::new().file("page", "").spec(STEPS));
    ended.args(["build", ".", "--store", "store", "--cache", "cache"]).run();
}

#[test]
fn h14_xdg_folders_are_used() {
    let kiln = Kiln::new().file("page", "").spec(STEPS).without_env("KILN_STORE").without_env("KILN_CACHE");
    let (data, cache) = (kiln.place().join("data"), kiln.place().join("xdg-cache"));
    let ended = kiln.env("XDG_DATA_HOME", &data).env("XDG_CACHE_HOME", &cache).build().run();
    assert!(ended.stdout.starts_with(data.join("kiln/store").to_str().expect("UTF-8")), "{}", ended.stdout);
    assert_eq!(support::names(&cache), ["kiln"]);
}

/// What does not change with the surroundings: the disk, its file and the key.
fn result(place: &Place) -> (Vec<u8>, serde_json::Value) {
    let folder = place.store().join("web/1");
    let manifest = json(&fs::read_to_string(folder.join("manifest.json")).expect("published"));
    (fs::read(folder.join("web-1.qcow2")).expect("published"), manifest["build_key"].clone())
}

#[test]
fn h14_surroundings_do_not_change_the_image() {
    let build = |change: &dyn Fn(Kiln) -> Kiln| {
        let ended = change(Kiln::new().file("page", "a page").spec(STEPS).build()).run();
        assert!(!ended.stderr.contains('\x1b'), "escapes without a terminal: {}", ended.stderr);
        result(ended.place())
    };
    let usual = build(&|kiln| kiln);
    let others: [&dyn Fn(Kiln) -> Kiln; 5] = [
        &|kiln| kiln.after("umask 077"),
        &|kiln| kiln.after("umask 000"),
        &|kiln| kiln.env("TERM", "dumb").env("LANG", "tr_TR.UTF-8").env("TZ", "Pacific/Kiritimati"),
        &|kiln| kiln.env("NO_COLOR", "1").args(["--progress", "bars"]),
        &|kiln| kiln.without_env("HOME").env("LC_ALL", "xx_XX"),
    ];
    for (index, other) in others.iter().enumerate() {
        assert!(build(other) == usual, "surroundings {index} change the image");
    }
}

/// The schema is libvirt's own.
#[test]
fn a_domain_is_what_libvirt_expects() {
    let built = published();
    built.then(["export", "web", "--libvirt", "-o", "vm"]).stdout_has("/vm/web-1.xml").run();
    built.then(["export", "web"]).fails(2).stderr_has("--libvirt").run();
    let domain = built.place().join("vm/web-1.xml");
    match Command::new("virt-xml-validate").arg(&domain).arg("domain").output() {
        Ok(told) => assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr)),
        Err(error) => eprintln!("SKIPPED: virt-xml-validate: {error} (scripts/setup installs libvirt-clients)"),
    }
}

#[test]
fn all_that_is_wrong_with_files_is_shown_at_once_with_its_place() {
    let steps = "[[step]]\ncopy = 'nofile'\nto = '/srv/'\n[[step]]\nscript = \"nope.sh\"\n";
    let wrong = Kiln::new().spec(steps).args(["check", "."]).fails(3).run();
    for place in ["kiln.toml:9:8", "kiln.toml:12:10", "^^^^^^^^", "nofile", "nope.sh", "has 2 errors"] {
        assert!(wrong.stderr.contains(place), "no {place}: {}", wrong.stderr);
    }
    fs::remove_file(wrong.place().join("base.qcow2")).expect("there");
    for verb in ["check", "build", "plan"] {
        let wrong = wrong.then([verb, "."]).fails(3).stderr_has("kiln.toml:5:8").stderr_has("kiln.toml:12:10").run();
        assert!(wrong.stderr.contains("has 3 errors") && wrong.stderr.contains("help: "), "{}", wrong.stderr);
    }
}

#[test]
fn what_is_outside_of_the_project_is_shown_at_once_with_its_place() {
    let rest = "[secrets]\nkey = { file = '../key' }\n[[step]]\ncopy = '/etc/hostname'\nto = '/srv/'\n\
                [[step]]\nscript = \"nope.sh\"\n[[step]]\nrun = 'true'\nsecrets = ['key']\n";
    let head = "[image]\nname = 'web'\nversion = '1'\n[base]\nfile = '/dev/zero'\n";
    let kiln = Kiln::new().file("key", "").file("sub/kiln.toml", format!("{head}{rest}"));
    for verb in ["check", "build", "plan"] {
        let wrong = kiln.place().kiln().args([verb, "sub"]).fails(3).run();
        for place in ["kiln.toml:5:8", "kiln.toml:7:16", "kiln.toml:9:8", "kiln.toml:12:10", "has 4 errors"] {
            assert!(wrong.stderr.contains(place), "no {place}: {}", wrong.stderr);
        }
        assert!(wrong.stderr.contains("--allow-outside") && wrong.stderr.contains("not a regular file"), "{verb}");
    }
}

#[test]
fn a_log_counts_steps_as_the_terminal_does() {
    let built = Kiln::new().spec(&"[[step]]\nrun = 'true'\n".repeat(3)).build().stderr_has("step 1/3").run();
    let log = fs::read_to_string(built.place().join("store/web/1/build.log")).expect("published");
    assert!(log.contains("step 1/3") && log.contains("step 3/3") && !log.contains("step 1/1"), "{log}");
}

#[test]
fn a_wrong_base_says_what_it_is_and_what_to_write() {
    let base = |content: &[u8]| Kiln::new().spec("").file("base.qcow2", content).args(["check", "."]).fails(5);
    let mut disk = vec![0; 1 << 20];
    disk[510..512].copy_from_slice(b"\x55\xaa");
    base(&disk).stderr_has("a raw disk").stderr_has("write format = \"raw\"").stderr_has("kiln.toml:5:8").run();
    base(b"<!DOCTYPE html><title>404</title>").stderr_has("a web page").stderr_has("compare its checksum").run();
    base(b"hello\n").stderr_has("a text file").run();
    let missing = Kiln::new().spec("").after("rm base.qcow2").args(["check", "."]);
    missing.fails(5).stderr_has("No such file").stderr_has("`url`").stderr_has("kiln.toml:5:8").run();
}

#[test]
fn every_error_of_several_specs_names_its_spec() {
    let wrong = |name: &str| {
        format!("[image]\nname = '{name}'\nversion = '1'\n[base]\nfile = '../base.qcow2'\n[[step]]\nscript = 'no.sh'\n")
    };
    let kiln = Kiln::new().file("multi/a/kiln.toml", wrong("a")).file("multi/b/kiln.toml", wrong("b"));
    let kiln = kiln.args(["check", "multi", "--allow-outside"]).fails(3);
    kiln.stderr_has("multi/a/kiln.toml:7:10").stderr_has("multi/b/kiln.toml:7:10").run();
}

#[test]
fn a_check_a_plan_and_an_image_that_is_up_to_date_need_no_qemu() {
    let built = published();
    let without = |args: &[&str]| built.then(args).env("KILN_QEMU", "/nowhere/qemu-system-x86_64");
    without(&["check", "."]).run();
    without(&["plan", "."]).stdout_has("note     this host has no QEMU").run();
    without(&["build", "."]).stderr_has("up to date").run();
    without(&["build", ".", "--version", "2"]).fails(4).stderr_has("/nowhere/qemu-system-x86_64").run();
    without(&["shell", "."]).fails(4).stderr_has("/nowhere/qemu-system-x86_64").run();
}

#[test]
fn the_cache_can_be_rehearsed_without_versions() {
    let built = published();
    let rehearsed = built.then(["gc", "--dry-run", "--keep-cache", "1B"]).stderr_has("would remove").run();
    assert!(!rehearsed.stderr.contains("would remove 0 layers"), "{}", rehearsed.stderr);
    built.then(["gc", "--dry-run"]).stderr_has("would remove 0 layers").run();
    let failed = built.place().cache().join("failed/web-1");
    fs::create_dir_all(&failed).expect("made");
    built.then(["gc"]).run();
    assert!(!failed.exists(), "the version has been published since");
}

#[test]
fn a_folder_that_wins_over_an_image_is_named() {
    let built = published();
    let spec = fs::read_to_string(built.place().join("kiln.toml")).expect("written");
    let spec = spec.replace("base.qcow2", "../base.qcow2").replace("'page'", "'../page'").replace("'1'", "'0.1.0'");
    let kiln = built.then(["test", "web"]).file("web/kiln.toml", spec).fails(8);
    kiln.stderr_has("`web` is read as the spec web/kiln.toml; the image is `web@1`").run();
}

#[test]
fn a_usage_line_names_what_is_typed_and_not_the_environment() {
    let usage = kiln(["shell"]).fails(2).run();
    assert!(usage.stderr.contains("Usage: kiln shell") && !usage.stderr.contains("--store"), "{}", usage.stderr);
    kiln(["export", "web", "--external", "-o", "x"]).fails(2).stderr_has("cannot be used with").run();
}

#[test]
fn help_is_wrapped_once_and_shows_the_commands_own_options_first() {
    for verb in VERBS.iter().filter(|verb| !["seal", "schema", "man"].contains(*verb)) {
        let help = kiln([*verb, "--help"]).run().stdout;
        let global = help.find("\nGlobal options:").unwrap_or_else(|| panic!("{help}"));
        assert!(help.find("--store").is_some_and(|store| store > global), "{help}");
        let own = help.find("\nOptions:").or_else(|| help.find("\nArguments:"));
        assert!(own.is_none_or(|own| own < global), "{help}");
    }
    let help = kiln(["gc", "--help"]).run().stdout;
    let paragraph = help.split("\n\n").find(|paragraph| paragraph.starts_with("Without --keep")).expect("there");
    let lines: Vec<&str> = paragraph.lines().collect();
    assert!(lines[..lines.len() - 1].iter().all(|line| line.len() > 70), "{paragraph}");
}

#[test]
fn a_run_without_a_key_says_that_nobody_can_log_in() {
    let built = published();
    built.then(["run", "web"]).stderr_has("nobody can log in").stderr_has("`kiln run web --ssh` makes a key").run();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let key = built.then(["run", "web", "--ssh", &port]).file("home/.ssh/id.pub", "ssh-ed25519 AAAA me@here\n");
    key.stderr_has(format!("ssh -F none -p {port} ")).stderr_has("USER@127.0.0.1").run();
}

#[test]
fn a_step_without_a_network_says_what_to_set() {
    let step = "[[step]]\nrun = \"warn   Temporary failure resolving 'deb.debian.org'; warn E: Unable to locate package nginx; exit 100\"\n";
    Kiln::new().spec(step).build().fails(7).stderr_has("machine.network = \"user\"").run();
    Kiln::new().machine("network = 'user'").spec(step).build().fails(7).stderr_has("did not reach that host").run();
    let command = "[[step]]\nrun = 'warn sh: 1: jq: not found; exit 127'\n";
    Kiln::new().spec(command).build().fails(7).stderr_has("install the package `jq`").run();
}

/// The commands that take specs, without one.
const WITHOUT_SPEC: [&[&str]; 5] = [&["check"], &["plan"], &["build"], &["test"], &["lock"]];

#[test]
fn a_command_without_a_spec_takes_the_folder_that_it_runs_in() {
    let built = Kiln::new().spec("[[test]]\nname = 'answers'\nrun = 'true'").args(["build"]).run();
    assert_eq!(built.place().published(), ["web@1"]);
    for command in WITHOUT_SPEC {
        built.then(command).run();
    }
    built.then(["test"]).stdout_has("answers").run();
    built.then(["plan"]).stdout_has("web@1").run();
}

#[test]
fn a_command_without_a_spec_and_without_a_kiln_toml_is_a_usage_error() {
    for command in WITHOUT_SPEC {
        let ended = Kiln::new().file("sub/kiln.toml", "").args(command).fails(2).stderr_has("no SPEC is named").run();
        assert!(ended.stderr.contains("kiln.toml") && ended.errors() == 1, "{command:?}: {}", ended.stderr);
    }
}

#[test]
fn checks_plans_and_builds_that_are_up_to_date_need_no_qemu_on_the_path() {
    let built = Kiln::new().spec("[[step]]\nrun = 'echo hello'").build().run();
    fs::create_dir(built.place().join("empty")).expect("made");
    let without = |args: &[&str]| {
        let kiln = built.then(args).without_env("KILN_QEMU");
        kiln.env("PATH", built.place().join("empty"))
    };
    for args in [&["check", "."][..], &["plan", "."], &["plan", ".", "--json"], &["build", "."], &["lock", "."]] {
        without(args).run();
    }
    without(&["build", ".", "--version", "2"]).fails(4).stderr_has("qemu-system-x86_64").run();
    // What a spec asks of the machine is not looked for in a QEMU that is not there.
    for settings in
        ["firmware = 'uefi'", "network = 'locked'", "network = 'user'", "boot = 'direct'", "agent = 'planted'"]
    {
        let text = format!("[image]\nname = 'm'\nversion = '1'\n[base]\nfile = 'base.qcow2'\n[machine]\n{settings}\n");
        fs::write(built.place().join("machine.toml"), text).expect("written");
        without(&["check", "machine.toml"]).run();
        without(&["plan", "machine.toml"]).stdout_has("note     this host has no QEMU").run();
    }
}
