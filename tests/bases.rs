//! Base images that are downloaded, through the binary: verified, kept, gone on with, locked and used offline.

#[path = "downloads/server.rs"]
#[expect(dead_code, reason = "this program uses its own part of it")]
mod server;
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use server::Server;
use sha2::{Digest, Sha256};
use support::{Kiln, names};

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A spec over a download.
fn spec(kiln: Kiln, base: &str) -> Kiln {
    let text = format!(
        "[image]\nname = 'web'\nversion = '1'\n[base]\n{base}\n[machine]\naccel = 'tcg'\n[[step]]\nrun = 'echo hello'\n"
    );
    kiln.file("kiln.toml", text)
}

fn image(kiln: &Kiln) -> Vec<u8> {
    fs::read(kiln.place().join("base.qcow2")).unwrap()
}

#[test]
fn a_download_is_built_on_and_kept() {
    let kiln = Kiln::new();
    let body = image(&kiln);
    let server = Server::of(&Arc::new(body.clone()));
    let base = format!("url = '{}'\nsha256 = '{}'", server.url("debian.qcow2"), sha256(&body));
    let kiln = spec(kiln, &base);
    let ended = kiln.args(["check", "."]).stderr_has("ok, 1 step; ").run();
    ended.then(["plan", "."]).fails(5).stderr_has("debian.qcow2").run();
    ended.then(["build", ".", "--offline"]).fails(5).stderr_has("debian.qcow2").run();
    assert_eq!(server.seen().len(), 0, "asked without leave");
    let built = ended.then(["build", "."]).stderr_has("download http://127.0.0.1").run();
    let manifest = fs::read_to_string(built.place().store().join("web/1/manifest.json")).unwrap();
    assert!(manifest.contains(&server.url("debian.qcow2")), "{manifest}");
    built.then(["build", ".", "--version", "2", "--offline"]).run();
    built.then(["plan", ".", "--offline"]).stdout_has("/cache/downloads/sha256/").run();
    assert_eq!(server.seen().len(), 1, "downloaded again");
    let swept = built.then(["gc", "--keep-cache", "1B"]).stderr_has("removed 1 download ").run();
    assert_eq!(names(&swept.place().cache().join("downloads/sha256")), [""; 0]);
}

#[test]
fn b1_a_wrong_digest_leaves_nothing_usable_and_names_both() {
    let kiln = Kiln::new();
    let server = Server::of(&Arc::new(image(&kiln)));
    let wrong = "ab".repeat(32);
    let kiln = spec(kiln, &format!("url = '{}'\nsha256 = '{wrong}'", server.url("debian.qcow2")));
    let right = sha256(&image(&kiln));
    let ended = kiln.build().fails(5).stderr_has(wrong).stderr_has(right).run();
    assert_eq!(names(&ended.place().cache().join("downloads/sha256")), [""; 0]);
    assert_eq!(names(&ended.place().cache().join("downloads/part")), [""; 0]);
    ended.place().assert_nothing_published();
}

#[test]
fn a_packed_image_is_unpacked_and_a_mirror_is_asked_when_the_first_place_fails() {
    let kiln = Kiln::new();
    let packed = kiln.place().join("base.qcow2.xz");
    let done = Command::new("xz").args(["--keep", "base.qcow2"]).current_dir(kiln.place().path()).status();
    assert!(done.expect("xz is installed").success());
    let body = fs::read(&packed).unwrap();
    let server = Server::start(|_, reply| reply.head(404, &[("Content-Length", "0")]));
    let base = format!(
        "url = '{}'\nmirrors = ['file://{}']\nsha256 = '{}'",
        server.url("base.qcow2.xz"),
        packed.display(),
        sha256(&body)
    );
    spec(kiln, &base).build().stderr_has("404").run();
    assert_eq!(server.seen().len(), 1);
}

