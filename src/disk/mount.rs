//! Mounts on a root the file systems that a guest mounts when it boots from it, and finds what is missing.
//!
//! Sources: fstab(5) and systemd-fstab-generator(8), systemd.mount(5), systemd-gpt-auto-generator(8). A mount point of the
//! table is mounted after those that contain it, whatever the order of the lines.

use super::boot_entry::BootEffects;
use super::gap::{TreeGap, VolumeKind};
use super::guest_files::TreeFiles;
use super::inventory::{DiskVolume, VolumeAccess, may_be_hidden};
use super::partition::PartitionRole;
use super::tree::{Tree, TreeError};
use crate::wire::boot_mount::FstabCover;
use crate::wire::boot_mount::{BootMount, MountPolicy};
use crate::wire::boot_mounts::{BootPlan, ESP_TARGETS, read_boot_plan};
use crate::wire::device_name::DeviceName;
use crate::wire::fstab::{self, FstabEntry};
use crate::wire::mount_unit::TooManyUnits;

/// The largest table of mounts in bytes. A table is usually a page of text.
pub(super) const MAX_TABLE: u64 = 1 << 20;
/// The most mounts that are planned.
const MAX_MOUNTS: usize = 4096;
/// The types of partitions that are mounted without being named, and their mount points.
const BY_TYPE: [(PartitionRole, &[u8]); 6] = [
    (PartitionRole::Usr, b"/usr"),
    (PartitionRole::Home, b"/home"),
    (PartitionRole::Srv, b"/srv"),
    (PartitionRole::Var, b"/var"),
    (PartitionRole::VarTmp, b"/var/tmp"),
    (PartitionRole::ExtendedBoot, b"/boot"),
];
/// The folders in which generators replace those of systemd (systemd.generator(7)).
const GENERATOR_FOLDERS: [&str; 2] = ["/etc/systemd/system-generators", "/usr/local/lib/systemd/system-generators"];

/// A mount that the guest makes.
#[derive(Debug, Clone)]
struct PlannedMount {
    device: DeviceName,
    target: Vec<u8>,
    policy: MountPolicy,
    /// A directory of the file system is mounted, not its root.
    is_part: bool,
}

/// Mounts everything that the guest mounts.
///
/// # Errors
/// When the files that determine the mounts cannot be read, or are larger than kiln reads.
pub(super) fn mount_all<'c>(
    tree: &mut Tree<'c>,
    volumes: &mut [DiskVolume<'c>],
    effects: &BootEffects,
) -> Result<(), TreeError> {
    let table = tree.read("/etc/fstab", MAX_TABLE)?.unwrap_or_default();
    // Units are in /usr, which is therefore mounted first.
    let usr = fstab::mounts(&table).into_iter().filter(|mount| mount.target == b"/usr");
    mount_usr(tree, volumes, usr.map(PlannedMount::from).collect(), effects);
    let BootPlan { mut mounts, masked } = read_plan(tree, &table)?;
    mounts.retain(|mount| mount.target != b"/usr");
    let covers: Vec<FstabCover> =
        mounts.iter().filter(|mount| mount.policy.may_be_made()).filter_map(BootMount::cover).collect();
    let (unwanted, mounts): (Vec<BootMount>, Vec<BootMount>) =
        mounts.into_iter().partition(|mount| mount.policy == MountPolicy::Unwanted);
    let mut planned: Vec<PlannedMount> = mounts.iter().filter_map(FstabEntry::new).map(PlannedMount::from).collect();
    tree.add_gaps(unwanted.iter().filter_map(|mount| find_undecided(volumes, mount)));
    let ignores_types = effects.ignores_types || is_generator_replaced(tree);
    if !ignores_types {
        let typed = find_typed(tree, volumes, &planned, &masked);
        planned.extend(typed);
    }
    if planned.len() > MAX_MOUNTS {
        return Err(TreeError::TooMuch("more mounts"));
    }
    planned.sort_by_cached_key(|mount| depth(tree, &mount.target));
    for mount in &planned {
        mount_planned(tree, volumes, mount);
    }
    if !ignores_types {
        mount_esp(tree, volumes, &planned, &masked);
    }
    tree.add_gaps(covers.into_iter().map(|FstabCover { source, target }| TreeGap::Covered { source, target }));
    add_boot_gaps(tree, effects)?;
    find_left_over(tree, volumes);
    tree.find_unclean();
    Ok(())
}

/// Reads the mounts of a boot from the files of a tree.
fn read_plan(tree: &Tree<'_>, table: &[u8]) -> Result<BootPlan, TreeError> {
    let files = TreeFiles::new(tree, MAX_TABLE);
    let plan = read_boot_plan(&files, table).map_err(|TooManyUnits| TreeError::TooMuch("more mount units"));
    files.into_failure().map_or(plan, Err)
}

