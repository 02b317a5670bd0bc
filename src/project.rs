//! The project of a spec: the git work tree that the spec was named in, or else its folder. Specs, and the links among their
//! files, may come from somebody else; so a spec and the files that it names must be in the project, after following links.

use std::fs::{self, File, FileType, canonicalize};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::error::{Fault, Kind};

/// Name of Git's own folder, or of the file that points to it in a linked work tree. Its configuration may contain the
/// tokens of a pipeline.
pub(crate) const GIT: &str = ".git";

/// The files that a spec may be and may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileReach {
    /// Files of the project only.
    Project,
    /// Any file that the user may read.
    Host,
}

/// A spec is, or names, a file that is not allowed.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// A path leads to a file that is not allowed.
    #[error("{whose}: {refusal}")]
    Refused {
        /// The key or file that contains the path.
        whose: String,
        /// The reason.
        refusal: ProjectPathError,
    },
    /// The folder of a spec does not exist.
    #[error("cannot find the project of the spec {}", spec.display())]
    NoProject {
        /// Path of the spec.
        spec: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
}

/// The reason why a path may not be read.
#[derive(Debug, thiserror::Error)]
pub enum ProjectPathError {
    /// It leads to a file outside of the project.
    #[error("{} outside of the project {}", place(path, target), project.display())]
    Outside {
        /// The path as it was written.
        path: PathBuf,
        /// The path that it leads to.
        target: PathBuf,
        /// The project's folder.
        project: PathBuf,
    },
    /// It leads to a file of git's own.
    #[error("{} belongs to git, whose files may hold credentials", .0.display())]
    Git(PathBuf),
    /// It leads to a device, a pipe or a file that the kernel generates.
    #[error("{} is not a regular file on a disk", .0.display())]
    NotAFile(PathBuf),
}

impl Fault for ReachError {
    fn kind(&self) -> Kind {
        match self {
            ReachError::Refused { refusal, .. } => refusal.kind(),
            ReachError::NoProject { .. } => Kind::Spec,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            ReachError::Refused { refusal, .. } => refusal.hints(),
            ReachError::NoProject { .. } => Vec::new(),
        }
    }
}

impl Fault for ProjectPathError {
    fn kind(&self) -> Kind {
        match self {
            // Only a base image and the key of its list may be any file.
            ProjectPathError::NotAFile(_) => Kind::Base,
            ProjectPathError::Outside { .. } | ProjectPathError::Git(_) => Kind::Spec,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            ProjectPathError::Outside { .. } => vec![
                "the project is the git work tree that the spec lies in, or else the spec's own folder; a link does not \
                 change which one that is"
                    .into(),
                "move the file into it, or trust the spec with --allow-outside".into(),
            ],
            ProjectPathError::Git(_) => {
                vec!["copy the files that the image needs, or trust the spec with --allow-outside".into()]
            }
            ProjectPathError::NotAFile(_) => vec!["name a file; a disk can be copied to one with `qemu-img`".into()],
        }
    }
}

/// The folder of a project, whose files a spec may be and may name.
#[derive(Debug, Clone)]
pub(crate) struct Project(PathBuf);

impl Project {
    /// Finds the project of a spec by the path that names it: the innermost git work tree around it, or else its folder. A
    /// link leads to a spec, and never to another project; so a folder that is a link is passed over here.
    ///
    /// # Errors
    /// When the folder of the spec does not exist.
    pub(crate) fn of_spec(spec: &Path) -> Result<Self, ReachError> {
        find_root(spec).map(Self).map_err(|source| ReachError::NoProject { spec: spec.to_owned(), source })
    }

    /// Checks that a path leads into the project, and not to a file of git's own. `target` is the path without its links.
    pub(crate) fn check_target(&self, path: &Path, target: &Path) -> Result<(), ProjectPathError> {
        let path = path.to_owned();
        match target.strip_prefix(&self.0) {
            Err(_) => Err(ProjectPathError::Outside { path, target: target.to_owned(), project: self.0.clone() }),
            Ok(inside) if is_of_git(inside) => Err(ProjectPathError::Git(path)),
            Ok(_) => Ok(()),
        }
    }
}

fn find_root(spec: &Path) -> io::Result<PathBuf> {
    let folder = named_folder(spec)?;
    let mut own_folders = folder.ancestors().filter(|folder| !folder.is_symlink());
    let work_tree = own_folders.clone().find(|folder| folder.join(GIT).exists());
    canonicalize(work_tree.or_else(|| own_folders.next()).unwrap_or(&folder))
}

/// Returns whether a path without links leads to a file of git's own.
pub(crate) fn is_of_git(target: &Path) -> bool {
    target.iter().any(|name| name == GIT)
}

/// Returns the folder of a file as it was named: absolute, with its links. The part in front of a `..` is resolved, because
/// `..` of a link is not the folder that holds the link.
fn named_folder(file: &Path) -> io::Result<PathBuf> {
    let file = std::path::absolute(file)?;
    let parts: Vec<Component> = file.parent().unwrap_or(&file).components().collect();
    match parts.iter().rposition(|part| *part == Component::ParentDir) {
        None => Ok(parts.iter().collect()),
        Some(last) => {
            let climbed: PathBuf = parts[..=last].iter().collect();
            Ok(canonicalize(climbed)?.join(parts[last + 1..].iter().collect::<PathBuf>()))
        }
    }
}

