//! Checks how far a spec reaches into this host: to the files of its project. The base image may lie anywhere: it is named
//! in full sight, and images are kept apart from what builds them.

use crate::error::{Fault, Kind};
use crate::event::{Events, Level};
use crate::plan::host_paths::{HostPath, PathPolicy, base_paths, input_paths};
use crate::project::{GIT, Project};
use crate::spec::{Action, PrivateDestination, Spec};

pub use crate::project::{FileReach, ReachError};

/// What the user lets specs reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// What steps and secrets may name.
    pub files: FileReach,
    /// What the guest may connect to.
    pub network: NetworkReach,
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

/// Checks where the paths lead that a spec names for its base image, before anything of them is read. The spec of a base was
/// checked when it was read.
///
/// # Errors
/// When something leads out of the project and may not.
pub fn check_base(spec: &Spec, reach: FileReach, events: &Events) -> Result<(), ReachError> {
    check_paths(spec, &base_paths(spec), reach, events)
}

/// Checks where the paths lead that a spec names for its steps and secrets. A link inside a copied folder is copied as a link,
/// so the named path is all there is to check; and should it lead elsewhere by the time it is read, its digest is not the
/// planned one any more.
///
/// # Errors
/// When something leads out of the project and may not.
pub fn check_inputs(spec: &Spec, reach: FileReach, events: &Events) -> Result<(), ReachError> {
    check_paths(spec, &input_paths(spec), reach, events)?;
    for step in &spec.steps {
        if let Action::Copy(copy) = &step.action
            && copy.from.join(GIT).symlink_metadata().is_ok()
        {
            let text = format!("line {}: {GIT} in {} is not copied", step.line, copy.from.display());
            events.notice(Level::Info, text);
        }
    }
    Ok(())
}

fn check_paths(spec: &Spec, paths: &[HostPath<'_>], reach: FileReach, events: &Events) -> Result<(), ReachError> {
    let project = Project::of_spec(&spec.path)?;
    for named in paths {
        match (named.check(&project), named.policy, reach) {
            (Ok(()), ..) | (_, PathPolicy::BaseSpec, _) => {}
            (Err(error), PathPolicy::Project, FileReach::Host) => {
                events.notice(Level::Info, format!("allowed by --allow-outside: {error}"));
            }
            (Err(error), ..) => return Err(error),
        }
    }
    Ok(())
}
