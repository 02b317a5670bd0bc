//! Gathers the facts of this host: every build does this, so it must not take longer than the slowest QEMU needs to answer.
//!
//! ```text
//! qemu --version ----------\
//! qemu -machine help -------+--> Host
//! KVM probe, in its thread -/
//! ```

use std::fs;
use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{AccessFlags, Pid, access};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::task::spawn_blocking;

use crate::digest::Sha256Digest;
use crate::error::{Fault, Kind};
use crate::machine::{accel, firmware};
use crate::plan::host::{Host, KvmVerdict, Qemu, QemuVersion};
use crate::process;
use crate::size::ByteSize;

/// Environment variable with the path of another `qemu-system-x86_64` than the one on `PATH`.
pub const QEMU_VARIABLE: &str = "KILN_QEMU";

/// Command that installs QEMU on Debian and Ubuntu.
const INSTALL_QEMU: &str = "sudo apt-get install qemu-system-x86";

/// Time limit of a query of QEMU, which needs 30 ms.
const PATIENCE: Duration = Duration::from_secs(5);
/// Limit of an answer that is read, bytes; `-machine help` has 5 KiB.
const LONGEST_ANSWER: u64 = 64 << 10;
/// Number of lines of standard error that are kept as evidence.
const EVIDENCE_LINES: usize = 20;

/// An error that makes a host unfit before anything is started on it.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A program is not on `PATH`.
    #[error("`{program}` is not installed")]
    NotInstalled {
        /// Name of the program.
        program: &'static str,
    },
    /// A program cannot be executed.
    #[error("cannot run {}", path.display())]
    NotRunnable {
        /// Path of the program.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// A program did not answer in time, and was killed.
    #[error("`{} {}` did not answer within {} s", path.display(), args.join(" "), patience.as_secs())]
    Silent {
        /// Path of the program.
        path: PathBuf,
        /// Arguments of the program.
        args: &'static [&'static str],
        /// The time limit.
        patience: Duration,
    },
    /// A program failed or crashed.
    #[error("`{} {}` failed with {status}", path.display(), args.join(" "))]
    Failed {
        /// Path of the program.
        path: PathBuf,
        /// Arguments of the program.
        args: &'static [&'static str],
        /// Its exit status, or the signal that ended it.
        status: ExitStatus,
        /// The last lines of its standard error.
        tail: Vec<String>,
    },
    /// A program's answer cannot be parsed.
    #[error("{} does not report {what}", path.display())]
    Unintelligible {
        /// Path of the program.
        path: PathBuf,
        /// The value that was expected.
        what: &'static str,
        /// The first lines of the answer.
        answer: Vec<String>,
    },
    /// QEMU is older than [`QemuVersion::OLDEST`].
    #[error("{} is QEMU {version}; kiln needs {} or newer", path.display(), QemuVersion::OLDEST)]
    TooOld {
        /// Path of the program.
        path: PathBuf,
        /// Version of the program.
        version: QemuVersion,
    },
    /// A fact cannot be read from the kernel.
    #[error("cannot read {}", path.display())]
    Unknown {
        /// The kernel's file with the fact.
        path: &'static Path,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
}

impl Fault for HostError {
    fn kind(&self) -> Kind {
        Kind::Host
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::NotInstalled { .. } => format!("run `{INSTALL_QEMU}`"),
            Self::TooOld { .. } => {
                format!("use Debian 12, Ubuntu 23.04 or newer, or set {QEMU_VARIABLE} to a newer `qemu-system-x86_64`")
            }
            Self::NotRunnable { .. } | Self::Silent { .. } | Self::Failed { .. } | Self::Unintelligible { .. } => {
                format!("try `sudo apt-get install --reinstall qemu-system-x86`, and see that {QEMU_VARIABLE} is unset")
            }
            Self::Unknown { .. } => "see that /proc is mounted".to_owned(),
        };
        vec![hint]
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            Self::Failed { tail: lines, .. } | Self::Unintelligible { answer: lines, .. } => lines.clone(),
            _ => Vec::new(),
        }
    }
}

