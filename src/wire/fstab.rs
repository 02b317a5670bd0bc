//! What a guest mounts, by its `/etc/fstab`: for both ends, since both list the same files.
//!
//! Source: fstab(5), and systemd.mount(5) for `x-systemd.automount` and the like.

use std::fmt::{self, Display, Formatter};

use super::boot_mounts::{BootMount, MountPolicy};

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FstabEntry {
    /// What is mounted.
    pub device: DeviceName,
    /// Where: absolute, and not the root.
    pub target: Vec<u8>,
    /// Whether a boot mounts it.
    pub policy: MountPolicy,
    /// Whether a directory of the file system is mounted, and not its root (`X-mount.subdir=`).
    pub is_part: bool,
}

impl FstabEntry {
    /// Returns the entry of a mount that names a block device.
    #[must_use]
    pub fn new(mount: &BootMount) -> Option<Self> {
        let device = mount.device()?;
        Some(Self { device, target: mount.target.clone(), policy: mount.policy, is_part: mount.is_part() })
    }
}

/// A mount that hides a directory with other files of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FstabCover {
    /// The directory that is bound there; `None` for an overlay.
    pub source: Option<Vec<u8>>,
    /// The directory that is hidden: absolute, and not the root.
    pub target: Vec<u8>,
}

/// Targets that every boot of systemd reaches (bootup(7)).
const BOOT_TARGETS: [&[u8]; 7] = [
    b"local-fs.target",
    b"remote-fs.target",
    b"sysinit.target",
    b"basic.target",
    b"multi-user.target",
    b"default.target",
    b"local-fs-pre.target",
];
/// File systems that show files of other directories.
const OVERLAYS: [&str; 8] =
    ["overlay", "overlayfs", "aufs", "unionfs", "fuse.overlayfs", "fuse.unionfs", "fuse.bindfs", "fuse.mergerfs"];

/// How a file system is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceName {
    /// By its UUID, as blkid(8) writes it.
    Uuid(String),
    /// By its label.
    Label(String),
    /// By its partition's UUID.
    PartUuid(String),
    /// By its partition's name.
    PartLabel(String),
    /// By the number of the partition on the first disk; 0 for the disk itself.
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

/// Returns every mount of the table but the root and swap, in its order.
#[must_use]
pub fn lines(table: &[u8]) -> Vec<BootMount> {
    fields(table).filter_map(FstabFields::mount).collect()
}

/// Returns every mount of a device but the root, in the order of the table.
#[must_use]
pub fn mounts(table: &[u8]) -> Vec<FstabEntry> {
    lines(table).iter().filter_map(FstabEntry::new).collect()
}

/// Returns whether a file system of this type shows files of other directories.
#[must_use]
pub fn is_overlay(kind: &str) -> bool {
    OVERLAYS.contains(&kind)
}

/// Returns the device that the table mounts as the root.
#[must_use]
pub fn root_device(table: &[u8]) -> Option<DeviceName> {
    let mut roots = fields(table).filter(FstabFields::is_root);
    roots.find_map(|fields| DeviceName::parse(&String::from_utf8_lossy(&fields.source)))
}

/// The fields of a line, without escapes.
struct FstabFields<'t> {
    source: Vec<u8>,
    target: Vec<u8>,
    kind: &'t [u8],
    options: &'t [u8],
}

fn fields(table: &[u8]) -> impl Iterator<Item = FstabFields<'_>> {
    let lines = table.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines.filter(|line| !line.starts_with(b"#")).filter_map(FstabFields::parse)
}

impl<'t> FstabFields<'t> {
    fn parse(line: &'t [u8]) -> Option<Self> {
        let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
        let source = unescaped(fields.next()?);
        let target = unescaped(fields.next()?);
        let kind = fields.next()?;
        Some(Self { source, target, kind, options: fields.next().unwrap_or_default() })
    }

    fn has(&self, wanted: &[u8]) -> bool {
        self.options.split(|byte| *byte == b',').any(|option| option == wanted)
    }

    fn is_root(&self) -> bool {
        self.target.starts_with(b"/") && self.target.iter().all(|byte| *byte == b'/')
    }

    fn mount(self) -> Option<BootMount> {
        if self.kind == b"swap" || self.is_root() || !self.target.starts_with(b"/") {
            return None;
        }
        Some(BootMount {
            policy: self.policy(),
            target: without_slashes(&self.target),
            kind: String::from_utf8_lossy(self.kind).into_owned(),
            options: String::from_utf8_lossy(self.options).into_owned(),
            source: self.source,
        })
    }

