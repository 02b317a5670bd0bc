//! Faults, one test each: the documented exit code in bounded time, one error that says what, where and what to do, and
//! nothing left behind. Rows of the fault table give their names to tests.

#[path = "../support/mod.rs"]
mod support;

mod boot;
mod cloud_init;
mod direct_boot;
mod host;
mod hostile;
mod inputs;
mod kills;
mod mounts;
mod planted;
mod project;
mod qemu;
mod scripts;
mod secrets;
mod separate_kernel;
mod steps;
mod store;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use support::{Ended, Kiln, PATIENCE, Place, names};

const STEP: &str = "[[step]]\nname = 'greet'\nrun = 'echo hello'\n";
/// A second under KVM, and what kiln makes of it under software emulation.
const BOOT_TIMEOUT: &str = "boot-timeout = '1s'";
/// What a user may be kept waiting after one Ctrl-C, and after the second.
const ONCE: Duration = Duration::from_secs(5);
const TWICE: Duration = Duration::from_secs(1);

/// A build of one step with this script.
fn step(script: &str) -> Kiln {
    Kiln::new().spec(&format!("[[step]]\nname = 'greet'\nrun = '{script}'\n")).build()
}

/// A build whose QEMU misbehaves.
fn fault(mode: &str) -> Kiln {
    Kiln::new().spec(STEP).build().fake(mode)
}

/// Runs a build that must fail: one error, and nothing in the store.
fn refused(kiln: Kiln) -> Ended {
    let ended = kiln.run();
    assert_eq!(ended.stdout, "", "a failure has no result");
    assert_eq!(ended.errors(), 1, "one error explains it: {}", ended.stderr);
    ended.place().assert_nothing_published();
    ended
}

/// A refused build that never got as far as starting a machine.
fn refused_at_once(kiln: Kiln) -> Ended {
    let ended = refused(kiln);
    assert_eq!(ended.place().starts(), 0, "nothing is booted");
    ended
}

fn fifo(place: &Place) -> PathBuf {
    let path = place.join("gate");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("made");
    path
}

/// Lets a step go on that awaits this FIFO, when it has come so far.
fn open_gate(gate: &Path) {
    let gate = gate.to_owned();
    let (tell, told) = mpsc::channel();
    // Opening waits for the other end: for ever, where the step never runs.
    thread::spawn(move || tell.send(fs::write(gate, "")));
    told.recv_timeout(PATIENCE).expect("the step runs").expect("written");
}

/// Every file below a folder that holds the text, by its name.
fn files_with(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in names(folder) {
        let path = folder.join(name);
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if fs::read(&path).expect("read").windows(text.len()).any(|window| window == text.as_bytes()) {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_build_publishes_and_the_next_one_is_up_to_date() {
    let built = Kiln::new().spec(STEP).build().stderr_has("| hello").run();
    let place = built.place();
    assert_eq!(built.stdout, format!("{}\n", place.store().join("web/1/web-1.qcow2").display()));
    assert_eq!(place.published(), ["web@1"]);
    assert_eq!(place.starts(), 1);
    let log = place.fake_log();
    assert!(log.iter().any(|line| line.starts_with("seal ") && line.contains("machine-id")), "{log:?}");
    assert_eq!(log.last().map(String::as_str), Some("bye"));
    built.then(["build", "."]).stderr_has("up to date").run();
    assert_eq!(place.starts(), 1, "nothing is booted");
}
