//! Finds the `.mount` units of systemd that a guest starts when it boots.
//!
//! Sources: systemd.unit(5) for where units are and which of two counts, systemd.mount(5) for what is in them, and
//! systemd-escape(1) for their names.

use std::collections::BTreeMap;

use super::tree::{Tree, TreeError};
use crate::wire::UNIT_FOLDERS;
use crate::wire::fstab::{self, DeviceName, FstabCover};

/// The folder whose units replace the mounts of the table; those of the others are replaced by it.
const ADMINISTRATORS: &str = UNIT_FOLDERS[0];
/// The longest unit that is read, bytes.
const MAX_UNIT: u64 = 64 << 10;
/// The most units that are read.
const MAX_UNITS: usize = 256;

/// A `.mount` unit that names a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MountUnit {
    pub(super) device: DeviceName,
    pub(super) target: Vec<u8>,
    pub(super) state: UnitState,
    /// A directory of the file system is mounted, not its root.
    pub(super) is_part: bool,
    /// It replaces what the table says of the same mount point.
    pub(super) replaces_table: bool,
}

/// What becomes of a unit when the guest boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UnitState {
    /// Something that is enabled wants it.
    Wanted,
    /// Nothing does, but another unit may require it.
    Unwanted,
}

/// The `.mount` units of a guest.
#[derive(Debug, Default)]
pub(super) struct MountUnits {
    pub(super) units: Vec<MountUnit>,
    /// Mount points that must not be used: their units are links to `/dev/null`, or empty.
    pub(super) masked: Vec<Vec<u8>>,
    /// Directories that wanted units hide.
    pub(super) covers: Vec<FstabCover>,
}

/// Reads the units of a tree.
///
/// # Errors
/// When there are more than kiln reads, or the file system is damaged or cannot be read.
pub(super) fn read_mount_units(tree: &Tree<'_>) -> Result<MountUnits, TreeError> {
    let wanted = wanted_names(tree)?;
    let mut found = MountUnits::default();
    for (name, folder) in unit_files(tree)? {
        let Some(target) = unit_target(&name) else { continue };
        let text = tree.read(&format!("{folder}/{name}"), MAX_UNIT)?.unwrap_or_default();
        if text.is_empty() {
            found.masked.push(target);
            continue;
        }
        let settings = UnitSettings::read(tree, &name, &String::from_utf8_lossy(&text))?;
        let automount = name.replace(".mount", ".automount");
        let is_wanted = wanted.contains(&name) || wanted.contains(&automount);
        let state = if is_wanted { UnitState::Wanted } else { UnitState::Unwanted };
        found.covers.extend(settings.cover(&target).filter(|_| is_wanted));
        let Some(device) = settings.device() else { continue };
        let is_part = settings.options.contains("X-mount.subdir=");
        found.units.push(MountUnit { device, target, state, is_part, replaces_table: folder == ADMINISTRATORS });
    }
    Ok(found)
}

