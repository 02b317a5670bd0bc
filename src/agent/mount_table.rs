//! The guest's mount table, and where on the image's disk the file systems in it are.
//!
//! Sources: proc(5), `/proc/pid/mountinfo`; the kernel's `Documentation/ABI` for `/sys/dev/block`, `/sys/block/*/slaves` and
//! `/sys/fs/btrfs`.
//!
//! File systems of other kinds (`/proc`, tmpfs, the seed, images behind loop devices, ...) are ignored, as if they were not
//! mounted: only the tree that the disk holds matters.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::RequestFailure;
use super::device::has_serial;
use super::sys::{major, minor};
use crate::wire::DISK_SERIAL;
use crate::wire::boot_mount::option_value;
use crate::wire::fstab::unescaped;
use crate::wire::mounts::DiskPartition;

/// The mount table of the calling process.
const TABLE_FILE: &str = "/proc/self/mountinfo";
/// The deepest nesting of devices that are composed of others.
const MAX_NESTING: usize = 8;
/// The most lines of a mount table. Linux allows a hundred thousand mounts; no guest has as many.
const MAX_LINES: usize = 10_000;
/// The size of a sector in `/sys`, in bytes, independent of the disk.
const SECTOR: u64 = 512;
/// File systems with anonymous device numbers, whose data is on block devices.
const ANONYMOUS: [&str; 3] = ["btrfs", "bcachefs", "zfs"];

/// Reads the mount table of the calling process.
///
/// # Errors
/// As [`parse`].
pub fn read_table() -> Result<Vec<MountLine>, RequestFailure> {
    let table = fs::read(TABLE_FILE).and_then(|text| parse(&text));
    table.map_err(RequestFailure::at(TABLE_FILE))
}

/// A line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountLine {
    /// Number of the mount.
    pub id: u32,
    /// Number of the mount that it is on.
    pub parent: u32,
    /// Device number of the file system.
    pub device: (u32, u32),
    /// The directory of the file system that is mounted.
    pub root: Vec<u8>,
    /// The mount point.
    pub target: Vec<u8>,
    /// Type of the file system.
    pub kind: String,
    /// The device or name that was mounted.
    pub source: Vec<u8>,
    /// The options of the file system.
    pub options: String,
}

impl MountLine {
    /// Returns the number of the mounted btrfs subvolume.
    pub fn subvolume(&self) -> Option<u64> {
        option_value(&self.options, "subvolid")?.parse().ok()
    }
}

/// Parses the content of `mountinfo`.
///
/// # Errors
/// When it has more lines than any guest needs.
pub fn parse(text: &[u8]) -> io::Result<Vec<MountLine>> {
    let lines: Vec<MountLine> = text.split(|byte| *byte == b'\n').filter_map(parse_line).take(MAX_LINES + 1).collect();
    if lines.len() <= MAX_LINES { Ok(lines) } else { Err(io::Error::other("too many mounts")) }
}

fn parse_line(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = parse_number(fields.next()?)?;
    let parent = parse_number(fields.next()?)?;
    let device = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = (device.0.parse().ok()?, device.1.parse().ok()?);
    let root = unescaped(fields.next()?);
    let target = unescaped(fields.next()?);
    let mut behind = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8_lossy(behind.next()?).into_owned();
    let source = unescaped(behind.next()?);
    let options = String::from_utf8_lossy(behind.next().unwrap_or_default()).into_owned();
    Some(MountLine { id, parent, device, root, target, kind, source, options })
}

fn parse_number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Returns the indices of the mounts that the tree of the disk consists of, the root first and each before what is mounted
/// on it: those of `lines` that are on the disk, without those that others cover. The result is empty if the root is not on
/// the disk.
pub fn visible(lines: &[MountLine], on_disk: &[bool]) -> Vec<usize> {
    let mut roots = (0..lines.len()).filter(|index| lines[*index].target == b"/");
    let root = roots.find(|index| {
        !lines.iter().any(|line| line.target == b"/" && line.parent == lines[*index].id && line.id != line.parent)
    });
    let Some(root) = root.filter(|root| on_disk[*root]) else { return Vec::new() };
    let by_id: HashMap<u32, usize> = lines.iter().enumerate().map(|(index, line)| (line.id, index)).collect();
    let mut children: HashMap<usize, Vec<usize>> = HashMap::new();
    for index in (0..lines.len()).filter(|index| on_disk[*index] && *index != root) {
        if let Some(below) = disk_below(index, lines, &by_id, on_disk) {
            children.entry(below).or_default().push(index);
        }
    }
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(index) = open.pop() {
        let on_it = children.remove(&index).unwrap_or_default();
        if let Some(cover) = on_it.iter().find(|child| lines[**child].target == lines[index].target) {
            open.push(*cover);
            continue;
        }
        found.push(index);
        open.extend(uncovered(&on_it, lines));
    }
    found
}

