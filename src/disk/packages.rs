//! The packages installed in a guest, from the databases of dpkg, apk and rpm.
//!
//! Sources: deb-control(5) and dpkg's `status` file; the Alpine wiki's "Apk spec" for `installed`; rpm(8) for queries, since
//! its database is in one of three formats that nobody else reads.

use serde::Serialize;

use super::tree::{Tree, TreeError};
use crate::wire::mounts::RPM_DATABASES;

pub mod version;

/// A database of a hundred thousand packages has some 150 MB.
pub const MAX_DATABASE: u64 = 256 << 20;

/// What `rpm -qa --queryformat` is to say of each package, for [`parse`].
pub const RPM_FORMAT: &str = r"%{NAME}\t%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\t%{ARCH}\n";

/// The database of dpkg.
pub(crate) const DPKG_STATUS: &str = "/var/lib/dpkg/status";
/// Where images without dpkg itself have a stanza in a file for each package.
const DPKG_STATUS_FOLDER: &str = "/var/lib/dpkg/status.d";
/// The most of these files that are read.
const MAX_STATUS_FILES: usize = 10_000;
/// The database of apk.
pub(crate) const APK_INSTALLED: &str = "/lib/apk/db/installed";

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

/// The packages of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageDatabase {
    /// Of which type all of them are.
    pub kind: PackageType,
    /// Sorted.
    pub packages: Vec<Package>,
}

/// Package managers whose databases kiln does not read, each with a path that only their databases have.
const UNREAD_MANAGERS: [(&str, &str); 12] = [
    ("opkg", "/usr/lib/opkg/status"),
    ("opkg", "/var/lib/opkg/status"),
    ("pacman", "/var/lib/pacman/local"),
    ("pacman", "/usr/lib/sysimage/lib/pacman/local"),
    ("portage", "/var/db/pkg"),
    ("xbps", "/var/db/xbps"),
    ("swupd", "/usr/share/clear/bundles"),
    ("nix", "/nix/var/nix/db"),
    ("guix", "/var/guix/db"),
    ("pkgtools", "/var/lib/pkgtools/packages"),
    ("pkgtools", "/var/log/packages"),
    ("eopkg", "/var/lib/eopkg/package"),
];

/// Reads every package database of dpkg and apk that lists a package. A guest may have several, and an empty one says
/// nothing about the others. For those of rpm see [`has_rpm_database`], for all others [`unread_managers`].
///
/// # Errors
/// When the file system is damaged or cannot be read.
pub fn read_databases(tree: &Tree<'_>) -> Result<Vec<PackageDatabase>, TreeError> {
    let read = |kind, path| {
        let text = tree.read(path, MAX_DATABASE)?.unwrap_or_default();
        Ok::<_, TreeError>(parse(kind, &text))
    };
    let mut dpkg = read(PackageType::Deb, DPKG_STATUS)?;
    dpkg.packages.extend(read_status_folder(tree)?);
    dpkg.packages.sort_unstable();
    let databases = [dpkg, read(PackageType::Apk, APK_INSTALLED)?].into_iter();
    Ok(databases.filter(|database| !database.packages.is_empty()).collect())
}

/// Reads the stanzas of images that were assembled without dpkg. They have no status: what is there is installed.
fn read_status_folder(tree: &Tree<'_>) -> Result<Vec<Package>, TreeError> {
    let mut packages = Vec::new();
    let names = tree.names(DPKG_STATUS_FOLDER)?.unwrap_or_default();
    let names = names.into_iter().filter_map(|name| String::from_utf8(name).ok());
    for name in names.filter(|name| !name.ends_with(".md5sums")).take(MAX_STATUS_FILES) {
        let text = tree.read(&format!("{DPKG_STATUS_FOLDER}/{name}"), MAX_DATABASE)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        packages.extend(text.split("\n\n").filter_map(dpkg_package));
    }
    Ok(packages)
}

