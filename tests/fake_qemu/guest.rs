//! The agent's end of the conversation, over a file system that is a map in memory.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, UNIX_EPOCH};

use kiln::seed::INSTANCE_ID;
use kiln::wire::boot_mounts::BootReport;
use kiln::wire::cloud_init::SeedObstacle;
use kiln::wire::code::{Code, Fields};
use kiln::wire::listing;
use kiln::wire::message::{Facts, ProtocolVersion};
use kiln::wire::tree::Totals;
use kiln::wire::{
    Aftermath, BUILD, Class, ExecRequest, Exit, Frame, HiddenBytes, LeftProcess, MAGIC, MAX_DATA, Message, SealReport,
    SealRequest, Splitter, WINDOW, put_frame,
};
use nix::sys::signal::{Signal, raise};

use super::machine::Machine;
use super::script::{self, Does, Fault};
use super::trees::{pack, pack_folder, unpack};
use super::{crash, hostile, starts};

/// Between two hellos, as the agent has it.
const TICK: Duration = Duration::from_millis(300);

/// Boots, talks and ends as `mode` says. A restored guest has booted already, and waits to be woken.
pub fn live(machine: &Machine, port: &UnixStream, mut console: UnixStream, mode: &str, restored: bool) {
    match mode {
        "never-boots" => return hold(port),
        "login-prompt" => {
            let _ = console.write_all(b"\r\nDebian GNU/Linux 12 fake ttyS0\r\n\r\nfake login: ");
            return hold(port);
        }
        "grub-rescue" => {
            let _ = console.write_all(
                b"error: file `/boot/grub/normal.mod' not found.\r\nEntering rescue mode...\r\ngrub rescue> ",
            );
            return hold(port);
        }
        "crashes-at-boot" => return crash(),
        _ if mode.strip_prefix("crashes-at-start-") == Some(&starts().to_string()) => return crash(),
        "boot-loop" => {
            (0..8).for_each(|_| machine.reset());
            return hold(port);
        }
        "panics-at-boot" => {
            let _ = console.write_all(b"\r\nKernel panic - not syncing: VFS: Unable to mount root fs\r\n");
            machine.panic();
            return hold(port);
        }
        "gives-up-direct-boot" => {
            let said = "\r\nkiln: no block device with the serial `kiln-disk` appeared in the guest\r\n";
            let _ = console.write_all(said.as_bytes());
            machine.power_off();
            return hold(port);
        }
        "obeyed-console" => {
            let _ = console.write_all(hostile::OBEYED.as_bytes());
            machine.panic();
            return hold(port);
        }
        "garbage" => {
            // Noise of an earlier boot, and a magic that leads nowhere.
            let _ =
                port.try_clone().and_then(|mut port| port.write_all(&[&[0xff; 3000][..], &MAGIC, b"\x01"].concat()));
        }
        _ => {}
    }
    machine.change_port(true);
    let mut guest = Guest {
        machine,
        port,
        console,
        mode: mode.to_owned(),
        boots: 1,
        welcomed: restored,
        files: BTreeMap::new(),
        execs: BTreeMap::new(),
        uploads: BTreeMap::new(),
        secrets: BTreeMap::new(),
        hanging: None,
        flood: None,
        shell: None,
        left: Vec::new(),
        obstacles: Vec::new(),
        has_agent: mode == "agent-on-disk",
    };
    // The port is closed by kiln's end, or by a fault that closes it on purpose; the monitor decides when QEMU ends.
    let _ = guest.converse();
}

/// Keeps the port open, and says nothing on it.
fn hold(mut port: &UnixStream) {
    let _ = io::copy(&mut port, &mut io::sink());
}