/// Returns the nearest mount of the disk below this one, skipping mounts that are not on the disk.
fn disk_below(index: usize, lines: &[MountLine], by_id: &HashMap<u32, usize>, on_disk: &[bool]) -> Option<usize> {
    let mut at = index;
    for _ in 0..lines.len() {
        at = *by_id.get(&lines[at].parent).filter(|parent| **parent != at)?;
        if on_disk[at] {
            return Some(at);
        }
    }
    None
}

/// Returns those of several mounts on one file system that none of the others covers.
fn uncovered(mounts: &[usize], lines: &[MountLine]) -> Vec<usize> {
    let mut left = mounts.to_vec();
    left.retain(|one| !mounts.iter().any(|other| is_below(&lines[*one].target, &lines[*other].target)));
    // The stack of mounts to place is emptied from its end.
    left.sort_by(|one, other| lines[*other].target.cmp(&lines[*one].target));
    left
}

fn is_below(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with(b"/"))
}

/// The place of a file system's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// Not on the disk of the image, or in a file on it.
    Elsewhere,
    /// On the disk of the image.
    Disk {
        /// The partitions that hold the data.
        partitions: Vec<DiskPartition>,
        /// The file system is on a partition directly, not on a mapped or composed device.
        is_plain: bool,
    },
}

/// Looks up devices in `/sys`.
#[derive(Debug)]
pub struct Devices {
    sys: PathBuf,
    known: HashMap<(u32, u32), Location>,
}

impl Default for Devices {
    fn default() -> Self {
        Self { sys: "/sys".into(), known: HashMap::new() }
    }
}

impl Devices {
    /// Returns the location of a mount's file system.
    pub fn locate(&mut self, line: &MountLine) -> Location {
        if let Some(location) = self.known.get(&line.device) {
            return location.clone();
        }
        let location = match line.device {
            (0, _) if ANONYMOUS.contains(&line.kind.as_str()) => self.locate_anonymous(line),
            (0, _) => Location::Elsewhere,
            device => self.locate_block(device),
        };
        self.known.insert(line.device, location.clone());
        location
    }

    /// Returns the location of a block device.
    pub fn locate_block(&self, (major, minor): (u32, u32)) -> Location {
        let Ok(device) = fs::canonicalize(self.sys.join(format!("dev/block/{major}:{minor}"))) else {
            return Location::Elsewhere;
        };
        let mut partitions = Vec::new();
        add_partitions(&device, MAX_NESTING, &mut partitions);
        let is_plain = below(&device).is_empty();
        if partitions.is_empty() { Location::Elsewhere } else { Location::Disk { partitions, is_plain } }
    }

    /// Returns the location of a file system that may span several devices. One that cannot be found counts as on the disk.
    fn locate_anonymous(&self, line: &MountLine) -> Location {
        let source = Path::new(OsStr::from_bytes(&line.source));
        let device = fs::metadata(source).ok().filter(|about| about.file_type().is_block_device());
        let folders = device.map(|device| self.members(major(device.rdev()), minor(device.rdev())));
        let mut partitions = Vec::new();
        for folder in folders.iter().flatten() {
            add_partitions(folder, MAX_NESTING, &mut partitions);
        }
        let is_elsewhere = folders.is_some_and(|folders| !folders.is_empty()) && partitions.is_empty();
        if is_elsewhere { Location::Elsewhere } else { Location::Disk { partitions, is_plain: false } }
    }

