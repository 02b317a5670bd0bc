//! Examines the guest's list of files, for a disk that kiln cannot read. It has digests in place of contents.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::ops::ControlFlow;

use super::{IdentityFile, IdentityReport, SealedView, SoughtIdentity};
use crate::digest::Sha256Digest;
use crate::disk::entry::{DiskEntry, FileDigest, FileKind};
use crate::disk::tree::TreeError;
use crate::wire::path_pattern;
use crate::wire::sealing::{IdentityForm, IdentityRenewal, MachineIdentity};

/// Searches the list for identities.
pub(super) fn look(view: &SealedView<'_>, sought: &[SoughtIdentity]) -> Result<IdentityReport, TreeError> {
    let mut files = ListedFiles::new(sought);
    let is_known = view.walk(&mut |entry| {
        files.add(entry);
        ControlFlow::Continue(())
    })?;
    Ok(if is_known { files.report() } else { IdentityReport::default() })
}

/// The entries of a list of files that matter to the search.
struct ListedFiles<'s> {
    sought: &'s [SoughtIdentity],
    /// Files that make or use identities, whose existence matters.
    asked: BTreeSet<&'static str>,
    present: BTreeSet<&'static str>,
    /// Paths of identities that were found, by the number of the identity.
    found: BTreeMap<usize, Vec<String>>,
}

impl<'s> ListedFiles<'s> {
    fn new(sought: &'s [SoughtIdentity]) -> Self {
        let asked = sought.iter().flat_map(|sought| asked_files(sought.identity)).collect();
        Self { sought, asked, present: BTreeSet::new(), found: BTreeMap::new() }
    }

    fn add(&mut self, entry: &DiskEntry) {
        if let Ok(path) = std::str::from_utf8(&entry.path) {
            self.present.extend(self.asked.get(path));
        }
        for (number, sought) in self.sought.iter().enumerate() {
            if is_in_entry(entry, sought.identity) {
                self.found.entry(number).or_default().push(String::from_utf8_lossy(&entry.path).into_owned());
            }
        }
    }

    fn report(self) -> IdentityReport {
        let mut report = IdentityReport { is_known: true, ..IdentityReport::default() };
        for (number, sought) in self.sought.iter().enumerate() {
            let found = self.files_of(number, sought.identity);
            let judged = report.judge(*sought, &found, &mut |file| Ok::<_, Infallible>(self.present.contains(file)));
            judged.unwrap_or_else(|never| match never {});
        }
        report
    }

    fn files_of(&self, number: usize, identity: &MachineIdentity) -> Vec<IdentityFile> {
        let is_pinned = self.is_pinned(identity);
        let paths = self.found.get(&number).into_iter().flatten();
        paths.map(|path| IdentityFile { path: path.clone(), is_pinned }).collect()
    }

    fn is_pinned(&self, identity: &MachineIdentity) -> bool {
        identity.pinning_files().iter().any(|file| self.present.contains(file))
    }
}

fn asked_files(identity: &'static MachineIdentity) -> Vec<&'static str> {
    let makers = identity.renewal.makers().iter().flat_map(|maker| maker.files.iter().copied());
    let user = match identity.renewal {
        IdentityRenewal::Always { user, .. } => Some(user),
        _ => None,
    };
    makers.chain(user).chain(identity.pinning_files().iter().copied()).collect()
}

/// Returns whether an entry is the identity, as far as its digest shows. A link is not: its target is another entry.
fn is_in_entry(entry: &DiskEntry, identity: &MachineIdentity) -> bool {
    if entry.kind != FileKind::File || !identity.paths.iter().any(|path| path_pattern::matches(path, &entry.path)) {
        return false;
    }
    let placeholders: Vec<&str> =
        identity.renewal.makers().iter().filter_map(|maker| maker.placeholder).map(str::trim).collect();
    // The lines of a file are not known, except for one that should contain a known text.
    let is_comparable = identity.form == IdentityForm::File || !placeholders.is_empty();
    is_comparable && !placeholders.iter().any(|text| is_digest_of(entry, text))
}

fn is_digest_of(entry: &DiskEntry, text: &str) -> bool {
    let digests = [text.to_owned(), format!("{text}\n")].map(|text| FileDigest::Content(Sha256Digest::of(text)));
    entry.digest.is_some_and(|digest| digests.contains(&digest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::entry::Time;
    use crate::output::seal_audit::sought;

    fn entry(path: &str, kind: FileKind, content: &str) -> DiskEntry {
        let time = Time { seconds: 0, nanoseconds: 0 };
        DiskEntry {
            path: path.into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: content.len() as u64,
            digest: (kind == FileKind::File).then(|| FileDigest::Content(Sha256Digest::of(content))),
            target: None,
            device: None,
            xattrs: Vec::new(),
            modified: time,
            changed: time,
            file: (0, 1),
        }
    }

    fn report(entries: &[DiskEntry]) -> IdentityReport {
        let sought = sought(&BTreeSet::new());
        let mut files = ListedFiles::new(&sought);
        for entry in entries {
            files.add(entry);
        }
        files.report()
    }

    #[test]
    fn the_guests_list_is_looked_at_where_kiln_cannot_read_the_files() {
        for (path, kind, content, expected) in [
            ("/etc/machine-id", FileKind::File, "uninitialized\n", false),
            ("/etc/machine-id", FileKind::File, "", false),
            ("/etc/machine-id", FileKind::File, "0123456789abcdef0123456789abcdef\n", true),
            ("/etc/ssh/ssh_host_rsa_key", FileKind::File, "", true),
            ("/etc/ssh/ssh_config", FileKind::File, "x", false),
            ("/etc/nvme/hostnqn", FileKind::File, "nqn", true),
            ("/etc/resolv.conf", FileKind::File, "nameserver 192.0.2.1", false),
            ("/var/lib/dbus/machine-id", FileKind::Link, "", false),
        ] {
            let report = report(&[entry(path, kind, content)]);
            assert_eq!(report.error.is_some(), expected, "{path} {content}");
        }
    }

    #[test]
    fn what_nothing_makes_anew_is_warned_of() {
        let key = entry("/etc/ssl/private/ssl-cert-snakeoil.key", FileKind::File, "x");
        let unit = entry("/usr/lib/systemd/system/ssl-cert.service", FileKind::File, "x");
        let shared = report(std::slice::from_ref(&key));
        assert!(shared.error.is_none() && shared.warnings[0].contains("ssl-cert-snakeoil.key"), "{shared:?}");
        assert!(report(&[key, unit]).error.is_some());
        let user = ["id_rsa", "id_ed25519"].map(|name| entry(&format!("/home/dev/.ssh/{name}"), FileKind::File, "x"));
        let keys = report(&user);
        assert!(keys.warnings[0].contains("/home/dev/.ssh/id_rsa and /home/dev/.ssh/id_ed25519"), "{keys:?}");
        let lacking = report(&[entry("/usr/sbin/sshd", FileKind::File, "x")]);
        assert!(lacking.warnings[0].contains("/usr/sbin/sshd will not work"), "{lacking:?}");
    }
}
