//! The parts of a kernel command line that affect the files of a guest.
//!
//! Sources: kernel-command-line(7) and systemd-fstab-generator(8); dracut.cmdline(7); initramfs-tools(7); live-boot(7);
//! ostree-prepare-root(1).

use super::BootEffects;
use crate::wire::device_name::DeviceName;

/// Stands in a command line for what depends on a variable that is not known.
pub(super) const UNKNOWN: char = '\0';
/// The most parameters that are remembered because kiln does not apply them.
const MAX_UNAPPLIED: usize = 16;
/// Parameters that replace the root, mount more on it or leave something out.
const UNAPPLIED: [&str; 17] = [
    "ostree",
    "composefs",
    "loop",
    "nfsroot",
    "netroot",
    "systemd.mount-extra",
    "rd.systemd.mount-extra",
    "rd.live.image",
    "rd.live.ram",
    "rd.overlay",
    "rd.overlayfs",
    "live-media",
    "archisobasedir",
    "img_dev",
    "findiso",
    "fromiso",
    "iso-scan/filename",
];

/// The root file system according to a command line.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) enum LineRoot {
    /// It names none; the initrd finds one itself.
    #[default]
    Unnamed,
    /// The device of `root=`.
    Named(DeviceName),
    /// There is one, but it depends on values that kiln does not know.
    Unknown,
    /// The entry starts another boot loader.
    Chained,
}

/// The parts of a kernel command line that decide which files the guest has.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct KernelCommandLine {
    pub(super) root: LineRoot,
    pub(super) effects: BootEffects,
}

impl KernelCommandLine {
    /// Parses a command line. Of several `root=` the last counts, as in the kernel.
    pub(super) fn parse(text: &str) -> Self {
        let mut line = Self::default();
        let mut root_hash = None;
        for word in text.split_whitespace().map(without_quotes) {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "roothash" => root_hash = Some(value),
                _ => line.add(word, key, without_quotes(value)),
            }
        }
        if let Some(hash) = root_hash {
            line.apply_root_hash(hash);
        }
        line
    }

    /// Creates a line whose root is not known.
    pub(super) fn unknown() -> Self {
        Self { root: LineRoot::Unknown, ..Self::default() }
    }

    fn add(&mut self, word: &str, key: &str, value: &str) {
        match key {
            "root" => self.set_root(word, value),
            "systemd.verity_root_data" => self.root = named(value),
            "mount.usr" | "systemd.verity_usr_data" => match DeviceName::parse(value) {
                Some(device) => self.effects.usr = Some(device),
                None => self.add_unapplied(word),
            },
            "usrhash" => self.effects.usr = self.effects.usr.take().or_else(|| partition_of_hash(value)),
            "systemd.gpt_auto" => self.effects.ignores_types = is_false(value),
            _ if changes_tree(key, value) => self.add_unapplied(word),
            _ if word.contains(UNKNOWN) && key == word && self.root == LineRoot::Unnamed => {
                self.root = LineRoot::Unknown;
            }
            _ => {}
        }
    }

    fn set_root(&mut self, word: &str, value: &str) {
        let value = value.strip_prefix("block:").unwrap_or(value);
        let is_elsewhere = value == "/dev/nfs" || DeviceName::parse(value).is_none() && !is_number(value);
        self.root = match value {
            _ if value.contains(UNKNOWN) => LineRoot::Unknown,
            "" | "gpt-auto" | "gpt-auto-force" | "dissect" | "fstab" | "off" => LineRoot::Unnamed,
            _ if is_elsewhere => {
                self.add_unapplied(word);
                LineRoot::Unnamed
            }
            _ => named(value),
        };
    }

    /// Applies the hash of a verified root: its partition's UUID is the first half of the hash. Others are found by their
    /// type.
    fn apply_root_hash(&mut self, hash: &str) {
        let is_mapped = matches!(&self.root, LineRoot::Named(DeviceName::Device(path)) if path == "/dev/mapper/root");
        if is_mapped || self.root == LineRoot::Unnamed {
            self.root = partition_of_hash(hash).map_or(LineRoot::Unnamed, LineRoot::Named);
        }
    }

    fn add_unapplied(&mut self, word: &str) {
        if self.effects.unapplied.len() < MAX_UNAPPLIED {
            self.effects.unapplied.push(word.replace(UNKNOWN, "?"));
        }
    }
}

fn without_quotes(text: &str) -> &str {
    text.trim_matches(['"', '\''])
}

