//! The places of a planted agent: an agent on the guest's own disk, which the guest's init starts.
//!
//! It is planted where cloud-init does not start the agent. Sealing removes it, and kiln looks for it in the sealed image.

/// The agent.
pub const PROGRAM: &str = "/usr/lib/kiln-agent";
/// The folders that may hold systemd's own units, the first one that exists in a guest is used. `systemctl preset-all`, which
/// systemd runs at a first boot, does not change links in them.
pub const UNIT_FOLDERS: [&str; 2] = ["/usr/lib/systemd/system", "/lib/systemd/system"];
/// The unit that starts the agent, below a folder of units.
pub const UNIT: &str = "kiln-agent.service";
/// The folder of the link to the unit, below a folder of units. systemd has units of its own in it.
pub const WANTS: &str = "sysinit.target.wants";
/// The units that wait for a network card in vain where there is none.
pub const WAITING_UNITS: [&str; 2] = ["systemd-networkd-wait-online.service", "NetworkManager-wait-online.service"];
/// The file that lets such a unit wait only if there is a network card, below the unit's folder of settings.
pub const CARD_CONDITION: &str = "kiln-agent.conf";
/// The service of `OpenRC` that starts the agent.
pub const OPENRC_SERVICE: &str = "/etc/init.d/kiln-agent";
/// The link to the service in `OpenRC`'s default run level.
pub const OPENRC_LINK: &str = "/etc/runlevels/default/kiln-agent";
/// The table of sysvinit (inittab(5)), which gets one line.
pub const INITTAB: &str = "/etc/inittab";
/// How the line begins.
const INITTAB_ID: &[u8] = b"kiln:";

/// Returns the paths of everything that may be planted, except for the line of [`INITTAB`].
pub fn paths() -> Vec<String> {
    let in_units = UNIT_FOLDERS.into_iter().flat_map(|units| {
        let conditions = setting_folders(units).map(|folder| format!("{folder}/{CARD_CONDITION}"));
        [format!("{units}/{WANTS}/{UNIT}"), format!("{units}/{UNIT}")].into_iter().chain(conditions)
    });
    [PROGRAM, OPENRC_LINK, OPENRC_SERVICE].into_iter().map(str::to_owned).chain(in_units).collect()
}

/// Returns the folders with the settings of the waiting units, below a folder of units.
pub fn setting_folders(units: &str) -> impl Iterator<Item = String> {
    WAITING_UNITS.into_iter().map(move |unit| format!("{units}/{unit}.d"))
}

/// Returns whether a line of [`INITTAB`] starts the agent.
#[must_use]
pub fn is_planted_line(line: &[u8]) -> bool {
    line.starts_with(INITTAB_ID)
}
