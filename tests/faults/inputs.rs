//! Specs, bases and files that are not what they should be, or not where they may be.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::{Kiln, names, qemu_img};
use crate::{STEP, fifo, files_with, open_gate, refused_at_once};

#[test]
fn s6_a_missing_source_is_found_before_anything_boots() {
    for text in ["copy = 'nothing'\nto = '/srv/'", "script = 'nothing'"] {
        let kiln = Kiln::new().spec(&format!("[[step]]\n{text}")).build();
        refused_at_once(kiln.fails(3).stderr_has("kiln.toml:9:").stderr_has("nothing").stderr_has("No such file"));
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

/// Changes a file while the first step waits, so that the second reads another one than was planned.
fn refused_after(step: &str, change: impl FnOnce(&Path)) {
    let kiln = Kiln::new().file("data/a", "#!/bin/sh\n").file("data/b", "two");
    let gate = fifo(kiln.place());
    let live = kiln.spec(&format!("[[step]]\nrun = 'await {}'\n[[step]]\n{step}", gate.display())).build();
    let live = live.fails(5).stderr_has("/data").start();
    live.stderr_shows("provision");
    change(&live.place().join("data"));
    open_gate(&gate);
    live.finish().place().assert_nothing_published();
}

#[test]
fn s6_a_script_that_changes_during_the_build_is_not_run() {
    refused_after("script = 'data/a'", |data| fs::write(data.join("a"), "#!/bin/bash\n").expect("written"));
    refused_after("script = 'data/a'", |data| fs::write(data.join("a"), "").expect("written"));
    refused_after("script = 'data/a'", |data| fs::remove_file(data.join("a")).expect("removed"));
}

#[test]
fn s6_a_tree_that_changes_during_the_build_is_not_published() {
    let copy = "copy = 'data'\nto = '/srv/data'";
    refused_after(copy, |data| fs::remove_file(data.join("b")).expect("removed"));
    refused_after(copy, |data| fs::write(data.join("c"), "three").expect("written"));
    refused_after(copy, |data| symlink("a", data.join("c")).expect("made"));
    refused_after(copy, |data| fs::rename(data.join("b"), data.join("c")).expect("renamed"));
    refused_after(copy, |data| fs::set_permissions(data.join("a"), fs::Permissions::from_mode(0o711)).expect("set"));
    refused_after("copy = 'data/a'\nto = '/srv/a'", |data| fs::remove_file(data.join("a")).expect("removed"));
}

#[test]
fn s6_a_large_tree_that_changes_during_the_build_is_not_published() {
    let kiln = Kiln::new().file("data", vec![7; 9 << 20]);
    let gate = fifo(kiln.place());
    let wait = format!("[[step]]\nrun = 'await {}'\n", gate.display());
    let live = kiln.spec(&format!("{wait}[[step]]\ncopy = 'data'\nto = '/srv/data'")).build();
    let live = live.fails(5).stderr_has("data changed during the build").start();
    live.stderr_shows("provision");
    fs::write(live.place().join("data"), vec![8; 9 << 20]).expect("written");
    open_gate(&gate);
    live.finish().place().assert_nothing_published();
}

#[test]
fn b1_a_base_that_changes_and_changes_back_during_the_build_is_not_published() {
    let kiln = Kiln::new();
    let gate = fifo(kiln.place());
    let live = kiln.spec(&format!("[[step]]\nrun = 'await {}'\n[[step]]\nrun = 'true'\n", gate.display())).build();
    let live = live.fails(5).stderr_has("base.qcow2").stderr_has("it changed during the build").start();
    live.stderr_shows("provision");
    let base = live.place().join("base.qcow2");
    let content = fs::read(&base).expect("readable");
    let modified = fs::metadata(&base).and_then(|metadata| metadata.modified()).expect("known");
    fs::write(&base, "another").expect("written");
    fs::write(&base, content).expect("written");
    let file = fs::File::options().write(true).open(&base).expect("there");
    file.set_modified(modified).expect("set");
    open_gate(&gate);
    let ended = live.finish();
    ended.place().assert_nothing_published();
    let layers = fs::read_dir(ended.place().cache().join("layers")).expect("readable");
    let layers = layers.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir())).count();
    assert!(layers <= 2, "{layers} layers: more than the compressed base and the boot");
}