struct Guest<'a> {
    machine: &'a Machine,
    port: &'a UnixStream,
    console: UnixStream,
    mode: String,
    boots: u32,
    welcomed: bool,
    files: BTreeMap<String, Vec<u8>>,
    execs: BTreeMap<u32, Vec<u8>>,
    uploads: BTreeMap<u32, Vec<u8>>,
    /// The secrets that steps were given.
    secrets: BTreeMap<String, Vec<u8>>,
    /// A command that waits for its time-out.
    hanging: Option<(u32, Option<Instant>)>,
    /// A command that writes without end.
    flood: Option<Flood>,
    /// A person's shell, and what was typed: a script that runs when a line of it ends.
    shell: Option<(u32, ExecRequest, Vec<u8>)>,
    /// Processes that steps have left.
    left: Vec<LeftProcess>,
    /// What steps did to cloud-init.
    obstacles: Vec<SeedObstacle>,
    /// Whether the agent is planted on the disk.
    has_agent: bool,
}

/// Bytes that go out as there is credit for them: first these, then the others again and again, until there were enough.
struct Flood {
    stream: u32,
    message: fn(Vec<u8>) -> Message,
    bytes: Vec<u8>,
    at: usize,
    then: Vec<u8>,
    left: usize,
    credit: usize,
    end: Message,
}

impl Flood {
    /// Output of a command, without a newline.
    fn of_output(stream: u32, left: usize) -> Self {
        let end = Message::Exited { exit: Exit::Code { code: 0 } };
        let message = |bytes| Message::Stdout { bytes };
        Self { stream, message, bytes: Vec::new(), at: 0, then: vec![b'x'; MAX_DATA], left, credit: WINDOW, end }
    }

    /// A tree, which may have no end.
    fn of_tree(stream: u32, hostile::Tree { bytes, totals, then_for_ever }: hostile::Tree) -> Self {
        let end = Message::Done { entries: totals.entries, bytes: totals.bytes };
        let message = |bytes| Message::Data { bytes: HiddenBytes(bytes) };
        let left = if then_for_ever.is_some() { usize::MAX } else { bytes.len() };
        Self { stream, message, bytes, at: 0, then: then_for_ever.unwrap_or_default(), left, credit: WINDOW, end }
    }
}

