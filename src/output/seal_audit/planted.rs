//! Looks for kiln's own agent in the sealed image: where it was planted, sealing has removed it.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::SealedView;
use crate::disk::tree::{Tree, TreeError};
use crate::error::{Fault, Kind};
use crate::wire::planted::{INITTAB, is_planted_line, paths};

/// The size of the largest table of sysvinit that is read, bytes.
const LIMIT: u64 = 1 << 20;

/// The sealed image still contains kiln's agent, or what starts it.
#[derive(Debug, thiserror::Error)]
#[error("the sealed image still holds kiln's agent, or what starts it, in {path}")]
pub(crate) struct AgentLeftError {
    path: String,
}

impl Fault for AgentLeftError {
    fn kind(&self) -> Kind {
        Kind::Output
    }

    fn hints(&self) -> Vec<String> {
        vec!["let no service or step copy, restore or protect that file: sealing removes it".to_owned()]
    }
}

/// Searches for the agent: in the files where kiln reads the disk, else in the guest's list of them.
///
/// # Errors
/// When the files cannot be read.
pub(crate) fn find_agent(view: &SealedView<'_>) -> Result<Option<AgentLeftError>, TreeError> {
    let found = match view.whole_tree() {
        Some(tree) => find_in_tree(tree)?,
        None => find_in_list(view)?,
    };
    Ok(found.map(|path| AgentLeftError { path }))
}

fn find_in_tree(tree: &Tree<'_>) -> Result<Option<String>, TreeError> {
    for path in paths() {
        let (folder, name) = path.rsplit_once('/').unwrap_or_default();
        // A link counts even if it leads nowhere.
        if tree.names(folder)?.unwrap_or_default().iter().any(|found| found == name.as_bytes()) {
            return Ok(Some(path));
        }
    }
    let table = tree.read(INITTAB, LIMIT)?.unwrap_or_default();
    let is_planted = table.split(|byte| *byte == b'\n').any(is_planted_line);
    Ok(is_planted.then(|| INITTAB.to_owned()))
}

fn find_in_list(view: &SealedView<'_>) -> Result<Option<String>, TreeError> {
    let sought: BTreeSet<String> = paths().into_iter().collect();
    let mut found = None;
    let _ = view.walk(&mut |entry| {
        let path = String::from_utf8_lossy(&entry.path);
        if sought.contains(&*path) {
            found = Some(path.into_owned());
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}
