//! An open folder: files that are read through it come from the folder that was opened, whatever its path names by then.
//!
//! A folder's own flock marks it as used: shared for reading, exclusive for changing or removing it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::error::StoreError;
use crate::fs::is_at;
use crate::wire::tree::limits::inner_target;

/// Mode of every published file.
pub(super) const FILE_MODE: u32 = 0o444;
/// Mode of every published folder.
pub(super) const FOLDER_MODE: u32 = 0o755;
/// Limit of files and folders below one folder.
const MOST_ENTRIES: usize = 100_000;

/// A folder, held by its descriptor.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    /// Clones share one lock, which lives as long as any of them.
    file: Arc<File>,
    path: PathBuf,
}

/// Content of a folder. Names are relative to it; each list is sorted, so a folder comes before its content.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FolderTree {
    pub(super) files: Vec<String>,
    pub(super) folders: Vec<String>,
    /// Symbolic links with their targets, all of which are in the folder.
    pub(super) links: BTreeMap<String, String>,
}

impl FolderTree {
    /// Returns the folders that contain no file and no link, at any depth.
    pub(super) fn empty_folders(&self) -> BTreeSet<String> {
        let names = self.files.iter().chain(self.links.keys());
        let filled: BTreeSet<&str> = names.flat_map(|name| folders_above(name)).collect();
        self.folders.iter().filter(|folder| !filled.contains(folder.as_str())).cloned().collect()
    }
}

/// Returns the folders that contain a file, the innermost first.
pub(super) fn folders_above(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(name.rsplit_once('/'), |(folder, _)| folder.rsplit_once('/')).map(|(folder, _)| folder)
}

impl Folder {
    /// Opens a folder. Fails for a symbolic link.
    pub(super) fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        match OpenOptions::new().read(true).custom_flags(flags.bits()).open(&path) {
            Ok(file) => Ok(Self { file: Arc::new(file), path }),
            Err(error) => Err(StoreError::io("open", path)(error)),
        }
    }

    /// Returns a folder that is open already.
    pub(super) fn held(file: Arc<File>, path: impl Into<PathBuf>) -> Self {
        Self { file, path: path.into() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Returns the same folder under a new path.
    pub(super) fn renamed(self, path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..self }
    }

    /// Returns whether the folder's path still names this folder.
    pub(super) fn is_current(&self) -> bool {
        is_at(&self.file, &self.path)
    }

    /// Opens a regular file below the folder for reading. No component may be a symbolic link, and nothing can block the
    /// open: a FIFO opens at once and is then refused.
    pub(super) fn open_file(&self, name: &str) -> Result<File, StoreError> {
        self.try_open_file(name).map_err(StoreError::io("open", self.path.join(name)))
    }

    fn try_open_file(&self, name: &str) -> io::Result<File> {
        let (folders, last) = name.rsplit_once('/').map_or((None, name), |(folders, last)| (Some(folders), last));
        let mut at = self.file.try_clone()?;
        for folder in folders.into_iter().flat_map(|folders| folders.split('/')) {
            at = open_below(&at, folder, OFlag::O_DIRECTORY)?;
        }
        let file = open_below(&at, last, OFlag::O_NONBLOCK)?;
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
    }

    /// Reads a file of at most `limit` bytes.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.path.join(name);
        let mut content = Vec::new();
        let mut file = self.open_file(name)?.take(limit + 1);
        file.read_to_end(&mut content).map_err(StoreError::io("read", &path))?;
        if content.len() as u64 > limit { Err(StoreError::TooLarge { path, limit }) } else { Ok(content) }
    }

    /// Lists everything below the folder. Anything but regular files, folders and links to something in it, and names that
    /// are not UTF-8, are refused.
    pub(super) fn tree(&self) -> Result<FolderTree, StoreError> {
        let mut tree = FolderTree::default();
        let mut pending = vec![String::new()];
        while let Some(folder) = pending.pop() {
            self.read_folder(&folder, &mut tree, &mut pending)?;
        }
        tree.files.sort_unstable();
        tree.folders.sort_unstable();
        Ok(tree)
    }

    fn read_folder(&self, folder: &str, tree: &mut FolderTree, pending: &mut Vec<String>) -> Result<(), StoreError> {
        let path = self.path.join(folder);
        for entry in fs::read_dir(&path).map_err(StoreError::io("list", &path))? {
            let entry = entry.map_err(StoreError::io("list", &path))?;
            let refuse = |why| StoreError::Unpublishable { path: entry.path(), why };
            let name = entry.file_name().into_string().map_err(|_| refuse("its name is not UTF-8"))?;
            let name = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            match entry.file_type().map_err(StoreError::io("list", &path))? {
                kind if kind.is_file() => tree.files.push(name),
                kind if kind.is_dir() => {
                    tree.folders.push(name.clone());
                    pending.push(name);
                }
                kind if kind.is_symlink() => {
                    let target = fs::read_link(entry.path()).map_err(StoreError::io("list", &path))?;
                    let target = target.into_os_string().into_string().ok();
                    let inner = target.filter(|target| leads_inside(&name, target));
                    tree.links.insert(name, inner.ok_or_else(|| refuse("it is a link that leads elsewhere"))?);
                }
                _ => return Err(refuse("it is neither a file nor a folder")),
            }
            if tree.files.len() + tree.folders.len() + tree.links.len() > MOST_ENTRIES {
                return Err(refuse("there are more than 100000 files"));
            }
        }
        Ok(())
    }
}