    /// Returns the folders in `/sys` of every device of the file system that this device belongs to.
    fn members(&self, major: u32, minor: u32) -> Vec<PathBuf> {
        let Ok(device) = fs::canonicalize(self.sys.join(format!("dev/block/{major}:{minor}"))) else {
            return Vec::new();
        };
        let file_systems = fs::read_dir(self.sys.join("fs/btrfs")).into_iter().flatten().flatten();
        let groups = file_systems.map(|file_system| folders_in(&file_system.path().join("devices")));
        let group = groups.into_iter().find(|devices| devices.contains(&device));
        group.unwrap_or_else(|| vec![device])
    }
}

/// Adds the partitions of the image's disk that a device consists of, or that it is itself.
fn add_partitions(device: &Path, depth: usize, partitions: &mut Vec<DiskPartition>) {
    let devices = below(device);
    for device in devices.iter().filter(|_| depth > 0) {
        add_partitions(device, depth - 1, partitions);
    }
    // The seed, and what kiln or a step has attached, have other serial numbers.
    if devices.is_empty() && disk_of(device).is_some_and(|disk| has_serial(disk, DISK_SERIAL)) {
        let start = read_number(&device.join("start")).unwrap_or(0);
        let length = read_number(&device.join("size")).unwrap_or(0);
        let number = read_number(&device.join("partition")).and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
        let partition =
            DiskPartition { number, start: start.saturating_mul(SECTOR), length: length.saturating_mul(SECTOR) };
        if !partitions.contains(&partition) {
            partitions.push(partition);
        }
    }
}

/// Returns the devices that a device of the device mapper, or a RAID, consists of.
fn below(device: &Path) -> Vec<PathBuf> {
    folders_in(&device.join("slaves"))
}

/// Returns the targets of the links in a folder.
fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::canonicalize(entry.path()).ok()).collect()
}

