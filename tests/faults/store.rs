//! The store, the cache and the folders of results.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use crate::support::{Kiln, Live, qemu_img};
use crate::{STEP, fifo, open_gate, refused, refused_at_once};

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
fn d3_a_cache_that_others_may_have_written_is_refused() {
    let built = Kiln::new().spec(STEP).build().run();
    let cache = built.place().cache();
    fs::write(cache.join("digests.json"), "{}").expect("written");
    fs::set_permissions(cache.join("digests.json"), PermissionsExt::from_mode(0o600)).expect("ours");
    let set = |part: &str, mode| {
        let mode = PermissionsExt::from_mode(mode);
        fs::set_permissions(cache.join(part), mode).expect("ours");
    };
    for (part, mode) in [("", 0o777), ("layers", 0o770), ("digests.json", 0o666), ("plans", 0o757)] {
        set(part, mode);
        for command in ["plan", "build", "check", "outdated"] {
            built.then([command, "."]).fails(8).stderr_has("may write to").stderr_has("chmod -R go-w").run();
        }
        built.then(["gc"]).fails(8).run();
        set(part, if part.contains('.') { 0o600 } else { 0o700 });
        built.then(["plan", "."]).run();
    }
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(cache.join("digests.json"), Some(65_534), None).expect("root may");
        built.then(["plan", "."]).fails(8).stderr_has("belongs to user 65534").stderr_has("KILN_CACHE").run();
    }
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
fn o2_a_disk_that_a_format_has_no_room_for_is_refused_before_anything_boots() {
    for (format, disk, most) in
        [("vhd", "2041GiB", "2040 GiB, and this disk has 2041"), ("vmdk", "3TiB", "2048 GiB, and this disk has 3072")]
    {
        let kiln =
            Kiln::new().machine(&format!("disk = '{disk}'")).spec(&format!("[[output]]\nformat = '{format}'")).build();
        let expected = format!("a {format} file holds at most {most}");
        refused_at_once(kiln.fails(8).stderr_has(&expected));
    }
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

#[test]
fn c2_builds_of_different_images_on_one_base_do_not_wait_for_each_other() {
    let kiln = Kiln::new();
    let gate = fifo(kiln.place());
    let place = Arc::clone(kiln.place());
    let head = "[base]\nfile = 'base.qcow2'\n[machine]\naccel = 'tcg'\n";
    // The first stands still in a step while the others come and go.
    let text =
        |name: &str, run: &str| format!("[image]\nname = '{name}'\nversion = '1'\n{head}[[step]]\nrun = '{run}'\n");
    let first = kiln.file("first.toml", text("first", &format!("await {}", gate.display())));
    let first = first.args(["build", "first.toml"]).start();
    first.stderr_shows("provision");
    let others = ["b", "c", "d", "e", "f", "g", "h"];
    let live = others.map(|name| {
        let file = format!("{name}.toml");
        place.kiln().file(&file, text(name, "echo hello")).args(["build", &file]).start()
    });
    live.into_iter().map(Live::finish).for_each(drop);
    open_gate(&gate);
    first.finish();
    assert_eq!(place.published(), ["b@1", "c@1", "d@1", "e@1", "f@1", "first@1", "g@1", "h@1"]);
}
