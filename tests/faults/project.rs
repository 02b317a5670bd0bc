//! The project of a spec: nothing outside of it is read as a spec, whichever way a link leads there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;

use crate::support::Kiln;

/// What stands in files that no spec may show.
const CANARY: &str = "canary-of-a-foreign-file";
/// Every command that reads a spec.
const COMMANDS: [&str; 7] = ["check", "plan", "build", "lock", "outdated", "shell", "test"];

fn spec(base: &str) -> String {
    format!("[image]\nname = 'web'\nversion = '1'\n[base]\n{base}\n[machine]\naccel = 'tcg'\n")
}

/// A folder of somebody else: a password file, a spec, and the base image of that.
fn elsewhere() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("config.json"), format!("{{\n\"auth\": \"{CANARY}\"\n}}\n")).expect("written");
    fs::write(folder.path().join("kiln.toml"), format!("{CANARY} = 1\n")).expect("written");
    folder
}

/// Runs every command on a path, each of which must refuse it and show nothing of what it leads to.
fn refused_unread(kiln: &Kiln, path: &str, why: &str) {
    for command in COMMANDS {
        let refused = kiln.place().kiln().args([command, path]).env("CI_TOKEN", CANARY).fails(3).stderr_has(why).run();
        let shown = format!("{}{}", refused.stdout, refused.stderr);
        assert!(!shown.contains(CANARY), "kiln {command} {path}: {shown}");
    }
    kiln.place().assert_nothing_published();
}

#[test]
fn s5_a_spec_that_is_a_link_out_of_its_project_is_refused_unread() {
    let elsewhere = elsewhere();
    let at = |name: &str| elsewhere.path().join(name).display().to_string();
    for (target, why) in [
        ("/proc/self/environ".to_owned(), "is not a regular file"),
        ("/dev/null".to_owned(), "is not a regular file"),
        ("../.git/config".to_owned(), "belongs to git"),
        ("../deep/.git/config".to_owned(), "belongs to git"),
        (at("config.json"), "outside of the project"),
        (at("kiln.toml"), "outside of the project"),
        ("hop".to_owned(), "outside of the project"),
    ] {
        let kiln = Kiln::new().file(".git/config", CANARY).file("deep/.git/config", CANARY).file("a/notes", "");
        symlink(at("config.json"), kiln.place().join("a/hop")).expect("made");
        symlink(&target, kiln.place().join("a/kiln.toml")).expect("made");
        for path in ["a", "a/kiln.toml", "./a/../a"] {
            refused_unread(&kiln, path, why);
        }
        // Found below a folder, and beside a sound one that is looked at all the same.
        let kiln = kiln.file("b/kiln.toml", spec("file = '../base.qcow2'"));
        let place = kiln.place();
        let found = place.kiln().args(["check", "."]).fails(3).stderr_has(why).stderr_has("b: ok").run();
        assert!(!found.stderr.contains(CANARY), "{}", found.stderr);
    }
}

#[test]
fn s5_a_folder_of_specs_that_is_a_link_out_of_the_project_is_refused_unread() {
    let elsewhere = elsewhere();
    fs::create_dir(elsewhere.path().join(".git")).expect("made");
    let kiln = Kiln::new().file(".git/config", "");
    symlink(elsewhere.path(), kiln.place().join("a")).expect("made");
    for path in ["a", "a/", "a/kiln.toml"] {
        refused_unread(&kiln, path, "outside of the project");
    }
    // Whoever works there means it.
    let there = kiln.place().kiln().args(["check", "kiln.toml"]).after(&format!("cd '{}'", elsewhere.path().display()));
    there.fails(3).stderr_has(CANARY).run();
}

#[test]
fn s5_without_a_work_tree_the_project_is_the_folder_that_was_named() {
    let kiln = Kiln::new().file("a/kiln.toml", CANARY).file("b/notes", "");
    symlink("../a/kiln.toml", kiln.place().join("b/kiln.toml")).expect("made");
    refused_unread(&kiln, "b", "outside of the project");
}

#[test]
fn s5_a_link_in_the_project_is_followed_and_one_out_of_it_with_leave() {
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let kiln = Kiln::new().file(".git/config", "").file("specs/web.toml", spec("file = 'base.qcow2'"));
    fs::write(elsewhere.path().join("mine.toml"), spec("file = 'base.qcow2'")).expect("written");
    symlink("specs/web.toml", kiln.place().join("web.toml")).expect("made");
    symlink(elsewhere.path().join("mine.toml"), kiln.place().join("mine.toml")).expect("made");
    let built = kiln.args(["build", "web.toml"]).run();
    let refused = built.then(["build", "mine.toml"]).fails(3).stderr_has("outside of the project");
    let refused = refused.stderr_has("--allow-outside").run();
    refused.then(["build", "mine.toml", "--allow-outside"]).stderr_has("up to date").run();
    refused.then(["lock", "mine.toml", "--allow-outside"]).run();
    refused.then(["test", "mine.toml", "--allow-outside"]).fails(2).stderr_has("has no tests").run();
}

