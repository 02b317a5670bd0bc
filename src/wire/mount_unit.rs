//! Reads the `.mount` units of systemd in a guest.
//!
//! Sources: systemd.unit(5) for the folders of units and their precedence, systemd.mount(5) for their content,
//! systemd.syntax(7) for their syntax, and systemd-escape(1) for their names.

use std::collections::{BTreeMap, BTreeSet};

use super::UNIT_FOLDERS;
use super::boot_mount::{BootMount, MountPolicy};
use super::guest_files::{GuestFiles, find_linking_folders, has_suffix};

/// The error of a guest with more mount units than kiln reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyUnits;

/// The folder whose units replace the mounts of the table; units in the other folders are replaced by the table.
const ADMINISTRATORS: &str = UNIT_FOLDERS[0];
/// The most mount units that are read.
const MAX_UNITS: usize = 256;
/// The most units that are searched for their requirements.
const MAX_SEARCHED: usize = 4096;
/// The settings by which a unit starts other units.
const NEEDS_UNITS: [&str; 4] = ["Requires", "Wants", "BindsTo", "Upholds"];
/// The settings by which a unit requires the mounts that a path is on.
const NEEDS_PATHS: [&str; 4] = ["RequiresMountsFor", "WantsMountsFor", "WorkingDirectory", "RootDirectory"];

/// A `.mount` unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountUnit {
    /// The mount; its policy is [`MountPolicy::Unwanted`] if no enabled unit wants it.
    pub mount: BootMount,
    /// It replaces the line of the table for the same mount point.
    pub replaces_table: bool,
}

/// The `.mount` units of a guest.
#[derive(Debug, Default)]
pub struct MountUnits {
    /// The units that are not masked.
    pub units: Vec<MountUnit>,
    /// Mount points that must not be used: their units are links to `/dev/null`, or empty.
    pub masked: Vec<Vec<u8>>,
    /// The names of mount and automount units that are linked in a `.wants` or `.requires` folder.
    pub enabled: BTreeSet<String>,
}

/// Reads the units of a guest.
///
/// # Errors
/// When there are more than kiln reads.
pub fn read_mount_units(files: &impl GuestFiles) -> Result<MountUnits, TooManyUnits> {
    let mut found = MountUnits { enabled: read_enabled(files), ..MountUnits::default() };
    for (name, folder) in find_unit_files(files)? {
        let Some(target) = unit_target(&name) else { continue };
        let text = files.text(&format!("{folder}/{name}"));
        if text.is_empty() {
            found.masked.push(target);
            continue;
        }
        let policy = if is_enabled(&found.enabled, &name) { MountPolicy::Required } else { MountPolicy::Unwanted };
        let mount = UnitSettings::read(files, &name, &text).mount(target, policy);
        found.units.push(MountUnit { mount, replaces_table: folder == ADMINISTRATORS });
    }
    Ok(found)
}

/// Marks the lines that the table alone does not mount, but that are mounted since a unit wants or needs them.
pub fn find_requirements<'m>(
    files: &impl GuestFiles,
    enabled: &BTreeSet<String>,
    manual: impl Iterator<Item = &'m mut BootMount>,
) {
    let mut needs = None;
    for mount in manual {
        let name = format!("{}.mount", escape_path(&mount.target));
        if is_enabled(enabled, &name) {
            mount.policy = MountPolicy::Optional;
        } else if needs.get_or_insert_with(|| UnitNeeds::read(files)).include(&name, &mount.target) {
            mount.policy = MountPolicy::RequiredElsewhere;
        }
    }
}

/// Returns whether a mount unit is enabled, or the automount unit of its mount point.
fn is_enabled(enabled: &BTreeSet<String>, name: &str) -> bool {
    enabled.contains(name) || enabled.contains(&name.replace(".mount", ".automount"))
}

/// Returns the name of every unit, and the folder whose file takes precedence.
fn find_unit_files(files: &impl GuestFiles) -> Result<BTreeMap<String, &'static str>, TooManyUnits> {
    let mut found = BTreeMap::new();
    for folder in UNIT_FOLDERS {
        for name in mount_names(files, folder) {
            found.entry(name).or_insert(folder);
        }
        if found.len() > MAX_UNITS {
            return Err(TooManyUnits);
        }
    }
    Ok(found)
}

/// Returns the names in a folder that end as those of mount and automount units.
fn mount_names(files: &impl GuestFiles, folder: &str) -> impl Iterator<Item = String> {
    files.names_ending(folder, &[".mount", ".automount"])
}

/// Returns the names that are linked in a `.wants` or `.requires` folder.
fn read_enabled(files: &impl GuestFiles) -> BTreeSet<String> {
    let mut enabled = BTreeSet::new();
    for folder in UNIT_FOLDERS {
        for links in find_linking_folders(files, folder).take(MAX_UNITS) {
            enabled.extend(mount_names(files, &links));
        }
    }
    enabled
}

/// The mount units and paths that the units of a guest need.
#[derive(Debug, Default)]
struct UnitNeeds {
    units: BTreeSet<String>,
    paths: BTreeSet<String>,
}

