//! Examines the files of the sealed disk.

use super::{IdentityFile, IdentityReport, SoughtIdentity};
use crate::disk::tree::{Tree, TreeError};
use crate::machine::argv::{MAC, SYSTEM_UUID};
use crate::wire::path_pattern::{self, FolderView};
use crate::wire::sealing::{IdentityForm, IdentityPin, MachineIdentity, OPERATIONS, has_line};

/// The size of the largest configuration file that is read, bytes.
const LIMIT: u64 = 1 << 20;
/// The size of the largest file that is searched for names of the build's machine, bytes.
const SMALL: u64 = 64 << 10;
/// Folders that are searched for such files.
const SEARCHED: [&str; 2] = ["/etc", "/var/lib"];
/// Large folders that are left out, since their files come from packages and containers.
const NOT_SEARCHED: [&str; 6] =
    ["/var/lib/dpkg", "/var/lib/rpm", "/var/lib/apt", "/var/lib/docker", "/var/lib/containers", "/var/lib/containerd"];

/// Searches for identities, and for names of the build's machine.
pub(super) fn look(tree: &Tree<'_>, sought: &[SoughtIdentity]) -> Result<IdentityReport, TreeError> {
    let mut report = IdentityReport { is_known: true, ..IdentityReport::default() };
    let passwd = tree.read("/etc/passwd", LIMIT)?.unwrap_or_default();
    let homes = path_pattern::homes(&String::from_utf8_lossy(&passwd));
    for sought in sought {
        look_for(tree, &homes, *sought, &mut report)?;
    }
    search_for_machine(tree, &mut report)?;
    Ok(report)
}

struct TreeFolders<'a, 'c>(&'a Tree<'c>);

impl FolderView for TreeFolders<'_, '_> {
    type Error = TreeError;

    fn names(&self, folder: &[u8]) -> Result<Vec<Vec<u8>>, TreeError> {
        Ok(self.0.names(&String::from_utf8_lossy(folder))?.unwrap_or_default())
    }

    fn entries(&self, folder: &[u8]) -> Result<Vec<(Vec<u8>, bool)>, TreeError> {
        let entries = self.names(folder)?.into_iter().map(|name| {
            let path = [folder, b"/", &name].concat();
            Ok((name, self.0.has_directory(&String::from_utf8_lossy(&path))?))
        });
        entries.collect()
    }
}

fn look_for(
    tree: &Tree<'_>,
    homes: &[String],
    sought: SoughtIdentity,
    report: &mut IdentityReport,
) -> Result<(), TreeError> {
    let mut found = Vec::new();
    for pattern in sought.identity.paths.iter().flat_map(|pattern| path_pattern::in_homes(pattern, homes)) {
        for path in path_pattern::expand(&pattern, &TreeFolders(tree))? {
            let path = String::from_utf8_lossy(&path).into_owned();
            if let Some(is_pinned) = examine(tree, sought.identity, &path)? {
                found.push(IdentityFile { path, is_pinned });
            }
        }
    }
    report.judge(sought, &found, &mut |file| tree.has(file))
}

/// Returns whether something pins the identity in this file, or `None` where the file does not contain it.
fn examine(tree: &Tree<'_>, identity: &MachineIdentity, path: &str) -> Result<Option<bool>, TreeError> {
    if !tree.is_file(path)? {
        return Ok(None);
    }
    let needs_content = identity.form != IdentityForm::File || !identity.renewal.makers().is_empty();
    let content = if needs_content { tree.read(path, LIMIT)?.unwrap_or_default() } else { Vec::new() };
    if !identity.form.is_in(&content) || identity.renewal.is_placeholder(&content) {
        return Ok(None);
    }
    let mut is_pinned = matches!(identity.pin, IdentityPin::Line(beginning) if has_line(&content, beginning));
    for file in identity.pinning_files() {
        is_pinned |= tree.has(file)?;
    }
    Ok(Some(is_pinned))
}

