//! A clean power-off: the guest says goodbye with its file systems synced, then turns itself off.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Failure, Fault, Kind};
use crate::machine::PoweredOff;
use crate::session::Farewell;
use crate::specfile::DiskFormat;

use super::Build;
use super::boot::Guest;
use super::seal::Sealed;

/// From the goodbye to the end of QEMU. Stopping takes two seconds; a service may insist on systemd's 90.
const PATIENCE: Duration = Duration::from_secs(180);

/// The disk of a guest that was sealed, said goodbye and powered itself off: the only thing that is ever converted.
#[derive(Debug)]
#[must_use]
pub struct CleanShutdown {
    /// Its files, top first.
    pub chain: Vec<(PathBuf, DiskFormat)>,
    _proof: (Sealed, Farewell, PoweredOff),
}

/// The guest did not say goodbye.
#[derive(Debug, thiserror::Error)]
#[error("the sealed guest did not answer the goodbye within {} s", PATIENCE.as_secs())]
struct NoFarewell;

impl Fault for NoFarewell {
    fn kind(&self) -> Kind {
        Kind::Boot
    }
}

/// Ends the guest in order.
pub(crate) async fn shut_down(
    build: &Build<'_>,
    guest: Guest,
    sealed: Sealed,
    chain: Vec<(PathBuf, DiskFormat)>,
) -> Result<CleanShutdown, Failure> {
    let Guest { machine, session, .. } = guest;
    let farewell = session.bye();
    let farewell = build.limits.hold_guest(&machine, PATIENCE, || NoFarewell.into(), farewell).await;
    let farewell = match farewell {
        Ok(farewell) => farewell,
        Err(failure) => {
            machine.abort().await;
            return Err(failure);
        }
    };
    let powered_off = build.limits.hold(machine.power_off(PATIENCE)).await?;
    Ok(CleanShutdown { chain, _proof: (sealed, farewell, powered_off) })
}
