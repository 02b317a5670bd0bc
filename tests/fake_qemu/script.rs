//! The language of this guest's steps: a command a line (or between `;`), none of which touches the host.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kiln::wire::cloud_init::SeedObstacle;
use kiln::wire::{Aftermath, ExecRequest, Exit, HiddenBytes, LateOutput, LeftProcess, Message};

use super::hostile;

/// How often `flaky` ran in this machine.
static FLAKY_RUNS: AtomicUsize = AtomicUsize::new(0);

/// What comes of a script.
pub enum Does {
    /// Its output, and its end.
    Ends(Vec<Message>, Exit),
    /// Its output, and then nothing until its time-out, if it has one.
    Hangs(Vec<Message>, Option<Duration>),
    /// So many bytes without a newline, as fast as they are taken, and success.
    Floods(usize),
    /// Its output, and then something that no agent says: which, as `hostile` knows it.
    Says(Vec<Message>, String),
    /// Its output, and then a misfortune of the machine or the agent.
    Fault(Vec<Message>, Fault),
}

/// What can befall the guest in the middle of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The kernel panics.
    Panic,
    /// It resets itself.
    Reboot,
    /// It turns itself off.
    PowerOff,
    /// The host's disk is full.
    DiskFull,
    /// The virtual CPUs stop.
    Stop,
    /// QEMU is killed, as the kernel does for want of memory.
    Killed,
    /// The port closes in the middle of a frame.
    HalfFrame,
    /// A frame with an absurd length.
    Garbage,
    /// The agent starts anew.
    AgentDies,
    /// The agent ends, and nothing starts it again.
    AgentEnds,
}

/// Reads a script up to the command that ends it. `file` gives the content of a file of this guest.
pub fn run(script: &str, request: &ExecRequest, file: impl Fn(&str) -> Option<Vec<u8>>) -> Does {
    let mut out = Vec::new();
    for line in script.lines().flat_map(|line| line.split(';')).map(str::trim) {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut print = |text: &[u8]| out.push(Message::Stdout { bytes: [text, b"\n"].concat() });
        match command {
            // The guest itself writes a secret to its console, and a UEFI variable; `seed_change` says what the last three do.
            "" | "true" | "#!/bin/sh" | "console" | "uefi" | "breaks" | "disables" | "mends" => {}
            "echo" => print(rest.as_bytes()),
            "obeyed" => print(hostile::OBEYED.as_bytes()),
            "modes" => print(hostile::MODES.as_bytes()),
            "warn" => out.push(Message::Stderr { bytes: format!("{rest}\n").into_bytes() }),
            "secret" => match request.secrets.iter().find(|secret| secret.name == rest) {
                Some(secret) => print(&secret.value.0),
                None => return unknown(out, line),
            },
            // 4090 digits, then a secret: across the place where kiln cuts a long line.
            "long" => match request.secrets.iter().find(|secret| secret.name == rest) {
                Some(secret) => print(&[&[b'0'; 4090][..], &secret.value.0].concat()),
                None => return unknown(out, line),
            },
            // A secret on standard error, in two frames.
            "halves" => match request.secrets.iter().find(|secret| secret.name == rest) {
                Some(secret) => {
                    let (first, second) = secret.value.0.split_at(secret.value.0.len() / 2);
                    out.extend([first, second].map(|bytes| Message::Stderr { bytes: bytes.to_vec() }));
                }
                None => return unknown(out, line),
            },
            "env" => match request.env.iter().find(|pair| pair.name == rest) {
                Some(pair) => print(pair.value.as_bytes()),
                None => return unknown(out, line),
            },
            "cat" => match file(rest) {
                Some(content) => print(&content),
                None => return unknown(out, line),
            },
            "size" => match file(rest) {
                Some(content) => print(content.len().to_string().as_bytes()),
                None => return unknown(out, line),
            },
            // Until the test opens and closes the other end of this FIFO.
            "await" => drop(std::fs::read(rest).expect("the test has made the FIFO")),
            // What the agent notices around the command.
            "oom" => out.push(noticed(Aftermath { oom_killed: vec![rest.to_owned()], ..Aftermath::default() })),
            "asks-to-stop" => out.push(noticed(Aftermath { is_stopping: true, ..Aftermath::default() })),
            "leaves" => {
                let left = LeftProcess { pid: 77, step: request.step.unwrap_or(0), command: rest.to_owned() };
                out.push(noticed(Aftermath { left: vec![left], ..Aftermath::default() }));
            }
            "late" => {
                let late = LateOutput { step: 1, bytes: HiddenBytes(rest.as_bytes().to_vec()) };
                out.push(noticed(Aftermath { late: vec![late], ..Aftermath::default() }));
            }
            // Fails as often as this before it succeeds.
            "flaky" => {
                let failures: usize = rest.parse().expect("flaky TIMES");
                if FLAKY_RUNS.fetch_add(1, Ordering::SeqCst) < failures {
                    return Does::Ends(out, Exit::Code { code: 75 });
                }
            }
            "exit" => return Does::Ends(out, Exit::Code { code: rest.parse().expect("exit CODE") }),
            "kill" => return Does::Ends(out, Exit::Signal { number: rest.parse().expect("kill SIGNAL") }),
            "flood" => return Does::Floods(rest.parse::<usize>().expect("flood MIB") << 20),
            "say" => return Does::Says(out, rest.to_owned()),
            "hang" => return Does::Hangs(out, request.timeout.map(Duration::from_millis)),
            _ => match fault(command) {
                Some(fault) => return Does::Fault(out, fault),
                None => return unknown(out, line),
            },
        }
    }
    Does::Ends(out, Exit::Code { code: 0 })
}

/// Returns what keeps the agent out at the next boot after a script, if it changes that: `breaks REASON`, `disables REASON`
/// where only a reboot is concerned, `mends`.
pub fn seed_change(script: &str) -> Option<Vec<SeedObstacle>> {
    script.lines().flat_map(|line| line.split(';')).map(str::trim).find_map(|line| {
        let (command, reason) = line.split_once(' ').unwrap_or((line, ""));
        let obstacle = |is_lasting| vec![SeedObstacle { reason: reason.to_owned(), is_lasting }];
        match command {
            "breaks" => Some(obstacle(true)),
            "disables" => Some(obstacle(false)),
            "mends" => Some(Vec::new()),
            _ => None,
        }
    })
}

fn noticed(found: Aftermath) -> Message {
    Message::Aftermath { found }
}

fn fault(command: &str) -> Option<Fault> {
    Some(match command {
        "panic" => Fault::Panic,
        "reboot" => Fault::Reboot,
        // The second is the doing of somebody else.
        "poweroff" | "is-turned-off" => Fault::PowerOff,
        "disk-full" => Fault::DiskFull,
        "stop" => Fault::Stop,
        "killed" => Fault::Killed,
        "half-frame" => Fault::HalfFrame,
        "garbage" => Fault::Garbage,
        "agent-dies" => Fault::AgentDies,
        "agent-ends" => Fault::AgentEnds,
        _ => return None,
    })
}

fn unknown(mut out: Vec<Message>, line: &str) -> Does {
    out.push(Message::Stderr { bytes: format!("fake: {line}: not found\n").into_bytes() });
    Does::Ends(out, Exit::Code { code: 127 })
}
