//! The paths on this host that a spec names, and where each of them may lead.

use std::borrow::Cow;
use std::fmt;
use std::fs::canonicalize;
use std::path::Path;

use crate::project::{Project, ProjectPathError, is_made_up, is_of_git};
use crate::specfile::{Action, BaseSource, KernelSpec, RemoteBase, SecretSource, Spec, SumsVerification};
use crate::url::Url;

/// The rule for where a path of a spec may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathPolicy {
    /// To what the project tracks: nothing outside of the project, and none of git's own files.
    Project,
    /// As `Project`, unless the user has named that spec as well, which shows only when the graph of specs is built. The
    /// path is therefore checked when that spec is read.
    BaseSpec,
    /// To any file on a disk that is not git's own. A base image and the key of a signed list are named openly in the spec,
    /// and none of their content ends up in an error or, for the key, in an image.
    AnyFile,
}

/// The keys of a spec that hold a path on this host.
#[cfg(test)]
const PATH_KEYS: [(&str, PathPolicy); 8] = [
    ("Base.kernel", PathPolicy::Project),
    ("Base.initrd", PathPolicy::Project),
    ("LocalFile.file", PathPolicy::AnyFile),
    ("RemoteFile.sums_key", PathPolicy::AnyFile),
    ("OtherSpec.spec", PathPolicy::BaseSpec),
    ("SecretFile.file", PathPolicy::Project),
    ("RunScript.script", PathPolicy::Project),
    ("CopyIn.copy", PathPolicy::Project),
];

/// The part of a spec that names a path, for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PathOwner {
    /// A key of `[base]`.
    Base(&'static str),
    /// A step, by its line.
    Step(usize),
    /// A secret, by name.
    Secret(String),
}

impl fmt::Display for PathOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base(key) => write!(f, "`base.{key}`"),
            Self::Step(line) => write!(f, "line {line}"),
            Self::Secret(name) => write!(f, "the secret `{name}`"),
        }
    }
}

/// A path that a spec names on this host.
#[derive(Debug, Clone)]
pub(crate) struct HostPath<'s> {
    pub(crate) owner: PathOwner,
    pub(crate) path: Cow<'s, Path>,
    pub(crate) policy: PathPolicy,
}

impl<'s> HostPath<'s> {
    fn new(owner: PathOwner, path: &'s Path, policy: PathPolicy) -> Self {
        Self { owner, path: Cow::Borrowed(path), policy }
    }

    /// Returns the file that a URL names on this host, if it names one. The error about a wrong digest contains the right
    /// one, and errors about a list of digests contain its lines; so such a file has to be one of the project's own.
    fn of_url(key: &'static str, url: &Url) -> Option<Self> {
        let path = Cow::Owned(url.to_path()?);
        Some(Self { owner: PathOwner::Base(key), path, policy: PathPolicy::Project })
    }

    /// Checks where the path leads, with symbolic links and `..` followed. A missing file passes: reading it reports that.
    pub(crate) fn check(&self, project: &Project) -> Result<(), ProjectPathError> {
        let Ok(target) = canonicalize(&self.path) else { return Ok(()) };
        match self.policy {
            PathPolicy::AnyFile if is_made_up(&target) => {
                Err(ProjectPathError::NotAFile(self.path.clone().into_owned()))
            }
            PathPolicy::AnyFile if is_of_git(&target) => Err(ProjectPathError::Git(self.path.clone().into_owned())),
            PathPolicy::AnyFile => Ok(()),
            PathPolicy::Project | PathPolicy::BaseSpec => project.check_target(&self.path, &target),
        }
    }
}

/// Returns the paths that a spec names for its base image.
pub(crate) fn base_paths(spec: &Spec) -> Vec<HostPath<'_>> {
    let mut paths = match &spec.base.source {
        BaseSource::File(path) => vec![HostPath::new(PathOwner::Base("file"), path, PathPolicy::AnyFile)],
        BaseSource::Spec { file, .. } => vec![HostPath::new(PathOwner::Base("spec"), file, PathPolicy::BaseSpec)],
        BaseSource::Url(remote) => remote_paths(remote),
        BaseSource::Image(_) => Vec::new(),
    };
    paths.extend(spec.base.kernel.iter().flat_map(kernel_paths));
    paths
}

/// Returns the paths of a kernel and its initrd, which the guest and every reader of the image can read.
fn kernel_paths(kernel: &KernelSpec) -> impl Iterator<Item = HostPath<'_>> {
    let image = HostPath::new(PathOwner::Base("kernel"), &kernel.file, PathPolicy::Project);
    let initrd = kernel.initrd.iter();
    let initrd = initrd.map(|initrd| HostPath::new(PathOwner::Base("initrd"), initrd, PathPolicy::Project));
    std::iter::once(image).chain(initrd)
}

