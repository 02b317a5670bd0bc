//! The packages installed in a guest, from the databases of dpkg and apk.
//!
//! Sources: deb-control(5) and dpkg's `status` file; the Alpine wiki's "Apk spec" for `installed`.

use serde::Serialize;

use super::tree::{Tree, TreeError};

/// A database of a hundred thousand packages has some 150 MB.
const MAX_DATABASE: u64 = 256 << 20;

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// In the form of its package manager.
    pub version: String,
    /// Likewise: `amd64`, `x86_64`, `all`.
    pub arch: String,
}

/// What is installed, sorted; `None` where the guest has neither dpkg nor apk.
///
/// # Errors
/// When the file system is damaged or cannot be read.
pub fn packages(tree: &Tree<'_>) -> Result<Option<Vec<Package>>, TreeError> {
    let found = match tree.read("/var/lib/dpkg/status", MAX_DATABASE)? {
        Some(text) => Some(dpkg(&String::from_utf8_lossy(&text))),
        None => tree.read("/lib/apk/db/installed", MAX_DATABASE)?.map(|text| apk(&String::from_utf8_lossy(&text))),
    };
    Ok(found.map(|mut packages| {
        packages.sort_unstable();
        packages
    }))
}

/// Stanzas of `Key: value` lines; lines that begin with a space continue a value we do not need.
fn dpkg(text: &str) -> Vec<Package> {
    let installed = |stanza: &&str| field(stanza, "Status: ").is_some_and(|status| status.ends_with(" ok installed"));
    let package = |stanza: &str| {
        Some(Package {
            name: field(stanza, "Package: ")?,
            version: field(stanza, "Version: ")?,
            arch: field(stanza, "Architecture: ")?,
        })
    };
    text.split("\n\n").filter(installed).filter_map(package).collect()
}

/// Stanzas of `X:value` lines.
fn apk(text: &str) -> Vec<Package> {
    let package = |stanza: &str| {
        Some(Package { name: field(stanza, "P:")?, version: field(stanza, "V:")?, arch: field(stanza, "A:")? })
    };
    text.split("\n\n").filter_map(package).collect()
}

fn field(stanza: &str, key: &str) -> Option<String> {
    stanza.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, arch: &str) -> Package {
        Package { name: name.into(), version: version.into(), arch: arch.into() }
    }

    #[test]
    fn only_what_dpkg_calls_installed_counts() {
        let text = "Package: zsh\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.9-4+b2\n\
                    Description: shell\n Version: of its text\n\n\
                    Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\n\
                    Package: held\nStatus: hold ok installed\nArchitecture: all\nVersion: 1:2~rc1\n";
        assert_eq!(dpkg(text), [package("zsh", "5.9-4+b2", "amd64"), package("held", "1:2~rc1", "all")]);
    }

    #[test]
    fn apk_stanzas_are_packages() {
        let text = "C:Q1abc=\nP:musl\nV:1.2.5-r0\nA:x86_64\nF:lib\n\nP:busybox\nV:1.36.1-r29\nA:x86_64\n\n";
        assert_eq!(apk(text), [package("musl", "1.2.5-r0", "x86_64"), package("busybox", "1.36.1-r29", "x86_64")]);
    }
}
