//! A mount that a guest makes when it boots, by a line of its `/etc/fstab` or by a unit of systemd.

use super::code::{Code, DecodeError, Fields, coded_struct};
use super::device_name::DeviceName;

/// Types of file systems that show files of other directories.
const OVERLAYS: [&str; 8] =
    ["overlay", "overlayfs", "aufs", "unionfs", "fuse.overlayfs", "fuse.unionfs", "fuse.bindfs", "fuse.mergerfs"];

/// The condition under which a boot makes a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountPolicy {
    /// A boot makes the mount, and fails without it.
    Required,
    /// A boot makes the mount if it can (`nofail`), or when its path is accessed (an automount).
    Optional,
    /// A boot does not make the mount (`noauto`).
    Manual,
    /// The mount's unit is not enabled.
    Unwanted,
    /// The mount is needed by a unit that may not be started.
    RequiredElsewhere,
    /// The table has another line for the mount point.
    Repeated,
}

/// All policies, in the order of their codes.
const POLICIES: [MountPolicy; 6] = [
    MountPolicy::Required,
    MountPolicy::Optional,
    MountPolicy::Manual,
    MountPolicy::Unwanted,
    MountPolicy::RequiredElsewhere,
    MountPolicy::Repeated,
];

impl MountPolicy {
    /// Returns whether every boot makes the mount if it can.
    #[must_use]
    pub fn is_made(self) -> bool {
        matches!(self, MountPolicy::Required | MountPolicy::Optional)
    }

    /// Returns whether a boot may make the mount.
    #[must_use]
    pub fn may_be_made(self) -> bool {
        !matches!(self, MountPolicy::Manual | MountPolicy::Unwanted)
    }

    /// Returns why it is not certain whether a boot makes the mount; `None` if it is.
    #[must_use]
    pub fn doubt(self) -> Option<&'static str> {
        match self {
            MountPolicy::Required | MountPolicy::Optional | MountPolicy::Manual => None,
            MountPolicy::Unwanted => Some("its mount unit is not enabled"),
            MountPolicy::RequiredElsewhere => Some("a unit needs it that may not be started"),
            MountPolicy::Repeated => Some("the table of mounts has two lines for it"),
        }
    }
}

impl Code for MountPolicy {
    fn put(&self, out: &mut Vec<u8>) {
        let code = POLICIES.iter().position(|policy| policy == self).unwrap_or_default();
        u8::try_from(code).unwrap_or_default().put(out);
    }

    fn get(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let code = u8::get(fields)?;
        POLICIES.get(usize::from(code)).copied().ok_or(DecodeError::Unknown("mount policy", code))
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

coded_struct! {
    /// A mount of a guest's boot, from a line of the table or a unit.
    BootMount {
        /// The mount point: absolute, and not the root.
        target: Vec<u8>,
        /// The device or directory that is mounted, as the table or the unit names it.
        source: Vec<u8>,
        /// The type of the file system; may be empty, or `auto`.
        kind: String,
        /// The options, separated by commas.
        options: String,
        /// Whether a boot makes the mount.
        policy: MountPolicy,
    }
}

impl BootMount {
    /// Returns whether this is a bind mount of a directory, not the mount of a device.
    #[must_use]
    pub fn is_bind(&self) -> bool {
        self.has_option("bind") || self.has_option("rbind")
    }

    /// Returns whether an option without a value is set.
    #[must_use]
    pub fn has_option(&self, name: &str) -> bool {
        split_options(&self.options).any(|option| option == name)
    }

    /// Returns whether a boot mounts something here together with this mount, since a whole tree is bound.
    #[must_use]
    pub fn brings(&self, target: &[u8]) -> bool {
        let below = target.strip_prefix(self.target.as_slice());
        let is_tree = self.policy.is_made() && self.has_option("rbind");
        is_tree && below.is_some_and(|rest| rest.starts_with(b"/"))
    }

    /// Returns the value of an option.
    #[must_use]
    pub fn option(&self, key: &str) -> Option<&str> {
        option_value(&self.options, key)
    }

    /// Returns the block device that is mounted. A bind mount has none, since files are not listed twice; nor has a file
    /// system that is on no disk, since its files are not in an image.
    #[must_use]
    pub fn device(&self) -> Option<DeviceName> {
        if self.is_bind() { None } else { DeviceName::parse(&String::from_utf8_lossy(&self.source)) }
    }

    /// Returns whether a directory of the file system is mounted, and not its root.
    #[must_use]
    pub fn is_part(&self) -> bool {
        self.option("X-mount.subdir").is_some()
    }

    /// Returns which directory the mount hides with other files of the tree. A directory that is bound to itself hides
    /// nothing.
    #[must_use]
    pub fn cover(&self) -> Option<FstabCover> {
        let source = self.is_bind().then(|| without_slashes(&self.source));
        let hides = match &source {
            Some(source) => *source != self.target,
            None => is_overlay(&self.kind),
        };
        hides.then(|| FstabCover { source, target: self.target.clone() })
    }
}

/// Returns the last value of an option in a comma-separated list.
#[must_use]
pub fn option_value<'t>(options: &'t str, key: &str) -> Option<&'t str> {
    split_options(options).filter_map(|option| option.strip_prefix(key)?.strip_prefix('=')).next_back()
}

fn split_options(options: &str) -> impl DoubleEndedIterator<Item = &str> {
    options.split(',').map(str::trim)
}

/// Returns whether a file system of this type shows files of other directories.
#[must_use]
pub fn is_overlay(kind: &str) -> bool {
    OVERLAYS.contains(&kind)
}

/// Removes repeated slashes, and slashes at the end.
#[must_use]
pub fn without_slashes(path: &[u8]) -> Vec<u8> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    names.flat_map(|name| [b"/", name].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_as_it_was_written() {
        for policy in POLICIES {
            let mut out = Vec::new();
            policy.put(&mut out);
            assert_eq!(MountPolicy::get(&mut Fields::new(&out)), Ok(policy));
        }
        assert!(MountPolicy::get(&mut Fields::new(&[9])).is_err());
    }
}
