//! Doors for the tests of the host's end.

use std::io;
use std::path::Path;

use super::accounts::Accounts;
use super::{Refusal, device, sys, unpack};
use crate::wire::tree::Totals;

pub(crate) use sys::{set_xattr, xattr};

/// Unpacks a file as if it were a block device.
pub(crate) fn unpack_file(path: &Path) -> Result<Totals, Refusal> {
    let broken = |error: io::Error| Refusal::io(path.display(), &error);
    unpack::unpack(device::ReadAhead::open(path).map_err(broken)?, &Accounts::default(), &mut |_| {})
}
