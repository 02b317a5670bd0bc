//! The mounts of a guest by its `/etc/fstab`. Both ends use this code, since both list the same files.
//!
//! Source: fstab(5), and systemd.mount(5) for `x-systemd.automount` and similar options.

use super::boot_mount::{BootMount, MountPolicy, without_slashes};
use super::device_name::{DeviceName, unescape};

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FstabEntry {
    /// The device that is mounted.
    pub device: DeviceName,
    /// The mount point: absolute, and not the root.
    pub target: Vec<u8>,
    /// Whether a boot makes the mount.
    pub policy: MountPolicy,
    /// A directory of the file system is mounted, not its root (`X-mount.subdir=`).
    pub is_part: bool,
}

impl FstabEntry {
    /// Creates the entry of a mount; `None` if it names no block device.
    #[must_use]
    pub fn new(mount: &BootMount) -> Option<Self> {
        let device = mount.device()?;
        Some(Self { device, target: mount.target.clone(), policy: mount.policy, is_part: mount.is_part() })
    }
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

/// Returns the device that the table mounts as the root.
#[must_use]
pub fn root_device(table: &[u8]) -> Option<DeviceName> {
    let mut roots = fields(table).filter(FstabFields::is_root);
    roots.find_map(|fields| DeviceName::parse(&String::from_utf8_lossy(&fields.source)))
}

/// The fields of a line, with escapes not decoded yet.
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

    /// Returns the policy that systemd-fstab-generator(8) derives from the options. A mount that only other units than the
    /// targets of every boot want may not be made.
    fn policy(&self) -> MountPolicy {
        if self.has(b"x-systemd.automount") {
            return MountPolicy::Optional;
        }
        let requiring: Vec<&[u8]> = self.values(b"x-systemd.required-by=").collect();
        let wanting: Vec<&[u8]> = self.values(b"x-systemd.wanted-by=").collect();
        if requiring.is_empty() && wanting.is_empty() {
            return self.policy_of_mount_all();
        }
        match self.has(b"nofail") {
            false if requiring.iter().any(|unit| BOOT_TARGETS.contains(unit)) => MountPolicy::Required,
            _ if requiring.iter().chain(&wanting).any(|unit| BOOT_TARGETS.contains(unit)) => MountPolicy::Optional,
            _ => MountPolicy::RequiredElsewhere,
        }
    }

    /// Returns the policy that `mount --all` derives from the options.
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

/// Decodes a field of fstab(5) or of a table of mounts: spaces and some other characters are written as three octal digits.
#[must_use]
pub fn unescaped(field: &[u8]) -> Vec<u8> {
    unescape(field, octal)
}

fn octal(digits: [u8; 3]) -> Option<u8> {
    digits.iter().try_fold(0_u8, |number, digit| {
        let value = digit.checked_sub(b'0').filter(|value| *value < 8)?;
        number.checked_mul(8)?.checked_add(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::boot_mount::FstabCover;

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
