//! Folders that kiln trusts. Anybody who may write to one of them can replace what kiln reads there, so it must belong to
//! the user and be on a local disk.

use std::fs::{DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{self, FsType};

use crate::error::{Fault, Kind};
use crate::process::quote_path;

/// Permission bit that allows others than the owner and group to write to a file.
pub(crate) const OTHERS: u32 = 0o002;
/// Permission bits that allow the group or others to write.
pub(crate) const GROUP_AND_OTHERS: u32 = 0o022;
/// Names of the folders in the cache.
pub(crate) const CACHE_PARTS: [&str; 10] = [
    "layers",
    "downloads",
    "work",
    "failed",
    "plans",
    "bases",
    "base-chunks",
    "base-files",
    "machines",
    "digests.json",
];

/// The reason why a folder is not trusted.
#[derive(Debug)]
pub(crate) enum OwnershipError {
    /// It is not a folder, or a link to one.
    NotAFolder(PathBuf),
    /// It belongs to another user.
    NotOwned { path: PathBuf, owner: u32, user: u32 },
    /// Others may write to it.
    Writable(PathBuf),
    /// It is on a network file system, where locks may block for ever.
    Network(PathBuf),
    /// Its metadata cannot be read.
    Unreadable { path: PathBuf, source: io::Error },
}

impl OwnershipError {
    fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Unreadable { path: path.to_owned(), source }
    }
}

/// Checks that a file or folder belongs to the effective user and that none of `writers` may write to it.
pub(crate) fn check_owner(path: &Path, meta: &Metadata, writers: u32) -> Result<(), OwnershipError> {
    let user = nix::unistd::geteuid().as_raw();
    if meta.uid() != user {
        return Err(OwnershipError::NotOwned { path: path.to_owned(), owner: meta.uid(), user });
    }
    if meta.mode() & writers != 0 { Err(OwnershipError::Writable(path.to_owned())) } else { Ok(()) }
}

/// Checks a folder as [`check_owner`] does.
pub(crate) fn check_folder(path: &Path, meta: &Metadata, writers: u32) -> Result<(), OwnershipError> {
    if meta.is_dir() { check_owner(path, meta, writers) } else { Err(OwnershipError::NotAFolder(path.to_owned())) }
}

/// Checks a folder that the user has named, which may be a link to one, and that it is on a local file system.
pub(crate) fn check_root(path: &Path, writers: u32) -> Result<(), OwnershipError> {
    check_folder(path, &std::fs::metadata(path).map_err(OwnershipError::unreadable(path))?, writers)?;
    let facts = statfs::statfs(path).map_err(io::Error::from).map_err(OwnershipError::unreadable(path))?;
    if is_network(facts.filesystem_type()) { Err(OwnershipError::Network(path.to_owned())) } else { Ok(()) }
}

/// Creates the cache (0700) if it is missing, and checks it and each of its parts.
///
/// # Errors
/// When others may have written to one of them, or it is on a network file system.
pub fn open_cache(cache: &Path) -> Result<(), CacheError> {
    // If it cannot be created, the code that needs it fails with a more precise error.
    if create_private_path(cache).is_err() && !cache.is_dir() {
        return Ok(());
    }
    check_root(cache, GROUP_AND_OTHERS).map_err(CacheError)?;
    for part in CACHE_PARTS.map(|name| cache.join(name)) {
        match part.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(CacheError(OwnershipError::Unreadable { path: part, source })),
            Ok(meta) if meta.is_file() => check_owner(&part, &meta, GROUP_AND_OTHERS).map_err(CacheError)?,
            Ok(meta) => check_folder(&part, &meta, GROUP_AND_OTHERS).map_err(CacheError)?,
        }
    }
    Ok(())
}

