//! Packages: what wraps a disk for one platform, each file the same bytes for the same image.
//!
//! ```text
//! disk file + Facts -> Content (headers, documents of ours, ranges of the disk) -> written, or compressed by `gzip`
//! ```
//! No decisions are made here: the plan determines the disk file and the name of each package.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::chain::{Chain, ChainError, ChainFile};
use crate::disk::write::is_shortage;
use crate::error::{Fault, Kind};
use crate::plan::limits::DiskSizeError;
use crate::progress::{CancelledError, Progress};
use crate::size::ByteSize;
use crate::specfile::{Compression, DiskFormat, FirmwareKind, OutputFormat};

pub mod containerdisk;
pub mod content;
pub mod gcp;
pub mod gzip;
pub mod handover;
pub mod incus;
pub mod ova;
mod ovf;
pub mod proxmox;
pub mod simplestreams;
pub mod tar;
#[cfg(test)]
mod testing;
pub mod vagrant;
mod xml;

use content::PackageContent;
use gzip::Effort;

/// Facts about the image in a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageFacts {
    /// Name of the image.
    pub name: String,
    /// Version of the image.
    pub version: String,
    /// One-line description for people; may be empty.
    pub description: String,
    /// Size of the disk in the package, bytes.
    pub disk_size: u64,
    /// Number of CPUs of the machine it was built and tested in.
    pub cpus: u32,
    /// Memory of that machine.
    pub memory: ByteSize,
    /// Firmware that starts its boot loader.
    pub firmware: FirmwareKind,
    /// Time of all files in a package, seconds since 1970.
    pub time: u64,
}

/// The disk file in a package, in the format that [`OutputFormat::disk`] returns.
#[derive(Debug, Clone, Copy)]
pub struct PackageDisk<'a> {
    /// Path of the file, whose name it is also published under.
    pub path: &'a Path,
    /// Compression inside the file.
    pub compression: Compression,
}

/// The formats that are packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackageFormat {
    /// Google Compute Engine, see [`gcp`].
    Gcp,
    /// Open Virtual Appliance, see [`ova`].
    Ova,
    /// Vagrant, see [`vagrant`].
    Vagrant(vagrant::BoxVersion),
    /// Incus and LXD, see [`incus`].
    Incus,
    /// `KubeVirt`, see [`containerdisk`].
    Containerdisk,
    /// Proxmox VE, see [`proxmox`].
    Proxmox,
}

impl PackageFormat {
    /// Returns the package that a format is, if it is one.
    #[must_use]
    pub fn of(format: OutputFormat) -> Option<Self> {
        match format {
            OutputFormat::Gcp => Some(Self::Gcp),
            OutputFormat::Ova => Some(Self::Ova),
            OutputFormat::Vagrant => Some(Self::Vagrant(vagrant::BoxVersion::One)),
            OutputFormat::VagrantV2 => Some(Self::Vagrant(vagrant::BoxVersion::Two)),
            OutputFormat::Incus => Some(Self::Incus),
            OutputFormat::Containerdisk => Some(Self::Containerdisk),
            OutputFormat::Proxmox => Some(Self::Proxmox),
            OutputFormat::Qcow2
            | OutputFormat::Raw
            | OutputFormat::Vmdk
            | OutputFormat::Vdi
            | OutputFormat::Vhdx
            | OutputFormat::Vhd => None,
        }
    }

