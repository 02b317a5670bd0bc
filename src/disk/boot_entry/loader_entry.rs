//! Reads the menu of systemd-boot: entries of the Boot Loader Specification and unified kernel images.
//!
//! Sources: UAPI.1 (Boot Loader Specification) and UAPI.10 (version format); systemd-boot(7) and loader.conf(5).

use std::cmp::Ordering;

use super::command_line::KernelCommandLine;
use super::unified_kernel::{UnifiedKernel, read_unified_kernel};
use super::{BootEntry, BootMenu, MAX_FILES, file_names, read_text};
use crate::disk::os_release;
use crate::disk::packages::version::{take_numbers, take_run};
use crate::disk::tree::Tree;

/// An entry of the menu.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct LoaderEntry {
    /// The name of its file, without the counters of boot tries.
    id: String,
    /// No boot try is left.
    is_exhausted: bool,
    title: String,
    sort_key: Option<String>,
    machine_id: String,
    version: String,
    /// The command line; `None` if it is not known.
    pub(super) options: Option<String>,
}

impl LoaderEntry {
    /// Returns the names by which a boot loader may refer to the entry.
    pub(super) fn names(&self) -> Vec<String> {
        let stem = self.id.strip_suffix(".conf").unwrap_or(&self.id);
        vec![self.id.clone(), stem.to_owned(), self.title.clone()]
    }

    /// Compares two entries by their order in a menu, the default first.
    pub(super) fn compare(&self, other: &Self) -> Ordering {
        let by_key =
            self.is_exhausted.cmp(&other.is_exhausted).then(self.sort_key.is_none().cmp(&other.sort_key.is_none()));
        let by_version = match (&self.sort_key, &other.sort_key) {
            (Some(key), Some(other_key)) => key
                .cmp(other_key)
                .then_with(|| self.machine_id.cmp(&other.machine_id))
                .then_with(|| compare_versions(&other.version, &self.version)),
            _ => Ordering::Equal,
        };
        by_key.then(by_version).then_with(|| compare_versions(&other.id, &self.id))
    }

    /// Parses an entry of the Boot Loader Specification.
    fn parse(file_name: &str, text: &str) -> Self {
        let (id, is_exhausted) = without_tries(file_name, ".conf");
        let mut entry = Self { id, is_exhausted, ..Self::default() };
        let mut options = Vec::new();
        let mut starts_program = false;
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let value = value.trim();
            match key {
                "title" => value.clone_into(&mut entry.title),
                "sort-key" => entry.sort_key = Some(value.to_owned()),
                "machine-id" => value.clone_into(&mut entry.machine_id),
                "version" => value.clone_into(&mut entry.version),
                "options" => options.push(value),
                "efi" | "uki" => starts_program = true,
                _ => {}
            }
        }
        entry.options = (!starts_program || !options.is_empty()).then(|| options.join(" "));
        entry
    }

    fn of_kernel(file_name: &str, kernel: Option<UnifiedKernel>) -> Self {
        let (id, is_exhausted) = without_tries(file_name, ".efi");
        let kernel = kernel.unwrap_or_default();
        let text = &kernel.os_release;
        Self {
            id,
            is_exhausted,
            title: os_release::value(text, "PRETTY_NAME").unwrap_or_default(),
            sort_key: first_value(text, &["IMAGE_ID", "ID"]),
            version: first_value(text, &["IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID"]).unwrap_or_default(),
            options: kernel.command_line,
            ..Self::default()
        }
    }
}

/// Returns the first nonempty value of these keys.
fn first_value(os_release: &str, keys: &[&str]) -> Option<String> {
    keys.iter().find_map(|key| os_release::value(os_release, key).filter(|value| !value.is_empty()))
}

/// Removes the counters of boot assessment (`+LEFT-DONE`) from the name of a file, and returns whether no try is left.
fn without_tries(file_name: &str, suffix: &str) -> (String, bool) {
    let stem = file_name.strip_suffix(suffix).unwrap_or(file_name);
    let split = stem.rsplit_once('+').filter(|(_, tries)| {
        tries.starts_with(|c: char| c.is_ascii_digit()) && tries.chars().all(|c| c.is_ascii_digit() || c == '-')
    });
    match split {
        Some((name, tries)) => {
            let left = tries.split('-').next().unwrap_or_default();
            (format!("{name}{suffix}"), left.chars().all(|c| c == '0'))
        }
        None => (file_name.to_owned(), false),
    }
}

