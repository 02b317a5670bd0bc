//! The packages installed in a guest, from the databases of dpkg, apk and rpm.
//!
//! Sources: deb-control(5) and dpkg's `status` file; the Alpine wiki's "Apk spec" for `installed`; rpm(8) for queries, since
//! its database has one of three formats that only rpm reads.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;

use super::tree::{Tree, TreeError};
use crate::wire::mounts::RPM_DATABASES;

pub mod version;

/// The largest database in bytes. One of ten thousand packages has some 15 MB.
pub const MAX_DATABASE: u64 = 64 << 20;
/// The longest part of a package's stanza that is read, in bytes. Those of kernels have some 10 KB.
const MAX_STANZA: usize = 1 << 20;

/// The `--queryformat` of `rpm -qa`, for [`parse`].
pub const RPM_FORMAT: &str = r"%{NAME}\t%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\t%{ARCH}\n";

/// The database of dpkg.
pub(crate) const DPKG_STATUS: &str = "/var/lib/dpkg/status";
/// The folder in which dpkg stores changes until it writes them into [`DPKG_STATUS`]; a dpkg that was killed leaves them
/// there.
pub(crate) const DPKG_UPDATES: &str = "/var/lib/dpkg/updates";
/// The folder in which images without dpkg itself have a stanza for each package, each in a file.
const DPKG_STATUS_FOLDER: &str = "/var/lib/dpkg/status.d";
/// The most files of [`DPKG_STATUS_FOLDER`] that are read.
const MAX_STATUS_FILES: usize = 10_000;
/// The database of apk.
pub(crate) const APK_INSTALLED: &str = "/lib/apk/db/installed";
/// The database of apk if `/lib` is in `/usr`, and the link to it is missing.
const APK_INSTALLED_MERGED: &str = "/usr/lib/apk/db/installed";

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct InstalledPackage {
    /// The name of the package.
    pub name: String,
    /// The version in the form of its package manager.
    pub version: String,
    /// The architecture in the form of its package manager: `amd64`, `x86_64`, `all`.
    pub arch: String,
}

/// The format of packages; it determines how their versions are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackageType {
    /// A package of dpkg.
    Deb,
    /// A package of apk.
    Apk,
    /// A package of rpm.
    Rpm,
}

impl PackageType {
    /// Returns the name as in purl-spec, and in the manifest.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            PackageType::Deb => "deb",
            PackageType::Apk => "apk",
            PackageType::Rpm => "rpm",
        }
    }

    /// Returns the type with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [PackageType::Deb, PackageType::Apk, PackageType::Rpm].into_iter().find(|kind| kind.name() == name)
    }
}

/// The packages of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageDatabase {
    /// The type of all packages.
    pub kind: PackageType,
    /// The packages, sorted.
    pub packages: Vec<InstalledPackage>,
}

/// Package managers whose databases kiln does not read, each with a path that only their databases have.
const UNREAD_MANAGERS: [(&str, &str); 13] = [
    ("opkg", "/usr/lib/opkg/status"),
    ("opkg", "/var/lib/opkg/status"),
    ("opkg", "/opt/lib/opkg/status"),
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

/// Reads every package database of dpkg and apk that lists a package. A guest may have several, and an empty one does not
/// exclude others. For those of rpm see [`has_rpm_database`], for all others [`unread_managers`].
///
/// # Errors
/// When the file system is damaged or cannot be read.
pub fn read_databases(tree: &Tree<'_>) -> Result<Vec<PackageDatabase>, TreeError> {
    let mut dpkg = tree.read(DPKG_STATUS, MAX_DATABASE)?.unwrap_or_default();
    append_updates(tree, &mut dpkg)?;
    let mut dpkg = parse(PackageType::Deb, &dpkg);
    dpkg.packages.extend(read_status_folder(tree)?);
    dpkg.packages.sort_unstable();
    let apk = match tree.read(APK_INSTALLED, MAX_DATABASE)? {
        Some(text) => text,
        None => tree.read(APK_INSTALLED_MERGED, MAX_DATABASE)?.unwrap_or_default(),
    };
    let databases = [dpkg, parse(PackageType::Apk, &apk)].into_iter();
    Ok(databases.filter(|database| !database.packages.is_empty()).collect())
}

/// Appends the changes that dpkg has stored since it wrote its database, in their order.
fn append_updates(tree: &Tree<'_>, text: &mut Vec<u8>) -> Result<(), TreeError> {
    let mut names = tree.names(DPKG_UPDATES)?.unwrap_or_default();
    names.retain(|name| !name.is_empty() && name.iter().all(u8::is_ascii_digit));
    names.sort_unstable();
    for name in names.into_iter().take(MAX_STATUS_FILES) {
        let path = format!("{DPKG_UPDATES}/{}", String::from_utf8_lossy(&name));
        text.push(b'\n');
        text.extend(tree.read(&path, MAX_STANZA as u64)?.unwrap_or_default());
    }
    Ok(())
}

/// Reads the stanzas of images that were assembled without dpkg. They have no status: every listed package is installed.
fn read_status_folder(tree: &Tree<'_>) -> Result<Vec<InstalledPackage>, TreeError> {
    let mut packages = Vec::new();
    let names = tree.names(DPKG_STATUS_FOLDER)?.unwrap_or_default();
    let names = names.into_iter().filter_map(|name| String::from_utf8(name).ok());
    for name in names.filter(|name| !name.ends_with(".md5sums")).take(MAX_STATUS_FILES) {
        let text = tree.read(&format!("{DPKG_STATUS_FOLDER}/{name}"), MAX_DATABASE)?.unwrap_or_default();
        packages.extend(stanzas(&text).filter_map(|stanza| dpkg_package(&stanza)));
    }
    Ok(packages)
}

/// Returns the package managers that have a database in this tree which kiln does not read.
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

/// Describes what a list of packages lacks because the database of this manager is not read.
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
    let mut packages = match kind {
        PackageType::Deb => dpkg(text),
        PackageType::Apk => stanzas(text).filter_map(|stanza| apk_package(&stanza)).collect(),
        PackageType::Rpm => rpm(&String::from_utf8_lossy(text)),
    };
    packages.sort_unstable();
    PackageDatabase { kind, packages }
}