/// Returns all facts of this host, in about the time of one `qemu-system-x86_64 --version`.
///
/// # Errors
/// When QEMU is missing, too old or does not answer, or a fact cannot be read from the kernel.
pub async fn survey() -> Result<Host, HostError> {
    let (qemu, kvm) = tokio::join!(qemu(), kvm());
    describe(qemu?, kvm)
}

/// Returns the facts for a plan, with [`Qemu::unusable`] in the place of a QEMU that is missing or does not work.
///
/// # Errors
/// When a fact cannot be read from the kernel.
pub async fn survey_for_plan() -> Result<Host, HostError> {
    let (qemu, kvm) = tokio::join!(qemu(), kvm());
    describe(qemu.unwrap_or_else(|_| Qemu::unusable()), kvm)
}

fn describe(qemu: Qemu, kvm: KvmVerdict) -> Result<Host, HostError> {
    Ok(Host {
        cpus: cpus(),
        cpu_model: cpu_model(),
        processor: processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        memory: memory()?.total,
        firmware: firmware::find(&qemu.machine_type),
        qemu,
        kvm,
    })
}

/// Returns the QEMU on `PATH`, or the one that [`QEMU_VARIABLE`] names.
///
/// # Errors
/// When it is missing, too old or does not answer.
pub async fn qemu() -> Result<Qemu, HostError> {
    let system = match std::env::var_os(QEMU_VARIABLE) {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ => program("qemu-system-x86_64")?,
    };
    identify(system, PATIENCE).await
}

/// Returns whether KVM works; see [`accel::probe`].
pub async fn kvm() -> KvmVerdict {
    let verdict = spawn_blocking(accel::probe).await;
    verdict.unwrap_or_else(|error| KvmVerdict::Error { doing: "the probe", reason: error.to_string() })
}

async fn identify(system: PathBuf, patience: Duration) -> Result<Qemu, HostError> {
    let (version, machines) =
        tokio::try_join!(ask(&system, &["--version"], patience), ask(&system, &["-machine", "help"], patience))?;
    let version = parse_version(&version).ok_or_else(|| unclear(&system, "its version", &version))?;
    if version < QemuVersion::OLDEST {
        return Err(HostError::TooOld { path: system, version });
    }
    let machine_type = newest_q35(&machines).ok_or_else(|| unclear(&system, "which Q35 machine it has", &machines))?;
    Ok(Qemu { system, version, machine_type })
}

fn unclear(path: &Path, what: &'static str, answer: &str) -> HostError {
    let answer = answer.lines().take(EVIDENCE_LINES).map(str::to_owned).collect();
    HostError::Unintelligible { path: path.to_owned(), what, answer }
}

/// Returns the first executable of this name on `PATH`. Relative entries are skipped: they would mean the current folder.
fn program(name: &'static str) -> Result<PathBuf, HostError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|file| file.is_file() && access(file, AccessFlags::X_OK).is_ok())
        .ok_or(HostError::NotInstalled { program: name })
}

/// Runs a program that answers and exits. Whatever it does, it is gone afterwards, also when this is cancelled.
async fn ask(path: &Path, args: &'static [&'static str], patience: Duration) -> Result<String, HostError> {
    let mut asked = ProbeProcess::start(path, args).map_err(not_runnable(path))?;
    let answered = tokio::time::timeout(patience, asked.conversation()).await;
    let answered = answered.map_err(|_| HostError::Silent { path: path.to_owned(), args, patience })?;
    let (answer, complaint, status) = answered.map_err(not_runnable(path))?;
    if status.success() {
        return Ok(answer);
    }
    Err(HostError::Failed { path: path.to_owned(), args, status, tail: last_lines(&complaint) })
}

fn not_runnable(path: &Path) -> impl FnOnce(io::Error) -> HostError {
    move |source| HostError::NotRunnable { path: path.to_owned(), source }
}