    /// Returns what systemd-fstab-generator(8) makes of the options. A unit that another one than a target of every boot
    /// wants may not be started.
    fn policy(&self) -> MountPolicy {
        if self.has(b"x-systemd.automount") {
            return MountPolicy::Optional;
        }
        let requiring: Vec<&[u8]> = self.values(b"x-systemd.required-by=").collect();
        let wanting: Vec<&[u8]> = self.values(b"x-systemd.wanted-by=").collect();
        let is_certain = |unit: &&[u8]| BOOT_TARGETS.contains(unit);
        if requiring.is_empty() && wanting.is_empty() {
            return self.policy_of_mount_all();
        }
        match self.has(b"nofail") {
            false if requiring.iter().any(is_certain) => MountPolicy::Required,
            _ if requiring.iter().chain(&wanting).any(is_certain) => MountPolicy::Optional,
            _ => MountPolicy::RequiredElsewhere,
        }
    }

    /// Returns what `mount --all` makes of the options.
    fn policy_of_mount_all(&self) -> MountPolicy {
        if self.has(b"noauto") {
            MountPolicy::Manual
        } else if self.has(b"nofail") {
            MountPolicy::Optional
        } else {
            MountPolicy::Required
        }
    }

    fn values<'k>(&self, key: &'k [u8]) -> impl Iterator<Item = &'t [u8]> + use<'t, 'k> {
        self.options.split(|byte| *byte == b',').filter_map(move |option| option.strip_prefix(key))
    }
}

/// Removes the slashes that are more than one, or at the end.
#[must_use]
pub fn without_slashes(path: &[u8]) -> Vec<u8> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    names.flat_map(|name| [b"/", name].concat()).collect()
}

/// Makes a name of a value.
type NamedBy = fn(String) -> DeviceName;

/// How the links of udev(7) begin, and what is behind them.
const LINKS: [(&str, NamedBy); 4] = [
    ("/dev/disk/by-uuid/", DeviceName::Uuid),
    ("/dev/disk/by-label/", DeviceName::Label),
    ("/dev/disk/by-partuuid/", DeviceName::PartUuid),
    ("/dev/disk/by-partlabel/", DeviceName::PartLabel),
];
/// How a table tags a value.
const TAGS: [(&str, NamedBy); 4] = [
    ("UUID=", DeviceName::Uuid),
    ("LABEL=", DeviceName::Label),
    ("PARTUUID=", DeviceName::PartUuid),
    ("PARTLABEL=", DeviceName::PartLabel),
];
/// The first disk, by driver, and what stands before the number of a partition.
const DISKS: [(&str, &str); 6] =
    [("vda", ""), ("sda", ""), ("xvda", ""), ("hda", ""), ("nvme0n1", "p"), ("mmcblk0", "p")];

impl DeviceName {
    /// Reads a name as mount(8) and the kernel's `root=` take it; `None` for what is no block device.
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
        // A link of udev's below /dev/disk/by-id.
        if let Some(id) = text.strip_prefix("ID=") {
            return Self::parse(&format!("/dev/disk/by-id/{}", id.trim_matches('"')));
        }
        let device = text.strip_prefix("/dev/")?;
        let number = partition_number(device).or_else(|| linked_partition(device));
        Some(number.map_or_else(|| DeviceName::Device(text.to_owned()), DeviceName::Partition))
    }
}

/// Returns the number in the kernel's name of a partition of the first disk, whichever driver it has; 0 for the disk.
fn partition_number(device: &str) -> Option<u32> {
    DISKS.iter().find_map(|(disk, mark)| match device.strip_prefix(disk)? {
        "" => Some(0),
        rest => rest.strip_prefix(mark)?.parse().ok(),
    })
}

/// Returns the number in a link of udev's to a partition by its disk, `disk/by-path/...-part3`.
fn linked_partition(device: &str) -> Option<u32> {
    let is_link = ["disk/by-path/", "disk/by-id/"].iter().any(|folder| device.starts_with(folder));
    device.rsplit_once("-part").filter(|_| is_link)?.1.parse().ok()
}

