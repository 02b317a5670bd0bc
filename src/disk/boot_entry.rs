//! Finds the root that the boot loader of a disk passes to the kernel (`root=`).
//!
//! Sources: the GRUB manual, 16 ("The list of available commands") and 6.1 ("Simple configuration handling"); the Boot
//! Loader Specification of the UAPI group; SYSLINUX's `doc/syslinux.txt`. Only what is booted by default counts. A boot
//! loader's program is not run: where its configuration does not say plainly what it boots, it has said nothing.

use super::gap::VolumeKind;
use super::inventory::{DiskVolume, may_be_hidden};
use super::tree::Tree;
use crate::wire::fstab::DeviceName;

/// The longest configuration file that is read, bytes.
const MAX_CONFIGURATION: u64 = 256 << 10;
/// The most files of one directory that are read.
const MAX_FILES: usize = 32;
/// Where `/boot` may be: itself mounted, or a directory of the root.
const PREFIXES: [&str; 2] = ["", "/boot"];

/// What the boot loaders of a disk say of its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BootRoot {
    /// This volume.
    Volume(usize),
    /// A device that may be inside of what kiln does not read.
    Hidden,
    /// Nothing, or not all of them the same.
    Nothing,
}

/// What one boot menu says of the root.
#[derive(Debug, Clone, PartialEq, Eq)]
enum MenuRoot {
    /// Its default entry has this root, or all entries have.
    Named(DeviceName),
    /// Its entries have several roots, and nothing says which is the default.
    Undecided,
}

/// An entry of a boot menu.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct BootEntry {
    /// By which it may be the default.
    names: Vec<String>,
    /// Every `root=` in it.
    roots: Vec<DeviceName>,
}

