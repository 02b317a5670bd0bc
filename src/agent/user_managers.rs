//! The systemd managers of users: started for the user of a command, as a login does, and ended when a command of another
//! user follows. A manager that stayed would keep `userdel` from removing its user.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::accounts::User;
use super::link::lock;
use super::login::{Environment, ROOT_PATH};
use super::processes::every_process;
use super::sys;

/// Shells of users who cannot log in.
const NO_LOGIN: [&str; 2] = ["nologin", "false"];
/// The template of user managers, whose instance is the user's number.
const TEMPLATES: [&str; 2] = ["/usr/lib/systemd/system/user@.service", "/lib/systemd/system/user@.service"];
/// The folder that names the users whose managers stay without a login.
const LINGERING: &str = "/var/lib/systemd/linger";
/// How long a user manager may take to start; slow hosts emulate the guest.
const MANAGER_PATIENCE: Duration = Duration::from_secs(60);
/// How long a user manager may take to end. What follows only needs to find no process of the user.
const END_PATIENCE: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(20);
/// The signal that makes a user manager exit at once (systemd(1), SIGRTMIN+24).
const EXIT_AT_ONCE: u8 = sys::SIGRTMIN + 24;

/// The managers that kiln has started.
#[derive(Debug, Default)]
pub struct UserManagers {
    started: Mutex<BTreeMap<u32, StartedManager>>,
}

#[derive(Debug)]
struct StartedManager {
    /// The name of its user.
    user: String,
    has_ended: bool,
}

impl UserManagers {
    /// Starts the user's own manager if the guest has systemd, and returns the variables by which its clients find it. Users
    /// who cannot log in have none; root's is used if it runs already. Idle managers of other users are ended before.
    pub fn open_session(&self, user: &User, notes: &mut Vec<String>) -> Environment {
        let uid = user.identity.uid;
        let mut started = lock(&self.started);
        let others = started.iter_mut().filter(|(other, manager)| **other != uid && !manager.has_ended);
        others.for_each(|(other, manager)| manager.has_ended = end_idle(*other, &manager.user));
        let folder = PathBuf::from(format!("/run/user/{uid}"));
        // The folder of a manager that has just ended may still exist.
        let is_ended = started.get(&uid).is_some_and(|manager| manager.has_ended);
        if (is_ended || !folder.join("systemd").exists()) && can_log_in(user) && has_user_managers() {
            match start_manager(uid) {
                Ok(()) => drop(started.insert(uid, StartedManager { user: user.name.clone(), has_ended: false })),
                Err(why) => notes.push(format!("no session for the user `{}`: {why}", user.name)),
            }
        }
        session_variables(&folder)
    }
}

/// Ends the manager of a user who has no process but the manager's own. Returns whether it has ended.
fn end_idle(uid: u32, user: &str) -> bool {
    let members = processes_of(uid);
    if Path::new(LINGERING).join(user).exists() || !members.iter().all(|member| member.is_of_manager(uid)) {
        return false;
    }
    for member in members.iter().filter(|member| member.name == "systemd") {
        sys::send_signal(member.pid, EXIT_AT_ONCE);
    }
    let deadline = Instant::now() + END_PATIENCE;
    while !processes_of(uid).is_empty() && Instant::now() < deadline {
        sleep(TICK);
    }
    true
}

/// A process of a user.
#[derive(Debug)]
struct UserProcess {
    pid: i32,
    name: String,
    /// The line of cgroup version 2 in its `/proc/PID/cgroup`.
    group: String,
}

impl UserProcess {
    /// Reads the attributes of a process; `None` if it does not belong to the user.
    fn read(pid: i32, uid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        if real_user(&status)? != uid {
            return None;
        }
        let name = status.lines().find_map(|line| line.strip_prefix("Name:"))?.trim().to_owned();
        let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        Some(Self { pid, name, group: group.trim_end().to_owned() })
    }

