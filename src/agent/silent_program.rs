//! Runs programs of the guest whose output nobody needs.

use std::process::{Child, Command, Stdio};

use super::login::SYSTEM_PATH;

/// Starts a program whose output is discarded. One that cannot be started is ignored.
pub fn start(program: &str, arguments: &[&str]) -> Option<Child> {
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", SYSTEM_PATH);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
}

/// Runs a program to its end, and returns whether it has succeeded.
pub fn succeeds(program: &str, arguments: &[&str]) -> bool {
    start(program, arguments).is_some_and(|mut child| child.wait().is_ok_and(|status| status.success()))
}
