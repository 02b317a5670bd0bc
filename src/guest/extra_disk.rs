//! Files of the user that a clone uses as disks: named with their format, checked, and not in use by anybody else.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::disk::inspect::{BaseHeaderError, open_extra_disk};
use crate::error::{Fault, Kind};
use crate::plan::machine::ExtraDisk;
use crate::specfile::{BaseFormat, DiskFormat};

/// Separates a file from its stated format.
const STATED: &str = ",format=";

/// A disk as the user names it: a file, and its format if that is stated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRequest {
    path: PathBuf,
    format: BaseFormat,
}

/// The reason why a file cannot be a disk of a clone.
#[derive(Debug, thiserror::Error)]
pub enum ExtraDiskError {
    /// The file is not a disk of this format.
    #[error("the disk {} is not usable as {format}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The name of the format.
        format: &'static str,
        /// The reason.
        #[source]
        source: BaseHeaderError,
    },
    /// The file may not be written.
    #[error("the disk {} cannot be opened for writing", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// Another process has locked the file, as QEMU does with its disks.
    #[error("the disk {} is in use by {holder}", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
        /// The process.
        holder: LockHolder,
    },
    /// The file is named twice.
    #[error("the disk {} is named twice", .0.display())]
    Twice(PathBuf),
    /// The file belongs to an image in the store.
    #[error("the disk {} is a file of the store, which never changes", .0.display())]
    InStore(PathBuf),
}

/// The process that has locked a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockHolder {
    /// A process that the kernel does not name, as for locks like QEMU's.
    Unnamed,
    /// The process with this id.
    Process(i32),
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unnamed => f.write_str("another process"),
            Self::Process(id) => write!(f, "process {id}"),
        }
    }
}

impl Fault for ExtraDiskError {
    fn kind(&self) -> Kind {
        match self {
            Self::Locked { .. } => Kind::Host,
            _ => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Unusable { source: BaseHeaderError::Io(error), .. } if error.kind() == io::ErrorKind::NotFound => {
                vec!["`qemu-img create -f qcow2 FILE 10G` makes an empty disk".into()]
            }
            Self::Unusable { source: BaseHeaderError::Mismatch { .. } | BaseHeaderError::NotQcow2 { .. }, .. } => {
                vec![format!("state the format of the file: `--disk FILE{STATED}raw` or `--disk FILE{STATED}qcow2`")]
            }
            Self::Locked { path, .. } => {
                vec![format!("`kiln ps` lists machines, `fuser -v {}` processes", path.display())]
            }
            Self::InStore(_) => {
                vec!["`kiln run` gives each clone a disk of its own; copy the file to change it".into()]
            }
            _ => Vec::new(),
        }
    }
}

impl FromStr for DiskRequest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, stated) = match text.rsplit_once(STATED) {
            Some((path, format)) => (path, Some(format)),
            None => (text, None),
        };
        let extension = Path::new(path).extension().and_then(|end| end.to_str());
        let format = match stated.or(extension) {
            Some("qcow2") => BaseFormat::Qcow2,
            Some("raw") => BaseFormat::Raw,
            Some("img") if stated.is_none() => BaseFormat::Raw,
            _ if stated.is_some() => {
                return Err(format!("the format must be raw or qcow2: `--disk {path}{STATED}raw`"));
            }
            _ => {
                return Err(format!(
                    "the name of the file does not tell its format (.qcow2, .raw or .img): state it, as in \
                     `--disk {path}{STATED}raw`"
                ));
            }
        };
        Ok(Self { path: PathBuf::from(path), format })
    }
}

/// Checks the disks of a clone: each is a file of its format that this user may write and nobody has locked, named once and
/// not in the store.
///
/// # Errors
/// The first disk that cannot be used.
pub fn check_disks(requests: &[DiskRequest], store: &Path) -> Result<Vec<ExtraDisk>, ExtraDiskError> {
    let mut seen = Vec::new();
    let mut disks = Vec::new();
    for request in requests {
        let (file, disk) = check_disk(request, store)?;
        let identity = file.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
        if identity.is_some() && seen.contains(&identity) {
            return Err(ExtraDiskError::Twice(disk.path));
        }
        seen.push(identity);
        disks.push(disk);
    }
    Ok(disks)
}