/// Reads the entries of the Boot Loader Specification below a folder, in the order of a menu.
pub(super) fn read_entries(tree: &Tree<'_>, prefix: &str) -> Vec<LoaderEntry> {
    let folder = format!("{prefix}/loader/entries");
    let names = file_names(tree, &folder, ".conf").into_iter();
    let mut entries: Vec<LoaderEntry> = names
        .filter_map(|name| Some(LoaderEntry::parse(&name, &read_text(tree, &format!("{folder}/{name}"))?)))
        .collect();
    entries.sort_by(LoaderEntry::compare);
    entries
}

/// Reads the unified kernel images below a folder. Files beside them can extend their command lines.
pub(super) fn read_unified_kernels(tree: &Tree<'_>, prefix: &str) -> Vec<LoaderEntry> {
    let folder = format!("{prefix}/EFI/Linux");
    let common = addons(tree, &format!("{prefix}/loader/addons"));
    let names = file_names(tree, &folder, ".efi").into_iter();
    let entries = names.map(|name| {
        let path = format!("{folder}/{name}");
        let mut entry = LoaderEntry::of_kernel(&name, read_unified_kernel(tree, &path));
        let own = addons(tree, &format!("{path}.extra.d"));
        for addon in common.iter().chain(&own) {
            let line = read_unified_kernel(tree, addon).and_then(|kernel| kernel.command_line);
            entry.options = entry.options.take().zip(line).map(|(options, line)| format!("{options} {line}"));
        }
        entry
    });
    entries.collect()
}

fn addons(tree: &Tree<'_>, folder: &str) -> Vec<String> {
    let names = file_names(tree, folder, ".addon.efi").into_iter();
    names.map(|name| format!("{folder}/{name}")).collect()
}

/// Returns the menu of these entries; `settings` are the `loader.conf` files found. The default is unknown if they name an
/// entry that does not exist, or a choice that is not stored on the disk.
pub(super) fn loader_menu(mut entries: Vec<LoaderEntry>, settings: &[String]) -> Option<BootMenu> {
    entries.sort_by(LoaderEntry::compare);
    entries.truncate(4 * MAX_FILES);
    let mut patterns: Vec<&str> = settings.iter().filter_map(|text| default_pattern(text)).collect();
    patterns.dedup();
    let place = match patterns[..] {
        [] => Some(0),
        [pattern] => entries.iter().position(|entry| matches(pattern, entry)),
        _ => None,
    };
    let entries: Vec<BootEntry> = entries
        .into_iter()
        .map(|entry| {
            let line = entry.options.as_deref().map_or_else(KernelCommandLine::unknown, KernelCommandLine::parse);
            BootEntry { names: entry.names(), line, ..BootEntry::default() }
        })
        .collect();
    (!entries.is_empty()).then(|| BootMenu { entries, default: place.map(|place| place.to_string()) })
}

/// Returns the pattern of the default entry in a `loader.conf`.
fn default_pattern(settings: &str) -> Option<&str> {
    let lines = settings.lines().rev().filter_map(|line| line.trim().split_once(char::is_whitespace));
    lines.into_iter().find(|(key, _)| *key == "default").map(|(_, value)| value.trim())
}

/// Returns whether a pattern matches an entry, ignoring case, with or without its suffix.
fn matches(pattern: &str, entry: &LoaderEntry) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    let id = entry.id.to_ascii_lowercase();
    let stem = id.rsplit_once('.').map_or(id.as_str(), |(stem, _)| stem);
    [id.as_str(), stem].iter().any(|name| matches_glob(pattern.as_bytes(), name.as_bytes()))
}

