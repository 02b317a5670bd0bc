//! Errors in the kernel beside a base image, and in its initrd.

use std::io;
use std::path::PathBuf;

use crate::disk::kernel_file::KernelFileFlaw;
use crate::error::{Fault, Kind};

/// The reason why a kernel beside a base image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BaseKernelError {
    /// A file cannot be read.
    #[error("cannot read the {key} {}: {source}", path.display())]
    Unreadable {
        /// The key of `[base]` that names the file.
        key: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file is a folder, a device or the like.
    #[error("the {key} {} is not a file", path.display())]
    NotAFile {
        /// The key of `[base]` that names the file.
        key: &'static str,
        path: PathBuf,
    },
    /// QEMU cannot start the kernel.
    #[error("the kernel {} {flaw}", path.display())]
    NotStartable {
        path: PathBuf,
        /// What is wrong with the file.
        flaw: KernelFileFlaw,
    },
    /// Nothing tells the kernel which file system is the root.
    #[error("the root of the base image is not known, and the kernel {} has neither an initrd nor a `root=`", path.display())]
    NoRoot { path: PathBuf },
}

impl BaseKernelError {
    /// Returns the key of `[base]` that names the file at fault.
    pub(super) fn key(&self) -> &'static str {
        match self {
            BaseKernelError::Unreadable { key, .. } | BaseKernelError::NotAFile { key, .. } => key,
            BaseKernelError::NotStartable { .. } | BaseKernelError::NoRoot { .. } => "kernel",
        }
    }
}

impl Fault for BaseKernelError {
    fn kind(&self) -> Kind {
        Kind::Base
    }

    fn hints(&self) -> Vec<String> {
        match self {
            BaseKernelError::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                vec!["paths in a spec are relative to the spec's own folder".into()]
            }
            BaseKernelError::NotStartable { flaw: KernelFileFlaw::NoPvhEntry, .. } => {
                vec!["take the bzImage of that kernel, or build it with `CONFIG_PVH=y`".into()]
            }
            BaseKernelError::NoRoot { .. } => vec!["name the root in `base.cmdline`, such as `root=/dev/vda1`".into()],
            BaseKernelError::Unreadable { .. }
            | BaseKernelError::NotAFile { .. }
            | BaseKernelError::NotStartable { .. } => Vec::new(),
        }
    }
}
