//! What is kept of a failed build: its logs, and with `--on-failure keep` its whole scratch folder. Only its owner can read
//! it, and nothing is kept longer than a week: `kiln gc` removes what is older.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::ownership::create_private_path;
use crate::secret_scan::{SearchFindings, SearchedSecrets, SecretLeakError, SecretLeaks};
use crate::workdir::Workdir;

use super::publish::{BUILD_LOG, CONSOLE_LOG, TESTS};

/// Name of the folder in the cache with the logs of failed builds.
pub(crate) const FAILED: &str = "failed";
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// How long logs are kept.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// Copies the logs of a failed build, and of its tests, to a folder that is kept, in place of those of an earlier one.
/// Removes and returns logs that contain a secret in spite of masking.
pub(crate) fn keep_logs(work: &Path, to: &Path, searched: Option<&SearchedSecrets>) -> io::Result<SecretLeaks> {
    unless_missing(fs::remove_dir_all(to))?;
    create_private_path(to)?;
    if let Some(failed) = to.parent() {
        fs::set_permissions(failed, Permissions::from_mode(FOLDER_MODE))?;
    }
    for log in [BUILD_LOG, CONSOLE_LOG] {
        unless_missing(copy_log(&work.join(log), &to.join(log)))?;
    }
    unless_missing(copy_logs(&work.join(TESTS), &to.join(TESTS)))?;
    searched.map_or(Ok(SecretLeaks::default()), |searched| remove_leaks(to, searched))
}

/// Removes files that contain a secret, or the whole folder where one is in a file name. Repeats the search, because one
/// search does not name every file.
fn remove_leaks(folder: &Path, searched: &SearchedSecrets) -> io::Result<SecretLeaks> {
    let mut removed = SecretLeaks::default();
    loop {
        let leaks = searched.scan_folder(folder, &|_| false)?.leaks;
        let is_whole = leaks.named.iter().all(|leak| leak.file().is_some());
        for file in leaks.named.iter().filter_map(SecretLeakError::file) {
            unless_missing(fs::remove_file(folder.join(file)))?;
        }
        let is_last = leaks.omitted == 0;
        removed.extend(leaks.named);
        if !is_whole {
            fs::remove_dir_all(folder)?;
        }
        if is_last || !is_whole {
            return Ok(removed);
        }
    }
}

/// Leaves the scratch folder to the user. Returns messages about that.
pub(crate) fn keep_work(work: Workdir, searched: Option<&SearchedSecrets>) -> Vec<String> {
    let findings = searched.map(|searched| searched.scan_folder(work.path(), &|_| false)).transpose();
    let closed = close_to_others(work.path());
    let mut notes = vec![format!("the guest's disk is kept: {}", work.keep().display())];
    match findings.map(Option::unwrap_or_default) {
        Ok(SearchFindings { leaks, unsearched }) => {
            let warnings = leaks.named.iter().map(|leak| format!("{leak}: remove the folder when you have seen it"));
            notes.extend(warnings.chain(unsearched.warning()));
        }
        Err(error) => notes.push(format!("the kept folder could not be searched for secrets: {error}")),
    }
    notes.extend(closed.err().map(|error| format!("the kept folder could not be closed to others: {error}")));
    notes
}

/// Removes the logs of failed builds of versions that have been published since, by the names of their folders.
///
/// # Errors
/// When a folder cannot be read or removed.
pub fn remove_published(cache: &Path, published: impl Iterator<Item = String>) -> io::Result<()> {
    for name in published {
        unless_missing(fs::remove_dir_all(cache.join(FAILED).join(name)))?;
    }
    Ok(())
}

/// Removes what has been kept of failed builds for longer than a week.
///
/// # Errors
/// When a folder cannot be read or removed.
pub fn remove_old(cache: &Path) -> io::Result<()> {
    remove_old_folders(&cache.join(FAILED), "")?;
    remove_old_folders(&cache.join("work"), Workdir::KEPT)
}

fn remove_old_folders(parent: &Path, prefix: &str) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(parent) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let is_meant = entry.file_name().to_string_lossy().starts_with(prefix);
        if is_meant && is_old(&entry.path()) && entry.file_type()?.is_dir() {
            unless_missing(fs::remove_dir_all(entry.path()))?;
        }
    }
    Ok(())
}

fn is_old(path: &Path) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    let age = modified.ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
    age.is_some_and(|age| age > KEPT_FOR)
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn copy_log(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut target = File::options().write(true).create_new(true).mode(FILE_MODE).open(to)?;
    io::copy(&mut source, &mut target).map(drop)
}