/// Returns whether the administrator has masked or replaced the generator that mounts partitions by their types.
fn is_generator_replaced(tree: &Tree<'_>) -> bool {
    GENERATOR_FOLDERS.iter().any(|folder| tree.has_name(folder, b"systemd-gpt-auto-generator"))
}

/// Adds a gap for each option of the boot entry that changes the tree and that kiln does not apply.
fn add_boot_gaps(tree: &mut Tree<'_>, effects: &BootEffects) -> Result<(), TreeError> {
    let has_option = effects.unapplied.iter().any(|option| option.starts_with("ostree="));
    if !has_option && tree.has_directory("/ostree/deploy")? {
        tree.add_gaps([TreeGap::Deployment]);
    }
    tree.add_gaps(effects.unapplied.iter().map(|option| TreeGap::BootOption { option: option.clone() }));
    Ok(())
}

impl PlannedMount {
    /// Plans the mount of a whole file system without which a boot fails.
    fn required(device: DeviceName, target: &[u8]) -> Self {
        Self { device, target: target.to_vec(), policy: MountPolicy::Required, is_part: false }
    }
}

impl From<FstabEntry> for PlannedMount {
    fn from(entry: FstabEntry) -> Self {
        Self { device: entry.device, target: entry.target, policy: entry.policy, is_part: entry.is_part }
    }
}

/// Returns how many directories a mount point is nested in, with links resolved.
fn depth(tree: &Tree<'_>, target: &[u8]) -> usize {
    let path = tree.canonical(target).unwrap_or_else(|| target.to_vec());
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).count()
}

/// Mounts `/usr`: the boot entry takes precedence over the table, since the initrd mounts `/usr` before the table is read.
fn mount_usr<'c>(
    tree: &mut Tree<'c>,
    volumes: &mut [DiskVolume<'c>],
    mut named: Vec<PlannedMount>,
    effects: &BootEffects,
) {
    if let Some(device) = &effects.usr {
        named = vec![PlannedMount::required(device.clone(), b"/usr")];
    }
    if named.is_empty() && !effects.ignores_types && tree.is_empty_directory(b"/usr") {
        named.extend(plan_typed(volumes, PartitionRole::Usr, b"/usr"));
    }
    for mount in &named {
        mount_planned(tree, volumes, mount);
    }
}

