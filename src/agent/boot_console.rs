//! The console of a direct boot: what the first process has to say, and the errors of the programs that it runs.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use super::login::SYSTEM_PATH;
use crate::wire::direct_boot::REPORT_PREFIX;

const CONSOLE: &str = "/dev/console";

/// Shows a sentence on the console, whose end the host shows with an error.
pub fn report(text: &str) {
    let _ = fs::write(CONSOLE, format!("\r\n{REPORT_PREFIX}{text}\r\n"));
}

/// Runs a program of the guest. Its errors are shown on the console: a guest may be built without what it does.
pub fn run_program(program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", SYSTEM_PATH).stdin(Stdio::null()).stdout(Stdio::null());
    if let Ok(console) = File::options().write(true).open(CONSOLE) {
        command.stderr(console);
    }
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => report(&format!("{program} {}: {status}", arguments.join(" "))),
        Err(error) => report(&format!("{program}: {error}")),
    }
}
