//! Compares what a guest had mounted when it was sealed with what a boot of the sealed disk mounts. The list of files
//! covers the mounts of the guest: it is complete if both are the same.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::disk::chain::Chain;
use crate::disk::expected_mount::{ExpectedMount, ExpectedSource, FileSystemPart, find_expected};
use crate::disk::gap::{TreeGap, TreeMount};
use crate::disk::tree::{Tree, TreeError};
use crate::wire::boot_mounts::{BootReport, ESP_TARGETS};
use crate::wire::mounts::GuestMount;

const FAT: &str = "vfat";
const BTRFS: &str = "btrfs";

/// The differences between a boot and what the guest had mounted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MountAgreement {
    /// The differences, a sentence each.
    pub(crate) differences: Vec<String>,
    /// The partitions that a boot mounts.
    pub(crate) expected: BTreeSet<u32>,
}

/// Compares the mounts of a guest with those that a boot of its disk makes, according to the guest's report and to the disk
/// itself.
///
/// # Errors
/// When the disk cannot be read.
pub(crate) fn check_agreement(
    disk: &Chain,
    guest: &[GuestMount],
    boot: &BootReport,
) -> Result<MountAgreement, TreeError> {
    let expected = find_expected(disk, boot)?;
    let mut differences = compare(guest, &expected);
    if differences.is_empty() {
        differences = compare_with_disk(disk, guest)?;
    }
    let partitions = expected.iter().filter_map(|mount| match &mount.source {
        ExpectedSource::Partition { volume, .. } => Some(volume.partition),
        _ => None,
    });
    Ok(MountAgreement { differences, expected: partitions.collect() })
}

/// Returns the differences between what a boot mounts and what the guest had mounted, a sentence each.
fn compare(guest: &[GuestMount], expected: &[ExpectedMount]) -> Vec<String> {
    let unexpected = guest.iter().filter(|mount| !is_expected(mount, expected)).map(describe_unexpected);
    let different = expected.iter().filter_map(|mount| find_difference(guest, mount));
    unexpected.chain(different).collect()
}

/// Returns whether a mount is named on the disk, or was made before the first step in ways that kiln does not know.
fn is_expected(mount: &GuestMount, expected: &[ExpectedMount]) -> bool {
    let is_esp = mount.kind == FAT && ESP_TARGETS.contains(&mount.target.as_slice());
    let is_named = expected.iter().any(|other| {
        let below = mount.target.strip_prefix(other.target.as_slice());
        below.is_some_and(|rest| rest.is_empty() || other.is_tree && rest.starts_with(b"/"))
    });
    mount.target == b"/" || mount.is_original || is_esp || is_named
}

fn describe_unexpected(mount: &GuestMount) -> String {
    let kind = mount.kind.escape_debug();
    format!("{} ({kind}) was mounted when the guest was sealed, and no boot mounts it", shown(&mount.target))
}

/// Returns how the guest differs from a mount that a boot makes, if it does.
fn find_difference(guest: &[GuestMount], expected: &ExpectedMount) -> Option<String> {
    let mounted = guest.iter().find(|mount| mount.target == expected.target);
    let target = shown(&expected.target);
    let (source, is_same) = match &expected.source {
        ExpectedSource::Uncertain { source, reason } => {
            return Some(format!("{} may be mounted on {target}: {reason}", source.escape_debug()));
        }
        ExpectedSource::Overlay => {
            return Some(format!("an overlay is mounted on {target}, and what is below it is listed"));
        }
        ExpectedSource::Root(part) => {
            let is_same = mounted.is_none_or(|mount| mount.kind != BTRFS || shows_part(mount, part));
            (describe_part("the root file system", part, mounted), is_same)
        }
        ExpectedSource::Partition { volume, part } => {
            let is_same = mounted.is_some_and(|mount| is_on(mount, volume.partition) && shows_part(mount, part));
            (describe_part(&volume.to_string(), part, mounted), is_same)
        }
        ExpectedSource::Device(device) => {
            let is_same = mounted.is_some_and(|mount| !mount.is_plain || mount.is_original);
            (device.escape_debug().to_string(), is_same)
        }
        ExpectedSource::Directory(source) => (shown(source), shows_directory(guest, mounted, source)),
    };
    (!is_same).then(|| format!("a boot mounts {source} on {target}, and {}", describe_mounted(mounted)))
}

