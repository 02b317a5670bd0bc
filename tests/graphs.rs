//! Several images in one command, the images they are built on, and `kiln.lock`, with the fake QEMU.

mod support;

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use support::{Kiln, Place, make_writable};

/// A spec in a folder of its own.
fn spec(kiln: Kiln, name: &str, base: &str, rest: &str) -> Kiln {
    let text = format!(
        "[image]\nname = '{name}'\nversion = '1'\n[base]\n{base}\n[machine]\naccel = 'tcg'\nmemory = '128MiB'\n{rest}\n"
    );
    // One project: a spec is built on specs of its own work tree alone.
    kiln.file(".git/HEAD", "").file(&format!("{name}/kiln.toml"), text)
}

/// `root` on a file, two images on it, and three on those.
fn family(kiln: Kiln) -> Kiln {
    let step = |name: &str| format!("[[step]]\nrun = 'echo {name}'");
    let kiln = spec(kiln, "root", "file = '../base.qcow2'", &step("root"));
    let kiln = spec(kiln, "left", "spec = '../root'", &step("left"));
    let kiln = spec(kiln, "right", "spec = '../root/kiln.toml'", &step("right"));
    let kiln = spec(kiln, "a", "spec = '../left'", &step("a"));
    let kiln = spec(kiln, "b", "spec = '../left'", &step("b"));
    spec(kiln, "c", "spec = '../right'", &step("c"))
}

const ALL: [&str; 6] = ["a@1", "b@1", "c@1", "left@1", "right@1", "root@1"];

