//! The agent as a program of its own: `kiln-agent [PORT]`, std only, linked statically.

#![deny(unsafe_code)]

#[path = "mod.rs"]
mod agent;
#[path = "../wire/mod.rs"]
mod wire;

fn main() {
    let port = std::env::args_os().nth(1).map(std::path::PathBuf::from);
    agent::run(port.as_deref(), agent::shutdown::power_off);
}
