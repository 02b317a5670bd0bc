//! The qcow2 format as QEMU's `docs/interop/qcow2.rst` describes it.

pub mod header;
pub(super) mod reader;
mod unpack;
pub(super) mod writer;

use std::io;
use std::path::Path;

/// Creates an empty overlay in place of what is there, as large as `virtual_size` bytes. What it lies on does not stand in its header: kiln always
/// states the whole graph itself, and QEMU would open a file that is named there.
///
/// # Errors
/// When it cannot be written.
pub fn create_overlay(path: &Path, virtual_size: u64) -> io::Result<()> {
    std::fs::write(path, writer::empty(virtual_size))
}
