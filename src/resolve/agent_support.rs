//! Finds out whether cloud-init starts kiln's agent in the guest of a disk that is not running, as far as the disk shows.

use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;

use crate::disk::chain::open_files;
use crate::disk::guest_files::TreeFiles;
use crate::disk::tree::Tree;
use crate::error::{Fault, Kind};
use crate::plan::agent::AgentStart;
use crate::specfile::{AgentChoice, DiskFormat};
use crate::wire::cloud_init::find_obstacles;
use crate::wire::guest_files::{GuestFiles, LONGEST_FILE};

/// A hint for an image that cannot be tested.
pub const PUBLISH_UNTESTED: &str =
    "the image may be as it should be: `kiln build --no-test` publishes it without its tests";

/// No test can run in clones of an image.
#[derive(Debug, thiserror::Error)]
#[error("the tests cannot run: {why}, so cloud-init does not start kiln's agent in a clone of the image")]
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
            "leave `agent` out of [machine], so that kiln plants its agent in the clones".into(),
            PUBLISH_UNTESTED.into(),
        ]
    }
}

/// Decides what starts the agent in clones of an image file, as far as its disk shows.
///
/// # Errors
/// When `choice` is cloud-init, and cloud-init does not start the agent.
pub(crate) async fn choose_for_image(
    choice: AgentChoice,
    path: PathBuf,
    format: DiskFormat,
) -> Result<AgentStart, UntestableError> {
    let looked = spawn_blocking(move || find_obstacle(&path, format)).await;
    let obstacle = looked.expect("looking at a disk does not panic");
    AgentStart::choose(choice, obstacle).map_err(|why| UntestableError { why })
}

/// Explains why cloud-init would not start the agent from a disk that is not running. Returns `None` for a disk that kiln
/// cannot read, since nothing is known of it. Blocks the calling thread.
pub(crate) fn find_obstacle(path: &Path, format: DiskFormat) -> Option<String> {
    let chain = open_files(vec![(path.to_owned(), format)]).ok()?;
    let tree = Tree::open(&chain).ok()?;
    let files = TreeFiles::new(&tree, LONGEST_FILE);
    let is_first_boot = boots_first(&files);
    let found = find_obstacles(&files).into_iter().filter(|found| found.is_lasting || !is_first_boot);
    let reasons: Vec<String> = found.map(|found| found.reason).collect();
    let is_known = tree.is_whole() && files.into_failure().is_none();
    (!reasons.is_empty() && is_known).then(|| reasons.join(", and "))
}

/// Returns whether systemd will take the next boot for the first one (machine-id(5)).
fn boots_first(files: &impl GuestFiles) -> bool {
    let id = files.text("/etc/machine-id");
    id.trim().is_empty() || id.trim() == "uninitialized"
}
