//! Stops all services that still write.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use super::super::boot_mode;
use super::super::bus::Bus;
use super::super::silent_program;
use super::{SYSTEMD, unit_folders};

/// How long services may take to end. systemd stops a service within 90 s, unless configured otherwise.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// The interval at which services are checked for having ended.
const TICK: Duration = Duration::from_millis(5);
/// How long the journal may take to move to `/run`; it may have much to write first.
const JOURNAL_PATIENCE: Duration = Duration::from_secs(60);

/// PID 1's own bus.
const MANAGER: &str = "/run/systemd/private";
/// The journal's Varlink interface (systemd >= 242).
const JOURNAL: &str = "/run/systemd/journal/io.systemd.journal";
/// The folder in which systemd keeps a link for each running service.
const RUNNING: &str = "/run/systemd/units";
const TARGET: &str = "kiln-seal.target";
/// A service of early boot that writes when its process ends. Others write when they are stopped, which they are not: the
/// agent has the guest powered off without that.
const WRITER: &str = "systemd-timesyncd.service";
/// Services that may still be running when files are treated: these write nothing to the disk.
const HARMLESS: [&str; 6] = [
    "cloud-init-local.service",
    "cloud-init-main.service",
    "dbus.service",
    "dbus-broker.service",
    "systemd-logind.service",
    "systemd-user-sessions.service",
];
/// Targets of early boot; the units that they want provide file systems and devices.
const EARLY_TARGETS: [&str; 5] = ["sysinit", "local-fs", "local-fs-pre", "cryptsetup", "swap"];
/// Scripts of other init systems, for services that write logs.
const SCRIPTS: [&str; 8] = ["rsyslog", "syslog", "syslog-ng", "cron", "crond", "ssh", "sshd", "chronyd"];

/// Stops services, and moves the journal off the disk. Returns the services that have not ended.
pub fn stop() -> Vec<String> {
    if boot_mode::is_direct() {
        return Vec::new();
    }
    if Path::new(SYSTEMD).is_dir() {
        let journal = thread::spawn(relinquish_journal);
        let still_running = isolate().unwrap_or_else(|_| {
            // The image has a systemd that does not answer on its own bus.
            silent_program::start("systemctl", &["isolate", TARGET]).into_iter().for_each(wait);
            Vec::new()
        });
        let _ = journal.join();
        return still_running;
    }
    let scripts = SCRIPTS.iter().map(|name| format!("/etc/init.d/{name}")).filter(|script| is_executable(script));
    let running: Vec<Child> = scripts.filter_map(|script| silent_program::start(&script, &["stop"])).collect();
    running.into_iter().for_each(wait);
    Vec::new()
}

fn is_executable(script: &str) -> bool {
    fs::metadata(script).is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}

fn wait(mut child: Child) {
    let _ = child.wait();
}

/// Stops all services but those of early boot, and of those the ones that write when they end. Returns the services that
/// have not ended.
///
/// The connection to the bus is closed as soon as systemd has queued the job: otherwise systemd would report each change of
/// each unit, which takes PID 1 longer than the changes. A folder shows which services have ended.
fn isolate() -> io::Result<Vec<String>> {
    let running = running_services()?;
    let mut manager = Bus::connect(MANAGER)?;
    if running.iter().any(|unit| unit == WRITER) {
        // Isolation would stop it as the last one: it was started before all others.
        manager.stop_unit(WRITER)?;
    }
    let early = early_units();
    let (kept, stopped): (Vec<String>, Vec<String>) = running.into_iter().partition(|unit| is_kept(unit, &early));
    fs::write(Path::new(SYSTEMD).join(TARGET), target(&kept, &stopped))?;
    manager.start_unit(TARGET, "isolate")?;
    drop(manager);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut running = running_services()?;
        running.retain(|unit| stopped.contains(unit) && !HARMLESS.contains(&unit.as_str()));
        if running.is_empty() || Instant::now() >= deadline {
            return Ok(running);
        }
        thread::sleep(TICK);
    }
}

fn running_services() -> io::Result<Vec<String>> {
    let names = fs::read_dir(RUNNING)?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let services = names.filter_map(|name| Some(name.strip_prefix("invocation:")?.to_owned()));
    Ok(services.filter(|unit| unit.ends_with(".service")).collect())
}

/// Returns the content of the unit that is isolated. It wants only running units, so that nothing is started. It names the
/// units to stop, since a service may be excluded from isolation.
fn target(kept: &[String], stopped: &[String]) -> String {
    let kept = kept.join(" ");
    let stopped = stopped.join(" ");
    format!("[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\nWants={kept}\nConflicts={stopped}\n")
}

/// Returns whether a service is kept: the agent itself, and those of early boot, without which file systems and devices may
/// vanish.
fn is_kept(unit: &str, early: &HashSet<OsString>) -> bool {
    unit != WRITER && (unit == "kiln-agent.service" || early.contains(OsStr::new(unit)) || is_systemds_own(unit))
}

/// Returns the units that targets of early boot want or require.
fn early_units() -> HashSet<OsString> {
    let targets = unit_folders().flat_map(|folder| EARLY_TARGETS.map(|target| format!("{folder}/{target}.target")));
    let wanting = targets.flat_map(|target| [format!("{target}.wants"), format!("{target}.requires")]);
    wanting.flat_map(fs::read_dir).flatten().flatten().map(|entry| entry.file_name()).collect()
}

/// Returns whether a unit is a service of systemd's own that does not wait for early boot to end.
fn is_systemds_own(unit: &str) -> bool {
    let template = unit.split_once('@').map(|(name, _)| format!("{name}@.service"));
    let file = template.as_deref().unwrap_or(unit);
    let texts = unit_folders().filter_map(|folder| fs::read_to_string(format!("{folder}/{file}")).ok());
    unit.starts_with("systemd-")
        && texts.into_iter().any(|text| text.lines().any(|line| line == "DefaultDependencies=no"))
}

/// Asks the journal to close its files on the disk and to write to `/run`, as `journalctl --relinquish-var` does.
fn relinquish_journal() -> io::Result<()> {
    let mut stream = UnixStream::connect(JOURNAL)?;
    stream.set_read_timeout(Some(JOURNAL_PATIENCE))?;
    stream.write_all(b"{\"method\":\"io.systemd.Journal.RelinquishVar\",\"parameters\":{}}\0")?;
    BufReader::new(stream).read_until(0, &mut Vec::new()).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_starts_nothing_and_names_what_is_stopped() {
        let text = target(&["systemd-journald.service".into()], &["cron.service".into(), "getty@tty1.service".into()]);
        assert!(
            text.contains("\nWants=systemd-journald.service\nConflicts=cron.service getty@tty1.service\n"),
            "{text}"
        );
    }

    #[test]
    fn the_agent_goes_on_and_what_writes_at_its_end_does_not() {
        let early = HashSet::from([WRITER.into(), "lvm2-monitor.service".into()]);
        assert!(is_kept("kiln-agent.service", &early) && is_kept("lvm2-monitor.service", &early));
        assert!(!is_kept(WRITER, &early) && !is_kept("no-such-thing.service", &early));
    }
}
