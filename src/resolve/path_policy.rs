//! Checks how far a spec reaches into this host: to the files of its project. The base image may lie anywhere: the spec
//! names it openly, and images are usually stored apart from what builds them.

use super::source_errors::SourceProblem;
use crate::error::{Fault, Kind};
use crate::event::{Events, NoticeLevel};
use crate::plan::host_paths::{HostPath, PathOwner, PathPolicy, base_paths, input_paths};
use crate::project::{GIT, Project, ProjectPathError};
use crate::specfile::{Action, PrivateDestination, Spec};

pub use crate::project::{FileReach, ReachError};

/// The files and addresses that the user allows specs to access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReachPolicy {
    /// The files that steps and secrets may name.
    pub files: FileReach,
    /// The addresses that the guest may connect to.
    pub network: NetworkReach,
}

/// The addresses that a guest with a network may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkReach {
    /// Public addresses alone.
    Public,
    /// Public addresses, and what the spec lists as `private`.
    Private,
}

/// A spec lists private addresses, and the user has not allowed them.
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
/// When there are destinations, and the user has not allowed them.
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
            events.notice(NoticeLevel::Info, format!("allowed by --allow-private-network: {destinations}"));
            Ok(())
        }
    }
}

/// Checks where the paths lead that a spec names for its base image, before any of them is read. The spec of a base was
/// checked when it was read.
///
/// # Errors
/// When a path leads out of the project and must not.
pub fn check_base(spec: &Spec, reach: FileReach, events: &Events) -> Result<(), ReachError> {
    let first = refused_paths(spec, base_paths(spec), reach, events)?.into_iter().next();
    first.map_or(Ok(()), |(owner, refusal)| Err(ReachError::Refused { whose: owner.to_string(), refusal }))
}

/// Checks where the paths lead that a spec names for its steps and secrets, and returns those that must not be read. A link
/// inside a copied folder is copied as a link, so the named path is all there is to check. If that path leads elsewhere by
/// the time it is read, its digest is no longer the planned one.
///
/// # Errors
/// When the spec no longer belongs to a project.
pub(crate) fn check_inputs(spec: &Spec, reach: FileReach, events: &Events) -> Result<Vec<RefusedPath>, ReachError> {
    let refused = refused_paths(spec, input_paths(spec), reach, events)?;
    for step in &spec.steps {
        if let Action::Copy(copy) = &step.action
            && copy.from.join(GIT).symlink_metadata().is_ok()
        {
            let text = format!("line {}: {GIT} in {} is not copied", step.line, copy.from.display());
            events.notice(NoticeLevel::Info, text);
        }
    }
    Ok(refused)
}

/// A path of a spec that must not be read.
pub(crate) type RefusedPath = (PathOwner, ProjectPathError);

fn refused_paths(
    spec: &Spec,
    paths: Vec<HostPath<'_>>,
    reach: FileReach,
    events: &Events,
) -> Result<Vec<RefusedPath>, ReachError> {
    let project = Project::of_spec(&spec.path)?;
    let mut refused = Vec::new();
    for named in paths {
        match (named.check(&project), named.policy, reach) {
            (Ok(()), ..) | (_, PathPolicy::BaseSpec, _) => {}
            (Err(refusal), _, FileReach::Host) if !matches!(refusal, ProjectPathError::NotAFile(_)) => {
                events.notice(NoticeLevel::Info, format!("allowed by --allow-outside: {}: {refusal}", named.owner));
            }
            (Err(refusal), ..) => refused.push((named.owner, refusal)),
        }
    }
    Ok(refused)
}

impl From<&RefusedPath> for SourceProblem {
    fn from((owner, refusal): &RefusedPath) -> Self {
        Self::new(owner.clone(), refusal, refusal.to_string())
    }
}
