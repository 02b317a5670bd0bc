//! The mounts of a disk's boot according to the guest's own report, as far as the disk has them: names of devices are looked
//! up on the disk.

use super::chain::Chain;
use super::gap::PartitionContent;
use super::inventory::{DiskVolume, may_be_hidden, take_inventory};
use super::tree::TreeError;
use crate::wire::boot_mount::{BootMount, MountPolicy, option_value};
use crate::wire::boot_mounts::BootReport;
use crate::wire::device_name::DeviceName;

/// Folders whose content is on no disk.
const VOLATILE: [&str; 4] = ["/proc/", "/sys/", "/dev/", "/run/"];

/// A mount that a boot makes, or may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExpectedMount {
    /// The mount point; `/` for the root.
    pub(crate) target: Vec<u8>,
    /// The device or directory that is mounted.
    pub(crate) source: ExpectedSource,
    /// Mounts below the source are mounted with it.
    pub(crate) is_tree: bool,
}

/// The source of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ExpectedSource {
    /// The file system on a partition.
    Partition { volume: PartitionContent, part: FileSystemPart },
    /// The root file system, wherever it is.
    Root(FileSystemPart),
    /// A device that is on no partition.
    Device(String),
    /// A directory of the tree.
    Directory(Vec<u8>),
    /// An overlay of directories.
    Overlay,
    /// It is not certain that a boot makes this mount.
    Uncertain { source: String, reason: &'static str },
}

/// The directory of a file system that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FileSystemPart {
    /// Its root, or its default subvolume.
    Default,
    /// The subvolume with this number.
    Subvolume(u64),
    /// This directory.
    Directory(Vec<u8>),
}

impl FileSystemPart {
    /// Parses the options of a mount.
    fn of_options(options: &str) -> Self {
        let directory = option_value(options, "subvol").or_else(|| option_value(options, "X-mount.subdir"));
        match (directory, option_value(options, "subvolid").and_then(|number| number.parse().ok())) {
            (Some(path), _) => FileSystemPart::Directory(format!("/{}", path.trim_matches('/')).into_bytes()),
            (None, Some(number)) => FileSystemPart::Subvolume(number),
            (None, None) => FileSystemPart::Default,
        }
    }
}

/// Returns the mounts of a boot of this disk, according to the report of its guest.
///
/// # Errors
/// When the disk cannot be read.
pub(crate) fn find_expected(disk: &Chain, boot: &BootReport) -> Result<Vec<ExpectedMount>, TreeError> {
    let volumes = take_inventory(disk)?;
    let mounts = boot.mounts.iter().filter_map(|mount| expect_mount(&volumes, mount));
    Ok([expect_root(&boot.root_options)].into_iter().chain(mounts).collect())
}

/// Returns the mount of the root according to the command lines; it is uncertain if they differ.
fn expect_root(options: &[String]) -> ExpectedMount {
    let mut parts: Vec<FileSystemPart> = options.iter().map(|options| FileSystemPart::of_options(options)).collect();
    parts.dedup();
    let source = match parts.as_slice() {
        [] => ExpectedSource::Root(FileSystemPart::Default),
        [part] => ExpectedSource::Root(part.clone()),
        _ => ExpectedSource::Uncertain {
            source: "the root".to_owned(),
            reason: "the entries of the boot loader name different directories of its file system",
        },
    };
    ExpectedMount { target: b"/".to_vec(), source, is_tree: false }
}

fn expect_mount(volumes: &[DiskVolume<'_>], mount: &BootMount) -> Option<ExpectedMount> {
    let source = match mount.device() {
        Some(device) => expect_device(volumes, mount, &device)?,
        None => expect_directory(mount)?,
    };
    Some(ExpectedMount { target: mount.target.clone(), source, is_tree: mount.has_option("rbind") })
}

/// Returns the expected source of a mount of a device: `None` if a boot continues without it, and the disk does not have it.
fn expect_device(volumes: &[DiskVolume<'_>], mount: &BootMount, device: &DeviceName) -> Option<ExpectedSource> {
    let mut found = volumes.iter().filter(|volume| volume.answers(device));
    let first = found.next();
    if let Some(reason) = mount.policy.doubt() {
        return Some(ExpectedSource::Uncertain { source: first?.describe().to_string(), reason });
    }
    match (first, mount.policy) {
        (_, MountPolicy::Manual) => None,
        (Some(first), _) if found.next().is_some() => {
            let reason = "another partition has the same name";
            Some(ExpectedSource::Uncertain { source: first.describe().to_string(), reason })
        }
        (Some(volume), _) => {
            let part = FileSystemPart::of_options(&mount.options);
            Some(ExpectedSource::Partition { volume: volume.describe(), part })
        }
        (None, MountPolicy::Optional) if !may_be_hidden(volumes) => None,
        (None, _) => Some(ExpectedSource::Device(device.to_string())),
    }
}

fn is_volatile(path: &[u8]) -> bool {
    VOLATILE.iter().any(|folder| path.starts_with(folder.as_bytes()))
}

fn expect_directory(mount: &BootMount) -> Option<ExpectedSource> {
    let cover = mount.cover()?;
    match (cover.source, mount.policy) {
        (_, MountPolicy::Manual | MountPolicy::Unwanted) => None,
        (Some(source), _) if is_volatile(&source) || is_volatile(&mount.target) => None,
        (None, _) if is_volatile(&mount.target) => None,
        (source, policy) => Some(match (policy.doubt(), source) {
            (Some(reason), source) => {
                let source = source.as_deref().map_or("an overlay".into(), String::from_utf8_lossy).into_owned();
                ExpectedSource::Uncertain { source, reason }
            }
            (None, Some(source)) => ExpectedSource::Directory(source),
            (None, None) => ExpectedSource::Overlay,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_a_directory_or_a_subvolume_or_neither() {
        let directory = |path: &str| FileSystemPart::Directory(path.into());
        for (options, expected) in [
            ("", FileSystemPart::Default),
            ("rw,noatime", FileSystemPart::Default),
            ("rw,subvol=@home", directory("/@home")),
            ("subvol=/@home/a/,subvolid=257", directory("/@home/a")),
            ("subvol=/", directory("/")),
            ("subvolid=257", FileSystemPart::Subvolume(257)),
            ("X-mount.subdir=inner", directory("/inner")),
        ] {
            assert_eq!(FileSystemPart::of_options(options), expected, "{options}");
        }
    }

    #[test]
    fn command_lines_that_differ_leave_the_root_uncertain() {
        let root = |options: &[&str]| {
            let options: Vec<String> = options.iter().map(|text| (*text).to_owned()).collect();
            expect_root(&options).source
        };
        assert_eq!(root(&[]), ExpectedSource::Root(FileSystemPart::Default));
        assert_eq!(root(&["", "ro"]), ExpectedSource::Root(FileSystemPart::Default));
        assert_eq!(root(&["subvol=@"]), ExpectedSource::Root(FileSystemPart::Directory(b"/@".into())));
        assert!(matches!(root(&["", "subvol=@"]), ExpectedSource::Uncertain { .. }));
    }
}
