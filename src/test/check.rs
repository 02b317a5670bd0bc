//! A single test against one guest: the requests it makes, and the result.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::deadline::{DeadlineError, unless_agent_ends};
use crate::digest::Sha256Digest;
use crate::error::{Failure, Kind};
use crate::event::{Channel, NoticeLevel};
use crate::guest::boot::{Guest, MachineSite};
use crate::guest::hints;
use crate::guest::step_output::{LineSplitter, append_within};
use crate::plan::scaled;
use crate::provision::exec;
use crate::session::{Exec, Exit};
use crate::size::format_duration;
use crate::specfile::{Check, Command, FileCheck, Test};

use super::describe::{describe_text, matches_output, shorten};
use super::parse::{self, Verdict};
use super::{PATIENCE, PAUSE};

/// The most bytes that a check reads of a file or of a command's output, and that are kept of a failed test's.
const READ_LIMIT: usize = 16 << 20;

/// A test in progress in a guest.
pub(super) struct Probe<'a> {
    site: MachineSite<'a>,
    guest: &'a mut Guest,
    test: &'a Test,
    /// The time that the last boot took.
    booted: Duration,
    lines: LineSplitter,
    /// The output of all commands of the test, up to [`READ_LIMIT`].
    written: String,
    /// Whether the guest has ended or does not answer.
    is_lost: bool,
}

/// The result of a command.
struct Answer {
    exit: Exit,
    stdout: Vec<u8>,
    /// Whether there was more output than is kept.
    is_cut: bool,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }
}

impl<'a> Probe<'a> {
    pub(super) fn new(site: MachineSite<'a>, guest: &'a mut Guest, test: &'a Test, booted: Duration) -> Self {
        let lines = LineSplitter::new(site.mask);
        Self { site, guest, test, booted, lines, written: String::new(), is_lost: false }
    }

    /// Returns the last lines of the last try.
    pub(super) fn tail(&self) -> Vec<String> {
        self.lines.tail()
    }

    /// Returns a hint on a command that failed, as far as the output of its last try allows.
    pub(super) fn hint(&self) -> Option<String> {
        let is_command = matches!(self.test.check, Check::Run(_) | Check::Command { .. });
        is_command.then(|| hints::hint(&self.lines.recent(), self.site.machine)).flatten()
    }

    /// Repeats the check until it passes or the time for that is over. A guest that ends itself is a failure of the test.
    pub(super) async fn until_it_holds(&mut self, began: Instant) -> Result<Verdict, Failure> {
        let tried = self.tries(began).await;
        tried.or_else(|failure| {
            let is_limit = failure.fault::<DeadlineError>().is_some();
            self.is_lost = matches!(failure.kind(), Kind::Boot | Kind::Step) && !is_limit;
            if self.is_lost { Ok(Err(format!("lost its guest: {failure}"))) } else { Err(failure) }
        })
    }

    async fn tries(&mut self, began: Instant) -> Result<Verdict, Failure> {
        if self.test.reboot {
            let began = Instant::now();
            self.guest.reboot(self.site).await?;
            self.booted = began.elapsed();
        }
        loop {
            self.lines = LineSplitter::new(self.site.mask);
            let verdict = self.check().await?;
            if verdict.is_ok() || began.elapsed() >= self.test.retry_for {
                return Ok(verdict);
            }
            self.site.limits.pause(PAUSE).await?;
        }
    }

