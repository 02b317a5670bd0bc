//! Packages of the sealed image: those that the host reads from its disk, and those that only the guest can list.
//!
//! The host reads the databases of dpkg and apk. The guest is asked before it is sealed, where the host cannot read its file
//! systems, or where there is a database of rpm.

use std::time::Duration;

use crate::context::BuildContext;
use crate::disk::os_release::{self, OsRelease};
use crate::disk::packages::{
    APK_INSTALLED, DPKG_STATUS, DPKG_UPDATES, PackageDatabase, PackageType, RPM_FORMAT, has_rpm_database,
    missing_packages, parse, read_databases, unread_managers,
};
use crate::disk::tree::{Tree, TreeError};
use crate::error::Failure;
use crate::event::{Channel, Events, NoticeLevel};
use crate::session::{Exec, Exit};
use crate::store::manifest;
use crate::wire::mounts::RPM_DATABASES;

use super::boot::Guest;

/// The deadline for listing packages. A package database is a file that is read, or a program that reads it; under software
/// emulation that takes a while.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// The longest answer about packages, bytes.
const MAX_ANSWER: usize = 64 << 20;
/// The type of an rpm database that the guest has no program for.
const UNREAD_RPM: &str = "rpm-unread";

/// The guest's answer about its distribution and its packages. It is not trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PackageAnswer {
    pub(crate) os: Option<OsRelease>,
    /// All databases, including those without packages.
    databases: Vec<PackageDatabase>,
    unread_rpm: bool,
}

/// All packages of an image, as far as they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PackageList {
    /// Databases with at least one package each; no two are of one type.
    pub(crate) databases: Vec<PackageDatabase>,
    /// Databases of the image that neither the host nor the guest could list.
    pub(crate) missing: Vec<String>,
}