/// A child that leads a process group of its own, which is killed with it: a wrapper script has children too.
struct ProbeProcess(Child);

impl ProbeProcess {
    fn start(path: &Path, args: &[&str]) -> io::Result<Self> {
        let mut command = Command::new(path);
        command
            .env_clear()
            .envs(process::environment())
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true).spawn().map(Self)
    }

    async fn conversation(&mut self) -> io::Result<(String, String, ExitStatus)> {
        let (answer, complaint) = tokio::try_join!(text(self.0.stdout.take()), text(self.0.stderr.take()))?;
        Ok((answer, complaint, self.0.wait().await?))
    }
}

impl Drop for ProbeProcess {
    fn drop(&mut self) {
        // The child has an id only until it has been waited for, so the id cannot belong to another process by now.
        if let Some(group) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

/// Reads a pipe, up to [`LONGEST_ANSWER`]; then closes it.
async fn text(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(LONGEST_ANSWER).read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last_lines(text: &str) -> Vec<String> {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(EVIDENCE_LINES)..].iter().map(|line| (*line).to_owned()).collect()
}

/// Parses the version in `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`.
fn parse_version(answer: &str) -> Option<QemuVersion> {
    let (_, rest) = answer.split_once("version ")?;
    let number = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
    let mut parts = number.split('.').map(|part| part.parse().ok());
    Some(QemuVersion { major: parts.next()??, minor: parts.next()??, micro: parts.next().flatten().unwrap_or(0) })
}

/// Returns the newest `pc-q35-N.M`; if a distribution has only names of its own, the one that `q35` is an alias of.
fn newest_q35(answer: &str) -> Option<String> {
    let names = answer.lines().filter_map(|line| line.split_whitespace().next());
    let numbered = names.filter_map(|name| Some((machine_version(name)?, name)));
    let newest = numbered.max().map(|(_, name)| name);
    newest.or_else(|| aliased_q35(answer)).map(str::to_owned)
}

/// Returns the machine that `q35` is an alias of.
fn aliased_q35(answer: &str) -> Option<&str> {
    let line = answer.lines().find(|line| line.split_whitespace().next() == Some("q35"))?;
    Some(line.split_once("(alias of ")?.1.split_once(')')?.0)
}

/// Parses `[10, 0]` from `pc-q35-10.0`, and nothing from `pc-q35-rhel9.4.0`.
fn machine_version(name: &str) -> Option<Vec<u32>> {
    name.strip_prefix("pc-q35-")?.split('.').map(|part| part.parse().ok()).collect()
}

/// Returns the number of CPUs that this process may use.
#[must_use]
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

fn cpu_model() -> String {
    let model = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| field(&text, "model name").map(str::to_owned));
    model.unwrap_or_else(|| "unknown".to_owned())
}

/// Flags of cpuinfo that name instruction sets that compilers use, besides those that begin with [`VECTOR_SETS`]. The others
/// vary with the microcode, the kernel and its command line.
const INSTRUCTION_SETS: &str = "abm adx aes bmi1 bmi2 clzero cx16 f16c fma fma4 gfni lahf_lm movbe pclmulqdq pni popcnt \
                                sha_ni ssse3 tbm vaes vpclmulqdq";
const VECTOR_SETS: [&str; 3] = ["amx_", "avx", "sse"];

/// Returns a digest of the first processor in a proc(5) `cpuinfo`; see [`Host::processor`].
fn processor(cpuinfo: &str) -> Sha256Digest {
    let mut flags: Vec<_> = field(cpuinfo, "flags").unwrap_or_default().split_whitespace().collect();
    flags.retain(|flag| {
        INSTRUCTION_SETS.split(' ').any(|set| set == *flag) || VECTOR_SETS.iter().any(|set| flag.starts_with(set))
    });
    flags.sort_unstable();
    let model = ["vendor_id", "cpu family", "model"].map(|name| field(cpuinfo, name).unwrap_or_default());
    Sha256Digest::of(model.into_iter().chain(flags).collect::<Vec<_>>().join("\n"))
}

/// Memory of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// Total memory, or the limit of this process's cgroup if that is less.
    pub total: ByteSize,
    /// Memory that new programs can use without swapping.
    pub available: ByteSize,
}

