//! A person in the guest, with the fake QEMU: where the shell stands, what passes through, what is left afterwards. The
//! agent's real terminals are tested in `guest`.

mod support;
#[path = "support/terminal_model.rs"]
mod terminal_model;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use support::{Ended, Kiln, fake_qemu};
use terminal_model::{TerminalModel, TerminalModes};

const STEPS: &str = "[vars]\nwho = 'world'\n[[step]]\nwrite = 'one'\nto = '/one'\n[[step]]\nname = 'second'\n\
                     run = 'echo two'\nenv = { COLOUR = 'red' }\n[[step]]\nrun = 'echo three'\n";

/// `kiln shell .` with these arguments, in the place of an earlier command, with this typed into a pipe.
fn shell(before: &Ended, args: &[&str], typed: &str) -> Kiln {
    let args = [&["shell", "."], args].concat();
    before.then(args).file("typed", typed).after("exec <typed")
}

fn ran(ended: &Ended, step: &str) -> usize {
    ended.place().fake_log().iter().filter(|line| *line == &format!("step {step}")).count()
}

#[test]
fn a_shell_stands_before_or_after_a_step_and_its_exit_code_is_kilns() {
    let built = Kiln::new().spec(STEPS).build().run();
    let at = shell(&built, &["--at", "second"], "env who\nenv COLOUR\nexit 3\n").fails(3).run();
    assert_eq!(at.stdout, "world\nred\n");
    assert!(at.stderr.contains("step 1/1 write /one"), "{}", at.stderr);
    let after = shell(&built, &["--after", "2"], "echo here\n").stdout_has("here").run();
    assert!(after.stderr.contains("step 2/2 second  cached"), "{}", after.stderr);
    shell(&built, &[], "").stderr_has("step 3/3 run echo three  cached").run();
    assert_eq!((ran(&built, "echo two"), ran(&built, "echo three")), (1, 1), "only the build ran them");
    built.place().assert_no_process();
    built.place().assert_no_leftovers();
}

#[test]
fn what_is_not_in_the_cache_is_done_first_and_kept() {
    let first = Kiln::new().spec(STEPS).args(["shell", ".", "--at", "3"]).run();
    assert_eq!((ran(&first, "echo two"), ran(&first, "echo three")), (1, 0));
    let second = first.then(["build", "."]).stderr_has("step 2/3 second  cached").run();
    assert_eq!((ran(&second, "echo two"), ran(&second, "echo three")), (1, 1));
    assert_eq!(second.place().published(), ["web@1"]);
}

#[test]
fn a_step_that_is_not_there_is_a_mistake_of_the_command_line() {
    let kiln = |args: &[&str]| Kiln::new().spec(STEPS).args([&["shell", "."], args].concat()).fails(2);
    kiln(&["--at", "secnd"]).stderr_has("2 `second`").run();
    kiln(&["--at", "0"]).stderr_has("no step `0`").run();
    kiln(&["--after", "4"]).stderr_has("no step `4`").run();
    kiln(&["--at", "1", "--after", "1"]).stderr_has("cannot be used with").run();
}

#[test]
fn a_failed_step_can_be_entered_and_has_failed_nevertheless() {
    let kiln = Kiln::new().spec("[[step]]\nname = 'break it'\nrun = 'echo before; exit 3'\n");
    let kiln = kiln.file("typed", "echo looked around\nexit 5\n").args(["build", ".", "--on-failure", "shell"]);
    let ended = kiln.after("exec <typed").fails(7).run();
    assert_eq!(ended.stdout, "looked around\n");
    assert!(ended.stderr.contains("failed with exit status 3; a shell in the guest"), "{}", ended.stderr);
    ended.place().assert_nothing_published();
    ended.place().assert_no_process();
    ended.place().assert_no_leftovers();
}

#[test]
fn a_dead_guest_cannot_be_entered() {
    let kiln = Kiln::new().spec("[[step]]\nrun = 'panic'\n").args(["build", ".", "--on-failure", "shell"]).fails(7);
    let ended = kiln.run();
    assert!(!ended.stderr.contains("a shell in the guest"), "{}", ended.stderr);
}

