//! Finds the parameters that the boot loader of a disk passes to the kernel: the root (`root=`), and all else that decides
//! which files the guest has.
//!
//! Sources: the GRUB manual, 16 ("The list of available commands"); the Boot Loader Specification of the UAPI group;
//! SYSLINUX's `doc/syslinux.txt`. Only what is booted by default counts. A boot loader's program is not run: where its
//! configuration does not clearly determine which of several entries it boots, each of them counts.

use std::collections::BTreeSet;

use super::gap::VolumeKind;
use super::inventory::{DiskVolume, may_be_hidden};
use super::tree::Tree;
use crate::wire::device_name::DeviceName;

mod command_line;
mod grub;
mod grub_script;
mod loader_entry;
mod syslinux;
mod unified_kernel;

use command_line::{KernelCommandLine, LineRoot};
use grub::{GrubFiles, read_grub};
use loader_entry::{LoaderEntry, loader_menu, read_entries, read_unified_kernels};
use syslinux::parse_syslinux;

/// The longest configuration file that is read, in bytes.
const MAX_CONFIGURATION: u64 = 256 << 10;
/// The most files of one directory that are read.
const MAX_FILES: usize = 32;
/// The possible places of `/boot`: a file system of its own, or a directory of the root.
const PREFIXES: [&str; 2] = ["", "/boot"];
/// The menus of SYSLINUX and EXTLINUX, below `/boot`.
const SYSLINUX_MENUS: [&str; 4] = ["extlinux/extlinux.conf", "syslinux/syslinux.cfg", "extlinux.conf", "syslinux.cfg"];
/// Configurations and scripts of boot loaders that kiln does not read: those of U-Boot, rEFInd and Limine, and those of a
/// Raspberry Pi that choose another partition.
const OPAQUE_FILES: [&str; 11] = [
    "boot.scr",
    "boot.scr.uimg",
    "boot/boot.scr",
    "boot/boot.scr.uimg",
    "uEnv.txt",
    "boot/uEnv.txt",
    "EFI/refind/refind.conf",
    "limine.conf",
    "boot/limine.conf",
    "boot/limine/limine.conf",
    "autoboot.txt",
];
/// Menus of GRUB before version 2, which count only if there is no other menu.
const LEGACY_MENUS: [&str; 2] = ["menu.lst", "grub.conf"];
/// Settings of a Raspberry Pi that replace its `cmdline.txt`.
const PI_SETTINGS: [&str; 3] = ["cmdline=", "os_prefix=", "include "];

/// The root of a disk according to its boot loaders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BootRoot {
    /// This volume is the root.
    Volume(usize),
    /// The root is a device that may be inside a volume that kiln does not read.
    Hidden,
    /// The root is one of these volumes or another one: the disk does not determine which.
    Undecided(Vec<usize>),
    /// The boot loaders name no root, or one that cannot be found.
    Nothing,
}

/// Effects of the boot entry on the guest's files, besides the root.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct BootEffects {
    /// The device of `/usr`, from `mount.usr=`.
    pub(super) usr: Option<DeviceName>,
    /// `systemd.gpt_auto=no`: no partition is mounted because of its type.
    pub(super) ignores_types: bool,
    /// Parameters that change the tree in ways that kiln does not apply.
    pub(super) unapplied: Vec<String>,
}

/// The command lines that are booted by default, as far as the disk determines them.
#[derive(Debug)]
pub(super) struct BootChoice {
    pub(super) root: BootRoot,
    /// The command lines that may be the default.
    lines: Vec<KernelCommandLine>,
}

/// An entry of a boot menu, or a menu below it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BootEntry {
    /// The names by which the default may refer to it.
    names: Vec<String>,
    line: KernelCommandLine,
    /// The entries of a submenu, or the command lines of an entry with several.
    children: Vec<BootEntry>,
    /// The entry is in the menu under all conditions.
    is_certain: bool,
    /// The entry stands for the entries of a file that was not found.
    is_foreign: bool,
}

