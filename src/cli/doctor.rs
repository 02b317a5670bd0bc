//! `kiln doctor`: checks host requirements. It prints one line for each finding, with its remedy.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use clap::{Args, ValueEnum};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access, geteuid};
use serde::Serialize;

use crate::error::{Failure, Fault, Kind};
use crate::machine::firmware;
use crate::machine::host::{self, HostError};
use crate::plan::host::{KvmVerdict, Qemu, UefiFirmware};
use crate::report::escape::escape;
use crate::size::ByteSize;

/// Schema version of the `--json` output. Fields are only ever added to it.
const SCHEMA: u32 = 1;
/// Minimum of free space: a base image, an overlay and an output of the smallest useful kind need as much.
const LEAST_SPACE: ByteSize = ByteSize::gib(1);
/// Recommended free space: enough for a few images and their cache.
const GOOD_SPACE: ByteSize = ByteSize::gib(10);
/// Recommended memory: a default machine has 1 GiB, and QEMU and the host need some too.
const GOOD_MEMORY: ByteSize = ByteSize::mib(1536);

/// Arguments of `kiln doctor`.
#[derive(Debug, Default, Clone, Args)]
#[command(after_help = "Example:\n  kiln doctor --require kvm")]
pub struct DoctorArgs {
    /// Fail with exit code 4 if this is not usable
    #[arg(long, value_name = "WHAT")]
    pub require: Vec<Requirement>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Host features that can be required in addition to what every build needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Requirement {
    /// Hardware virtualisation with KVM
    Kvm,
    /// UEFI firmware for guests
    Uefi,
}

/// Folders whose free space is checked.
#[derive(Debug, Clone, Copy)]
pub struct CheckedFolders<'a> {
    /// The store's folder, which need not exist yet.
    pub store: &'a Path,
    /// The cache's folder, which need not exist yet.
    pub cache: &'a Path,
}

/// The host does not meet the requirements, or the report cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// At least one finding is a `fail`; the report has the remedies.
    #[error("this host is not fit: {}", subjects.join(", "))]
    Unfit {
        /// The subjects of those findings.
        subjects: Vec<&'static str>,
    },
    /// The report cannot be written.
    #[error("cannot write the report")]
    Report(#[source] io::Error),
}

impl Fault for DoctorError {
    fn kind(&self) -> Kind {
        match self {
            Self::Unfit { .. } => Kind::Host,
            Self::Report(_) => Kind::Output,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Unfit { .. } => vec!["each `fail` line of the report says how to fix it".to_owned()],
            Self::Report(_) => Vec::new(),
        }
    }
}

/// Examines the host and writes the report to `out`, which is standard output.
///
/// # Errors
/// When a finding is a `fail` (after the report), or the report cannot be written.
pub async fn run(args: &DoctorArgs, places: CheckedFolders<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let report = examine(&args.require, places).await;
    if args.json { report.write_json(out) } else { write!(out, "{report}") }.map_err(DoctorError::Report)?;
    let subjects = report.failed();
    if subjects.is_empty() { Ok(()) } else { Err(DoctorError::Unfit { subjects }.into()) }
}

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Grade {
    Ok,
    /// Builds work, with restrictions.
    Warn,
    /// Builds do not work.
    Fail,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    grade: Grade,
    subject: &'static str,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn ok(subject: &'static str, text: impl fmt::Display) -> Self {
        Self { grade: Grade::Ok, subject, text: text.to_string(), fix: None }
    }

    fn bad(grade: Grade, subject: &'static str, text: impl fmt::Display, fix: impl Into<String>) -> Self {
        Self { grade, subject, text: text.to_string(), fix: Some(fix.into()) }
    }

    fn of_error(subject: &'static str, error: HostError) -> Self {
        let failure = Failure::from(error);
        Self::bad(Grade::Fail, subject, &failure, failure.hints().join("; "))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grade = match self.grade {
            Grade::Ok => "ok",
            Grade::Warn => "warn",
            Grade::Fail => "fail",
        };
        write!(f, "{grade:<5} {:<9} {}", self.subject, escape(&self.text))?;
        match &self.fix {
            Some(fix) => write!(f, "; to fix: {}", escape(fix)),
            None => Ok(()),
        }
    }
}

