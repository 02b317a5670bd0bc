//! Looks up single files in a tree.

use super::entry::FileKind;
use super::tree::{Place, Tree, TreeError};

/// The deepest nesting of folders in which small files are visited.
const MAX_DEPTH: usize = 32;
/// The most files that are visited.
const MAX_FILES: usize = 100_000;

/// The parameters and the state of a visit of small files.
struct SmallFiles<'v> {
    limit: u64,
    skipped: &'v [&'v str],
    visit: &'v mut dyn FnMut(&str, &[u8]),
    left: usize,
}

impl Tree<'_> {
    /// Returns whether this path exists; links on the way are followed within the guest, and the file itself may be a link.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub fn has(&self, path: &str) -> Result<bool, TreeError> {
        Ok(self.kind_of(path)?.is_some())
    }

    /// Returns whether this path is a regular file, and not a link to one.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub fn is_file(&self, path: &str) -> Result<bool, TreeError> {
        Ok(self.kind_of(path)? == Some(FileKind::File))
    }

    fn kind_of(&self, path: &str) -> Result<Option<FileKind>, TreeError> {
        let Some((folder, name)) = path.rsplit_once('/') else { return Ok(None) };
        let Some(place) = self.directory(folder.as_bytes())? else { return Ok(None) };
        let names = self.node(place)?.names()?;
        let found = names.into_iter().find(|(found, _)| found == name.as_bytes());
        let Some((_, number)) = found else { return Ok(None) };
        Ok(Some(self.node(self.mounted((place.0, number)))?.kind()))
    }

    /// Passes every regular file below a folder with at most `limit` bytes to `visit`, except those below the folders
    /// `skipped`. Links are not followed, and names that are not UTF-8 are left out.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub fn visit_small_files(
        &self,
        folder: &str,
        limit: u64,
        skipped: &[&str],
        visit: &mut dyn FnMut(&str, &[u8]),
    ) -> Result<(), TreeError> {
        let Some(place) = self.directory(folder.as_bytes())? else { return Ok(()) };
        let mut files = SmallFiles { limit, skipped, visit, left: MAX_FILES };
        self.visit_folder(folder, place, MAX_DEPTH, &mut files)
    }

    fn visit_folder(
        &self,
        folder: &str,
        place: Place,
        depth: usize,
        files: &mut SmallFiles<'_>,
    ) -> Result<(), TreeError> {
        for (name, number) in self.node(place)?.names()? {
            let Ok(name) = String::from_utf8(name) else { continue };
            let path = format!("{folder}/{name}");
            let place = self.mounted((place.0, number));
            let node = self.node(place)?;
            if node.kind() == FileKind::Directory && depth > 0 && !files.skipped.contains(&&*path) {
                self.visit_folder(&path, place, depth - 1, files)?;
            } else if node.kind() == FileKind::File && node.size() <= files.limit && files.left > 0 {
                files.left -= 1;
                (files.visit)(&path, &node.read(files.limit)?);
            }
        }
        Ok(())
    }
}
