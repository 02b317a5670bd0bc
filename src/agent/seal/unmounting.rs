//! Unmounts what steps have mounted and neither a table nor a unit mounts: sealing empties folders, and what lies behind a mount
//! below them belongs elsewhere.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::super::leftovers::Leftovers;
use super::super::mounts::{self, MountLine};
use super::super::{Refusal, sys};
use super::unit_folders;
use crate::wire::fstab;

/// Folders whose content is never a part of the image.
const VOLATILE: [&str; 4] = ["/proc", "/sys", "/dev", "/run"];
/// The most mount points that are reported, and how long each may be, bytes.
const MOST_NAMED: usize = 16;
const LONGEST: usize = 1024;

/// Unmounts what steps have left, and returns the mount points.
pub fn unmount_left(left: &Leftovers) -> Result<Vec<String>, Refusal> {
    let table = mounts::read_table()?;
    let fstab = fs::read("/etc/fstab").unwrap_or_default();
    let is_left = |line: &&MountLine| {
        !left.was_mounted(&line.target)
            && !is_volatile(&line.target)
            && !is_planned(&line.target, &fstab, Path::new("/"))
    };
    let found: Vec<&MountLine> = table.iter().filter(is_left).collect();
    // Else the end of a copy of `/dev/pts` would be that of `/dev/pts` itself.
    for line in &found {
        let _ = sys::make_private(path(line));
    }
    // Those that are mounted in others come later in the table.
    for line in found.iter().rev() {
        let _ = sys::detach(path(line));
    }
    let shown = |line: &&MountLine| String::from_utf8_lossy(&line.target).chars().take(LONGEST).collect();
    Ok(found.iter().map(shown).take(MOST_NAMED).collect())
}

fn path(line: &MountLine) -> &Path {
    Path::new(OsStr::from_bytes(&line.target))
}

fn is_volatile(target: &[u8]) -> bool {
    VOLATILE.iter().any(|folder| Path::new(OsStr::from_bytes(target)).starts_with(folder))
}

/// Returns whether a boot mounts something here, or on demand.
fn is_planned(target: &[u8], table: &[u8], root: &Path) -> bool {
    let name = escaped(target);
    let units = [format!("{name}.mount"), format!("{name}.automount")];
    let has_unit = |folder: &str| units.iter().any(|unit| root.join(&folder[1..]).join(unit).exists());
    fstab::has_target(table, target) || unit_folders().any(has_unit)
}

/// Returns a path as systemd writes it in the name of a unit (`systemd-escape --path`).
fn escaped(path: &[u8]) -> String {
    let trimmed: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    let mut name = String::new();
    for (at, byte) in trimmed.join(&b'/').into_iter().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at == 0 => name.push_str("\\x2e"),
            b':' | b'_' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => name.push(char::from(byte)),
            _ => name.extend(["\\x".to_owned(), format!("{byte:02x}")]),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_as_systemd_does_it() {
        for (path, expected) in [
            ("/srv/data", "srv-data"),
            ("/srv/my-data", "srv-my\\x2ddata"),
            ("/.snap/a.b_c", "\\x2esnap-a.b_c"),
            ("/mnt/a b", "mnt-a\\x20b"),
        ] {
            assert_eq!(escaped(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn what_a_boot_mounts_is_planned() {
        let root = tempfile::tempdir().unwrap();
        let units = root.path().join("etc/systemd/system");
        fs::create_dir_all(&units).unwrap();
        fs::write(units.join("srv-data.mount"), "[Mount]\n").unwrap();
        let table = b"UUID=1 / ext4 defaults 0 1\n/srv /mnt/a\\040b none bind\n#x /not none\n";
        for (target, expected) in [("/srv/data", true), ("/mnt/a b", true), ("/tmp/chroot/dev", false), ("/not", false)]
        {
            assert_eq!(is_planned(target.as_bytes(), table, root.path()), expected, "{target}");
        }
    }

    #[test]
    fn mounts_outside_the_image_are_left_alone() {
        assert!(is_volatile(b"/run/user/1000") && is_volatile(b"/dev"));
        assert!(!is_volatile(b"/running") && !is_volatile(b"/tmp/chroot/dev"));
    }
}