/// Returns the disk of a partition, or the device itself if it is a disk.
fn disk_of(device: &Path) -> Option<&Path> {
    if device.join("partition").exists() { device.parent() } else { Some(device) }
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
        23 22 0:21 / /sys rw - sysfs sysfs rw\n\
        24 22 254:15 / /boot/efi rw shared:9 - vfat /dev/vda15 rw,utf8\n\
        25 22 0:30 /@home /home rw - btrfs /dev/vda2 rw,subvolid=257,subvol=/@home\n\
        26 22 254:1 /srv /mnt\\040x rw shared:1 - ext4 /dev/vda1 rw\n\
        broken line\n";

    /// Lists the visible mounts of a table, given by number, parent and target; those of an odd number are on the disk.
    fn targets(mounts: &[(u32, u32, &str)]) -> Vec<String> {
        let line = |(id, parent, target): &(u32, u32, &str)| MountLine {
            id: *id,
            parent: *parent,
            device: (0, *id),
            root: b"/".to_vec(),
            target: target.as_bytes().to_vec(),
            kind: String::new(),
            source: Vec::new(),
            options: String::new(),
        };
        let lines: Vec<MountLine> = mounts.iter().map(line).collect();
        let on_disk: Vec<bool> = mounts.iter().map(|(id, ..)| id % 2 == 1).collect();
        let found = visible(&lines, &on_disk).into_iter();
        found.map(|index| format!("{}:{}", mounts[index].0, mounts[index].2)).collect()
    }

    #[test]
    fn a_mount_table_is_parsed_as_the_kernel_writes_it() {
        let lines = parse(TABLE).unwrap();
        assert_eq!(lines.len(), 5);
        assert_eq!((lines[2].device, lines[2].kind.as_str()), ((254, 15), "vfat"));
        assert_eq!((&lines[3].root[..], &lines[3].source[..]), (&b"/@home"[..], &b"/dev/vda2"[..]));
        assert_eq!((lines[3].subvolume(), lines[4].subvolume()), (Some(257), None));
        assert_eq!(lines[4].target, b"/mnt x");
        assert!(parse(&TABLE.repeat(MAX_LINES)).is_err());
    }

    #[test]
    fn mounts_come_in_the_order_in_which_they_nest() {
        let table = [(5, 3, "/boot/efi"), (3, 1, "/boot"), (1, 0, "/"), (7, 1, "/a"), (2, 1, "/proc")];
        assert_eq!(targets(&table), ["1:/", "7:/a", "3:/boot", "5:/boot/efi"]);
    }

    #[test]
    fn what_is_covered_is_not_visible() {
        // Mounted over /srv/data afterwards; over the same directory; over the root.
        assert_eq!(targets(&[(1, 0, "/"), (3, 1, "/srv/data"), (5, 1, "/srv")]), ["1:/", "5:/srv"]);
        assert_eq!(targets(&[(1, 0, "/"), (3, 1, "/srv"), (5, 3, "/srv"), (7, 3, "/srv/x")]), ["1:/", "5:/srv"]);
        assert_eq!(targets(&[(2, 0, "/"), (1, 2, "/"), (3, 1, "/srv")]), ["1:/", "3:/srv"], "as after an initramfs");
        assert_eq!(targets(&[(1, 0, "/"), (3, 1, "/srv"), (5, 1, "/srv-2")]), ["1:/", "3:/srv", "5:/srv-2"]);
    }

    #[test]
    fn other_file_systems_are_looked_through() {
        let automount = [(1, 0, "/"), (4, 1, "/boot"), (3, 4, "/boot")];
        assert_eq!(targets(&automount), ["1:/", "3:/boot"]);
        assert_eq!(targets(&[(1, 0, "/"), (3, 1, "/srv"), (4, 3, "/srv")]), ["1:/", "3:/srv"]);
        assert_eq!(targets(&[(2, 0, "/"), (3, 2, "/home")]), [""; 0], "an overlay as root");
        assert_eq!(targets(&[(1, 2, "/a"), (3, 1, "/b"), (2, 3, "/c")]), [""; 0], "a table that cannot be");
    }

    #[test]
    fn devices_are_followed_to_the_disk_of_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let sys = folder.path();
        let file = |path: &str, text: &str| {
            let path = sys.join("devices").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (disk, serial) in [("vda", "kiln-disk"), ("vdb", "kiln-seed")] {
            file(&format!("{disk}/serial"), serial);
            for part in [1, 15] {
                file(&format!("{disk}/{disk}{part}/partition"), &part.to_string());
                file(&format!("{disk}/{disk}{part}/start"), "2048\n");
                file(&format!("{disk}/{disk}{part}/size"), "8");
            }
        }
        fs::create_dir_all(sys.join("devices/dm-0/slaves")).unwrap();
        fs::create_dir_all(sys.join("devices/loop0/loop")).unwrap();
        fs::create_dir_all(sys.join("dev/block")).unwrap();
        let link =
            |from: &str, to: &str| std::os::unix::fs::symlink(sys.join("devices").join(to), sys.join(from)).unwrap();
        for (number, device) in
            [("1:0", "vda"), ("1:1", "vda/vda1"), ("2:1", "vdb/vdb1"), ("3:0", "dm-0"), ("4:0", "loop0")]
        {
            link(&format!("dev/block/{number}"), device);
        }
        link("devices/dm-0/slaves/vda15", "vda/vda15");
        link("devices/dm-0/slaves/vda1", "vda/vda1");
        let mut devices = Devices { sys: sys.to_owned(), known: HashMap::new() };
        let mut locate = |device, kind: &str| {
            let mut line = parse(TABLE).unwrap().remove(0);
            (line.device, line.kind) = (device, kind.into());
            devices.locate(&line)
        };
        let partition = |number, start, length| DiskPartition { number, start, length };
        let disk = |partitions: &[DiskPartition], is_plain| Location::Disk { partitions: partitions.into(), is_plain };
        assert_eq!(locate((1, 1), "ext4"), disk(&[partition(1, 1 << 20, 4096)], true));
        assert_eq!(locate((1, 0), "ext4"), disk(&[partition(0, 0, 0)], true));
        for device in [(2, 1), (4, 0), (9, 9), (0, 40)] {
            assert_eq!(locate(device, "ext4"), Location::Elsewhere, "{device:?}");
        }
        let Location::Disk { partitions, is_plain: false } = locate((3, 0), "xfs") else { panic!("a mapped device") };
        assert_eq!(partitions.len(), 2);
        assert_eq!(locate((0, 41), "zfs"), disk(&[], false), "on the disk, nobody knows where");
    }
}
