//! The mounts that a guest makes when it boots, by its `/etc/fstab` and by its units of systemd: for both ends, since the agent
//! reads them in the guest that runs and the host on disks that do not.
//!
//! Sources: fstab(5), systemd-fstab-generator(8), systemd.mount(5), systemd.unit(5), kernel-command-line(7).

use std::collections::BTreeSet;

use super::code::{Code, Fields, Malformed, coded_struct};
use super::fstab::{self, DeviceName, FstabCover};
use super::guest_files::{GuestFiles, lines_without_comments, read_boot_files};
use super::mount_unit::{self, MountUnit, MountUnits};

/// The kernel command line of the boot that runs.
const RUNNING_LINE: &str = "/proc/cmdline";
/// The program of systemd's PID 1, and where it is.
const SYSTEMD: &str = "systemd";
const SYSTEMD_FOLDERS: [&str; 2] = ["/usr/lib/systemd", "/lib/systemd"];

/// Where an ESP is mounted that nothing names: systemd-gpt-auto-generator(8) takes the first, or the second where no other
/// file system is for it; distributions take the third.
pub const ESP_TARGETS: [&[u8]; 3] = [b"/efi", b"/boot", b"/boot/efi"];

/// Whether a boot makes a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountPolicy {
    /// It does, and fails without it.
    Required,
    /// It does if it can (`nofail`), or as soon as somebody looks (an automount).
    Optional,
    /// It does not (`noauto`).
    Manual,
    /// Its unit is not enabled.
    Unwanted,
    /// A unit needs it that may not be started.
    RequiredElsewhere,
    /// The table has another line for the mount point.
    Repeated,
}

/// All of them, in the order of their codes.
const POLICIES: [MountPolicy; 6] = [
    MountPolicy::Required,
    MountPolicy::Optional,
    MountPolicy::Manual,
    MountPolicy::Unwanted,
    MountPolicy::RequiredElsewhere,
    MountPolicy::Repeated,
];

impl MountPolicy {
    /// Returns whether every boot makes the mount if it can.
    #[must_use]
    pub fn is_made(self) -> bool {
        matches!(self, MountPolicy::Required | MountPolicy::Optional)
    }

    /// Returns whether a boot may make the mount.
    #[must_use]
    pub fn may_be_made(self) -> bool {
        !matches!(self, MountPolicy::Manual | MountPolicy::Unwanted)
    }

    /// Returns why it is not certain whether a boot makes the mount.
    #[must_use]
    pub fn doubt(self) -> Option<&'static str> {
        match self {
            MountPolicy::Required | MountPolicy::Optional | MountPolicy::Manual => None,
            MountPolicy::Unwanted => Some("its mount unit is not enabled"),
            MountPolicy::RequiredElsewhere => Some("a unit needs it that may not be started"),
            MountPolicy::Repeated => Some("the table of mounts has two lines for it"),
        }
    }
}

impl Code for MountPolicy {
    fn put(&self, out: &mut Vec<u8>) {
        let code = POLICIES.iter().position(|policy| policy == self).unwrap_or_default();
        u8::try_from(code).unwrap_or_default().put(out);
    }

    fn get(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let code = u8::get(fields)?;
        POLICIES.get(usize::from(code)).copied().ok_or(Malformed::Unknown("mount policy", code))
    }
}

coded_struct! {
    /// A line of the table, or a unit.
    BootMount {
        /// The mount point: absolute, and not the root.
        target: Vec<u8>,
        /// What is mounted, as the table or the unit names it.
        source: Vec<u8>,
        /// The type of the file system; may be empty, or `auto`.
        kind: String,
        /// The options, separated by commas.
        options: String,
        /// Whether a boot makes it.
        policy: MountPolicy,
    }
}

impl BootMount {
    /// Returns whether a directory is bound, and no device mounted.
    #[must_use]
    pub fn is_bind(&self) -> bool {
        self.has_option("bind") || self.has_option("rbind")
    }

    /// Returns whether an option is set that has no value.
    #[must_use]
    pub fn has_option(&self, name: &str) -> bool {
        split_options(&self.options).any(|option| option == name)
    }

    /// Returns whether a boot mounts something here together with this mount, since a whole tree is bound.
    #[must_use]
    pub fn brings(&self, target: &[u8]) -> bool {
        let below = target.strip_prefix(self.target.as_slice());
        let is_tree = self.policy.is_made() && self.has_option("rbind");
        is_tree && below.is_some_and(|rest| rest.starts_with(b"/"))
    }

    /// Returns the value of an option.
    #[must_use]
    pub fn option(&self, key: &str) -> Option<&str> {
        option_value(&self.options, key)
    }

