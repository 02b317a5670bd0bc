//! Examines the kernel beside a base image, and its initrd.

use std::fs::metadata;
use std::io;
use std::path::Path;

use crate::digest::FileStamp;
use crate::digest_cache::DigestCache;
use crate::disk::boot_files::find_root_partition;
use crate::disk::chain::open_files;
use crate::disk::kernel_file::check_kernel;
use crate::plan::kernel::{HashedFile, KernelFacts, complete_cmdline, names_root};
use crate::specfile::{DiskFormat, KernelSpec};

use super::inputs::{digest_file, open_regular};
use super::kernel_error::BaseKernelError;

/// Examines the files of a kernel, and completes its command line for a disk: hashes the files, unless their digests are known.
///
/// # Errors
/// When a file cannot be read, QEMU cannot start the kernel, or nothing names the root.
pub(super) fn examine_kernel(
    kernel: &KernelSpec,
    (base, format): (&Path, DiskFormat),
    memo: &DigestCache,
) -> Result<KernelFacts, BaseKernelError> {
    let (image, initrd) = examine_files(kernel, memo)?;
    let root = if names_root(&kernel.cmdline) { None } else { find_root(base, format) };
    if root.is_none() && initrd.is_none() && !names_root(&kernel.cmdline) {
        return Err(BaseKernelError::NoRoot { path: kernel.file.clone() });
    }
    Ok(KernelFacts { image, initrd, cmdline: complete_cmdline(&kernel.cmdline, root) })
}

/// Examines the files of a kernel without its disk.
///
/// # Errors
/// When a file cannot be read, or QEMU cannot start the kernel.
pub(super) fn examine_files(
    kernel: &KernelSpec,
    memo: &DigestCache,
) -> Result<(HashedFile, Option<HashedFile>), BaseKernelError> {
    let image = examine_file("kernel", &kernel.file, memo)?;
    let checked = open_regular(&kernel.file).map_err(Into::into).and_then(|file| check_kernel(&file));
    checked.map_err(|flaw| BaseKernelError::NotStartable { path: kernel.file.clone(), flaw })?;
    let initrd = kernel.initrd.as_deref().map(|initrd| examine_file("initrd", initrd, memo)).transpose()?;
    Ok((image, initrd))
}

fn examine_file(key: &'static str, path: &Path, memo: &DigestCache) -> Result<HashedFile, BaseKernelError> {
    hash_file(path, memo).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidInput => BaseKernelError::NotAFile { key, path: path.to_owned() },
        _ => BaseKernelError::Unreadable { key, path: path.to_owned(), source },
    })
}

fn hash_file(path: &Path, memo: &DigestCache) -> io::Result<HashedFile> {
    let file = open_regular(path)?;
    let stamp = FileStamp::from(&file.metadata()?);
    let sha256 = memo.digest("file", path, || digest_file(&open_regular(path)?))?.sha256;
    if FileStamp::from(&metadata(path)?) != stamp {
        return Err(io::Error::other("it changed meanwhile"));
    }
    Ok(HashedFile { path: path.to_owned(), sha256, stamp })
}

/// Returns the partition of the root, as far as kiln can read the disk.
fn find_root(base: &Path, format: DiskFormat) -> Option<u32> {
    find_root_partition(&open_files(vec![(base.to_owned(), format)]).ok()?)
}
