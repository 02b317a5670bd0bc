//! A host that is not as usual: limits, places, clocks and environments.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::support::{Ended, Kiln, names};
use crate::{STEP, refused};

/// What the guest sees of the image, and what the manifest says of it but for times.
fn image(ended: &Ended) -> (Vec<u8>, serde_json::Value) {
    let folder = ended.place().store().join("web/1");
    let manifest = fs::read(folder.join("manifest.json")).expect("published");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    (fs::read(folder.join("web-1.qcow2")).expect("published"), manifest["build_key"].clone())
}

#[test]
fn h11_too_few_descriptors_are_told_before_anything_begins() {
    for descriptors in [8, 40, 127] {
        let kiln = Kiln::new().spec(STEP).build().after(&format!("ulimit -n {descriptors}"));
        refused(kiln.fails(4).stderr_has(format!("only {descriptors} files")).stderr_has("ulimit -n"));
    }
    // A low limit that may be raised is raised.
    let ended = Kiln::new().spec(STEP).build().after("ulimit -S -n 40").run();
    assert_eq!(ended.place().published(), ["web@1"]);
    Kiln::new().spec(STEP).build().after("ulimit -n 128").run();
}

#[test]
fn h11_a_limit_on_the_size_of_files_is_a_clean_failure() {
    let kiln = Kiln::new().spec(STEP).build().after("ulimit -f 8; trap '' XFSZ").ends_with(&[4, 8]);
    refused(kiln);
}

#[test]
fn h12_a_qemu_that_gets_no_memory_is_a_clean_failure() {
    // It tells its version, and has no room for more.
    let script = "#!/bin/sh\ncase $* in *-incoming* | *-blockdev*) ulimit -v 1000 ;; esac\nexec \"$FAKE\" \"$@\"\n";
    let kiln = Kiln::new().file("starved", script).spec(STEP).build().env("FAKE", crate::support::fake_qemu());
    let starved = kiln.place().join("starved");
    fs::set_permissions(&starved, fs::Permissions::from_mode(0o755)).expect("ours");
    refused(kiln.env("KILN_QEMU", starved).fails(4).stderr_has("QEMU"));
}

#[test]
fn h13_times_of_inputs_and_of_yesterday_do_not_count() {
    let kiln = Kiln::new().file("data", "one").spec("[[step]]\ncopy = 'data'\nto = '/srv/data'");
    let set = |path: &Path, time| fs::File::options().write(true).open(path).and_then(|file| file.set_modified(time));
    let data = kiln.place().join("data");
    set(&data, SystemTime::now() + Duration::from_secs(10 * 365 * 86400)).expect("set");
    let built = kiln.build().run();
    set(&data, SystemTime::UNIX_EPOCH).expect("set");
    built.then(["build", "."]).stderr_has("up to date").run();
    let future = built.place().store().join("web/1/manifest.json");
    crate::support::make_writable(&future);
    set(&future, SystemTime::now() + Duration::from_secs(86400)).expect("set");
    built.then(["build", ".", "--version", "2"]).run();
    let newest = built.then(["inspect", "web", "--json"]).run();
    assert!(newest.stdout.contains("\"version\": \"2\""), "{}", newest.stdout);
}

#[test]
fn h14_neither_locale_nor_time_zone_nor_umask_nor_terminal_shows_in_the_image() {
    let usual = image(&Kiln::new().spec(STEP).build().run());
    let odd = [
        Kiln::new().env("LC_ALL", "tr_TR.UTF-8").env("LANG", "tr_TR.UTF-8"),
        Kiln::new().env("TZ", "Pacific/Kiritimati"),
        Kiln::new().env("TERM", "dumb").env("NO_COLOR", "1"),
        Kiln::new().without_env("HOME"),
        Kiln::new().env("HOME", "/nowhere"),
        Kiln::new().env("COLUMNS", "0"),
    ];
    for kiln in odd {
        assert!(image(&kiln.spec(STEP).build().run()) == usual);
    }
    for umask in ["umask 000", "umask 077"] {
        assert!(image(&Kiln::new().spec(STEP).build().after(umask).run()) == usual);
    }
}

#[test]
fn h14_no_place_to_write_is_told_with_what_to_do() {
    let kiln = Kiln::new().spec(STEP).build().without_env("KILN_STORE").without_env("KILN_CACHE").without_env("HOME");
    let ended = kiln.ends_with(&[2, 4, 8]).stderr_has("HOME").run();
    assert_eq!((ended.place().starts(), ended.errors()), (0, 1));
}

/// Another file system below each: no links between them, and no copies that share blocks.
#[test]
fn h15_store_and_cache_on_different_file_systems_make_the_same_image() {
    let usual = image(&Kiln::new().spec(STEP).build().run());
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("SKIPPED: there is no /dev/shm to be the other file system");
        return;
    };
    let store = memory.path().join("store");
    let built = Kiln::new().spec(STEP).build().env("KILN_STORE", &store).run();
    assert!(fs::read(store.join("web/1/web-1.qcow2")).expect("published") == usual.0);
    assert_eq!(built.stdout, format!("{}\n", store.join("web/1/web-1.qcow2").display()));
    assert_eq!(names(&store.join(".kiln/tmp")), [""; 0]);
    let cached = Kiln::new().spec(STEP).build().env("KILN_CACHE", memory.path().join("cache")).run();
    assert!(image(&cached) == usual);
}

#[test]
fn h16_root_is_not_needed_and_is_told_so() {
    let build = Kiln::new().spec(STEP).build().args(["-v"]);
    if nix::unistd::geteuid().is_root() {
        build.stderr_has("running as root, which kiln never needs").run();
    } else {
        assert_eq!(build.run().place().published(), ["web@1"]);
    }
}