/// Returns the package managers that have a database in this tree which nobody reads.
///
/// # Errors
/// When the file system is damaged or cannot be read.
pub fn unread_managers(tree: &Tree<'_>) -> Result<Vec<&'static str>, TreeError> {
    let mut found = Vec::new();
    for (manager, path) in UNREAD_MANAGERS {
        let is_there = match tree.names(path)? {
            Some(names) => !names.is_empty(),
            None => tree.has(path)?,
        };
        if is_there && !found.contains(&manager) {
            found.push(manager);
        }
    }
    Ok(found)
}

/// Returns what a list of packages lacks because nobody has read the database of this manager.
#[must_use]
pub fn missing_packages(manager: &str) -> String {
    match manager {
        "rpm" => "the packages of rpm: only rpm itself reads its database".to_owned(),
        _ => format!("the packages of {manager}: kiln does not read its database"),
    }
}

/// Returns whether the guest has a database of rpm, which only rpm itself reads.
///
/// # Errors
/// When the file system is damaged or cannot be read.
pub fn has_rpm_database(tree: &Tree<'_>) -> Result<bool, TreeError> {
    for (folder, file) in RPM_DATABASES.iter().filter_map(|path| path.rsplit_once('/')) {
        if tree.names(folder)?.is_some_and(|names| names.iter().any(|name| name == file.as_bytes())) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Parses the database of dpkg or apk, or the output of rpm for a query in [`RPM_FORMAT`].
#[must_use]
pub fn parse(kind: PackageType, text: &[u8]) -> PackageDatabase {
    let text = String::from_utf8_lossy(text);
    let mut packages = match kind {
        PackageType::Deb => dpkg(&text),
        PackageType::Apk => apk(&text),
        PackageType::Rpm => rpm(&text),
    };
    packages.sort_unstable();
    PackageDatabase { kind, packages }
}

/// Parses stanzas of `Key: value` lines; lines that begin with a space continue a value that is not needed.
fn dpkg(text: &str) -> Vec<Package> {
    text.split("\n\n").filter(|stanza| is_on_disk(stanza)).filter_map(dpkg_package).collect()
}

fn dpkg_package(stanza: &str) -> Option<Package> {
    Some(Package {
        name: field(stanza, "Package: ")?,
        version: field(stanza, "Version: ").unwrap_or_default(),
        arch: field(stanza, "Architecture: ").unwrap_or_default(),
    })
}

/// Returns whether dpkg has unpacked files of the package and not removed them. That is so in every state but two
/// (dpkg(1), "Package states"), also after an installation that stopped half way.
fn is_on_disk(stanza: &str) -> bool {
    let status = field(stanza, "Status: ").unwrap_or_default();
    status.split_whitespace().nth(2).is_some_and(|state| !matches!(state, "not-installed" | "config-files"))
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
    fn every_state_of_dpkg_with_files_on_the_disk_counts() {
        let stanza = |name: &str, status: &str| {
            format!(
                "Package: {name}\nStatus: {status}\nArchitecture: amd64\nVersion: 1:2~rc1\nDescription: x\n Version: of its text\n\n"
            )
        };
        let states = [
            ("installed", "install ok installed"),
            ("held", "hold ok installed"),
            ("half-installed", "install reinstreq half-installed"),
            ("unpacked", "install ok unpacked"),
            ("half-configured", "install ok half-configured"),
            ("awaits", "install ok triggers-awaited"),
            ("pending", "install ok triggers-pending"),
            ("reinstreq", "install reinstreq installed"),
            ("removed", "deinstall ok config-files"),
            ("never", "unknown ok not-installed"),
        ];
        let text: String = states.iter().map(|(name, status)| stanza(name, status)).collect();
        let expected: Vec<Package> = states[..8].iter().map(|(name, _)| package(name, "1:2~rc1", "amd64")).collect();
        assert_eq!(dpkg(&text), expected);
        let bare = "Package: bare\nStatus: install reinstreq half-installed\n\nPackage: odd\nVersion: 1\n";
        assert_eq!(dpkg(bare), [package("bare", "", "")], "no state is no package, no version is one");
    }

    #[test]
    fn a_manager_whose_database_nobody_reads_is_named() {
        assert!(missing_packages("pacman").contains("of pacman: kiln does not read"));
        assert!(missing_packages("rpm").contains("only rpm itself"));
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
