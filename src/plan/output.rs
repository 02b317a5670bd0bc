//! The files that a build publishes: disk files, which the conversion writes, and the files that packages around them
//! consist of.
//!
//! ```text
//! [[output]] qcow2 ───────┐
//! [[output]] a package ───┴─> DiskFile (written and read back once) ─┬─> published as it is
//!                                                                    └─> the package's own files, produced from it
//! ```
//! A disk file that no output publishes is written to the scratch folder and removed with it.

use crate::specfile::{self, Compression, DiskFormat, OutputFormat};

/// A file that holds the whole disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    /// Name of the file: in the version's folder if it is published, else in the scratch folder.
    pub file: String,
    /// Format of the file.
    pub format: DiskFormat,
    /// Compression inside the file.
    pub compression: Compression,
    /// Whether the file is among the version's files.
    pub published: bool,
}

impl DiskFile {
    /// Returns whether most of the file can be taken from the packed clusters of the base image.
    pub(crate) fn uses_base_twin(&self) -> bool {
        (self.format, self.compression) == (DiskFormat::Qcow2, Compression::Zstd)
    }
}

/// An output of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedOutput {
    /// Format of the output.
    pub format: OutputFormat,
    /// Compression of the disk inside.
    pub compression: Compression,
    /// Index in [`Outputs::disks`] of the file that it is, or that it is produced from.
    pub disk: usize,
    /// Names of its other files, in the version's folder: one for each of [`OutputFormat::besides`].
    pub besides: Vec<String>,
}

/// All outputs of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outputs {
    /// The outputs that the spec asks for, in its order; never empty.
    pub all: Vec<PlannedOutput>,
    /// The disk files that they need, with no two of the same format and compression.
    pub disks: Vec<DiskFile>,
}

/// A published file, as the manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published<'a> {
    /// Name of the file in the version's folder.
    pub file: &'a str,
    /// Name of its format: that of the disk, or of the package that the file belongs to.
    pub format: &'static str,
    /// Size of the disk in it, bytes.
    pub virtual_bytes: u64,
}

/// Returns a note on a package of an image whose kernel is beside its disk; `None` for a format that is no package.
#[must_use]
pub fn without_kernel(format: OutputFormat) -> Option<String> {
    let is_package = !format.besides().is_empty();
    is_package.then(|| format!("the {} package holds the disk alone, not the kernel that starts it", format.name()))
}

impl Outputs {
    /// Names every file; each name begins with `stem`.
    pub fn new(stem: &str, wanted: &[specfile::OutputSpec]) -> Self {
        let mut outputs = Self { all: Vec::new(), disks: Vec::new() };
        for output in wanted {
            let disk = outputs.disk(stem, output);
            let besides = output.format.besides().iter().map(|extension| format!("{stem}.{extension}")).collect();
            let specfile::OutputSpec { format, compression, .. } = *output;
            outputs.all.push(PlannedOutput { format, compression, disk, besides });
        }
        outputs
    }

    /// Returns the index of the disk file that an output needs, which may already exist for another output.
    fn disk(&mut self, stem: &str, output: &specfile::OutputSpec) -> usize {
        let format = output.format.disk();
        let compression = output.compression;
        let same = self.disks.iter().position(|disk| (disk.format, disk.compression) == (format, compression));
        let index = same.unwrap_or(self.disks.len());
        if index == self.disks.len() {
            // The first file of a format has the plain name; one with another compression has that in its name.
            let plain = format!("{stem}.{}", format.name());
            let taken = self.disks.iter().any(|disk| disk.file == plain);
            let file = if taken { format!("{stem}.{}.{}", compression.name(), format.name()) } else { plain };
            self.disks.push(DiskFile { file, format, compression, published: false });
        }
        self.disks[index].published |= output.format.keeps_disk();
        index
    }

    /// Returns the files of one output, its disk before the others. Never empty; a disk may belong to another output as
    /// well.
    pub fn files<'a>(&'a self, output: &'a PlannedOutput) -> Vec<&'a str> {
        let disk = Some(&self.disks[output.disk].file).filter(|_| output.format.keeps_disk());
        disk.into_iter().chain(&output.besides).map(String::as_str).collect()
    }

    /// Returns every published file once, as the manifest lists them.
    pub fn published(&self, disk_size: u64) -> Vec<Published<'_>> {
        let mut listed: Vec<Published<'_>> = Vec::new();
        for output in &self.all {
            let disk = &self.disks[output.disk];
            for file in self.files(output) {
                let format = if file == disk.file { disk.format.name() } else { output.format.name() };
                if listed.iter().all(|there| there.file != file) {
                    listed.push(Published { file, format, virtual_bytes: disk.format.virtual_size(disk_size) });
                }
            }
        }
        listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(wanted: &[(OutputFormat, Compression)]) -> Outputs {
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(format, compression)| specfile::OutputSpec {
                format: *format,
                compression: *compression,
                platforms: Vec::new(),
            })
            .collect();
        Outputs::new("web-1", &wanted)
    }

    #[test]
    fn a_disk_is_one_file_whoever_needs_it() {
        use Compression::{Zlib, Zstd};
        let qcow2 = OutputFormat::Qcow2;
        let outputs = outputs(&[(qcow2, Zstd), (qcow2, Zlib), (qcow2, Zstd), (OutputFormat::Vhd, Compression::None)]);
        assert_eq!(outputs.all.iter().map(|output| output.disk).collect::<Vec<_>>(), [0, 1, 0, 2]);
        let published = outputs.published((1 << 20) + 512);
        let listed: Vec<_> = published.iter().map(|file| (file.file, file.format, file.virtual_bytes)).collect();
        let odd = (1 << 20) + 512;
        assert_eq!(
            listed,
            [("web-1.qcow2", "qcow2", odd), ("web-1.zlib.qcow2", "qcow2", odd), ("web-1.vhd", "vhd", 2 << 20)]
        );
    }

    #[test]
    fn every_format_alone_has_a_file_and_no_two_share_a_name() {
        let mut names = std::collections::BTreeSet::new();
        for format in OutputFormat::ALL {
            let outputs = outputs(&[(*format, format.compressions()[0])]);
            assert!(!outputs.published(1 << 20).is_empty(), "{format:?}");
            for file in outputs.all[0].besides.iter().chain(&[outputs.disks[0].file.clone()]) {
                assert!(names.insert(file.clone()) || *file == outputs.disks[0].file, "{file}");
            }
        }
    }
}