impl UnitNeeds {
    /// Reads the needs of all units, including their drop-in files.
    fn read(files: &impl GuestFiles) -> Self {
        let mut needs = Self::default();
        for folder in UNIT_FOLDERS {
            for name in files.names(folder).into_iter().take(MAX_SEARCHED) {
                let path = format!("{folder}/{name}");
                if !has_suffix(&name, &[".d"]) {
                    needs.add(&files.text(&path));
                    continue;
                }
                let drop_ins = files.names_ending(&path, &[".conf"]);
                drop_ins.take(MAX_UNITS).for_each(|name| needs.add(&files.text(&format!("{path}/{name}"))));
            }
        }
        needs
    }

    fn add(&mut self, text: &str) {
        for line in join_lines(text) {
            let Some((key, value)) = line.split_once('=') else { continue };
            let words = value.split_whitespace().map(|word| word.trim_matches(['"', '\'', '-']).to_owned());
            if NEEDS_UNITS.contains(&key.trim()) {
                self.units.extend(words);
            } else if NEEDS_PATHS.contains(&key.trim()) {
                self.paths.extend(words);
            }
        }
    }

    /// Returns whether a unit needs this mount unit, or a path on its mount point.
    fn include(&self, name: &str, target: &[u8]) -> bool {
        let has_path = self.paths.iter().any(|path| {
            path.as_bytes().strip_prefix(target).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        });
        let automount = name.replace(".mount", ".automount");
        has_path || self.units.contains(name) || self.units.contains(&automount)
    }
}

/// The settings of a unit that determine the mount.
#[derive(Debug, Default)]
struct UnitSettings {
    what: String,
    options: String,
    kind: String,
}

impl UnitSettings {
    /// Reads the settings of a unit and its drop-in files.
    fn read(files: &impl GuestFiles, name: &str, text: &str) -> Self {
        let mut settings = Self::default();
        settings.apply(text);
        for folder in UNIT_FOLDERS.iter().rev() {
            let folder = format!("{folder}/{name}.d");
            let mut names: Vec<String> = files.names_ending(&folder, &[".conf"]).collect();
            names.sort_unstable();
            for file in names.iter().take(MAX_UNITS) {
                settings.apply(&files.text(&format!("{folder}/{file}")));
            }
        }
        settings
    }

    fn apply(&mut self, text: &str) {
        let settings = [("What", &mut self.what), ("Options", &mut self.options), ("Type", &mut self.kind)];
        for (key, value) in settings {
            if let Some(found) = last_setting(text, key) {
                *value = found;
            }
        }
    }

    fn mount(self, target: Vec<u8>, policy: MountPolicy) -> BootMount {
        BootMount { target, source: self.what.into_bytes(), kind: self.kind, options: self.options, policy }
    }
}

/// Returns the last value of a setting in the section `[Mount]`.
fn last_setting(text: &str, key: &str) -> Option<String> {
    let mut is_in_section = false;
    let mut found = None;
    for line in join_lines(text) {
        if line.starts_with('[') {
            is_in_section = line == "[Mount]";
        }
        if let Some((name, value)) = line.split_once('=')
            && is_in_section
            && name.trim() == key
        {
            found = Some(value.trim().to_owned());
        }
    }
    found
}

/// Returns the lines of a unit without comments: one that ends with a backslash continues in the next one.
fn join_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut joined = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        match line.strip_suffix('\\') {
            Some(part) => joined.extend([part, " "]),
            None => lines.push(std::mem::take(&mut joined) + line),
        }
    }
    lines.push(joined);
    lines
}

/// Encodes a path as systemd does in the name of a unit (`systemd-escape --path`).
#[must_use]
pub fn escape_path(path: &[u8]) -> String {
    let trimmed: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    let mut name = String::new();
    for (at, byte) in trimmed.join(&b'/').into_iter().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at == 0 => name.push_str("\\x2e"),
            b':' | b'_' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => name.push(char::from(byte)),
            _ => name.extend(["\\x".to_owned(), format!("{byte:02x}")]),
        }
    }
    name
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
        assert_eq!(last_setting(text, "What").as_deref(), Some("LABEL=b"));
        assert_eq!(last_setting(text, "Where"), None);
    }

    #[test]
    fn a_backslash_at_the_end_of_a_line_goes_on_in_the_next() {
        for text in ["[Mount]\nWhat=\\\n/dev/vda3\n", "[Mount]\nWhat=\\\n# a comment\n; another\n  /dev/vda3\n"] {
            assert_eq!(last_setting(text, "What").as_deref(), Some("/dev/vda3"), "{text}");
        }
        assert_eq!(last_setting("[Mount]\nOptions=a,\\\nWhat=b\n", "What"), None);
        assert_eq!(last_setting("[Mount]\nWhat=a\\", "What"), Some("a".into()), "at the end of the file");
    }

    #[test]
    fn paths_are_escaped_as_systemd_does_it() {
        for (path, expected) in [
            ("/srv/data", "srv-data"),
            ("/srv/my-data", "srv-my\\x2ddata"),
            ("/.snap/a.b_c", "\\x2esnap-a.b_c"),
            ("/mnt/a b", "mnt-a\\x20b"),
        ] {
            assert_eq!(escape_path(path.as_bytes()), expected, "{path}");
        }
    }
}