/// Returns the shell script whose output [`parse_answer`] reads: os-release, then the type of each database and its
/// content, each followed by a NUL. rpm itself reports where its database is: Debian's has it in the home folder of root.
fn question() -> String {
    let rpm = RPM_DATABASES.map(|path| format!("[ -e {path} ]")).join(" || ");
    format!(
        "cat /etc/os-release 2>/dev/null || cat /usr/lib/os-release 2>/dev/null
        printf '\\0'
        if [ -f {DPKG_STATUS} ]; then
            printf 'deb\\0' && cat {DPKG_STATUS} || exit 1
            for f in {DPKG_UPDATES}/[0-9]*; do [ ! -f $f ] || {{ echo && cat $f; }} || exit 1; done
            printf '\\0'
        fi
        if [ -f {APK_INSTALLED} ]; then printf 'apk\\0' && cat {APK_INSTALLED} && printf '\\0' || exit 1; fi
        if command -v rpm >/dev/null; then
            if [ -e \"$(rpm --eval '%{{_dbpath}}')\" ]; then
                printf 'rpm\\0' && rpm -qa --queryformat '{RPM_FORMAT}' && printf '\\0' || exit 1
            fi
        elif {rpm}; then
            printf '{UNREAD_RPM}\\0\\0'
        fi"
    )
}

/// Asks a guest that is not sealed yet. Returns `None` where it has no usable answer, with a warning.
pub(crate) async fn ask(build: &BuildContext<'_>, guest: &mut Guest) -> Result<Option<PackageAnswer>, Failure> {
    let exec = Exec { timeout: Some(PATIENCE), ..Exec::new(["sh", "-c", &question()]) };
    let mut answer = Vec::new();
    let mut is_long = false;
    let mut keep = |channel: Channel, bytes: &[u8]| {
        let fits = answer.len() + bytes.len() <= MAX_ANSWER;
        is_long |= !fits;
        if channel == Channel::Stdout && fits {
            answer.extend_from_slice(bytes);
        }
    };
    let request = guest.session.exec(&exec, &mut keep);
    let exit = build.limits.call_with_grace(&guest.machine, PATIENCE, request).await?;
    if exit == Exit::Code(0) && !is_long {
        return Ok(Some(parse_answer(&answer)));
    }
    let why = if is_long { "its answer is too long".to_owned() } else { format!("the query {exit}") };
    build.events.notice(NoticeLevel::Warning, format!("the guest could not list its packages: {why}"));
    Ok(None)
}

fn parse_answer(bytes: &[u8]) -> PackageAnswer {
    let mut parts = bytes.split(|byte| *byte == 0);
    let os = parts.next().unwrap_or_default();
    let os = (!os.trim_ascii().is_empty()).then(|| os_release::parse(os));
    let mut answer = PackageAnswer { os, ..PackageAnswer::default() };
    while let (Some(kind), Some(content)) = (parts.next(), parts.next()) {
        match std::str::from_utf8(kind) {
            Ok(UNREAD_RPM) => answer.unread_rpm = true,
            Ok(name) => answer.databases.extend(PackageType::named(name).map(|kind| parse(kind, content))),
            Err(_) => {}
        }
    }
    answer
}

fn is_listed(databases: &[PackageDatabase], kind: PackageType) -> bool {
    databases.iter().any(|database| database.kind == kind)
}

impl PackageList {
    /// Collects the databases of a tree, and those of the guest's answer that the host does not read itself.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub(crate) fn collect(tree: Option<&Tree<'_>>, answer: Option<&PackageAnswer>) -> Result<Self, TreeError> {
        let mut databases = tree.map_or(Ok(Vec::new()), read_databases)?;
        let answered = answer.map_or(&[][..], |answer| &answer.databases);
        for database in answered {
            if !database.packages.is_empty() && !is_listed(&databases, database.kind) {
                databases.push(database.clone());
            }
        }
        let has_rpm = answer.is_some_and(|answer| answer.unread_rpm) || tree.map_or(Ok(false), has_rpm_database)?;
        let is_unread = has_rpm && !is_listed(answered, PackageType::Rpm);
        let unread = tree.map_or(Ok(Vec::new()), unread_managers)?;
        let missing = is_unread.then_some("rpm").into_iter().chain(unread).map(missing_packages);
        Ok(Self { databases, missing: missing.collect() })
    }

    /// Warns of missing databases, and of several databases, which packages of one system rarely have.
    pub(crate) fn warn(&self, events: &Events) {
        for missing in &self.missing {
            events.notice(NoticeLevel::Warning, format!("the bill of materials lacks {missing}"));
        }
        if self.databases.len() > 1 {
            let databases = self.databases.iter();
            let counts = databases.map(|found| format!("{} of {}", found.packages.len(), found.kind.name()));
            let counts = counts.collect::<Vec<_>>().join(", ");
            let text = format!("the image has several package databases; all are listed: {counts}");
            events.notice(NoticeLevel::Warning, text);
        }
    }

    /// Returns the type of the first database, and all packages in the form of the manifest.
    pub(crate) fn for_manifest(self) -> (Option<String>, Vec<manifest::ManifestPackage>) {
        let package_type = self.databases.first().map(|database| database.kind);
        let mut packages = Vec::new();
        for database in self.databases {
            let other = (Some(database.kind) != package_type).then(|| database.kind.name().to_owned());
            packages.extend(database.packages.into_iter().map(|package| manifest::ManifestPackage {
                name: package.name,
                version: package.version,
                arch: package.arch,
                kind: other.clone(),
            }));
        }
        (package_type.map(|kind| kind.name().to_owned()), packages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DPKG: &str = "Package: zsh\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.9\n";

    #[test]
    fn a_guest_answers_with_its_system_and_every_database() {
        let bytes = format!("ID=fedora\nVERSION_ID=40\n\0deb\0{DPKG}\0apk\0\0rpm\0bash\t5.2-3\tx86_64\n\0");
        let answer = parse_answer(bytes.as_bytes());
        assert_eq!(answer.os.as_ref().map(|os| os.id.as_str()), Some("fedora"));
        let list = PackageList::collect(None, Some(&answer)).unwrap();
        let kinds: Vec<_> = list.databases.iter().map(|database| database.kind).collect();
        assert_eq!(kinds, [PackageType::Deb, PackageType::Rpm], "one that is empty hides no other");
        let (package_type, packages) = list.for_manifest();
        assert_eq!(package_type.as_deref(), Some("deb"));
        assert_eq!(packages.iter().map(|package| package.kind.as_deref()).collect::<Vec<_>>(), [None, Some("rpm")]);
    }

    #[test]
    fn a_database_that_nobody_reads_is_missing() {
        let answer = parse_answer(format!("\0rpm-unread\0\0deb\0{DPKG}\0").as_bytes());
        let list = PackageList::collect(None, Some(&answer)).unwrap();
        assert_eq!((list.databases.len(), list.missing.len()), (1, 1));
        let empty = parse_answer(b"\0rpm\0\0");
        assert_eq!(PackageList::collect(None, Some(&empty)).unwrap(), PackageList::default(), "it was read");
    }

    #[test]
    fn an_answer_of_nonsense_lists_nothing() {
        for bytes in [&b""[..], b"\0", b"\0\0", b"\n\0gem\0a\tb\tc\n\0", &[0xff; 100][..], &[0; 100]] {
            let answer = parse_answer(bytes);
            assert!(answer.databases.is_empty() && !answer.unread_rpm, "{bytes:?}");
        }
        assert!(parse_answer(b"\0\0").os.is_none());
    }

    #[test]
    fn the_question_is_a_script_that_lists_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let place = |path: &str| {
            let path = folder.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        std::fs::write(place(DPKG_STATUS), "").unwrap();
        std::fs::write(place(&format!("{DPKG_UPDATES}/0001")), DPKG.replace("ok installed", "ok half-configured"))
            .unwrap();
        std::fs::write(place(&format!("{DPKG_UPDATES}/tmp.i")), DPKG.replace("zsh", "none")).unwrap();
        std::fs::write(place(APK_INSTALLED), "P:musl\nV:1\nA:x\n").unwrap();
        let root = folder.path().to_str().unwrap();
        let script = question()
            .replace("/var/lib", &format!("{root}/var/lib"))
            .replace(" /lib/apk", &format!(" {root}/lib/apk"));
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(output.status.success());
        let list = PackageList::collect(None, Some(&parse_answer(&output.stdout))).unwrap();
        let found = list.databases.iter().map(|found| (found.kind, &*found.packages[0].name, found.packages.len()));
        assert_eq!(found.collect::<Vec<_>>(), [(PackageType::Deb, "zsh", 1), (PackageType::Apk, "musl", 1)]);
    }
}