    async fn check(&mut self) -> Result<Verdict, Failure> {
        match &self.test.check {
            Check::Run(command) => {
                let answer = self.run(command).await?;
                let text = answer.exit.to_string();
                Ok(if answer.exit.is_success() { Ok(text) } else { Err(format!("{text}{}", self.last_words())) })
            }
            Check::Command { run, exit, stdout_matches } => self.command(run, *exit, stdout_matches.as_deref()).await,
            Check::Unit(unit) if self.guest.hello.systemd => {
                let properties = ["LoadState", "ActiveState", "SubState", "Result", "NRestarts"].join(",");
                let answer = self.ask(&["systemctl", "show", "-p", &properties, "--", unit]).await?;
                Ok(parse::unit(&answer.text()))
            }
            Check::Unit(unit) => {
                let service = unit.strip_suffix(".service").unwrap_or(unit);
                let answer = self.ask(&["service", service, "status"]).await?;
                let says = format!("its script {}: {}", answer.exit, answer.text());
                Ok(if answer.exit.is_success() { Ok(says) } else { Err(says) })
            }
            Check::Port(port) => {
                let answer = self.ask(&["cat", "/proc/net/tcp", "/proc/net/tcp6"]).await?;
                Ok(parse::port(*port, &answer.text()))
            }
            Check::File(file) => self.file(file).await,
            Check::Package { name, version } => {
                let answer = self.ask(&["sh", "-c", PACKAGE, "package", name]).await?;
                Ok(parse::package(&answer.text(), name, version.as_deref()))
            }
            Check::BootsWithin(limit) => {
                let limit = scaled(*limit, self.site.machine.accelerator);
                let took = self.booted.as_secs_f64();
                let found = format!("booted in {took:.1} s of {}", format_duration(limit));
                Ok(if self.booted <= limit { Ok(found) } else { Err(found) })
            }
            Check::NoFailedUnits if self.guest.hello.systemd => {
                let list = ["systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager"];
                let answer = self.ask(&list).await?;
                // A systemd that does not answer has no list, which is not an empty list.
                Ok(if answer.exit.is_success() {
                    parse::failed_units(&answer.text())
                } else {
                    Err(format!("cannot be listed: systemctl {}{}", answer.exit, self.last_words()))
                })
            }
            Check::NoFailedUnits => Ok(Err("found no systemd in the guest".to_owned())),
        }
    }

    async fn command(&mut self, run: &Command, exit: u8, regex: Option<&str>) -> Result<Verdict, Failure> {
        let answer = self.run(run).await?;
        let found = answer.exit.to_string();
        if answer.exit != Exit::Code(exit) {
            return Ok(Err(format!("{found}, not with {exit}{}", self.last_words())));
        }
        let Some(regex) = regex else { return Ok(Ok(found)) };
        if matches_output(regex, &String::from_utf8_lossy(&answer.stdout)) {
            return Ok(Ok(found));
        }
        Ok(Err(format!("wrote {}, which does not match `{regex}`", describe_text(&answer.stdout))))
    }

    /// Returns the last line that the test's command wrote, to follow how it ended.
    fn last_words(&self) -> String {
        let last = self.lines.tail().into_iter().rev().find(|line| !line.trim().is_empty());
        last.map_or(String::new(), |line| format!(" and wrote `{}`", shorten(line.trim())))
    }

    async fn file(&mut self, wanted: &FileCheck) -> Result<Verdict, Failure> {
        let answer = self.ask(&["sh", "-c", FILE, "file", &wanted.path]).await?;
        let found = match parse::file(&answer.text(), wanted) {
            Ok(found) if wanted.contains.is_some() || wanted.sha256.is_some() => found,
            verdict => return Ok(verdict),
        };
        let answer = self.ask(&["cat", "--", &wanted.path]).await?;
        if !answer.exit.is_success() {
            return Ok(Err(format!("cannot be read: cat {}{}", answer.exit, self.last_words())));
        }
        if answer.is_cut {
            return Ok(Err(format!("is larger than the {} MiB that a test reads", READ_LIMIT >> 20)));
        }
        let sha256 = Sha256Digest::of(&answer.stdout);
        Ok(match wanted {
            FileCheck { sha256: Some(wanted), .. } if *wanted != sha256 => {
                Err(format!("has the digest {sha256}, not {wanted}; it holds {}", describe_text(&answer.stdout)))
            }
            FileCheck { contains: Some(text), .. } if !contains(&answer.stdout, text.as_bytes()) => {
                let expected = describe_text(text.as_bytes());
                let length = answer.stdout.len();
                let found = describe_text(&answer.stdout);
                Err(format!("does not contain {expected} ({length} bytes read); it holds {found}"))
            }
            _ => Ok(found),
        })
    }

