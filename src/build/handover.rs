//! An image, described for the programs that run it elsewhere: text made of its manifest alone.

pub mod libvirt;
pub mod terraform;

use std::path::Path;

use crate::store::{Manifest, manifest};

/// An image file that a description is about.
#[derive(Debug, Clone, Copy)]
pub struct Described<'a> {
    /// What is known of the image.
    pub manifest: &'a Manifest,
    /// The output it is.
    pub output: &'a manifest::Output,
    /// Where it lies, absolute.
    pub path: &'a Path,
}

impl Described<'_> {
    /// `name-version`, as its files are called.
    #[must_use]
    pub fn stem(&self) -> String {
        format!("{}-{}", self.manifest.image.name, self.manifest.image.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image with everything that has to be escaped somewhere.
    pub(crate) fn sample() -> (Manifest, std::path::PathBuf) {
        let mut manifest = manifest::tests::sample("web", "1.4.0", "key");
        manifest.image.description = "nginx & \"our\" <site>".into();
        (manifest, "/store/it's <web>/1.4.0/web-1.4.0.qcow2".into())
    }
}
