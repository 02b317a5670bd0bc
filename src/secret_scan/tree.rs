//! Searches the files of a disk as its guest sees them: contents that are fragmented or compressed on the disk are complete
//! there.

use std::ops::ControlFlow;

use crate::disk::entry::{Chunk, DiskEntry};
use crate::disk::gap::quoted;
use crate::disk::tree::TreeVisitor;

use super::content::{ContentLeak, ContentSearch};
use super::findings::SearchFindings;
use super::{FilePlace, LeakPlace, SearchedSecrets};

/// The search of a tree.
pub(crate) struct TreeSearch {
    searched: SearchedSecrets,
    /// The content since the last entry.
    content: Option<ContentSearch>,
    findings: SearchFindings,
}

impl TreeSearch {
    pub(crate) fn new(searched: SearchedSecrets) -> Self {
        Self { searched, content: None, findings: SearchFindings::default() }
    }

    /// Returns what the search has found.
    pub(crate) fn into_findings(self) -> SearchFindings {
        self.findings
    }

    fn search_content(&mut self, entry: &DiskEntry) {
        let Some(content) = self.content.take() else { return };
        let content = content.finish();
        let path = quoted(&entry.path);
        if let Some(error) = content.error {
            self.findings.unsearched.add(&path, error);
        }
        self.findings.leaks.extend(content.leaks.into_iter().map(|leak| match leak {
            ContentLeak::Plain(found) => found.at(|byte| LeakPlace::ImageFile(path.clone(), FilePlace::Content(byte))),
            ContentLeak::Unpacked(found) => {
                found.at(|byte| LeakPlace::ImageFile(path.clone(), FilePlace::Unpacked(byte)))
            }
        }));
    }

    fn search_names(&mut self, entry: &DiskEntry) {
        let name = entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let folder = &entry.path[..entry.path.len() - name.len()];
        self.search_text(name, folder, FilePlace::Name);
        self.search_text(entry.target.as_deref().unwrap_or_default(), &entry.path, FilePlace::Target);
    }

    fn search_attributes(&mut self, entry: &DiskEntry) {
        for text in entry.xattrs.iter().flat_map(|xattr| [&xattr.name, &xattr.value]) {
            self.search_text(text, &entry.path, FilePlace::Attribute);
        }
    }

    fn search_text(&mut self, text: &[u8], path: &[u8], place: FilePlace) {
        self.findings.leaks.extend(self.searched.scan_text(text, |_| LeakPlace::ImageFile(quoted(path), place)));
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

    fn visit_entry(&mut self, entry: &DiskEntry) -> ControlFlow<()> {
        self.search_content(entry);
        self.search_names(entry);
        self.search_attributes(entry);
        ControlFlow::Continue(())
    }
}
