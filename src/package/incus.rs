//! What Incus and LXD import as a virtual machine: a small archive that describes the image, beside its qcow2 file.
//!
//! The rules are those of "Image format" in Incus' documentation; the properties are also those that its simplestreams tool
//! requires. Users of such a tree run an image with `incus launch NAME/VERSION`.

use std::io::Write;

use liblzma::write::XzEncoder;
use serde::Serialize;

use crate::digest::Sha256Digest;
use crate::progress::Progress;

use super::content::PackageContent;
use super::tar::{Archive, Format, TarOwner};
use super::{PackageError, PackageFacts};

/// Name of the architecture in Incus' metadata.
const ARCHITECTURE: &str = "x86_64";
/// Name of the architecture in Debian, and so on every image server.
const PORT: &str = "amd64";
/// Default level of xz.
const LEVEL: u32 = 6;

/// Content of `metadata.yaml`. JSON is YAML too, and needs no rules for quoting.
#[derive(Serialize)]
struct Metadata<'a> {
    architecture: &'a str,
    creation_date: u64,
    properties: Properties<'a>,
}

/// Properties of an image on an image server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Properties<'a> {
    pub(super) architecture: &'a str,
    pub(super) description: String,
    pub(super) os: &'a str,
    pub(super) release: &'a str,
    pub(super) variant: &'a str,
}

impl<'a> Properties<'a> {
    pub(super) fn of(facts: &'a PackageFacts) -> Self {
        let description = match &*facts.description {
            "" => format!("{} {}", facts.name, facts.version),
            description => description.to_owned(),
        };
        Self { architecture: PORT, description, os: &facts.name, release: &facts.version, variant: "default" }
    }
}

/// Returns the content of the file `metadata.tar.xz`.
///
/// # Errors
/// Only by a bug: it is created in memory.
pub fn metadata(facts: &PackageFacts) -> Result<Vec<u8>, PackageError> {
    let metadata = Metadata {
        architecture: ARCHITECTURE,
        // Zero stands for an unknown date.
        creation_date: facts.time.max(1),
        properties: Properties::of(facts),
    };
    let text = serde_json::to_vec(&metadata).map_err(|error| PackageError::Compress(error.into()))?;
    let mut archive = Archive::new(Format::Ustar, facts.time);
    archive.file("metadata.yaml", TarOwner::default(), text)?;
    let mut encoder = XzEncoder::new(Vec::new(), LEVEL);
    encoder.write_all(&archive.finish().to_vec()?).and_then(|()| encoder.finish()).map_err(PackageError::Compress)
}

/// Returns the fingerprint of an image that consists of two files: the digest of both, concatenated.
///
/// # Errors
/// When the disk's file cannot be read, or the work is cancelled.
pub fn fingerprint(
    metadata: &[u8],
    disk: &PackageContent,
    progress: &Progress<'_>,
) -> Result<Sha256Digest, PackageError> {
    let mut both = PackageContent::from(metadata.to_vec());
    both.push(disk.clone());
    both.sha256(progress)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use liblzma::read::XzDecoder;
    use serde_json::{Value, json};

    use super::super::testing::{facts, members, names, sha256};
    use super::*;

    fn yaml(facts: &PackageFacts) -> Value {
        let mut archive = Vec::new();
        XzDecoder::new(&*metadata(facts).unwrap()).read_to_end(&mut archive).unwrap();
        let members = members(&archive);
        assert_eq!(names(&members), ["metadata.yaml"]);
        serde_json::from_slice(&members[0].data).unwrap()
    }

    #[test]
    fn the_metadata_has_what_incus_and_its_image_servers_ask_for() {
        let properties = json!({
            "architecture": "amd64", "description": "nginx & \"our\" <site>", "os": "web", "release": "1.4.0+b1",
            "variant": "default",
        });
        let whole = json!({ "architecture": "x86_64", "creation_date": 1_767_323_045, "properties": properties });
        assert_eq!(yaml(&facts()), whole);
        let bare = yaml(&PackageFacts { description: String::new(), time: 0, ..facts() });
        assert_eq!((&bare["creation_date"], &bare["properties"]["description"]), (&json!(1), &json!("web 1.4.0+b1")));
    }

    #[test]
    fn the_fingerprint_is_of_both_files() {
        let disk = PackageContent::from(b"qcow2".to_vec());
        assert_eq!(fingerprint(b"meta", &disk, &Progress::unwatched()).unwrap().to_string(), sha256(b"metaqcow2"));
    }
}