/// Matches a string with a pattern of `*` and `?`. A pattern with brackets matches nothing.
fn matches_glob(pattern: &[u8], text: &[u8]) -> bool {
    let mut at = 0;
    let mut place = 0;
    // The position after the last star, and the position in the string from which the rest was tried.
    let mut retry = None;
    while place < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at, place));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[place] => {
                at += 1;
                place += 1;
            }
            _ => {
                let Some((star, from)) = retry else { return false };
                retry = Some((star, from + 1));
                at = star + 1;
                place = from + 1;
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Compares two versions (UAPI.10): `~` is before the end, then `-`, `^` and `.`; numbers are compared as such.
pub(super) fn compare_versions(one: &str, other: &str) -> Ordering {
    let mut one: &[u8] = &version_characters(one);
    let mut other: &[u8] = &version_characters(other);
    loop {
        let marks = rank(one.first()).cmp(&rank(other.first()));
        let (Some(first), Some(second), true) = (one.first(), other.first(), marks.is_eq()) else { return marks };
        let is_number = first.is_ascii_digit() || second.is_ascii_digit();
        let order = if is_mark(*first) {
            one = &one[1..];
            other = &other[1..];
            Ordering::Equal
        } else if is_number {
            take_numbers(&mut one, &mut other)
        } else {
            take_run(&mut one, u8::is_ascii_alphabetic).cmp(take_run(&mut other, u8::is_ascii_alphabetic))
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// Returns a version without the characters that are ignored.
fn version_characters(version: &str) -> Vec<u8> {
    version.bytes().filter(|byte| byte.is_ascii_alphanumeric() || is_mark(*byte)).collect()
}

fn is_mark(byte: u8) -> bool {
    b"~-^.".contains(&byte)
}

/// Returns the order of separators, of the end of a version and of all other characters.
fn rank(byte: Option<&u8>) -> u8 {
    match byte {
        Some(b'~') => 0,
        None => 1,
        Some(b'-') => 2,
        Some(b'^') => 3,
        Some(b'.') => 4,
        Some(_) => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, text: &str) -> LoaderEntry {
        LoaderEntry::parse(name, text)
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (lesser, greater) in [
            ("1.9", "1.10"),
            ("6.1.0-9-amd64", "6.1.0-13-amd64"),
            ("1.0~rc1", "1.0"),
            ("1", "1.1"),
            ("a.conf", "b.conf"),
            ("1-1", "1.1"),
            ("009", "10"),
            ("", "1"),
        ] {
            assert_eq!(compare_versions(lesser, greater), Ordering::Less, "{lesser} {greater}");
            assert_eq!(compare_versions(greater, lesser), Ordering::Greater, "{greater} {lesser}");
        }
        assert_eq!(compare_versions("1_0", "1_0"), Ordering::Equal);
    }

    #[test]
    fn the_menu_has_the_order_of_systemd_boot() {
        let entries = [
            entry("z.conf", "version 9"),
            entry("a.conf", "sort-key debian\nversion 6.1.9"),
            entry("b.conf", "sort-key debian\nversion 6.1.10"),
            entry("c+0-3.conf", "sort-key arch"),
        ];
        let mut sorted = entries.to_vec();
        sorted.sort_by(LoaderEntry::compare);
        let ids: Vec<&str> = sorted.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(ids, ["b.conf", "a.conf", "z.conf", "c.conf"], "one without tries is last");
    }

    #[test]
    fn the_default_is_a_pattern_for_names() {
        let default = |settings: &[&str]| {
            let settings: Vec<String> = settings.iter().map(|text| (*text).to_owned()).collect();
            let entries = vec![entry("a.conf", ""), entry("b+3-0.conf", ""), LoaderEntry::of_kernel("c_1.efi", None)];
            loader_menu(entries, &settings).unwrap().default
        };
        assert_eq!(default(&[]).as_deref(), Some("0"));
        assert_eq!(default(&["timeout 3\n"]).as_deref(), Some("0"));
        for (pattern, place) in
            [("c_1.efi", "0"), ("C_*", "0"), ("b.conf", "1"), ("b*", "1"), ("a", "2"), ("?.conf", "1")]
        {
            assert_eq!(default(&[&format!("default {pattern}\n")]).as_deref(), Some(place), "{pattern}");
        }
        for settings in [&["default gone.efi\n"][..], &["default @saved\n"], &["default a*\n", "default b*\n"]] {
            assert_eq!(default(settings), None, "{settings:?}");
        }
    }

    #[test]
    fn an_entry_that_starts_a_program_has_no_known_command_line() {
        assert_eq!(entry("a.conf", "title A\noptions x\n options y z\n").options.as_deref(), Some("x y z"));
        assert_eq!(entry("a.conf", "efi /EFI/tool.efi\n").options, None);
        assert_eq!(LoaderEntry::of_kernel("a.efi", None).options, None);
        let kernel =
            UnifiedKernel { command_line: Some("ro".into()), os_release: "ID=x\nIMAGE_VERSION=\"7\"\n".into() };
        let found = LoaderEntry::of_kernel("a+2.efi", Some(kernel));
        assert_eq!((found.id.as_str(), found.sort_key.as_deref(), found.version.as_str()), ("a.efi", Some("x"), "7"));
    }
}
