//! How far a spec may reach into this host: to the files of its project. A spec may come from somebody else, and what a
//! step copies ends in an image that is given away; a `copy` of somebody's keys would be noticed too late.
//!
//! The project is the git work tree that the spec lies in, or else the spec's own folder. The base image may lie anywhere:
//! it is named in full sight, and images are kept apart from what builds them.

use std::fs::canonicalize;
use std::path::{Path, PathBuf};

use crate::error::{Fault, Kind};
use crate::event::{Events, Level};
use crate::plan::input_path;
use crate::spec::{PrivateDestination, SecretSource, Spec};

/// What the user lets specs reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// What steps and secrets may name.
    pub files: FileReach,
    /// What the guest may connect to.
    pub network: NetworkReach,
}

/// What steps and secrets may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileReach {
    /// Files of the project.
    Project,
    /// Any file that the user may read.
    Host,
}

/// What a guest with a network may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkReach {
    /// Public addresses.
    Public,
    /// Also what the spec lists as `private`.
    Private,
}

/// A guest asks for private addresses, and the user has not allowed that.
#[derive(Debug, thiserror::Error)]
#[error("the guest asks for addresses that are not public ({destinations}), which this command does not allow")]
pub struct PrivateNetworkError {
    destinations: String,
}

impl Fault for PrivateNetworkError {
    fn kind(&self) -> Kind {
        Kind::Spec
    }

    fn hints(&self) -> Vec<String> {
        vec!["if you trust the spec, allow what it lists as `private` in [network] with --allow-private-network".into()]
    }
}

/// Checks whether a guest may connect to these destinations.
///
/// # Errors
/// When there are any and the user has not allowed them.
pub fn check_network(
    private: &[PrivateDestination],
    reach: NetworkReach,
    events: &Events,
) -> Result<(), PrivateNetworkError> {
    if private.is_empty() {
        return Ok(());
    }
    let destinations = private.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match reach {
        NetworkReach::Public => Err(PrivateNetworkError { destinations }),
        NetworkReach::Private => {
            events.notice(Level::Info, format!("allowed by --allow-private-network: {destinations}"));
            Ok(())
        }
    }
}

/// A spec reaches too far.
#[derive(Debug, thiserror::Error)]
#[error("{whose}: {} leads to {}, outside of the project {}", path.display(), target.display(), project.display())]
pub struct ReachError {
    whose: String,
    path: PathBuf,
    target: PathBuf,
    project: PathBuf,
}

impl Fault for ReachError {
    fn kind(&self) -> Kind {
        Kind::Spec
    }

    fn hints(&self) -> Vec<String> {
        vec![
            "the project is the git work tree that the spec lies in, or else the spec's own folder".into(),
            "move the file into it, or trust the spec with --allow-outside".into(),
        ]
    }
}

/// Checks where everything leads that the spec names, symbolic links and `..` followed. A link inside a copied folder is
/// copied as a link, so the named path is all there is to check; and should it lead elsewhere by the time it is read, its
/// digest is not the planned one any more.
///
/// # Errors
/// When something leads out of the project and may not.
pub fn check(spec: &Spec, reach: FileReach, events: &Events) -> Result<(), ReachError> {
    let Some(project) = project(&spec.path) else { return Ok(()) };
    let inputs = spec.steps.iter().filter_map(|step| Some((format!("line {}", step.line), input_path(&step.action)?)));
    let secrets = spec.secrets.iter().filter_map(|(name, secret)| match &secret.source {
        SecretSource::File(path) => Some((format!("the secret `{name}`"), path)),
        SecretSource::Env(_) => None,
    });
    for (whose, path) in inputs.chain(secrets) {
        // What is not there is told by whoever reads it.
        let Ok(target) = canonicalize(path) else { continue };
        if target.starts_with(&project) {
            continue;
        }
        let outside = ReachError { whose, path: path.clone(), target, project: project.clone() };
        match reach {
            FileReach::Project => return Err(outside),
            FileReach::Host => events.notice(Level::Info, format!("allowed by --allow-outside: {outside}")),
        }
    }
    Ok(())
}

/// Nothing for a spec that has gone meanwhile.
fn project(spec: &Path) -> Option<PathBuf> {
    let spec = canonicalize(spec).ok()?;
    let work_tree = spec.ancestors().skip(1).find(|folder| folder.join(".git").exists());
    work_tree.or_else(|| spec.parent()).map(Path::to_owned)
}