    /// Returns whether a process is the manager, its helper for PAM, or the message bus that the manager starts for itself.
    fn is_of_manager(&self, uid: u32) -> bool {
        let unit = format!("/user@{uid}.service/");
        let below = self.group.split_once(&unit).map_or("", |(_, below)| below);
        below == "init.scope" || ["/dbus.service", "/dbus-broker.service"].iter().any(|bus| below.ends_with(bus))
    }
}

/// Parses the real user in a `/proc/PID/status`.
fn real_user(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn processes_of(uid: u32) -> Vec<UserProcess> {
    every_process().filter_map(|pid| UserProcess::read(pid, uid)).collect()
}

fn session_variables(folder: &Path) -> Environment {
    let mut variables = Environment::new();
    if folder.is_dir() {
        variables.insert("XDG_RUNTIME_DIR".into(), folder.display().to_string());
    }
    let bus = folder.join("bus");
    if bus.exists() {
        variables.insert("DBUS_SESSION_BUS_ADDRESS".into(), format!("unix:path={}", bus.display()));
    }
    variables
}

fn can_log_in(user: &User) -> bool {
    let shell = user.shell.rsplit('/').next().unwrap_or_default();
    user.identity.uid != 0 && !NO_LOGIN.contains(&shell) && user.name.parse::<u32>().is_err()
}

fn has_user_managers() -> bool {
    Path::new("/run/systemd/system").is_dir() && TEMPLATES.iter().any(|path| Path::new(path).exists())
}

/// Starts the manager, which brings the runtime directory with it, as logind does at a login.
fn start_manager(uid: u32) -> Result<(), String> {
    let unit = format!("user@{uid}.service");
    let mut systemctl = Command::new("systemctl");
    systemctl.args(["start", "--quiet", &unit]).env_clear().env("PATH", ROOT_PATH);
    systemctl.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = systemctl.spawn().map_err(|error| error.to_string())?;
    let deadline = Instant::now() + MANAGER_PATIENCE;
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("`systemctl start {unit}` failed with {status}")),
            Ok(None) => sleep(TICK),
            Err(error) => return Err(error.to_string()),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("{unit} did not start within {} s", MANAGER_PATIENCE.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::super::accounts::user;
    use super::*;

    #[test]
    fn only_a_managers_own_processes_end_with_it() {
        for (group, expected) in [
            ("0::/user.slice/user-1000.slice/user@1000.service/init.scope", true),
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/dbus.service", true),
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/web.service", false),
            ("0::/user.slice/user-1001.slice/user@1001.service/init.scope", false),
            ("0::/system.slice/kiln-agent.service/step-2", false),
            ("", false),
        ] {
            let process = UserProcess { pid: 2, name: "systemd".into(), group: group.into() };
            assert_eq!(process.is_of_manager(1000), expected, "{group}");
        }
    }

    #[test]
    fn the_user_of_a_process_is_its_real_one() {
        let own = UserProcess::read(i32::try_from(std::process::id()).unwrap(), sys_user()).unwrap();
        assert!(!own.name.is_empty());
        assert_eq!(real_user("Name:\tx\nUid:\t1000\t0\t0\t0\n"), Some(1000));
    }

    fn sys_user() -> u32 {
        real_user(&fs::read_to_string("/proc/self/status").unwrap()).unwrap()
    }

    #[test]
    fn users_without_a_shell_have_no_session() {
        assert!(can_log_in(&user("dev", 1000, "/bin/bash")));
        assert!(!can_log_in(&user("www-data", 33, "/usr/sbin/nologin")));
        assert!(!can_log_in(&user("root", 0, "/bin/bash")));
        assert!(!can_log_in(&user("1000", 1000, "/bin/sh")));
    }

    #[test]
    fn clients_find_a_session_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        assert!(session_variables(&folder.path().join("none")).is_empty());
        fs::write(folder.path().join("bus"), "").unwrap();
        let variables = session_variables(folder.path());
        let place = folder.path().display();
        assert_eq!(variables["XDG_RUNTIME_DIR"], place.to_string());
        assert_eq!(variables["DBUS_SESSION_BUS_ADDRESS"], format!("unix:path={place}/bus"));
    }
}
