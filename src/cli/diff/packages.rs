//! Packages that differ between two images.

use std::cmp::Ordering;

use serde::Serialize;

use crate::disk::packages::{PackageType, version};
use crate::store::manifest::ManifestPackage;

/// A package that differs between the two, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PackageChange {
    pub(super) how: PackageChangeKind,
    pub(super) old: Option<ManifestPackage>,
    pub(super) new: Option<ManifestPackage>,
}

/// Kind of a package's change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PackageChangeKind {
    Added,
    Removed,
    Up,
    Down,
    /// Other versions, whose order is not known.
    Changed,
}

/// Returns the packages whose versions differ, by name and architecture.
pub(super) fn package_changes(old: &[ManifestPackage], new: &[ManifestPackage]) -> Vec<PackageChange> {
    // Several versions of one name may be installed together, as kernels are: whole packages are compared first.
    let mut added = only_in(new, old);
    let mut changes = Vec::new();
    for package in only_in(old, new) {
        let place = added.iter().position(|other| other.name == package.name && other.arch == package.arch);
        changes.push((Some(package), place.map(|place| added.remove(place))));
    }
    changes.extend(added.into_iter().map(|package| (None, Some(package))));
    changes.sort_by(|one, other| one.0.as_ref().or(one.1.as_ref()).cmp(&other.0.as_ref().or(other.1.as_ref())));
    changes.into_iter().map(|(old, new)| PackageChange { how: how(old.as_ref(), new.as_ref()), old, new }).collect()
}

fn only_in(these: &[ManifestPackage], others: &[ManifestPackage]) -> Vec<ManifestPackage> {
    these.iter().filter(|package| !others.contains(package)).cloned().collect()
}

fn how(old: Option<&ManifestPackage>, new: Option<&ManifestPackage>) -> PackageChangeKind {
    let (Some(old), Some(new)) = (old, new) else {
        return if new.is_some() { PackageChangeKind::Added } else { PackageChangeKind::Removed };
    };
    let kind = old.kind.as_deref().filter(|kind| new.kind.as_deref() == Some(kind));
    match kind.and_then(PackageType::named).and_then(|kind| version::compare(kind, &old.version, &new.version)) {
        Some(Ordering::Less) => PackageChangeKind::Up,
        Some(Ordering::Greater) => PackageChangeKind::Down,
        _ => PackageChangeKind::Changed,
    }
}
