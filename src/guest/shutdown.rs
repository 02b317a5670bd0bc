//! A clean power-off: the guest confirms that its file systems are synced, then turns itself off.

use std::path::PathBuf;
use std::time::Duration;

use crate::context::BuildContext;
use crate::deadline::Deadline;
use crate::error::{Failure, Fault, Kind};
use crate::machine::PoweredOff;
use crate::session::Farewell;
use crate::specfile::DiskFormat;

use super::boot::Guest;
use super::seal::SealedGuest;

/// The deadline from that confirmation to the end of QEMU. Stopping takes two seconds; a service may insist on systemd's
/// 90.
const PATIENCE: Duration = Duration::from_secs(180);

/// The disk of a guest that was sealed, confirmed its shutdown and powered itself off: the only thing that is ever
/// converted.
#[derive(Debug)]
#[must_use]
pub struct CleanShutdown {
    /// Files of the disk, the top one first.
    pub chain: Vec<(PathBuf, DiskFormat)>,
    proof: (SealedGuest, Farewell, PoweredOff),
}

impl CleanShutdown {
    /// Returns whether an agent was planted on the disk until it was sealed.
    pub(crate) fn had_agent(&self) -> bool {
        self.proof.0.had_agent
    }
}

/// The guest did not confirm its shutdown.
#[derive(Debug, thiserror::Error)]
#[error("the guest did not answer the goodbye within {} s", PATIENCE.as_secs())]
struct ShutdownError;

impl Fault for ShutdownError {
    fn kind(&self) -> Kind {
        Kind::Boot
    }
}

/// Shuts the sealed guest down cleanly.
pub(crate) async fn shut_down(
    build: &BuildContext<'_>,
    guest: Guest,
    sealed: SealedGuest,
    chain: Vec<(PathBuf, DiskFormat)>,
) -> Result<CleanShutdown, Failure> {
    let (farewell, powered_off) = power_off(&build.limits, guest).await?;
    Ok(CleanShutdown { chain, proof: (sealed, farewell, powered_off) })
}

/// Has the guest sync its file systems and turn itself off.
pub(super) async fn power_off(limits: &Deadline, guest: Guest) -> Result<(Farewell, PoweredOff), Failure> {
    let Guest { machine, session, .. } = guest;
    let farewell = session.bye();
    let farewell = limits.hold_guest(&machine, PATIENCE, || ShutdownError.into(), farewell).await;
    let farewell = match farewell {
        Ok(farewell) => farewell,
        Err(failure) => {
            machine.abort().await;
            return Err(failure);
        }
    };
    Ok((farewell, limits.hold(machine.power_off(PATIENCE)).await?))
}