/// Reads proc(5)'s `meminfo` and the limits of the cgroups this process is in.
///
/// # Errors
/// When procfs is not mounted.
pub fn memory() -> Result<HostMemory, HostError> {
    let path = Path::new("/proc/meminfo");
    let memory = fs::read_to_string(path).and_then(|meminfo| {
        let limit = cgroup_limit().unwrap_or(u64::MAX);
        let total = ByteSize(memory_field(&meminfo, "MemTotal")?.min(limit));
        let available = ByteSize(memory_field(&meminfo, "MemAvailable")?.min(limit));
        Ok(HostMemory { total, available })
    });
    memory.map_err(|source| HostError::Unknown { path, source })
}

/// Reads a field of proc(5)'s `meminfo`, bytes.
fn memory_field(meminfo: &str, name: &str) -> io::Result<u64> {
    let kibibytes = field(meminfo, name).and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    let bytes = kibibytes.and_then(|kibibytes| kibibytes.checked_mul(1024));
    bytes.ok_or_else(|| io::Error::other("it has no such field"))
}

/// Returns the smallest `memory.max` between this process's cgroup and the root; `None` without cgroup v2 or a limit.
fn cgroup_limit() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let limits = Path::new("/sys/fs/cgroup").join(path);
    limits
        .ancestors()
        .filter_map(|folder| fs::read_to_string(folder.join("memory.max")).ok()?.trim().parse().ok())
        .min()
}

