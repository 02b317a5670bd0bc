//! The agent as a program of its own: `kiln-agent [PORT]`, std only, linked statically. In kiln's initramfs it is also the
//! first process, which starts it again as `kiln-agent --direct`.

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
    if argument.as_ref().is_some_and(|argument| argument == agent::init::DIRECT) {
        agent::boot_mode::declare_direct();
        agent::run(None, agent::init::power_off);
        return;
    }
    agent::run(argument.as_deref().map(std::path::Path::new), agent::shutdown::power_off);
}