    async fn run(&mut self, command: &Command) -> Result<Answer, Failure> {
        self.exec(exec(command, "test"), true).await
    }

    /// Runs a command of kiln's own, whose output nobody needs to see.
    async fn ask(&mut self, argv: &[&str]) -> Result<Answer, Failure> {
        self.exec(Exec::new(argv.iter().copied()), false).await
    }

    async fn exec(&mut self, exec: Exec, is_shown: bool) -> Result<Answer, Failure> {
        let timeout = self.test.timeout;
        let exec = Exec { timeout: Some(timeout), login: is_shown, ..exec };
        let mut stdout = Vec::new();
        let mut is_cut = false;
        let mut emit = |_, line: String| {
            if self.written.len() + line.len() < READ_LIMIT {
                self.written.push_str(&line);
                self.written.push('\n');
            }
            if is_shown {
                self.site.events.notice(NoticeLevel::Debug, format!("{}: {line}", self.test.name));
            }
        };
        let mut output = |channel: Channel, bytes: &[u8]| {
            if channel == Channel::Stdout {
                is_cut |= stdout.len() + bytes.len() > READ_LIMIT;
                append_within(READ_LIMIT, &mut stdout, bytes);
            }
            if is_shown || channel == Channel::Stderr {
                self.lines.feed(channel, bytes, &mut emit);
            }
        };
        let request = unless_agent_ends(&self.guest.machine, self.guest.session.exec(&exec, &mut output));
        let exit = self.site.limits.call_with_grace(&self.guest.machine, timeout, request).await;
        self.lines.finish(&mut emit);
        Ok(Answer { exit: exit?, stdout, is_cut })
    }

    /// Writes the evidence of a failed test into its folder, beside the console: its output, and the journal of a guest
    /// that is still running.
    pub(super) async fn keep(&mut self, folder: &Path) -> io::Result<()> {
        fs::write(folder.join("output.log"), &self.written)?;
        if self.is_lost {
            return Ok(());
        }
        let exec = Exec { timeout: Some(PATIENCE), ..Exec::new(["sh", "-c", JOURNAL]) };
        let mut journal = Vec::new();
        let request = async {
            self.guest.session.exec(&exec, &mut |_, bytes| append_within(READ_LIMIT, &mut journal, bytes)).await
        };
        // The journal is useful, but a failure to fetch it must not become another failure.
        let _ = self.site.limits.call_with_grace(&self.guest.machine, PATIENCE, request).await;
        fs::write(folder.join("journal.log"), self.site.mask.mask_bytes(&journal))
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    text.is_empty() || aho_corasick::AhoCorasick::new([text]).is_ok_and(|search| search.is_match(bytes))
}

/// A script that prints `installed VERSION`, from whichever of dpkg, rpm and apk knows the package; apk prints
/// `NAME-VERSION`.
const PACKAGE: &str = r#"if command -v dpkg-query >/dev/null; then dpkg-query -W -f '${db:Status-Status} ${Version}\n' -- "$1"
    elif command -v rpm >/dev/null; then rpm -q --qf 'installed %{VERSION}-%{RELEASE}\n' -- "$1"
    elif command -v apk >/dev/null; then apk info -ev "$1" | sed 's/^/installed /'
    else echo 'unknown'; fi 2>/dev/null"#;
/// A script that prints `absent`, `dangling`, or a file's mode, numbers and names of its owner, and its type.
const FILE: &str = r#"if [ -e "$1" ]; then stat -L -c '%a %u:%g %U:%G %F' -- "$1"
    elif [ -L "$1" ]; then echo dangling; else echo absent; fi"#;
const JOURNAL: &str = "journalctl --boot --no-pager --lines 10000 2>/dev/null || dmesg";