fn remote_paths(remote: &RemoteBase) -> Vec<HostPath<'_>> {
    let mut paths: Vec<_> = remote.urls.iter().filter_map(|url| HostPath::of_url("url", url)).collect();
    let Some(sums) = &remote.sums else { return paths };
    paths.extend(HostPath::of_url("sums", &sums.url));
    match &sums.trust {
        SumsVerification::Signature { url, key } => {
            paths.extend(HostPath::of_url("sums-signature", url));
            paths.push(HostPath::new(PathOwner::Base("sums-key"), key, PathPolicy::AnyFile));
        }
        SumsVerification::Sha256(_) => {}
    }
    paths
}

/// Returns the paths that a spec names for its steps and secrets.
pub(crate) fn input_paths(spec: &Spec) -> Vec<HostPath<'_>> {
    let mut paths = Vec::new();
    for step in &spec.steps {
        let path = match &step.action {
            Action::Script { file, .. } => file,
            Action::Copy(copy) => &copy.from,
            Action::Run { .. } | Action::Write { .. } | Action::Fetch { .. } | Action::Reboot => continue,
        };
        paths.push(HostPath::new(PathOwner::Step(step.line), path, PathPolicy::Project));
    }
    for (name, secret) in &spec.secrets {
        match &secret.source {
            SecretSource::File(path) => {
                paths.push(HostPath::new(PathOwner::Secret(name.clone()), path, PathPolicy::Project));
            }
            SecretSource::Env(_) => {}
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::FileReach;
    use crate::specfile::Overrides;
    use std::fs;

    /// Returns the keys of `specfile/keys.rs` whose values are paths on this host, as `Table.key`.
    fn keys_with_host_paths() -> Vec<String> {
        let mut table = "";
        let mut keys = Vec::new();
        for line in include_str!("../specfile/keys.rs").lines() {
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
        assert_eq!(found, expected, "add the key to `base_paths` or `input_paths`, and here");
    }

    fn load(folder: &Path, base: &str) -> Spec {
        let text = format!(
            "[image]\nname = 'a'\nversion = '1'\n[base]\n{base}\n[secrets]\nkey = {{ file = 'secret' }}\n\
             [[step]]\nscript = 'script'\n[[step]]\ncopy = 'copied'\nto = '/a'\n"
        );
        fs::write(folder.join("kiln.toml"), text).unwrap();
        Spec::load(&folder.join("kiln.toml"), FileReach::Project, &Overrides::default()).unwrap()
    }

    #[test]
    fn every_path_of_a_spec_is_found_with_its_policy() {
        let folder = tempfile::tempdir().unwrap();
        let digest = "0".repeat(64);
        let signed = "url = 'https://example.org/a'\nsums = 'https://example.org/SUMS'\nsums-key = 'k'\n\
                      sums-signature = 'https://example.org/SUMS.sig'";
        let local = "url = 'https://example.org/a'\nmirrors = ['file:///u']\nsums = 'file:///sums'\nsums-key = 'k'\n\
                     sums-signature = 'file:///sig'";
        let mut found = Vec::new();
        let pinned = format!("url = 'https://example.org/a'\nsha256 = '{digest}'");
        let kernel = "file = 'f'\nkernel = 'vmlinux'\ninitrd = 'i'";
        for base in ["file = 'f'", kernel, "spec = 's'", signed, local, &pinned] {
            let spec = load(folder.path(), base);
            let paths = base_paths(&spec).into_iter().chain(input_paths(&spec));
            found.extend(paths.map(|named| {
                (named.path.file_name().unwrap().to_string_lossy().into_owned(), named.policy != PathPolicy::AnyFile)
            }));
        }
        found.sort();
        found.dedup();
        let in_project =
            ["copied", "i", "s", "script", "secret", "sig", "sums", "u", "vmlinux"].map(|name| (name, true));
        let mut expected = [("f", false), ("k", false)].into_iter().chain(in_project).collect::<Vec<_>>();
        expected.sort_unstable();
        let expected: Vec<_> = expected.into_iter().map(|(name, project)| (name.to_owned(), project)).collect();
        assert_eq!(found, expected);
        assert_eq!(PATH_KEYS.iter().filter(|(_, policy)| *policy != PathPolicy::AnyFile).count(), 6);
    }

    #[test]
    fn a_base_image_may_be_any_file_on_a_disk() {
        let folder = tempfile::tempdir().unwrap();
        let project = Project::of_spec(&folder.path().join("kiln.toml")).unwrap();
        let refusal = |path: &str| {
            let named = HostPath::new(PathOwner::Base("file"), Path::new(path), PathPolicy::AnyFile);
            named.check(&project).err().map(|refusal| refusal.to_string())
        };
        assert_eq!(refusal("/etc/passwd"), None);
        let git = folder.path().join(".git");
        fs::create_dir(&git).unwrap();
        for name in ["config", "disk.qcow2"] {
            fs::write(git.join(name), "").unwrap();
            let refused = refusal(git.join(name).to_str().unwrap()).unwrap();
            assert!(refused.contains("belongs to git"), "{refused}");
        }
        for path in ["/dev/null", "/proc/self/environ", "/sys/kernel/notes", "/dev/fd/0"] {
            assert!(refusal(path).is_some_and(|error| error.contains("not a regular file")), "{path}");
        }
    }
}