    /// Writes the package, or the file that belongs beside the disk file, to the new file `target`. Blocks the calling
    /// thread; uses all processors. `progress` counts bytes that are read, digested or written.
    ///
    /// # Errors
    /// When the disk's file cannot be read or does not fit, the package cannot be written, or the work is cancelled. What
    /// was written is then of no use.
    pub fn write(
        self,
        facts: &PackageFacts,
        disk: PackageDisk<'_>,
        target: &Path,
        progress: &Progress<'_>,
    ) -> Result<(), PackageError> {
        let file = File::open(disk.path).map_err(PackageError::Read)?;
        let out = &mut File::create_new(target).map_err(PackageError::Write)?;
        match self {
            Self::Gcp => {
                let raw = Chain::open(vec![ChainFile { file, format: DiskFormat::Raw }])?;
                let archive = gcp::archive(&Arc::new(raw), facts.time, progress)?;
                gzip::write(&archive, Effort::Default, out, progress)
            }
            Self::Ova => ova::archive(facts, PackageContent::file(file)?, progress)?.write(out, progress),
            Self::Vagrant(version) => {
                // Vagrant requires gzip; for a compressed disk, further compression gains nothing.
                let effort = if disk.compression == Compression::None { Effort::Default } else { Effort::Stored };
                let archive = vagrant::archive(facts, version, PackageContent::file(file)?)?;
                gzip::write(&archive, effort, out, progress)
            }
            Self::Incus => PackageContent::from(incus::metadata(facts)?).write(out, progress),
            Self::Containerdisk => {
                containerdisk::archive(facts, PackageContent::file(file)?, progress)?.write(out, progress)
            }
            Self::Proxmox => {
                let name = disk.path.file_name().unwrap_or_default().to_string_lossy();
                let script = proxmox::script(facts, &name, PackageContent::file(file)?.sha256(progress)?);
                PackageContent::from(script.into_bytes()).write(out, progress)
            }
        }
    }
}

/// A package cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The disk cannot be read.
    #[error(transparent)]
    Disk(#[from] ChainError),
    /// A file that goes into the package cannot be read.
    #[error("cannot read what goes into the package")]
    Read(#[source] io::Error),
    /// The package cannot be written.
    #[error("cannot write the package")]
    Write(#[source] io::Error),
    /// The compressor failed.
    #[error("cannot compress the package")]
    Compress(#[source] io::Error),
    /// A file is larger than the archive can hold.
    #[error("`{name}` has {bytes} bytes, and an archive of this format holds files of less than 8GiB")]
    MemberTooLarge {
        /// Name of the file in the archive.
        name: String,
        /// Size of the file.
        bytes: u64,
    },
    /// The name of a file is longer than the archive can hold.
    #[error("`{0}` is too long a name for an archive")]
    LongName(String),
    /// The platform does not support disks of this size.
    #[error(transparent)]
    Size(#[from] DiskSizeError),
    /// A tree of images: a file-system call failed.
    #[error("cannot {action} {}", path.display())]
    Tree {
        /// The action that failed, as in "cannot ...".
        action: &'static str,
        /// Path of the file or folder.
        path: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// A tree of images: its list is not valid.
    #[error("{} is no list of images", path.display())]
    List {
        /// Path of the list.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A tree of images: another image is listed in this one's place.
    #[error("the tree has another `{product}` of {version} (UTC)")]
    Listed {
        /// Key of name, version and architecture.
        product: String,
        /// The minute of the image's time.
        version: String,
    },
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] CancelledError),
}

impl PackageError {
    fn tree(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Tree { action, path, source }
    }
}

impl Fault for PackageError {
    fn kind(&self) -> Kind {
        match self {
            PackageError::Disk(error) => error.kind(),
            PackageError::Read(_) => Kind::Host,
            PackageError::Write(error) | PackageError::Tree { source: error, .. } if is_shortage(error) => Kind::Host,
            PackageError::Compress(_) => Kind::Bug,
            PackageError::Cancelled(_) => Kind::Interrupted,
            _ => Kind::Output,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            PackageError::Write(error) | PackageError::Tree { source: error, .. } if is_shortage(error) => {
                vec!["free some space there".into()]
            }
            PackageError::Listed { .. } => vec!["--replace lists this image instead".into()],
            PackageError::Size(limit) => limit.hints(),
            PackageError::MemberTooLarge { .. } => vec!["use the format `vmdk`, which is the same disk alone".into()],
            _ => Vec::new(),
        }
    }
}