#[test]
fn a_guest_that_ends_under_the_shell_ends_kiln() {
    let built = Kiln::new().spec(STEPS).build().run();
    shell(&built, &[], "poweroff\n").run();
    shell(&built, &[], "killed\n").fails(4).stderr_has("QEMU ended unexpectedly").run();
    shell(&built, &[], "panic\n").fails(6).stderr_has("panicked").run();
    built.place().assert_no_process();
    built.place().assert_no_leftovers();
}

/// kiln on a terminal of its own.
struct OnTerminal {
    child: std::process::Child,
    master: File,
    /// Ours, so that the terminal stays open, with what it shows, when kiln is gone.
    slave: OwnedFd,
    seen: String,
    before: Ended,
}

impl OnTerminal {
    fn start(before: Ended, args: &[&str]) -> Self {
        Self::start_with(before, args, "")
    }

    /// With something else than the terminal at standard input.
    fn start_piped(before: Ended, args: &[&str], input: &std::path::Path) -> Self {
        Self::start_from(before, args, "", Some(input))
    }

    fn start_with(before: Ended, args: &[&str], fake: &str) -> Self {
        Self::start_from(before, args, fake, None)
    }

    fn start_from(before: Ended, args: &[&str], fake: &str, input: Option<&std::path::Path>) -> Self {
        let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let slave = || Stdio::from(OwnedFd::try_clone(&pty.slave).unwrap());
        let input = input.map_or_else(slave, |path| Stdio::from(File::open(path).unwrap()));
        let place = before.place();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        let path = std::env::var("PATH").unwrap();
        command
            .env("PATH", format!("{}:{path}", place.join("bin").display()))
            .args(args)
            .current_dir(place.path())
            .stdin(input)
            .stdout(slave())
            .stderr(slave());
        command.env("KILN_QEMU", fake_qemu()).env("KILN_STORE", place.store()).env("KILN_CACHE", place.cache());
        command.env("KILN_FAKE_LOG", place.join("fake.log")).env("TERM", "xterm");
        command.env("KILN_FAKE", fake).env("HOME", place.join("home"));
        let child = command.spawn().unwrap();
        drop(command);
        Self { child, master: File::from(pty.master), slave: pty.slave, seen: String::new(), before }
    }

