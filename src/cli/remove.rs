//! `kiln remove IMAGE`: deletes a version.

use std::io::Write;

use clap::Args;

use crate::error::Failure;
use crate::store::{IfBase, Store};

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

/// Removes a version; a bare name is its newest. Reports on `notes`, which is standard error: there is no result.
pub fn run(store: &Store, args: &RemoveArgs, notes: &mut dyn Write) -> Result<(), Failure> {
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
        let text = written(|out| run(&shelf.store, &RemoveArgs { image: "web".into(), force: false }, out)).unwrap();
        assert_eq!(text, "removed web@2\n");
        let left: Vec<_> = shelf.store.list().unwrap().versions.iter().map(|version| version.id.to_string()).collect();
        assert_eq!(left, ["web@1"]);
    }
}
