//! Decides which file system of a disk is the root, by evidence alone.
//!
//! A candidate is a file system that kiln reads and that has `/etc/os-release`, `/etc/fstab` or `/sbin/init`. The evidence,
//! in order of strength: its own `/etc/fstab`, which names the root; the `root=` of the boot entry; the type of its
//! partition. Neither size nor order decides anything, and if the evidence points to a file system that kiln does not read,
//! no other is chosen instead.

use std::collections::BTreeSet;

use super::boot_entry::{BootEffects, BootRoot, find_boot_choice};
use super::gap::VolumeKind;
use super::inventory::{DiskVolume, VolumeAccess, may_be_hidden};
use super::mount::MAX_TABLE;
use super::partition::PartitionRole;
use super::tree::{Tree, TreeError};
use crate::wire::device_name::DeviceName;
use crate::wire::fstab::{self, FstabEntry};

/// Names that only a root has, each with its directory. The last name is not followed: the target of a link may be on
/// another file system. A `/sbin/init` alone is also in a file system for `/usr`, which has no `/etc`.
const SIGNS: [(&str, &[u8]); 4] = [("/etc", b"os-release"), ("/etc", b"fstab"), ("/sbin", b"init"), ("/", b"init")];

/// The statement of a candidate's `/etc/fstab` about the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RootClaim {
    /// It names its own file system.
    Itself,
    /// It names another volume.
    Other(usize),
    /// It names a device that is not on the disk, but may be inside a volume of it.
    Hidden,
    /// It names no usable device.
    Nothing,
}

/// A file system that could be the root.
#[derive(Debug, Clone, Copy)]
struct RootCandidate {
    index: usize,
    claim: RootClaim,
}

/// The root, and the further effects of its boot entry.
#[derive(Debug)]
pub(super) struct RootChoice {
    pub(super) index: usize,
    pub(super) effects: BootEffects,
}

