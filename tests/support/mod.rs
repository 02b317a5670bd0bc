//! Runs the real `kiln` against the fake QEMU, in a folder of its own, and looks at what it leaves behind.
//!
//! ```text
//! Kiln::new().spec("[[step]]\nrun = 'exit 3'").args(["build", "."]).fails(7).stderr_has("exit status 3").run();
//! ```
//!
//! Every run is bounded, and must leave no process, no scratch folder and nothing half-made in the store, unless it is
//! killed on purpose.

#![expect(dead_code, reason = "each test binary uses its own part of the harness")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

pub mod ext4;
mod pipe;
pub mod redact;

use pipe::Pipe;

/// Virtual size of the base image, bytes.
const BASE_SIZE: &str = "16M";
/// A build against the fake takes a second or two; a loaded machine may need ten times that.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long after kiln's end its children may be seen.
const NO_ORPHANS_AFTER: Duration = Duration::from_secs(1);

/// Marks all processes of one test.
const MARK: &str = "KILN_TEST_PLACE";

/// Where one test's commands work: removed with the last of them.
pub struct Place {
    folder: TempDir,
    running: AtomicUsize,
}

/// One command to run, and what is expected of it.
#[must_use]
pub struct Kiln {
    place: Arc<Place>,
    machine: String,
    command: Command,
    exits: Vec<i32>,
    stdout_has: Vec<String>,
    stderr_has: Vec<String>,
    within: Duration,
}

/// A command under way.
pub struct Live {
    expected: Expected,
    child: Child,
    began: Instant,
    stdout: Pipe,
    stderr: Pipe,
}

struct Expected {
    place: Arc<Place>,
    exits: Vec<i32>,
    stdout_has: Vec<String>,
    stderr_has: Vec<String>,
    within: Duration,
}

/// A command that has ended as it should.
pub struct Ended {
    place: Arc<Place>,
    /// All it wrote there.
    pub stdout: String,
    /// All it wrote there.
    pub stderr: String,
    /// From its start to its end.
    pub took: Duration,
}

impl Kiln {
    /// In a new folder that holds a base image. Expects success until told otherwise.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("kiln-test-").tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("home")).expect("made");
        fs::write(folder.path().join("base.qcow2"), base_image()).expect("written");
        Self::at(Arc::new(Place { folder, running: AtomicUsize::new(0) }))
    }

    fn at(place: Arc<Place>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        let path = std::env::var_os("PATH").expect("PATH is set");
        command.env_clear().env("PATH", path).env("HOME", place.join("home")).env("KILN_QEMU", fake_qemu());
        command.env("KILN_STORE", place.store()).env("KILN_CACHE", place.cache());
        command.env("KILN_FAKE_LOG", place.join("fake.log")).env(MARK, place.path()).current_dir(place.path());
        let (machine, none) = (String::new(), Vec::new());
        Self { place, machine, command, exits: vec![0], stdout_has: none.clone(), stderr_has: none, within: PATIENCE }
    }

    /// Where it will work.
    pub fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// Puts a file into the folder, below folders that are made as needed.
    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.place.join(name);
        fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("made");
        fs::write(path, content).expect("written");
        self
    }

    /// Adds a line to `[machine]`; before [`Kiln::spec`].
    pub fn machine(mut self, line: &str) -> Self {
        self.machine.push_str(line);
        self.machine.push('\n');
        self
    }

    /// Writes `kiln.toml`: `web@1` over the base image, and what is in `rest`.
    pub fn spec(self, rest: &str) -> Self {
        let text = format!(
            "[image]\nname = 'web'\nversion = '1'\n[base]\nfile = 'base.qcow2'\n[machine]\naccel = 'tcg'\n{}{rest}\n",
            self.machine
        );
        self.file("kiln.toml", text)
    }

    /// The arguments.
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    /// `kiln build .`
    pub fn build(self) -> Self {
        self.args(["build", "."])
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets an environment variable and lets specs take it as a secret.
    pub fn secret(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env(name, value).args(["--secret-env", name])
    }

    /// Takes an environment variable away.
    pub fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Has QEMU misbehave in this way.
    pub fn fake(self, mode: &str) -> Self {
        self.env("KILN_FAKE", mode)
    }

    /// Runs through a shell that first does this, such as `umask 077`.
    pub fn after(mut self, preparation: &str) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{preparation}; exec \"$@\""), "sh"]).arg(self.command.get_program());
        shell.args(self.command.get_args()).env_clear().current_dir(self.place.path());
        shell.envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        self.command = shell;
        self
    }

    /// Expects this exit code.
    pub fn fails(self, code: i32) -> Self {
        self.ends_with(&[code])
    }

    /// Expects one of these exit codes.
    pub fn ends_with(mut self, codes: &[i32]) -> Self {
        self.exits = codes.to_vec();
        self
    }

    /// Expects this text on standard output.
    pub fn stdout_has(mut self, text: impl Into<String>) -> Self {
        self.stdout_has.push(text.into());
        self
    }

    /// Expects this text on standard error.
    pub fn stderr_has(mut self, text: impl Into<String>) -> Self {
        self.stderr_has.push(text.into());
        self
    }

    /// Allows no more time than this.
    pub fn within(mut self, limit: Duration) -> Self {
        self.within = limit;
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Ended {
        self.start().finish()
    }

    /// Runs it to its end, beside machines that run on.
    pub fn run_beside_machines(self) -> Ended {
        self.start().finish_untidy()
    }

    /// Starts it.
    pub fn start(self) -> Live {
        let Self { place, mut command, exits, stdout_has, stderr_has, within, .. } = self;
        place.running.fetch_add(1, Ordering::SeqCst);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kiln starts");
        let stdout = Pipe::new(child.stdout.take().expect("piped"));
        let stderr = Pipe::new(child.stderr.take().expect("piped"));
        let expected = Expected { place, exits, stdout_has, stderr_has, within };
        Live { expected, child, began: Instant::now(), stdout, stderr }
    }
}