fn manifest(place: &Place, image: &str) -> serde_json::Value {
    let path = place.store().join(image).join("1/manifest.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn write(place: &Place, path: &str, text: &str) {
    fs::write(place.join(path), text).unwrap();
}

fn replace(place: &Place, path: &str, from: &str, to: &str) {
    let text = fs::read_to_string(place.join(path)).unwrap();
    assert!(text.contains(from), "{text}");
    write(place, path, &text.replace(from, to));
}

/// A second version of `root`, with another disk.
fn grow_root(place: &Place) {
    replace(place, "root/kiln.toml", "version = '1'", "version = '2'");
    replace(place, "root/kiln.toml", "[machine]", "[machine]\ndisk = '32MiB'");
}

#[test]
fn a_folder_of_specs_is_built_bases_first_and_once() {
    let built = family(Kiln::new()).args(["build", ".", "--jobs", "2"]).run();
    assert_eq!(built.place().published(), ALL);
    assert_eq!(built.stdout.lines().count(), 6, "{}", built.stdout);
    for row in ["published  root@1", "published  a@1"] {
        assert!(built.stderr.contains(row), "{}", built.stderr);
    }
    let base = manifest(built.place(), "left")["base"].clone();
    let root = manifest(built.place(), "root");
    assert_eq!(base["image"]["name"], "root");
    assert_eq!(base["image"]["build_key"], root["build_key"]);
    assert_eq!(base["sha256"], root["outputs"][0]["sha256"]);
    assert_eq!(base["source"], "spec ../root");
    // One boot of the file, of root for both of its children, of left for both of its, and of right.
    let starts = built.place().starts();
    let again = built.then(["build", "."]).run();
    assert!(again.stderr.contains("up to date  c@1"), "{}", again.stderr);
    assert_eq!(again.place().starts(), starts, "something that is up to date was started");
    // A change in the middle that leaves the same disk, as this guest's steps do, goes no further.
    replace(again.place(), "left/kiln.toml", "echo left", "echo other");
    let third = again.then(["build", ".", "--replace"]).run();
    for row in ["published   left@1", "up to date  a@1"] {
        assert!(third.stderr.contains(row), "{row}: {}", third.stderr);
    }
    // One that leaves another disk.
    replace(again.place(), "left/kiln.toml", "memory = '128MiB'", "memory = '128MiB'\ndisk = '32MiB'");
    let third = again.then(["build", ".", "--replace"]).run();
    for (image, fate) in [
        ("root", "up to date"),
        ("right", "up to date"),
        ("c", "up to date"),
        ("left", "published "),
        ("a", "published "),
        ("b", "published "),
    ] {
        assert!(third.stderr.contains(&format!("{fate}  {image}@1")), "{image}: {}", third.stderr);
    }
}

#[test]
fn what_a_spec_is_built_on_comes_with_it_and_is_not_in_the_result() {
    let built = family(Kiln::new()).args(["build", "c"]).run();
    assert_eq!(built.place().published(), ["c@1", "right@1", "root@1"]);
    let lines: Vec<_> = built.stdout.lines().collect();
    assert!(matches!(lines[..], [only] if only.ends_with("/c/1/c-1.qcow2")), "{lines:?}");
    built.then(["plan", "c"]).stdout_has("/right/1/right-1.qcow2").run();
}

#[test]
fn a_failure_stops_only_what_is_built_on_it() {
    let kiln = family(Kiln::new());
    replace(kiln.place(), "left/kiln.toml", "echo left", "exit 3");
    let built = kiln.args(["build", "."]).fails(7).stderr_has("exit status 3").stderr_has("image: left@1").run();
    assert_eq!(built.place().published(), ["c@1", "right@1", "root@1"]);
    for row in [
        "FAILED     left@1",
        "not built  a@1      left@1 failed",
        "not built  b@1      left@1 failed",
        "published  c@1",
    ] {
        assert!(built.stderr.contains(row), "{}", built.stderr);
    }
    assert_eq!(built.stdout.lines().count(), 3, "{}", built.stdout);
}

#[test]
fn every_failure_is_told_and_the_first_decides() {
    let kiln = spec(Kiln::new(), "x", "file = '../base.qcow2'", "[[step]]\nrun = 'exit 3'");
    let kiln = spec(kiln, "y", "file = '../base.qcow2'", "[[step]]\nrun = 'exit 4'");
    let built = kiln.args(["build", "x", "y"]).fails(7).stderr_has("exit status 3").stderr_has("exit status 4").run();
    assert_eq!(built.errors(), 2, "{}", built.stderr);
}

#[test]
fn h6_an_interruption_ends_all_builds_and_begins_no_other() {
    let kiln = spec(Kiln::new(), "x", "file = '../base.qcow2'", "[[step]]\nrun = 'hang'");
    let kiln = spec(kiln, "y", "file = '../base.qcow2'", "[[step]]\nrun = 'hang'\nname = 'y'");
    let kiln = spec(kiln, "z", "file = '../base.qcow2'", "");
    let live = kiln.args(["build", "x", "y", "z", "--jobs", "2"]).fails(130).start();
    live.stderr_shows("x@1: step 1/1");
    live.stderr_shows("y@1: step 1/1");
    live.signal(Signal::SIGINT);
    let ended = live.finish();
    ended.place().assert_nothing_published();
    assert!(ended.stderr.contains("not built  z@1  interrupted"), "{}", ended.stderr);
}

#[test]
fn s4_circles_and_doubles_are_exit_3_before_anything_starts() {
    let kiln = spec(Kiln::new(), "x", "spec = '../y'", "");
    let kiln = spec(kiln, "y", "spec = '../x'", "");
    let ended = kiln.args(["build", "x"]).fails(3).stderr_has("circle").stderr_has(" is built on ").run();
    assert_eq!(ended.place().starts(), 0);
    fs::copy(ended.place().join("x/kiln.toml"), ended.place().join("z.toml")).unwrap();
    replace(ended.place(), "x/kiln.toml", "spec = '../y'", "file = '../base.qcow2'");
    replace(ended.place(), "z.toml", "spec = '../y'", "file = 'base.qcow2'");
    ended.then(["build", "x", "z.toml"]).fails(3).stderr_has("both make x@1").run();
}

#[test]
fn a_plan_or_a_check_does_not_build_the_base() {
    let kiln = family(Kiln::new());
    let ended = kiln.args(["plan", "left"]).fails(5).stderr_has("is not built yet").stderr_has("`kiln build`").run();
    ended.then(["check", "."]).stderr_has("left: ok, 1 step; the base image is not built yet").run();
    assert_eq!(ended.place().starts(), 0);
}

#[test]
fn an_image_of_the_store_is_a_base_by_name_version_or_tag() {
    let kiln = spec(Kiln::new(), "root", "file = '../base.qcow2'", "");
    let built = spec(kiln, "app", "image = 'root@1'", "").args(["build", "root"]).run();
    let app = built.then(["build", "app"]).run();
    assert_eq!(manifest(app.place(), "app")["base"]["source"], "root@1");
    replace(app.place(), "app/kiln.toml", "root@1", "root@2");
    app.then(["build", "app", "--replace"]).fails(5).stderr_has("`root` has no version or tag `2`").run();
    replace(app.place(), "app/kiln.toml", "image = 'root@2'", "image = 'root'\nformat = 'raw'");
    app.then(["build", "app", "--replace"]).fails(5).stderr_has("root@1 has no raw file").run();
    // A version that a command makes itself is waited for.
    grow_root(app.place());
    replace(app.place(), "app/kiln.toml", "format = 'raw'", "");
    app.then(["build", "app", "root", "--replace"]).run();
    assert_eq!(manifest(app.place(), "app")["base"]["image"]["version"], "2");
}

#[test]
fn a_lock_is_followed_until_it_is_stale() {
    let kiln = spec(Kiln::new(), "root", "file = '../base.qcow2'", "");
    let kiln = spec(kiln, "app", "image = 'root'", "[variants.small]\nmachine = { cpus = 1 }");
    let built = kiln.args(["build", "root"]).run();
    built.then(["build", "app", "--locked"]).fails(3).stderr_has("has no entry for kiln.toml").run();
    let locked = built.then(["lock", "app", "root"]).run();
    assert_eq!(locked.stdout.lines().count(), 2, "{}", locked.stdout);
    let text = fs::read_to_string(locked.place().join("app/kiln.lock")).unwrap();
    for line in ["source = \"image root\"", "image = \"root@1\"", "variant = \"small\""] {
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(locked.then(["lock", "app", "root"]).run().stdout, "", "nothing has changed");
    // Another version is the newest now; the lock does not care.
    grow_root(locked.place());
    locked.then(["build", "root", "--locked"]).run();
    locked.then(["build", "app", "--locked"]).run();
    assert_eq!(manifest(locked.place(), "app")["base"]["image"]["version"], "1");
    // Until it is written anew.
    locked.then(["lock", "app"]).stderr_has("image root is root@2").run();
    locked.then(["build", "app", "--replace", "--locked"]).run();
    assert_eq!(manifest(locked.place(), "app")["base"]["image"]["version"], "2");
    // A spec that names something else makes it stale.
    replace(locked.place(), "app/kiln.toml", "image = 'root'", "image = 'root@1'");
    locked
        .then(["build", "app", "--replace", "--locked"])
        .fails(3)
        .stderr_has("is stale")
        .stderr_has("`kiln lock`")
        .run();
    locked.then(["build", "app", "--replace"]).stderr_has("not followed: ").run();
    assert_eq!(manifest(locked.place(), "app")["base"]["image"]["version"], "1");
}

#[test]
fn a_locked_file_that_has_changed_is_not_built_on() {
    let kiln = spec(Kiln::new(), "root", "file = '../base.qcow2'", "");
    let locked = kiln.args(["lock", "root"]).run();
    let base = locked.place().join("base.qcow2");
    make_writable(&base);
    support::qemu_img(&["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "17M"]);
    let ended =
        locked.then(["build", "root"]).fails(5).stderr_has("the kiln.lock says").stderr_has("`kiln lock`").run();
    ended.then(["lock", "root"]).run();
    ended.then(["build", "root", "--locked"]).run();
    fs::write(ended.place().join("root/kiln.lock"), "schema = 2\n").unwrap();
    ended.then(["build", "root"]).fails(3).stderr_has("is damaged: it has schema 2").run();
}

#[test]
fn specs_of_one_folder_are_locked_together_however_it_is_spelled() {
    let kiln = spec(Kiln::new(), "root", "file = '../base.qcow2'", "[variants.small]\nmachine = { cpus = 1 }");
    let kiln = spec(kiln, "web", "spec = '../root'", "");
    let kiln = spec(kiln, "app", "spec = '../root'\nvariant = 'small'", "");
    let locked = kiln.args(["lock", "web", "app"]).run();
    assert_eq!(locked.stdout.lines().count(), 3, "{}", locked.stdout);
    let text = fs::read_to_string(locked.place().join("root/kiln.lock")).unwrap();
    assert_eq!(text.matches("[[base]]").count(), 2, "{text}");
    assert_eq!(text.matches("variant = \"small\"").count(), 1, "{text}");
    locked.then(["build", "web", "app", "--locked"]).run();
}

#[test]
fn another_version_of_a_base_spec_is_not_what_was_locked() {
    let kiln = spec(Kiln::new(), "root", "file = '../base.qcow2'", "");
    let locked = spec(kiln, "app", "spec = '../root'", "").args(["lock", "app"]).run();
    locked.then(["build", "app", "--locked"]).run();
    grow_root(locked.place());
    let stale = locked.then(["build", "app", "--replace", "--locked"]).fails(3).stderr_has("is stale").run();
    for text in ["spec ../root, which was root@1", "spec ../root, which is root@2", "`kiln lock`"] {
        assert!(stale.stderr.contains(text), "{text}: {}", stale.stderr);
    }
    // Without --locked a spec is followed wherever it goes, as a path dependency is.
    let built = locked.then(["build", "app", "--replace"]).run();
    assert!(!built.stderr.contains("kiln.lock"), "{}", built.stderr);
    assert_eq!(manifest(built.place(), "app")["base"]["image"]["version"], "2");
    built.then(["lock", "app"]).run();
    built.then(["build", "app", "--locked"]).run();
}

#[test]
fn a_failure_that_a_lock_caused_names_the_lock() {
    let kiln = spec(Kiln::new(), "root", "file = '../base.qcow2'", "");
    let kiln = spec(kiln, "app", "image = 'root'", "[variants.small]\nmachine = { cpus = 1 }");
    let built = kiln.args(["build", "root"]).run();
    let note = "pinned by kiln.lock; `kiln lock` updates it";
    built.then(["lock", "app"]).run();
    grow_root(built.place());
    built.then(["build", "root"]).run();
    built.then(["remove", "root@1"]).run();
    built.then(["build", "app"]).fails(5).stderr_has("`root` has no version or tag `1`").stderr_has(note).run();
    built.then(["remove", "root@2"]).run();
    built.then(["build", "app"]).fails(5).stderr_has("there is no image `root`").stderr_has(note).run();
    // What the spec itself says is not the lock's fault.
    fs::remove_file(built.place().join("app/kiln.lock")).unwrap();
    let missing = built.then(["build", "app"]).fails(5).stderr_has("there is no image `root`").run();
    assert!(!missing.stderr.contains("kiln.lock"), "{}", missing.stderr);
    let entry = "has no entry for kiln.toml, variant small";
    built.then(["build", "app", "--variant", "small", "--locked"]).fails(3).stderr_has(entry).run();
}

#[test]
fn a_damaged_image_of_the_store_is_a_base_that_fails() {
    let kiln = spec(Kiln::new(), "root", "file = '../base.qcow2'", "");
    let built = spec(kiln, "app", "image = 'root@1'", "").args(["build", "root"]).run();
    let version = built.place().store().join("root/1");
    fs::set_permissions(&version, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::remove_file(version.join("manifest.json")).unwrap();
    built.then(["build", "app"]).fails(5).stderr_has("root@1 is damaged: manifest.json is missing").run();
}

#[test]
fn variants_are_images_of_their_own() {
    let text = "[vars]\nwho = 'all'\n[[step]]\nrun = 'echo {{ who }}'\n\
                [variants.one]\nvars = { who = 'one' }\n[variants.two]\nvars = { who = 'two' }\n";
    let kiln = spec(Kiln::new(), "web", "file = '../base.qcow2'", text);
    let built = kiln.args(["build", "web", "--variant", "all"]).run();
    assert_eq!(built.place().published(), ["web-one@1", "web-two@1"]);
    assert_eq!(manifest(built.place(), "web-two")["steps"][0]["name"], "run echo two");
    built.then(["plan", "web", "--variant", "one"]).stdout_has("web-one@1").run();
    let ended = built.then(["build", "web", "--variant", "three"]).fails(3).stderr_has("which has `one`, `two`").run();
    ended.then(["check", "web", "--variant", "all"]).run();
    let kiln = spec(ended.place().kiln(), "app", "spec = '../web'\nvariant = 'one'", "");
    let app = kiln.args(["build", "app"]).run();
    assert_eq!(manifest(app.place(), "app")["base"]["image"]["name"], "web-one");
    assert!(Path::new(&app.stdout.trim_end()).exists());
}

#[test]
fn o1_the_files_of_several_images_go_into_folders_of_their_own() {
    let built = family(Kiln::new()).args(["build", "left", "right", "-o", "out"]).run();
    assert_eq!(support::names(&built.place().join("out")), ["left-1", "right-1"], "of what was asked for alone");
    for image in ["left", "right"] {
        let path = format!("out/{image}-1/{image}-1.qcow2");
        assert!(built.place().join(&path).is_file() && built.stdout.contains(&path), "{}", built.stdout);
    }
    let one = built.then(["build", "left", "-o", "alone"]).run();
    assert!(one.place().join("alone/manifest.json").is_file());
    // One that cannot be delivered stops no other.
    write(one.place(), "out/left-1/left-1.qcow2", "mine");
    fs::remove_dir_all(one.place().join("out/right-1")).unwrap();
    one.then(["build", "left", "right", "-o", "out"]).fails(8).stderr_has("out/left-1/left-1.qcow2").run();
    assert!(one.place().join("out/right-1/right-1.qcow2").is_file());
}

#[test]
fn check_knows_what_the_other_specs_make() {
    let kiln = spec(Kiln::new(), "base", "file = '../base.qcow2'", "");
    let kiln = spec(kiln, "web", "image = 'base'", "[[step]]\nrun = 'true'");
    let kiln = spec(kiln, "wrong", "image = 'nowhere'", "");
    let checked = kiln.args(["check", "base", "web"]).run();
    for text in ["base: ok, 0 steps", "web: ok, 1 step; "] {
        assert!(checked.stderr.contains(text), "no {text}: {}", checked.stderr);
    }
    assert!(checked.then(["check", "web"]).ends_with(&[5, 8]).run().stderr.contains("`base`"));
    let all = checked.then(["check", "."]).ends_with(&[5, 8]).run();
    for text in ["base: ok, 0 steps", "web: ok, 1 step; ", "`nowhere`"] {
        assert!(all.stderr.contains(text), "no {text}: {}", all.stderr);
    }
    let twice = spec(Kiln::new(), "one", "file = '../base.qcow2'", "").file("two.toml", "");
    write(twice.place(), "two.toml", &fs::read_to_string(twice.place().join("one/kiln.toml")).unwrap());
    twice.args(["check", "one", "two.toml"]).fails(3).stderr_has("both make one@1").run();
}

/// Returns a lock file with two downloads of the step `install`.
fn lock_of_downloads() -> String {
    let digest = "ab".repeat(32);
    let download =
        |url: &str| format!("    {{ url = \"{url}\", sha256 = \"{digest}\", bytes = 1536, steps = [\"install\"] }},\n");
    let downloads = download("http://a.example/1") + &download("http://b.example/");
    let head = "schema = 1\n\n[[network]]\nspec = \"kiln.toml\"\nrecorded = \"2026-01-02T03:04:05Z\"\n";
    format!("{head}downloads = [\n{downloads}]\n")
}

#[test]
fn recorded_downloads_are_in_the_plan_until_they_are_refreshed() {
    let steps = "[[step]]\nname = 'install'\nrun = 'exit 0'\n[[step]]\nname = 'other'\nrun = 'exit 0'";
    let kiln = Kiln::new().machine("network = 'locked'").spec(steps).args(["plan", "."]);
    let empty = kiln.stdout_has("network  locked: no downloads are recorded yet").run();
    let key = |json: &str, step: usize| {
        let plan: serde_json::Value = serde_json::from_str(json).unwrap();
        (plan["steps"][step]["key"].to_string(), plan["steps"][step]["downloads"]["count"].as_u64())
    };
    let before = empty.then(["plan", ".", "--json"]).run().stdout;
    fs::write(empty.place().join("kiln.lock"), lock_of_downloads()).unwrap();
    let planned = empty.then(["plan", "."]).stdout_has("locked: 2 downloads, 3KiB, recorded 2026-01-02T03:04:05Z");
    let planned = planned.stdout_has("install (2 downloads, 3KiB)").run();
    assert!(!planned.stdout.contains("netdev"), "there is no network card: {}", planned.stdout);
    let after = planned.then(["plan", ".", "--json"]).run().stdout;
    assert_ne!(key(&before, 0).0, key(&after, 0).0);
    assert_eq!((key(&before, 0).1, key(&after, 0).1, key(&after, 1).1), (Some(0), Some(2), Some(0)));
    let locked = planned.then(["lock", "."]).run();
    locked.then(["plan", "."]).stdout_has("locked: 2 downloads").run();
    let refresh = locked.then(["lock", "--refresh=a.example", "."]);
    let refreshed = refresh.stderr_has("1 download of a.example dropped; the next build records it anew").run();
    let plan = refreshed.then(["plan", "."]).stdout_has("install (1 download, 1.5KiB)").run();
    let all = plan.then(["lock", "--refresh", "."]).stderr_has("1 download dropped").stdout_has("kiln.lock").run();
    assert_eq!(key(&all.then(["plan", ".", "--json"]).run().stdout, 0), key(&before, 0));
    all.then(["lock", "--refresh", "."]).stderr_has("no downloads are recorded").run();
}

#[test]
fn n19_a_damaged_record_of_downloads_is_refused() {
    let kiln = Kiln::new().machine("network = 'locked'").spec("[[step]]\nrun = 'exit 0'");
    let hostile = lock_of_downloads().replace("http://b.example/", "file:///etc/passwd");
    let refused = kiln.file("kiln.lock", hostile).args(["plan", "."]).fails(3).stderr_has("is damaged").run();
    refused.then(["build", "."]).fails(3).stderr_has("no valid URL").run();
    refused.place().assert_nothing_published();
}
