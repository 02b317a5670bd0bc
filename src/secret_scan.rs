//! Searches for secrets where none may be: on the sealed disk, free blocks included, in the files of its file systems, on a
//! disk that is to be kept in the cache, in all other files of a version, and in the files that a failed build leaves. A
//! step that writes a secret into a file and removes it again leaves it in a free block, readable for everybody who gets the
//! image; a secret in two blocks that are not adjacent, or in a compressed file, is only found in the content of its file.
//!
//! The parts of a secret that are masked in output ([`crate::masking`]) are searched for in the same forms, if they are long
//! enough. Forms that programs wrap are found by parts that contain no line end.

mod content;
mod cpio;
mod decoder;
mod findings;
mod journal;
mod needles;
mod tree;
mod unpack;
mod unpacked_output;

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use content::{ContentFindings, ContentLeak, ContentSearch};
use needles::Needles;

pub use findings::{SearchFindings, SecretLeaks, UnsearchedFiles};
pub use needles::SecretScan;
pub(crate) use tree::TreeSearch;

/// Minimum length of a searched value, bytes: anything shorter is found in every disk by chance.
pub(crate) const SHORTEST: usize = 8;
const SECTOR: u64 = 512;
/// Size of reads, bytes.
const BUFFER: usize = 256 << 10;

/// A secret that was found in a place where none may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the secret `{name}` is in {}", place.describe(form))]
pub struct SecretLeakError {
    /// The secret's name.
    pub name: String,
    /// The form in which it is written there.
    pub form: &'static str,
    /// The place.
    pub place: LeakPlace,
}

/// A place where a secret was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeakPlace {
    /// On the disk of the image, at this offset.
    Disk(u64),
    /// In a file, at this offset.
    File(PathBuf, u64),
    /// In a compressed file, at this offset of its unpacked content.
    Unpacked(PathBuf, u64),
    /// In the name of a file or folder in this folder, or in the target of a link in it.
    Name(PathBuf),
    /// In a file of the image, with this path in the guest.
    ImageFile(String, FilePlace),
}

/// A place in a file of the image where a secret was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilePlace {
    /// In its content, at this offset.
    Content(u64),
    /// In its unpacked content, at this offset.
    Unpacked(u64),
    /// In the name of a file in this folder.
    Name,
    /// In the target of this link.
    Target,
    /// In the name or value of an extended attribute.
    Attribute,
}

impl FilePlace {
    fn describe(self, path: &str) -> String {
        match self {
            FilePlace::Content(at) => format!("at byte {at} of its file {path}"),
            FilePlace::Unpacked(at) => format!("at byte {at} of what its file {path} unpacks to"),
            FilePlace::Name => format!("in the name of a file in {path}"),
            FilePlace::Target => format!("in the target of the link {path}"),
            FilePlace::Attribute => format!("in an extended attribute of {path}"),
        }
    }
}

impl LeakPlace {
    fn describe(&self, form: &str) -> String {
        match self {
            LeakPlace::Disk(at) => format!("the image, {form}, at byte {at} of its disk (sector {})", at / SECTOR),
            LeakPlace::File(path, at) => format!("the file {}, {form}, at byte {at}", path.display()),
            LeakPlace::Unpacked(path, at) => {
                format!("the file {}, {form}, at byte {at} of what it unpacks to", path.display())
            }
            LeakPlace::ImageFile(path, place) => format!("the image, {form}, {}", place.describe(path)),
            LeakPlace::Name(folder) if folder.as_os_str().is_empty() => format!("the name of a file, {form}"),
            LeakPlace::Name(folder) => format!("the name of a file in {}, {form}", folder.display()),
        }
    }
}

impl SecretLeakError {
    /// Returns the file whose content contains the secret.
    pub(crate) fn file(&self) -> Option<&Path> {
        match &self.place {
            LeakPlace::File(path, _) | LeakPlace::Unpacked(path, _) => Some(path),
            LeakPlace::Disk(_) | LeakPlace::Name(_) | LeakPlace::ImageFile(..) => None,
        }
    }
}

/// The parts of secrets that are searched for. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SearchedSecrets(Arc<Needles>);

impl SearchedSecrets {
    /// Takes every secret that is long enough; returns `None` if there is none.
    #[must_use]
    pub fn new<'a>(secrets: impl Iterator<Item = (&'a str, &'a [u8])>) -> Option<Self> {
        Needles::new(secrets).map(|needles| Self(Arc::new(needles)))
    }

    /// Starts a search of something that is read piece by piece.
    #[must_use]
    pub fn scan(&self) -> SecretScan {
        SecretScan::new(Arc::clone(&self.0))
    }

    /// Searches the content of a whole file, without unpacking it, for one place of a secret.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn scan_file(&self, path: &Path) -> io::Result<Option<SecretLeakError>> {
        let mut scan = self.scan();
        read_pieces(File::open(path)?, &mut |piece| {
            scan.push(piece);
            if scan.is_complete() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let first = scan.into_found().into_iter().next();
        Ok(first.map(|found| found.at(|at| LeakPlace::File(path.to_owned(), at))))
    }

    /// Searches the files below a folder, the unpacked content of compressed ones, and all names. Paths in the result are
    /// relative to the folder. Files for which `is_passed_over` returns true are skipped.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn scan_folder(&self, folder: &Path, is_passed_over: &dyn Fn(&Path) -> bool) -> io::Result<SearchFindings> {
        let mut findings = SearchFindings::default();
        let mut folders = vec![PathBuf::new()];
        while let Some(below) = folders.pop() {
            for entry in fs::read_dir(folder.join(&below))? {
                let entry = entry?;
                let path = below.join(entry.file_name());
                let kind = entry.file_type()?;
                findings.leaks.extend(self.scan_name(entry.file_name().as_bytes(), &below));
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_symlink() {
                    let target = fs::read_link(entry.path())?;
                    findings.leaks.extend(self.scan_name(target.as_os_str().as_bytes(), &below));
                } else if kind.is_file() && !is_passed_over(&path) {
                    self.scan_published(&entry.path(), &path, &mut findings)?;
                }
            }
        }
        Ok(findings)
    }

    /// Searches a text in memory, and returns the first place of each secret.
    pub fn scan_text(&self, text: &[u8], place: impl Fn(u64) -> LeakPlace) -> Vec<SecretLeakError> {
        let mut found = Vec::new();
        self.0.find(0, text, &mut found);
        found.into_iter().map(|found| found.at(&place)).collect()
    }

    fn scan_name(&self, name: &[u8], folder: &Path) -> Vec<SecretLeakError> {
        self.scan_text(name, |_| LeakPlace::Name(folder.to_owned()))
    }

    fn scan_published(&self, path: &Path, name: &Path, findings: &mut SearchFindings) -> io::Result<()> {
        let mut search = ContentSearch::new(self);
        read_pieces(File::open(path)?, &mut |piece| {
            search.push(piece);
            ControlFlow::Continue(())
        })?;
        let ContentFindings { leaks, error } = search.finish();
        findings.leaks.extend(leaks.into_iter().map(|leak| match leak {
            ContentLeak::Plain(found) => found.at(|at| LeakPlace::File(name.to_owned(), at)),
            ContentLeak::Unpacked(found) => found.at(|at| LeakPlace::Unpacked(name.to_owned(), at)),
        }));
        if let Some(error) = error {
            findings.unsearched.add(&name.display().to_string(), error);
        }
        Ok(())
    }
}

/// Passes all data to `take`, piece by piece, until that breaks.
fn read_pieces(mut reader: impl Read, take: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 || take(&buffer[..count]).is_break() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
