//! `kiln shell IMAGE`: a shell in a throw-away clone of an image in the store, by the agent, as tests have it.

use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::context::{ScratchError, in_stage};
use crate::deadline::Deadline;
use crate::error::Failure;
use crate::event::{Event, Events, Stage};
use crate::guest::boot::MachineSite;
use crate::guest::shell::login;
use crate::masking::SecretMask;
use crate::resolve::path_policy::NetworkReach;
use crate::session::Attach;
use crate::store::Artifact;
use crate::workdir::Workdir;

use super::retest::{CloneMachine, machine_of_clones};
use super::{Bench, Round};

/// Boots a clone of an image and opens a shell in it as root. Returns the shell's exit code.
///
/// # Errors
/// When the image does not boot, the host is not usable, or the guest fails under the shell.
pub async fn visit(
    artifact: &Artifact,
    cache: &Path,
    reach: NetworkReach,
    events: &Events,
    cancel: CancellationToken,
    attach: Attach,
) -> Result<u8, Failure> {
    let CloneMachine { machine, images, disk_size } = machine_of_clones(artifact, reach, events).await?;
    let work = Workdir::create(&cache.join("work")).map_err(ScratchError::at("a scratch folder", cache))?;
    let limits = Deadline::new(cancel, Duration::MAX);
    let mask = SecretMask::default();
    let site =
        MachineSite { machine: &machine, folder: work.path(), limits: &limits, events, mask: &mask, proxy: None };
    let bench = Bench { site, disk_size: images[0].format.virtual_size(disk_size), tests: &[] };
    let mut round = Round::new(&bench, &images[0])?;
    let booted = async {
        round.planted().await?;
        round.boot_clone(&round.folder).await
    };
    let (mut guest, _) = in_stage(events, Stage::Boot, booted).await?;
    let why = Event::ShellStarted { failure: None, tail: Vec::new() };
    let left = site.visit(&mut guest, login(), why, attach).await;
    guest.machine.abort().await;
    left
}
