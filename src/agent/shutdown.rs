//! Powers the guest off, and checks whether it is about to reboot or to power off: `systemctl reboot` and similar commands
//! return before that happens.
//!
//! The check starts no process: it is made after every step, and a process costs tens of milliseconds under software
//! emulation.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};

use super::bus::{Bus, Property};
use super::login::SYSTEM_PATH;
use super::processes::every_process;
use super::sys;
use crate::wire::power_words::mentions_power;

/// The signal that makes systemd power off at once, with file systems unmounted (systemd(1), SIGRTMIN+14).
const POWER_OFF: u8 = sys::SIGRTMIN + 14;
/// Exists while a shutdown is scheduled at logind for later.
const SCHEDULED: &str = "/run/systemd/shutdown/scheduled";
/// Holds the programs that may delay a shutdown. If it is empty, logind has passed a shutdown on before it answered.
const INHIBITORS: &str = "/run/systemd/inhibit";
/// The folder of units that `systemd-run` has created, timers among them.
const TRANSIENT_UNITS: &str = "/run/systemd/transient";
/// Exists while `OpenRC` stops services.
const OPENRC_STOPPING: &str = "/run/openrc/rc.stopping";

/// Powers the guest off. Every init system has a `poweroff`, which stops services first. Sealing has already stopped
/// systemd's services: its `--force` proceeds at once to ending processes and unmounting file systems (systemctl(1); that of
/// `poweroff` would not). A systemd whose sockets were removed gets a signal.
pub fn power_off() {
    let is_systemd = fs::read_to_string("/proc/1/comm").is_ok_and(|name| name == "systemd\n");
    let argv: &[&str] = if is_systemd { &["systemctl", "poweroff", "--force"] } else { &["poweroff"] };
    let mut command = Command::new(argv[0]);
    let status = command.args(&argv[1..]).env("PATH", SYSTEM_PATH).status();
    if status.as_ref().is_ok_and(ExitStatus::success) {
        return;
    }
    eprintln!("kiln-agent: cannot power off: {status:?}");
    if is_systemd {
        sys::send_signal(1, POWER_OFF);
    }
}

/// Returns whether a reboot or shutdown of the guest was requested, for now or for later.
#[must_use]
pub fn is_requested() -> bool {
    if Path::new("/run/systemd/system").is_dir() {
        Path::new(SCHEDULED).exists() || is_systemd_stopping() || is_delayed() || has_power_timer()
    } else {
        Path::new(OPENRC_STOPPING).exists() || is_last_runlevel() || runs_shutdown()
    }
}

/// Asks PID 1, which reports a queued `shutdown.target` before anything was stopped for it.
fn is_systemd_stopping() -> bool {
    const STATE: Property<'_> = Property {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        name: "SystemState",
    };
    let state = Bus::connect("/run/systemd/private").and_then(|mut bus| bus.string(&STATE));
    state.is_ok_and(|state| state == "stopping")
}

/// Asks logind, which lets programs finish first that have requested that, such as unattended upgrades.
fn is_delayed() -> bool {
    const PREPARING: Property<'_> = Property {
        destination: "org.freedesktop.login1",
        path: "/org/freedesktop/login1",
        interface: "org.freedesktop.login1.Manager",
        name: "PreparingForShutdown",
    };
    let has_inhibitors = fs::read_dir(INHIBITORS).is_ok_and(|mut entries| entries.next().is_some());
    has_inhibitors
        && Bus::connect("/run/dbus/system_bus_socket")
            .and_then(Bus::greeted)
            .and_then(|mut bus| bus.boolean(&PREPARING))
            .unwrap_or(false)
}

/// Checks for a timer such as the one that `systemd-run --on-active=1min systemctl reboot` creates.
fn has_power_timer() -> bool {
    let units = fs::read_dir(TRANSIENT_UNITS).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut timers = units.filter(|path| path.extension().is_some_and(|extension| extension == "timer"));
    timers.any(|timer| {
        let service = fs::read_to_string(timer.with_extension("service")).unwrap_or_default();
        let mut starts = service.lines().filter(|line| line.starts_with("ExecStart"));
        starts.any(mentions_power)
    })
}

/// Reads the run level of sysvinit from utmp, and returns whether it is 0 or 6: the guest is going down.
fn is_last_runlevel() -> bool {
    let utmp = fs::read("/run/utmp").unwrap_or_default();
    matches!(runlevel(&utmp), Some(b'0' | b'6'))
}

/// Parses the run level in a utmp(5), whose records have 384 bytes: it is the low byte of the process id in the record of
/// type 1.
fn runlevel(utmp: &[u8]) -> Option<u8> {
    const RUN_LEVEL: [u8; 2] = [1, 0];
    utmp.chunks_exact(384).filter(|record| record[..2] == RUN_LEVEL).map(|record| record[4]).next_back()
}

/// Checks for a process of `shutdown -r +1`, which waits as a process of its own.
fn runs_shutdown() -> bool {
    every_process().any(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "shutdown\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_level_is_that_of_the_last_record() {
        let record = |kind: u8, level: u8| {
            let mut record = vec![0; 384];
            (record[0], record[4]) = (kind, level);
            record
        };
        assert_eq!(runlevel(&[record(2, 0), record(1, b'2'), record(7, 9)].concat()), Some(b'2'));
        assert_eq!(runlevel(&[record(1, b'2'), record(1, b'6')].concat()), Some(b'6'));
        assert_eq!(runlevel(b"short"), None);
    }
}