#[test]
fn a_missing_base_is_told() {
    let kiln = Kiln::new().spec(STEP);
    fs::remove_file(kiln.place().join("base.qcow2")).expect("removed");
    refused_at_once(kiln.build().fails(5).stderr_has("base.qcow2"));
}

#[test]
fn s3_a_key_that_does_not_fit_the_base_or_the_host_has_its_place() {
    let small = Kiln::new().spec("disk = '1MiB'").build();
    refused_at_once(small.fails(3).stderr_has("kiln.toml:8:8").stderr_has("a disk can only grow"));
    // The key of the variant is the one that counts.
    let text = "disk = '64MiB'\n[variants.small.machine]\ndisk = '1MiB'";
    let variant = Kiln::new().spec(text).build().args(["--variant", "small"]);
    refused_at_once(variant.fails(3).stderr_has("kiln.toml:10:8").stderr_has("a disk can only grow"));
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

/// Builds a fixture of the specs' tests; there the whole of the answer is in a snapshot.
fn invalid(name: &str) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/specs/invalid/{name}.toml"));
    let ended = Kiln::new().args([Path::new("build"), &fixture]).fails(3).stderr_has(format!("{name}.toml:")).run();
    assert!(ended.stderr.lines().any(|line| line.trim_start_matches(['|', ' ']).starts_with('^')), "{}", ended.stderr);
    assert_eq!(names(ended.place().path()), ["base.qcow2", "home"], "a bad spec has no effect");
}

#[test]
fn s1_a_syntax_error_has_a_caret_and_no_effect() {
    invalid("syntax");
}

#[test]
fn s2_an_unknown_key_has_a_caret_and_no_effect() {
    invalid("unknown-key");
    Kiln::new().machine("memroy = '1GiB'").spec(STEP).build().fails(3).stderr_has("did you mean `memory`?").run();
}

#[test]
fn s3_a_value_out_of_its_range_has_a_caret_and_no_effect() {
    ["machine-ranges", "machine-units", "machine-types", "machine-overflow"].into_iter().for_each(invalid);
}

#[test]
fn s4_a_name_that_is_taken_has_a_caret_and_no_effect() {
    invalid("duplicate-names");
}

#[test]
fn s5_what_leads_out_of_the_project_is_refused_unless_allowed() {
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let outside = elsewhere.path().join("key");
    fs::write(&outside, "a private key").expect("written");
    let head = "[image]\nname = 'web'\nversion = '1'\n[base]\nfile = '../base.qcow2'\n[machine]\naccel = 'tcg'\n";
    let cases = [
        format!("[[step]]\ncopy = '{}'\nto = '/srv/key'", outside.display()),
        "[[step]]\ncopy = '../home'\nto = '/srv/'".into(),
        "[[step]]\ncopy = 'link'\nto = '/srv/key'".into(),
        "[[step]]\ncopy = 'folder/key'\nto = '/srv/key'".into(),
        "[[step]]\nscript = '../run.sh'".into(),
        "[secrets]\ntoken = { file = 'link' }\n[[step]]\nrun = 'true'\nsecrets = ['token']".into(),
    ];
    for text in cases {
        let kiln = Kiln::new().file("sub/kiln.toml", format!("{head}{text}\n")).file("run.sh", "#!/bin/sh\n");
        let sub = kiln.place().join("sub");
        symlink(&outside, sub.join("link")).expect("made");
        symlink(elsewhere.path(), sub.join("folder")).expect("made");
        let ended = refused_at_once(
            kiln.args(["build", "sub"]).fails(3).stderr_has("outside of the project").stderr_has("--allow-outside"),
        );
        let allowed = ended.then(["build", "sub", "--allow-outside"]).stderr_has("allowed by --allow-outside").run();
        assert_eq!(allowed.place().published(), ["web@1"], "{text}");
    }
}

