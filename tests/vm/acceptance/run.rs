//! Clones of a real image: its page fetched through a forwarded port, SSH, the agent's shell, and a power-off in order.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::pty::openpty;
use serde_json::Value;

use crate::bench::Bench;

const PAGE: &str = r#"
[machine]
boot = "direct"
[[step]]
write = "hello from the guest\n"
to = "/srv/site/index.html"
[[step]]
write = """
[Unit]
Description=A page
[Service]
ExecStart=/usr/bin/python3 -m http.server --directory /srv/site 80
[Install]
WantedBy=multi-user.target
"""
to = "/etc/systemd/system/page.service"
[[step]]
run = "systemctl enable page.service"
[[test]]
unit = "page.service"
"#;

/// A boot under software emulation on a loaded host.
const PATIENCE: Duration = Duration::from_secs(400);

/// Requests the page; `None` as long as nobody answers.
fn fetch(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    (!page.is_empty()).then_some(page)
}

/// Waits until `look` finds something.
fn wait_for<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            println!("{what} after {:.1} s", began.elapsed().as_secs_f64());
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what} never came");
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn port_to(machine: &Value, guest: &str) -> u16 {
    let mut ports = machine["ports"].as_array().unwrap().iter().map(|port| port.as_str().unwrap());
    let port = ports.find_map(|port| port.strip_suffix(&format!("->{guest}/tcp"))).unwrap();
    port.rsplit(':').next().unwrap().parse().unwrap()
}

fn machines(bench: &Bench) -> Vec<Value> {
    serde_json::from_slice(&bench.kiln(&["ps", "--json"]).stdout).unwrap()
}

#[test]
#[ignore = "boots several VMs"]
fn a_clone_serves_its_page_lets_its_user_in_and_powers_off() {
    let bench = Bench::cold();
    bench.builds(&bench.spec("page", PAGE));
    let data = bench.path("user-data");
    std::fs::write(&data, "#cloud-config\nwrite_files: [{path: /etc/given, content: given}]\n").unwrap();
    let args = ["run", "page", "--detach", "-p", "80", "--ssh", "--user-data", data.to_str().unwrap()];
    let started = bench.kiln(&args);
    assert_eq!(started.stdout, b"page-1\n", "{}", String::from_utf8_lossy(&started.stderr));
    let machine = machines(&bench).remove(0);
    let page = wait_for("the page", || fetch(port_to(&machine, "80")));
    assert!(page.ends_with("hello from the guest\n"), "{page}");
    let ssh: Vec<&str> = machine["ssh"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    let login = || {
        let mut command = Command::new(ssh[0]);
        let output = command.args(&ssh[1..]).args(["-o", "BatchMode=yes", "id -un; cat /etc/given"]).output().unwrap();
        output.status.success().then_some(output.stdout)
    };
    assert_eq!(wait_for("the login", login), b"debian\ngiven");
    let stopped = bench.kiln(&["stop", "page-1", "--timeout", "5m"]);
    assert_eq!(stopped.stderr, b"stopped page-1\n");
    assert!(machines(&bench).is_empty() && bench.processes().is_empty(), "{:?}", bench.processes());
    log_in_on_a_terminal(&bench);
    open_a_shell(&bench);
    bench.nothing_left();
}

/// `--ssh` logs in by itself; the end of the session is the machine's, and its exit code is kiln's.
fn log_in_on_a_terminal(bench: &Bench) {
    let pty = openpty(None, None).unwrap();
    let slave = || Stdio::from(OwnedFd::try_clone(&pty.slave).unwrap());
    let mut command = bench.command(&["run", "page", "--ssh"]);
    let mut kiln = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
    let master = File::from(pty.master);
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    let mut wait_for_text = |text: &str| {
        while !seen.contains(text) {
            let count = (&master).read(&mut buffer).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    wait_for_text("debian@localhost:");
    (&master).write_all(b"echo $((6 * 7)) answers; exit 7\r").unwrap();
    let status = kiln.wait().unwrap();
    assert_eq!(status.code(), Some(7));
    assert!(machines(bench).is_empty() && bench.processes().is_empty(), "{:?}", bench.processes());
}

/// `kiln shell IMAGE` needs neither SSH nor keys.
fn open_a_shell(bench: &Bench) {
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo 'id -un; systemctl is-active page.service; exit 4' | \"$0\" shell page"]);
    shell.arg(env!("CARGO_BIN_EXE_kiln"));
    shell.env("KILN_STORE", bench.path("store")).env("KILN_CACHE", &bench.cache).env("HOME", bench.folder.path());
    let output = shell.output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"root\nactive\n");
}
