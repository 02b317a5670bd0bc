//! The mounts that a guest makes when it boots, by its `/etc/fstab` and by its units of systemd. Both ends use this code:
//! the agent reads the files of the running guest, and the host those on disks of guests that are not running.
//!
//! Sources: fstab(5), systemd-fstab-generator(8), systemd.mount(5), systemd.unit(5), kernel-command-line(7).

use std::collections::BTreeSet;

use super::boot_mount::{BootMount, MountPolicy};
use super::code::coded_struct;
use super::fstab;
use super::guest_files::{GuestFiles, lines_without_comments, read_boot_files};
use super::mount_unit::{self, MountUnit, MountUnits, TooManyUnits};

/// The kernel command line of the running guest.
const RUNNING_LINE: &str = "/proc/cmdline";
/// The program of systemd's PID 1, and its folders.
const SYSTEMD: &str = "systemd";
const SYSTEMD_FOLDERS: [&str; 2] = ["/usr/lib/systemd", "/lib/systemd"];

/// The mount points of an ESP that nothing names: systemd-gpt-auto-generator(8) uses the first, or the second if no other
/// file system is mounted there; distributions use the third.
pub const ESP_TARGETS: [&[u8]; 3] = [b"/efi", b"/boot", b"/boot/efi"];

coded_struct! {
    /// The report of a guest about its next boot.
    BootReport {
        /// The mounts that it may make.
        mounts: Vec<BootMount>,
        /// The `rootflags=` of each kernel command line that a boot may have; an empty string for one without.
        root_options: Vec<String>,
    }
}

/// The mounts of a boot, according to the files of a guest.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct BootPlan {
    /// The mounts, one for each mount point.
    pub mounts: Vec<BootMount>,
    /// Mount points that must not be used: their units are links to `/dev/null`, or empty.
    pub masked: Vec<Vec<u8>>,
}

/// Merges the table and the units as systemd does: a unit of the administrator replaces a line of the table, other units do
/// not.
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

/// Replaces a line of the table by a unit. The table's generator makes systemd start the unit by its name.
fn replace(planned: &mut BootMount, unit: BootMount) {
    let policy = if planned.policy.is_made() && unit.policy == MountPolicy::Unwanted {
        MountPolicy::Required
    } else {
        unit.policy
    };
    *planned = BootMount { policy, ..unit };
}

/// Removes all but the first line of a mount point, as systemd does. Other init systems mount both, one over the other.
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

/// Returns the `rootflags=` of the command lines in the boot loader's files, each once; those of the running kernel if these
/// files have no command line.
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

    /// A table, the files of a guest, and the expected policy of the mount.
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
}
