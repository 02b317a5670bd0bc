//! The agent as a program of its own: `kiln-agent [PORT]`, std only, linked statically.

#![deny(unsafe_code)]

#[path = "mod.rs"]
mod agent;
#[path = "../wire/mod.rs"]
mod wire;

use std::path::Path;
use std::process::{Command, ExitStatus};

fn main() {
    let port = std::env::args_os().nth(1).map(std::path::PathBuf::from);
    agent::run(port.as_deref(), power_off);
}

/// Every init system has a `poweroff`, which stops services first. systemd's are stopped already, by sealing: its
/// `--force` goes straight to ending processes and unmounting file systems (systemctl(1); that of `poweroff` would not).
fn power_off() {
    let systemd = Path::new("/run/systemd/system").is_dir();
    let argv: &[&str] = if systemd { &["systemctl", "poweroff", "--force"] } else { &["poweroff"] };
    let mut command = Command::new(argv[0]);
    let status = command.args(&argv[1..]).env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin").status();
    if !status.as_ref().is_ok_and(ExitStatus::success) {
        eprintln!("kiln-agent: cannot power off: {status:?}");
    }
}
