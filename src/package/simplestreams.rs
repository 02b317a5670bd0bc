//! A tree of images for an HTTPS server, as Incus and LXD read it: `incus remote add NAME URL --protocol simplestreams`.
//!
//! ```text
//! images/SHA256.incus.tar.xz    metadata, under its own digest
//! images/SHA256.qcow2           the disk that belongs to it
//! streams/v1/images.json        products (NAME:VERSION:default:amd64), each with its versions, by date
//! streams/v1/index.json         the products of images.json
//! ```
//! The files are the same as those of Incus' own tool (`incus-simplestreams add`), in UTC; other people's products are not
//! changed. A reader sees the tree before or after the addition: the files are complete before they are listed, and a list
//! is replaced in one step.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::content::PackageContent;
use super::incus::{self, Properties};
use super::{PackageError, PackageFacts};
use crate::digest::Sha256Digest;
use crate::fs::{FileLock, OnConflict, create_beside, publish, read_up_to};
use crate::progress::Progress;

/// Mode of published files, which everybody may read.
const MODE: u32 = 0o644;
/// Size limit of a list that is read, bytes; that of the largest public server has 3 MB.
const LARGEST: u64 = 64 << 20;
const LISTS: &str = "streams/v1";
const META: &str = "incus.tar.xz";
const DISK: &str = "disk-kvm.img";

/// Content of `images.json`. Unknown fields are preserved.
#[derive(Debug, Serialize, Deserialize)]
struct Images {
    content_id: String,
    datatype: String,
    format: String,
    products: BTreeMap<String, Product>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Product {
    aliases: String,
    arch: String,
    os: String,
    release: String,
    release_title: String,
    versions: BTreeMap<String, ProductVersion>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    variant: String,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct ProductVersion {
    items: BTreeMap<String, ProductItem>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// A file of a version. Digests are strings here, so that other people's are written as they were read.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct ProductItem {
    #[serde(rename = "combined_disk-kvm-img_sha256", default, skip_serializing_if = "String::is_empty")]
    fingerprint: String,
    ftype: String,
    path: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    sha256: String,
    size: u64,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

impl Default for Images {
    fn default() -> Self {
        Self {
            content_id: "images".into(),
            datatype: "image-downloads".into(),
            format: "products:1.0".into(),
            products: BTreeMap::new(),
            rest: BTreeMap::new(),
        }
    }
}

/// Adds an image to the tree in `folder`, created if missing; `conflict` applies to another image of its name, version and
/// minute. `disk` is its qcow2 file. Returns the image's files in the tree, the disk last. `progress` counts
/// the bytes that are digested and copied. Waits for another kiln that adds one.
///
/// # Errors
/// When another image is listed in its place, the tree's list cannot be read, a file cannot be written, or the work
/// is cancelled.
pub fn add(
    folder: &Path,
    facts: &PackageFacts,
    disk: &PackageContent,
    conflict: OnConflict,
    progress: &Progress<'_>,
) -> Result<Vec<PathBuf>, PackageError> {
    let lists = folder.join(LISTS);
    for folder in [&lists, &folder.join("images")] {
        fs::create_dir_all(folder).map_err(PackageError::tree("create", folder))?;
    }
    // The lock is on the folder, so that the server shows no additional file.
    let lock = File::open(&lists).and_then(FileLock::exclusive);
    let _lock = lock.map_err(PackageError::tree("lock", &lists))?;

    let metadata = incus::metadata(facts)?;
    let sha256 = disk.sha256(progress)?;
    let (mut version, mut paths) = describe(&metadata, disk, sha256, progress)?;
    if is_taken(&folder.join(&paths[1]), sha256, progress)? {
        // Two disks have the same metadata: readers of the existing list must still find the other one.
        paths[1] = format!("images/{}.qcow2", version.items[META].fingerprint);
        version.items.entry(DISK.to_owned()).or_default().path.clone_from(&paths[1]);
    }
    let mut products = read(&lists.join("images.json"))?;
    enter(&mut products, facts, version, conflict)?;
    let paths = paths.map(|path| folder.join(path));
    for (path, content) in paths.iter().zip([&metadata.into(), disk]) {
        place(path, content, progress)?;
    }
    write_lists(&lists, &products)?;
    Ok(paths.into())
}

/// Returns whether a file exists that has another digest.
fn is_taken(path: &Path, sha256: Sha256Digest, progress: &Progress<'_>) -> Result<bool, PackageError> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        opened => {
            Ok(PackageContent::file(opened.map_err(PackageError::tree("read", path))?)?.sha256(progress)? != sha256)
        }
    }
}

/// Returns the list entry of an image, and the paths of its metadata and its disk. `disk_sha256` is the digest of the disk.
fn describe(
    metadata: &[u8],
    disk: &PackageContent,
    disk_sha256: Sha256Digest,
    progress: &Progress<'_>,
) -> Result<(ProductVersion, [String; 2]), PackageError> {
    let sha256 = Sha256Digest::of(metadata).to_string();
    let paths = [META, "qcow2"].map(|extension| format!("images/{sha256}.{extension}"));
    let meta = ProductItem {
        fingerprint: incus::fingerprint(metadata, disk, progress)?.to_string(),
        ftype: META.into(),
        path: paths[0].clone(),
        sha256,
        size: metadata.len() as u64,
        rest: BTreeMap::new(),
    };
    let disk = ProductItem {
        ftype: DISK.into(),
        path: paths[1].clone(),
        sha256: disk_sha256.to_string(),
        size: disk.len(),
        ..ProductItem::default()
    };
    let items = BTreeMap::from([(META.to_owned(), meta), (DISK.to_owned(), disk)]);
    Ok((ProductVersion { items, rest: BTreeMap::new() }, paths))
}

/// Adds a version to its product.
fn enter(
    products: &mut Images,
    facts: &PackageFacts,
    version: ProductVersion,
    conflict: OnConflict,
) -> Result<(), PackageError> {
    let Properties { architecture, os, release, variant, .. } = Properties::of(facts);
    let name = format!("{os}:{release}:{variant}:{architecture}");
    let product = products.products.entry(name.clone()).or_insert_with(|| Product {
        aliases: format!("{os}/{release}/{variant},{os}/{release}"),
        arch: architecture.into(),
        os: os.into(),
        release: release.into(),
        release_title: release.into(),
        versions: BTreeMap::new(),
        variant: variant.into(),
        rest: BTreeMap::new(),
    });
    let minute = minute(facts.time);
    if conflict == OnConflict::Refuse && product.versions.get(&minute).is_some_and(|there| *there != version) {
        return Err(PackageError::Listed { product: name, version: minute });
    }
    product.versions.insert(minute, version);
    Ok(())
}

/// Returns the key that distinguishes and orders the versions of a product.
fn minute(time: u64) -> String {
    let seconds = i64::try_from(time.max(1)).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).strftime("%Y%m%d%H%M").to_string()
}

