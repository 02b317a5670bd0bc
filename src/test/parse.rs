//! Parses what guests report of their services, ports, files and packages, and compares it with what a test expects. Pure.

use crate::specfile::{FileCheck, FileOwner};

/// The result of a check: `Ok` if it passed, `Err` if not. Either follows the test's name.
pub(super) type Verdict = Result<String, String>;

/// The state of a listening socket, in the kernel's `Documentation/networking/proc_net_tcp.rst`.
const LISTEN: &str = "0A";

/// Checks the lines of `systemctl show` for one unit.
pub(super) fn unit(shown: &str) -> Verdict {
    let active = property(shown, "ActiveState");
    if matches!(property(shown, "LoadState"), "not-found" | "") {
        return Err("is unknown to systemd".to_owned());
    }
    let state = format!("is {active} ({})", property(shown, "SubState"));
    let restarts = property(shown, "NRestarts").parse().unwrap_or(0_u64);
    match (active, restarts, property(shown, "Result")) {
        ("active", 0, _) => Ok(state),
        (_, 0, "success" | "") => Err(state),
        (_, 0, result) => Err(format!("{state}, with the result {result}")),
        (_, 1, _) => Err(format!("{state} and was restarted once")),
        (_, more, _) => Err(format!("{state} and was restarted {more} times")),
    }
}

/// Returns the value of a property in the lines of `systemctl show`; an empty string if it is not there.
fn property<'s>(shown: &'s str, name: &str) -> &'s str {
    shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::trim).unwrap_or_default()
}

/// Checks the lines of `/proc/net/tcp` and `tcp6` for a listening port.
pub(super) fn port(wanted: u16, sockets: &str) -> Verdict {
    let mut ports: Vec<u16> = sockets.lines().filter_map(listening_port).collect();
    ports.sort_unstable();
    ports.dedup();
    if ports.contains(&wanted) {
        return Ok("is listened on".to_owned());
    }
    let others: Vec<String> = ports.iter().map(u16::to_string).collect();
    Err(match &others[..] {
        [] => "found nothing that listens on any port".to_owned(),
        others => format!("found nothing that listens there, only on {}", others.join(", ")),
    })
}

fn listening_port(line: &str) -> Option<u16> {
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next()?;
    let state = fields.nth(1)?;
    let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
    (state == LISTEN).then_some(port)
}

/// Checks the line of the script `FILE`, as far as possible without reading the file.
pub(super) fn file(said: &str, wanted: &FileCheck) -> Verdict {
    let is_absent = said == "absent";
    let dangles = said == "dangling";
    if wanted.absent {
        return if is_absent { Ok("is not there".to_owned()) } else { Err("is there".to_owned()) };
    }
    if is_absent || dangles {
        return Err(if dangles { "is a link to nothing" } else { "is not there" }.to_owned());
    }
    let mut fields = said.splitn(4, ' ');
    let [mode, ids, names, kind] = std::array::from_fn(|_| fields.next().unwrap_or_default());
    let Ok(bits) = u32::from_str_radix(mode, 8) else { return Err(format!("cannot be looked at: {said}")) };
    if let Some(mode) = wanted.mode.filter(|mode| *mode != bits) {
        return Err(format!("has the mode {bits:04o}, not {mode:04o}"));
    }
    if let Some(owner) = wanted.owner.as_ref().filter(|owner| !is_owned(owner, ids, names)) {
        let group = owner.group.as_ref().map(|group| format!(":{group}")).unwrap_or_default();
        return Err(format!("belongs to {names} ({ids}), not {}{group}", owner.user));
    }
    Ok(format!("is a {kind}, {bits:04o}, {names}"))
}

/// Returns whether the owner is the expected one, by number or by name.
fn is_owned(wanted: &FileOwner, ids: &str, names: &str) -> bool {
    let (uid, gid) = ids.split_once(':').unwrap_or_default();
    let (user, group) = names.split_once(':').unwrap_or_default();
    let is_user = wanted.user == uid || wanted.user == user;
    is_user && wanted.group.as_ref().is_none_or(|wanted| wanted == gid || wanted == group)
}

/// Checks the line of the script `PACKAGE`.
pub(super) fn package(said: &str, name: &str, wanted: Option<&str>) -> Verdict {
    let Some(version) = said.lines().find_map(|line| line.strip_prefix("installed ")) else {
        let unknown = said == "unknown";
        let what = if unknown { "found neither dpkg nor rpm nor apk" } else { "is not installed" };
        return Err(what.to_owned());
    };
    let version = version.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')).unwrap_or(version);
    let fits = wanted.is_none_or(|wanted| match wanted.strip_suffix('*') {
        Some(beginning) => version.starts_with(beginning),
        None => version == wanted,
    });
    let found = format!("is installed as {version}");
    if fits { Ok(found) } else { Err(format!("{found}, not {}", wanted.unwrap_or_default())) }
}

