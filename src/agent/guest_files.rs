//! The files of the running guest, for the code in [`crate::wire`] that reads them.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::wire::guest_files::{GuestFiles, LONGEST_FILE};

/// The guest that the agent runs in.
pub struct RunningGuest;

impl GuestFiles for RunningGuest {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        // /dev/null, the target of a masked unit's link, is not read.
        fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        let mut content = Vec::new();
        File::open(path).ok()?.take(LONGEST_FILE).read_to_end(&mut content).ok()?;
        Some(content)
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn has_name(&self, folder: &str, name: &str) -> bool {
        fs::symlink_metadata(Path::new(folder).join(name)).is_ok()
    }
}
