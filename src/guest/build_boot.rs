//! Boots the guest of a build: from the base image, or from the disk or the memory of a layer.

use crate::context::{BuildContext, ScratchError};
use crate::disk::qcow2::create_overlay;
use crate::error::Failure;
use crate::layer::Stack;
use crate::machine::argv::{BackingFiles, OVERLAY};
use crate::machine::checkpoint::RamFormat;
use crate::plan::Plan;
use crate::plan::agent::AgentStart;
use crate::plan::machine::PlannedMachine;
use crate::resolve::facts::check_base;
use crate::seed::BootPurpose;
use crate::session::Hello;
use crate::specfile::DiskFormat;

use super::boot::{self, Guest, MachineSite};
use super::{direct_boot, growth, planting};

/// Returns the backing of the overlay: the layers of a stack, if there is one, and the base image.
pub(crate) fn backing(plan: &Plan, stack: Option<&Stack>) -> BackingFiles {
    let layers = stack.into_iter().flat_map(Stack::disks).map(|disk| (disk, DiskFormat::Qcow2));
    BackingFiles(layers.chain([(plan.base.file.clone(), plan.base.format.into())]).collect())
}

/// Creates the overlay, and what starts the agent, in the scratch folder.
pub(crate) async fn prepare(build: &BuildContext<'_>, backing: &BackingFiles) -> Result<(), Failure> {
    let plan = build.plan;
    let overlay = build.work.join(OVERLAY);
    create_overlay(&overlay, plan.disk_size()).map_err(ScratchError::at("an overlay", &overlay))?;
    match plan.machine.agent {
        AgentStart::CloudInit => boot::write_seed(build.site(), BootPurpose::Build { grow: plan.grows() }),
        AgentStart::Direct => direct_boot::prepare(build.site(), backing, plan.grows()).await,
        AgentStart::Planted(_) => Ok(()),
    }
}

/// Boots the plan's machine from a new overlay, with the UEFI variables of the layer below. The disk of a layer has the agent
/// already where it is planted. What has changed since the plan was made, is not booted.
pub(crate) async fn boot(build: &BuildContext<'_>, stack: Option<&Stack>) -> Result<Guest, Failure> {
    let machine = machine_on(build.plan, stack);
    let backing = backing(build.plan, stack);
    let attempt = async || {
        check_base(build.plan)?;
        prepare(build, &backing).await?;
        let site = MachineSite { machine: &machine, ..build.site() };
        if stack.is_none() && matches!(machine.agent, AgentStart::Planted(_)) {
            planting::plant(site, &backing, build.plan.grows()).await?;
        }
        boot::start(site, &backing).await
    };
    let mut guest = boot::boot_despite_crash(&build.events, attempt).await?;
    guest.announce(&build.events);
    let checked = if build.plan.grows() && stack.is_none() { growth::check(build, &mut guest).await } else { Ok(()) };
    match checked {
        Ok(()) => Ok(guest),
        Err(failure) => Err(guest.abandon(failure).await),
    }
}

/// Returns the plan's machine, with the UEFI variables of the layer that it is built on.
fn machine_on(plan: &Plan, stack: Option<&Stack>) -> PlannedMachine {
    let mut machine = plan.machine.clone();
    if let Some(vars) = stack.and_then(|stack| stack.top().uefi_vars()) {
        machine.start_with_uefi_vars(vars);
    }
    machine
}

/// Resumes a guest from the memory of a layer.
pub(crate) async fn resume_layer(
    build: &BuildContext<'_>,
    stack: &Stack,
    format: RamFormat,
    hello: Hello,
) -> Result<Guest, Failure> {
    let machine = machine_on(build.plan, Some(stack));
    let site = MachineSite { machine: &machine, ..build.site() };
    boot::resume(site, &backing(build.plan, Some(stack)), (&stack.top().ram(), format), hello).await
}
