//! Packages: what wraps a disk for one platform, each file the same bytes for the same image.
//!
//! ```text
//! disk file + Facts -> Content (headers, documents of ours, ranges of the disk) -> written, or compressed by `gzip`
//! ```
//! Nothing here decides: which disk format goes into which package, and under which name, is the plan's business.

use std::io;
use std::path::{Path, PathBuf};

use crate::disk::chain::ChainError;
use crate::error::{Fault, Kind};
use crate::size::ByteSize;
use crate::spec::Firmware;

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

/// What a package says of the image in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Name of the image.
    pub name: String,
    /// Its version.
    pub version: String,
    /// One line for people; may be empty.
    pub description: String,
    /// Bytes of the disk the guest sees.
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
    /// Google takes whole GiB alone.
    #[error("Google Compute Engine takes disks of whole GiB, and this one has {0}")]
    NotWholeGib(ByteSize),
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
            PackageError::NotWholeGib(size) => {
                let whole = size.bytes().next_multiple_of(1 << 30).max(1 << 30);
                vec![format!("build it with `machine.disk = \"{}\"`", ByteSize(whole))]
            }
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
