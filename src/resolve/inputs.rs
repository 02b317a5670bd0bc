//! Digests of what steps bring from the host: of a script its bytes, of a copied file or folder the tree that is sent.
//!
//! The digest of a tree covers all that a copy preserves except times: relative paths, types, permission bits, link
//! targets, hard links, extended attributes and data. git preserves no times, and of the permission bits only one
//! ([`CheckoutModes`]); so a fresh clone plans the same keys. Holes and zeros are the same.
//!
//! What is sent is hashed as it is sent, and compared with the plan. Examining the input a second time would miss a change
//! that was reverted.

use std::error::Error;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::copy_filter::CopyFilter;
use crate::digest::{Sha256Digest, sha256_file};
use crate::digest_cache::{DigestCache, DigestRecord};
use crate::error::{Fault, Kind};
use crate::plan::{InputDigest, InputFacts, PlannedStep};
use crate::project::GIT;
use crate::session::{CheckoutModes, PackError, StageSource, is_left_out};
use crate::specfile::{Action, Copy, StepSpec};

use super::ignore_file::{IgnoreFile, IgnoreFileError};
use super::script_check::{self, ScriptError, ScriptFinding};
use super::source_errors::SourceProblem;
use crate::plan::host_paths::PathOwner;

/// The reason why an input cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The input cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// Line of the step in the spec.
        line: usize,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The input cannot be copied.
    #[error("{} is {what}, which cannot be copied", path.display())]
    Unfit {
        /// Line of the step in the spec.
        line: usize,
        path: PathBuf,
        /// Its kind, such as a socket, in words.
        what: &'static str,
    },
    /// The input is not the one that the plan was made with.
    #[error("line {line}: {} changed during the build", path.display())]
    Changed {
        /// Line of the step in the spec.
        line: usize,
        path: PathBuf,
    },
    /// The input could be read when the build was planned, and cannot be read now.
    #[error("line {line}: cannot read {} any more", path.display())]
    Lost {
        /// Line of the step in the spec.
        line: usize,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// `copy` ends with a slash, and the path is not a folder.
    #[error("{} is not a folder; a slash at the end of `copy` stands for what is in one", path.display())]
    NotAFolder {
        /// Line of the step in the spec.
        line: usize,
        path: PathBuf,
    },
    /// Nothing of the input of a copy is left.
    #[error("nothing of {} is copied: `exclude` and .kilnignore leave out all of it", path.display())]
    AllExcluded {
        /// Line of the step in the spec.
        line: usize,
        path: PathBuf,
    },
    /// The ignore file cannot be used.
    #[error("{error}")]
    Ignore {
        /// Line of the first step that copies something.
        line: usize,
        error: IgnoreFileError,
    },
    /// A script is not a regular file.
    #[error("{} is not a file", path.display())]
    NotAFile {
        /// Line of the step in the spec.
        line: usize,
        path: PathBuf,
    },
    /// No guest can run a script.
    #[error("{}:{at}: {fault}", path.display())]
    Script {
        /// Line of the step in the spec.
        line: usize,
        path: PathBuf,
        /// Line of the script that is at fault.
        at: usize,
        /// The fault on that line.
        fault: ScriptError,
    },
}

impl InputError {
    /// Returns the line of the step in the spec.
    pub fn line(&self) -> usize {
        match self {
            InputError::Unreadable { line, .. }
            | InputError::Unfit { line, .. }
            | InputError::Changed { line, .. }
            | InputError::Lost { line, .. }
            | InputError::NotAFolder { line, .. }
            | InputError::AllExcluded { line, .. }
            | InputError::Ignore { line, .. }
            | InputError::NotAFile { line, .. }
            | InputError::Script { line, .. } => *line,
        }
    }

    /// Returns the message together with that of its cause.
    pub fn describe(&self) -> String {
        self.source().map_or_else(|| self.to_string(), |cause| format!("{self}: {cause}"))
    }
}

