//! The mounts of the image's disk in a guest, by its own mount table.

use super::boot_mounts::BootReport;
use super::code::{DecodeError, coded_struct};
use super::{MAX_FRAME, Message};

/// The most file systems in one answer.
pub const MAX_MOUNTS: usize = 512;
/// The most mounts of a boot in one answer.
const MAX_PLANNED: usize = 4096;
/// The longest path in bytes: the kernel shows no longer one in a mount table.
const MAX_PATH: usize = 4096;
/// The longest name of a file system's type, or of a device, in bytes.
const MAX_NAME: usize = 255;

/// Files of rpm's database, in its present and its former formats.
pub const RPM_DATABASES: [&str; 9] = [
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/Packages.db",
    "/usr/lib/sysimage/rpm/Packages",
    "/var/lib/rpm/rpmdb.sqlite",
    "/var/lib/rpm/Packages.db",
    "/var/lib/rpm/Packages",
    "/usr/share/rpm/rpmdb.sqlite",
    "/usr/share/rpm/Packages.db",
    "/usr/share/rpm/Packages",
];

coded_struct! {
    /// A partition of the image's disk.
    DiskPartition {
        /// The number of the partition as in Linux; 0 for the whole disk.
        number: u32,
        /// Its first byte on the disk.
        start: u64,
        /// The length in bytes.
        length: u64,
    }
}

coded_struct! {
    /// A file system that the guest has mounted from the disk of the image.
    GuestMount {
        /// The mount point: absolute, with links resolved.
        target: Vec<u8>,
        /// The type of the file system, as the kernel names it.
        kind: String,
        /// The directory of the file system that is mounted; `/` for all of it.
        root: Vec<u8>,
        /// The device, as the kernel names it.
        source: Vec<u8>,
        /// The partitions that hold the file system, as far as they are known.
        partitions: Vec<DiskPartition>,
        /// The file system is on a partition itself, not on a device composed of partitions.
        is_plain: bool,
        /// It was mounted before the first step, and the files that cause the mount have not changed since.
        is_original: bool,
        /// The number of the subvolume that is mounted; 0 if there are none.
        subvolume: u64,
        /// The directory of the file system that is mounted without options, if that is not always its root.
        default_root: Option<Vec<u8>>,
        /// The incompatible features of an ext file system; 0 for any other, and if they are not known.
        features: u32,
    }
}

/// Checks the limits of an answer, for both ends.
///
/// # Errors
/// When it exceeds them.
pub fn check(mounts: &[GuestMount], boot: &BootReport) -> Result<(), DecodeError> {
    let fits = mounts.len() <= MAX_MOUNTS
        && mounts.iter().all(is_sound)
        && boot.mounts.len() <= MAX_PLANNED
        && boot.mounts.iter().all(|mount| is_path(&mount.target) && mount.source.len() <= MAX_PATH);
    if fits { Ok(()) } else { Err(DecodeError::Range("mount table")) }
}

fn is_path(path: &[u8]) -> bool {
    path.starts_with(b"/") && path.len() <= MAX_PATH && !path.contains(&0)
}

fn is_sound(mount: &GuestMount) -> bool {
    is_path(&mount.target)
        && mount.root.len() <= MAX_PATH
        && mount.kind.len() <= MAX_NAME
        && mount.source.len() <= MAX_PATH
        && mount.partitions.len() <= MAX_MOUNTS
        && mount.default_root.as_ref().is_none_or(|root| root.len() <= MAX_PATH)
}

/// Returns whether a message is short enough for a frame.
#[must_use]
pub fn fits(message: &Message) -> bool {
    let mut body = Vec::new();
    message.put_body(0, &mut body);
    body.len() <= MAX_FRAME
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(target: &str) -> GuestMount {
        GuestMount {
            target: target.into(),
            kind: "ext4".into(),
            root: b"/".to_vec(),
            source: b"/dev/vda1".to_vec(),
            partitions: vec![DiskPartition { number: 1, start: 1 << 20, length: 1 << 30 }],
            is_plain: true,
            is_original: true,
            subvolume: 0,
            default_root: None,
            features: 0x2c2,
        }
    }

    fn check_alone(mounts: &[GuestMount]) -> Result<(), DecodeError> {
        check(mounts, &no_boot())
    }

    fn no_boot() -> BootReport {
        BootReport { mounts: Vec::new(), root_options: Vec::new() }
    }

    #[test]
    fn a_table_has_bounds() {
        assert!(check_alone(&[mount("/"), mount("/srv")]).is_ok());
        assert!(check_alone(&vec![mount("/"); MAX_MOUNTS + 1]).is_err());
        for bad in ["", "srv", "/a\0b"] {
            assert!(check_alone(&[mount(bad)]).is_err(), "{bad:?}");
        }
        assert!(check_alone(&[mount(&"/x".repeat(MAX_PATH))]).is_err());
        assert!(check_alone(&[GuestMount { kind: "x".repeat(MAX_NAME + 1), ..mount("/") }]).is_err());
        let long = GuestMount { source: vec![b'x'; MAX_PATH], ..mount("/") };
        let answer = |mounts| Message::Mounted { mounts, boot: no_boot(), has_rpm: false };
        assert!(!fits(&answer(vec![long; MAX_MOUNTS])));
        assert!(fits(&answer(vec![mount("/"); MAX_MOUNTS])));
    }
}