#[test]
fn s5_the_spec_of_a_base_is_checked_where_its_folder_leads() {
    let elsewhere = elsewhere();
    let outside = elsewhere.path().join("config.json");
    for (base, target) in [
        ("spec = '../mid'", outside.as_path()),
        ("spec = '../mid/kiln.toml'", &outside),
        ("spec = '../mid'", Path::new("/proc/self/environ")),
        ("spec = '../mid'", Path::new("../.git/config")),
    ] {
        let kiln = Kiln::new().file(".git/config", CANARY).file("mid/notes", "").file("a/kiln.toml", spec(base));
        symlink(target, kiln.place().join("mid/kiln.toml")).expect("made");
        // Tests belong to an image that is there.
        for command in COMMANDS.into_iter().filter(|command| *command != "test") {
            let kiln = kiln.place().kiln().args([command, "a"]).env("CI_TOKEN", CANARY).fails(3);
            let refused = kiln.stderr_has("the base image of").run();
            assert!(!refused.stderr.contains(CANARY), "kiln {command}: {}", refused.stderr);
        }
    }
}

#[test]
fn s5_urls_of_files_and_lists_of_digests_stay_in_the_project() {
    let elsewhere = elsewhere();
    let outside = format!("file://{}/config.json", elsewhere.path().display());
    // printf '{\n"auth": "canary-of-a-foreign-file"\n}\n' | sha256sum
    let digest = sha256(&elsewhere.path().join("config.json"));
    let wrong = "0".repeat(64);
    let remote = "url = 'https://example.invalid/x.qcow2'";
    for base in [
        format!("url = '{outside}'\nsha256 = '{wrong}'"),
        format!("{remote}\nmirrors = ['{outside}']\nsha256 = '{wrong}'"),
        format!("{remote}\nsums = '{outside}'\nsums-sha256 = '{digest}'"),
        format!("url = 'file:///x.qcow2'\nsums = '{outside}'\nsums-signature = '{outside}'\nsums-key = 'key'"),
    ] {
        let kiln = Kiln::new().file(".git/config", "").file("a/kiln.toml", spec(&base)).file("a/key", "");
        for command in ["check", "plan", "build", "lock", "shell"] {
            let refused = kiln.place().kiln().args([command, "a"]).fails(3).stderr_has("outside of the project").run();
            let shown = refused.stderr.replace(&elsewhere.path().display().to_string(), "");
            assert!(!shown.contains(&digest[..16]) && !shown.contains("does not name"), "{shown}");
        }
    }
    let kiln = Kiln::new().file("a/kiln.toml", spec(&format!("url = '{outside}'\nsha256 = '{wrong}'")));
    let allowed = kiln.args(["build", "a", "--allow-outside"]).fails(5).stderr_has("allowed by --allow-outside");
    allowed.stderr_has("the digest is wrong").run();
}

fn sha256(file: &Path) -> String {
    let digest = std::process::Command::new("sha256sum").arg(file).output().expect("runs");
    String::from_utf8_lossy(&digest.stdout[..64]).into_owned()
}

#[test]
fn s5_a_lock_file_is_no_link() {
    let elsewhere = elsewhere();
    let kiln = Kiln::new().file("kiln.toml", spec("file = 'base.qcow2'"));
    symlink(elsewhere.path().join("config.json"), kiln.place().join("kiln.lock")).expect("made");
    for command in ["check", "plan", "build", "lock"] {
        let refused = kiln.place().kiln().args([command, "."]).fails(3).stderr_has("symbolic link").run();
        assert!(!refused.stderr.contains(CANARY), "kiln {command}: {}", refused.stderr);
    }
}

#[test]
fn s5_a_new_spec_is_not_written_through_a_link() {
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let kiln = Kiln::new().file("a/notes", "");
    symlink(elsewhere.path().join("made"), kiln.place().join("a/kiln.toml")).expect("made");
    kiln.args(["init", "a"]).fails(8).stderr_has("never overwrites").run();
    assert!(!elsewhere.path().join("made").exists());
}
