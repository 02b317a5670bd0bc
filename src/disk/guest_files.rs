//! The files of a guest that is not running, on its disk.

use std::cell::RefCell;

use super::tree::{Tree, TreeError};
use crate::wire::guest_files::GuestFiles;

/// The files of a tree, and the first error of reading one of them.
pub(crate) struct TreeFiles<'t> {
    tree: &'t Tree<'t>,
    longest: u64,
    failure: RefCell<Option<TreeError>>,
}

impl<'t> TreeFiles<'t> {
    /// Creates a reader of files with at most `longest` bytes.
    pub(crate) fn new(tree: &'t Tree<'t>, longest: u64) -> Self {
        Self { tree, longest, failure: RefCell::new(None) }
    }

    /// Returns the first error, because of which an existing file may not have been read.
    pub(crate) fn into_failure(self) -> Option<TreeError> {
        self.failure.into_inner()
    }

    fn note<T>(&self, read: Result<Option<T>, TreeError>) -> Option<T> {
        read.unwrap_or_else(|error| {
            self.failure.borrow_mut().get_or_insert(error);
            None
        })
    }
}

impl GuestFiles for TreeFiles<'_> {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.note(self.tree.read(path, self.longest))
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let names = self.note(self.tree.names(folder)).unwrap_or_default();
        names.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect()
    }
}