/// What the server sent the second time is the rest.
#[test]
fn a_killed_build_goes_on_with_its_download() {
    let kiln = Kiln::new();
    // Large enough to be cut.
    let large = kiln.place().join("large.raw");
    let noise: Vec<u8> = (0..1u64 << 20).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    fs::write(&large, &noise).unwrap();
    let (body, cut) = (Arc::new(noise), Arc::new(AtomicBool::new(true)));
    let half = body.len() / 2;
    let (sent, cutting) = (body.clone(), cut.clone());
    let server = Server::start(move |seen, reply| {
        let from = reply.good_head(seen, sent.len())?;
        if cutting.load(Ordering::SeqCst) {
            reply.send(&sent[from..half])?;
            // Until the client is dead.
            std::thread::sleep(std::time::Duration::from_secs(20));
        }
        reply.send(&sent[from.max(if seen.number == 0 { half } else { 0 })..])
    });
    let base = format!("url = '{}'\nformat = 'raw'\nsha256 = '{}'", server.url("large.raw"), sha256(&body));
    let kiln = spec(kiln, &base).args(["build", ".", "--progress", "json"]);
    let place = kiln.place().clone();
    let live = kiln.start();
    live.stderr_shows(r#""event":"download-started""#);
    let part = place.cache().join("downloads/part");
    let is_half = || {
        let files = names(&part).into_iter().map(|name| part.join(name).join("data"));
        files.filter_map(|file| fs::metadata(file).ok()).any(|file| file.len() >= (half - (1 << 20)) as u64)
    };
    let began = std::time::Instant::now();
    while !is_half() && began.elapsed() < support::PATIENCE {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    live.kill();
    cut.store(false, Ordering::SeqCst);
    place.kiln().args(["build", "."]).run();
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen[1].from.is_some_and(|from| from >= half - (1 << 20)), "{seen:?}");
    assert!(seen[1].sent <= body.len() - half + (1 << 20), "{seen:?}");
}

#[test]
fn a_lock_pins_what_a_list_of_digests_said() {
    let kiln = Kiln::new();
    let body = image(&kiln);
    let folder = kiln.place().path().display().to_string();
    let list = format!("{}  base.qcow2\n", sha256(&body));
    let kiln = kiln.file("SHA256SUMS", &list);
    let base = format!(
        "url = 'file://{folder}/base.qcow2'\nsums = 'file://{folder}/SHA256SUMS'\nsums-sha256 = '{}'",
        sha256(list.as_bytes())
    );
    let locked = spec(kiln, &base).args(["lock", "."]).stdout_has("kiln.lock").run();
    let text = fs::read_to_string(locked.place().join("kiln.lock")).unwrap();
    assert!(text.contains(&sha256(&body)), "{text}");
    // The list is gone, and what it said still counts.
    fs::remove_file(locked.place().join("SHA256SUMS")).unwrap();
    locked.then(["build", ".", "--locked", "--offline"]).run();
    assert!(Path::new(&locked.place().store().join("web/1/web-1.qcow2")).exists());
}

#[test]
fn a_lock_counts_for_the_list_it_was_written_from() {
    let kiln = Kiln::new();
    let body = image(&kiln);
    let folder = kiln.place().path().display().to_string();
    let list = format!("{}  base.qcow2\n", sha256(&body));
    let longer = format!("# ours\n{list}");
    let kiln = kiln.file("SHA256SUMS", &list).file("LONGER", &longer);
    let by = |name: &str, list: &str| {
        let sha256 = sha256(list.as_bytes());
        format!("url = 'file://{folder}/base.qcow2'\nsums = 'file://{folder}/{name}'\nsums-sha256 = '{sha256}'")
    };
    let locked = spec(kiln, &by("SHA256SUMS", &list)).args(["lock", "."]).run();
    locked.then(["build", ".", "--locked"]).run();
    let lock = locked.place().join("kiln.lock");
    let text = fs::read_to_string(&lock).unwrap();
    for base in [by("LONGER", &longer), by("SHA256SUMS", &longer)] {
        let kiln = spec(locked.place().kiln(), &base);
        kiln.args(["build", ".", "--locked"]).fails(3).stderr_has("is stale").stderr_has("`kiln lock`").run();
    }
    // One that was written before it said so counts still.
    let older: String =
        text.lines().filter(|line| !line.starts_with("trust")).map(|line| format!("{line}\n")).collect();
    assert_ne!(older, text);
    fs::write(&lock, older).unwrap();
    spec(locked.place().kiln(), &by("LONGER", &longer)).args(["build", ".", "--locked", "--version", "2"]).run();
}

#[test]
fn a_download_that_is_not_what_was_locked_names_the_lock() {
    let kiln = Kiln::new();
    let body = image(&kiln);
    let folder = kiln.place().path().display().to_string();
    let list = format!("{}  base.qcow2\n", sha256(&body));
    let base = format!(
        "url = 'file://{folder}/base.qcow2'\nsums = 'file://{folder}/SHA256SUMS'\nsums-sha256 = '{}'",
        sha256(list.as_bytes())
    );
    let locked = spec(kiln.file("SHA256SUMS", &list), &base).args(["lock", "."]).run();
    fs::remove_dir_all(locked.place().cache()).unwrap();
    fs::write(locked.place().join("base.qcow2"), "another").unwrap();
    let note = "pinned by kiln.lock; `kiln lock` updates it";
    locked.then(["build", "."]).fails(5).stderr_has("the digest is wrong").stderr_has(note).run();
    // A digest that the spec states is the spec's.
    let stated = format!("url = 'file://{folder}/base.qcow2'\nsha256 = '{}'", sha256(&body));
    let kiln = spec(locked.place().kiln(), &stated);
    let wrong = kiln.args(["build", "."]).fails(5).stderr_has("the digest is wrong").run();
    assert!(!wrong.stderr.contains(note), "{}", wrong.stderr);
}

#[test]
fn what_is_here_already_is_not_told_as_a_download() {
    let kiln = Kiln::new();
    let body = image(&kiln);
    let server = Server::of(&Arc::new(body.clone()));
    let base = format!("url = '{}'\nsha256 = '{}'", server.url("debian.qcow2"), sha256(&body));
    let built = spec(kiln, &base).args(["build", ".", "--progress", "json"]).run();
    for event in ["download-started", "download-finished"] {
        assert_eq!(built.stderr.matches(event).count(), 1, "{event}: {}", built.stderr);
    }
    // Nothing is remembered of it, so that it is hashed again.
    let _ = fs::remove_file(built.place().cache().join("digests.json"));
    let again = built.then(["build", ".", "--version", "2", "--progress", "json"]).run();
    assert!(!again.stderr.contains("download-"), "{}", again.stderr);
    assert!(!again.stderr.contains(r#""event":"progress","stage":"base""#), "{}", again.stderr);
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn a_base_that_was_checked_at_the_end_of_a_build_is_not_hashed_by_the_next() {
    let kiln = Kiln::new();
    let body = image(&kiln);
    let server = Server::of(&Arc::new(body.clone()));
    let fifo = kiln.place().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let base = format!("url = '{}'\nsha256 = '{}'", server.url("debian.qcow2"), sha256(&body));
    let kiln = spec(kiln, &base);
    let text = fs::read_to_string(kiln.place().join("kiln.toml")).unwrap();
    let text = text.replace("echo hello", &format!("await {}", fifo.display()));
    let kiln = kiln.file("kiln.toml", text).args(["build", "."]);
    let place = kiln.place().clone();
    let live = kiln.start();
    live.stderr_shows("step 1/1");
    // A file that is younger is hashed again in any case.
    std::thread::sleep(std::time::Duration::from_millis(3500));
    fs::write(&fifo, "").unwrap();
    live.finish();
    let remembered = fs::read_to_string(place.cache().join("digests.json")).unwrap_or_default();
    assert!(remembered.contains(&sha256(&body)), "{remembered}");
}

/// The partition that the guest reports for its root ends where the base does.
#[test]
fn a_root_that_does_not_grow_with_the_disk_is_warned_of() {
    let spec = "[[step]]\nrun = 'echo hello'\n";
    let kiln = Kiln::new().machine("disk = '4GiB'").spec(spec).build();
    kiln.stderr_has("of the disk's 4GiB: the base image did not grow its partition, which could have").run();
}