/// Returns the root that a value names. Device numbers and offsets from a partition are names that kiln does not resolve.
fn named(value: &str) -> LineRoot {
    match DeviceName::parse(value) {
        Some(DeviceName::PartUuid(uuid)) if uuid.contains('/') => LineRoot::Unknown,
        Some(name) => LineRoot::Named(name),
        None => LineRoot::Unknown,
    }
}

/// Returns whether the kernel parses this as the number of a device, as in `0801` or `8:1`.
fn is_number(value: &str) -> bool {
    value.chars().all(|c| c.is_ascii_hexdigit() || c == ':')
}

/// Returns the partition with the data of a verified file system (systemd-veritysetup-generator(8)).
fn partition_of_hash(hash: &str) -> Option<DeviceName> {
    let digits = hash.get(..32).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    Some(DeviceName::PartUuid(parts.join("-").to_ascii_lowercase()))
}

fn changes_tree(key: &str, value: &str) -> bool {
    match key {
        "boot" => matches!(value, "live" | "casper" | "nfs" | "overlay"),
        "overlayroot" => !matches!(value, "" | "disabled"),
        "systemd.volatile" => !is_false(value),
        "systemd.fstab" | "fstab" | "rd.systemd.gpt_auto" => is_false(value),
        "systemd.mask" => [".mount", ".automount"].iter().any(|suffix| value.strip_suffix(suffix).is_some()),
        "rootflags" => value.contains("subvol") || value.contains("X-mount.subdir"),
        _ => UNAPPLIED.contains(&key),
    }
}

/// Returns whether a value is false as a boolean of systemd.
fn is_false(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "0" | "no" | "n" | "false" | "f" | "off")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(text: &str) -> LineRoot {
        KernelCommandLine::parse(text).root
    }

    #[test]
    fn the_last_root_counts_if_it_is_a_device() {
        let partition = |number| LineRoot::Named(DeviceName::Partition(number));
        assert_eq!(root("root=/dev/vda2 ro root=/dev/vda3"), partition(3));
        assert_eq!(root("quiet root=\"/dev/vda2\" \"root=/dev/vda4\""), partition(4));
        assert_eq!(root("ro quiet"), LineRoot::Unnamed);
        assert_eq!(root("root=gpt-auto"), LineRoot::Unnamed);
        for text in ["root=UUID=\0", "root=0802", "root=PARTUUID=ab/PARTNROFF=1", "\0 quiet"] {
            assert_eq!(root(text), LineRoot::Unknown, "{text}");
        }
        assert_eq!(root("root=/dev/vda2 \0"), partition(2), "a variable for more options");
    }

    #[test]
    fn the_hash_of_a_verified_file_system_names_its_partition() {
        let hash = "0123456789ABCDEF0123456789abcdef00112233445566778899aabbccddeeff";
        let expected = DeviceName::PartUuid("01234567-89ab-cdef-0123-456789abcdef".into());
        assert_eq!(root(&format!("root=/dev/mapper/root roothash={hash}")), LineRoot::Named(expected.clone()));
        assert_eq!(root("roothash=abc root=/dev/mapper/root"), LineRoot::Unnamed);
        assert_eq!(KernelCommandLine::parse(&format!("usrhash={hash}")).effects.usr, Some(expected));
    }

    #[test]
    fn what_kiln_does_not_apply_is_kept() {
        for word in [
            "ostree=/ostree/boot.1/os/1/0",
            "root=live:CDLABEL=x",
            "root=tmpfs",
            "root=/dev/nfs",
            "boot=live",
            "overlayroot=tmpfs",
            "systemd.volatile=overlay",
            "systemd.mount-extra=/dev/vda2:/srv",
            "systemd.mask=home.mount",
            "fstab=no",
            "mount.usr=tmpfs",
            "rootflags=subvol=@",
        ] {
            assert_eq!(KernelCommandLine::parse(&format!("ro {word} quiet")).effects.unapplied, [word]);
        }
        let plain =
            "BOOT_IMAGE=/vmlinuz root=UUID=ab ro boot=UUID=ab overlayroot=disabled systemd.volatile=no quiet splash";
        assert!(KernelCommandLine::parse(plain).effects.unapplied.is_empty());
        assert!(KernelCommandLine::parse("systemd.gpt_auto=0").effects.ignores_types);
        assert_eq!(KernelCommandLine::parse("mount.usr=/dev/vda2").effects.usr, Some(DeviceName::Partition(2)));
    }
}