/// Checks the lines of `systemctl list-units --failed`.
pub(super) fn failed_units(list: &str) -> Verdict {
    let units: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    if units.is_empty() { Ok("found none".to_owned()) } else { Err(format!("found {}", units.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_active_and_never_restarted() {
        let shown = |active: &str, restarts: u32| {
            format!("LoadState=loaded\nActiveState={active}\nSubState=x\nResult=exit-code\nNRestarts={restarts}")
        };
        assert_eq!(unit(&shown("active", 0)), Ok("is active (x)".into()));
        assert_eq!(unit(&shown("failed", 0)), Err("is failed (x), with the result exit-code".into()));
        assert_eq!(unit(&shown("active", 1)), Err("is active (x) and was restarted once".into()));
        assert_eq!(unit(&shown("activating", 3)), Err("is activating (x) and was restarted 3 times".into()));
        assert_eq!(unit("LoadState=loaded\nActiveState=active\nSubState=mounted"), Ok("is active (mounted)".into()));
        assert_eq!(unit("LoadState=not-found\nActiveState=inactive"), Err("is unknown to systemd".into()));
    }

    #[test]
    fn a_port_counts_only_if_something_listens() {
        let sockets = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
             0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
             1: 0100007F:0050 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0\n\
             0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 0\n";
        assert!(port(22, sockets).is_ok() && port(8080, sockets).is_ok());
        assert_eq!(port(80, sockets), Err("found nothing that listens there, only on 22, 8080".into()));
        assert_eq!(port(80, "garbage"), Err("found nothing that listens on any port".into()));
    }

    fn wanted() -> FileCheck {
        FileCheck { path: "/x".into(), absent: false, mode: None, owner: None, contains: None, sha256: None }
    }

    #[test]
    fn a_file_is_compared_by_mode_and_owner() {
        let said = "640 33:4 www-data:adm regular file";
        let owner = |user: &str, group: Option<&str>| FileCheck {
            owner: Some(FileOwner { user: user.into(), group: group.map(str::to_owned) }),
            ..wanted()
        };
        assert_eq!(file(said, &wanted()), Ok("is a regular file, 0640, www-data:adm".into()));
        assert!(file(said, &FileCheck { mode: Some(0o640), ..wanted() }).is_ok());
        assert_eq!(file(said, &FileCheck { mode: Some(0o644), ..wanted() }), Err("has the mode 0640, not 0644".into()));
        assert!(file(said, &owner("www-data", Some("4"))).is_ok() && file(said, &owner("33", None)).is_ok());
        assert_eq!(file(said, &owner("root", None)), Err("belongs to www-data:adm (33:4), not root".into()));
        assert_eq!(file(said, &owner("33", Some("root"))), Err("belongs to www-data:adm (33:4), not 33:root".into()));
    }

    #[test]
    fn a_file_can_be_missing() {
        let absent = FileCheck { absent: true, ..wanted() };
        assert_eq!(file("absent", &wanted()), Err("is not there".into()));
        assert_eq!(file("dangling", &wanted()), Err("is a link to nothing".into()));
        assert!(file("absent", &absent).is_ok());
        assert_eq!(file("dangling", &absent), Err("is there".into()));
        assert_eq!(file("755 0:0 root:root directory", &absent), Err("is there".into()));
        assert_eq!(file("stat: not found", &wanted()), Err("cannot be looked at: stat: not found".into()));
    }

    #[test]
    fn a_package_is_compared_by_version() {
        assert_eq!(package("installed 1.22.1-9", "nginx", None), Ok("is installed as 1.22.1-9".into()));
        assert!(package("installed 1.22.1-9", "nginx", Some("1.22*")).is_ok());
        assert_eq!(
            package("installed 1.22.1-9", "nginx", Some("1.22")),
            Err("is installed as 1.22.1-9, not 1.22".into())
        );
        assert!(package("installed musl-1.2.5-r0", "musl", Some("1.2.5-r0")).is_ok());
        assert_eq!(package("config-files 1", "nginx", None), Err("is not installed".into()));
        assert_eq!(package("", "nginx", None), Err("is not installed".into()));
        assert_eq!(package("unknown", "nginx", None), Err("found neither dpkg nor rpm nor apk".into()));
    }

    #[test]
    fn failed_units_are_named() {
        assert!(failed_units("").is_ok());
        let list = "a.service loaded failed failed A\nb.mount loaded failed failed B\n";
        assert_eq!(failed_units(list), Err("found a.service, b.mount".into()));
    }
}