/// Returns the name of every unit, and the folder whose file counts.
fn unit_files(tree: &Tree<'_>) -> Result<BTreeMap<String, &'static str>, TreeError> {
    let mut files = BTreeMap::new();
    for folder in UNIT_FOLDERS {
        for name in unit_names(tree, folder)? {
            files.entry(name).or_insert(folder);
        }
        if files.len() > MAX_UNITS {
            return Err(TreeError::TooMuch("more mount units"));
        }
    }
    Ok(files)
}

/// Returns the names in a folder that a unit for a mount point can have.
fn unit_names(tree: &Tree<'_>, folder: &str) -> Result<Vec<String>, TreeError> {
    let names = names(tree, folder)?;
    Ok(names.into_iter().filter(|name| has_suffix(name, &[".mount", ".automount"])).collect())
}

fn has_suffix(name: &str, suffixes: &[&str]) -> bool {
    suffixes.iter().any(|suffix| name.strip_suffix(suffix).is_some())
}

fn names(tree: &Tree<'_>, folder: &str) -> Result<Vec<String>, TreeError> {
    let names = tree.names(folder)?.unwrap_or_default();
    Ok(names.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect())
}

/// Returns the names that are linked in a `.wants` or `.requires` folder.
fn wanted_names(tree: &Tree<'_>) -> Result<Vec<String>, TreeError> {
    let mut wanted = Vec::new();
    for folder in UNIT_FOLDERS {
        let linking = names(tree, folder)?.into_iter().filter(|name| has_suffix(name, &[".wants", ".requires"]));
        for name in linking.take(MAX_UNITS) {
            wanted.extend(unit_names(tree, &format!("{folder}/{name}"))?);
        }
    }
    Ok(wanted)
}

/// The settings of a unit that say what it mounts.
#[derive(Debug, Default)]
struct UnitSettings {
    what: Option<String>,
    options: String,
    kind: String,
}

impl UnitSettings {
    /// Reads a unit, as its drop-in files leave it.
    fn read(tree: &Tree<'_>, name: &str, text: &str) -> Result<Self, TreeError> {
        let mut settings = Self::default();
        settings.apply(text);
        for folder in UNIT_FOLDERS.iter().rev() {
            let folder = format!("{folder}/{name}.d");
            let files = names(tree, &folder)?;
            for file in files.iter().filter(|file| has_suffix(file, &[".conf"])).take(MAX_UNITS) {
                let bytes = tree.read(&format!("{folder}/{file}"), MAX_UNIT)?.unwrap_or_default();
                settings.apply(&String::from_utf8_lossy(&bytes));
            }
        }
        Ok(settings)
    }

    fn apply(&mut self, text: &str) {
        self.what = setting(text, "What").or(self.what.take());
        if let Some(options) = setting(text, "Options") {
            self.options = options;
        }
        if let Some(kind) = setting(text, "Type") {
            self.kind = kind;
        }
    }

    fn is_bind(&self) -> bool {
        self.options.split(',').any(|option| matches!(option.trim(), "bind" | "rbind"))
    }

    /// Returns the device; `None` where it is none on a disk.
    fn device(&self) -> Option<DeviceName> {
        self.what.as_deref().filter(|_| !self.is_bind()).and_then(DeviceName::parse)
    }

    /// Returns what it hides with other files of the tree, on this mount point.
    fn cover(&self, target: &[u8]) -> Option<FstabCover> {
        let source = self.is_bind().then(|| self.what.clone().unwrap_or_default().into_bytes());
        let hides = source.as_deref().is_some_and(|source| source != target) || fstab::is_overlay(&self.kind);
        hides.then(|| FstabCover { source, target: target.to_vec() })
    }
}

/// Returns the last value of a setting in the section `[Mount]`.
fn setting(text: &str, key: &str) -> Option<String> {
    let mut section = "";
    let mut found = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        }
        if let Some((name, value)) = line.split_once('=')
            && section == "[Mount]"
            && name.trim() == key
        {
            found = Some(value.trim().to_owned());
        }
    }
    found
}

/// Returns the mount point that a unit's name stands for: `srv-big\x2ddata.mount` is `/srv/big-data`. A name that is not
/// escaped in this way, and that of the root, is no mount point.
fn unit_target(name: &str) -> Option<Vec<u8>> {
    let mut rest = name.strip_suffix(".mount")?.as_bytes();
    let mut path = vec![b'/'];
    while let [first, behind @ ..] = rest {
        let code = behind.strip_prefix(b"x").and_then(|digits| digits.first_chunk::<2>()).filter(|_| *first == b'\\');
        match code {
            Some(digits) => {
                path.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = behind.get(1 + digits.len()..)?;
                continue;
            }
            None if *first == b'-' => path.push(b'/'),
            None => path.push(*first),
        }
        rest = behind;
    }
    (path.len() > 1 && path != b"//").then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_named_after_its_mount_point() {
        for (name, target) in [
            ("srv.mount", Some("/srv")),
            ("var-lib-data.mount", Some("/var/lib/data")),
            ("srv-big\\x2ddata.mount", Some("/srv/big-data")),
            ("-.mount", None),
            (".mount", None),
            ("srv.automount", None),
            ("a\\xzz.mount", None),
        ] {
            assert_eq!(unit_target(name).as_deref(), target.map(str::as_bytes), "{name}");
        }
        assert_eq!(unit_target("a\\x2.mount"), Some(b"/a\\x2".to_vec()));
    }

    #[test]
    fn only_the_mount_section_says_what_is_mounted() {
        let text =
            "[Unit]\nWhat=/dev/vda1\n[Mount]\nWhat = LABEL=a\n#What=x\nWhat=LABEL=b\n[Install]\nWhat=/dev/vda3\n";
        assert_eq!(setting(text, "What").as_deref(), Some("LABEL=b"));
        assert_eq!(setting(text, "Where"), None);
    }
}
