//! The file of a spec: located, checked and read once. Errors in a spec are shown with its lines, so nothing outside of the
//! project may be read as a spec.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::complaint::{LoadError, SpecErrors};
use super::suggest::closest;
use super::{Overrides, Spec, variants};
use crate::project::{FileReach, FoundFile, Project, ReachError};

/// The size of the largest spec that is read, bytes.
pub const MAX_BYTES: u64 = 1 << 20;
/// The most files beside a missing spec that are compared with its name.
const MOST_NEIGHBOURS: usize = 1000;

/// The text of a spec file.
#[derive(Debug)]
pub struct SpecFile {
    path: PathBuf,
    text: String,
}

impl SpecFile {
    /// Reads a spec file that the user has named, or the `kiln.toml` of a folder.
    ///
    /// # Errors
    /// When there is no such file, when it is outside of the project and must not be, or when it is not UTF-8 text of at
    /// most 1 MiB.
    pub fn read(path: &Path, reach: FileReach) -> Result<Self, LoadError> {
        let namer = Namer { whose: "the spec", spec: &spec_file(path) };
        read(path, &namer, reach).map_err(with_similar)
    }

    /// Reads the spec of a base image, which has to lie in the project of the spec that names it.
    ///
    /// # Errors
    /// Those of [`SpecFile::read`].
    pub fn read_base(path: &Path, of: &Path, reach: FileReach) -> Result<Self, LoadError> {
        read(path, &Namer { whose: "`base.spec`", spec: of }, reach)
    }

    /// Parses the text.
    ///
    /// # Errors
    /// All errors in the spec.
    pub fn parse(&self, overrides: &Overrides) -> Result<Spec, SpecErrors> {
        Spec::parse(&self.path, &self.text, overrides)
    }

    /// Returns the text of the file.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the variants of the spec, sorted; empty where the file is not TOML, which parsing it reports.
    #[must_use]
    pub fn variants(&self) -> Vec<String> {
        variants::variants(&self.text)
    }
}

/// Returns the file that is read for a path: the `kiln.toml` of a folder.
#[must_use]
pub fn spec_file(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("kiln.toml") } else { path.to_owned() }
}

/// The origin of a spec file's path: the user, or another spec.
struct Namer<'n> {
    /// The owner of the path in error messages.
    whose: &'static str,
    /// The spec whose project the file has to lie in.
    spec: &'n Path,
}

/// Reads the very file that was checked, even if its name leads elsewhere meanwhile.
fn read(given: &Path, namer: &Namer<'_>, reach: FileReach) -> Result<SpecFile, LoadError> {
    let path = &spec_file(given);
    if given.is_dir() && !path.exists() {
        return Err(LoadError::EmptyFolder { path: given.to_owned() });
    }
    let found = FoundFile::find(path).map_err(LoadError::unreadable(path))?;
    if !found.is_regular().map_err(LoadError::unreadable(path))? {
        return Err(LoadError::NotAFile { path: path.to_owned() });
    }
    if reach == FileReach::Project {
        let checked = Project::of_spec(namer.spec)?.check_target(path, &found.location);
        checked.map_err(|refusal| ReachError::Refused { whose: namer.whose.to_owned(), refusal })?;
    }
    let mut bytes = Vec::new();
    let read = found.open().and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(LoadError::unreadable(path))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(LoadError::TooLarge { path: path.to_owned() });
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(SpecFile { path: path.to_owned(), text }),
        Err(error) => Err(LoadError::NotUtf8 { path: path.to_owned(), offset: error.utf8_error().valid_up_to() }),
    }
}

/// Adds the spec that was probably meant to the error of a missing file.
fn with_similar(error: LoadError) -> LoadError {
    match error {
        LoadError::Read { path, source, .. } if source.kind() == io::ErrorKind::NotFound => {
            LoadError::Read { similar: similar_spec(&path), path, source }
        }
        other => other,
    }
}

/// Returns the spec beside a missing file whose name is the closest to it.
fn similar_spec(missing: &Path) -> Option<PathBuf> {
    let name = missing.file_name()?.to_str()?;
    let folder = missing.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let neighbours =
        fs::read_dir(folder).ok()?.take(MOST_NEIGHBOURS).flatten().filter(|entry| is_spec_path(&entry.path()));
    let names = neighbours.filter_map(|entry| entry.file_name().into_string().ok());
    // A dangling link exists itself under the missing name.
    let names: Vec<String> = names.filter(|other| other != name).collect();
    let with_extension = names.iter().find(|other| other.strip_suffix(".toml") == Some(name)).map(String::as_str);
    let similar = with_extension.or_else(|| closest(name, names.iter().map(String::as_str)))?;
    Some(missing.with_file_name(similar))
}

/// Returns whether a path has the name of a spec file, or is a folder with a `kiln.toml`.
#[must_use]
pub fn is_spec_path(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "toml") || path.join("kiln.toml").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_spec_is_answered_with_the_one_that_was_meant() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["hello.toml", "notes.txt"] {
            fs::write(at(name), "").unwrap();
        }
        fs::create_dir(at("web")).unwrap();
        fs::write(at("web/kiln.toml"), "").unwrap();
        for (missing, meant) in [
            ("hello.tml", Some("hello.toml")),
            ("hello", Some("hello.toml")),
            ("wbe", Some("web")),
            ("note.txt", None),
            ("unlike", None),
        ] {
            let error = SpecFile::read(&at(missing), FileReach::Project).unwrap_err();
            let LoadError::Read { similar, .. } = error else { panic!("{error}") };
            assert_eq!(similar, meant.map(at), "{missing}");
        }
    }
}
