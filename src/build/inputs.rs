//! Digests of what steps bring from the host: a file, or a folder as a whole.
//!
//! The digest covers all that a copy keeps but times: relative paths, types, permission bits, link targets, hard links,
//! extended attributes and data. git keeps no times; without them a fresh clone plans the same keys. Holes and zeros are
//! the same.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::hex;
use crate::error::{Fault, Kind};
use crate::guest::{PackError, timeless_digest};
use crate::memo::{Digested, Memo};

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
    /// It cannot be copied.
    #[error("line {line}: {} is {what}, which cannot be copied", path.display())]
    Unfit {
        /// Line of the step in the spec.
        line: usize,
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
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

/// Digest of an input as a whole. A symlink named by the spec itself is followed, one inside a folder is not, as cp -a
/// does. What did not change since it was hashed is not read again.
///
/// # Errors
/// When something in it cannot be read or copied.
pub fn examine(path: &Path, line: usize, memo: &Memo) -> Result<Digested, InputError> {
    memo.digest("copy", path, || digest(path, line))
}

/// [`examine`] for a script, which has to be a file.
///
/// # Errors
/// When it is not, or cannot be read.
pub fn examine_script(path: &Path, line: usize, memo: &Memo) -> Result<Digested, InputError> {
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(InputError::NotAFile { line, path: path.to_owned() }),
        _ => examine(path, line, memo),
    }
}

fn digest(path: &Path, line: usize) -> Result<Digested, InputError> {
    let found = timeless_digest(path).map_err(|error| match error {
        PackError::Read(path, source) => InputError::Unreadable { line, path, source },
        PackError::Changed(path) => InputError::Changed { line, path },
        PackError::Unfit(path, what) => InputError::Unfit { line, path, what },
        PackError::Write(source) => InputError::Unreadable { line, path: path.to_owned(), source },
    })?;
    Ok(Digested { sha256: hex(&found.sha256), bytes: found.content, entries: found.entries })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::PermissionsExt;

    fn digest(folder: &Path) -> String {
        super::digest(folder, 1).unwrap().sha256
    }

    #[test]
    fn content_names_links_and_modes_count_and_times_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        let other = folder.path().join("c");
        fs::write(&file, "one").unwrap();
        fs::write(&other, "one").unwrap();
        fs::set_permissions(&other, fs::metadata(&file).unwrap().permissions()).unwrap();
        let before = digest(folder.path());
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        File::options().write(true).open(&file).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(before, digest(folder.path()));
        fs::remove_file(&other).unwrap();
        fs::hard_link(&file, &other).unwrap();
        let linked = digest(folder.path());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let other_mode = digest(folder.path());
        fs::write(&file, "two").unwrap();
        let other_content = digest(folder.path());
        fs::rename(&file, folder.path().join("b")).unwrap();
        let other_name = digest(folder.path());
        let all = [&before, &linked, &other_mode, &other_content, &other_name];
        assert!(all.iter().enumerate().all(|(i, one)| all[..i].iter().all(|other| one != other)));
    }

    #[test]
    fn attributes_count_where_the_file_system_has_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "one").unwrap();
        let before = digest(folder.path());
        let set = std::process::Command::new("setfattr").args(["-n", "user.kiln", "-v", "1"]).arg(&file).status();
        if set.is_ok_and(|status| status.success()) {
            assert_ne!(before, digest(folder.path()));
        } else {
            eprintln!("SKIPPED: no setfattr, or a file system without user attributes");
        }
    }

    #[test]
    fn holes_are_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let (sparse, dense) = (folder.path().join("1/file"), folder.path().join("2/file"));
        for file in [&sparse, &dense] {
            fs::create_dir(file.parent().unwrap()).unwrap();
        }
        File::create(&sparse).unwrap().set_len(1 << 20).unwrap();
        fs::write(&dense, vec![0; 1 << 20]).unwrap();
        assert_eq!(digest(&sparse), digest(&dense));
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
        assert_eq!(super::digest(one.path(), 1).unwrap().entries, 4);
    }

    #[test]
    fn a_device_is_refused() {
        assert!(matches!(super::digest(Path::new("/dev/null"), 7), Err(InputError::Unfit { line: 7, .. })));
    }
}
