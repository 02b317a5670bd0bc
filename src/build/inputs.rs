//! Digests of what steps bring from the host: a file, or a folder as a whole.
//!
//! The digest covers what ends up in the guest and counts: relative paths, types, permission bits, link targets
//! and data. Times are left out, since git does not keep them; so a fresh clone plans the same keys. Devices and sockets
//! are refused, as a copy refuses them.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::disk::digest::hex;
use crate::error::{Fault, Kind};
use crate::plan::InputFacts;

/// An input cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It cannot be read.
    #[error("line {line}: cannot read {}", path.display())]
    Unreadable {
        /// Line of the step in the spec.
        line: usize,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is neither file, folder nor symlink.
    #[error("line {line}: {} is a device, pipe or socket; only files, folders and symlinks can be copied", path.display())]
    Special {
        /// Line of the step in the spec.
        line: usize,
        /// The path.
        path: PathBuf,
    },
    /// It is not what was planned with.
    #[error("line {line}: {} changed during the build", path.display())]
    Changed {
        /// Line of the step in the spec.
        line: usize,
        /// The path.
        path: PathBuf,
    },
    /// A script is not a file.
    #[error("line {line}: {} is not a file", path.display())]
    NotAFile {
        /// Line of the step in the spec.
        line: usize,
        /// The path.
        path: PathBuf,
    },
}

impl Fault for InputError {
    fn kind(&self) -> Kind {
        match self {
            InputError::Changed { .. } => Kind::Base,
            _ => Kind::Spec,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            InputError::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                vec!["paths in a spec are relative to the spec's own folder".into()]
            }
            _ => Vec::new(),
        }
    }
}

/// Reads an input as a whole. A symlink named by the spec itself is followed, one inside a folder is not, as cp -a does.
///
/// # Errors
/// When something in it cannot be read or copied.
pub fn examine(path: &Path, line: usize) -> Result<InputFacts, InputError> {
    let mut walk = Walk { line, hash: Sha256::new(), bytes: 0, entries: 0 };
    let metadata = fs::metadata(path).map_err(walk.unreadable(path))?;
    walk.entry(path, Path::new(""), &metadata)?;
    Ok(InputFacts { sha256: hex(&walk.hash.finalize()), bytes: walk.bytes, entries: walk.entries })
}

/// [`examine`] for a script, which has to be a file.
///
/// # Errors
/// When it is not, or cannot be read.
pub fn examine_script(path: &Path, line: usize) -> Result<InputFacts, InputError> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(InputError::NotAFile { line, path: path.to_owned() }),
        _ => examine(path, line),
    }
}

struct Walk {
    line: usize,
    hash: Sha256,
    bytes: u64,
    entries: u64,
}

impl Walk {
    fn unreadable(&self, path: &Path) -> impl Fn(io::Error) -> InputError + use<> {
        let (line, path) = (self.line, path.to_owned());
        move |source| InputError::Unreadable { line, path: path.clone(), source }
    }

    /// Each field is preceded by its length, so that neighbours cannot run together.
    fn field(&mut self, bytes: &[u8]) {
        self.hash.update((bytes.len() as u64).to_le_bytes());
        self.hash.update(bytes);
    }

    fn entry(&mut self, path: &Path, relative: &Path, metadata: &Metadata) -> Result<(), InputError> {
        let kind = metadata.file_type();
        if kind.is_char_device() || kind.is_block_device() || kind.is_socket() || kind.is_fifo() {
            return Err(InputError::Special { line: self.line, path: path.to_owned() });
        }
        self.entries += 1;
        self.field(relative.as_os_str().as_bytes());
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(self.unreadable(path))?;
            self.field(b"link");
            self.field(target.as_os_str().as_bytes());
            return Ok(());
        }
        self.field(format!("{:o}", metadata.permissions().mode() & 0o7777).as_bytes());
        if kind.is_dir() {
            self.field(b"folder");
            self.folder(path, relative)
        } else {
            self.field(b"file");
            self.file(path, metadata)
        }
    }

    fn folder(&mut self, path: &Path, relative: &Path) -> Result<(), InputError> {
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = entries.map_err(self.unreadable(path))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let metadata = fs::symlink_metadata(&path).map_err(self.unreadable(&path))?;
            self.entry(&path, &relative.join(entry.file_name()), &metadata)?;
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, metadata: &Metadata) -> Result<(), InputError> {
        self.field(&metadata.size().to_le_bytes());
        let mut file = File::open(path).map_err(self.unreadable(path))?;
        self.bytes += io::copy(&mut file, &mut HashWriter(&mut self.hash)).map_err(self.unreadable(path))?;
        Ok(())
    }
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(folder: &Path) -> String {
        examine(folder, 1).unwrap().sha256
    }

    #[test]
    fn content_names_and_modes_count_and_times_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "one").unwrap();
        let before = digest(folder.path());
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        File::options().write(true).open(&file).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(before, digest(folder.path()));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let other_mode = digest(folder.path());
        fs::write(&file, "two").unwrap();
        let other_content = digest(folder.path());
        fs::rename(&file, folder.path().join("b")).unwrap();
        let other_name = digest(folder.path());
        let all = [&before, &other_mode, &other_content, &other_name];
        assert!(all.iter().enumerate().all(|(i, one)| all[..i].iter().all(|other| one != other)));
    }

    #[test]
    fn the_place_of_the_folder_does_not_count() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in [&one, &other] {
            fs::create_dir(folder.path().join("sub")).unwrap();
            fs::write(folder.path().join("sub/file"), "x").unwrap();
            std::os::unix::fs::symlink("sub/file", folder.path().join("link")).unwrap();
            let same = fs::Permissions::from_mode(0o755);
            fs::set_permissions(folder.path(), same).unwrap();
        }
        assert_eq!(digest(one.path()), digest(other.path()));
        assert_eq!(examine(one.path(), 1).unwrap().entries, 4);
    }

    #[test]
    fn a_pipe_is_refused_without_being_opened() {
        let folder = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&folder.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(examine(folder.path(), 7), Err(InputError::Special { line: 7, .. })));
    }
}