impl Fault for InputError {
    fn kind(&self) -> Kind {
        match self {
            InputError::Changed { .. } | InputError::Lost { .. } => Kind::Base,
            _ => Kind::Spec,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            InputError::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                vec!["paths in a spec are relative to the spec's own folder".into()]
            }
            InputError::Changed { .. } | InputError::Lost { .. } => {
                vec!["build again when nothing writes to it any more".into()]
            }
            InputError::Script { fault, path, .. } => vec![fault.remedy(path)],
            InputError::AllExcluded { .. } => vec!["remove the step, or the pattern that matches too much".into()],
            _ => Vec::new(),
        }
    }
}

/// Examines what a step brings from the host; returns `None` for a step that brings nothing. A file that did not change
/// since it was hashed is not read again.
///
/// # Errors
/// When a part of the input cannot be read or copied.
pub(crate) fn examine(
    step: &StepSpec,
    ignored: &IgnoreFile,
    memo: &DigestCache,
) -> Result<Option<InputFacts>, InputError> {
    match &step.action {
        Action::Script { file, .. } => examine_script(file, step.line, memo).map(Some),
        Action::Copy(copy) => {
            let filter = CopyFilter::new(&copy.from, copy.exclude.clone(), &ignored.rules, &ignored.folder);
            examine_copy(copy, filter, step.line, memo).map(Some)
        }
        _ => Ok(None),
    }
}

/// Checks that a guest can run the script of a step. Returns a warning where that may fail. A script that cannot be read is
/// left to [`examine`], which reports it.
///
/// # Errors
/// When no guest can run the script.
pub(crate) fn check_script(step: &StepSpec) -> Result<Option<String>, InputError> {
    let Action::Script { file: path, .. } = &step.action else { return Ok(None) };
    let line = step.line;
    let Ok(examined) = open_regular(path).and_then(script_check::examine_script) else { return Ok(None) };
    match examined {
        Ok(warning) => Ok(warning.map(|(at, text)| format!("line {line}: {}:{at}: {text}", path.display()))),
        Err(ScriptFinding { line: at, fault }) => Err(InputError::Script { line, path: path.clone(), at, fault }),
    }
}

/// Reads a script for the guest, and checks that it is the planned one.
///
/// # Errors
/// When the script can no longer be read, or has changed.
pub(crate) fn read_script(planned: &PlannedStep, path: &Path) -> Result<Vec<u8>, InputError> {
    let size = planned.input.as_ref().map_or(0, |input| input.bytes);
    let mut content = Vec::new();
    // Reading one byte more than planned reveals that the file grew.
    open_regular(path)
        .and_then(|file| file.take(size.saturating_add(1)).read_to_end(&mut content))
        .map_err(|source| InputError::Lost { line: planned.step.line, path: path.to_owned(), source })?;
    check_sent(planned, &InputDigest::File(Sha256Digest::of(&content)), path)?;
    Ok(content)
}

/// Checks the digest of what was sent to the guest against the planned one, under which the result would be kept.
///
/// # Errors
/// When the digests differ.
pub(crate) fn check_sent(planned: &PlannedStep, sent: &InputDigest, path: &Path) -> Result<(), InputError> {
    match &planned.input {
        Some(input) if input.digest == *sent => Ok(()),
        _ => Err(InputError::Changed { line: planned.step.line, path: path.to_owned() }),
    }
}

fn examine_script(path: &Path, line: usize, memo: &DigestCache) -> Result<InputFacts, InputError> {
    let found = memo.digest("file", path, || digest_file(&open_regular(path)?));
    let found = found.map_err(|source| match source.kind() {
        io::ErrorKind::InvalidInput => InputError::NotAFile { line, path: path.to_owned() },
        _ => InputError::Unreadable { line, path: path.to_owned(), source },
    })?;
    let filter = CopyFilter::default();
    Ok(InputFacts { digest: InputDigest::File(found.sha256), bytes: found.bytes, entries: found.entries, filter })
}

