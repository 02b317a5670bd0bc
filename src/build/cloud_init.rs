//! What keeps cloud-init from starting kiln's agent at a guest's next boot, and what follows: no `reboot` step, no tests, no
//! image on top of this one. It is said after the step that made it so, since the image itself may be as it should be.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::spawn_blocking;

use crate::disk::guest_files::TreeFiles;
use crate::disk::tree::Tree;
use crate::error::{Fault, Kind};
use crate::event::Level;
use crate::plan::Plan;
use crate::session::GuestError;
use crate::specfile::{Action, DiskFormat};
use crate::wire::cloud_init::{SeedObstacle, find_obstacles};
use crate::wire::guest_files::LONGEST_FILE;

use super::boot::Guest;
use super::disks::open;
use super::{Build, provision};

/// For a look at a few files of the guest.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is known to keep the agent out of a guest once it has booted again.
#[derive(Debug, Default)]
pub(crate) struct KnownObstacles(Vec<KnownObstacle>);

#[derive(Debug, Clone)]
struct KnownObstacle {
    obstacle: SeedObstacle,
    /// The index of the step that made it so; none for a step that came from the cache.
    since: Option<usize>,
}

impl KnownObstacles {
    /// Takes what a guest has now, and returns what it did not have before.
    fn update(&mut self, found: Vec<SeedObstacle>, since: Option<usize>) -> Vec<KnownObstacle> {
        let before = std::mem::take(&mut self.0);
        let mut new = Vec::new();
        for obstacle in found {
            let known = before.iter().find(|known| known.obstacle == obstacle).cloned();
            let one = known.unwrap_or_else(|| {
                let one = KnownObstacle { obstacle, since };
                new.push(one.clone());
                one
            });
            self.0.push(one);
        }
        new
    }

    /// Explains why the guest cannot be booted again, if it cannot: the same guest, or a clone as a new machine.
    fn explain(&self, plan: &Plan, boot: NextBoot) -> Option<String> {
        let counts = |known: &&KnownObstacle| boot == NextBoot::Same || known.obstacle.is_lasting;
        let reasons: Vec<String> = self.0.iter().filter(counts).map(|known| known.describe(plan)).collect();
        (!reasons.is_empty()).then(|| reasons.join(", and "))
    }
}

impl KnownObstacle {
    fn describe(&self, plan: &Plan) -> String {
        let reason = &self.obstacle.reason;
        match self.since.and_then(|index| Some((index + 1, &plan.steps.get(index)?.step.name))) {
            Some((number, name)) => format!("{reason} (since step {number} `{name}`)"),
            None => reason.clone(),
        }
    }
}

/// Which boot comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextBoot {
    /// Of the same machine.
    Same,
    /// Of a clone, for the first time.
    Clone,
}

/// Asks the guest what will keep the agent out, and warns of what is new.
pub(crate) async fn watch(build: &Build<'_>, guest: &mut Guest, step: Option<usize>) {
    let late = || GuestError::Overdue(PATIENCE).into();
    let work = guest.session.find_seed_obstacles();
    // Whoever talks next to a guest that does not answer will find that out as well.
    let Ok(found) = build.limits.hold_guest(&guest.machine, PATIENCE, late, work).await else { return };
    let new = guest.obstacles.update(found, step);
    if !new.is_empty() {
        build.events.notice(Level::Warning, warning(build.plan, &new, step));
    }
}

fn warning(plan: &Plan, new: &[KnownObstacle], step: Option<usize>) -> String {
    let who = match step.and_then(|index| Some((index + 1, &plan.steps.get(index)?.step.name))) {
        Some((number, name)) => format!("step {number} `{name}`"),
        None => "a cached step".to_owned(),
    };
    let reasons: Vec<&str> = new.iter().map(|known| known.obstacle.reason.as_str()).collect();
    let consequence = if new.iter().any(|known| known.obstacle.is_lasting) {
        "no `reboot` step can follow, no test can run, and no image can be built on this one"
    } else {
        "no `reboot` step can follow"
    };
    let reasons = reasons.join(", and ");
    format!("{who}: {reasons}, so kiln's agent will not start when the guest boots again: {consequence}")
}