/// Returns the gap of a mount that names a partition of this disk, though it is not certain that a boot makes it.
fn find_undecided(volumes: &[DiskVolume<'_>], mount: &BootMount) -> Option<TreeGap> {
    let device = mount.device()?;
    let reason = mount.policy.doubt()?;
    let volume = volumes.iter().find(|volume| volume.answers(&device))?.describe();
    Some(TreeGap::Undecided { volume, target: mount.target.clone(), reason })
}

/// Returns the mounts that the types of partitions imply, if nothing else names the mount point and its directory is empty.
/// Masked units are not started.
fn find_typed(
    tree: &mut Tree<'_>,
    volumes: &mut [DiskVolume<'_>],
    planned: &[PlannedMount],
    masked: &[Vec<u8>],
) -> Vec<PlannedMount> {
    let mut found = Vec::new();
    for (role, target) in BY_TYPE.into_iter().filter(|(_, target)| !masked.iter().any(|path| path == target)) {
        let is_free = planned.iter().all(|mount| mount.target != target) && tree.is_empty_directory(target);
        let Some(mount) = plan_typed(volumes, role, target).filter(|_| is_free) else { continue };
        match undecided_reason(tree, role) {
            Some(reason) => leave_undecided(tree, volumes, &mount, reason),
            None => found.push(mount),
        }
    }
    found
}

/// Returns why it is not certain that the guest mounts a partition by its type.
fn undecided_reason(tree: &Tree<'_>, role: PartitionRole) -> Option<&'static str> {
    if role == PartitionRole::Var {
        return Some("that depends on the machine ID");
    }
    let has_other_init = tree.has_name("/sbin", b"init") || tree.has_name("/", b"init");
    let has_systemd = ["/usr/lib/systemd", "/lib/systemd"].iter().any(|folder| tree.has_name(folder, b"systemd"));
    (has_other_init && !has_systemd).then_some("systemd would mount it, but is not installed")
}

fn leave_undecided(tree: &mut Tree<'_>, volumes: &mut [DiskVolume<'_>], mount: &PlannedMount, reason: &'static str) {
    for volume in volumes.iter_mut().filter(|volume| volume.answers(&mount.device)) {
        volume.take();
        let gap = TreeGap::Undecided { volume: volume.describe(), target: mount.target.clone(), reason };
        tree.add_gaps([gap]);
    }
}

/// Plans to mount the first partition of this type that is not in use.
fn plan_typed(volumes: &[DiskVolume<'_>], role: PartitionRole, target: &[u8]) -> Option<PlannedMount> {
    let free = volumes.iter().filter(|volume| volume.partition.mounts_itself() && !volume.is_used());
    let number = free.map(|volume| &volume.partition).find(|partition| partition.role() == role)?.number;
    Some(PlannedMount::required(DeviceName::Partition(number), target))
}

/// Mounts the volume that a mount names, or adds the gap of what is missing.
fn mount_planned<'c>(tree: &mut Tree<'c>, volumes: &mut [DiskVolume<'c>], mount: &PlannedMount) {
    if mount.policy == MountPolicy::Manual {
        return;
    }
    let found: Vec<usize> = (0..volumes.len()).filter(|index| volumes[*index].answers(&mount.device)).collect();
    match found[..] {
        [] => tree.add_gaps(find_unanswered(volumes, mount)),
        [index] if let Some(reason) = mount.policy.doubt() => {
            volumes[index].take();
            let volume = volumes[index].describe();
            tree.add_gaps([TreeGap::Undecided { volume, target: mount.target.clone(), reason }]);
        }
        [index] if mount.is_part => {
            volumes[index].take();
            tree.add_gaps([TreeGap::Part { volume: volumes[index].describe(), target: mount.target.clone() }]);
        }
        [index] => mount_volume(tree, &mut volumes[index], &mount.target),
        [first, ..] => {
            let reason = "another partition has the same name";
            let volume = volumes[first].describe();
            tree.add_gaps([TreeGap::Undecided { volume, target: mount.target.clone(), reason }]);
        }
    }
}

/// Returns the gap of a mount whose device is on no partition. A guest boots without an optional one, unless a volume that
/// kiln does not read contains it.
fn find_unanswered(volumes: &[DiskVolume<'_>], mount: &PlannedMount) -> Option<TreeGap> {
    let is_missing = mount.policy == MountPolicy::Required || may_be_hidden(volumes);
    is_missing.then(|| TreeGap::Unanswered { source: mount.device.to_string(), target: mount.target.clone() })
}

fn mount_volume<'c>(tree: &mut Tree<'c>, volume: &mut DiskVolume<'c>, target: &[u8]) {
    let about = volume.describe();
    let target = target.to_vec();
    let has_directory = tree.canonical(&target).is_some();
    let gap = match volume.take() {
        VolumeAccess::Readable(mounted) if has_directory => return tree.mount(&target, mounted),
        VolumeAccess::Readable(_) => TreeGap::NoMountPoint { volume: about, target },
        VolumeAccess::Used if tree.has_mounted(volume.partition.number) => {
            TreeGap::Undecided { volume: about, target, reason: "it is mounted elsewhere as well" }
        }
        VolumeAccess::Refused(_) | VolumeAccess::Foreign | VolumeAccess::Used => {
            TreeGap::Unreadable { volume: about, target: Some(target) }
        }
    };
    tree.add_gaps([gap]);
}

/// Mounts an EFI system partition that nothing names, by convention.
fn mount_esp<'c>(tree: &mut Tree<'c>, volumes: &mut [DiskVolume<'c>], planned: &[PlannedMount], masked: &[Vec<u8>]) {
    let esp = volumes.iter_mut().find(|volume| {
        volume.partition.role() == PartitionRole::Esp && volume.kind == VolumeKind::Fat && volume.tree().is_some()
    });
    let is_free =
        |target: &&[u8]| planned.iter().all(|mount| mount.target != *target) && tree.has_free_directory(target);
    let unmasked = ESP_TARGETS.into_iter().filter(|target| !masked.iter().any(|path| path == target));
    let target = unmasked.into_iter().find(is_free);
    if let (Some(target), Some(esp)) = (target, esp) {
        mount_volume(tree, esp, target);
    }
}

/// Adds a gap for every volume that nothing mounts. Volumes that may contain other file systems are left out if one of those
/// is missing, and ZFS mounts itself.
fn find_left_over(tree: &mut Tree<'_>, volumes: &[DiskVolume<'_>]) {
    let is_missing = tree.gaps().iter().any(|gap| matches!(gap, TreeGap::Unanswered { .. }));
    let left = volumes.iter().filter(|volume| volume.is_mountable() && !volume.is_used());
    let gaps = left.filter_map(|volume| match volume.kind {
        VolumeKind::Zfs => Some(TreeGap::Unreadable { volume: volume.describe(), target: None }),
        kind if is_missing && kind.may_contain_others() => None,
        _ => Some(TreeGap::LeftOver { volume: volume.describe() }),
    });
    tree.add_gaps(gaps);
}
