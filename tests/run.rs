//! Machines of `kiln run`, with the fake QEMU: on this terminal and detached, listed, logged and stopped, and what is left
//! when something is killed.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getsid};
use serde_json::Value;
use support::{Ended, Kiln, Place, names};

const STEPS: &str = "[[step]]\nwrite = 'one'\nto = '/one'\n";

/// Ends the machines of a test that has failed.
struct Machines(Arc<Place>);

impl Drop for Machines {
    fn drop(&mut self) {
        for (id, _) in self.0.processes() {
            let _ = kill(id, Signal::SIGKILL);
        }
    }
}

/// An image in the store, and a guard for the machines that run from it.
fn built() -> (Ended, Machines) {
    let built = Kiln::new().spec(STEPS).build().run();
    let machines = Machines(Arc::clone(built.place()));
    (built, machines)
}

fn detach(built: &Ended, args: &[&str]) -> Ended {
    built.then([&["run", "web", "--detach"], args].concat()).run_beside_machines()
}

fn ps(built: &Ended) -> Vec<Value> {
    let listed = built.then(["ps", "--json"]).run_beside_machines();
    serde_json::from_str(&listed.stdout).expect("a list")
}

fn ids(built: &Ended) -> Vec<String> {
    ps(built).iter().map(|machine| machine["id"].as_str().unwrap().to_owned()).collect()
}