/// All findings, in the order of the output.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    fit: bool,
    kvm: KvmVerdict,
    findings: Vec<Finding>,
}

impl Report {
    fn new(kvm: KvmVerdict, findings: Vec<Finding>) -> Self {
        let fit = findings.iter().all(|finding| finding.grade != Grade::Fail);
        Self { schema: SCHEMA, fit, kvm, findings }
    }

    fn failed(&self) -> Vec<&'static str> {
        let failed = self.findings.iter().filter(|finding| finding.grade == Grade::Fail);
        failed.map(|finding| finding.subject).collect()
    }

    fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))
    }
}

async fn examine(required: &[Requirement], places: CheckedFolders<'_>) -> Report {
    let (qemu, kvm) = tokio::join!(host::qemu(), host::kvm());
    // Without QEMU the firmware is checked for the machine type of a current QEMU.
    let machine_type = qemu.as_ref().map_or("pc-q35-10.0", |qemu| &qemu.machine_type).to_owned();
    let mut findings = vec![on_qemu(qemu)];
    findings.push(on_kvm(&kvm, grade_unless(required, Requirement::Kvm)));
    findings.push(on_firmware(&firmware::find(&machine_type), grade_unless(required, Requirement::Uefi)));
    findings.push(on_space("store", places.store, "--store DIR"));
    findings.push(on_space("cache", places.cache, "--cache DIR"));
    findings.push(on_memory());
    findings.push(on_user(geteuid().is_root()));
    Report::new(kvm, findings)
}

/// Returns `fail` if a feature was required and `warn` if not, since builds work without it.
fn grade_unless(required: &[Requirement], what: Requirement) -> Grade {
    if required.contains(&what) { Grade::Fail } else { Grade::Warn }
}

fn on_qemu(qemu: Result<Qemu, HostError>) -> Finding {
    match qemu {
        Ok(Qemu { system, version, machine_type }) => {
            Finding::ok("qemu", format_args!("QEMU {version} with {machine_type}: {}", system.display()))
        }
        Err(error) => Finding::of_error("qemu", error),
    }
}

fn on_kvm(kvm: &KvmVerdict, grade: Grade) -> Finding {
    match kvm.remedy() {
        None => Finding::ok("kvm", kvm),
        Some(remedy) if grade == Grade::Fail => Finding::bad(grade, "kvm", kvm, remedy),
        Some(remedy) => Finding::bad(
            grade,
            "kvm",
            format_args!("{kvm}; builds use software emulation, which is slower and no security boundary"),
            remedy,
        ),
    }
}

fn on_firmware(found: &[UefiFirmware], grade: Grade) -> Finding {
    match found.first() {
        Some(best) if best.secure_boot => {
            Finding::ok("uefi", format_args!("{} (with Secure Boot)", best.code.display()))
        }
        Some(best) => Finding::ok("uefi", best.code.display()),
        None => Finding::bad(
            grade,
            "uefi",
            "no UEFI firmware for guests; `firmware = \"bios\"` works",
            "run `sudo apt-get install ovmf`",
        ),
    }
}

fn on_space(subject: &'static str, place: &Path, option: &str) -> Finding {
    let shown = place.display();
    let elsewhere = format!("free some, or use another place with `{option}`");
    // A folder that does not exist yet will be created below the first ancestor that does.
    let Some(existing) = place.ancestors().find(|path| path.exists()) else {
        return Finding::bad(Grade::Fail, subject, format_args!("{shown} is nowhere"), elsewhere);
    };
    if access(existing, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        let fix = format!("make it writable, or use another place with `{option}`");
        return Finding::bad(Grade::Fail, subject, format_args!("{} is not writable", existing.display()), fix);
    }
    let free = match statvfs(existing) {
        Ok(stat) => ByteSize(stat.blocks_available().saturating_mul(stat.fragment_size())),
        Err(errno) => {
            return Finding::bad(Grade::Warn, subject, format_args!("{shown}: {}", errno.desc()), elsewhere);
        }
    };
    graded_space(subject, free, format_args!("{free} free for {shown}"), elsewhere)
}