fn read(path: &Path) -> Result<Images, PackageError> {
    let text = match read_up_to(path, LARGEST) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Images::default()),
        other => other.map_err(PackageError::tree("read", path))?,
    };
    serde_json::from_slice(&text).map_err(|source| PackageError::List { path: path.to_owned(), source })
}

fn write_lists(lists: &Path, products: &Images) -> Result<(), PackageError> {
    #[derive(Serialize)]
    struct IndexEntry<'a> {
        datatype: &'a str,
        path: &'a str,
        products: Vec<&'a String>,
        format: &'a str,
    }
    #[derive(Serialize)]
    struct Index<'a> {
        index: BTreeMap<&'a str, IndexEntry<'a>>,
        format: &'a str,
    }
    let entry = IndexEntry {
        datatype: &products.datatype,
        path: "streams/v1/images.json",
        products: products.products.keys().collect(),
        format: &products.format,
    };
    let index = Index { index: BTreeMap::from([("images", entry)]), format: "index:1.0" };
    // The index is written last: it must not name a product that the list lacks.
    for (name, text) in [("images.json", serde_json::to_vec(products)), ("index.json", serde_json::to_vec(&index))] {
        let path = lists.join(name);
        let text = text.map_err(|source| PackageError::List { path: path.clone(), source })?;
        place(&path, &text.into(), &Progress::unwatched())?;
    }
    Ok(())
}