/// Warns of files that name the machine of the build, which is the same for every image that kiln makes. Files of
/// identities are left out: the other search covers them, or the spec keeps them.
fn search_for_machine(tree: &Tree<'_>, report: &mut IdentityReport) -> Result<(), TreeError> {
    let names = machine_names();
    for folder in SEARCHED {
        tree.visit_small_files(folder, SMALL, &NOT_SEARCHED, &mut |path, content| {
            if let Some(what) = find_name(&names, content).filter(|_| !is_of_identity(path)) {
                report.warnings.push(format!(
                    "{path} holds the {what} of the machine that builds images, which is the same for all of them: let \
                     the last step remove it"
                ));
            }
        })?;
    }
    Ok(())
}

fn is_of_identity(path: &str) -> bool {
    let mut paths = OPERATIONS.iter().flat_map(|operation| operation.identities).flat_map(|identity| identity.paths);
    paths.any(|pattern| path_pattern::matches(pattern, path.as_bytes()))
}

/// A name of the build's machine, in lower case.
struct MachineName {
    what: &'static str,
    bytes: Vec<u8>,
}

/// Returns the kind of name of the build's machine that a file contains, in letters of any case.
fn find_name(names: &[MachineName], content: &[u8]) -> Option<&'static str> {
    let content = content.to_ascii_lowercase();
    let found = names.iter().find(|name| content.windows(name.bytes.len()).any(|part| part == name.bytes));
    found.map(|name| name.what)
}

/// Returns all names of the build's machine. Some programs read a UUID of the firmware with its first three parts in the
/// other byte order, and systemd derives the machine ID from the UUID without its dashes, see machine-id(5).
fn machine_names() -> Vec<MachineName> {
    let mut names = vec![MachineName { what: "MAC address", bytes: MAC.into() }];
    for uuid in [SYSTEM_UUID.to_owned(), swap_uuid(SYSTEM_UUID)] {
        let digits = uuid.replace('-', "");
        names.push(MachineName { what: "UUID", bytes: digit_bytes(&digits) });
        names.push(MachineName { what: "UUID", bytes: uuid.into() });
        names.push(MachineName { what: "machine ID", bytes: digits.into() });
    }
    names
}

/// Returns a UUID with its first three parts in the other byte order.
fn swap_uuid(uuid: &str) -> String {
    let parts = uuid.split('-').enumerate();
    let swapped = parts.map(|(index, part)| if index < 3 { swap_bytes(part) } else { part.to_owned() });
    swapped.collect::<Vec<_>>().join("-")
}

fn swap_bytes(hex: &str) -> String {
    hex.as_bytes().rchunks(2).flatten().copied().map(char::from).collect()
}

/// Returns the bytes that hexadecimal digits stand for, with letters in lower case.
fn digit_bytes(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap_or_default());
    let bytes = pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok());
    bytes.map(|byte| byte.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_machine_is_known_by_every_form_of_its_uuid() {
        let names = machine_names();
        for (content, expected) in [
            (&b"id=6b696c6e-0000-4000-8000-000000000001\n"[..], Some("UUID")),
            (b"6B696C6E-0000-4000-8000-000000000001", Some("UUID")),
            (b"6e6c696b-0000-0040-8000-000000000001", Some("UUID")),
            (b"6b696c6e000040008000000000000001\n", Some("machine ID")),
            (b"6B696C6E000040008000000000000001", Some("machine ID")),
            (b"6e6c696b000000408000000000000001", Some("machine ID")),
            (b"x\x6b\x69\x6c\x6e\0\0\x40\0\x80\0\0\0\0\0\0\x01", Some("UUID")),
            (b"x\x6e\x6c\x69\x6b\0\0\0\x40\x80\0\0\0\0\0\0\x01", Some("UUID")),
            (b"6b696c6e-0000-4000-8000-000000000002", None),
            (b"kiln", None),
        ] {
            assert_eq!(find_name(&names, content), expected, "{}", String::from_utf8_lossy(content));
        }
        assert_eq!(find_name(&names, MAC.to_uppercase().as_bytes()), Some("MAC address"));
    }

    #[test]
    fn a_file_of_an_identity_is_not_warned_of_twice() {
        assert!(is_of_identity("/etc/machine-id") && is_of_identity("/etc/nvme/hostnqn"));
        assert!(!is_of_identity("/etc/mymid"));
    }
}
