//! Permission bits of files that git checked out.
//!
//! git keeps one bit of a file's mode: whether its owner may execute it. All others come from the umask during the checkout,
//! so two checkouts of one commit may differ. A mode that the umask of the checkout explains is sent as the umask 022 would
//! have made it; every other mode was set on purpose, and is kept.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The modes that git gave files and folders of one work tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckoutModes {
    plain: u16,
    executable: u16,
    folder: u16,
}

impl CheckoutModes {
    /// Returns the modes of the work tree that holds `path`; `None` where there is none. git made `.git` under the umask of
    /// the checkout: a folder, or the file of a linked work tree or submodule.
    #[must_use]
    pub fn find(path: &Path) -> Option<Self> {
        let path = fs::canonicalize(path).ok()?;
        let metadata = path.ancestors().find_map(|folder| fs::metadata(folder.join(".git")).ok())?;
        let mode = u16::try_from(metadata.permissions().mode() & 0o7777).unwrap_or_default();
        Some(if metadata.is_dir() {
            Self::of_folder(mode)
        } else {
            Self::of_folder(0o700 | mode | (mode & 0o044) >> 2)
        })
    }

    fn of_folder(mode: u16) -> Self {
        // A folder may have inherited its set-group-ID bit; files never do.
        Self { plain: mode & 0o666, executable: mode & 0o777, folder: mode }
    }

    /// Returns the mode to send for a file of this mode.
    #[must_use]
    pub fn of_file(self, mode: u16) -> u16 {
        match mode {
            mode if mode == self.plain => 0o644,
            mode if mode == self.executable => 0o755,
            mode => mode,
        }
    }

    /// Returns the mode to send for a folder of this mode.
    #[must_use]
    pub fn of_folder_mode(self, mode: u16) -> u16 {
        if mode == self.folder { 0o755 } else { mode }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work_tree(git: u32, is_file: bool) -> (tempfile::TempDir, CheckoutModes) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".git");
        let made = if is_file { fs::write(&path, "gitdir: elsewhere") } else { fs::create_dir(&path) };
        made.unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(git)).unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        let modes = CheckoutModes::find(&folder.path().join("sub")).unwrap();
        (folder, modes)
    }

    #[test]
    fn every_umask_gives_the_modes_of_022() {
        for umask in [0o000, 0o002, 0o007, 0o022, 0o027, 0o077] {
            let linked = work_tree(0o666 & !umask, true);
            for modes in [work_tree(0o777 & !umask, false).1, linked.1] {
                let umask = u16::try_from(umask).unwrap();
                assert_eq!(modes.of_file(0o666 & !umask), 0o644, "{umask:o}");
                assert_eq!(modes.of_file(0o777 & !umask), 0o755, "{umask:o}");
                assert_eq!(modes.of_folder_mode(0o777 & !umask), 0o755, "{umask:o}");
            }
        }
    }

    #[test]
    fn a_mode_that_no_umask_explains_stays() {
        let modes = work_tree(0o755, false).1;
        for mode in [0o600, 0o400, 0o444, 0o640, 0o700, 0o4755, 0o664] {
            assert_eq!(modes.of_file(mode), mode, "{mode:o}");
        }
        assert_eq!(modes.of_folder_mode(0o1777), 0o1777);
        assert_eq!(work_tree(0o2775, false).1.of_folder_mode(0o2775), 0o755, "the set-group-ID bit was inherited");
    }

    #[test]
    fn a_folder_outside_of_any_work_tree_keeps_all_modes() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(CheckoutModes::find(folder.path()), None);
    }
}
