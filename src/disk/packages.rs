//! The packages installed in a guest, from the databases of dpkg, apk and rpm.
//!
//! Sources: deb-control(5) and dpkg's `status` file; the Alpine wiki's "Apk spec" for `installed`; rpm(8) for queries, since
//! its database is in one of three formats that nobody else reads.

use serde::Serialize;

use super::tree::{Tree, TreeError};

pub mod version;

/// A database of a hundred thousand packages has some 150 MB.
pub const MAX_DATABASE: u64 = 256 << 20;

/// What `rpm -qa --queryformat` is to say of each package, for [`parse`].
pub const RPM_FORMAT: &str = r"%{NAME}\t%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\t%{ARCH}\n";

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

/// The format of packages; how their versions are ordered depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackageType {
    /// Of dpkg.
    Deb,
    /// Of apk.
    Apk,
    /// Of rpm.
    Rpm,
}

impl PackageType {
    /// As purl-spec has it, and the manifest.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            PackageType::Deb => "deb",
            PackageType::Apk => "apk",
            PackageType::Rpm => "rpm",
        }
    }

    /// The type of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [PackageType::Deb, PackageType::Apk, PackageType::Rpm].into_iter().find(|kind| kind.name() == name)
    }
}

/// All packages of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Of which type all of them are.
    pub kind: PackageType,
    /// Sorted.
    pub packages: Vec<Package>,
}

/// What is installed, as far as the host can read it; `None` where the guest has neither dpkg nor apk.
///
/// # Errors
/// When the file system is damaged or cannot be read.
pub fn installed(tree: &Tree<'_>) -> Result<Option<Installed>, TreeError> {
    for (kind, path) in [(PackageType::Deb, "/var/lib/dpkg/status"), (PackageType::Apk, "/lib/apk/db/installed")] {
        if let Some(text) = tree.read(path, MAX_DATABASE)? {
            return Ok(Some(parse(kind, &text)));
        }
    }
    Ok(None)
}

/// The packages in dpkg's or apk's database, or in what rpm says when it is asked in [`RPM_FORMAT`].
#[must_use]
pub fn parse(kind: PackageType, text: &[u8]) -> Installed {
    let text = String::from_utf8_lossy(text);
    let mut packages = match kind {
        PackageType::Deb => dpkg(&text),
        PackageType::Apk => apk(&text),
        PackageType::Rpm => rpm(&text),
    };
    packages.sort_unstable();
    Installed { kind, packages }
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

/// Lines of three fields. Keys that packages are signed with are in the database too, as packages of no architecture.
fn rpm(text: &str) -> Vec<Package> {
    let package = |line: &str| {
        let mut fields = line.split('\t').map(str::to_owned);
        let (name, version, arch) = (fields.next()?, fields.next()?, fields.next()?);
        let is_package = arch != "(none)" && !name.is_empty() && fields.next().is_none();
        is_package.then_some(Package { name, version, arch })
    };
    text.lines().filter_map(package).collect()
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

    #[test]
    fn rpm_lines_are_packages_and_keys_are_not() {
        let text = "bash\t5.2.26-3.fc40\tx86_64\ngpg-pubkey\ta15b79cc-63d04c2c\t(none)\nshadow-utils\t2:4.15.1-4.fc40\tx86_64\n\
                    warning: rpmdb is old\nbroken\t1\n\nx\t1\ty\tz\n";
        let expected =
            [package("bash", "5.2.26-3.fc40", "x86_64"), package("shadow-utils", "2:4.15.1-4.fc40", "x86_64")];
        assert_eq!(parse(PackageType::Rpm, text.as_bytes()).packages, expected);
    }

    #[test]
    fn types_have_names() {
        for kind in [PackageType::Deb, PackageType::Apk, PackageType::Rpm] {
            assert_eq!(PackageType::named(kind.name()), Some(kind));
        }
        assert_eq!(PackageType::named("gem"), None);
    }
}
