//! A QEMU that misbehaves on request, for tests of what kiln does then. It speaks the monitor's and the agent's protocols
//! and **runs nothing**: whatever kiln sends as a command is looked at, never executed, since this "guest" is the very
//! machine the tests run on and sealing it would be its end. Steps are written in the small language of `script`.
//!
//! `KILN_FAKE` names a fault that begins before any step; `KILN_FAKE_LOG` a file that gets a line for each thing done. Both are
//! variables of the kiln that starts it, which hands no such thing on to a QEMU: see [`setting`].

use std::fs::File;
use std::io::{Read, Write, stdin, stdout};
use std::net::TcpListener;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::exit;
use std::sync::{Arc, mpsc};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, raise};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

mod guest;
mod hostile;
mod machine;
mod script;
mod trees;

use machine::Machine;

/// The file of the UEFI variables, in the folder where QEMU is started.
const UEFI_VARS: &str = "uefi-vars.fd";
/// What `qemu-system-x86_64 --version` of Debian 13 says.
const VERSION: &str = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n\
                       Copyright (c) 2003-2025 Fabrice Bellard and the QEMU Project developers\n";
const MACHINES: &str = "Supported machines are:\npc                   Standard PC (i440FX + PIIX, 1996)\n\
                        q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.0)\n\
                        pc-q35-10.0          Standard PC (Q35 + ICH9, 2009)\n\
                        pc-q35-9.2           Standard PC (Q35 + ICH9, 2009)\n";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mode = setting("KILN_FAKE").unwrap_or_default();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--version"] => answer(&mode, VERSION),
        ["-machine", "help"] => answer(&mode, MACHINES),
        _ => run(&mode, &args),
    }
}

fn answer(mode: &str, text: &str) {
    match mode {
        "segv-at-version" => crash(),
        "too-old" => print!("{}", text.replace("10.0.2", "5.2.0")),
        _ => print!("{text}"),
    }
}

fn run(mode: &str, args: &[String]) {
    log(&format!("start {}", std::process::id()));
    log(&format!(
        "layers {}",
        args.iter().filter(|arg| arg.contains("\"node-name\":\"backing")).count().saturating_sub(1)
    ));
    log_kernel(args);
    serve_forwarded(mode, args);
    uefi_variable().inspect(|value| log(&format!("uefi variable `{value}`")));
    if args.iter().any(|arg| arg == "mon:stdio") {
        run_on_terminal(mode);
    }
    match mode {
        "dies-at-start" => fail("could not set up host forwarding rule"),
        "refuses-argv" => fail("-sandbox: invalid option"),
        "segv" => crash(),
        _ => {}
    }
    if mode == "no-monitor" {
        let _ = channel(3).write_all(b"{\"hello\": \"I am no monitor\"}\r\n");
        std::thread::park();
    }
    let machine = Arc::new(Machine::new(channel(3), mode));
    let (agent, mut console) = (channel(4), channel(5));
    if mode == "silent-monitor" {
        // The channels stay open and nothing is said: only kiln's patience ends this.
        std::thread::park();
    }
    // A tested image is booted from the store's staging folder; a base is somewhere else.
    let is_clone = args.iter().any(|arg| arg.contains("/.kiln/tmp/"));
    let mode = if is_clone { mode.strip_prefix("clone-").unwrap_or("") } else { mode }.to_owned();
    let _ = console.write_all(b"SeaBIOS (version fake)\r\nLinux version 6.1.0 (fake)\r\n");
    let restored = args.iter().any(|arg| arg == "-incoming");
    let on = Arc::clone(&machine);
    let (start, started) = mpsc::channel();
    std::thread::spawn(move || {
        started.recv().expect("kiln lets it run");
        guest::live(&on, &agent, console, &mode, restored);
    });
    machine.serve_monitor(start);
}

/// Logs the kernel that is started, its initrd and its command line. As QEMU does, it needs the files.
fn log_kernel(args: &[String]) {
    for pair in args.windows(2).filter(|pair| ["-kernel", "-initrd", "-append"].contains(&pair[0].as_str())) {
        log(&format!("{} {}", pair[0], pair[1]));
        if pair[0] != "-append" && File::open(&pair[1]).is_err() {
            fail(&format!("could not open kernel file '{}'", pair[1]));
        }
    }
}

