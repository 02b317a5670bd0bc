//! `tags.json` of an image: movable names for versions.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::error::StoreError;
use super::folder::Folder;
use super::manifest::SCHEMA;

/// Its name inside an image's folder.
const FILE: &str = "tags.json";
/// Largest one that is read, bytes.
const LARGEST: u64 = 1 << 20;

/// `{"schema": 1, "tags": {"stable": "1.4.0"}}`
#[derive(Deserialize)]
struct Tags {
    schema: u64,
    #[serde(default)]
    tags: BTreeMap<String, String>,
}

/// The version a tag stands for. No image, no tags and no such tag are all `None`.
pub(super) fn lookup(image: &Path, tag: &str) -> Result<Option<String>, StoreError> {
    let read = Folder::open(image).and_then(|folder| folder.read(FILE, LARGEST));
    match read {
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
        Ok(text) => parse(&text, &image.join(FILE)).map(|mut tags| tags.remove(tag)),
    }
}

fn parse(text: &[u8], path: &Path) -> Result<BTreeMap<String, String>, StoreError> {
    let malformed = |source| StoreError::Malformed { path: path.to_owned(), source };
    let tags: Tags = serde_json::from_slice(text).map_err(malformed)?;
    if tags.schema > u64::from(SCHEMA) {
        return Err(StoreError::NewerSchema { path: path.to_owned(), found: tags.schema, known: SCHEMA });
    }
    Ok(tags.tags)
}
