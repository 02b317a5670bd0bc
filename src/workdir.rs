//! A build's scratch folder: private, removed when the build ends, or by the next build if this one is killed.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::fs::{DraftFolder, Fs};

const PREFIX: &str = "build-";
const MODE: u32 = 0o700;

/// A private scratch folder. Dropping it removes it.
#[derive(Debug)]
pub struct Workdir(DraftFolder);

impl Workdir {
    /// Prefix of the names of folders that are left to the user.
    pub const KEPT: &str = "kept-";

    /// Creates a folder below `parent`, mode 0700, after removing those that dead builds left there.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn create(parent: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(MODE).create(parent)?;
        sweep(parent)?;
        DraftFolder::create_in(&Fs::default(), parent, PREFIX, MODE).map(Self)
    }

    /// Creates a folder below `parent` with the first free name of `stem-1`, `stem-2` and so on, after removing those of dead
    /// processes there. Also returns the name. All folders below `parent` must be such folders.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn create_numbered(parent: &Path, stem: &str) -> io::Result<(Self, String)> {
        DirBuilder::new().recursive(true).mode(MODE).create(parent)?;
        sweep_numbered(parent)?;
        let (draft, name) = DraftFolder::create_numbered(&Fs::default(), parent, stem, MODE)?;
        Ok((Self(draft), name))
    }

    /// Returns the path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Returns the path of a file in the folder.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Leaves the folder to the user, under a name that is not removed by later builds.
    #[must_use]
    pub fn keep(mut self) -> PathBuf {
        self.0.release();
        let path = self.path().to_owned();
        let name = path.file_name().unwrap_or_default().to_string_lossy().replacen(PREFIX, Self::KEPT, 1);
        let kept = path.with_file_name(name);
        if fs::rename(&path, &kept).is_ok() { kept } else { path }
    }
}

/// Removes the folders of dead builds.
///
/// # Errors
/// When `parent` cannot be read or locked. A folder that cannot be removed is left for the next time.
pub fn sweep(parent: &Path) -> io::Result<()> {
    DraftFolder::clear_in(&Fs::default(), parent, PREFIX)
}

/// Removes the folders of dead processes below the parent of [`Workdir::create_numbered`].
///
/// # Errors
/// As [`sweep`].
pub fn sweep_numbered(parent: &Path) -> io::Result<()> {
    DraftFolder::clear_in(&Fs::default(), parent, "")
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_dropped_folder_is_gone_and_a_live_one_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let live = Workdir::create(parent.path()).unwrap();
        let dropped = Workdir::create(parent.path()).unwrap();
        let gone = dropped.path().to_owned();
        drop(dropped);
        sweep(parent.path()).unwrap();
        assert!(live.path().exists() && !gone.exists());
    }

    #[test]
    fn h6_a_folder_in_which_files_are_still_created_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        for _ in 0..20 {
            let folder = Workdir::create(parent.path()).unwrap();
            let path = folder.path().to_owned();
            let (started, has_started) = std::sync::mpsc::channel();
            let busy = thread::spawn(move || {
                let began = Instant::now();
                for number in 0.. {
                    let _ = fs::write(path.join(number.to_string()), "x");
                    let _ = started.send(());
                    if began.elapsed() > Duration::from_millis(10) {
                        break;
                    }
                }
            });
            has_started.recv().unwrap();
            drop(folder);
            busy.join().unwrap();
            assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_dead_builds_folder_is_swept_up() {
        let parent = tempfile::tempdir().unwrap();
        let dead = parent.path().join("build-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("overlay.qcow2"), "x").unwrap();
        // A process that died while creating or removing one has left an empty folder.
        let empty = parent.path().join("build-empty");
        fs::create_dir(&empty).unwrap();
        let other = parent.path().join("something else");
        fs::create_dir(&other).unwrap();
        let _live = Workdir::create(parent.path()).unwrap();
        assert!(!dead.exists() && !empty.exists() && other.exists());
    }
}