/// A file that was found, but is not open for reading yet: finding it has no effect on a device or a pipe.
pub(crate) struct FoundFile {
    handle: File,
    /// Its path without links. It is read from the open descriptor, so that no link can be changed in between.
    pub(crate) location: PathBuf,
}

impl FoundFile {
    /// Finds a file, following links.
    pub(crate) fn find(path: &Path) -> io::Result<Self> {
        let handle = File::options().read(true).custom_flags(OFlag::O_PATH.bits()).open(path)?;
        match fs::read_link(descriptor_path(&handle)) {
            Ok(location) => Ok(Self { handle, location }),
            Err(error) => Err(io::Error::other(format!("where it lies is not known: /proc: {error}"))),
        }
    }

    /// Returns whether it is a regular file that was written, rather than one that the kernel generates.
    pub(crate) fn is_regular(&self) -> io::Result<bool> {
        let is_proc = fstatfs(&self.handle)?.filesystem_type() == PROC_SUPER_MAGIC;
        Ok(self.handle.metadata()?.is_file() && !is_proc && !is_made_up(&self.location))
    }

    /// Opens the file that was found for reading.
    pub(crate) fn open(&self) -> io::Result<File> {
        File::open(descriptor_path(&self.handle))
    }
}

/// Returns a description of a path's target, for messages.
fn place(path: &Path, target: &Path) -> String {
    if path == target {
        return format!("{} is", path.display());
    }
    format!("{} leads to {},", path.display(), target.display())
}

fn descriptor_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Returns whether a path without links is a device, a pipe, a socket, or in a file system that the kernel generates.
pub(crate) fn is_made_up(target: &Path) -> bool {
    let is_device = target.starts_with("/dev") && !target.starts_with("/dev/shm");
    is_device
        || ["/proc", "/sys"].iter().any(|folder| target.starts_with(folder))
        || target.metadata().is_ok_and(|metadata| is_special(metadata.file_type()))
}

fn is_special(kind: FileType) -> bool {
    kind.is_block_device() || kind.is_char_device() || kind.is_fifo() || kind.is_socket()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn refusal(project: &Project, path: &Path) -> Option<String> {
        let target = canonicalize(path).unwrap();
        project.check_target(path, &target).err().map(|error| error.to_string())
    }

    #[test]
    fn a_project_ends_at_its_folder_and_at_git() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("project");
        for name in [".git", "sub/deep"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in [".git/config", "sub/deep/kiln.toml", "file", "../outside", "sub/other.git"] {
            fs::write(root.join(name), "").unwrap();
        }
        symlink("../.git/config", root.join("sub/link")).unwrap();
        let project = Project::of_spec(&root.join("sub/deep/kiln.toml")).unwrap();
        for name in ["file", "sub", "", "sub/other.git"] {
            assert_eq!(refusal(&project, &root.join(name)), None, "{name}");
        }
        for name in [".git", ".git/config", "sub/link"] {
            assert!(refusal(&project, &root.join(name)).unwrap().contains("belongs to git"), "{name}");
        }
        for name in ["../outside", "..", "/etc/hostname"] {
            assert!(refusal(&project, &root.join(name)).unwrap().contains("outside of the project"), "{name}");
        }
    }

    #[test]
    fn a_link_to_a_spec_leads_to_no_other_project() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| canonicalize(place.path()).unwrap().join(name);
        for name in ["ours/.git", "ours/a", "theirs/.git", "theirs/b", "plain/c"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        symlink(at("theirs"), at("ours/link")).unwrap();
        symlink(at("theirs/b"), at("plain/link")).unwrap();
        symlink(at("plain"), at("linked")).unwrap();
        for (spec, project) in [
            ("ours/a/kiln.toml", "ours"),
            ("ours/kiln.toml", "ours"),
            ("ours/link/kiln.toml", "ours"),
            ("ours/link/b/kiln.toml", "ours"),
            ("ours/a/../link/kiln.toml", "ours"),
            ("plain/c/kiln.toml", "plain/c"),
            ("plain/link/kiln.toml", "plain"),
            ("linked/c/kiln.toml", "plain/c"),
            ("ours/link/../plain/c/kiln.toml", "plain/c"),
        ] {
            assert_eq!(Project::of_spec(&at(spec)).unwrap().0, at(project), "{spec}");
        }
        assert!(matches!(Project::of_spec(&at("gone/../kiln.toml")), Err(ReachError::NoProject { .. })));
    }

    #[test]
    fn what_the_kernel_makes_up_is_no_regular_file() {
        for path in ["/dev/null", "/proc/self/environ", "/sys/kernel/notes", "/dev/fd/0", "/proc/self"] {
            assert!(!FoundFile::find(Path::new(path)).unwrap().is_regular().unwrap(), "{path}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(FoundFile::find(file.path()).unwrap().is_regular().unwrap());
    }

    #[test]
    fn the_file_that_was_found_is_read_whatever_becomes_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let (name, other) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&name, "found").unwrap();
        fs::write(&other, "another").unwrap();
        let found = FoundFile::find(&name).unwrap();
        fs::rename(&other, &name).unwrap();
        assert_eq!(io::read_to_string(found.open().unwrap()).unwrap(), "found");
    }
}
