//! Checks on the host whether sealing had the reported effect. Clones that share a machine-id share a DHCP lease, and those
//! that share host keys can pose as each other. The guest's own report is no proof: the guest may be at fault.

use std::collections::BTreeSet;

use crate::disk::tree::TreeError;
use crate::error::{Fault, Kind};
use crate::wire::sealing::{IdentityRenewal, MachineIdentity, OPERATIONS};

use super::contents::SealedView;

mod list;
pub(crate) mod planted;
mod tree;

/// The sealed image still contains an identity.
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
        vec!["stop the service that writes it while the guest is sealed or shuts down, in the last step".to_owned()]
    }
}

/// The number of files of one identity that a warning names.
const NAMED: usize = 5;

/// The result of examining a sealed image.
#[derive(Debug, Default)]
pub(crate) struct IdentityReport {
    /// An identity that should have been removed.
    pub(crate) error: Option<IdentityError>,
    /// Identities that all clones will share or lack, a sentence each.
    pub(crate) warnings: Vec<String>,
    /// Whether all files are known.
    pub(crate) is_known: bool,
}

/// A file of the image that contains an identity.
#[derive(Debug)]
struct IdentityFile {
    path: String,
    /// Whether other parts of the image depend on it, so that sealing keeps it.
    is_pinned: bool,
}

impl IdentityReport {
    /// Adds the files in which an identity was found, or its absence where that matters.
    ///
    /// # Errors
    /// Those of `exists`, which looks for files of the image.
    fn judge<E>(
        &mut self,
        sought: SoughtIdentity,
        found: &[IdentityFile],
        exists: &mut dyn FnMut(&str) -> Result<bool, E>,
    ) -> Result<(), E> {
        let renewal = sought.identity.renewal;
        let is_certain = renewal.is_certain(exists)?;
        let is_removed = is_certain || matches!(renewal, IdentityRenewal::Always { .. });
        match renewal {
            IdentityRenewal::Always { user, remedy, .. } if found.is_empty() && !is_certain && exists(user)? => {
                self.warnings.push(describe_missing(sought.identity, user, remedy));
            }
            _ => self.add(sought, found, is_removed),
        }
        Ok(())
    }

    /// Adds an identity that is in these files of the image. An identity that sealing removes must not be there, unless it
    /// is pinned.
    fn add(&mut self, sought: SoughtIdentity, found: &[IdentityFile], is_removed: bool) {
        if let Some(file) = found.iter().find(|file| is_removed && !file.is_pinned) {
            self.error.get_or_insert_with(|| IdentityError { operation: sought.operation, path: file.path.clone() });
        } else if !found.is_empty() {
            self.warnings.push(describe_shared(sought.identity, found));
        }
    }
}

/// Describes an identity that all clones share. Skipping its operation would keep the identities that sealing does remove,
/// so the warning never advises that.
fn describe_shared(identity: &MachineIdentity, found: &[IdentityFile]) -> String {
    let paths: Vec<&str> = found.iter().map(|file| file.path.as_str()).collect();
    let remedy = identity.remedy(found.iter().any(|file| file.is_pinned));
    format!(
        "every clone of the image will have the same {} ({}), and nothing in the image makes it anew: {remedy}",
        list_paths(&paths),
        identity.name
    )
}

/// Describes an identity that was removed and that the image's clones will lack.
fn describe_missing(identity: &MachineIdentity, user: &str, remedy: &str) -> String {
    format!(
        "{} were removed, and nothing in the image makes them at first boot: {user} will not work without them; {remedy}",
        identity.name
    )
}

/// Lists the first paths, and counts the others.
fn list_paths(paths: &[&str]) -> String {
    let others = paths.len().saturating_sub(NAMED);
    match paths {
        _ if others > 0 => format!("{} and {others} more files", paths[..NAMED].join(", ")),
        [before @ .., last] if !before.is_empty() => format!("{} and {last}", before.join(", ")),
        _ => paths.concat(),
    }
}

/// An identity to search for; the spec does not skip its operation.
#[derive(Debug, Clone, Copy)]
struct SoughtIdentity {
    operation: &'static str,
    identity: &'static MachineIdentity,
}

/// Searches for identities that must differ in each clone and that the spec does not keep: in the files where kiln reads
/// the disk, else in the guest's list of them.
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
    let sought = operations.flat_map(|operation| {
        operation.identities.iter().map(|identity| SoughtIdentity { operation: operation.name, identity })
    });
    sought.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_names_a_few_files_and_counts_the_others() {
        assert_eq!(list_paths(&["/a"]), "/a");
        assert_eq!(list_paths(&["/a", "/b"]), "/a and /b");
        assert_eq!(list_paths(&["/a", "/b", "/c"]), "/a, /b and /c");
        assert_eq!(list_paths(&["/a", "/b", "/c", "/d", "/e", "/f", "/g"]), "/a, /b, /c, /d, /e and 2 more files");
    }

    #[test]
    fn no_warning_advises_to_skip_an_operation() {
        for sought in sought(&BTreeSet::new()) {
            for is_pinned in [false, true] {
                let found = [IdentityFile { path: "/x".into(), is_pinned }];
                let mut report = IdentityReport::default();
                report.add(sought, &found, false);
                let [warning] = &report.warnings[..] else { panic!("{report:?}") };
                let (_, remedy) = warning.split_once("makes it anew: ").unwrap();
                assert!(!warning.contains("skip") && remedy.len() > 20, "{warning}");
            }
        }
    }

    #[test]
    fn what_the_sealed_image_should_not_hold_is_an_error_without_advice_to_keep_it() {
        let nqn = sought(&BTreeSet::new()).into_iter().find(|sought| sought.identity.name == "NVMe host NQN").unwrap();
        let found = [IdentityFile { path: "/etc/nvme/hostnqn".into(), is_pinned: false }];
        let mut report = IdentityReport::default();
        report.judge(nqn, &found, &mut |_| Ok::<_, std::convert::Infallible>(false)).unwrap();
        let error = report.error.unwrap();
        assert!(error.to_string().contains("/etc/nvme/hostnqn") && !error.hints().concat().contains("skip"), "{error}");
    }
}
