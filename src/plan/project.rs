//! The project of a spec: the git work tree that it lies in, or else its own folder. A spec may come from somebody else,
//! and what a step copies ends in an image that is given away, so that a spec names files of its project alone.

use std::fs::{Metadata, canonicalize};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::error::{Fault, Kind};
use crate::spec::{Action, SecretSource, Source, Spec, Trust};

/// Git's own folder, or the file that names it in a linked work tree. Its configuration may hold the tokens of a pipeline.
pub(crate) const GIT: &str = ".git";

/// What steps, secrets and the specs of bases may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileReach {
    /// Files of the project.
    Project,
    /// Any file that the user may read.
    Host,
}

/// Where a path of a spec may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathPolicy {
    /// To what the project tracks: nothing outside of it, and nothing of git's own.
    Project,
    /// As `Project`, unless the user has named that spec as well, which shows where specs become a graph.
    BaseSpec,
    /// To any file on a disk. A base image and the key of a signed list are named in full sight, and nothing of them ends
    /// in an error or, the key, in an image.
    AnyFile,
}

/// The keys of a spec that hold a path on this host.
#[cfg(test)]
const PATH_KEYS: [(&str, PathPolicy); 6] = [
    ("LocalFile.file", PathPolicy::AnyFile),
    ("RemoteFile.sums_key", PathPolicy::AnyFile),
    ("OtherSpec.spec", PathPolicy::BaseSpec),
    ("SecretFile.file", PathPolicy::Project),
    ("RunScript.script", PathPolicy::Project),
    ("CopyIn.copy", PathPolicy::Project),
];

/// A path that a spec names on this host.
#[derive(Debug, Clone)]
pub(crate) struct HostPath<'s> {
    /// What names it, as errors put it.
    pub(crate) whose: String,
    pub(crate) path: &'s Path,
    pub(crate) policy: PathPolicy,
}

/// Returns every path that a spec names on this host.
pub(crate) fn host_paths(spec: &Spec) -> Vec<HostPath<'_>> {
    let mut paths: Vec<_> = base_path(&spec.base.source).into_iter().collect();
    for step in &spec.steps {
        let path = match &step.action {
            Action::Script { file, .. } => file,
            Action::Copy(copy) => &copy.from,
            Action::Run { .. } | Action::Write { .. } | Action::Fetch { .. } | Action::Reboot => continue,
        };
        paths.push(HostPath { whose: format!("line {}", step.line), path, policy: PathPolicy::Project });
    }
    for (name, secret) in &spec.secrets {
        match &secret.source {
            SecretSource::File(path) => {
                paths.push(HostPath { whose: format!("the secret `{name}`"), path, policy: PathPolicy::Project });
            }
            SecretSource::Env(_) => {}
        }
    }
    paths
}

fn base_path(source: &Source) -> Option<HostPath<'_>> {
    let (whose, path, policy) = match source {
        Source::File(path) => ("`base.file`", path, PathPolicy::AnyFile),
        Source::Spec { file, .. } => ("`base.spec`", file, PathPolicy::BaseSpec),
        Source::Url(remote) => match &remote.sums.as_ref()?.trust {
            Trust::Signature { key, .. } => ("`base.sums-key`", key, PathPolicy::AnyFile),
            Trust::Sha256(_) => return None,
        },
        Source::Image(_) => return None,
    };
    Some(HostPath { whose: whose.to_owned(), path, policy })
}

/// A spec names what it may not.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// A file outside of the project.
    #[error("{whose}: {} leads to {}, outside of the project {}", path.display(), target.display(), project.display())]
    Outside {
        /// What names it.
        whose: String,
        /// The path in the spec.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
        /// The project's folder.
        project: PathBuf,
    },
    /// A file of git's own.
    #[error("{whose}: {} belongs to git, whose files may hold credentials", path.display())]
    Git {
        /// What names it.
        whose: String,
        /// The path in the spec.
        path: PathBuf,
    },
    /// A device, a pipe or a file that the kernel makes up.
    #[error("{whose}: {} is not a regular file on a disk", path.display())]
    NotAFile {
        /// What names it.
        whose: String,
        /// The path in the spec.
        path: PathBuf,
    },
}

impl Fault for ReachError {
    fn kind(&self) -> Kind {
        match self {
            // Only a base image and the key of its list may be any file.
            ReachError::NotAFile { .. } => Kind::Base,
            ReachError::Outside { .. } | ReachError::Git { .. } => Kind::Spec,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            ReachError::Outside { .. } => vec![
                "the project is the git work tree that the spec lies in, or else the spec's own folder".into(),
                "move the file into it, or trust the spec with --allow-outside".into(),
            ],
            ReachError::Git { .. } => {
                vec!["copy the files that the image needs, or trust the spec with --allow-outside".into()]
            }
            ReachError::NotAFile { .. } => vec!["name a file; a disk can be copied to one with `qemu-img`".into()],
        }
    }
}

/// The folder whose files a spec may name.
#[derive(Debug, Clone)]
pub(crate) struct Project(PathBuf);

impl Project {
    /// Finds the project of a spec; `None` for a spec that has gone meanwhile.
    pub(crate) fn of_spec(spec: &Path) -> Option<Self> {
        let spec = canonicalize(spec).ok()?;
        let work_tree = spec.ancestors().skip(1).find(|folder| folder.join(GIT).exists());
        work_tree.or_else(|| spec.parent()).map(|folder| Self(folder.to_owned()))
    }