/// Returns what is booted by default, if the configuration on the disk decides that.
pub(super) fn find_boot_root(volumes: &[DiskVolume<'_>]) -> BootRoot {
    let meant = stub_targets(volumes);
    let is_meant = |volume: &DiskVolume<'_>| meant.is_empty() || meant.iter().any(|name| volume.answers(name));
    let chosen: Vec<&Tree<'_>> =
        volumes.iter().filter(|volume| is_meant(volume)).filter_map(DiskVolume::tree).collect();
    let mut roots: Vec<BootRoot> =
        chosen.into_iter().flat_map(read_configurations).map(|name| locate(volumes, name)).collect();
    roots.dedup();
    match roots[..] {
        [root] => root,
        _ => BootRoot::Nothing,
    }
}

/// Returns which volume has this name. A name that several have, or that nothing can have, says nothing.
fn locate(volumes: &[DiskVolume<'_>], root: MenuRoot) -> BootRoot {
    let MenuRoot::Named(name) = root else { return BootRoot::Nothing };
    let found: Vec<usize> = (0..volumes.len()).filter(|index| volumes[*index].answers(&name)).collect();
    match found[..] {
        [index] => BootRoot::Volume(index),
        [] if may_be_hidden(volumes) => BootRoot::Hidden,
        _ => BootRoot::Nothing,
    }
}

/// Returns the file systems that the configuration of GRUB on an EFI system partition goes on to.
fn stub_targets(volumes: &[DiskVolume<'_>]) -> Vec<DeviceName> {
    let trees = volumes.iter().filter(|volume| volume.kind == VolumeKind::Fat).filter_map(DiskVolume::tree);
    let texts = trees
        .flat_map(|tree| vendors(tree).into_iter().filter_map(|vendor| read_text(tree, &format!("{vendor}/grub.cfg"))));
    texts.filter_map(|text| stub_target(&text)).collect()
}

/// Returns the folders of boot loaders on an EFI system partition.
fn vendors(tree: &Tree<'_>) -> Vec<String> {
    let names = tree.names("/EFI").ok().flatten().unwrap_or_default();
    let names = names.into_iter().take(MAX_FILES).filter_map(|name| String::from_utf8(name).ok());
    names.map(|name| format!("/EFI/{name}")).collect()
}

/// Reads `search.fs_uuid UUID ...` and `search --fs-uuid ... UUID`, the last word but options.
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

/// Returns the default root of each configuration in this file system that names any.
fn read_configurations(tree: &Tree<'_>) -> Vec<MenuRoot> {
    let mut found = Vec::new();
    for prefix in PREFIXES {
        found.extend(["grub", "grub2"].iter().filter_map(|name| read_grub(tree, &format!("{prefix}/{name}"))));
        found.extend(read_loader_entries(tree, prefix));
        let linux = ["extlinux/extlinux.conf", "syslinux/syslinux.cfg", "extlinux.conf", "syslinux.cfg"];
        found.extend(linux.iter().filter_map(|name| read_syslinux(tree, &format!("{prefix}/{name}"))));
    }
    found.extend(vendors(tree).iter().filter_map(|vendor| read_grub(tree, vendor)));
    found.extend(read_text(tree, "/cmdline.txt").and_then(|text| decide(&[entry(&text)], None)));
    found
}

fn read_text(tree: &Tree<'_>, path: &str) -> Option<String> {
    let bytes = tree.read(path, MAX_CONFIGURATION).ok().flatten()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns an entry with every `root=` of a command line.
fn entry(line: &str) -> BootEntry {
    BootEntry { names: Vec::new(), roots: roots(line) }
}

fn roots(line: &str) -> Vec<DeviceName> {
    let values = line.split_whitespace().filter_map(|word| word.trim_matches(['"', '\'']).strip_prefix("root="));
    values.filter_map(DeviceName::parse).collect()
}

/// Returns the root of the default entry, or `None` where no entry names a root.
fn decide(entries: &[BootEntry], default: Option<&str>) -> Option<MenuRoot> {
    let mut all: Vec<&DeviceName> = entries.iter().flat_map(|entry| &entry.roots).collect();
    all.dedup();
    if let [] | [_] = all[..] {
        return all.first().map(|name| MenuRoot::Named((*name).clone()));
    }
    let chosen = default.and_then(|default| find_entry(entries, default));
    let root = chosen.and_then(|entry| entry.roots.first().cloned());
    Some(root.map_or(MenuRoot::Undecided, MenuRoot::Named))
}

/// Finds an entry by its number, from 0, or by a name; of `menu>entry` the menu.
fn find_entry<'e>(entries: &'e [BootEntry], default: &str) -> Option<&'e BootEntry> {
    let default = default.split('>').next().unwrap_or(default);
    match default.parse::<usize>() {
        Ok(number) => entries.get(number),
        Err(_) => entries.iter().find(|entry| entry.names.iter().any(|name| name == default)),
    }
}

fn read_grub(tree: &Tree<'_>, folder: &str) -> Option<MenuRoot> {
    let text = read_text(tree, &format!("{folder}/grub.cfg"))?;
    let environment = read_text(tree, &format!("{folder}/grubenv")).unwrap_or_default();
    decide(&grub_entries(&text), grub_default(&text, &environment).as_deref())
}

/// Returns the last default that is plain text, or the saved one if the configuration asks for it.
fn grub_default(text: &str, environment: &str) -> Option<String> {
    let values = text.lines().filter_map(|line| line.trim().strip_prefix("set default="));
    let values: Vec<&str> = values.map(|value| value.trim_matches(['"', '\''])).collect();
    let saved = variable(environment, "saved_entry").filter(|_| values.contains(&"${saved_entry}"));
    let next = variable(environment, "next_entry").filter(|_| values.contains(&"${next_entry}"));
    let plain = values.iter().rev().find(|value| !value.contains('$')).map(|value| (*value).to_owned());
    next.or(saved).or(plain).or_else(|| Some("0".to_owned()))
}

fn variable(environment: &str, name: &str) -> Option<String> {
    let mut lines = environment.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    lines.next().filter(|value| !value.is_empty()).map(str::to_owned)
}

/// Reads the entries of a GRUB menu, a submenu being one entry. `linux` outside of any entry is an entry as well.
fn grub_entries(text: &str) -> Vec<BootEntry> {
    let mut entries = Vec::new();
    let mut depth = 0_usize;
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let is_menu = line.starts_with("menuentry ") || line.starts_with("submenu ");
        if is_menu && depth == 0 {
            entries.push(BootEntry { names: quoted_names(line), roots: Vec::new() });
        }
        if line.starts_with("linux") {
            add_roots(&mut entries, roots(line), depth);
        }
        if line.ends_with('{') {
            depth += 1;
        } else if line == "}" {
            depth = depth.saturating_sub(1);
        }
    }
    entries
}

fn add_roots(entries: &mut Vec<BootEntry>, roots: Vec<DeviceName>, depth: usize) {
    match entries.last_mut() {
        Some(entry) if depth > 0 => entry.roots.extend(roots),
        _ => entries.push(BootEntry { names: Vec::new(), roots }),
    }
}

/// Returns the title and the identifier of an entry: what is quoted, and the word behind `--id`.
fn quoted_names(line: &str) -> Vec<String> {
    let quoted = line.split(['\'', '"']).skip(1).step_by(2).map(str::to_owned);
    let named = line.split_whitespace().skip_while(|word| *word != "--id").nth(1).map(str::to_owned);
    quoted.chain(named).collect()
}

/// Reads the entries of the Boot Loader Specification, and systemd-boot's default.
fn read_loader_entries(tree: &Tree<'_>, prefix: &str) -> Option<MenuRoot> {
    let folder = format!("{prefix}/loader/entries");
    let names = tree.names(&folder).ok().flatten()?.into_iter().filter_map(|name| String::from_utf8(name).ok());
    let names: Vec<String> = names.filter(|name| name.strip_suffix(".conf").is_some()).take(MAX_FILES).collect();
    let environment = ["grub2", "grub"].iter().find_map(|grub| read_text(tree, &format!("{prefix}/{grub}/grubenv")));
    let environment = environment.unwrap_or_default();
    let entries = names.iter().filter_map(|name| {
        let text = read_text(tree, &format!("{folder}/{name}"))?;
        Some(loader_entry(name, &text, &environment))
    });
    let entries: Vec<BootEntry> = entries.collect();
    let settings = read_text(tree, &format!("{prefix}/loader/loader.conf")).unwrap_or_default();
    let pattern = settings.lines().find_map(|line| line.trim().strip_prefix("default")).map(str::trim);
    let stem = pattern.map(|pattern| pattern.trim_end_matches('*').trim_end_matches(".conf"));
    let default = stem.and_then(|stem| names.iter().rev().find(|name| name.starts_with(stem)));
    let saved = variable(&environment, "saved_entry").map(|name| format!("{name}.conf"));
    decide(&entries, default.cloned().or(saved).as_deref())
}

/// Reads an entry; GRUB's own variable for its options is in its environment.
fn loader_entry(name: &str, text: &str, environment: &str) -> BootEntry {
    let options = text.lines().filter_map(|line| line.trim().strip_prefix("options"));
    let mut options = options.collect::<Vec<_>>().join(" ");
    if options.contains("$kernelopts") {
        options += " ";
        options += &variable(environment, "kernelopts").unwrap_or_default();
    }
    BootEntry { names: vec![name.to_owned()], roots: roots(&options) }
}

/// Reads a menu of SYSLINUX or EXTLINUX; words may be in either case.
fn read_syslinux(tree: &Tree<'_>, path: &str) -> Option<MenuRoot> {
    let text = read_text(tree, path)?;
    let mut entries = Vec::new();
    let mut default = None;
    for line in text.lines().map(str::trim) {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word.to_ascii_lowercase().as_str() {
            "default" => default = Some(rest.trim().to_owned()),
            "label" => entries.push(BootEntry { names: vec![rest.trim().to_owned()], roots: Vec::new() }),
            "append" => add_roots(&mut entries, roots(rest), 1),
            _ => {}
        }
    }
    let default = default.or_else(|| entries.first()?.names.first().cloned());
    decide(&entries, default.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(number: u32) -> MenuRoot {
        MenuRoot::Named(DeviceName::Partition(number))
    }

    #[test]
    fn a_grub_menu_boots_its_default() {
        let menu = "set default=\"0\"\nif [ x ] ; then\n  set default=\"${saved_entry}\"\nfi\n\
            menuentry 'A' --class debian $menuentry_id_option 'id-a' {\n\tlinux\t/vmlinuz root=/dev/vda2 ro\n}\n\
            submenu 'more' {\n\tmenuentry 'A old' {\n\t\tlinux /old root=/dev/vda2\n\t}\n}\n\
            menuentry \"B\" --id id-b {\n\tlinux /vmlinuz root=/dev/vda3\n}\n";
        let entries = grub_entries(menu);
        assert_eq!(entries.len(), 3);
        for (environment, expected) in [
            ("", 2),
            ("saved_entry=id-b\n", 3),
            ("saved_entry=B", 3),
            ("saved_entry=2", 3),
            ("saved_entry=more>A old", 2),
        ] {
            let default = grub_default(menu, environment);
            assert_eq!(decide(&entries, default.as_deref()), Some(device(expected)), "{environment}");
        }
        assert_eq!(decide(&entries, Some("gone")), Some(MenuRoot::Undecided));
        assert_eq!(decide(&grub_entries("linux /vmlinuz root=/dev/sda1"), None), Some(device(1)));
        assert_eq!(decide(&grub_entries("menuentry 'x' {\nchainloader +1\n}"), None), None);
    }

    #[test]
    fn a_stub_names_where_the_menu_is() {
        let uuid = Some(DeviceName::Uuid("ab-cd".into()));
        assert_eq!(stub_target("search.fs_uuid ab-cd root hd0,gpt1\nset prefix=($root)'/boot/grub'\n"), uuid);
        assert_eq!(stub_target("search --no-floppy --fs-uuid --set=dev ab-cd\nconfigfile $dev/grub.cfg\n"), uuid);
        assert_eq!(stub_target("set x=1\n"), None);
        assert_eq!(stub_target("search --fs-uuid --set=root ab-cd\nmenuentry 'x' {\n}\n"), None);
    }

    #[test]
    fn entries_of_the_specification_take_options_from_the_environment_of_grub() {
        let entry = loader_entry("a.conf", "title A\noptions $kernelopts quiet\n", "kernelopts=root=UUID=ab ro\n");
        assert_eq!(entry.roots, [DeviceName::Uuid("ab".into())]);
    }
}