    /// Returns the block device that is mounted. The same files are not listed twice for a bind mount, and what is not on a
    /// disk is not in an image.
    #[must_use]
    pub fn device(&self) -> Option<DeviceName> {
        if self.is_bind() { None } else { DeviceName::parse(&String::from_utf8_lossy(&self.source)) }
    }

    /// Returns whether a directory of the file system is mounted, and not its root.
    #[must_use]
    pub fn is_part(&self) -> bool {
        self.option("X-mount.subdir").is_some()
    }

    /// Returns what it hides with other files of the tree. A directory that is bound to itself hides nothing.
    #[must_use]
    pub fn cover(&self) -> Option<FstabCover> {
        let source = self.is_bind().then(|| fstab::without_slashes(&self.source));
        let hides = match &source {
            Some(source) => *source != self.target,
            None => fstab::is_overlay(&self.kind),
        };
        hides.then(|| FstabCover { source, target: self.target.clone() })
    }
}

/// Returns the last value of an option in a list with commas.
#[must_use]
pub fn option_value<'t>(options: &'t str, key: &str) -> Option<&'t str> {
    split_options(options).filter_map(|option| option.strip_prefix(key)?.strip_prefix('=')).next_back()
}

fn split_options(options: &str) -> impl DoubleEndedIterator<Item = &str> {
    options.split(',').map(str::trim)
}

coded_struct! {
    /// What a guest says of its next boot.
    BootReport {
        /// The mounts that it may make.
        mounts: Vec<BootMount>,
        /// Every `rootflags=` of the kernel command lines that a boot may have; empty text where one has none.
        root_options: Vec<String>,
    }
}

/// What the files of a guest say of the mounts of a boot.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct BootPlan {
    /// The mounts, one for each mount point.
    pub mounts: Vec<BootMount>,
    /// Mount points that must not be used: their units are links to `/dev/null`, or empty.
    pub masked: Vec<Vec<u8>>,
}

/// A guest has more mount units than kiln reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyUnits;

/// Merges the table and the units as systemd does: a unit of the administrator replaces a line of the table, others do not.
///
/// # Errors
/// When there are too many units.
pub fn read_boot_plan(files: &impl GuestFiles, table: &[u8]) -> Result<BootPlan, TooManyUnits> {
    let MountUnits { units, masked, enabled } = mount_unit::read_mount_units(files)?;
    let mut mounts = keep_first(fstab::lines(table), has_systemd(files));
    mounts.retain(|mount| !masked.contains(&mount.target));
    let manual = mounts.iter_mut().filter(|mount| mount.policy == MountPolicy::Manual);
    mount_unit::find_requirements(files, &enabled, manual);
    for MountUnit { mount, replaces_table } in units {
        match mounts.iter_mut().find(|planned| planned.target == mount.target) {
            Some(planned) if replaces_table => replace(planned, mount),
            Some(_) => {}
            None => mounts.push(mount),
        }
    }
    Ok(BootPlan { mounts, masked })
}

/// Replaces a line of the table, whose generator has the unit started by its name.
fn replace(planned: &mut BootMount, unit: BootMount) {
    let policy = if planned.policy.is_made() && unit.policy == MountPolicy::Unwanted {
        MountPolicy::Required
    } else {
        unit.policy
    };
    *planned = BootMount { policy, ..unit };
}

/// Removes all but the first line of a mount point, as systemd does. Others mount both, one over the other.
fn keep_first(lines: Vec<BootMount>, has_systemd: bool) -> Vec<BootMount> {
    let mut kept: Vec<BootMount> = Vec::new();
    for line in lines {
        match kept.iter_mut().find(|other| other.target == line.target) {
            Some(first) if !has_systemd && *first != line => first.policy = MountPolicy::Repeated,
            Some(_) => {}
            None => kept.push(line),
        }
    }
    kept
}

fn has_systemd(files: &impl GuestFiles) -> bool {
    SYSTEMD_FOLDERS.iter().any(|folder| files.has_name(folder, SYSTEMD))
}

/// Returns every `rootflags=` of the command lines in the boot loader's files, each once; those of the running kernel where
/// these files have no command line.
pub fn read_root_options(files: &impl GuestFiles) -> Vec<String> {
    let texts = read_boot_files(files).into_iter().map(|file| file.text);
    let found: BTreeSet<String> = texts.flat_map(|text| root_options(&text)).collect();
    if !found.is_empty() {
        return found.into_iter().collect();
    }
    root_options(&files.text(RUNNING_LINE))
}

fn root_options(text: &str) -> Vec<String> {
    let rooted = lines_without_comments(text).filter(|line| words(line).any(|word| word.starts_with("root=")));
    rooted
        .map(|line| words(line).filter_map(|word| word.strip_prefix("rootflags=")).next_back().unwrap_or("").into())
        .collect()
}

fn words(line: &str) -> impl DoubleEndedIterator<Item = &str> {
    line.split_whitespace().map(|word| word.trim_matches(['"', '\'']))
}

