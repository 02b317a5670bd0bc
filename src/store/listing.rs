//! Lists all versions of all images, with the relations between them: their tags, and the images that they were built from.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::digest::Sha256Digest;

use super::{Artifact, ImageId, Store, StoreError, Tags, manifest};

/// Summary of a version in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Id of the version.
    pub id: ImageId,
    /// The tags that name it, sorted.
    pub tags: Vec<String>,
    /// Sequence number among the image's versions.
    pub sequence: u64,
    /// Time of the publication.
    pub finished: Timestamp,
    /// Name, version, description and labels.
    pub image: manifest::ManifestImage,
    /// The base image that it was built from.
    pub base: manifest::ManifestBase,
    /// Its image files.
    pub outputs: Vec<manifest::ManifestOutput>,
    /// Digest of every input.
    pub build_key: String,
    /// SHA-256 of the disk as the guest sees it, if it is known.
    pub disk_sha256: Option<Sha256Digest>,
    /// SHA-256 of the list of the digests of the disk's chunks.
    pub disk_chunks_sha256: Option<Sha256Digest>,
    /// Folder of the version.
    pub folder: PathBuf,
}

/// All versions of all images.
#[derive(Debug, Default)]
pub struct StoreListing {
    /// Versions by name, newest first.
    pub versions: Vec<Summary>,
    /// An error for each version, and for the tags of each image, that cannot be read.
    pub unreadable: Vec<StoreError>,
}

/// An image that another was built from, directly or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ancestor<'a> {
    /// An image of the store.
    Stored(&'a Summary),
    /// An image that was removed or replaced since.
    Gone(&'a manifest::ManifestBaseImage),
    /// A source outside of the store, as written in the manifest.
    Source(&'a str),
}

impl Store {
    /// Lists all versions.
    ///
    /// # Errors
    /// When the store cannot be read; a version that cannot be is part of the listing.
    pub fn list(&self) -> Result<StoreListing, StoreError> {
        let mut listing = StoreListing::default();
        for name in self.names()? {
            let _image = self.share_image(&name)?;
            let tags = Tags::read(&self.image_path(&name)).unwrap_or_else(|error| {
                listing.unreadable.push(error);
                Tags::default()
            });
            let mut versions = Vec::new();
            for id in self.versions(&name)? {
                match self.artifact_at(&id) {
                    Ok(artifact) => versions.push(Summary::new(&artifact, &tags)),
                    // Removed without kiln since the folder was listed.
                    Err(error) if error.is_not_found() => {}
                    Err(error) => listing.unreadable.push(error),
                }
            }
            versions.sort_by_key(|summary| std::cmp::Reverse(summary.sequence));
            listing.versions.append(&mut versions);
        }
        Ok(listing)
    }
}

impl StoreListing {
    /// Returns a version by image name and version.
    #[must_use]
    pub fn find(&self, name: &str, version: &str) -> Option<&Summary> {
        self.versions.iter().find(|summary| (summary.id.name(), summary.id.version()) == (name, version))
    }

    /// Returns the version of an image that was published last.
    #[must_use]
    pub fn newest(&self, name: &str) -> Option<&Summary> {
        self.versions.iter().find(|summary| summary.id.name() == name)
    }

    /// Returns the version that a tag of an image names.
    #[must_use]
    pub fn tagged(&self, name: &str, tag: &str) -> Option<&Summary> {
        let of_image = self.versions.iter().filter(|summary| summary.id.name() == name);
        of_image.into_iter().find(|summary| summary.tags.iter().any(|other| other == tag))
    }

    /// Returns the image of the store that another was built from, unless it was replaced since.
    #[must_use]
    pub fn stored(&self, base: &manifest::ManifestBaseImage) -> Option<&Summary> {
        self.find(&base.name, &base.version).filter(|summary| summary.build_key == base.build_key)
    }

    /// Returns the ancestors of a version, up to one that came from outside of the store or is gone.
    #[must_use]
    pub fn lineage<'a>(&'a self, summary: &'a Summary) -> Vec<Ancestor<'a>> {
        let mut lineage = Vec::new();
        let mut base = &summary.base;
        // No version is its own ancestor, unless somebody has edited manifests.
        while lineage.len() <= self.versions.len() {
            let Some(image) = &base.image else {
                lineage.push(Ancestor::Source(&base.source));
                break;
            };
            let Some(parent) = self.stored(image) else {
                lineage.push(Ancestor::Gone(image));
                break;
            };
            lineage.push(Ancestor::Stored(parent));
            base = &parent.base;
        }
        lineage
    }
}

impl Summary {
    fn new(artifact: &Artifact, tags: &Tags) -> Self {
        let manifest = artifact.manifest().clone();
        Self {
            id: artifact.id().clone(),
            tags: tags.of(artifact.id().version()).into_iter().map(str::to_owned).collect(),
            sequence: manifest.sequence,
            finished: manifest.finished,
            image: manifest.image,
            base: manifest.base,
            outputs: manifest.outputs,
            build_key: manifest.build_key,
            disk_sha256: manifest.disk_sha256,
            disk_chunks_sha256: manifest.disk_chunks_sha256,
            folder: artifact.folder().to_owned(),
        }
    }

    /// Returns the total length of all image files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.outputs.iter().map(|output| output.bytes).sum()
    }

    /// Returns the formats, in the manifest's order.
    #[must_use]
    pub fn formats(&self) -> Vec<&str> {
        self.outputs.iter().map(|output| output.format.as_str()).collect()
    }
}

impl fmt::Display for Ancestor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ancestor::Stored(summary) => summary.id.fmt(f),
            Ancestor::Gone(image) => write!(f, "{}@{} (gone)", image.name, image.version),
            Ancestor::Source(source) => f.write_str(source),
        }
    }
}
