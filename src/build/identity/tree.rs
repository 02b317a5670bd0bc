//! The look at the files of the sealed disk.

use super::{IdentityFile, IdentityReport, SoughtIdentity};
use crate::disk::tree::{Tree, TreeError};
use crate::machine::argv::{MAC, SYSTEM_UUID};
use crate::wire::path_pattern::{self, FolderView};
use crate::wire::sealing::{IdentityForm, IdentityPin, MachineIdentity, has_line};

/// Configuration files are shorter, bytes.
const LIMIT: u64 = 1 << 20;
/// Longer files are not searched for what names the build's machine, bytes.
const SMALL: u64 = 64 << 10;
/// Where those are.
const SEARCHED: [&str; 2] = ["/etc", "/var/lib"];
/// Large folders whose files come from packages and containers.
const NOT_SEARCHED: [&str; 6] =
    ["/var/lib/dpkg", "/var/lib/rpm", "/var/lib/apt", "/var/lib/docker", "/var/lib/containers", "/var/lib/containerd"];

/// Looks for identities, and for what names the machine of the build.
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
        let is_folder = |name: Vec<u8>| {
            let path = [folder, b"/", &name].concat();
            Ok((name, self.0.has_directory(&String::from_utf8_lossy(&path))?))
        };
        self.names(folder)?.into_iter().map(is_folder).collect()
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

/// Returns whether the identity is in this file, and then whether something pins it.
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

/// Warns of files that name the machine of the build, which is the same for every image that kiln makes.
fn search_for_machine(tree: &Tree<'_>, report: &mut IdentityReport) -> Result<(), TreeError> {
    let names = machine_names();
    for folder in SEARCHED {
        tree.visit_small_files(folder, SMALL, &NOT_SEARCHED, &mut |path, content| {
            let content = content.to_ascii_lowercase();
            let is_in = |name: &str| content.windows(name.len()).any(|part| part == name.as_bytes());
            if let Some((what, _)) = names.iter().find(|(_, name)| is_in(name)) {
                report.warnings.push(format!(
                    "{path} holds the {what} of the machine that builds images, which is the same for all of them: let \
                     the last step remove it"
                ));
            }
        })?;
    }
    Ok(())
}

/// Returns what names the build's machine, in lower case. Some programs read a UUID of the firmware with its first three parts
/// in the other byte order.
fn machine_names() -> [(&'static str, String); 3] {
    let parts: Vec<&str> = SYSTEM_UUID.splitn(4, '-').collect();
    let swapped: Vec<String> = parts.iter().take(3).map(|part| swap_bytes(part)).collect();
    let other = [&swapped[..], &[parts.last().copied().unwrap_or_default().to_owned()]].concat().join("-");
    [("UUID", SYSTEM_UUID.to_owned()), ("UUID", other), ("MAC address", MAC.to_owned())]
}

fn swap_bytes(hex: &str) -> String {
    hex.as_bytes().rchunks(2).flatten().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_is_known_in_both_byte_orders() {
        let [(_, uuid), (_, swapped), _] = machine_names();
        assert_eq!(uuid, "6b696c6e-0000-4000-8000-000000000001");
        assert_eq!(swapped, "6e6c696b-0000-0040-8000-000000000001");
    }
}
