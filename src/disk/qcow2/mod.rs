//! The qcow2 format as QEMU's `docs/interop/qcow2.rst` describes it.

pub mod header;
pub(super) mod layout;
pub(super) mod reader;
pub(super) mod stripe;
mod unpack;
pub(super) mod writer;

use std::io;
use std::path::Path;

/// Creates an empty overlay of `virtual_size` bytes, replacing the file at `path`. Its backing file is not named in its
/// header: kiln always passes the whole block graph itself, and QEMU would open a file that is named there.
///
/// # Errors
/// When it cannot be written.
pub fn create_overlay(path: &Path, virtual_size: u64) -> io::Result<()> {
    std::fs::write(path, writer::empty(virtual_size)?)
}