#[cfg(test)]
mod tests {
    use super::super::guest_files::FileMap;
    use super::*;

    const UNIT: &str = "[Mount]\nWhat=/dev/vda3\nWhere=/data\n";
    const OWN: &str = "/etc/systemd/system/data.mount";
    const LINK: &str = "/etc/systemd/system/local-fs.target.wants/data.mount";

    fn policy(table: &str, files: &[(&str, &str)]) -> Option<MountPolicy> {
        let plan = read_boot_plan(&FileMap::new(files), table.as_bytes()).unwrap();
        let mut mounts = plan.mounts.iter().filter(|mount| mount.target == b"/data");
        let found = mounts.next().map(|mount| mount.policy);
        assert!(mounts.next().is_none());
        found
    }

    /// A table, the files of a guest, and what becomes of the mount.
    type PolicyCase<'t> = (&'t str, &'t [(&'t str, &'t str)], Option<MountPolicy>);

    #[test]
    fn the_table_and_the_units_decide_together_what_a_boot_mounts() {
        let (made, manual) = ("/dev/vda2 /data ext4 defaults", "/dev/vda2 /data ext4 noauto");
        let service = "/usr/lib/systemd/system/a.service";
        let needs = "[Unit]\nRequiresMountsFor=/srv \\\n  /data/below\n";
        let cases: [PolicyCase<'_>; 13] = [
            (made, &[], Some(MountPolicy::Required)),
            (manual, &[], Some(MountPolicy::Manual)),
            (manual, &[(LINK, UNIT)], Some(MountPolicy::Optional)),
            (manual, &[("/etc/systemd/system/local-fs.target.wants/data.automount", "")], Some(MountPolicy::Optional)),
            (manual, &[(service, needs)], Some(MountPolicy::RequiredElsewhere)),
            (manual, &[(service, "[Unit]\nBindsTo=data.mount\n")], Some(MountPolicy::RequiredElsewhere)),
            (
                manual,
                &[(service, "[Unit]\nAfter=data.mount\nRequiresMountsFor=/database\n")],
                Some(MountPolicy::Manual),
            ),
            (manual, &[(OWN, UNIT)], Some(MountPolicy::Unwanted)),
            (made, &[(OWN, UNIT)], Some(MountPolicy::Required)),
            ("", &[(OWN, UNIT)], Some(MountPolicy::Unwanted)),
            ("", &[(OWN, UNIT), (LINK, UNIT)], Some(MountPolicy::Required)),
            (made, &[(OWN, "")], None),
            ("", &[("/run/systemd/system/data.mount", UNIT)], None),
        ];
        for (index, (table, files, expected)) in cases.into_iter().enumerate() {
            assert_eq!(policy(table, files), expected, "case {index}");
        }
    }

    #[test]
    fn a_unit_of_the_administrator_replaces_the_table_and_others_do_not() {
        for (path, source) in [(OWN, "/dev/vda3"), ("/usr/lib/systemd/system/data.mount", "/dev/vda2")] {
            let plan = read_boot_plan(&FileMap::new(&[(path, UNIT)]), b"/dev/vda2 /data ext4\n").unwrap();
            assert_eq!(plan.mounts[0].source, source.as_bytes(), "{path}");
        }
    }

    #[test]
    fn of_two_lines_for_a_mount_point_systemd_takes_the_first() {
        let table = "/dev/vda2 /data ext4\n/dev/vda3 /data ext4\n";
        assert_eq!(policy(table, &[("/lib/systemd/systemd", "")]), Some(MountPolicy::Required));
        assert_eq!(policy(table, &[]), Some(MountPolicy::Repeated));
        assert_eq!(policy("/dev/vda2 /data ext4\n/dev/vda2 /data ext4\n", &[]), Some(MountPolicy::Required));
    }

    #[test]
    fn every_command_line_with_a_root_has_options_or_none() {
        let running = ("/proc/cmdline", "root=/dev/vda1 rootflags=subvol=run");
        let grub =
            "#linux root=x rootflags=no\n linux /v root=UUID=a rootflags=subvol=@ ro\n linux /v root=UUID=a ro\n";
        let files = FileMap::new(&[("/boot/grub/grub.cfg", grub), running]);
        assert_eq!(read_root_options(&files), ["", "subvol=@"]);
        assert_eq!(read_root_options(&FileMap::new(&[running])), ["subvol=run"]);
    }

    #[test]
    fn a_policy_is_read_as_it_was_written() {
        for policy in POLICIES {
            let mut out = Vec::new();
            policy.put(&mut out);
            assert_eq!(MountPolicy::get(&mut Fields::new(&out)), Ok(policy));
        }
        assert!(MountPolicy::get(&mut Fields::new(&[9])).is_err());
    }
}
