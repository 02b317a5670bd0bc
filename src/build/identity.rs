//! Looks from outside whether sealing did what it said. Clones that share a machine-id share a DHCP lease, those that share
//! host keys can pose as each other, and the guest's own word is no proof: it is the guest that may be at fault.

use std::collections::BTreeSet;

use crate::disk::tree::{Tree, TreeError};
use crate::error::{Fault, Kind};

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

/// The first mark that is left, unless the spec keeps it.
///
/// # Errors
/// When the file system cannot be read.
pub fn look(tree: &Tree<'_>, kept: &BTreeSet<String>) -> Result<Option<IdentityError>, TreeError> {
    for (operation, path) in MARKS.into_iter().filter(|(operation, _)| !kept.contains(*operation)) {
        let Some(content) = tree.read(path, LIMIT)? else { continue };
        let none = operation == "machine-id" && matches!(content.trim_ascii(), b"" | b"uninitialized");
        if !none {
            return Ok(Some(IdentityError { operation, path }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::seal::OPERATIONS;

    #[test]
    fn every_mark_belongs_to_an_operation() {
        for (operation, path) in MARKS {
            assert!(OPERATIONS.iter().any(|(name, _)| *name == operation), "{operation} of {path}");
        }
    }
}
