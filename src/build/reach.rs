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
use crate::spec::{SecretSource, Spec};

/// What steps and secrets may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Files of the project.
    Project,
    /// Any file that the user may read.
    Host,
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
pub fn check(spec: &Spec, reach: Reach, events: &Events) -> Result<(), ReachError> {
    let Some(project) = project(&spec.path) else { return Ok(()) };
    let inputs = spec.steps.iter().filter_map(|step| Some((format!("line {}", step.line), input_path(&step.action)?)));
    let secrets = spec.secrets.iter().filter_map(|(name, source)| match source {
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
            Reach::Project => return Err(outside),
            Reach::Host => events.notice(Level::Info, format!("allowed by --allow-outside: {outside}")),
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