fn graded_space(subject: &'static str, free: ByteSize, text: fmt::Arguments<'_>, fix: String) -> Finding {
    match free {
        free if free < LEAST_SPACE => Finding::bad(Grade::Fail, subject, text, fix),
        free if free < GOOD_SPACE => Finding::bad(Grade::Warn, subject, text, fix),
        _ => Finding::ok(subject, text),
    }
}

fn on_memory() -> Finding {
    let memory = match host::memory() {
        Ok(memory) => memory,
        Err(error) => return Finding::of_error("memory", error),
    };
    let text = format!("{} of {} available", memory.available, memory.total);
    if memory.available < GOOD_MEMORY {
        let fix = "give guests less with `machine.memory`, or stop other programs";
        return Finding::bad(Grade::Warn, "memory", text, fix);
    }
    Finding::ok("memory", text)
}

fn on_user(root: bool) -> Finding {
    if root {
        let text = "kiln runs as root, and so would whatever breaks out of a guest";
        return Finding::bad(Grade::Warn, "user", text, "run kiln as an ordinary user; it needs no root");
    }
    Finding::ok("user", "not root")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    async fn report(args: DoctorArgs, store: &str) -> (String, Result<(), Failure>) {
        let places = CheckedFolders { store: Path::new(store), cache: Path::new("/tmp/cache/not/there/yet") };
        let mut out = Vec::new();
        let result = run(&args, places, &mut out).await;
        (String::from_utf8(out).expect("text"), result)
    }

    #[tokio::test]
    async fn each_finding_is_one_line_and_each_bad_one_has_a_fix() {
        let (text, _) = report(DoctorArgs::default(), "/tmp").await;
        eprint!("{text}");
        assert_eq!(text.lines().count(), 7);
        for line in text.lines() {
            assert!(line.starts_with("ok ") || line.contains("; to fix: "), "{line}");
        }
    }

    #[tokio::test]
    async fn kvm_is_a_failure_only_where_it_is_required_and_not_usable() {
        let required = DoctorArgs { require: vec![Requirement::Kvm], json: true };
        let (text, result) = report(required, "/tmp").await;
        let json: Value = serde_json::from_str(&text).expect("one document");
        let line = json["findings"].as_array().expect("a list").iter().find(|finding| finding["subject"] == "kvm");
        let usable = json["kvm"]["verdict"] == "usable";
        eprintln!("kvm usable here: {usable}");
        assert_eq!(line.expect("always reported")["grade"], if usable { "ok" } else { "fail" });
        let failed = result.err().is_some_and(|failure| {
            assert_eq!(failure.kind(), Kind::Host);
            failure.to_string().contains("kvm")
        });
        assert_eq!(failed, !usable);
    }

    #[tokio::test]
    async fn a_store_without_space_is_a_failure() {
        let (text, result) = report(DoctorArgs::default(), "/proc/nothing").await;
        let failure = result.expect_err("procfs has no space");
        assert_eq!(failure.kind().exit_code(), 4);
        assert!(failure.to_string().contains("store"), "{failure}");
        assert!(text.lines().any(|line| line.starts_with("fail  store")), "{text}");
    }

    #[test]
    fn grades_follow_what_was_found() {
        let space = |free| graded_space("store", free, format_args!("x"), String::new()).grade;
        assert_eq!([ByteSize(0), LEAST_SPACE, GOOD_SPACE].map(space), [Grade::Fail, Grade::Warn, Grade::Ok]);
        assert_eq!(on_kvm(&KvmVerdict::Usable, Grade::Fail).grade, Grade::Ok);
        assert_eq!(on_firmware(&[], Grade::Warn).fix.as_deref(), Some("run `sudo apt-get install ovmf`"));
        assert_eq!([true, false].map(|root| on_user(root).grade), [Grade::Warn, Grade::Ok]);
        let missing = on_qemu(Err(HostError::NotInstalled { program: "qemu-system-x86_64" }));
        assert_eq!(
            missing.to_string(),
            "fail  qemu      `qemu-system-x86_64` is not installed; to fix: run `sudo apt-get install qemu-system-x86`"
        );
    }

    #[test]
    fn a_denied_kvm_says_what_to_run() {
        assert_eq!(
            on_kvm(&KvmVerdict::Denied, Grade::Fail).to_string(),
            "fail  kvm       this user may not open /dev/kvm; to fix: run `sudo usermod -aG kvm $USER` and log in again"
        );
    }
}