/// Returns the root and the effects of its boot entry.
///
/// # Errors
/// When kiln cannot read the root, several file systems could be it, or none.
pub(super) fn choose_root(volumes: &mut [DiskVolume<'_>]) -> Result<RootChoice, TreeError> {
    let choice = locate_root(volumes)?;
    match &volumes[choice.index].access {
        VolumeAccess::Readable(_) => Ok(choice),
        _ => Err(unreadable_root(volumes, choice.index)),
    }
}

/// Returns the root, whether kiln can read it or not, and the effects of its boot entry.
///
/// # Errors
/// When several file systems could be the root, or none, or it is inside a volume that kiln does not read.
pub(super) fn locate_root(volumes: &[DiskVolume<'_>]) -> Result<RootChoice, TreeError> {
    let candidates = find_candidates(volumes);
    let boot = find_boot_choice(volumes);
    let index = match &boot.root {
        BootRoot::Volume(index) => check_boot_root(volumes, &candidates, *index)?,
        BootRoot::Hidden if !claims_itself(&candidates) => return Err(hidden_root(volumes)),
        BootRoot::Undecided(named) => choose_undecided(volumes, &candidates, named)?,
        BootRoot::Hidden | BootRoot::Nothing => choose_without_boot(volumes, &candidates)?,
    };
    Ok(RootChoice { index, effects: boot.effects(&volumes[index]) })
}

fn find_candidates(volumes: &[DiskVolume<'_>]) -> Vec<RootCandidate> {
    let numbered = volumes.iter().enumerate().filter(|(_, volume)| volume.kind == VolumeKind::Ext4);
    let signed = numbered.filter(|(_, volume)| volume.tree().is_some_and(has_signs));
    signed.map(|(index, _)| RootCandidate { index, claim: read_claim(volumes, index) }).collect()
}

fn has_signs(tree: &Tree<'_>) -> bool {
    let has_etc = tree.has_directory("/etc").unwrap_or(false);
    has_etc && SIGNS.iter().any(|(folder, name)| tree.has_name(folder, name))
}

/// Reads a candidate's claim about the root. One that is too damaged to be read claims nothing; reading it later reports the
/// error.
fn read_claim(volumes: &[DiskVolume<'_>], index: usize) -> RootClaim {
    let Some(name) = fstab::root_device(&read_table(&volumes[index])) else { return RootClaim::Nothing };
    if volumes[index].answers(&name) {
        return RootClaim::Itself;
    }
    match volumes.iter().position(|volume| volume.answers(&name)) {
        Some(other) => RootClaim::Other(other),
        None if may_be_hidden(volumes) => RootClaim::Hidden,
        None => RootClaim::Nothing,
    }
}

/// Reads the table of mounts of a candidate; one that is missing or too damaged to be read is empty.
fn read_table(candidate: &DiskVolume<'_>) -> Vec<u8> {
    candidate.tree().and_then(|tree| tree.read("/etc/fstab", MAX_TABLE).ok().flatten()).unwrap_or_default()
}

/// Returns the indexes of the candidates with this claim.
fn with_claim(candidates: &[RootCandidate], claim: RootClaim) -> impl Iterator<Item = usize> {
    candidates.iter().filter(move |candidate| candidate.claim == claim).map(|candidate| candidate.index)
}

fn claims_itself(candidates: &[RootCandidate]) -> bool {
    with_claim(candidates, RootClaim::Itself).next().is_some()
}

/// Applies the boot entry, unless the only candidate that names itself is another one.
fn check_boot_root(
    volumes: &[DiskVolume<'_>],
    candidates: &[RootCandidate],
    booted: usize,
) -> Result<usize, TreeError> {
    let agrees = with_claim(candidates, RootClaim::Itself).any(|index| index == booted);
    if agrees || !claims_itself(candidates) {
        return Ok(booted);
    }
    Err(several_roots(volumes, candidates.iter().map(|candidate| candidate.index).chain([booted])))
}

/// Chooses the root if the boot loader may boot one of several, or one that is not known: only a candidate without a rival.
fn choose_undecided(
    volumes: &[DiskVolume<'_>],
    candidates: &[RootCandidate],
    named: &[usize],
) -> Result<usize, TreeError> {
    let silent: Vec<usize> = candidates.iter().map(|candidate| candidate.index).collect();
    let has_rivals = !silent.is_empty() && !claims_itself(candidates);
    let rivals = (0..volumes.len()).filter(|index| has_rivals && is_rival(volumes, &silent, *index));
    let among: BTreeSet<usize> = silent.iter().chain(named).copied().chain(rivals).collect();
    if among.len() > 1 {
        return Err(several_roots(volumes, among.into_iter()));
    }
    choose_without_boot(volumes, candidates)
}

fn choose_without_boot(volumes: &[DiskVolume<'_>], candidates: &[RootCandidate]) -> Result<usize, TreeError> {
    let itself: Vec<usize> = with_claim(candidates, RootClaim::Itself).collect();
    if !itself.is_empty() {
        return choose_one(volumes, &itself);
    }
    if let Some(other) = choose_other(volumes, candidates) {
        return other;
    }
    if with_claim(candidates, RootClaim::Hidden).next().is_some() {
        return Err(hidden_root(volumes));
    }
    let silent: Vec<usize> = with_claim(candidates, RootClaim::Nothing).collect();
    if silent.is_empty() { choose_without_candidate(volumes) } else { choose_silent(volumes, &silent) }
}

/// Follows candidates that name another root, such as a rescue system or a copy. Nothing is decided if one of them names
/// none.
fn choose_other(volumes: &[DiskVolume<'_>], candidates: &[RootCandidate]) -> Option<Result<usize, TreeError>> {
    let others = candidates.iter().filter_map(|candidate| match candidate.claim {
        RootClaim::Other(other) => Some(other),
        _ => None,
    });
    let others: Vec<usize> = others.collect();
    if let Some(unreadable) = others.iter().find(|other| volumes[**other].tree().is_none()) {
        return Some(Ok(*unreadable));
    }
    let is_alone = candidates.iter().all(|candidate| matches!(candidate.claim, RootClaim::Other(_)));
    let named = candidates.iter().map(|candidate| candidate.index).chain(others.iter().copied());
    (is_alone && !others.is_empty()).then(|| Err(several_roots(volumes, named)))
}

/// Chooses among candidates that do not name the root, and volumes that kiln does not read but that could be the root as
/// well.
fn choose_silent(volumes: &[DiskVolume<'_>], silent: &[usize]) -> Result<usize, TreeError> {
    let rivals = (0..volumes.len()).filter(|index| is_rival(volumes, silent, *index));
    let among: Vec<usize> = silent.iter().copied().chain(rivals).collect();
    choose_one(volumes, &among)
}

/// Returns whether a volume that kiln does not read could be the root as well as the candidates: none of them mounts it
/// elsewhere, nor does its type imply another mount point.
fn is_rival(volumes: &[DiskVolume<'_>], silent: &[usize], index: usize) -> bool {
    let volume = &volumes[index];
    let could_be = volume.tree().is_none() && may_be_root(volume);
    let has_role = !matches!(volume.partition.role(), PartitionRole::Root | PartitionRole::Other);
    let is_mounted = silent.iter().any(|candidate| mounts_it(&volumes[*candidate], volume));
    could_be && !has_role && !is_mounted
}

/// Returns whether the root of a Linux system can be on this volume.
fn may_be_root(volume: &DiskVolume<'_>) -> bool {
    use VolumeKind::{Exfat, Fat, Iso9660, Ntfs};
    volume.is_mountable() && !matches!(volume.kind, Fat | Ntfs | Exfat | Iso9660)
}

/// Returns whether the table of a candidate mounts a volume, or a device that may be inside it.
fn mounts_it(candidate: &DiskVolume<'_>, volume: &DiskVolume<'_>) -> bool {
    let mounts = fstab::mounts(&read_table(candidate));
    mounts.iter().any(|FstabEntry { device, .. }| {
        volume.answers(device) || volume.may_contain_others() && matches!(device, DeviceName::Device(_))
    })
}

/// Returns the only one of these volumes, or the only one of them that has the type of a root.
fn choose_one(volumes: &[DiskVolume<'_>], among: &[usize]) -> Result<usize, TreeError> {
    let typed: Vec<usize> = typed_roots(volumes).into_iter().filter(|index| among.contains(index)).collect();
    match (among, &typed[..]) {
        ([index], _) | (_, [index]) => Ok(*index),
        _ => Err(several_roots(volumes, among.iter().copied())),
    }
}

/// Chooses the root if no file system has the names of a root: the one whose partition has the type of a root, or the only
/// one on the disk.
fn choose_without_candidate(volumes: &[DiskVolume<'_>]) -> Result<usize, TreeError> {
    if let [index] = typed_roots(volumes)[..] {
        return Ok(index);
    }
    let others: Vec<usize> = (0..volumes.len()).filter(|index| may_be_root(&volumes[*index])).collect();
    match others[..] {
        [index] => Ok(index),
        [] => Err(TreeError::NoRoot),
        _ => Err(no_readable_root(volumes, &others)),
    }
}

fn typed_roots(volumes: &[DiskVolume<'_>]) -> Vec<usize> {
    (0..volumes.len()).filter(|index| volumes[*index].partition.role() == PartitionRole::Root).collect()
}

/// Returns the error that names the possible roots if no file system that kiln reads has the names of one.
fn no_readable_root(volumes: &[DiskVolume<'_>], among: &[usize]) -> TreeError {
    let unreadable: Vec<_> = among.iter().filter(|index| volumes[**index].tree().is_none()).collect();
    if unreadable.is_empty() {
        return TreeError::NoRoot;
    }
    TreeError::UnreadableRoot(unreadable.into_iter().map(|index| volumes[*index].describe()).collect())
}

/// Returns the error that names the volumes in which the root may be.
fn hidden_root(volumes: &[DiskVolume<'_>]) -> TreeError {
    let hiding = volumes.iter().filter(|volume| volume.may_contain_others());
    TreeError::UnreadableRoot(hiding.map(DiskVolume::describe).collect())
}

fn unreadable_root(volumes: &mut [DiskVolume<'_>], index: usize) -> TreeError {
    let about = volumes[index].describe();
    match volumes[index].take() {
        VolumeAccess::Refused(error) => error.into(),
        _ => TreeError::UnreadableRoot(vec![about]),
    }
}

fn several_roots(volumes: &[DiskVolume<'_>], indexes: impl Iterator<Item = usize>) -> TreeError {
    let mut indexes: Vec<usize> = indexes.collect();
    indexes.sort_unstable();
    indexes.dedup();
    TreeError::SeveralRoots(indexes.into_iter().map(|index| volumes[index].describe()).collect())
}