impl Default for BootEntry {
    fn default() -> Self {
        let line = KernelCommandLine::default();
        Self { names: Vec::new(), line, children: Vec::new(), is_certain: true, is_foreign: false }
    }
}

/// A menu of a boot loader.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BootMenu {
    entries: Vec<BootEntry>,
    /// The number, the name or the path of the default; `None` if it is not known.
    default: Option<String>,
}

impl BootMenu {
    /// Creates a menu with one command line, which is the default.
    fn of_line(line: KernelCommandLine) -> Self {
        Self { entries: vec![BootEntry { line, ..BootEntry::default() }], default: Some("0".to_owned()) }
    }

    /// Returns the command lines of which one is booted by default. Entries of other systems do not count if there is one
    /// with a root.
    fn possible_lines(&self) -> Vec<&KernelCommandLine> {
        let chosen = self.default.as_deref().and_then(|default| find_entries(&self.entries, default));
        let mut lines = chosen.unwrap_or_else(|| self.entries.iter().flat_map(entry_lines).collect());
        if lines.iter().any(|line| matches!(line.root, LineRoot::Named(_))) {
            lines.retain(|line| line.root != LineRoot::Chained);
        }
        if lines.iter().any(|line| **line != KernelCommandLine::default()) {
            lines.retain(|line| **line != KernelCommandLine::default());
        }
        lines
    }
}

fn entry_lines(entry: &BootEntry) -> Vec<&KernelCommandLine> {
    if entry.children.is_empty() { vec![&entry.line] } else { entry.children.iter().flat_map(entry_lines).collect() }
}

/// Returns the command lines of the default entry; `None` if it is not certain which one that is.
fn find_entries<'e>(entries: &'e [BootEntry], default: &str) -> Option<Vec<&'e KernelCommandLine>> {
    let (name, below) = default.split_once('>').unwrap_or((default, ""));
    let place = match name.parse::<usize>() {
        Ok(place) => place,
        Err(_) if name.is_empty() => 0,
        Err(_) => entries.iter().position(|entry| entry.names.iter().any(|known| known == name))?,
    };
    let is_certain = entries.iter().take(place.saturating_add(1)).all(|entry| entry.is_certain);
    let entry = entries.get(place).filter(|_| is_certain)?;
    if below.is_empty() { Some(entry_lines(entry)) } else { find_entries(&entry.children, below) }
}