fn check_disk(request: &DiskRequest, store: &Path) -> Result<(File, ExtraDisk), ExtraDiskError> {
    let format = DiskFormat::from(request.format);
    let unusable = |source| ExtraDiskError::Unusable { path: request.path.clone(), format: format.name(), source };
    // QEMU gets the path without symbolic links, which cannot lead elsewhere later.
    let path = request.path.canonicalize().map_err(|error| unusable(BaseHeaderError::Io(error)))?;
    if store.canonicalize().is_ok_and(|store| path.starts_with(store)) {
        return Err(ExtraDiskError::InStore(path));
    }
    open_extra_disk(&path, request.format).map_err(unusable)?;
    let opened = File::options().read(true).write(true).open(&path);
    let file = opened.map_err(|source| ExtraDiskError::ReadOnly { path: path.clone(), source })?;
    match find_lock(&file) {
        Some(holder) => Err(ExtraDiskError::Locked { path, holder }),
        None => Ok((file, ExtraDisk { path, format })),
    }
}

/// Returns the process that has locked any byte of a file, if one has (`F_OFD_GETLK`, fcntl(2)). A file system without locks
/// has none.
fn find_lock(file: &File) -> Option<LockHolder> {
    let mut lock = byte_lock(libc::F_WRLCK, 0, 0);
    fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock)).ok()?;
    match lock.l_pid {
        _ if i32::from(lock.l_type) == libc::F_UNLCK => None,
        id if id > 0 => Some(LockHolder::Process(id)),
        _ => Some(LockHolder::Unnamed),
    }
}

/// Returns a lock of this kind on bytes of a file; no length means up to its end.
#[expect(clippy::cast_possible_truncation, reason = "the constants are small")]
fn byte_lock(kind: libc::c_int, start: libc::off_t, length: libc::off_t) -> libc::flock {
    let (l_type, l_whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
    libc::flock { l_type, l_whence, l_start: start, l_len: length, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<DiskRequest, String> {
        text.parse()
    }

    #[test]
    fn a_format_is_stated_or_told_by_the_name() {
        let parsed = |text: &str| request(text).map(|request| (request.path, request.format));
        assert_eq!(parsed("/d/a.qcow2"), Ok(("/d/a.qcow2".into(), BaseFormat::Qcow2)));
        assert_eq!(parsed("a.img"), Ok(("a.img".into(), BaseFormat::Raw)));
        assert_eq!(parsed("a.raw"), Ok(("a.raw".into(), BaseFormat::Raw)));
        assert_eq!(parsed("data,format=raw"), Ok(("data".into(), BaseFormat::Raw)));
        assert_eq!(parsed("a.img,format=qcow2"), Ok(("a.img".into(), BaseFormat::Qcow2)));
        assert!(parsed("data").unwrap_err().contains("state it"));
        assert!(parsed("a.vmdk").unwrap_err().contains("state it"));
        assert!(parsed("a.img,format=img").unwrap_err().contains("must be raw or qcow2"));
    }

    #[test]
    fn a_file_is_checked_by_its_header() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let check = |name: &str, format: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            let request = request(&format!("{},format={format}", path.display())).unwrap();
            check_disks(&[request.clone(), request], &store).unwrap_err()
        };
        // The only mistake is that it is named twice.
        assert!(matches!(check("blank", "raw", &[0; 1024]), ExtraDiskError::Twice(_)));
        let error = check("short", "raw", &[0; 1000]);
        assert!(
            matches!(&error, ExtraDiskError::Unusable { source: BaseHeaderError::PartSector(1000), .. }),
            "{error:?}"
        );
        assert!(matches!(check("text", "qcow2", b"hello\n"), ExtraDiskError::Unusable { .. }));
        let error = check("image", "raw", b"QFI\xfb\0\0\0\x03");
        assert!(error.hints()[0].contains("format=qcow2"), "{error:?}");
        assert!(matches!(check("store/disk", "raw", &[0; 1024]), ExtraDiskError::InStore(_)));
    }

    #[test]
    fn a_locked_file_is_refused() {
        let file = tempfile::NamedTempFile::with_suffix(".raw").unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let request = request(file.path().to_str().unwrap()).unwrap();
        let check = || check_disks(std::slice::from_ref(&request), Path::new("/nowhere"));
        assert_eq!(check().unwrap()[0].format, DiskFormat::Raw);
        // As QEMU locks a disk that it writes to: single bytes, for its own open file.
        let lock = |kind| fcntl(file.as_file(), FcntlArg::F_OFD_SETLK(&byte_lock(kind, 101, 1))).unwrap();
        lock(libc::F_RDLCK);
        assert!(matches!(check(), Err(ExtraDiskError::Locked { holder: LockHolder::Unnamed, .. })));
        lock(libc::F_UNLCK);
        check().unwrap();
    }
}