fn is_on(mount: &GuestMount, partition: u32) -> bool {
    mount.partitions.iter().any(|at| at.number == partition)
}

/// Returns whether a mount shows this part of its file system.
fn shows_part(mount: &GuestMount, part: &FileSystemPart) -> bool {
    match part {
        FileSystemPart::Default if mount.kind == BTRFS => mount.default_root.as_ref() == Some(&mount.root),
        FileSystemPart::Default | FileSystemPart::Subvolume(0) => mount.root == b"/",
        FileSystemPart::Directory(path) => mount.root == *path,
        FileSystemPart::Subvolume(number) => mount.subvolume == *number,
    }
}

/// Returns whether a mount shows the directory that is at `source` in the tree.
fn shows_directory(guest: &[GuestMount], mounted: Option<&GuestMount>, source: &[u8]) -> bool {
    let path = Path::new(OsStr::from_bytes(source));
    let holders = guest.iter().filter(|mount| path.starts_with(OsStr::from_bytes(&mount.target)));
    let holder = holders.max_by_key(|mount| mount.target.len());
    let (Some(mounted), Some(holder)) = (mounted, holder) else { return false };
    let below = path.strip_prefix(OsStr::from_bytes(&holder.target)).unwrap_or(path);
    let root = Path::new(OsStr::from_bytes(&holder.root)).join(below);
    mounted.partitions == holder.partitions && root == Path::new(OsStr::from_bytes(&mounted.root))
}

fn describe_part(file_system: &str, part: &FileSystemPart, mounted: Option<&GuestMount>) -> String {
    let default = mounted.and_then(|mount| mount.default_root.as_ref());
    match (part, default) {
        (FileSystemPart::Default, None) => file_system.to_owned(),
        (FileSystemPart::Default, Some(path)) => format!("the default subvolume {} of {file_system}", shown(path)),
        (FileSystemPart::Subvolume(number), _) => format!("subvolume {number} of {file_system}"),
        (FileSystemPart::Directory(path), _) => format!("{} of {file_system}", shown(path)),
    }
}

fn describe_mounted(mounted: Option<&GuestMount>) -> String {
    let Some(mount) = mounted else { return "the guest had nothing mounted there when it was sealed".to_owned() };
    let source = shown(&mount.source);
    if mount.root == b"/" && mount.kind != BTRFS {
        format!("the guest had {source} when it was sealed")
    } else {
        format!("the guest had {} of {source} when it was sealed", shown(&mount.root))
    }
}

/// Compares the guest's mounts with those of kiln's own view of the disk, where kiln reads the root: partitions that are
/// mounted for their type are in no table.
fn compare_with_disk(disk: &Chain, guest: &[GuestMount]) -> Result<Vec<String>, TreeError> {
    let own = match Tree::open(disk) {
        Ok(own) => own,
        Err(TreeError::Read(error)) => return Err(error.into()),
        Err(_) => return Ok(Vec::new()),
    };
    let missing = own.mounts().iter().filter(|mount| !is_esp_by_convention(mount) && !has_mounted(guest, mount));
    let missing = missing.map(describe_missing);
    let doubtful = own.gaps().iter().filter(|gap| match gap {
        TreeGap::Undecided { volume, .. } => !guest.iter().any(|mount| is_on(mount, volume.partition)),
        _ => false,
    });
    Ok(missing.chain(doubtful.map(ToString::to_string)).collect())
}

fn describe_missing(mount: &TreeMount) -> String {
    let target = shown(&mount.target);
    match mount.partition {
        0 => format!("a boot mounts the whole disk on {target}, and the guest had not when it was sealed"),
        number => format!("a boot mounts partition {number} on {target}, and the guest had not when it was sealed"),
    }
}

