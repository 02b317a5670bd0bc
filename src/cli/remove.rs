//! `kiln remove IMAGE`: deletes a version.

use std::io::Write;

use crate::error::Failure;
use crate::store::{IfBase, Store};

use super::args;

/// Removes a version; a bare name is its newest. Reports on `notes`, which is standard error: there is no result.
///
/// # Errors
/// When there is no such version, something needs it, or it is being built or read.
pub fn run(store: &Store, args: &args::RemoveArgs, notes: &mut dyn Write) -> Result<(), Failure> {
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
        let text =
            written(|out| run(&shelf.store, &args::RemoveArgs { image: "web".into(), force: false }, out)).unwrap();
        assert_eq!(text, "removed web@2\n");
        let left: Vec<_> = shelf.store.list().unwrap().versions.iter().map(|version| version.id.to_string()).collect();
        assert_eq!(left, ["web@1"]);
    }
}