/// Answers on each forwarded TCP port of the host as the guest's servers do: one of SSH on port 22, and one of the web on any
/// other. As QEMU does, it ends when a port is taken.
fn serve_forwarded(mode: &str, args: &[String]) {
    let network = args.windows(2).find(|pair| pair[0] == "-netdev").map_or("", |pair| pair[1].as_str());
    for forward in network.split(',').filter_map(|option| option.strip_prefix("hostfwd=")) {
        log(&format!("forward {forward}"));
        let Some((address, guest)) = forward.strip_prefix("tcp:").and_then(|ports| ports.split_once("-:")) else {
            continue;
        };
        let Ok(listener) = TcpListener::bind(address) else {
            return fail(&format!("Could not set up host forwarding rule '{forward}'"));
        };
        let is_silent = ["silent-servers", "gives-up-direct-boot"].contains(&mode);
        let is_ssh = guest == "22";
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten().filter(|_| !is_silent) {
                // A client of the web speaks first; closing with its request unread would reset the connection.
                let answered = if is_ssh {
                    stream.write_all(b"SSH-2.0-fake\r\n")
                } else {
                    let page = b"HTTP/1.0 200 OK\r\n\r\nthe page of the guest\n";
                    stream.read(&mut [0; 1024]).and_then(|_| stream.write_all(page))
                };
                let _ = answered;
            }
        });
        log("forwarded");
    }
}

/// Runs a guest whose console is this terminal. As QEMU does, it makes the terminal raw and its descriptor non-blocking, and
/// takes that back when it ends in order.
fn run_on_terminal(mode: &str) -> ! {
    let before = tcgetattr(stdin()).ok();
    if let Some(before) = &before {
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin(), SetArg::TCSANOW, &raw).expect("a terminal");
    }
    fcntl(stdin(), FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK)).expect("an open descriptor");
    let deafening = if mode == "deafening" { hostile::DEAFENING } else { "" };
    let output = [hostile::MODES, deafening].concat();
    stdout().write_all(output.as_bytes()).and_then(|()| stdout().flush()).expect("kiln's terminal");
    log("console");
    match mode {
        "killed" => raise(Signal::SIGKILL).expect("it exists"),
        "waits" => std::thread::park(),
        _ => {}
    }
    if let Some(before) = &before {
        tcsetattr(stdin(), SetArg::TCSANOW, before).expect("a terminal");
    }
    exit(0)
}

/// One of the channels that kiln hands over under fixed numbers.
fn channel(number: RawFd) -> UnixStream {
    #[expect(unsafe_code, reason = "descriptors are inherited by number")]
    // SAFETY: kiln puts a connected socket there before exec, and each number is taken once.
    unsafe {
        UnixStream::from_raw_fd(number)
    }
}

fn fail(why: &str) {
    eprintln!("qemu-system-x86_64: {why}");
    exit(1);
}

fn crash() {
    // Rust's own handler takes the first one, and hands the second to the default action.
    let _ = raise(Signal::SIGSEGV);
    let _ = raise(Signal::SIGSEGV);
}

/// Reads a variable of the kiln that has started this QEMU, if need be through a shell script (proc(5), `environ` and `stat`).
fn setting(name: &str) -> Option<String> {
    let mut id = std::os::unix::process::parent_id();
    while id > 1 {
        let environment = std::fs::read(format!("/proc/{id}/environ")).ok()?;
        let pairs = environment.split(|byte| *byte == 0).filter_map(|pair| std::str::from_utf8(pair).ok());
        if let Some((_, value)) = pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name) {
            return Some(value.to_owned());
        }
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        id = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
    }
    None
}

/// The one UEFI variable of this machine, in place of the first bytes of the firmware's file: a length, and a text.
fn uefi_variable() -> Option<String> {
    let file = std::fs::read(UEFI_VARS).ok()?;
    let (length, rest) = file.split_first()?;
    Some(String::from_utf8_lossy(rest.get(..usize::from(*length))?).into_owned())
}

fn set_uefi_variable(value: &str) -> std::io::Result<()> {
    let length = u8::try_from(value.len()).expect("a short text");
    let mut file = File::options().write(true).open(UEFI_VARS)?;
    file.write_all(&[&[length], value.as_bytes()].concat())
}

/// How many times QEMU was started in this test, this time included.
fn starts() -> usize {
    let log =
        setting("KILN_FAKE_LOG").map_or_else(String::new, |path| std::fs::read_to_string(path).unwrap_or_default());
    log.lines().filter(|line| line.starts_with("start ")).count()
}

/// Tells the test what was done.
fn log(line: &str) {
    let Some(path) = setting("KILN_FAKE_LOG") else { return };
    let mut file = File::options().append(true).create(true).open(path).expect("KILN_FAKE_LOG can be written");
    file.write_all(format!("{line}\n").as_bytes()).expect("KILN_FAKE_LOG can be written");
}
