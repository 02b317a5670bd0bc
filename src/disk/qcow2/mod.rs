//! The qcow2 format as QEMU's `docs/interop/qcow2.rst` describes it.

pub mod header;
pub(super) mod reader;
mod unpack;
pub(super) mod writer;
