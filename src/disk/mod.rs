//! Disks: the untrusted base image, overlays on it, and kiln's own read-only view of what the guest sees.
//!
//! ```text
//! base file --inspect--> BaseImage --qcow2--> overlay --(QEMU writes it)--> Chain of opened files
//!                                                                             |- partition -> ext4, fat -> volume -> tree -> packages, os_release, listing
//!                                                                             |- journal_eraser: one more overlay, on a sealed disk
//!                                                                             |- write_qcow2: qcow2
//!                                                                             |- write: raw, vmdk, vdi, vhdx, vhd
//!                                                                             `- digest  sha256 of the raw disk; all of those read back
//! ```
//!
//! Two rules hold everywhere here. No name in an image's header is ever followed, and no QEMU tool opens a base before
//! [`inspect`] has read its header. Sizes and offsets found in an image are checked before they are used.

mod as_booted;
pub mod as_mounted;
pub mod base_twin;
mod boot_entry;
pub mod boot_files;
mod byte_ranges;
mod bytes;
pub mod chain;
pub mod chunk_index;
pub mod compare;
pub mod digest;
pub mod entry;
pub(crate) mod expected_mount;
pub mod ext4;
pub mod fat;
mod file_writer;
pub mod gap;
pub(crate) mod guest_files;
pub mod guest_listing;
pub mod header_error;
pub mod identity;
pub mod inspect;
mod inventory;
pub mod journal_eraser;
pub mod kernel_file;
pub mod known_files;
pub mod linux_kernel;
pub mod listing;
mod lookup;
pub(crate) mod magic;
mod mbr;
mod mount;
pub(crate) mod ordered_jobs;
pub mod os_release;
pub mod packages;
pub mod partition;
pub mod partition_table;
mod pieces;
mod probe;
pub mod qcow2;
mod root;
mod slot_cache;
pub mod source;
mod sparse;
pub mod tree;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;
pub mod volume;
pub mod write;
pub mod write_qcow2;