/// Hashes a file for the digest cache.
pub(super) fn digest_file(file: &File) -> io::Result<DigestRecord> {
    Ok(DigestRecord { sha256: sha256_file(file)?, bytes: file.metadata()?.len(), entries: 1 })
}

/// Opens a regular file. Any other kind, such as a named pipe that nobody writes to, is refused at once.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
}

fn examine_copy(copy: &Copy, filter: CopyFilter, line: usize, memo: &DigestCache) -> Result<InputFacts, InputError> {
    let metadata = std::fs::metadata(&copy.from);
    let is_folder = metadata.as_ref().is_ok_and(Metadata::is_dir);
    if copy.contents && metadata.is_ok() && !is_folder {
        return Err(InputError::NotAFolder { line, path: copy.from.clone() });
    }
    let name = copy.from.file_name().unwrap_or_default().as_bytes();
    if filter.leaves_out_source(name, is_folder) {
        return Err(InputError::AllExcluded { line, path: copy.from.clone() });
    }
    // The digest is of the tree as it is sent, so it depends on the modes that are sent, and on what is left out.
    let purpose = format!("tree 3 {:?} {:?} {filter:?}", copy.mode, CheckoutModes::find(&copy.from));
    let leaves_out = |path: &[u8], is_folder: bool| is_left_out(Some(&filter), path, is_folder);
    let source = StageSource::of_copy(copy, filter.clone());
    let found = memo.digest_without(&leaves_out, &purpose, &copy.from, || examine_tree(&source, line))?;
    if is_folder && found.entries == 1 && excludes_some(&copy.from, &filter) {
        return Err(InputError::AllExcluded { line, path: copy.from.clone() });
    }
    Ok(InputFacts { digest: InputDigest::Tree(found.sha256), bytes: found.bytes, entries: found.entries, filter })
}

/// Returns whether a folder has an entry that a filter leaves out.
fn excludes_some(folder: &Path, filter: &CopyFilter) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut entries = entries.filter(|entry| entry.file_name() != GIT);
    entries.any(|entry| {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        filter.leaves_out(entry.file_name().as_bytes(), is_folder)
    })
}

fn examine_tree(source: &StageSource, line: usize) -> Result<DigestRecord, InputError> {
    let found = source.examine().map_err(|error| match error {
        PackError::Read(path, source) => InputError::Unreadable { line, path, source },
        PackError::Changed(path) => InputError::Changed { line, path },
        PackError::Unfit(path, what) => InputError::Unfit { line, path, what },
        PackError::Write(source) => InputError::Unreadable { line, path: PathBuf::new(), source },
    })?;
    Ok(DigestRecord { sha256: found.sha256, bytes: found.totals.bytes, entries: found.totals.entries })
}