    fn wait_for(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        while !self.seen.contains(text) {
            let n = self.master.read(&mut buffer).unwrap_or_else(|error| panic!("{error}: {}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    }

    fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// The line discipline of the terminal.
    fn is_raw(&self) -> bool {
        !tcgetattr(&self.master).unwrap().local_flags.contains(LocalFlags::ICANON)
    }

    fn wait_until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !is(self) {
            assert!(began.elapsed() < Duration::from_secs(20), "{what}: {}", self.seen);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log_has(&self, line: &str) -> bool {
        self.before.place().fake_log().iter().any(|logged| logged == line)
    }

    fn end(self) -> Option<i32> {
        self.end_and_show().0
    }

    /// Its exit code, and the modes of the terminal after all that was written.
    fn end_and_show(mut self) -> (Option<i32>, TerminalModel) {
        let code = self.child.wait().unwrap().code();
        assert!(!self.is_raw(), "the terminal was left raw");
        let flags = OFlag::from_bits_retain(fcntl(&self.slave, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK), "the terminal was left non-blocking");
        self.before.place().assert_no_leftovers();
        fcntl(&self.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut rest = Vec::new();
        let _ = self.master.read_to_end(&mut rest);
        self.seen.push_str(&String::from_utf8_lossy(&rest));
        let mut model = TerminalModel::default();
        model.feed(&self.seen);
        (code, model)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }
}

fn assert_as_before((code, model): (Option<i32>, TerminalModel), expected: i32) {
    assert_eq!(code, Some(expected));
    assert_eq!(model.modes, TerminalModes::default());
    assert!(!model.is_erased, "something was erased");
}

/// Fault row G20.
#[test]
fn g20_a_shell_leaves_every_mode_of_the_terminal_as_it_was() {
    let shell = || {
        let built = Kiln::new().spec(STEPS).build().run();
        let mut kiln = OnTerminal::start(built, &["--progress", "plain", "shell", "."]);
        kiln.wait_until("raw", OnTerminal::is_raw);
        kiln.type_in("modes\r");
        kiln.wait_for("]2;half");
        kiln
    };
    let mut kiln = shell();
    kiln.type_in("exit 4\r");
    assert_as_before(kiln.end_and_show(), 4);
    let mut kiln = shell();
    kiln.type_in("killed\r");
    assert_as_before(kiln.end_and_show(), 4);
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let kiln = shell();
        kiln.signal(signal);
        assert_as_before(kiln.end_and_show(), 130);
    }
}

#[test]
fn g20_a_clone_leaves_every_mode_of_the_terminal_as_it_was() {
    let run = |fake: &str| {
        let built = Kiln::new().spec(STEPS).build().run();
        let mut kiln = OnTerminal::start_with(built, &["run", "web"], fake);
        kiln.wait_for("]2;half");
        kiln.wait_until("the console", |kiln| kiln.log_has("console"));
        kiln
    };
    let (code, model) = run("").end_and_show();
    assert!(model.obeyed >= 2 * 50, "{} sequences and their opposites", model.obeyed);
    assert_as_before((code, model), 0);
    assert_as_before(run("deafening").end_and_show(), 0);
    assert_as_before(run("killed").end_and_show(), 4);
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let kiln = run("waits");
        kiln.signal(signal);
        assert_as_before(kiln.end_and_show(), 0);
    }
}

#[test]
fn g20_a_terminal_that_only_shows_is_set_back_as_well() {
    let built = Kiln::new().spec(STEPS).build().run();
    let place = std::sync::Arc::clone(built.place());
    std::fs::write(place.join("typed"), "modes\n").unwrap();
    let mut kiln = OnTerminal::start_piped(built, &["--progress", "plain", "shell", "."], &place.join("typed"));
    kiln.wait_for("]2;half");
    assert_as_before(kiln.end_and_show(), 0);
}

#[test]
fn a_terminal_is_raw_while_it_is_lent_and_its_size_goes_with_it() {
    let built = Kiln::new().spec(STEPS).build().run();
    let mut kiln = OnTerminal::start(built, &["shell", "."]);
    kiln.wait_for("a shell in the guest");
    kiln.wait_until("the size", |kiln| kiln.log_has("terminal 100x30"));
    assert!(kiln.is_raw());
    kiln.type_in("env TERM\r");
    kiln.wait_for("xterm");
    // What the terminal driver does, done by the terminal emulator: a new size, and a signal for kiln.
    let size = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    resize(&kiln.master, size);
    kiln.signal(Signal::SIGWINCH);
    kiln.wait_until("the new size", |kiln| kiln.log_has("terminal 120x40"));
    // Ctrl-C is the guest's.
    kiln.type_in("\x03");
    kiln.type_in("\rexit 9\r");
    assert_eq!(kiln.end(), Some(9));
}

#[expect(unsafe_code, reason = "the ioctl of a terminal emulator")]
fn resize(master: &File, size: Winsize) {
    // SAFETY: an open descriptor and a valid structure.
    let done =
        unsafe { nix::libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(master), nix::libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(done, 0);
}

#[test]
fn three_escapes_end_a_shell_that_hangs() {
    let built = Kiln::new().spec(STEPS).build().run();
    let mut kiln = OnTerminal::start(built, &["shell", "."]);
    kiln.wait_until("raw", OnTerminal::is_raw);
    kiln.type_in("hang\r");
    kiln.type_in("\x1d\x1d\x1d");
    assert_eq!(kiln.end(), Some(130));
}

/// A client of SSH that is let in, and what it shows there leaves no mode of the terminal as it was.
const SSH: &str = "#!/bin/sh\ncase \"$*\" in *BatchMode=yes*) exit 0;; esac\necho \"$*\" >>ssh.log\n\
                   printf '\\033[?7l\\033[?1049h\\033[?2004h'\nread -r line\necho \"typed $line\"\nexit 7\n";

/// A built image of Debian, whose default user is known, and that client in the path of kiln.
fn built_for_ssh() -> Ended {
    let built = Kiln::new().spec(STEPS).file("bin/ssh", SSH).build().run();
    let place = built.place();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.join("bin/ssh"), executable).unwrap();
    let manifest = place.store().join("web/1/manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["os"] = serde_json::json!({ "id": "debian", "version": "12", "name": "Debian" });
    support::make_writable(&manifest);
    std::fs::write(&manifest, json.to_string()).unwrap();
    built
}

#[test]
fn ssh_logs_in_when_the_guest_answers_and_its_end_is_the_machines() {
    let mut kiln = OnTerminal::start(built_for_ssh(), &["run", "web", "--ssh"]);
    kiln.wait_for("\x1b[?2004h");
    kiln.type_in("hello\r");
    kiln.wait_for("typed hello");
    let place = std::sync::Arc::clone(kiln.before.place());
    assert_as_before(kiln.end_and_show(), 7);
    let logged = std::fs::read_to_string(place.join("ssh.log")).unwrap();
    assert!(logged.contains("StrictHostKeyChecking=accept-new") && logged.ends_with(" debian@127.0.0.1\n"), "{logged}");
    place.assert_no_process();
    // A client that does not notice the end of its machine is ended.
    let mut kiln = OnTerminal::start(built_for_ssh(), &["run", "web", "--ssh"]);
    kiln.wait_for("\x1b[?2004h");
    kill(kiln.before.place().qemu(), Signal::SIGKILL).unwrap();
    assert_as_before(kiln.end_and_show(), 4);
}

#[test]
fn a_guest_that_never_answers_can_be_left_and_one_that_ends_is_an_error() {
    let kiln = OnTerminal::start_with(built_for_ssh(), &["run", "web", "--ssh", "-v"], "silent-servers");
    kiln.wait_until("the guest", |kiln| kiln.log_has("forwarded"));
    kiln.signal(Signal::SIGTERM);
    assert_eq!(kiln.end(), Some(130));
    let kiln = OnTerminal::start_with(built_for_ssh(), &["run", "web", "--ssh"], "gives-up-direct-boot");
    assert_eq!(kiln.end(), Some(6));
}

#[test]
fn a_port_for_ssh_leaves_the_console_on_the_terminal() {
    let mut kiln = OnTerminal::start(built_for_ssh(), &["run", "web", "--ssh", "0"]);
    kiln.wait_for("a port is a number from 1 to 65535");
    assert_eq!(kiln.end(), Some(2));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut kiln = OnTerminal::start(built_for_ssh(), &["run", "web", "--ssh", &port.to_string()]);
    kiln.wait_for("]2;half");
    assert!(kiln.log_has(&format!("forward tcp:127.0.0.1:{port}-:22")), "{}", kiln.seen);
    assert_as_before(kiln.end_and_show(), 0);
}

#[test]
fn an_image_has_a_shell_of_its_own_and_a_folder_of_its_name_takes_precedence() {
    let built = Kiln::new().spec(STEPS).file("typed", "echo in a clone\nexit 5\n").build().run();
    let in_image = built.then(["shell", "web"]).after("exec <typed").fails(5).run();
    assert_eq!(in_image.stdout, "in a clone\n");
    assert_eq!((ran(&built, "echo two"), ran(&built, "echo three")), (1, 1), "no step runs again");
    built.then(["shell", "web@1"]).after("exec <typed").fails(5).stdout_has("in a clone").run();
    built.then(["shell", "web", "--at", "2"]).fails(2).stderr_has("`web` is an image, and --at names a step").run();
    built.then(["shell", "nothing"]).fails(8).stderr_has("nothing").run();
    let spec = std::fs::read_to_string(built.place().join("kiln.toml")).unwrap().replace("base.qcow2", "../base.qcow2");
    let both =
        built.then(["shell", "web", "--allow-outside"]).file("web/kiln.toml", spec).after("exec <typed").fails(5).run();
    assert!(both.stderr.contains("`web` is read as the spec web/kiln.toml; the image is `web@1`"), "{}", both.stderr);
    built.place().assert_no_process();
}
