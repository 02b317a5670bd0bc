//! The agent as a program of its own: `kiln-agent [PORT]`, std only, linked statically. In kiln's initramfs it is also the
//! first process, which starts it again as `kiln-agent --direct`. [`agent::planted`] describes the other arguments.

#![deny(unsafe_code)]

#[path = "mod.rs"]
mod agent;
#[path = "../wire/mod.rs"]
mod wire;

fn main() {
    if agent::init::is_first_process() {
        agent::init::run();
    }
    let argument = std::env::args_os().nth(1);
    match argument.as_ref().and_then(|argument| argument.to_str()) {
        Some(agent::init::DIRECT) => {
            agent::boot_mode::declare_direct();
            agent::run(None, agent::init::power_off);
        }
        Some(agent::planted::PLANT) => agent::planted::plant_self().unwrap_or_else(end),
        Some(agent::planted::PLANTED) => {
            agent::planted::move_to_memory().unwrap_or_else(end);
            agent::boot_mode::declare_planted();
            agent::run(None, agent::shutdown::power_off);
        }
        _ => agent::run(argument.as_deref().map(std::path::Path::new), agent::shutdown::power_off),
    }
}

fn end(error: std::io::Error) {
    eprintln!("kiln-agent: {error}");
    std::process::exit(1);
}