impl From<&InputError> for SourceProblem {
    fn from(error: &InputError) -> Self {
        Self::new(PathOwner::Step(error.line()), error, error.describe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::key::CacheKey;
    use crate::plan::trace::Parts;
    use crate::session::StageContent;
    use crate::specfile::{FileOwner, Overrides, Spec};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn examine_path(path: &Path) -> Result<DigestRecord, InputError> {
        let what = StageContent::Path { from: path.to_owned(), contents: false, filter: CopyFilter::default() };
        let owner = FileOwner { user: "root".into(), group: None };
        examine_tree(&StageSource { what, to: "/srv".into(), into: false, owner, mode: None }, 7)
    }

    fn digest(folder: &Path) -> Sha256Digest {
        examine_path(folder).unwrap().sha256
    }

    /// Examines what a spec's only step, in line 6, brings.
    fn planned(text: &str, folder: &Path) -> Result<PlannedStep, InputError> {
        let text = format!("[image]\nname = 'a'\nversion = '1'\n[base]\nfile = 'b'\n[[step]]\n{text}\n");
        let spec = Spec::parse(&folder.join("kiln.toml"), &text, &Overrides::default()).unwrap();
        let input = examine(&spec.steps[0], &IgnoreFile::beside(&spec).unwrap(), &DigestCache::load(folder))?;
        Ok(PlannedStep {
            step: spec.steps[0].clone(),
            key: CacheKey::root(),
            parts: Parts::new(),
            input,
            downloads: None,
        })
    }

    fn facts(text: &str, folder: &Path) -> Result<InputFacts, InputError> {
        Ok(planned(text, folder)?.input.unwrap())
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn of_a_script_only_the_bytes_count() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("s.sh");
        fs::write(&script, "abc").unwrap();
        let step = planned("script = 's.sh'", folder.path()).unwrap();
        let before = step.input.clone().unwrap();
        // FIPS 180-4, the one-block example.
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(before.digest, InputDigest::File(sha256.parse().unwrap()));
        set_mode(&script, 0o700);
        assert_eq!(facts("script = 's.sh'", folder.path()).unwrap(), before);
        assert_eq!(read_script(&step, &script).unwrap(), b"abc");
        for changed in ["abd", "ab", "abcd", ""] {
            fs::write(&script, changed).unwrap();
            let refused = read_script(&step, &script);
            assert!(matches!(refused, Err(InputError::Changed { line: 6, .. })), "{changed}");
        }
        fs::remove_file(&script).unwrap();
        assert!(matches!(read_script(&step, &script), Err(InputError::Lost { .. })));
        nix::unistd::mkfifo(&script, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read_script(&step, &script), Err(InputError::Lost { .. })));
        assert!(matches!(facts("script = 's.sh'", folder.path()), Err(InputError::NotAFile { line: 6, .. })));
    }

    #[test]
    fn a_stated_mode_replaces_those_of_the_files_in_the_digest() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "one").unwrap();
        let digests = [0o600, 0o644, 0o755].map(|mode| {
            set_mode(&file, mode);
            let digest = |text| facts(text, folder.path()).unwrap().digest;
            (digest("copy = 'a'\nto = '/a'\nmode = '0640'"), digest("copy = 'a'\nto = '/a'"))
        });
        assert!(digests.iter().all(|(stated, _)| *stated == digests[0].0));
        assert!(digests[0].1 != digests[1].1 && digests[1].1 != digests[2].1);
    }

    #[test]
    fn the_umask_of_a_checkout_does_not_count() {
        let trees = [0o022, 0o002, 0o077].map(|umask| {
            let tree = tempfile::tempdir().unwrap();
            for folder in ["", ".git", "site"] {
                let path = tree.path().join(folder);
                fs::create_dir_all(&path).unwrap();
                set_mode(&path, 0o777 & !umask);
            }
            for (file, mode) in [("site/page", 0o666), ("site/run.sh", 0o777)] {
                fs::write(tree.path().join(file), "x").unwrap();
                set_mode(&tree.path().join(file), mode & !umask);
            }
            tree
        });
        let digests = trees.each_ref().map(|tree| digest(&tree.path().join("site")));
        assert_eq!(digests[0], digests[1]);
        assert_eq!(digests[0], digests[2]);
        set_mode(&trees[0].path().join("site/page"), 0o600);
        assert_ne!(digest(&trees[0].path().join("site")), digests[0], "a mode that was set on purpose counts");
    }

    #[test]
    fn a_slash_behind_a_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "one").unwrap();
        let refused = facts("copy = 'a/'\nto = '/srv/'", folder.path());
        assert!(matches!(refused, Err(InputError::NotAFolder { line: 6, .. })));
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
        assert_eq!(examine_path(one.path()).unwrap().entries, 4);
    }

    #[test]
    fn a_device_is_refused() {
        assert!(matches!(examine_path(Path::new("/dev/null")), Err(InputError::Unfit { line: 7, .. })));
    }
}
