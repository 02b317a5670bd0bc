//! Checks whether kiln's agent can start in the guest of a disk that is not running, as far as the disk shows.

use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;

use crate::disk::chain::open_files;
use crate::disk::guest_files::TreeFiles;
use crate::disk::tree::Tree;
use crate::error::{Fault, Kind};
use crate::specfile::DiskFormat;
use crate::wire::cloud_init::find_obstacles;
use crate::wire::guest_files::LONGEST_FILE;

/// No test can run in clones of an image.
#[derive(Debug, thiserror::Error)]
#[error("the tests cannot run: {why}, so kiln's agent does not start in a clone of the image")]
pub struct UntestableError {
    /// The reason why the agent does not start.
    pub why: String,
}

impl Fault for UntestableError {
    fn kind(&self) -> Kind {
        Kind::Test
    }

    fn hints(&self) -> Vec<String> {
        vec![
            "the image may be as it should be: `kiln build --no-test` publishes it without its tests".into(),
            "tests need cloud-init with NoCloud among its datasources, and a kernel that mounts vfat".into(),
        ]
    }
}

/// kiln's agent cannot start in the guest of a base image.
#[derive(Debug, thiserror::Error)]
#[error("base image {}: {why}, so kiln's agent cannot start in it", path.display())]
pub struct UnusableBaseError {
    pub path: PathBuf,
    /// The reason why the agent does not start.
    pub why: String,
}

impl Fault for UnusableBaseError {
    fn kind(&self) -> Kind {
        Kind::Base
    }

    fn hints(&self) -> Vec<String> {
        vec!["use a base with cloud-init, NoCloud among its datasources, and a kernel that mounts vfat".into()]
    }
}

/// Checks that kiln's agent can start in the guest of a base image, as far as its disk shows. Blocks the calling thread.
///
/// # Errors
/// When the agent cannot start.
pub(crate) fn check_base(path: &Path, format: DiskFormat) -> Result<(), UnusableBaseError> {
    explain_disk(path, format).map_or(Ok(()), |why| Err(UnusableBaseError { path: path.to_owned(), why }))
}

/// Checks that tests can run in clones of an image file, as far as its disk shows.
///
/// # Errors
/// When tests cannot run.
pub(crate) async fn check_image(path: PathBuf, format: DiskFormat) -> Result<(), UntestableError> {
    let looked = spawn_blocking(move || explain_disk(&path, format)).await;
    looked.expect("looking at a disk does not panic").map_or(Ok(()), |why| Err(UntestableError { why }))
}

/// Explains why the agent would not start from a disk that is not running. Returns `None` for a disk that kiln cannot read,
/// since nothing is known of it.
fn explain_disk(path: &Path, format: DiskFormat) -> Option<String> {
    let chain = open_files(vec![(path.to_owned(), format)]).ok()?;
    let tree = Tree::open(&chain).ok()?;
    let files = TreeFiles::new(&tree, LONGEST_FILE);
    let found = find_obstacles(&files).into_iter().filter(|found| found.is_lasting);
    let reasons: Vec<String> = found.map(|found| found.reason).collect();
    let is_known = tree.is_whole() && files.into_failure().is_none();
    (!reasons.is_empty() && is_known).then(|| reasons.join(", and "))
}