fn pid(machine: &Value) -> Pid {
    Pid::from_raw(i32::try_from(machine["pid"].as_i64().unwrap()).unwrap())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn wait_until(what: &str, is: impl Fn() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Requests the page of a machine's web server through its forwarded port.
fn fetch(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

#[test]
fn a_detached_machine_is_listed_reached_logged_and_stopped() {
    let (built, _machines) = built();
    let port = free_port();
    let started = detach(&built, &["-p", &format!("{port}:80")]);
    assert_eq!(started.stdout, "web-1\n");
    assert!(
        started.stderr.contains(&format!("127.0.0.1:{port} leads to port 80/tcp of the guest")),
        "{}",
        started.stderr
    );
    assert!(fetch(port).contains("the page of the guest"));
    let listed = ps(&built);
    assert_eq!(listed.len(), 1);
    let expected = [("id", "web-1"), ("image", "web@1"), ("mode", "detached"), ("state", "running")];
    for (key, value) in expected {
        assert_eq!(listed[0][key], value);
    }
    assert_eq!(listed[0]["ports"][0], format!("127.0.0.1:{port}->80/tcp"));
    assert_eq!(getsid(Some(pid(&listed[0]))), Ok(pid(&listed[0])), "a session of its own");
    let table = built.then(["ps"]).stdout_has("web-1  web@1").run_beside_machines();
    assert!(table.stdout.contains("running (detached)"), "{}", table.stdout);
    // What the guest writes to its console is in its log, and a second machine has a number and ports of its own.
    wait_until("the console", || built.then(["logs", "web-1"]).run_beside_machines().stdout.contains("Linux version"));
    assert_eq!(detach(&built, &["-p", "80"]).stdout, "web-2\n");
    assert_eq!(ids(&built), ["web-1", "web-2"]);
    let stopped = built.then(["stop", "web-1"]).run_beside_machines();
    assert_eq!((&*stopped.stdout, &*stopped.stderr), ("", "stopped web-1\n"));
    assert_eq!(ids(&built), ["web-2"]);
    built.then(["stop", "--all"]).stderr_has("stopped web-2").run();
    assert!(ps(&built).is_empty());
    built.then(["stop", "web-1"]).fails(2).stderr_has("no machine `web-1` is running").run();
    assert_eq!(built.place().fake_log().iter().filter(|line| *line == "power button").count(), 2);
}

#[test]
fn a_machine_that_does_not_power_off_is_killed_in_time() {
    let (built, _machines) = built();
    let start = || built.then(["run", "web", "-d"]).fake("ignores-power-button").run_beside_machines();
    start();
    let stopped = built.then(["stop", "web-1", "--timeout", "1s"]).run();
    assert_eq!(stopped.stderr, "killed web-1: it did not power off within 1s\n");
    start();
    let stopped = built.then(["stop", "--all", "--now"]).run();
    assert_eq!(stopped.stderr, "killed web-1\n");
    let buttons = built.place().fake_log().iter().filter(|line| *line == "power button").count();
    assert_eq!(buttons, 1, "--now does not ask");
}

#[test]
fn nothing_is_left_of_a_machine_whose_kiln_is_killed() {
    let (built, _machines) = built();
    detach(&built, &[]);
    let machine = &ps(&built)[0];
    kill(pid(machine), Signal::SIGKILL).unwrap();
    built.place().assert_no_process();
    // A process that ends gives up its memory before its locks, so it may look gone and hold them.
    wait_until("the end of its locks", || ps(&built).is_empty());
    built.place().assert_no_leftovers();
    // QEMU's own end is the machine's.
    detach(&built, &[]);
    kill(built.place().qemu(), Signal::SIGKILL).unwrap();
    wait_until("the machine's end", || ps(&built).is_empty());
    built.place().assert_no_process();
    built.place().assert_no_leftovers();
}

#[test]
fn a_machine_on_a_terminal_ends_with_its_kiln_and_a_detached_one_does_not() {
    let (built, _machines) = built();
    let start = || {
        let live = built.then(["run", "web", "-p", "80"]).fake("waits").start();
        wait_until("the console", || built.place().fake_log().iter().any(|line| line == "console"));
        live
    };
    let live = start();
    assert_eq!(ps(&built)[0]["mode"], "foreground");
    built.then(["logs", "web-1"]).fails(2).stderr_has("is on the terminal").run_beside_machines();
    live.kill();
    assert!(ps(&built).is_empty());
    built.place().assert_no_leftovers();
    // Stopped from elsewhere.
    fs::remove_file(built.place().join("fake.log")).unwrap();
    let live = start();
    built.then(["stop", "web-1"]).run_beside_machines();
    live.finish();
}

#[test]
fn an_image_that_runs_is_not_removed() {
    let (built, _machines) = built();
    detach(&built, &[]);
    let refused = built.then(["remove", "web"]).fails(8).run_beside_machines();
    assert!(refused.stderr.contains("machines run from it: web-1"), "{}", refused.stderr);
    assert!(refused.stderr.contains("`kiln stop web-1`"), "{}", refused.stderr);
    // A newer version: the older one is no longer kept for being the newest.
    built.then(["build", ".", "--version", "2"]).run_beside_machines();
    let kept = built.then(["gc", "--keep", "1"]).run_beside_machines();
    assert!(kept.stderr.contains("kept  web@1  web@1 is in use"), "{}", kept.stderr);
    assert_eq!((built.place().published(), ids(&built)), (vec!["web@1".into(), "web@2".into()], vec!["web-1".into()]));
    built.then(["stop", "web-1"]).run();
    built.then(["gc", "--keep", "1"]).run();
    assert_eq!(built.place().published(), ["web@2"]);
}

#[test]
fn a_guest_that_panics_is_listed_with_its_reason_and_its_console() {
    let (built, _machines) = built();
    built.then(["run", "web", "--detach"]).fake("panics-at-boot").run_beside_machines();
    wait_until("the panic", || ps(&built)[0]["state"] == "stalled");
    built.then(["ps"]).stdout_has("stalled (detached): the guest's kernel panicked").run_beside_machines();
    built.then(["logs", "web-1"]).stdout_has("Kernel panic - not syncing").run_beside_machines();
    built.then(["stop", "web-1"]).stderr_has("stopped web-1").run();
}

#[test]
fn a_machine_that_does_not_start_is_an_error_of_the_command_that_starts_it() {
    let (built, _machines) = built();
    let failed = built.then(["run", "web", "--detach"]).fake("refuses-argv").fails(4).run();
    assert!(failed.stdout.is_empty() && failed.stderr.contains("-sandbox: invalid option"), "{}", failed.stderr);
    assert_eq!(failed.errors(), 1);
    built.then(["run", "other", "--detach"]).fails(8).stderr_has("other").run();
    assert!(ps(&built).is_empty());
}

#[test]
fn a_taken_port_is_refused_with_who_has_it() {
    let (built, _machines) = built();
    let mine = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = mine.local_addr().unwrap().port();
    let refused = built.then(["run", "web", "-p", &format!("{taken}:80")]).fails(4).run();
    let who = format!("port {taken} of 127.0.0.1 is taken by `");
    assert!(refused.stderr.contains(&who), "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("process {}", std::process::id())), "{}", refused.stderr);
    let port = free_port();
    detach(&built, &["-p", &format!("{port}:80")]);
    let refused = built.then(["run", "web", "-d", "-p", &format!("{port}:80")]).fails(4).run_beside_machines();
    assert!(refused.stderr.contains("is taken by the machine web-1"), "{}", refused.stderr);
    assert!(refused.stderr.contains("`kiln stop web-1`"), "{}", refused.stderr);
    built.then(["run", "web", "-p", "80:80/tcp", "-p", "80:81"]).ends_with(&[2, 4]).run_beside_machines();
    built.then(["run", "web", "-p", "http"]).fails(2).stderr_has("HOST:GUEST").run_beside_machines();
}

/// Reads a file of the seed that QEMU was given.
fn seed_file(folder: &Path, name: &str) -> String {
    let mut disk = std::io::Cursor::new(fs::read(folder.join("seed.img")).unwrap());
    let volume = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new()).unwrap();
    let mut text = String::new();
    volume.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_clone_gets_the_users_data_disks_and_keys() {
    let (built, _machines) = built();
    let place = built.place();
    fs::create_dir_all(place.join("home/.ssh")).unwrap();
    fs::write(place.join("home/.ssh/id.pub"), "ssh-ed25519 AAAAmine me@here\n").unwrap();
    fs::write(place.join("user-data"), "#!/bin/sh\necho hello\n").unwrap();
    support::qemu_img(&["create", "-q", "-f", "qcow2", place.join("data.qcow2").to_str().unwrap(), "1M"]);
    let started = detach(
        &built,
        &["--user-data", "user-data", "--disk", "data.qcow2", "--cpus", "3", "--memory", "256MiB", "--ssh"],
    );
    let folder = place.cache().join("machines/web-1");
    let data = seed_file(&folder, "user-data");
    assert!(data.starts_with("Content-Type: multipart/mixed"), "{data}");
    let machine = &ps(&built)[0];
    let line = fs::read(format!("/proc/{}/cmdline", place.qemu())).unwrap();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    for part in ["-smp 3", "size=262144k", "serial=kiln-extra1", "/data.qcow2", ":22 "] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    // The way in is told: the key of the clone, and known hosts of its own.
    let ssh: Vec<&str> = machine["ssh"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!((ssh[0], ssh.last()), ("ssh", Some(&"USER@127.0.0.1")));
    assert!(started.stderr.contains("-o IdentitiesOnly=yes") && started.stderr.contains("machines/web-1/known_hosts"));
    assert_eq!(names(&folder).iter().filter(|name| name.starts_with("id_ed25519")).count(), 2);
    built.then(["stop", "--all"]).run();
    let refused = built.then(["run", "web", "--disk", "user-data,format=qcow2"]).fails(2).run();
    assert!(refused.stderr.contains("qcow2 was expected, but the file is a text file"), "{}", refused.stderr);
    built.then(["run", "web", "--user-data", "base.qcow2"]).fails(2).stderr_has("is not UTF-8").run();
}

#[test]
fn logs_are_found_by_image_spec_and_failed_build() {
    let (built, _machines) = built();
    built.then(["logs", "web"]).stdout_has("step 1/1").run();
    built.then(["logs", "web@1", "--console"]).stdout_has("Linux version").run();
    built.then(["logs", "."]).stdout_has("step 1/1").run();
    let spec = built.then(["build", ".", "--version", "2"]).fails(7);
    let spec = spec.spec("[[step]]\nrun = 'echo why; exit 3'\n").run();
    spec.then(["logs", ".", "--version", "2"]).stdout_has("| why").run();
    spec.then(["logs", "web-2"]).stdout_has("| why").run();
    spec.then(["logs", "web@2"]).stdout_has("| why").run();
    spec.then(["logs", "nothing"]).fails(2).stderr_has("no image, failed build or running machine").run();
    spec.then(["logs", "../failed"]).ends_with(&[2, 3]).run();
    spec.then(["logs", "-f", "web"]).fails(2).stderr_has("not a running machine").run();
}
