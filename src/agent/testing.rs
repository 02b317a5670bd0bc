//! Entry points for the tests of the host's end.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::accounts::Accounts;
use super::cgroup::CgroupTree;
use super::leftovers::Leftovers;
use super::pack::{FetchedFiles, PackError, pack};
use super::{RequestFailure, device, sys, unpack};
use crate::wire::tree::{Encoder, Head, Layout, Totals};

pub(crate) use sys::{set_xattr, xattr};

/// Creates a separate record of leftovers for the commands of one test.
pub(crate) fn leftovers() -> Arc<Leftovers> {
    static TESTS: AtomicU32 = AtomicU32::new(0);
    let name = format!("kiln-test-{}-{}", std::process::id(), TESTS.fetch_add(1, Ordering::SeqCst));
    Leftovers::new(CgroupTree::find(&name).ok())
}

/// Unpacks a file as if it were a block device.
pub(crate) fn unpack_file(path: &Path) -> Result<Totals, RequestFailure> {
    let device = device::ReadAhead::open(path).map_err(RequestFailure::at(path.display()))?;
    unpack::unpack(device, &Accounts::default(), &mut |_| {})
}

/// Unpacks a stream that was sent over the port.
pub(crate) fn unpack_stream(stream: impl io::BufRead) -> Result<Totals, RequestFailure> {
    unpack::unpack(stream, &Accounts::default(), &mut |_| {})
}

/// Packs a path as for a fetch of the host.
pub(crate) fn pack_stream(path: &Path) -> Result<Vec<u8>, PackError> {
    let head = Head { to: Vec::new(), name: Vec::new(), into: false, contents: false, owner: None };
    let mut stream = Vec::new();
    let encoder = Encoder::new(&mut stream, Layout::Packed, head).map_err(PackError::Write)?;
    pack(path, encoder, &mut FetchedFiles)?;
    Ok(stream)
}