/// Returns the value of the first `name : value` line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Writes an executable shell script, in another process: a descriptor of this one, open for writing, could be inherited
    /// by a child that another test forks just then, and running the script would fail with ETXTBSY.
    fn script(folder: &Path, body: &str) -> PathBuf {
        let path = folder.join("qemu-system-x86_64");
        let status = std::process::Command::new("sh")
            .args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\" && chmod 755 \"$2\"", "sh", body])
            .arg(&path)
            .status()
            .expect("sh runs");
        assert!(status.success());
        path
    }

    async fn identify_script(body: &str, patience: Duration) -> Result<Qemu, HostError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        identify(script(folder.path(), body), patience).await
    }

    #[test]
    fn versions_are_read() {
        let version = |major, minor, micro| Some(QemuVersion { major, minor, micro });
        assert_eq!(parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"), version(10, 0, 2));
        assert_eq!(parse_version("QEMU emulator version 9.1.50 (v9.1.0-1-gabc)"), version(9, 1, 50));
        assert_eq!(parse_version("QEMU emulator version 8.2\n"), version(8, 2, 0));
        for bad in ["", "version ", "QEMU version x.y.z", "QEMU emulator version 10", "version 99999999999.1.1"] {
            assert_eq!(parse_version(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_newest_machine_is_the_newest_by_number() {
        let debian = "Supported machines are:\npc-q35-9.2  Standard PC\npc-q35-4.0.1  Standard PC (deprecated)\n\
                      q35  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.0)\npc-q35-10.0  Standard PC\nmicrovm  x\n";
        assert_eq!(newest_q35(debian).as_deref(), Some("pc-q35-10.0"));
        let rhel = "q35    RHEL-9.6.0 PC (Q35 + ICH9, 2009) (alias of pc-q35-rhel9.6.0)\npc-q35-rhel9.6.0  RHEL\n";
        assert_eq!(newest_q35(rhel).as_deref(), Some("pc-q35-rhel9.6.0"));
        assert_eq!(newest_q35("microvm  microvm (i386)\nq35 no alias\n"), None);
    }

    #[tokio::test]
    async fn this_host_is_surveyed_quickly() {
        let began = Instant::now();
        let host = survey().await.expect("the tests need QEMU");
        eprintln!("{:?} for {host:#?}", began.elapsed());
        assert!(host.qemu.version >= QemuVersion::OLDEST);
        assert!(machine_version(&host.qemu.machine_type).is_some() && host.cpus > 0);
        assert!(host.memory > ByteSize::mib(64));
    }

    #[tokio::test]
    async fn an_old_qemu_is_refused() {
        let error = identify_script("echo 'QEMU emulator version 6.2.0 (x)'", PATIENCE).await.expect_err("too old");
        assert!(error.to_string().ends_with("is QEMU 6.2.0; kiln needs 7.2.0 or newer"), "{error}");
        assert_eq!(error.kind(), Kind::Host);
    }

    #[tokio::test]
    async fn a_crash_names_its_signal_and_shows_what_was_said() {
        let error = identify_script("echo no such library >&2; kill -SEGV $$", PATIENCE).await.expect_err("crashed");
        assert!(error.to_string().contains("SIGSEGV"), "{error}");
        assert_eq!(error.evidence(), ["no such library"]);
    }

    #[tokio::test]
    async fn a_qemu_that_hangs_is_killed_with_its_children() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("made");
        let mut alive = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&fifo).expect("opened");
        // The shell and its child both hold the FIFO; it ends when both are gone.
        let body = format!("exec 9> {}; echo started >&9; sleep 1000 & wait", fifo.display());
        let error = identify_script(&body, Duration::from_secs(1)).await.expect_err("silent");
        assert!(matches!(error, HostError::Silent { .. }), "{error}");
        let mut said = String::new();
        let ended = tokio::time::timeout(Duration::from_secs(10), alive.read_to_string(&mut said)).await;
        assert!(ended.is_ok() && said.contains("started"), "{ended:?} {said}");
    }

    #[tokio::test]
    async fn endless_and_meaningless_answers_are_bounded() {
        for body in ["echo hello", "yes hello", "head -c 1000000 /dev/zero"] {
            let error = identify_script(body, PATIENCE).await.expect_err("no version");
            let expected = matches!(error, HostError::Unintelligible { .. } | HostError::Failed { .. });
            assert!(expected && error.evidence().len() <= EVIDENCE_LINES, "{error}");
        }
    }

    #[tokio::test]
    async fn a_missing_or_forbidden_program_says_so() {
        let error = identify("/nowhere/qemu".into(), PATIENCE).await.expect_err("missing");
        assert!(matches!(error, HostError::NotRunnable { .. }), "{error}");
        let error = program("qemu-system-nothing").expect_err("no such program");
        assert_eq!(error.to_string(), "`qemu-system-nothing` is not installed");
        assert_eq!(error.hints(), [format!("run `{INSTALL_QEMU}`")]);
    }

    #[test]
    fn a_processor_is_the_same_after_an_update_of_its_microcode_and_another_with_other_instructions() {
        let before = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\n\
                      model name\t: Xeon @ 2.50GHz\nmicrocode\t: 0x1\ncpu MHz\t\t: 2500.1\n\
                      flags\t\t: fpu sse sse2 hle rtm avx avx2 avx512f aes\n\nprocessor\t: 1\n";
        let after = before.replace("0x1", "0x2").replace("2500.1", "800").replace("hle rtm", "md_clear pti");
        assert_eq!(processor(before), processor(&after));
        for (from, to) in [(": 85", ": 86"), (" avx512f", ""), (": 6\n", ": 7\n"), ("GenuineIntel", "AuthenticAMD")] {
            assert_ne!(processor(before), processor(&before.replace(from, to)), "{from}");
        }
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "MemTotal:       1000 kB\nmodel name\t: A CPU @ 2: GHz\n";
        assert_eq!(field(text, "MemTotal"), Some("1000 kB"));
        assert_eq!(field(text, "model name"), Some("A CPU @ 2: GHz"));
        assert_eq!(field(text, "Total"), None);
    }
}
