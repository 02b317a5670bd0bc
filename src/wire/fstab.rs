//! What a guest mounts, by its `/etc/fstab`: for both ends, since both list the same files.
//!
//! Source: fstab(5). Only file systems on block devices count: the same files are not listed twice for a bind mount, and
//! what is not on a disk is not in an image.

use std::fmt::{self, Display, Formatter};

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub source: Source,
    /// Where: absolute, and not the root.
    pub target: Vec<u8>,
    /// A boot without it fails.
    pub is_needed: bool,
}

/// How a table names a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// By its UUID, as blkid(8) writes it.
    Uuid(String),
    /// By its label.
    Label(String),
    /// By its partition's UUID.
    PartUuid(String),
    /// By its partition's name.
    PartLabel(String),
    /// By the number of the partition on the first disk.
    Partition(u32),
    /// A device that need not be a partition, such as a logical volume.
    Device(String),
}

impl Display for Source {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Source::Uuid(uuid) => write!(f, "UUID={uuid}"),
            Source::Label(label) => write!(f, "LABEL={label}"),
            Source::PartUuid(uuid) => write!(f, "PARTUUID={uuid}"),
            Source::PartLabel(label) => write!(f, "PARTLABEL={label}"),
            Source::Partition(number) => write!(f, "partition {number}"),
            Source::Device(device) => f.write_str(device),
        }
    }
}

/// Every mount of the table, in its order.
#[must_use]
pub fn mounts(table: &[u8]) -> Vec<Mount> {
    let lines = table.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines.filter(|line| !line.starts_with(b"#")).filter_map(mount).collect()
}

fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
    let (source, target, kind) = (unescaped(fields.next()?), unescaped(fields.next()?), fields.next()?);
    let options = fields.next().unwrap_or_default();
    let has = |wanted: [&[u8]; 2]| options.split(|byte| *byte == b',').any(|option| wanted.contains(&option));
    let is_root = target.iter().all(|byte| *byte == b'/');
    if kind == b"swap" || has([b"bind", b"rbind"]) || is_root || !target.starts_with(b"/") {
        return None;
    }
    let is_needed = !has([b"noauto", b"nofail"]);
    Some(Mount { source: parse(std::str::from_utf8(&source).ok()?)?, target, is_needed })
}

/// `None` for what is no block device.
fn parse(source: &str) -> Option<Source> {
    let value = |tag: &str| source.strip_prefix(tag).map(|value| value.trim_matches('"').to_owned());
    let either = |tag: &str, folder: &str| value(tag).or_else(|| value(folder));
    let device =
        || source.strip_prefix("/dev/").map(|name| partition(name).unwrap_or(Source::Device(source.to_owned())));
    either("UUID=", "/dev/disk/by-uuid/")
        .map(Source::Uuid)
        .or_else(|| either("LABEL=", "/dev/disk/by-label/").map(Source::Label))
        .or_else(|| either("PARTUUID=", "/dev/disk/by-partuuid/").map(Source::PartUuid))
        .or_else(|| either("PARTLABEL=", "/dev/disk/by-partlabel/").map(Source::PartLabel))
        .or_else(device)
}

/// The partition behind the kernel's name of one on the first disk, whichever driver it has.
fn partition(device: &str) -> Option<Source> {
    let number =
        ["vda", "sda", "xvda", "hda", "nvme0n1p", "mmcblk0p"].iter().find_map(|disk| device.strip_prefix(disk))?;
    number.parse().ok().map(Source::Partition)
}

/// Spaces and the like are written as three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, behind @ ..] = rest {
        let code = behind.first_chunk().copied().filter(|_| *first == b'\\').and_then(octal);
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    bytes
}

fn octal(digits: [u8; 3]) -> Option<u8> {
    let value = |digit: &u8| digit.checked_sub(b'0').filter(|digit| *digit < 8);
    digits.iter().try_fold(0_u8, |number, digit| number.checked_mul(8)?.checked_add(value(digit)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_and_only_once() {
        let table = b"# <file system> <mount point>\n\
            PARTUUID=6b696c6e-0001-4000-8000-000000000012 / ext4 rw 0 1\n\
            UUID=6B69-6C12\t/boot/efi   vfat defaults 0 0\n\
              LABEL=\"my data\" /no vfat\n\
            LABEL=my\\040data /srv/my\\040data\text4\n\
            PARTLABEL=boot /boot auto ro,noauto\n\
            /dev/vda15 /efi vfat umask=0077 0 1\n/dev/nvme0n1p2 /a ext4\n/dev/mapper/vg-home /home xfs\n/dev/vdb1 /b ext4\n\
            /dev/disk/by-uuid/abc /c ext4\n\
            tmpfs /tmp tmpfs\nnas:/x /nas nfs\n/srv /mnt none bind\n/dev/vda3 /x none rw,bind\nUUID=1 none swap sw\n\
            /dev/vda4 swap swap\nbroken\n";
        let mount = |source, target: &str| Mount { source, target: target.into(), is_needed: target != "/boot" };
        let expected = [
            mount(Source::Uuid("6B69-6C12".into()), "/boot/efi"),
            mount(Source::Label("my data".into()), "/srv/my data"),
            mount(Source::PartLabel("boot".into()), "/boot"),
            mount(Source::Partition(15), "/efi"),
            mount(Source::Partition(2), "/a"),
            mount(Source::Device("/dev/mapper/vg-home".into()), "/home"),
            mount(Source::Device("/dev/vdb1".into()), "/b"),
            mount(Source::Uuid("abc".into()), "/c"),
        ];
        assert_eq!(mounts(table), expected);
    }

    #[test]
    fn escapes_are_octal_and_nothing_else_is_one() {
        for (text, expected) in [("a\\040b", "a b"), ("a\\134", "a\\"), ("a\\9", "a\\9"), ("\\777", "\\777"), ("", "")]
        {
            assert_eq!(unescaped(text.as_bytes()), expected.as_bytes());
        }
    }
}
