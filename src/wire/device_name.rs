//! The names of file systems and their devices in a table of mounts, a unit or a kernel command line.

use std::fmt::{self, Display, Formatter};

/// The name of a file system or its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceName {
    /// The UUID of the file system, as blkid(8) writes it.
    Uuid(String),
    /// The label of the file system.
    Label(String),
    /// The UUID of the partition.
    PartUuid(String),
    /// The name of the partition.
    PartLabel(String),
    /// The number of the partition on the first disk; 0 for the disk itself.
    Partition(u32),
    /// A device that need not be a partition, such as a logical volume.
    Device(String),
}

impl Display for DeviceName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Uuid(uuid) => write!(f, "UUID={uuid}"),
            DeviceName::Label(label) => write!(f, "LABEL={label}"),
            DeviceName::PartUuid(uuid) => write!(f, "PARTUUID={uuid}"),
            DeviceName::PartLabel(label) => write!(f, "PARTLABEL={label}"),
            DeviceName::Partition(number) => write!(f, "partition {number}"),
            DeviceName::Device(device) => f.write_str(device),
        }
    }
}

/// Creates a name from a value.
type NamedBy = fn(String) -> DeviceName;

/// The prefixes of the links of udev(7), and the names that they contain.
const LINKS: [(&str, NamedBy); 4] = [
    ("/dev/disk/by-uuid/", DeviceName::Uuid),
    ("/dev/disk/by-label/", DeviceName::Label),
    ("/dev/disk/by-partuuid/", DeviceName::PartUuid),
    ("/dev/disk/by-partlabel/", DeviceName::PartLabel),
];
/// The tags of values in a table of mounts.
const TAGS: [(&str, NamedBy); 4] = [
    ("UUID=", DeviceName::Uuid),
    ("LABEL=", DeviceName::Label),
    ("PARTUUID=", DeviceName::PartUuid),
    ("PARTLABEL=", DeviceName::PartLabel),
];
/// The first disk, by driver, and the separator before the number of a partition.
const DISKS: [(&str, &str); 6] =
    [("vda", ""), ("sda", ""), ("xvda", ""), ("hda", ""), ("nvme0n1", "p"), ("mmcblk0", "p")];

impl DeviceName {
    /// Parses a name as mount(8) and the kernel's `root=` do; `None` if it is no block device.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        for (tag, name) in TAGS {
            if let Some(value) = text.strip_prefix(tag) {
                return Some(name(value.trim_matches('"').to_owned()));
            }
        }
        for (folder, name) in LINKS {
            if let Some(value) = text.strip_prefix(folder) {
                return Some(name(without_link_escapes(value)));
            }
        }
        // The name of a udev link below /dev/disk/by-id.
        if let Some(id) = text.strip_prefix("ID=") {
            return Self::parse(&format!("/dev/disk/by-id/{}", id.trim_matches('"')));
        }
        let device = text.strip_prefix("/dev/")?;
        let number = partition_number(device).or_else(|| linked_partition(device));
        Some(number.map_or_else(|| DeviceName::Device(text.to_owned()), DeviceName::Partition))
    }
}

/// Returns the number in the kernel's name of a partition of the first disk, whatever its driver; 0 for the disk.
fn partition_number(device: &str) -> Option<u32> {
    DISKS.iter().find_map(|(disk, mark)| match device.strip_prefix(disk)? {
        "" => Some(0),
        rest => rest.strip_prefix(mark)?.parse().ok(),
    })
}

/// Returns the number in a udev link to a partition by its disk, `disk/by-path/...-part3`.
fn linked_partition(device: &str) -> Option<u32> {
    let is_link = ["disk/by-path/", "disk/by-id/"].iter().any(|folder| device.starts_with(folder));
    device.rsplit_once("-part").filter(|_| is_link)?.1.parse().ok()
}

/// Decodes the escapes of a udev link, such as `\x20` for a blank.
fn without_link_escapes(name: &str) -> String {
    String::from_utf8_lossy(&unescape(name.as_bytes(), hexadecimal)).into_owned()
}

fn hexadecimal(code: [u8; 3]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(code.strip_prefix(b"x")?).ok()?, 16).ok()
}

/// Decodes the escapes of a backslash and three characters; those that have no code stay as they are.
pub(super) fn unescape(text: &[u8], decode: fn([u8; 3]) -> Option<u8>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, behind @ ..] = rest {
        let code = behind.first_chunk().copied().filter(|_| *first == b'\\').and_then(decode);
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    bytes
}
