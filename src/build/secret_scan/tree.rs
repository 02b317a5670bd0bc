//! Searches the files of a disk as its guest sees them: what is in pieces on the disk, or compressed, is whole there.

use std::ops::ControlFlow;

use crate::disk::entry::{Chunk, Entry};
use crate::disk::tree::TreeVisitor;

use super::content::{ContentLeak, ContentSearch};
use super::{FilePlace, LeakPlace, SearchedSecrets, SecretLeak};

/// The search of a tree. It ends with the first secret that is found.
pub(crate) struct TreeSearch {
    searched: SearchedSecrets,
    /// The content that was read since the last entry.
    content: Option<ContentSearch>,
    found: Option<SecretLeak>,
}

impl TreeSearch {
    pub(crate) fn new(searched: SearchedSecrets) -> Self {
        Self { searched, content: None, found: None }
    }

    /// Returns what was found.
    pub(crate) fn into_leak(self) -> Option<SecretLeak> {
        self.found
    }

    fn search_content(&mut self, entry: &Entry) -> Option<SecretLeak> {
        let path = shown(&entry.path);
        Some(match self.content.take()?.finish()? {
            ContentLeak::Plain(found) => found.at(|at| LeakPlace::ImageFile(path, FilePlace::Content(at))),
            ContentLeak::Unpacked(found) => found.at(|at| LeakPlace::ImageFile(path, FilePlace::Unpacked(at))),
        })
    }

    fn search_names(&self, entry: &Entry) -> Option<SecretLeak> {
        let name = entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let folder = &entry.path[..entry.path.len() - name.len()];
        let in_name = |_| LeakPlace::ImageFile(shown(folder), FilePlace::Name);
        let in_target = |_| LeakPlace::ImageFile(shown(&entry.path), FilePlace::Target);
        let target = entry.target.as_deref().unwrap_or_default();
        self.searched.scan_text(name, in_name).or_else(|| self.searched.scan_text(target, in_target))
    }

    fn search_attributes(&self, entry: &Entry) -> Option<SecretLeak> {
        let texts = entry.xattrs.iter().flat_map(|xattr| [&xattr.name, &xattr.value]);
        let in_attribute = |_| LeakPlace::ImageFile(shown(&entry.path), FilePlace::Attribute);
        texts.into_iter().find_map(|text| self.searched.scan_text(text, in_attribute))
    }
}

impl TreeVisitor for TreeSearch {
    fn begin_content(&mut self) {
        self.content = Some(ContentSearch::new(&self.searched));
    }

    fn visit_content(&mut self, chunk: Chunk<'_>) {
        match (&mut self.content, chunk) {
            (Some(content), Chunk::Data(bytes)) => content.push(bytes),
            (Some(content), Chunk::Zeroes(count)) => content.push_zeroes(count),
            (None, _) => {}
        }
    }

    fn visit_entry(&mut self, entry: &Entry) -> ControlFlow<()> {
        let found = self.search_content(entry).or_else(|| self.search_names(entry));
        self.found = found.or_else(|| self.search_attributes(entry));
        if self.found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}