#[test]
fn s5_private_networks_are_opened_by_the_spec_and_the_command_together() {
    let rest = "[network]\nprivate = ['10.1.2.0/24', 'host']\n[[test]]\nrun = 'exit 0'\n";
    let kiln = Kiln::new().machine("network = 'user'").spec(rest);
    let refused = kiln.build().fails(3).stderr_has("not public (host, 10.1.2.0/24)");
    let ended = refused_at_once(refused.stderr_has("--allow-private-network"));
    let allowed = ended.then(["build", ".", "--allow-private-network"]);
    let built = allowed.stderr_has("allowed by --allow-private-network: host, 10.1.2.0/24").run();
    assert_eq!(built.place().published(), ["web@1"]);
    let manifest = built.then(["inspect", "web", "--json"]).stdout_has(r#""private_network": ["#).run();
    // The tests of a published image run in the same network.
    let refused = manifest.then(["test", "web"]).fails(3).stderr_has("--allow-private-network").run();
    refused.then(["test", "web", "--allow-private-network"]).stdout_has("1 of 1 tests passed").run();
}

#[test]
fn s5_a_base_spec_outside_of_the_project_is_refused_unread() {
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let outside = elsewhere.path().join("kiln.toml");
    let head = "[machine]\naccel = 'tcg'\n[image]\nversion = '1'\n";
    let spec = format!("{head}name = 'web'\n[base]\nspec = '{}'\n", outside.display());
    for content in ["a password", &format!("{head}name = 'root'\n[base]\nfile = 'base.qcow2'\n")] {
        fs::write(&outside, content).expect("written");
        let kiln = Kiln::new().file("sub/kiln.toml", &spec);
        fs::copy(kiln.place().join("base.qcow2"), elsewhere.path().join("base.qcow2")).expect("copied");
        let ended = kiln.args(["build", "sub"]).fails(3).stderr_has("outside of the project").run();
        for command in ["check", "plan", "lock"] {
            let again = ended.then([command, "sub"]).fails(3).stderr_has("--allow-outside").run();
            assert!(!again.stderr.contains("password"), "{}", again.stderr);
        }
        assert!(!ended.stderr.contains("password"), "{}", ended.stderr);
    }
    let place = Kiln::new().file("sub/kiln.toml", &spec).place().clone();
    place.kiln().args(["build", "sub", "--allow-outside"]).run();
    // Whoever names both specs means both.
    place.kiln().args(["build", "sub", outside.to_str().expect("UTF-8")]).run();
    assert_eq!(place.published(), ["root@1", "web@1"]);
}

#[test]
fn s5_nothing_of_git_is_named_or_copied() {
    let head = "[image]\nname = 'web'\nversion = '1'\n[machine]\naccel = 'tcg'\n[base]\n";
    for (base, step) in [
        ("file = 'base.qcow2'", "[[step]]\ncopy = '.git/config'\nto = '/srv/a'"),
        ("file = 'base.qcow2'", "[[step]]\ncopy = '.git'\nto = '/srv/'"),
        ("file = 'base.qcow2'", "[[step]]\ncopy = 'link'\nto = '/srv/a'"),
        ("file = 'base.qcow2'", "[[step]]\nscript = '.git/hooks/run'"),
        ("file = 'base.qcow2'", "[secrets]\na = { file = '.git/config' }"),
        ("spec = '.git'", ""),
    ] {
        let kiln = Kiln::new().file(".git/config", "token").file(".git/hooks/run", "#!/bin/sh\n");
        let kiln = kiln.file(".git/kiln.toml", "token").file("kiln.toml", format!("{head}{base}\n{step}\n"));
        symlink(".git/config", kiln.place().join("link")).expect("made");
        let ended = refused_at_once(kiln.build().fails(3).stderr_has("belongs to git"));
        assert!(!ended.stderr.contains("token"), "{}", ended.stderr);
    }
    // What a checkout brings along is no content, and does not change a key.
    let spec = format!("{head}file = '../base.qcow2'\n[[step]]\ncopy = '.'\nto = '/srv'\n");
    let kiln =
        Kiln::new().file("sub/.git/config", "token").file("sub/deep/.git", "gitdir: x").file("sub/kiln.toml", spec);
    let ended = kiln.args(["build", "sub"]).stderr_has(".git in").run();
    fs::write(ended.place().join("sub/.git/config"), "another token").expect("written");
    ended.then(["build", "sub"]).stderr_has("up to date").run();
}

#[test]
fn s5_a_base_that_is_no_file_is_refused() {
    for file in ["/dev/zero", "/proc/self/environ", "/dev/stdin"] {
        let spec = format!("[image]\nname = 'web'\nversion = '1'\n[base]\nfile = '{file}'\nformat = 'raw'\n");
        let kiln = Kiln::new().file("kiln.toml", spec).build();
        refused_at_once(kiln.args(["--allow-outside"]).ends_with(&[3, 5]));
    }
}

#[test]
fn s5_the_project_is_the_git_work_tree() {
    let spec = "[image]\nname = 'web'\nversion = '1'\n[base]\nfile = '../../base.qcow2'\n[machine]\naccel = 'tcg'\n\
                [[step]]\ncopy = '../../site/page'\nto = '/srv/page'\n";
    let kiln =
        Kiln::new().file("images/web/kiln.toml", spec).file("site/page", "a page").file(".git", "gitdir: elsewhere");
    assert_eq!(kiln.args(["build", "images/web"]).run().place().published(), ["web@1"]);
}

#[test]
fn s7_a_spec_of_a_hundred_megabytes_costs_no_memory() {
    let kiln = Kiln::new().file("kiln.toml", "");
    let spec = fs::File::options().write(true).open(kiln.place().join("kiln.toml")).expect("there");
    spec.set_len(100 << 20).expect("sparse");
    refused_at_once(kiln.build().after("ulimit -v 524288").fails(3).stderr_has("is larger than 1 MiB"));
}

#[test]
fn s7_endless_steps_and_brackets_cost_no_memory() {
    let brackets = format!("a = {}", "[".repeat(1_000_000));
    for spec in ["[[step]]\n".repeat(100_000), brackets, format!("a{} = 1", ".a".repeat(500_000))] {
        let kiln = Kiln::new().file("kiln.toml", spec).build().after("ulimit -v 524288");
        let ended = kiln.fails(3).stderr_has("kiln.toml:").run();
        assert!(ended.stderr.len() < 200_000, "{} bytes of complaints", ended.stderr.len());
        assert_eq!(ended.place().starts(), 0, "nothing is booted");
    }
}

#[test]
fn s8_names_with_hidden_characters_are_refused_and_foreign_line_ends_accepted() {
    ["name-characters", "image-name-homoglyph", "nul-in-command", "terminal-escapes"].into_iter().for_each(invalid);
    let text = "\u{feff}[image]\nname = 'web'\nversion = '1'\n[base]\nfile = 'base.qcow2'\n[machine]\naccel = 'tcg'\n";
    let ended = Kiln::new().file("kiln.toml", text.replace('\n', "\r\n")).build().run();
    assert_eq!(ended.place().published(), ["web@1"]);
}

#[test]
fn s9_a_name_that_is_a_path_or_an_option_has_no_effect() {
    ["image-name", "image-name-too-long"].into_iter().for_each(invalid);
}
