//! The agent as a program of its own: `kiln-agent [PORT]`, std only, linked statically.

#![deny(unsafe_code)]

#[path = "mod.rs"]
mod agent;
#[path = "../wire/mod.rs"]
mod wire;

use std::process::{Command, ExitStatus};

fn main() {
    let port = std::env::args_os().nth(1).map(std::path::PathBuf::from);
    agent::run(port.as_deref(), power_off);
}

/// Every init system has a command of this name, and each stops its services first.
fn power_off() {
    let status = Command::new("poweroff").env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin").status();
    if !status.as_ref().is_ok_and(ExitStatus::success) {
        eprintln!("kiln-agent: cannot power off: {status:?}");
    }
}