impl Live {
    /// Waits until standard error holds the text.
    pub fn stderr_shows(&self, text: &str) {
        self.stderr.wait_for(text, self.expected.within);
    }

    /// Where it works.
    pub fn place(&self) -> &Arc<Place> {
        &self.expected.place
    }

    /// The process id of kiln.
    pub fn id(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }

    /// Sends kiln a signal, and only it.
    pub fn signal(&self, signal: Signal) {
        kill(self.id(), signal).expect("kiln is there");
    }

    /// Waits for its end, which must be the expected one, and looks at what is left.
    pub fn finish(self) -> Ended {
        let place = Arc::clone(&self.expected.place);
        let ended = self.finish_untidy();
        if place.running.load(Ordering::SeqCst) == 0 {
            place.assert_no_process();
            place.assert_no_leftovers();
        }
        ended
    }

    /// As [`Live::finish`], where a killed build has left what only the next build sweeps up. No process is left all the same.
    pub fn finish_killed(self) -> Ended {
        let place = Arc::clone(&self.expected.place);
        let ended = self.finish_untidy();
        place.assert_no_process();
        ended
    }

    /// Kills it, wherever it is, and waits until nothing of it runs.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("our child");
        self.expected.place.running.fetch_sub(1, Ordering::SeqCst);
        self.expected.place.assert_no_process();
    }

    /// The most memory it has used so far, bytes (proc(5), `VmHWM`).
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    fn finish_untidy(mut self) -> Ended {
        let status = self.wait();
        let took = self.began.elapsed();
        self.expected.place.running.fetch_sub(1, Ordering::SeqCst);
        let (stdout, stderr) = (self.stdout.rest(PATIENCE), self.stderr.rest(PATIENCE));
        let told = format!("\n--- stdout\n{stdout}--- stderr\n{stderr}---");
        let code = status.code().unwrap_or_else(|| -status.signal().unwrap_or(0));
        let exits = &self.expected.exits;
        assert!(exits.contains(&code), "the exit code is {code}, not of {exits:?}; {status}{told}");
        for (stream, name, texts) in
            [(&stdout, "stdout", &self.expected.stdout_has), (&stderr, "stderr", &self.expected.stderr_has)]
        {
            for text in texts {
                assert!(stream.contains(text.as_str()), "{name} lacks `{text}`{told}");
            }
        }
        assert!(!stderr.contains("panicked at"), "kiln panicked{told}");
        Ended { place: self.expected.place, stdout, stderr, took }
    }

    /// Its end, or ours: standard output closes with the process, so waiting for that needs no polling.
    fn wait(&mut self) -> ExitStatus {
        let (id, within) = (self.id(), self.expected.within);
        let left = within.saturating_sub(self.began.elapsed());
        if self.stdout.wait_for_end(left) {
            return self.child.wait().expect("our child");
        }
        let _ = kill(id, Signal::SIGKILL);
        let _ = self.child.wait();
        let (stdout, stderr) = (self.stdout.rest(PATIENCE), self.stderr.rest(PATIENCE));
        panic!("kiln took longer than {within:?}\n--- stdout\n{stdout}--- stderr\n{stderr}---");
    }
}

impl Ended {
    /// Another command in the same folder.
    pub fn then<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Kiln {
        Kiln::at(Arc::clone(&self.place)).args(args)
    }

