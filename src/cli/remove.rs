//! `kiln remove IMAGE`: deletes a version.

use std::io::Write;

use clap::Args;

use crate::error::{Failure, Fault, Kind};
use crate::machine_registry::running_from;
use crate::store::{IfBase, ImageId, Store, StoreError};

use super::folders::Folders;

/// Arguments of `kiln remove`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln remove web@1.3.0\n\n\
        A version with a tag is not removed: move the tag first, or delete it with `kiln tag web --delete TAG`. A \
        version that another image of the store was built from is removed with --force only.")]
pub struct RemoveArgs {
    /// Image: `name`, `name@version` or `name@tag`; a bare name is its newest version
    pub image: String,
    /// Also remove a version that another image was built from: that image still works, but cannot be rebuilt from it
    #[arg(short, long)]
    pub force: bool,
}

/// Machines run from the version.
#[derive(Debug, thiserror::Error)]
#[error("{id} is not removed: machines run from it: {}", machines.join(", "))]
pub struct MachinesRunError {
    id: ImageId,
    machines: Vec<String>,
}

impl Fault for MachinesRunError {
    fn kind(&self) -> Kind {
        Kind::Output
    }

    fn hints(&self) -> Vec<String> {
        vec![format!("end them first: `kiln stop {}`", self.machines.join(" "))]
    }
}

/// Removes a version; a bare name is its newest. Reports on `notes`, which is standard error: there is no result.
pub fn run(folders: &Folders, args: &RemoveArgs, notes: &mut dyn Write) -> Result<(), Failure> {
    remove(&folders.store()?, args, notes).map_err(|error| name_machines(error, folders))
}

/// Adds the machines that run from a version to the error that it is in use.
fn name_machines(error: Failure, folders: &Folders) -> Failure {
    let Some(StoreError::InUse(id)) = error.fault() else { return error };
    let (Ok(cache), Ok(store)) = (folders.cache(), folders.store_path()) else { return error };
    let machines = running_from(&cache, &store.join(id.name()).join(id.version()));
    if machines.is_empty() { error } else { MachinesRunError { id: id.clone(), machines }.into() }
}

fn remove(store: &Store, args: &RemoveArgs, notes: &mut dyn Write) -> Result<(), Failure> {
    let if_base = if args.force { IfBase::Remove } else { IfBase::Keep };
    let id = store.remove(&args.image.parse()?, if_base)?;
    // The version is removed, even if the report cannot be printed.
    let _ = writeln!(notes, "removed {id}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{TestStore, written};

    #[test]
    fn a_bare_name_removes_the_newest_version() {
        let shelf = TestStore::with(&["web@1", "web@2"]);
        let text = written(|out| remove(&shelf.store, &RemoveArgs { image: "web".into(), force: false }, out)).unwrap();
        assert_eq!(text, "removed web@2\n");
        let left: Vec<_> = shelf.store.list().unwrap().versions.iter().map(|version| version.id.to_string()).collect();
        assert_eq!(left, ["web@1"]);
    }
}