    /// Checks where a path leads, symbolic links and `..` followed. What is not there passes: whoever reads it says so.
    pub(crate) fn check(&self, named: &HostPath<'_>) -> Result<(), ReachError> {
        let Ok(target) = canonicalize(named.path) else { return Ok(()) };
        let (whose, path) = (named.whose.clone(), named.path.to_owned());
        match named.policy {
            PathPolicy::AnyFile if is_made_up(&target) => Err(ReachError::NotAFile { whose, path }),
            PathPolicy::AnyFile => Ok(()),
            PathPolicy::Project | PathPolicy::BaseSpec => match target.strip_prefix(&self.0) {
                Err(_) => Err(ReachError::Outside { whose, path, target, project: self.0.clone() }),
                Ok(inside) if inside.iter().any(|name| name == GIT) => Err(ReachError::Git { whose, path }),
                Ok(_) => Ok(()),
            },
        }
    }
}

/// Returns whether a path is a device, a pipe, a socket, or in a file system that the kernel makes up.
fn is_made_up(target: &Path) -> bool {
    let is_special = |metadata: Metadata| {
        let kind = metadata.file_type();
        kind.is_block_device() || kind.is_char_device() || kind.is_fifo() || kind.is_socket()
    };
    ["/proc", "/sys", "/dev/fd"].iter().any(|folder| target.starts_with(folder))
        || target.metadata().is_ok_and(is_special)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Overrides;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// The keys of `spec/keys.rs` whose values are paths on this host, as `Table.key`.
    fn keys_with_host_paths() -> Vec<String> {
        let mut table = "";
        let mut keys = Vec::new();
        for line in include_str!("../spec/keys.rs").lines() {
            if let Some(name) = line.strip_prefix("    ").and_then(|line| line.strip_suffix(" {")) {
                table = name;
            }
            if let Some((key, _)) = line.split_once(": ").filter(|(_, rest)| rest.contains("host_path()")) {
                keys.push(format!("{table}.{}", key.trim()));
            }
        }
        keys
    }

    #[test]
    fn every_key_that_holds_a_path_has_a_policy() {
        let mut expected: Vec<_> = PATH_KEYS.iter().map(|(key, _)| (*key).to_owned()).collect();
        let mut found = keys_with_host_paths();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "add the key to `host_paths`, and here");
    }

    fn load(folder: &Path, base: &str) -> Spec {
        let text = format!(
            "[image]\nname = 'a'\nversion = '1'\n[base]\n{base}\n[secrets]\nkey = {{ file = 'secret' }}\n\
             [[step]]\nscript = 'script'\n[[step]]\ncopy = 'copied'\nto = '/a'\n"
        );
        fs::write(folder.join("kiln.toml"), text).unwrap();
        Spec::load(&folder.join("kiln.toml"), &Overrides::default()).unwrap()
    }

    #[test]
    fn every_path_of_a_spec_is_found_with_its_policy() {
        let folder = tempfile::tempdir().unwrap();
        let digest = "0".repeat(64);
        let signed = "url = 'https://example.org/a'\nsums = 'https://example.org/SUMS'\nsums-key = 'k'\n\
                      sums-signature = 'https://example.org/SUMS.sig'";
        let mut found = Vec::new();
        for base in ["file = 'f'", "spec = 's'", signed, &format!("url = 'https://example.org/a'\nsha256 = '{digest}'")]
        {
            let spec = load(folder.path(), base);
            let paths = host_paths(&spec);
            found.extend(paths.iter().map(|named| {
                (named.path.file_name().unwrap().to_string_lossy().into_owned(), named.policy != PathPolicy::AnyFile)
            }));
        }
        found.sort();
        found.dedup();
        let expected = [("copied", true), ("f", false), ("k", false), ("s", true), ("script", true), ("secret", true)];
        assert_eq!(found, expected.map(|(name, project)| (name.to_owned(), project)));
        assert_eq!(PATH_KEYS.iter().filter(|(_, policy)| *policy != PathPolicy::AnyFile).count(), 4);
    }

    #[test]
    fn a_project_ends_at_its_folder_and_at_git() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("project");
        for name in [".git", "sub/.git/hooks", "sub/deep"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in [".git/config", "sub/.git/hooks/a", "sub/deep/kiln.toml", "file", "../outside"] {
            fs::write(root.join(name), "").unwrap();
        }
        symlink("../.git/config", root.join("sub/link")).unwrap();
        fs::write(root.join("sub/deep/.git"), "gitdir: ../../.git/worktrees/deep\n").unwrap();
        fs::remove_file(root.join("sub/deep/.git")).unwrap();
        fs::remove_dir_all(root.join("sub/.git")).unwrap();
        fs::write(root.join("sub/other.git"), "").unwrap();
        let project = Project::of_spec(&root.join("sub/deep/kiln.toml")).unwrap();
        let check = |path: &Path, policy| {
            project.check(&HostPath { whose: "line 1".into(), path, policy }).err().map(|error| error.to_string())
        };
        let inside = |name: &str| check(&root.join(name), PathPolicy::Project);
        assert_eq!(
            inside("file").or(inside("sub")).or(inside("")).or(inside("not there")).or(inside("sub/other.git")),
            None
        );
        for name in [".git", ".git/config", "sub/link"] {
            assert!(inside(name).unwrap().contains("belongs to git"), "{name}");
        }
        for name in ["../outside", "..", "/etc/hostname"] {
            assert!(inside(name).unwrap().contains("outside of the project"), "{name}");
        }
        let any = |path: &str| check(Path::new(path), PathPolicy::AnyFile);
        assert_eq!(any("/etc/passwd"), None);
        for path in ["/dev/null", "/proc/self/environ", "/sys/kernel/notes", "/dev/fd/0"] {
            assert!(any(path).is_some_and(|error| error.contains("not a regular file")), "{path}");
        }
    }
}