/// Creates a folder and the missing folders above it, each accessible for the user alone.
pub(crate) fn create_private_path(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn is_network(kind: FsType) -> bool {
    // CIFS (0xFF534D42) and SMB2 (0xFE534D42) are missing in libc; statfs(2) lists them.
    let smb = [FsType(0xFF53_4D42), FsType(0xFE53_4D42)];
    kind == statfs::NFS_SUPER_MAGIC || kind == statfs::SMB_SUPER_MAGIC || smb.contains(&kind)
}

/// A cache that kiln refuses to use.
#[derive(Debug)]
pub struct CacheError(OwnershipError);

impl std::error::Error for CacheError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0 {
            OwnershipError::Unreadable { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl std::fmt::Display for CacheError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            OwnershipError::NotAFolder(path) => write!(f, "{} is not a folder, as the cache needs it", path.display()),
            OwnershipError::NotOwned { path, owner, user } => {
                write!(f, "{} in the cache belongs to user {owner}, and kiln runs as user {user}", path.display())
            }
            OwnershipError::Writable(path) => {
                write!(f, "users other than its owner may write to {} in the cache", path.display())
            }
            OwnershipError::Network(path) => {
                write!(f, "the cache {} is on a network file system, where locks cannot be trusted", path.display())
            }
            OwnershipError::Unreadable { path, .. } => write!(f, "cannot read {} in the cache", path.display()),
        }
    }
}

impl Fault for CacheError {
    fn kind(&self) -> Kind {
        match self.0 {
            OwnershipError::Unreadable { .. } => Kind::Host,
            _ => Kind::Output,
        }
    }

    fn hints(&self) -> Vec<String> {
        let another = "name a folder of your own on a local disk with --cache or KILN_CACHE".to_owned();
        match &self.0 {
            OwnershipError::Writable(path) => vec![
                format!("remove it if others may have changed it, else: chmod -R go-w {}", quote_path(path)),
                another,
            ],
            OwnershipError::NotAFolder(path) | OwnershipError::NotOwned { path, .. } => {
                vec![another, format!("or remove it: rm -rf {}", quote_path(path))]
            }
            OwnershipError::Network(_) | OwnershipError::Unreadable { .. } => vec![another],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    /// Creates a cache with all its parts.
    fn cache() -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        for part in CACHE_PARTS {
            let path = cache.path().join(part);
            if part.contains('.') { fs::write(path, "{}").unwrap() } else { fs::create_dir(path).unwrap() }
        }
        cache
    }

    fn refused(cache: &Path, named: &Path, why: &str) {
        let error = open_cache(cache).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(named.to_str().unwrap()) && text.contains(why), "{text}");
        assert_eq!(error.kind().exit_code(), 8);
        assert!(error.hints().iter().any(|hint| hint.contains("--cache")), "{:?}", error.hints());
    }

    #[test]
    fn a_new_cache_is_the_users_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        open_cache(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(folder.path().join("a")).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_cache_that_others_may_write_to_is_refused() {
        for part in CACHE_PARTS.iter().chain([&"."]) {
            for writers in [0o002, 0o020] {
                let cache = cache();
                let path: PathBuf = cache.path().join(part).components().collect();
                open_cache(cache.path()).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(0o700 | writers)).unwrap();
                refused(cache.path(), &path, "may write to");
            }
        }
    }

    #[test]
    fn a_cache_of_another_user_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: only root can give a folder away");
            return;
        }
        for part in CACHE_PARTS.iter().chain([&"."]) {
            let cache = cache();
            let path: PathBuf = cache.path().join(part).components().collect();
            chown(&path, Some(65_534), None).unwrap();
            refused(cache.path(), &path, "belongs to user 65534");
        }
    }

    #[test]
    fn a_part_behind_a_link_is_refused_and_a_cache_behind_one_is_not() {
        for part in CACHE_PARTS {
            let cache = cache();
            let path = cache.path().join(part);
            fs::rename(&path, cache.path().join("elsewhere")).unwrap();
            symlink("elsewhere", &path).unwrap();
            refused(cache.path(), &path, "is not a folder");
        }
        let cache = cache();
        let folder = tempfile::tempdir().unwrap();
        symlink(cache.path(), folder.path().join("link")).unwrap();
        open_cache(&folder.path().join("link")).unwrap();
    }
}