/// Returns the command lines that are booted by default, as far as the configuration on the disk determines them.
pub(super) fn find_boot_choice(volumes: &[DiskVolume<'_>]) -> BootChoice {
    let meant = stub_targets(volumes);
    let read = volumes.iter().filter(|volume| meant.is_empty() || meant.iter().any(|name| volume.answers(name)));
    let trees: Vec<&Tree<'_>> = read.filter_map(DiskVolume::tree).collect();
    let lines: Vec<KernelCommandLine> = read_menus(&trees).iter().flat_map(BootMenu::possible_lines).cloned().collect();
    let mut evidence = RootEvidence::default();
    for line in &lines {
        evidence.add(volumes, &line.root);
    }
    BootChoice { root: evidence.decide(volumes), lines }
}

/// The statements of all command lines about the root.
#[derive(Debug, Default)]
struct RootEvidence {
    named: BTreeSet<usize>,
    is_hidden: bool,
    /// A device is named that does not exist, or exists more than once.
    is_lost: bool,
    is_unknown: bool,
}

impl RootEvidence {
    fn add(&mut self, volumes: &[DiskVolume<'_>], root: &LineRoot) {
        let name = match root {
            LineRoot::Named(name) => name,
            LineRoot::Unnamed => return,
            LineRoot::Unknown | LineRoot::Chained => {
                self.is_unknown = true;
                return;
            }
        };
        let found: Vec<usize> = (0..volumes.len()).filter(|index| volumes[*index].answers(name)).collect();
        match found[..] {
            [index] => drop(self.named.insert(index)),
            [] if may_be_hidden(volumes) => self.is_hidden = true,
            _ => self.is_lost = true,
        }
    }

    fn decide(self, volumes: &[DiskVolume<'_>]) -> BootRoot {
        let count = self.named.len() + usize::from(self.is_hidden);
        if self.is_unknown || count > 1 {
            let hiding = (0..volumes.len()).filter(|index| self.is_hidden && volumes[*index].may_contain_others());
            return BootRoot::Undecided(self.named.iter().copied().chain(hiding).collect());
        }
        match self.named.first() {
            _ if self.is_lost => BootRoot::Nothing,
            Some(index) => BootRoot::Volume(*index),
            None if self.is_hidden => BootRoot::Hidden,
            None => BootRoot::Nothing,
        }
    }
}

impl BootChoice {
    /// Returns the further effects of the command lines that boot this root. If the command lines differ, nothing is
    /// applied.
    pub(super) fn effects(&self, root: &DiskVolume<'_>) -> BootEffects {
        let all: Vec<&BootEffects> =
            self.lines.iter().filter(|line| may_boot(line, root)).map(|line| &line.effects).collect();
        let mut effects = all.first().copied().cloned().unwrap_or_default();
        let mut unapplied: BTreeSet<String> = all.iter().flat_map(|one| one.unapplied.iter().cloned()).collect();
        if all.iter().any(|one| one.usr != effects.usr) {
            effects.usr = None;
            unapplied.extend(all.iter().filter_map(|one| Some(format!("mount.usr={}", one.usr.as_ref()?))));
        }
        if all.iter().any(|one| one.ignores_types != effects.ignores_types) {
            effects.ignores_types = false;
            unapplied.insert("systemd.gpt_auto=no".to_owned());
        }
        effects.unapplied = unapplied.into_iter().take(MAX_FILES).collect();
        effects
    }
}

fn may_boot(line: &KernelCommandLine, root: &DiskVolume<'_>) -> bool {
    match &line.root {
        LineRoot::Named(name) => root.answers(name),
        LineRoot::Unnamed | LineRoot::Unknown | LineRoot::Chained => true,
    }
}

/// Returns the file systems to which the GRUB configuration on an EFI system partition refers.
fn stub_targets(volumes: &[DiskVolume<'_>]) -> Vec<DeviceName> {
    let trees = volumes.iter().filter(|volume| volume.kind == VolumeKind::Fat).filter_map(DiskVolume::tree);
    let texts = trees
        .flat_map(|tree| vendors(tree).into_iter().filter_map(|vendor| read_text(tree, &format!("{vendor}/grub.cfg"))));
    texts.filter_map(|text| stub_target(&text)).collect()
}

/// Returns the folders of boot loaders on an EFI system partition.
fn vendors(tree: &Tree<'_>) -> Vec<String> {
    file_names(tree, "/EFI", "").into_iter().map(|name| format!("/EFI/{name}")).collect()
}

/// Parses `search.fs_uuid UUID ...` and `search --fs-uuid ... UUID`, whose last word that is no option is the UUID.
fn stub_target(text: &str) -> Option<DeviceName> {
    let has_entries = text.lines().any(|line| line.trim_start().starts_with("menuentry"));
    let line = text.lines().map(str::trim).find(|line| line.starts_with("search") && line.contains("uuid"))?;
    let mut words = line.split_whitespace();
    let word = match words.next()? {
        "search.fs_uuid" => words.next()?,
        _ => words.rfind(|word| !word.starts_with('-'))?,
    };
    (!has_entries).then(|| DeviceName::Uuid(word.trim_matches(['"', '\'']).to_owned()))
}

/// Reads the menus in these file systems. systemd-boot has one menu with the entries of all of them.
fn read_menus(trees: &[&Tree<'_>]) -> Vec<BootMenu> {
    let mut menus = Vec::new();
    let mut entries = Vec::new();
    let mut settings = Vec::new();
    for tree in trees {
        let before = menus.len();
        for prefix in PREFIXES {
            let own = read_entries(tree, prefix);
            let is_of_grub = read_grub_menus(tree, prefix, &own, &mut menus);
            let setting = read_text(tree, &format!("{prefix}/loader/loader.conf"));
            if !is_of_grub || setting.is_some() {
                entries.extend(own);
            }
            settings.extend(setting);
            entries.extend(read_unified_kernels(tree, prefix));
            let texts = SYSLINUX_MENUS.iter().filter_map(|name| read_text(tree, &format!("{prefix}/{name}")));
            menus.extend(texts.map(|text| parse_syslinux(&text)));
        }
        let vendors = vendors(tree);
        menus.extend(vendors.iter().filter_map(|folder| read_grub_menu(tree, folder, &[])).map(|found| found.menu));
        menus.extend(read_pi_menu(tree));
        if menus.len() == before && entries.is_empty() && has_opaque_file(tree) {
            menus.push(BootMenu::of_line(KernelCommandLine::unknown()));
        }
    }
    menus.extend(loader_menu(entries, &settings));
    menus
}

/// Adds the menus of GRUB below a folder, and returns whether one of them includes the entries of the Boot Loader
/// Specification.
fn read_grub_menus(tree: &Tree<'_>, prefix: &str, entries: &[LoaderEntry], menus: &mut Vec<BootMenu>) -> bool {
    let mut has_loader_entries = false;
    for name in ["grub", "grub2"] {
        let folder = format!("{prefix}/{name}");
        match read_grub_menu(tree, &folder, entries) {
            Some(found) => {
                has_loader_entries |= found.has_loader_entries;
                menus.push(found.menu);
            }
            None if has_legacy_menu(tree, &folder) => menus.push(BootMenu::of_line(KernelCommandLine::unknown())),
            None => {}
        }
    }
    has_loader_entries
}

fn read_grub_menu(tree: &Tree<'_>, folder: &str, loader_entries: &[LoaderEntry]) -> Option<grub::GrubMenu> {
    let read = |path: &str| read_text(tree, path);
    read_grub(&GrubFiles { folder, read: &read, loader_entries })
}

fn has_legacy_menu(tree: &Tree<'_>, folder: &str) -> bool {
    !tree.has_name(folder, b"grub.cfg") && LEGACY_MENUS.iter().any(|name| tree.has_name(folder, name.as_bytes()))
}

/// Reads the command line of a Raspberry Pi.
fn read_pi_menu(tree: &Tree<'_>) -> Option<BootMenu> {
    let text = read_text(tree, "/cmdline.txt")?;
    let settings = read_text(tree, "/config.txt").unwrap_or_default();
    let is_replaced = settings.lines().any(|line| PI_SETTINGS.iter().any(|setting| line.trim().starts_with(setting)));
    let is_chosen = is_replaced || tree.has_name("/", b"autoboot.txt") || tree.has_name("/", b"boot.scr");
    Some(BootMenu::of_line(if is_chosen { KernelCommandLine::unknown() } else { KernelCommandLine::parse(&text) }))
}

fn has_opaque_file(tree: &Tree<'_>) -> bool {
    OPAQUE_FILES.iter().any(|path| {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        tree.has_name(&format!("/{folder}"), name.as_bytes())
    })
}

fn read_text(tree: &Tree<'_>, path: &str) -> Option<String> {
    let exact = tree.read(path, MAX_CONFIGURATION).ok().flatten();
    let bytes = exact.or_else(|| tree.read(&actual_path(tree, path)?, MAX_CONFIGURATION).ok().flatten())?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the names in a folder that end with this suffix, ignoring case, sorted.
fn file_names(tree: &Tree<'_>, folder: &str, suffix: &str) -> Vec<String> {
    let exact = tree.names(folder).ok().flatten();
    let names = exact.or_else(|| tree.names(&actual_path(tree, folder)?).ok().flatten()).unwrap_or_default();
    let names = names.into_iter().filter_map(|name| String::from_utf8(name).ok());
    names.filter(|name| name.to_ascii_lowercase().ends_with(suffix)).take(MAX_FILES).collect()
}

/// Returns the path as the file system has it, if only the case of letters differs: firmware and boot loaders ignore the
/// case on FAT.
fn actual_path(tree: &Tree<'_>, path: &str) -> Option<String> {
    let mut actual = String::new();
    for wanted in path.split('/').filter(|name| !name.is_empty()) {
        let names = tree.names(if actual.is_empty() { "/" } else { &actual }).ok().flatten()?;
        let name = names.iter().find(|name| name.eq_ignore_ascii_case(wanted.as_bytes()))?;
        actual = format!("{actual}/{}", std::str::from_utf8(name).ok()?);
    }
    Some(actual)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: u32) -> KernelCommandLine {
        KernelCommandLine::parse(&format!("root=/dev/vda{number}"))
    }

    fn entry(name: &str, line: KernelCommandLine) -> BootEntry {
        BootEntry { names: vec![name.to_owned()], line, ..BootEntry::default() }
    }

    fn lines(entries: &[BootEntry], default: Option<&str>) -> Vec<KernelCommandLine> {
        let menu = BootMenu { entries: entries.to_vec(), default: default.map(str::to_owned) };
        menu.possible_lines().into_iter().cloned().collect()
    }

    #[test]
    fn the_default_of_a_menu_is_a_number_a_name_or_a_path() {
        let old =
            BootEntry { children: vec![entry("A old", partition(4))], ..entry("more", KernelCommandLine::default()) };
        let entries = [entry("A", partition(2)), old, entry("B", partition(3))];
        for (default, expected) in [("", 2), ("0", 2), ("2", 3), ("B", 3), ("more>A old", 4), ("1>0", 4), ("more", 4)] {
            assert_eq!(lines(&entries, Some(default)), [partition(expected)], "{default}");
        }
        for default in [Some("gone"), Some("9"), Some("18446744073709551615"), Some("more>gone"), None] {
            assert_eq!(lines(&entries, default).len(), 3, "{default:?}");
        }
    }

    #[test]
    fn an_entry_behind_an_uncertain_one_has_no_certain_number() {
        let maybe = BootEntry { is_certain: false, ..entry("A", partition(2)) };
        let entries = [entry("first", partition(1)), maybe, entry("B", partition(3))];
        assert_eq!(lines(&entries, Some("0")), [partition(1)]);
        assert_eq!(lines(&entries, Some("2")).len(), 3);
        assert_eq!(lines(&entries, Some("A")).len(), 3);
    }

    #[test]
    fn entries_of_other_systems_do_not_count_beside_a_root() {
        let chained = KernelCommandLine { root: LineRoot::Chained, ..KernelCommandLine::default() };
        let entries = [
            entry("A", partition(2)),
            entry("windows", chained.clone()),
            entry("memory", KernelCommandLine::default()),
        ];
        assert_eq!(lines(&entries, None), [partition(2)]);
        assert_eq!(lines(&entries, Some("windows")), [chained]);
    }

    #[test]
    fn a_stub_names_where_the_menu_is() {
        let uuid = Some(DeviceName::Uuid("ab-cd".into()));
        assert_eq!(stub_target("search.fs_uuid ab-cd root hd0,gpt1\nset prefix=($root)'/boot/grub'\n"), uuid);
        assert_eq!(stub_target("search --no-floppy --fs-uuid --set=dev ab-cd\nconfigfile $dev/grub.cfg\n"), uuid);
        assert_eq!(stub_target("set x=1\n"), None);
        assert_eq!(stub_target("search --fs-uuid --set=root ab-cd\nmenuentry 'x' {\n}\n"), None);
    }
}