/// Copies every log of a folder and of its subfolders.
fn copy_logs(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let path = entry.path();
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_logs(&path, &target)?;
        } else if path.extension().is_some_and(|extension| extension == "log") {
            create_private_path(to)?;
            copy_log(&path, &target)?;
        }
    }
    Ok(())
}

/// Restricts what is in a folder to its owner.
fn close_to_others(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(FOLDER_MODE))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            close_to_others(&entry.path())?;
        } else if kind.is_file() {
            fs::set_permissions(entry.path(), Permissions::from_mode(FILE_MODE))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn o3_kept_logs_are_the_owners_alone_and_hold_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let (work, failed) = (folder.path().join("work"), folder.path().join(FAILED));
        fs::create_dir_all(work.join(TESTS).join("01-port")).unwrap();
        fs::create_dir(&failed).unwrap();
        fs::set_permissions(&failed, Permissions::from_mode(0o755)).unwrap();
        fs::write(work.join(BUILD_LOG), "all is well").unwrap();
        fs::write(work.join(CONSOLE_LOG), "hunter2-hunter2").unwrap();
        fs::write(work.join(TESTS).join("01-port/output.log"), "").unwrap();
        let searched = SearchedSecrets::new([("token", &b"hunter2-hunter2"[..])].into_iter()).unwrap();
        let kept = failed.join("web-1");
        assert_eq!(keep_logs(&work, &kept, Some(&searched)).unwrap().named.len(), 1);
        assert!(!kept.join(CONSOLE_LOG).exists());
        for closed in [&failed, &kept, &kept.join(TESTS), &kept.join(TESTS).join("01-port")] {
            assert_eq!(mode(closed), FOLDER_MODE, "{}", closed.display());
        }
        assert_eq!(mode(&kept.join(BUILD_LOG)), FILE_MODE);
    }

    #[test]
    fn o3_every_kept_log_with_a_secret_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (work, kept) = (folder.path().join("work"), folder.path().join("kept"));
        fs::create_dir_all(work.join(TESTS)).unwrap();
        for number in 0..100 {
            fs::write(work.join(TESTS).join(format!("{number}.log")), "hunter2-hunter2 correct-horse").unwrap();
        }
        let secrets = [("token", &b"hunter2-hunter2"[..]), ("phrase", b"correct-horse")];
        let searched = SearchedSecrets::new(secrets.into_iter()).unwrap();
        keep_logs(&work, &kept, Some(&searched)).unwrap();
        assert_eq!(fs::read_dir(kept.join(TESTS)).unwrap().count(), 0);
    }

    #[test]
    fn o3_a_kept_disk_with_a_secret_is_closed_and_said_to_have_one() {
        let folder = tempfile::tempdir().unwrap();
        let work = Workdir::create(folder.path()).unwrap();
        fs::write(work.join("overlay.qcow2"), [&[0; 5000][..], b"hunter2-hunter2"].concat()).unwrap();
        fs::set_permissions(work.join("overlay.qcow2"), Permissions::from_mode(0o644)).unwrap();
        let searched = SearchedSecrets::new([("token", &b"hunter2-hunter2"[..])].into_iter()).unwrap();
        let notes = keep_work(work, Some(&searched));
        let kept = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let found = "the secret `token` is in the file overlay.qcow2, as it is, at byte 5000: \
                     remove the folder when you have seen it";
        assert_eq!(notes, [format!("the guest's disk is kept: {}", kept.display()), found.to_owned()]);
        assert_eq!((mode(&kept), mode(&kept.join("overlay.qcow2"))), (FOLDER_MODE, FILE_MODE));
    }

    #[test]
    fn o3_what_is_kept_is_removed_after_a_week() {
        let cache = tempfile::tempdir().unwrap();
        let at = |name: &str| cache.path().join(name);
        for name in ["failed/old-1", "failed/new-1", "work/kept-old", "work/kept-new", "work/build-old"] {
            fs::create_dir_all(at(name)).unwrap();
            if name.contains("old") {
                let then = SystemTime::now() - KEPT_FOR - Duration::from_secs(60);
                File::open(at(name)).unwrap().set_modified(then).unwrap();
            }
        }
        remove_old(cache.path()).unwrap();
        let left = ["failed/new-1", "work/kept-new", "work/build-old"];
        assert!(left.iter().all(|name| at(name).exists()));
        assert!(!at("failed/old-1").exists() && !at("work/kept-old").exists());
    }
}
