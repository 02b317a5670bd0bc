//! Looks from outside whether sealing did what it said. Clones that share a machine-id share a DHCP lease, those that share
//! host keys can pose as each other, and the guest's own word is no proof: it is the guest that may be at fault.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use sha2::{Digest, Sha256};

use crate::disk::entry::{Entry, FileDigest, FileKind};
use crate::disk::tree::{Tree, TreeError};
use crate::error::{Fault, Kind};

use super::contents::SealedView;

/// A machine-id and what stands for none (machine-id(5)) are shorter, bytes.
const LIMIT: u64 = 1 << 20;

/// Files that make a machine itself, after the operation that takes them away.
const MARKS: [(&str, &str); 12] = [
    ("cloud-init", "/var/lib/cloud/data/instance-id"),
    ("cloud-init", "/var/lib/cloud/instance/user-data.txt"),
    ("machine-id", "/etc/machine-id"),
    ("machine-id", "/var/lib/dbus/machine-id"),
    ("ssh-hostkeys", "/etc/ssh/ssh_host_rsa_key"),
    ("ssh-hostkeys", "/etc/ssh/ssh_host_ecdsa_key"),
    ("ssh-hostkeys", "/etc/ssh/ssh_host_ed25519_key"),
    ("ssh-hostkeys", "/etc/ssh/ssh_host_dsa_key"),
    ("dhcp-client-state", "/var/lib/NetworkManager/secret_key"),
    ("random-seed", "/var/lib/systemd/random-seed"),
    ("random-seed", "/var/lib/systemd/credential.secret"),
    ("random-seed", "/var/lib/urandom/random-seed"),
];

/// The sealed image is still one machine.
#[derive(Debug, thiserror::Error)]
#[error("the sealed image still holds {path}, which the operation `{operation}` should have taken away")]
pub struct IdentityError {
    operation: &'static str,
    path: &'static str,
}

impl Fault for IdentityError {
    fn kind(&self) -> Kind {
        Kind::Output
    }

    fn hints(&self) -> Vec<String> {
        let skip = self.operation;
        vec![format!("if every clone is meant to have it, write skip = [\"{skip}\"] under [seal]")]
    }
}

/// The result of a look at a sealed image.
#[derive(Debug)]
pub(crate) enum IdentityCheck {
    /// Nothing is left.
    Passed,
    /// Something is.
    Failed(IdentityError),
    /// Not all files are known.
    NotDone,
}

/// Looks for the marks that the spec does not keep: in the files where kiln reads the disk, else in the guest's list of them.
///
/// # Errors
/// When the files cannot be read.
pub(crate) fn look(view: &SealedView<'_>, kept: &BTreeSet<String>) -> Result<IdentityCheck, TreeError> {
    let marks: Vec<_> = MARKS.into_iter().filter(|(operation, _)| !kept.contains(*operation)).collect();
    if let Some(tree) = view.whole_tree() {
        return Ok(find_in_tree(tree, &marks)?.map_or(IdentityCheck::Passed, IdentityCheck::Failed));
    }
    let mut found = None;
    let is_known = view.walk(&mut |entry| {
        found = found.take().or_else(|| find_in_entry(entry, &marks));
        ControlFlow::Continue(())
    })?;
    Ok(match found {
        Some(error) => IdentityCheck::Failed(error),
        None if is_known => IdentityCheck::Passed,
        None => IdentityCheck::NotDone,
    })
}

fn find_in_tree(tree: &Tree<'_>, marks: &[(&'static str, &'static str)]) -> Result<Option<IdentityError>, TreeError> {
    for &(operation, path) in marks {
        let Some(content) = tree.read(path, LIMIT)? else { continue };
        let none = operation == "machine-id" && matches!(content.trim_ascii(), b"" | b"uninitialized");
        if !none {
            return Ok(Some(IdentityError { operation, path }));
        }
    }
    Ok(None)
}

/// A link is no mark itself: what it leads to is another entry.
fn find_in_entry(entry: &Entry, marks: &[(&'static str, &'static str)]) -> Option<IdentityError> {
    let &(operation, path) = marks.iter().find(|(_, path)| path.as_bytes() == entry.path)?;
    let none =
        ["", "\n", "uninitialized", "uninitialized\n"].map(|text| FileDigest::Content(Sha256::digest(text).into()));
    let is_none = operation == "machine-id" && entry.digest.is_some_and(|digest| none.contains(&digest));
    (entry.kind == FileKind::File && !is_none).then_some(IdentityError { operation, path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::entry::Time;
    use crate::spec::seal::OPERATIONS;

    #[test]
    fn the_guests_list_is_looked_at_where_kiln_cannot_read_the_files() {
        let time = Time { seconds: 0, nanoseconds: 0 };
        let entry = |path: &str, kind, content: &str| Entry {
            path: path.into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: content.len() as u64,
            digest: (kind == FileKind::File).then(|| FileDigest::Content(Sha256::digest(content).into())),
            target: None,
            device: None,
            xattrs: Vec::new(),
            modified: time,
            changed: time,
            file: (0, 1),
        };
        let is_mark = |path: &str, kind, content: &str| find_in_entry(&entry(path, kind, content), &MARKS).is_some();
        for (path, content, expected) in [
            ("/etc/machine-id", "uninitialized\n", false),
            ("/etc/machine-id", "", false),
            ("/etc/machine-id", "0123456789abcdef0123456789abcdef\n", true),
            ("/etc/ssh/ssh_host_rsa_key", "", true),
            ("/etc/ssh/ssh_config", "x", false),
        ] {
            assert_eq!(is_mark(path, FileKind::File, content), expected, "{path} {content}");
        }
        assert!(!is_mark("/var/lib/dbus/machine-id", FileKind::Link, ""));
    }

    #[test]
    fn every_mark_belongs_to_an_operation() {
        for (operation, path) in MARKS {
            assert!(OPERATIONS.iter().any(|(name, _)| *name == operation), "{operation} of {path}");
        }
    }
}