/// Links of udev's have `\x20` for a blank, and the like.
fn without_link_escapes(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, behind @ ..] = rest {
        let digits = behind.strip_prefix(b"x").filter(|_| *first == b'\\').and_then(|digits| digits.get(..2));
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Decodes a field of fstab(5) or of a table of mounts: spaces and the like are written as three octal digits.
#[must_use]
pub fn unescaped(field: &[u8]) -> Vec<u8> {
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
        let mount = |device, target: &str| {
            let policy = if target == "/boot" { MountPolicy::Manual } else { MountPolicy::Required };
            FstabEntry { device, target: target.into(), policy, is_part: false }
        };
        let expected = [
            mount(DeviceName::Uuid("6B69-6C12".into()), "/boot/efi"),
            mount(DeviceName::Label("my data".into()), "/srv/my data"),
            mount(DeviceName::PartLabel("boot".into()), "/boot"),
            mount(DeviceName::Partition(15), "/efi"),
            mount(DeviceName::Partition(2), "/a"),
            mount(DeviceName::Device("/dev/mapper/vg-home".into()), "/home"),
            mount(DeviceName::Device("/dev/vdb1".into()), "/b"),
            mount(DeviceName::Uuid("abc".into()), "/c"),
        ];
        assert_eq!(mounts(table), expected);
        assert_eq!(root_device(table), Some(DeviceName::PartUuid("6b696c6e-0001-4000-8000-000000000012".into())));
        assert_eq!(root_device(b"/dev/vda1 /boot ext4\n"), None);
    }

    #[test]
    fn options_say_whether_a_boot_mounts_it() {
        for (options, policy) in [
            ("defaults", MountPolicy::Required),
            ("ro,nofail", MountPolicy::Optional),
            ("noauto,nofail", MountPolicy::Manual),
            ("noauto,x-systemd.automount", MountPolicy::Optional),
            ("notnofail", MountPolicy::Required),
            ("noauto,x-systemd.wanted-by=multi-user.target", MountPolicy::Optional),
            ("noauto,x-systemd.required-by=local-fs.target", MountPolicy::Required),
            ("noauto,nofail,x-systemd.required-by=local-fs.target", MountPolicy::Optional),
            ("noauto,x-systemd.wanted-by=mine.service", MountPolicy::RequiredElsewhere),
            ("x-systemd.wanted-by=mine.service", MountPolicy::RequiredElsewhere),
        ] {
            let entries = mounts(format!("LABEL=a //srv/ ext4 {options} 0 0").as_bytes());
            assert_eq!((entries[0].policy, entries[0].target.as_slice()), (policy, &b"/srv"[..]), "{options}");
        }
    }

    #[test]
    fn directories_are_hidden_by_bind_mounts_and_overlays() {
        let table = b"/data/ssh//etc /etc/ssh/ none bind 0 0\n/srv /mnt none rw,rbind,noauto\n/var /var none bind,ro\n\
            overlay /opt overlay lowerdir=/a,upperdir=/b,workdir=/c\ntmpfs /tmp tmpfs\n/dev/vda2 /x ext4\n";
        let found: Vec<FstabCover> =
            lines(table).iter().filter(|line| line.policy.is_made()).filter_map(BootMount::cover).collect();
        let bound = FstabCover { source: Some(b"/data/ssh/etc".to_vec()), target: b"/etc/ssh".to_vec() };
        assert_eq!(found, [bound, FstabCover { source: None, target: b"/opt".to_vec() }]);
        assert!(mounts(b"LABEL=a /srv ext4 ro,X-mount.subdir=a\n")[0].is_part);
    }

    #[test]
    fn devices_have_many_names() {
        for (text, expected) in [
            ("/dev/disk/by-label/my\\x20data", Some(DeviceName::Label("my data".into()))),
            ("/dev/disk/by-path/pci-0000:00:05.0-part3", Some(DeviceName::Partition(3))),
            ("/dev/disk/by-id/virtio-x-part12", Some(DeviceName::Partition(12))),
            ("ID=virtio-x-part12", Some(DeviceName::Partition(12))),
            ("ID=virtio-x", Some(DeviceName::Device("/dev/disk/by-id/virtio-x".into()))),
            ("/dev/vda", Some(DeviceName::Partition(0))),
            ("/dev/nvme0n1", Some(DeviceName::Partition(0))),
            ("/dev/vdax", Some(DeviceName::Device("/dev/vdax".into()))),
            ("tmpfs", None),
            ("nas:/x", None),
        ] {
            assert_eq!(DeviceName::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn escapes_are_octal_and_nothing_else_is_one() {
        for (text, expected) in [("a\\040b", "a b"), ("a\\134", "a\\"), ("a\\9", "a\\9"), ("\\777", "\\777"), ("", "")]
        {
            assert_eq!(unescaped(text.as_bytes()), expected.as_bytes());
        }
    }
}