fn has_mounted(guest: &[GuestMount], expected: &TreeMount) -> bool {
    guest.iter().any(|mount| mount.target == expected.target && is_on(mount, expected.partition))
}

/// Returns whether a mount of kiln's view may be an EFI system partition that nothing on the disk names.
fn is_esp_by_convention(mount: &TreeMount) -> bool {
    ESP_TARGETS.contains(&mount.target.as_slice())
}

pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::gap::{PartitionContent, VolumeKind};
    use crate::wire::mounts::DiskPartition;

    fn mount(target: &str, number: u32, kind: &str, root: &str) -> GuestMount {
        GuestMount {
            target: target.into(),
            kind: kind.into(),
            root: root.into(),
            source: format!("/dev/vda{number}").into_bytes(),
            partitions: vec![DiskPartition { number, start: u64::from(number) << 20, length: 1 << 20 }],
            is_plain: kind != BTRFS,
            is_original: false,
            subvolume: 0,
            default_root: (kind == BTRFS).then(|| b"/".to_vec()),
            features: 0,
        }
    }

    fn ext4(target: &str, number: u32) -> GuestMount {
        mount(target, number, "ext4", "/")
    }

    fn original(mount: GuestMount) -> GuestMount {
        GuestMount { is_original: true, ..mount }
    }

    fn expected(target: &str, source: ExpectedSource) -> ExpectedMount {
        ExpectedMount { target: target.into(), source, is_tree: false }
    }

    fn partition(number: u32, part: FileSystemPart) -> ExpectedSource {
        let volume = PartitionContent { partition: number, kind: VolumeKind::Ext4, label: String::new() };
        ExpectedSource::Partition { volume, part }
    }

    fn whole(target: &str, number: u32) -> ExpectedMount {
        expected(target, partition(number, FileSystemPart::Default))
    }

    fn bound(target: &str, source: &str) -> ExpectedMount {
        expected(target, ExpectedSource::Directory(source.into()))
    }

    fn directory(path: &str) -> FileSystemPart {
        FileSystemPart::Directory(path.into())
    }

    #[test]
    fn what_a_boot_mounts_as_the_guest_had_it_is_no_difference() {
        let root = || ext4("/", 1);
        let home = || mount("/home", 2, BTRFS, "/@home");
        let part = |part| expected("/home", partition(2, part));
        let tree = ExpectedMount { is_tree: true, ..bound("/mnt", "/srv") };
        let cases: [(&[GuestMount], &[ExpectedMount]); 14] = [
            (&[root()], &[]),
            (&[root(), ext4("/boot", 2)], &[whole("/boot", 2)]),
            (&[root(), original(ext4("/boot", 2))], &[]),
            (&[root(), mount("/boot/efi", 15, FAT, "/")], &[]),
            (&[root(), home()], &[part(directory("/@home"))]),
            (&[root(), GuestMount { subvolume: 257, ..home() }], &[part(FileSystemPart::Subvolume(257))]),
            (
                &[root(), GuestMount { default_root: Some(b"/@home".to_vec()), ..home() }],
                &[part(FileSystemPart::Default)],
            ),
            (&[root(), mount("/mnt", 1, "ext4", "/srv/a")], &[bound("/mnt", "/srv/a")]),
            (&[root(), ext4("/srv", 2), mount("/mnt", 2, "ext4", "/a")], &[whole("/srv", 2), bound("/mnt", "/srv/a")]),
            (&[root(), mount("/mnt", 1, "ext4", "/srv"), ext4("/mnt/a", 2)], &[tree]),
            (
                &[root(), GuestMount { is_plain: false, ..ext4("/home", 2) }],
                &[expected("/home", ExpectedSource::Device("/dev/mapper/a".into()))],
            ),
            (&[root()], &[expected("/", ExpectedSource::Root(FileSystemPart::Default))]),
            (
                &[mount("/", 1, "xfs", "/ostree/deploy")],
                &[expected("/", ExpectedSource::Root(FileSystemPart::Default))],
            ),
            (&[mount("/", 1, BTRFS, "/@")], &[expected("/", ExpectedSource::Root(directory("/@")))]),
        ];
        for (index, (guest, expected)) in cases.into_iter().enumerate() {
            assert_eq!(compare(guest, expected), [""; 0], "case {index}");
        }
    }

    #[test]
    fn what_a_boot_mounts_otherwise_is_named() {
        let root = || ext4("/", 1);
        let home = || mount("/home", 2, BTRFS, "/@home");
        let part = |part| expected("/home", partition(2, part));
        let doubt = ExpectedSource::Uncertain { source: "ext4 on partition 2".into(), reason: "a reason" };
        let cases: [(&[GuestMount], &[ExpectedMount], &str); 18] = [
            // In the table and not mounted; unmounted; mounted where no boot mounts it.
            (
                &[root()],
                &[whole("/data", 14)],
                "a boot mounts ext4 on partition 14 on /data, and the guest had nothing",
            ),
            (
                &[root(), ext4("/mnt", 14)],
                &[],
                "/mnt (ext4) was mounted when the guest was sealed, and no boot mounts it",
            ),
            (&[root(), mount("/opt/b", 1, "ext4", "/srv/b")], &[], "/opt/b (ext4) was mounted"),
            (
                &[root(), mount("/boot/efi", 1, "ext4", "/srv/efi")],
                &[whole("/boot/efi", 15)],
                "the guest had /srv/efi of /dev/vda1",
            ),
            // Another device or another part of it.
            (
                &[root(), original(ext4("/data", 2))],
                &[whole("/data", 3)],
                "a boot mounts ext4 on partition 3 on /data, and the guest had /dev/vda2",
            ),
            (&[root(), mount("/data", 2, "ext4", "/inner")], &[whole("/data", 2)], "the guest had /inner of /dev/vda2"),
            (&[root(), home()], &[part(directory("/@other"))], "a boot mounts /@other of ext4 on partition 2"),
            (
                &[root(), GuestMount { subvolume: 256, ..home() }],
                &[part(FileSystemPart::Subvolume(257))],
                "subvolume 257",
            ),
            (&[root(), original(home())], &[part(FileSystemPart::Default)], "the guest had /@home of /dev/vda2"),
            (
                &[root(), GuestMount { default_root: None, ..mount("/home", 2, BTRFS, "/") }],
                &[part(FileSystemPart::Default)],
                "a boot mounts",
            ),
            // Directories.
            (&[root()], &[bound("/mnt", "/srv")], "a boot mounts /srv on /mnt, and the guest had nothing"),
            (&[root(), mount("/mnt", 1, "ext4", "/a")], &[bound("/mnt", "/srv")], "the guest had /a of /dev/vda1"),
            (&[root(), mount("/mnt", 2, "ext4", "/srv")], &[bound("/mnt", "/srv")], "the guest had /srv of /dev/vda2"),
            (&[root()], &[expected("/mnt", ExpectedSource::Overlay)], "an overlay is mounted on /mnt"),
            // Devices that are on no partition, and doubts.
            (
                &[root()],
                &[expected("/home", ExpectedSource::Device("/dev/mapper/a".into()))],
                "a boot mounts /dev/mapper/a",
            ),
            (
                &[root(), ext4("/home", 2)],
                &[expected("/home", ExpectedSource::Device("/dev/mapper/a".into()))],
                "a boot mounts /dev/mapper/a",
            ),
            (&[root()], &[expected("/home", doubt)], "ext4 on partition 2 may be mounted on /home: a reason"),
            (
                &[GuestMount { default_root: Some(b"/snap".to_vec()), ..mount("/", 1, BTRFS, "/") }],
                &[expected("/", ExpectedSource::Root(FileSystemPart::Default))],
                "a boot mounts the default subvolume /snap of the root file system on /, and the guest had / of /dev/vda1",
            ),
        ];
        for (guest, expected, words) in cases {
            let found = compare(guest, expected);
            assert!(found.len() == 1 && found[0].contains(words), "{words}: {found:?}");
        }
    }
}