impl Guest<'_> {
    fn converse(&mut self) -> io::Result<()> {
        let mut splitter = Splitter::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            if !self.welcomed {
                self.hello()?;
            }
            self.end_hanging()?;
            self.port.set_read_timeout(Some(TICK))?;
            match self.port.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => splitter.push(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            }
            while let Some(Frame { stream, message }) = splitter.next_frame().map_err(io::Error::other)? {
                match message {
                    Message::Welcome { .. } | Message::Resume { .. } => splitter.trust(),
                    Message::Park { .. } => splitter.doubt(),
                    _ => {}
                }
                self.answer(stream, message)?;
            }
        }
    }

    fn hello(&mut self) -> io::Result<()> {
        let instance = if self.mode == "other-instance" { "i-0123456789" } else { INSTANCE_ID };
        let facts = Facts {
            instance_id: Some(instance.to_owned()),
            clock: clock(&self.mode),
            ..facts(self.boots, u64::from(self.boots))
        };
        let mut bytes = Vec::new();
        put_frame(0, &Message::Hello { origin: ProtocolVersion, facts }, &mut bytes);
        if self.mode == "wrong-build" {
            let at = bytes.windows(BUILD.len()).position(|window| window == BUILD.as_bytes()).expect("it is in there");
            bytes[at..at + BUILD.len()].copy_from_slice("0".repeat(BUILD.len()).as_bytes());
        }
        self.send(&bytes)
    }

    fn say(&self, stream: u32, message: &Message) -> io::Result<()> {
        let mut bytes = Vec::new();
        put_frame(stream, message, &mut bytes);
        self.send(&bytes)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut port = self.port;
        port.write_all(bytes)
    }

    fn answer(&mut self, stream: u32, message: Message) -> io::Result<()> {
        match message {
            Message::Welcome { nonce, .. } => {
                self.welcomed = true;
                self.say(0, &Message::Ready { nonce })
            }
            Message::Park { .. } => self.say(stream, &message),
            Message::Resume { .. } if self.mode != "never-wakes" => self.say(0, &message),
            Message::Ping { token } => self.say(stream, &Message::Pong { token, clock: 0 }),
            Message::Wake { .. } | Message::Sync { .. } => self.say(stream, &Message::Done { entries: 0, bytes: 0 }),
            Message::Exec { part, last } => self.exec(stream, &part.0, last),
            Message::Upload {} => {
                self.uploads.insert(stream, Vec::new());
                Ok(())
            }
            Message::Data { bytes } if self.shell.is_some() => self.typed(&bytes.0),
            Message::Data { bytes } => self.upload(stream, &bytes.0),
            Message::Resize { size } => {
                super::log(&format!("terminal {}x{}", size.columns, size.rows));
                Ok(())
            }
            Message::Eof {} if self.shell.is_some() => self.typed(b"\nexit 0\n"),
            Message::Unpack { serial } => self.unpack(stream, &serial),
            Message::Fetch { path } => self.fetch(stream, &String::from_utf8_lossy(&path)),
            Message::CheckSeed {} => self.say(stream, &Message::SeedChecked { obstacles: self.obstacles.clone() }),
            Message::Mounts {} => self.mounts(stream),
            Message::List {} => self.list(stream),
            Message::EndProcesses {} => self.end_processes(stream),
            Message::Seal { request } => self.seal(stream, &request),
            Message::Bye {} => self.bye(stream),
            Message::Credit { bytes } => self.pour(bytes as usize),
            _ => Ok(()),
        }
    }

    fn end_processes(&mut self, stream: u32) -> io::Result<()> {
        super::log("end processes");
        let found = Aftermath { left: std::mem::take(&mut self.left), ..Aftermath::default() };
        self.say(stream, &Message::Aftermath { found })?;
        self.say(stream, &Message::Done { entries: 0, bytes: 0 })
    }

    fn bye(&mut self, stream: u32) -> io::Result<()> {
        super::log("bye");
        match &*self.mode {
            "silent-bye" => return Ok(()),
            "dies-at-bye" => {
                let _ = raise(Signal::SIGKILL);
            }
            _ => {}
        }
        self.say(stream, &Message::Bye {})?;
        match &*self.mode {
            "ignores-power-off" => {}
            "panics-after-bye" => self.machine.panic(),
            // QEMU is gone, and has not said that its guest turned it off.
            "ends-after-bye" => std::process::exit(0),
            _ => self.machine.power_off(),
        }
        Ok(())
    }

    fn exec(&mut self, stream: u32, part: &[u8], last: bool) -> io::Result<()> {
        let whole = self.execs.entry(stream).or_default();
        whole.extend_from_slice(part);
        if !last {
            return Ok(());
        }
        let whole = self.execs.remove(&stream).unwrap_or_default();
        let request = ExecRequest::get(&mut Fields::new(&whole)).map_err(io::Error::other)?;
        let argv: Vec<&str> = request.argv.iter().map(String::as_str).collect();
        if let Some(script) = &request.script {
            return self.step(stream, &script.text, &request);
        }
        match &argv[..] {
            ["/bin/sh", "-c", script] if script.contains("$SHELL") || script.contains("${SHELL") => {
                if let Some(size) = &request.tty {
                    super::log(&format!("terminal {}x{}", size.columns, size.rows));
                }
                self.shell = Some((stream, request, Vec::new()));
                Ok(())
            }
            ["sh", "-c", _, "settled", ..] if self.mode == "never-settles" => self.exited(stream, Exit::TimedOut {}),
            ["sh", "-c", _, "settled", ..] if self.mode == "emergency" => self.exited(stream, Exit::Code { code: 90 }),
            ["sh", "-c", script] if script.contains("--plant") => {
                super::log("plant");
                self.plant(stream)
            }
            ["sh", "-c", script] if script.contains("list-jobs") => {
                let jobs = b"145 stuck.service start running\n2 multi-user.target start waiting\n--\n".to_vec();
                self.say(stream, &Message::Stdout { bytes: jobs })?;
                self.exited(stream, Exit::Code { code: 0 })
            }
            ["sh", "-c", script] if script.contains("reboot") => {
                self.reboot();
                Ok(())
            }
            ["sh", "-c", script] if script.contains("df ") => {
                self.say(stream, &Message::Stdout { bytes: b"1000000\n".to_vec() })?;
                self.exited(stream, Exit::Code { code: 0 })
            }
            ["sh", "-c", _] => self.exited(stream, Exit::Code { code: 0 }),
            [file, ..] => match self.files.get(*file).cloned() {
                Some(content) => self.step(stream, &String::from_utf8_lossy(&content), &request),
                None => self.exited(
                    stream,
                    Exit::NotStarted { text: format!("cannot run `{file}`: No such file or directory") },
                ),
            },
            [] => Err(io::Error::other("a command without a program")),
        }
    }

    fn plant(&mut self, stream: u32) -> io::Result<()> {
        if self.mode != "unknown-init" {
            self.has_agent = true;
            return self.exited(stream, Exit::Code { code: 0 });
        }
        let bytes =
            b"kiln-agent: the guest's init (/usr/bin/runit) is neither systemd nor OpenRC nor sysvinit\n".to_vec();
        self.say(stream, &Message::Stderr { bytes })?;
        self.exited(stream, Exit::Code { code: 1 })
    }

    /// Each line is a script; `exit` ends the shell.
    fn typed(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some((stream, request, mut before)) = self.shell.take() else { return Ok(()) };
        before.extend(bytes.iter().map(|byte| if *byte == b'\r' { b'\n' } else { *byte }));
        while let Some(end) = before.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = before.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            match script::run(line.trim(), &request, |path| self.files.get(path).cloned()) {
                Does::Ends(out, exit) => {
                    out.iter().try_for_each(|message| self.say(stream, message))?;
                    if line.trim().starts_with("exit") {
                        return self.exited(stream, exit);
                    }
                }
                Does::Fault(_, fault) => return self.suffer(stream, fault),
                Does::Hangs(..) | Does::Floods(_) | Does::Says(..) => return Ok(()),
            }
        }
        self.shell = Some((stream, request, before));
        Ok(())
    }

    /// Sealing is only ever written down.
    fn seal(&mut self, stream: u32, request: &SealRequest) -> io::Result<()> {
        super::log(&format!("seal {}", request.operations.join(" ")));
        if self.mode == "seal-fails" {
            let text = "the operation `logfiles` failed: /var/log/a: Input/output error".to_owned();
            return self.say(stream, &Message::Failed { class: Class::System {}, text });
        }
        let unmounted = if self.mode == "leaves-mounts" { vec!["/tmp/chroot/data".to_owned()] } else { Vec::new() };
        let report = SealReport { unmounted, had_agent: self.has_agent, notes: Vec::new() };
        self.say(stream, &Message::Sealed { report })?;
        self.say(stream, &Message::Done { entries: 0, bytes: 0 })
    }

    fn exited(&mut self, stream: u32, exit: Exit) -> io::Result<()> {
        self.say(stream, &Message::Exited { exit })
    }

    fn step(&mut self, stream: u32, text: &str, request: &ExecRequest) -> io::Result<()> {
        super::log(&format!("step {}", text.lines().next().unwrap_or_default()));
        self.secrets.extend(request.secrets.iter().map(|secret| (secret.name.clone(), secret.value.0.clone())));
        for name in text.split(['\n', ';']).filter_map(|line| line.trim().strip_prefix("console ")) {
            let value = self.secrets.get(name).cloned().unwrap_or_default();
            // As a kernel message of two writes, and as a program's line.
            let (first, second) = value.split_at(value.len() / 2);
            for bytes in [b"[    1.0] token ", first, second, b"\r\ntoken ", &value, b"\r\n"] {
                self.console.write_all(bytes)?;
            }
        }
        for value in text.split(['\n', ';']).filter_map(|line| line.trim().strip_prefix("uefi ")) {
            super::set_uefi_variable(value)?;
        }
        if let Some(change) = script::seed_change(text) {
            self.obstacles = change;
        }
        let does = script::run(text, request, |path| self.files.get(path).cloned());
        if let Does::Ends(out, _) | Does::Hangs(out, _) | Does::Says(out, _) | Does::Fault(out, _) = &does {
            out.iter().try_for_each(|message| self.say(stream, message))?;
        }
        if let Does::Ends(out, _) = &does {
            self.left.extend(out.iter().flat_map(|message| match message {
                Message::Aftermath { found } => found.left.clone(),
                _ => Vec::new(),
            }));
        }
        match does {
            Does::Ends(_, exit) => {
                self.exited(stream, exit)?;
                if self.mode == "powers-off-after-the-step" {
                    self.machine.power_off();
                }
                Ok(())
            }
            Does::Hangs(_, timeout) => {
                self.hanging = Some((stream, timeout.map(|timeout| Instant::now() + timeout)));
                Ok(())
            }
            Does::Floods(left) => {
                self.flood = Some(Flood::of_output(stream, left));
                self.pour(0)
            }
            Does::Says(_, what) => self.send(&hostile::frames(&what, stream, self.boots)),
            Does::Fault(_, fault) => self.suffer(stream, fault),
        }
    }

    /// Goes on with the flood, as far as there is credit.
    fn pour(&mut self, more: usize) -> io::Result<()> {
        let Some(mut flood) = self.flood.take() else { return Ok(()) };
        flood.credit += more;
        while flood.left.min(flood.credit) > 0 {
            if flood.at == flood.bytes.len() {
                (flood.bytes, flood.at) = (flood.then.clone(), 0);
            }
            let rest = &flood.bytes[flood.at..];
            let next = &rest[..rest.len().min(MAX_DATA).min(flood.left).min(flood.credit)];
            self.say(flood.stream, &(flood.message)(next.to_vec()))?;
            let n = next.len();
            (flood.at, flood.left, flood.credit) = (flood.at + n, flood.left - n, flood.credit - n);
        }
        if flood.left == 0 {
            return self.say(flood.stream, &flood.end);
        }
        self.flood = Some(flood);
        Ok(())
    }

    fn suffer(&mut self, stream: u32, fault: Fault) -> io::Result<()> {
        match fault {
            Fault::Panic => {
                self.console.write_all(b"Kernel panic - not syncing: sysrq triggered crash\r\n")?;
                self.machine.panic();
            }
            Fault::Reboot => self.reboot(),
            Fault::PowerOff => self.machine.power_off(),
            Fault::DiskFull => self.machine.disk_full(),
            Fault::Stop => self.machine.stop(),
            Fault::Killed => drop(raise(Signal::SIGKILL)),
            Fault::HalfFrame => {
                let mut bytes = Vec::new();
                put_frame(stream, &Message::Stdout { bytes: vec![b'x'; 1000] }, &mut bytes);
                self.port.write_all(&bytes[..500])?;
                self.port.shutdown(Shutdown::Both)?;
            }
            Fault::Garbage => self.port.write_all(&[0xfe; 64])?,
            Fault::AgentDies => self.restart(),
            Fault::AgentEnds => {
                self.machine.change_port(false);
                hold(self.port);
            }
        }
        Ok(())
    }

    fn reboot(&mut self) {
        super::log("reboot");
        self.machine.reset();
        self.restart();
    }

    fn restart(&mut self) {
        self.boots += 1;
        self.welcomed = false;
        self.hanging = None;
    }

    fn end_hanging(&mut self) -> io::Result<()> {
        match self.hanging {
            Some((stream, Some(deadline))) if Instant::now() >= deadline => {
                self.hanging = None;
                self.exited(stream, Exit::TimedOut {})
            }
            _ => Ok(()),
        }
    }

    /// Content arrives in pieces; the tree says itself where it ends.
    fn upload(&mut self, stream: u32, bytes: &[u8]) -> io::Result<()> {
        let Some(received) = self.uploads.get_mut(&stream) else { return Ok(()) };
        received.extend_from_slice(bytes);
        let unpacked = unpack(&received[..]);
        self.say(stream, &Message::Credit { bytes: u32::try_from(bytes.len()).expect("a frame's worth") })?;
        match unpacked {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            unpacked => {
                self.uploads.remove(&stream);
                self.unpacked(stream, unpacked)
            }
        }
    }

    fn unpack(&mut self, stream: u32, serial: &str) -> io::Result<()> {
        let disk = self.machine.disk(serial).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        let unpacked = disk.and_then(std::fs::File::open).and_then(|file| unpack(BufReader::new(file)));
        self.unpacked(stream, unpacked)
    }

    fn unpacked(&mut self, stream: u32, unpacked: io::Result<(BTreeMap<String, Vec<u8>>, Totals)>) -> io::Result<()> {
        match unpacked {
            Ok(_) if self.mode == "no-space" => self.failed(stream, Class::NoSpace {}, "/: No space left on device"),
            Ok((files, Totals { entries, bytes })) => {
                self.files.extend(files);
                self.say(stream, &Message::Done { entries, bytes })
            }
            Err(error) => self.failed(stream, Class::System {}, &error.to_string()),
        }
    }

    fn failed(&mut self, stream: u32, class: Class, text: &str) -> io::Result<()> {
        self.say(stream, &Message::Failed { class, text: text.to_owned() })
    }

    /// What it has mounted, by its own account.
    fn mounts(&mut self, stream: u32) -> io::Result<()> {
        if self.mode == "mounts-refused" {
            return self.failed(stream, Class::System {}, "the mount table is too large");
        }
        super::log("mounts");
        let boot = BootReport { mounts: Vec::new(), root_options: Vec::new() };
        self.say(stream, &Message::Mounted { mounts: hostile::mounts(&self.mode), boot, has_rpm: false })
    }

    /// The files of its disk, of which no test knows more than that they are few.
    fn list(&mut self, stream: u32) -> io::Result<()> {
        if self.mode == "list-refused" {
            return self.failed(
                stream,
                Class::System {},
                "cannot bind the guest's file systems: Operation not permitted",
            );
        }
        super::log("list");
        let listed = hostile::listed(&self.mode);
        let mut records = Vec::new();
        listed.iter().try_for_each(|listed| listing::put(listed, &mut records))?;
        self.say(stream, &Message::Data { bytes: HiddenBytes(records) })?;
        self.say(stream, &Message::Done { entries: listed.len() as u64, bytes: 0 })
    }

    fn fetch(&mut self, stream: u32, path: &str) -> io::Result<()> {
        if let Some(what) = path.strip_prefix("/hostile/") {
            self.flood = Some(Flood::of_tree(stream, hostile::tree(what)));
            return self.pour(0);
        }
        let named = path.strip_prefix("/named-as/").and_then(|name| self.secrets.get(name)).cloned();
        let secret = path.strip_prefix("/secret/").and_then(|name| self.secrets.get(name)).cloned();
        let Some(content) = self.files.get(path).cloned().or(secret).or(named.clone().map(|_| Vec::new())) else {
            return self.failed(stream, Class::NotFound {}, &format!("{path}: No such file or directory"));
        };
        let mut bytes = Vec::new();
        let Totals { entries, bytes: total } = match named {
            Some(name) => pack_folder(&name, &mut bytes)?,
            None => pack(&content, &mut bytes)?,
        };
        self.say(stream, &Message::Data { bytes: HiddenBytes(bytes) })?;
        self.say(stream, &Message::Done { entries, bytes: total })
    }
}

/// What an agent says of this guest: in which boot, and by which of its starts.
pub fn facts(boots: u32, start: u64) -> Facts {
    Facts {
        boot_id: format!("boot-{boots}"),
        instance_id: Some(INSTANCE_ID.to_owned()),
        os: "Fake OS 1".to_owned(),
        os_id: "fake".to_owned(),
        kernel: "6.1.0-fake".to_owned(),
        arch: "x86_64".to_owned(),
        clock: clock(""),
        systemd: true,
        start,
    }
}

/// The guest's clock, nanoseconds since the epoch.
fn clock(mode: &str) -> i64 {
    let now = UNIX_EPOCH.elapsed().expect("it is after 1970");
    let told = match mode {
        "clock-of-1970" => Duration::from_secs(3),
        "clock-ahead" => now + Duration::from_secs(7300),
        "clock-a-little-behind" => now.saturating_sub(Duration::from_secs(30)),
        _ => now,
    };
    i64::try_from(told.as_nanos()).expect("it is before 2262")
}