/// Returns whether a link leads to something in the folder, judged by its path alone.
fn leads_inside(name: &str, target: &str) -> bool {
    inner_target(name.as_bytes(), target.as_bytes()).is_some_and(|inner| inner == target.as_bytes())
}

fn open_below(folder: &File, name: &str, flags: OFlag) -> io::Result<File> {
    if matches!(name, "" | "." | "..") {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = flags | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(File::from(openat(folder, name, flags, Mode::empty())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/c"), "deep").unwrap();
        fs::write(dir.path().join("top"), "top").unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        (dir, folder)
    }

    #[test]
    fn files_are_read_by_name_and_limit() {
        let (_dir, folder) = folder();
        assert_eq!(folder.read("a/b/c", 4).unwrap(), b"deep");
        assert!(matches!(folder.read("a/b/c", 3), Err(StoreError::TooLarge { limit: 3, .. })));
        assert_eq!(
            folder.tree().unwrap(),
            FolderTree {
                files: vec!["a/b/c".into(), "top".into()],
                folders: vec!["a".into(), "a/b".into()],
                links: BTreeMap::new()
            }
        );
    }

    #[test]
    fn links_fifos_and_ways_out_are_refused() {
        let (dir, folder) = folder();
        symlink("top", dir.path().join("link")).unwrap();
        symlink("a", dir.path().join("way")).unwrap();
        let inside = [("link", "top"), ("way", "a")].map(|(name, target)| (name.to_owned(), target.to_owned()));
        assert_eq!(folder.tree().unwrap().links, inside.into());
        for target in ["/etc", "../a", "a/../..", ".", "./a", "a/"] {
            symlink(target, dir.path().join("bad")).unwrap();
            assert!(matches!(folder.tree(), Err(StoreError::Unpublishable { .. })), "{target}");
            fs::remove_file(dir.path().join("bad")).unwrap();
        }
        nix::unistd::mkfifo(&dir.path().join("fifo"), Mode::S_IRWXU).unwrap();
        for bad in ["link", "way/b/c", "../x", "a/../top", "/etc/passwd", "fifo", "a", ""] {
            assert!(folder.open_file(bad).is_err(), "{bad}");
        }
        assert!(Folder::open(dir.path().join("way")).is_err());
        assert!(matches!(folder.tree(), Err(StoreError::Unpublishable { .. })));
    }

    #[test]
    fn an_open_folder_outlives_its_name() {
        let (dir, folder) = folder();
        let moved = dir.path().with_extension("moved");
        fs::rename(dir.path(), &moved).unwrap();
        assert!(!folder.is_current());
        assert_eq!(folder.read("top", 9).unwrap(), b"top");
        fs::rename(&moved, dir.path()).unwrap();
        assert!(folder.is_current());
    }
}
