//! Descriptions of an image for the programs that run it elsewhere: text that is generated from its manifest alone.

pub mod libvirt;
pub mod terraform;

use std::path::Path;

use crate::store::{Manifest, manifest};

/// An image file with the facts for a description.
#[derive(Debug, Clone, Copy)]
pub struct DescribedImage<'a> {
    /// Manifest of the image.
    pub manifest: &'a Manifest,
    /// The manifest's entry of the file.
    pub output: &'a manifest::ManifestOutput,
    /// Absolute path of the file.
    pub path: &'a Path,
}

impl DescribedImage<'_> {
    /// Returns `name-version`, the stem of its file names.
    #[must_use]
    pub fn stem(&self) -> String {
        format!("{}-{}", self.manifest.image.name, self.manifest.image.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an image with every character that some format has to escape.
    pub(crate) fn sample() -> (Manifest, std::path::PathBuf) {
        let mut manifest = manifest::tests::sample("web", "1.4.0", "key");
        manifest.image.description = "nginx & \"our\" <site>".into();
        (manifest, "/store/it's <web>/1.4.0/web-1.4.0.qcow2".into())
    }
}
