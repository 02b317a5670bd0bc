//! Finds the specs that the command line names: files, folders with a `kiln.toml`, folders of such folders, and variants.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Fault, Kind};
use crate::project::FileReach;
use crate::specfile::{EVERY_VARIANT, LoadError, Overrides, Spec, SpecFile};

use super::args::SpecArgs;

/// Depth to which specs are looked for below a folder without a `kiln.toml`.
const DEPTH: usize = 8;

/// Reads all specs on the command line. An error in the last one is reported before anything boots.
///
/// # Errors
/// With the first that cannot be read.
pub(super) fn load(paths: &[PathBuf], reading: &SpecArgs, version: Option<&String>) -> Result<Vec<Spec>, Failure> {
    let overrides = reading.overrides(version);
    let mut specs = Vec::new();
    for path in files(paths) {
        let file = SpecFile::read(&path, reading.reach().files)?;
        let wanted = match &reading.variant {
            Some(variant) if variant == EVERY_VARIANT => every_variant(&file),
            variant => vec![variant.clone()],
        };
        for variant in wanted {
            specs.push(file.parse(&Overrides { variant, ..overrides.clone() }).map_err(LoadError::from)?);
        }
    }
    Ok(specs)
}

/// Returns the variants of a spec; of one without variants, `None`, which stands for the spec itself.
fn every_variant(file: &SpecFile) -> Vec<Option<String>> {
    let names = file.variants();
    if names.is_empty() { vec![None] } else { names.into_iter().map(Some).collect() }
}

/// Reads each spec and each of its variants.
pub(super) fn with_variants(paths: &[PathBuf], reach: FileReach) -> Result<Vec<Spec>, Failure> {
    let mut specs = Vec::new();
    for path in files(paths) {
        let file = SpecFile::read(&path, reach)?;
        for variant in std::iter::once(None).chain(file.variants().into_iter().map(Some)) {
            specs.push(file.parse(&Overrides { variant, ..Overrides::default() }).map_err(LoadError::from)?);
        }
    }
    Ok(specs)
}

/// A command needs a spec, and none is named or in the current folder.
#[derive(Debug, thiserror::Error)]
#[error("no SPEC is named, and the current folder has no kiln.toml")]
pub(super) struct NoSpecError;

impl Fault for NoSpecError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        vec!["name a spec file or a folder with a kiln.toml, or let `kiln init` write a commented spec".into()]
    }
}

/// Returns the current folder as the spec of a command that names none.
///
/// # Errors
/// When it has no `kiln.toml`.
pub(super) fn here() -> Result<PathBuf, NoSpecError> {
    let here = Path::new(".");
    if here.join("kiln.toml").exists() { Ok(here.to_owned()) } else { Err(NoSpecError) }
}

/// Returns the specs that a command names, or else the current folder.
///
/// # Errors
/// When none is named and the current folder has no `kiln.toml`.
pub(super) fn or_here(named: Vec<PathBuf>) -> Result<Vec<PathBuf>, NoSpecError> {
    if named.is_empty() { Ok(vec![here()?]) } else { Ok(named) }
}

/// Replaces folders by the spec files in them. A path that does not exist is reported by the code that reads it.
pub(super) fn files(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in paths {
        let before = files.len();
        if path.is_dir() && !path.join("kiln.toml").exists() {
            search(path, DEPTH, &mut files);
        }
        if files.len() == before {
            files.push(path.clone());
        }
    }
    files
}

/// Finds folders with a `kiln.toml`, in the order of their names. Links are not followed, hidden folders not entered.
fn search(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut folders: Vec<PathBuf> = entries.flatten().filter(is_visible_folder).map(|entry| entry.path()).collect();
    folders.sort();
    for folder in folders {
        if folder.join("kiln.toml").exists() {
            found.push(folder);
        } else if depth > 1 {
            search(&folder, depth - 1, found);
        }
    }
}

fn is_visible_folder(entry: &fs::DirEntry) -> bool {
    let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
    !is_hidden && entry.file_type().is_ok_and(|kind| kind.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_specs_are_searched_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        for name in ["b", "a/deep/er", ".hidden", "a/beside"] {
            fs::create_dir_all(at(name)).unwrap();
            fs::write(at(name).join("kiln.toml"), "").unwrap();
        }
        fs::create_dir(at("empty")).unwrap();
        assert_eq!(files(&[folder.path().to_owned()]), [at("a/beside"), at("a/deep/er"), at("b")]);
        assert_eq!(files(&[at("b"), at("empty"), at("x.toml")]), [at("b"), at("empty"), at("x.toml")]);
    }
}
