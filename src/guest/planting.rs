//! Plants the agent on a guest's disk, for guests whose cloud-init does not start it. The agent does that itself
//! (`agent::planted`), in a direct boot before the first real one, or in a guest that is about to reboot.

use std::time::{Duration, Instant};

use crate::disk::linux_kernel::KernelError;
use crate::error::{Failure, Fault, Kind};
use crate::event::NoticeLevel;
use crate::machine::argv::BackingFiles;
use crate::session::{Exec, Exit};

use super::boot::{self, BootError, Guest, MachineSite};
use super::{direct_boot, shutdown};

/// The deadline for writing a few files in the guest.
const PATIENCE: Duration = Duration::from_secs(60);
/// Runs the agent, which is the parent of every command.
const PLANT: &str = "exec /proc/$PPID/exe --plant";
/// How much of an error message of the agent is kept, bytes.
const LONGEST: usize = 4 << 10;

/// The reason why the agent cannot be planted.
#[derive(Debug, thiserror::Error)]
pub enum PlantingError {
    /// The disk cannot be booted directly.
    #[error("kiln's agent cannot be planted in the image: {0}")]
    NoDirectBoot(Failure),
    /// The agent could not write to the disk.
    #[error("kiln's agent cannot be planted in the image: it {exit}{}{reason}", if reason.is_empty() { "" } else { ": " })]
    Failed {
        /// How the agent ended.
        exit: Exit,
        /// What it wrote.
        reason: String,
    },
}

impl Fault for PlantingError {
    fn kind(&self) -> Kind {
        match self {
            PlantingError::NoDirectBoot(failure) => failure.kind(),
            PlantingError::Failed { .. } => Kind::Base,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            PlantingError::NoDirectBoot(failure) => {
                let needs = "planting starts the kernel of the image as `boot = \"direct\"` does, with the same needs; an image \
                             with a working cloud-init has none of them";
                let of_kernel = if is_of_separate_kernel(failure) { failure.hints() } else { Vec::new() };
                [vec![needs.to_owned()], of_kernel].concat()
            }
            PlantingError::Failed { .. } => {
                vec!["an image with a working cloud-init needs no planted agent, whatever its init".into()]
            }
        }
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            PlantingError::NoDirectBoot(failure) => failure.evidence(),
            PlantingError::Failed { .. } => Vec::new(),
        }
    }
}

/// Returns whether the kernel that failed is not on the disk; for it, a full boot is no way out.
fn is_of_separate_kernel(failure: &Failure) -> bool {
    matches!(failure.fault(), Some(BootError::Direct { is_separate: true, .. }))
        || matches!(failure.fault(), Some(KernelError::NoDriverBeside { .. }))
}

/// Plants the agent in the overlay of a machine that is yet to boot, by a direct boot of its own. Grows the root file system
/// as well, where that is asked for.
pub(crate) async fn plant(site: MachineSite<'_>, backing: &BackingFiles, grow: bool) -> Result<(), Failure> {
    let began = Instant::now();
    let machine = site.machine.for_planting();
    let site = MachineSite { machine: &machine, ..site };
    direct_boot::prepare(site, backing, grow).await.map_err(explain)?;
    let mut guest = boot::start(site, backing).await.map_err(explain)?;
    if let Err(failure) = plant_in(&mut guest, site).await {
        return Err(guest.abandon(failure).await);
    }
    let _ = shutdown::power_off(site.limits, guest).await?;
    let seconds = began.elapsed().as_secs_f64();
    site.events.notice(NoticeLevel::Debug, format!("the agent was planted in {seconds:.1} s"));
    Ok(())
}

/// Plants the agent on the disk of a running guest.
pub(crate) async fn plant_in(guest: &mut Guest, site: MachineSite<'_>) -> Result<(), Failure> {
    let mut reason = Vec::new();
    let exec = Exec { timeout: Some(PATIENCE), ..Exec::new(["sh", "-c", PLANT]) };
    let mut keep = |_, bytes: &[u8]| reason.extend(bytes.iter().take(LONGEST.saturating_sub(reason.len())));
    let request = guest.session.exec(&exec, &mut keep);
    let exit = site.limits.call_with_grace(&guest.machine, PATIENCE, request).await?;
    if exit.is_success() {
        return Ok(());
    }
    let reason = site.mask.mask_text(String::from_utf8_lossy(&reason).trim());
    Err(PlantingError::Failed { exit, reason }.into())
}

/// Explains a direct boot that is not possible; other failures speak for themselves.
fn explain(failure: Failure) -> Failure {
    let is_of_boot = matches!(failure.fault(), Some(BootError::Direct { .. }));
    if is_of_boot || failure.fault::<KernelError>().is_some() {
        return PlantingError::NoDirectBoot(failure).into();
    }
    failure
}
