//! Looks from outside whether sealing did what it said. Clones that share a machine-id share a DHCP lease, those that share
//! host keys can pose as each other, and the guest's own word is no proof: it is the guest that may be at fault.

use std::collections::BTreeSet;

use crate::disk::tree::TreeError;
use crate::error::{Fault, Kind};
use crate::wire::sealing::{IdentityRenewal, MachineIdentity, OPERATIONS, SealOperation};

use super::contents::SealedView;

mod list;
mod tree;

/// The sealed image is still one machine.
#[derive(Debug, thiserror::Error)]
#[error("the sealed image still holds {path}, which the operation `{operation}` should have taken away")]
pub struct IdentityError {
    operation: &'static str,
    path: String,
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

/// What a look at a sealed image has found.
#[derive(Debug, Default)]
pub(crate) struct IdentityReport {
    /// What should not be there.
    pub(crate) error: Option<IdentityError>,
    /// What all clones will share or lack, a sentence each.
    pub(crate) warnings: Vec<String>,
    /// Whether all files are known.
    pub(crate) is_known: bool,
}

impl IdentityReport {
    /// Adds what becomes of an identity: `found` is where it is, and whether something pins it there.
    ///
    /// # Errors
    /// Those of `exists`, which looks for files of the image.
    fn judge<E>(
        &mut self,
        sought: SoughtIdentity,
        found: Option<(String, bool)>,
        exists: &mut dyn FnMut(&str) -> Result<bool, E>,
    ) -> Result<(), E> {
        let renewal = sought.identity.renewal;
        let is_certain = renewal.is_certain(exists)?;
        match (found, renewal) {
            (Some((path, is_pinned)), IdentityRenewal::Always { .. }) => self.add(sought, &path, !is_pinned),
            (Some((path, is_pinned)), _) => self.add(sought, &path, is_certain && !is_pinned),
            (None, IdentityRenewal::Always { user, .. }) if !is_certain && exists(user)? => {
                self.add_missing(sought, user);
            }
            (None, _) => {}
        }
        Ok(())
    }

    /// Adds an identity that is in the image at this path.
    fn add(&mut self, sought: SoughtIdentity, path: &str, is_renewed: bool) {
        if is_renewed {
            let error = || IdentityError { operation: sought.operation, path: path.to_owned() };
            self.error.get_or_insert_with(error);
        } else {
            self.warnings.push(format!(
                "every clone of the image will have the same {path} ({}), and nothing in the image makes it anew; if \
                 that is intended, write skip = [\"{}\"] under [seal]",
                sought.identity.name, sought.operation
            ));
        }
    }

    /// Adds an identity that the image's clones lack.
    fn add_missing(&mut self, sought: SoughtIdentity, user: &str) {
        self.warnings.push(format!(
            "{} were removed, and nothing in the image makes them at first boot: {user} will not work without them; keep \
             cloud-init, or write skip = [\"{}\"] under [seal]",
            sought.identity.name, sought.operation
        ));
    }
}

/// An identity of an operation that the spec does not skip.
#[derive(Debug, Clone, Copy)]
struct SoughtIdentity {
    operation: &'static str,
    identity: &'static MachineIdentity,
}

/// Looks for what must differ in each clone and the spec does not keep: in the files where kiln reads the disk, else in the
/// guest's list of them.
///
/// # Errors
/// When the files cannot be read.
pub(crate) fn look(view: &SealedView<'_>, kept: &BTreeSet<String>) -> Result<IdentityReport, TreeError> {
    let sought = sought(kept);
    match view.whole_tree() {
        Some(tree) => tree::look(tree, &sought),
        None => list::look(view, &sought),
    }
}

fn sought(kept: &BTreeSet<String>) -> Vec<SoughtIdentity> {
    let operations = OPERATIONS.iter().filter(|operation| !kept.contains(operation.name));
    let identities = |operation: &'static SealOperation| {
        operation.identities.iter().map(|identity| SoughtIdentity { operation: operation.name, identity })
    };
    operations.flat_map(identities).collect()
}
