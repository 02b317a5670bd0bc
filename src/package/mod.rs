//! Packages: what wraps a disk for one platform, each file the same bytes for the same image.
//!
//! ```text
//! disk file + Facts -> Content (headers, documents of ours, ranges of the disk) -> written, or compressed by `gzip`
//! ```
//! Nothing here decides: which disk file goes into which package, and under which name, is the plan's business.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::hex;
use crate::disk::chain::{Chain, ChainError, Layer};
use crate::error::{Fault, Kind};
use crate::plan::limits::NotWholeGib;
use crate::size::ByteSize;
use crate::specfile::{Compression, DiskFormat, Firmware, OutputFormat};

pub mod containerdisk;
pub mod content;
pub mod gcp;
pub mod gzip;
pub mod incus;
pub mod ova;
mod ovf;
pub mod proxmox;
pub mod simplestreams;
pub mod tar;
#[cfg(test)]
mod testing;
pub mod vagrant;

use content::{Content, Watch};
use gzip::Effort;

/// What a package says of the image in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Name of the image.
    pub name: String,
    /// Its version.
    pub version: String,
    /// One line for people; may be empty.
    pub description: String,
    /// Bytes of the disk in the package.
    pub disk_size: u64,
    /// CPUs of the machine it was built and tested in.
    pub cpus: u32,
    /// Memory of that machine.
    pub memory: ByteSize,
    /// What starts its boot loader.
    pub firmware: Firmware,
    /// The time that everything in a package has, seconds since 1970.
    pub time: u64,
}

/// The disk file that a package is made of, in the format that [`OutputFormat::disk`] says.
#[derive(Debug, Clone, Copy)]
pub struct Disk<'a> {
    /// Where it is; its name is also the one it is published under.
    pub path: &'a Path,
    /// Inside it.
    pub compression: Compression,
}

/// The formats that are packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Package {
    /// [`gcp`]
    Gcp,
    /// [`ova`]
    Ova,
    /// [`vagrant`]
    Vagrant(vagrant::Version),
    /// [`incus`]
    Incus,
    /// [`containerdisk`]
    Containerdisk,
    /// [`proxmox`]
    Proxmox,
}

impl Package {
    /// The package that a format is, if it is one.
    #[must_use]
    pub fn of(format: OutputFormat) -> Option<Self> {
        match format {
            OutputFormat::Gcp => Some(Self::Gcp),
            OutputFormat::Ova => Some(Self::Ova),
            OutputFormat::Vagrant => Some(Self::Vagrant(vagrant::Version::One)),
            OutputFormat::VagrantV2 => Some(Self::Vagrant(vagrant::Version::Two)),
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

    /// Writes the package, or what stands beside the disk file, to the new file `target`. Blocks the calling thread; uses all
    /// processors. `watch` is told of bytes that are read, digested or written.
    ///
    /// # Errors
    /// When the disk's file cannot be read or does not fit, the package cannot be written, or `watch` breaks. What was written
    /// is then of no use.
    pub fn write(
        self,
        facts: &Facts,
        disk: Disk<'_>,
        target: &Path,
        watch: &mut Watch<'_>,
    ) -> Result<(), PackageError> {
        let file = || File::open(disk.path).map_err(PackageError::Read);
        let content = || Content::file(file()?);
        let out = &mut File::create_new(target).map_err(PackageError::Write)?;
        match self {
            Self::Gcp => {
                let raw = Chain::open(vec![Layer { file: file()?, format: DiskFormat::Raw }])?;
                let archive = gcp::archive(&Arc::new(raw), facts.time, watch)?;
                gzip::write(&archive, Effort::Default, out, watch)
            }
            Self::Ova => ova::archive(facts, content()?, watch)?.write(out, watch),
            Self::Vagrant(version) => {
                // Vagrant wants gzip; a disk that is compressed already gains nothing by it.
                let effort = if disk.compression == Compression::None { Effort::Default } else { Effort::Stored };
                gzip::write(&vagrant::archive(facts, version, content()?)?, effort, out, watch)
            }
            Self::Incus => Content::from(incus::metadata(facts)?).write(out, watch),
            Self::Containerdisk => containerdisk::archive(facts, content()?, watch)?.write(out, watch),
            Self::Proxmox => {
                let name = disk.path.file_name().unwrap_or_default().to_string_lossy();
                let script = proxmox::script(facts, &name, &hex(&content()?.sha256(watch)?));
                Content::from(script.into_bytes()).write(out, watch)
            }
        }
    }
}

/// No package.
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
        /// In the archive.
        name: String,
        /// Of the file.
        bytes: u64,
    },
    /// The name of a file is longer than the archive can hold.
    #[error("`{0}` is too long a name for an archive")]
    LongName(String),
    /// The platform does not take disks of this size.
    #[error(transparent)]
    Size(#[from] NotWholeGib),
    /// A tree of images: a file-system call failed.
    #[error("cannot {action} {}", path.display())]
    Tree {
        /// What was tried, as in "cannot ...".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A tree of images: its list is none.
    #[error("{} is no list of images", path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A tree of images: there is another one in the image's place.
    #[error("the tree has another `{product}` of {version} (UTC)")]
    Listed {
        /// What stands for name, version and architecture.
        product: String,
        /// The minute the image is of.
        version: String,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
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
            PackageError::Stopped => Kind::Interrupted,
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

/// A full disk, a quota, or a limit on the size of files.
fn is_shortage(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), FileTooLarge | QuotaExceeded | StorageFull)
}
