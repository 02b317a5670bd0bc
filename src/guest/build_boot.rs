//! Boots the guest of a build: from the base image, or from the disk or the memory of a layer.

use std::time::Duration;

use crate::context::{BuildContext, ScratchError};
use crate::disk::qcow2::create_overlay;
use crate::error::Failure;
use crate::event::NoticeLevel;
use crate::layer::Stack;
use crate::machine::argv::{BackingFiles, OVERLAY};
use crate::machine::checkpoint::RamFormat;
use crate::plan::Plan;
use crate::plan::agent::AgentStart;
use crate::plan::machine::PlannedMachine;
use crate::seed::BootPurpose;
use crate::session::{Exec, Hello};
use crate::size::ByteSize;
use crate::specfile::DiskFormat;

use super::boot::{self, Guest, MachineSite};
use super::{direct_boot, planting};

/// A command that prints the size of the root file system in kilobytes (POSIX df).
const ROOT_SIZE: &str = "df -Pk / | awk 'NR == 2 { print $2 }'";
/// The deadline for small requests to the guest.
const PATIENCE: Duration = Duration::from_secs(60);

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
/// already where it is planted.
pub(crate) async fn boot(build: &BuildContext<'_>, stack: Option<&Stack>) -> Result<Guest, Failure> {
    let machine = machine_on(build.plan, stack);
    let backing = backing(build.plan, stack);
    let attempt = async || {
        prepare(build, &backing).await?;
        let site = MachineSite { machine: &machine, ..build.site() };
        if stack.is_none() && matches!(machine.agent, AgentStart::Planted(_)) {
            planting::plant(site, &backing, build.plan.grows()).await?;
        }
        boot::start(site, &backing).await
    };
    let guest = boot::boot_despite_crash(&build.events, attempt).await?;
    guest.announce(&build.events);
    if build.plan.grows() && stack.is_none() {
        return check_growth(build, guest).await;
    }
    Ok(guest)
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

/// Checks that the root file system has grown. A base image without growpart boots with its old size; the steps may still
/// have enough room.
async fn check_growth(build: &BuildContext<'_>, mut guest: Guest) -> Result<Guest, Failure> {
    let mut output = Vec::new();
    let exec = Exec { timeout: Some(PATIENCE), ..Exec::new(["sh", "-c", ROOT_SIZE]) };
    let request = async { guest.session.exec(&exec, &mut |_, bytes| output.extend_from_slice(bytes)).await };
    if let Err(failure) = build.limits.call_with_grace(&guest.machine, PATIENCE, request).await {
        return Err(guest.abandon(failure).await);
    }
    let root = ByteSize(String::from_utf8_lossy(&output).trim().parse::<u64>().unwrap_or(0) << 10);
    let disk = ByteSize(build.plan.disk_size());
    if root.bytes() < disk.bytes() / 2 {
        let text = format!("the root file system has {root} of the disk's {disk}: the base image did not grow it");
        build.events.notice(NoticeLevel::Warning, text);
    }
    Ok(guest)
}