/// Writes a file, or replaces it in one step.
fn place(path: &Path, content: &PackageContent, progress: &Progress<'_>) -> Result<(), PackageError> {
    let temporary = create_beside(path).map_err(PackageError::tree("write", path))?;
    content.write(&mut temporary.as_file(), progress)?;
    publish(temporary, path, MODE, OnConflict::Replace).map_err(PackageError::tree("write", path))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{facts, sha256};
    use super::*;

    fn added(
        folder: &Path,
        facts: &PackageFacts,
        disk: &str,
        conflict: OnConflict,
    ) -> Result<Vec<PathBuf>, PackageError> {
        add(folder, facts, &disk.as_bytes().to_vec().into(), conflict, &Progress::unwatched())
    }

    fn list(folder: &Path, name: &str) -> Value {
        serde_json::from_slice(&fs::read(folder.join(LISTS).join(name)).unwrap()).unwrap()
    }

    #[test]
    fn an_image_is_listed_with_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let files = added(folder.path(), &facts(), "disk", OnConflict::Refuse).unwrap();
        let contents: Vec<_> = files.iter().map(|path| fs::read(path).unwrap()).collect();
        assert_eq!(contents[1], b"disk");
        let meta = sha256(&contents[0]);
        let images = list(folder.path(), "images.json");
        let product = &images["products"]["web:1.4.0+b1:default:amd64"];
        assert_eq!(product["aliases"], "web/1.4.0+b1/default,web/1.4.0+b1");
        let items = json!({
            "disk-kvm.img": {
                "ftype": "disk-kvm.img", "path": format!("images/{meta}.qcow2"), "sha256": sha256(b"disk"), "size": 4,
            },
            "incus.tar.xz": {
                "combined_disk-kvm-img_sha256": sha256(&contents.concat()), "ftype": "incus.tar.xz",
                "path": format!("images/{meta}.incus.tar.xz"), "sha256": meta, "size": contents[0].len(),
            },
        });
        assert_eq!(product["versions"], json!({ "202601020304": { "items": items } }));
        let index = list(folder.path(), "index.json");
        assert_eq!(index["index"]["images"]["products"], json!(["web:1.4.0+b1:default:amd64"]));
    }

    #[test]
    fn another_image_of_the_same_minute_is_refused_or_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let first = added(folder.path(), &facts(), "one", OnConflict::Refuse).unwrap();
        let before = list(folder.path(), "images.json");
        added(folder.path(), &facts(), "one", OnConflict::Refuse).unwrap();
        let refused = added(folder.path(), &facts(), "two", OnConflict::Refuse).unwrap_err();
        assert!(matches!(&refused, PackageError::Listed { version, .. } if version == "202601020304"), "{refused}");
        assert_eq!(list(folder.path(), "images.json"), before);
        let second = added(folder.path(), &facts(), "two", OnConflict::Replace).unwrap();
        assert_ne!(list(folder.path(), "images.json"), before);
        // A reader of the older list still finds its files.
        assert_eq!([&first[1], &second[1]].map(|path| fs::read_to_string(path).unwrap()), ["one", "two"]);
        assert_eq!(added(folder.path(), &facts(), "two", OnConflict::Refuse).unwrap(), second);
    }

    #[test]
    fn what_others_have_listed_stays() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join(LISTS)).unwrap();
        let theirs = json!({
            "aliases": "a", "arch": "arm64", "os": "a", "release": "1", "release_title": "One", "requirements": { "x": "y" },
            "versions": { "20200101": { "items": { "root.squashfs": { "ftype": "squashfs", "path": "p", "size": 1, "md5": "m" } } } },
        });
        let images = json!({
            "content_id": "images", "datatype": "image-downloads", "format": "products:1.0", "license": "MIT",
            "products": { "a:1": theirs },
        });
        fs::write(folder.path().join(LISTS).join("images.json"), images.to_string()).unwrap();
        added(folder.path(), &facts(), "disk", OnConflict::Refuse).unwrap();
        let after = list(folder.path(), "images.json");
        assert_eq!((&after["products"]["a:1"], &after["license"]), (&theirs, &json!("MIT")));
        assert_eq!(after["products"].as_object().unwrap().len(), 2);
    }

    #[test]
    fn a_list_that_is_none_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join(LISTS)).unwrap();
        let path = folder.path().join(LISTS).join("images.json");
        fs::write(&path, "{").unwrap();
        let refused = added(folder.path(), &facts(), "disk", OnConflict::Replace);
        assert!(matches!(refused, Err(PackageError::List { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"{");
    }
}