    /// Where it worked.
    pub fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// How many errors it printed: there must be one that explains the failure.
    pub fn errors(&self) -> usize {
        self.stderr.lines().filter(|line| line.starts_with("error")).count()
    }
}

impl Place {
    /// Another command here.
    pub fn kiln(self: &Arc<Self>) -> Kiln {
        Kiln::at(Arc::clone(self))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The store.
    pub fn store(&self) -> PathBuf {
        self.join("store")
    }

    /// The cache.
    pub fn cache(&self) -> PathBuf {
        self.join("cache")
    }

    /// What the fake QEMUs did, a line each.
    pub fn fake_log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.join("fake.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// How many machines were started.
    pub fn starts(&self) -> usize {
        self.fake_log().iter().filter(|line| line.starts_with("start ")).count()
    }

    /// The versions in the store, as `name@version`.
    pub fn published(&self) -> Vec<String> {
        let mut found = Vec::new();
        for image in names(&self.store()).into_iter().filter(|name| name != ".kiln") {
            let versions = names(&self.store().join(&image));
            found.extend(versions.into_iter().filter(|name| name != "tags.json").map(|name| format!("{image}@{name}")));
        }
        found
    }

    /// Processes that run for this place: kiln has the mark in its environment, and what it starts works in the place or on
    /// files of it.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        let place = self.path().as_os_str().as_encoded_bytes();
        let mark = [MARK.as_bytes(), b"=", place].concat();
        let mut found = Vec::new();
        for id in names(Path::new("/proc")).iter().filter_map(|name| name.parse::<i32>().ok()) {
            // A process that ends meanwhile has neither file; a zombie's are empty.
            let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
            let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let works_here =
                fs::read_link(format!("/proc/{id}/cwd")).is_ok_and(|folder| folder.starts_with(self.path()));
            let names_it = line.windows(place.len()).any(|window| window == place);
            if works_here || names_it || environment.split(|byte| *byte == 0).any(|pair| pair == mark) {
                found.push((Pid::from_raw(id), String::from_utf8_lossy(&line).replace('\0', " ")));
            }
        }
        found
    }

    /// The fake QEMU that runs now.
    pub fn qemu(&self) -> Pid {
        let all = self.processes();
        all.iter().find(|(_, line)| line.contains("fake_qemu")).unwrap_or_else(|| panic!("no QEMU runs: {all:?}")).0
    }

    /// No process is left a second after kiln's end.
    pub fn assert_no_process(&self) {
        let deadline = Instant::now() + NO_ORPHANS_AFTER;
        // Another process's death is no event for anybody but its parent.
        while Instant::now() < deadline && !self.living().is_empty() {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.living(), [] as [(Pid, String); 0], "processes are left");
    }

    /// The processes that still do something, with their states. One that waits for a busy disk goes when that has answered; if
    /// it was killed by then, it executes nothing of its own any more.
    fn living(&self) -> Vec<(Pid, String)> {
        let alive = |(id, line): (Pid, String)| {
            let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
            let pending = |name| u64::from_str_radix(field(name), 16).unwrap_or(0);
            let is_killed = (pending("SigPnd:") | pending("ShdPnd:")) & 1 << (Signal::SIGKILL as u64 - 1) != 0;
            (!is_killed).then(|| (id, format!("{line} {}", field("State:"))))
        };
        self.processes().into_iter().filter_map(alive).collect()
    }

    /// Neither scratch folders nor anything half-made is left.
    pub fn assert_no_leftovers(&self) {
        assert_eq!(names(&self.cache().join("work")), [""; 0], "scratch folders are left");
        assert_eq!(names(&self.cache().join("machines")), [""; 0], "folders of machines are left");
        assert_eq!(names(&self.store().join(".kiln/tmp")), [""; 0], "the store holds something half-made");
    }

    /// As [`Place::assert_no_leftovers`], and no version was published.
    pub fn assert_nothing_published(&self) {
        assert_eq!(self.published(), [""; 0], "something was published");
    }
}

/// Names in a folder, sorted; none where there is no folder.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("listed").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The stand-in for QEMU, beside the tests' own executables.
pub fn fake_qemu() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_kiln")).with_file_name("examples").join("fake_qemu");
    assert!(path.exists(), "{} is missing: `cargo build --example fake_qemu` makes it", path.display());
    path
}

/// A small, valid and empty qcow2 image, made once by the real `qemu-img`.
fn base_image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("base.qcow2");
        qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().expect("UTF-8"), BASE_SIZE]);
        fs::read(path).expect("qemu-img has made it")
    })
}

/// Runs the real `qemu-img`.
pub fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().expect("qemu-img is installed (scripts/setup)");
    assert!(output.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Lets a test change a published file.
pub fn make_writable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("ours");
}