/// Returns the text between empty lines, as strings.
fn stanzas(text: &[u8]) -> impl Iterator<Item = Cow<'_, str>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (stanza, later) = match rest.windows(2).position(|pair| pair == b"\n\n") {
            Some(end) => (&rest[..end], &rest[end + 2..]),
            None if rest.is_empty() => return None,
            None => (rest, &rest[rest.len()..]),
        };
        rest = later;
        Some(String::from_utf8_lossy(&stanza[..stanza.len().min(MAX_STANZA)]))
    })
}

/// Parses stanzas of `Key: value` lines; lines that begin with a space continue a value that is not needed. The last stanza
/// of a package counts.
fn dpkg(text: &[u8]) -> Vec<InstalledPackage> {
    let mut packages = BTreeMap::new();
    for stanza in stanzas(text) {
        if let Some(package) = dpkg_package(&stanza) {
            let name = (package.name.clone(), package.arch.clone());
            packages.insert(name, is_on_disk(&stanza).then_some(package));
        }
    }
    packages.into_values().flatten().collect()
}

fn dpkg_package(stanza: &str) -> Option<InstalledPackage> {
    Some(InstalledPackage {
        name: dpkg_field(stanza, "Package:")?,
        version: dpkg_field(stanza, "Version:").unwrap_or_default(),
        arch: dpkg_field(stanza, "Architecture:").unwrap_or_default(),
    })
}

/// Returns whether dpkg has unpacked files of the package and not removed them. That is so in every state but two (dpkg(1),
/// "Package states"), also after an installation that was interrupted.
fn is_on_disk(stanza: &str) -> bool {
    let status = dpkg_field(stanza, "Status:").unwrap_or_default();
    status.split_whitespace().nth(2).is_some_and(|state| !matches!(state, "not-installed" | "config-files"))
}

/// Parses a stanza of `X:value` lines.
fn apk_package(stanza: &str) -> Option<InstalledPackage> {
    Some(InstalledPackage {
        name: apk_field(stanza, "P:")?,
        version: apk_field(stanza, "V:")?,
        arch: apk_field(stanza, "A:")?,
    })
}

fn apk_field(stanza: &str, key: &str) -> Option<String> {
    stanza.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned())
}

/// Parses lines of three fields. Keys that packages are signed with are in the database too, as packages without an
/// architecture.
fn rpm(text: &str) -> Vec<InstalledPackage> {
    text.lines().filter_map(rpm_package).collect()
}

fn rpm_package(line: &str) -> Option<InstalledPackage> {
    let fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
    let [name, version, arch] = fields.try_into().ok()?;
    (arch != "(none)" && !name.is_empty()).then_some(InstalledPackage { name, version, arch })
}

/// Returns the value of a field, whose name is case-insensitive (deb822(5)).
fn dpkg_field(stanza: &str, key: &str) -> Option<String> {
    stanza.lines().find_map(|line| {
        let (name, value) = line.split_at_checked(key.len())?;
        name.eq_ignore_ascii_case(key).then(|| value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, arch: &str) -> InstalledPackage {
        InstalledPackage { name: name.into(), version: version.into(), arch: arch.into() }
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
        let expected: Vec<InstalledPackage> =
            states[..8].iter().map(|(name, _)| package(name, "1:2~rc1", "amd64")).collect();
        let mut sorted = expected.clone();
        sorted.sort_unstable();
        assert_eq!(dpkg(text.as_bytes()), sorted);
        let later =
            format!("{text}\n{}{}", stanza("removed", "install ok unpacked"), stanza("held", "purge ok not-installed"));
        let names: Vec<String> = dpkg(later.as_bytes()).into_iter().map(|package| package.name).collect();
        assert!(names.contains(&"removed".to_owned()) && !names.contains(&"held".to_owned()), "{names:?}");
        assert_eq!(dpkg(text.to_ascii_lowercase().as_bytes()), sorted);
        let bare = "Package: bare\nStatus: install reinstreq half-installed\n\nPackage: odd\nVersion: 1\n";
        assert_eq!(dpkg(bare.as_bytes()), [package("bare", "", "")], "no state is no package, no version is one");
    }

    #[test]
    fn a_manager_whose_database_nobody_reads_is_named() {
        assert!(missing_packages("pacman").contains("of pacman: kiln does not read"));
        assert!(missing_packages("rpm").contains("only rpm itself"));
    }

    #[test]
    fn apk_stanzas_are_packages() {
        let text = "C:Q1abc=\nP:musl\nV:1.2.5-r0\nA:x86_64\nF:lib\n\nP:busybox\nV:1.36.1-r29\nA:x86_64\n\n";
        let expected = [package("busybox", "1.36.1-r29", "x86_64"), package("musl", "1.2.5-r0", "x86_64")];
        for end in ["", "\n", "\n\n"] {
            let text = format!("{}{end}", text.trim_end());
            assert_eq!(parse(PackageType::Apk, text.as_bytes()).packages, expected);
        }
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