/// Returns whether a step may change what [`watch`] looks at.
pub(crate) fn may_change(action: &Action) -> bool {
    !matches!(action, Action::Fetch { .. } | Action::Reboot)
}

/// Checks that the agent comes back after a reboot.
///
/// # Errors
/// When it would not.
pub(crate) fn check_reboot(build: &Build<'_>, guest: &Guest) -> Result<(), provision::How> {
    guest.obstacles.explain(build.plan, NextBoot::Same).map_or(Ok(()), |why| Err(provision::How::NoWayBack(why)))
}

/// Checks that tests can run in clones of the image that is made of this guest.
///
/// # Errors
/// When they cannot.
pub(crate) fn check_tests(build: &Build<'_>, guest: &Guest) -> Result<(), UntestableError> {
    guest.obstacles.explain(build.plan, NextBoot::Clone).map_or(Ok(()), |why| Err(UntestableError { why }))
}

/// No test can run in an image.
#[derive(Debug, thiserror::Error)]
#[error("the tests cannot run: {why}, so kiln's agent does not start in a clone of the image")]
pub struct UntestableError {
    /// Why the agent does not start.
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

/// kiln cannot get into the guest of a base image.
#[derive(Debug, thiserror::Error)]
#[error("base image {}: {why}, so kiln's agent cannot start in it", path.display())]
pub struct UnusableBaseError {
    /// The base image.
    pub path: PathBuf,
    /// Why the agent does not start.
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

/// Checks that kiln can get into the guest of a base image, as far as its disk shows. Blocks the calling thread.
///
/// # Errors
/// When it cannot.
pub(crate) fn check_base(path: &Path, format: DiskFormat) -> Result<(), UnusableBaseError> {
    explain_disk(path, format).map_or(Ok(()), |why| Err(UnusableBaseError { path: path.to_owned(), why }))
}

/// Checks that tests can run in clones of an image file, as far as its disk shows.
///
/// # Errors
/// When they cannot.
pub(crate) async fn check_image(path: PathBuf, format: DiskFormat) -> Result<(), UntestableError> {
    let looked = spawn_blocking(move || explain_disk(&path, format)).await;
    looked.expect("looking at a disk does not panic").map_or(Ok(()), |why| Err(UntestableError { why }))
}

/// Explains what keeps the agent out of a disk that does not run. Of a disk that kiln cannot read nothing is known.
fn explain_disk(path: &Path, format: DiskFormat) -> Option<String> {
    let chain = open(vec![(path.to_owned(), format)]).ok()?;
    let tree = Tree::open(&chain).ok()?;
    let files = TreeFiles::new(&tree, LONGEST_FILE);
    let found = find_obstacles(&files).into_iter().filter(|found| found.is_lasting);
    let reasons: Vec<String> = found.map(|found| found.reason).collect();
    let is_known = tree.is_whole() && files.into_failure().is_none();
    (!reasons.is_empty() && is_known).then(|| reasons.join(", and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i1_only_what_is_new_is_warned_of_and_what_is_gone_is_forgotten() {
        let obstacle = |reason: &str, is_lasting| SeedObstacle { reason: reason.into(), is_lasting };
        let (purged, disabled) = (obstacle("purged", true), obstacle("disabled", false));
        let mut known = KnownObstacles::default();
        assert_eq!(known.update(vec![purged.clone()], Some(2)).len(), 1);
        let new = known.update(vec![purged.clone(), disabled.clone()], Some(3));
        assert_eq!(new.iter().map(|one| one.obstacle.clone()).collect::<Vec<_>>(), [disabled]);
        assert_eq!(known.0.iter().map(|one| one.since).collect::<Vec<_>>(), [Some(2), Some(3)]);
        assert!(known.update(Vec::new(), Some(4)).is_empty() && known.0.is_empty());
        assert_eq!(known.update(vec![purged], Some(5))[0].since, Some(5));
    }
}
