//! The kernel beside a base image, which QEMU starts in place of firmware and boot loader.

use std::path::PathBuf;

use crate::digest::{FileStamp, Sha256Digest};

use super::machine::MachineKernel;

/// The console that kiln reads.
const CONSOLE: &str = "console=ttyS0";

/// A kernel beside a base image, as inspected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFacts {
    /// The kernel.
    pub image: HashedFile,
    /// Its initrd, if it has one.
    pub initrd: Option<HashedFile>,
    /// Its whole command line.
    pub cmdline: String,
}

/// A file of this host with its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashedFile {
    /// Path of the file.
    pub path: PathBuf,
    /// SHA-256 digest of the file.
    pub sha256: Sha256Digest,
    /// The state of the file when it was hashed.
    pub stamp: FileStamp,
}

impl KernelFacts {
    /// Returns the files, the kernel first.
    pub fn files(&self) -> impl Iterator<Item = &HashedFile> {
        std::iter::once(&self.image).chain(&self.initrd)
    }

    /// Returns what a machine starts.
    #[must_use]
    pub fn for_machine(&self) -> MachineKernel {
        MachineKernel {
            image: self.image.path.clone(),
            initrd: self.initrd.as_ref().map(|initrd| initrd.path.clone()),
            cmdline: self.cmdline.clone(),
        }
    }
}

/// Returns whether a command line names the root.
#[must_use]
pub fn names_root(cmdline: &str) -> bool {
    cmdline.split_whitespace().any(|parameter| parameter.starts_with("root="))
}

/// Adds the console that kiln reads and, if the partition of the root is known and the command line names none, the root; 0 is
/// the whole disk. The console comes first: of several, the last one is `/dev/console`.
#[must_use]
pub fn complete_cmdline(given: &str, root: Option<u32>) -> String {
    let parameters: Vec<&str> = given.split_whitespace().collect();
    let has_console =
        parameters.iter().any(|parameter| *parameter == CONSOLE || parameter.starts_with("console=ttyS0,"));
    let has_mode = parameters.iter().any(|parameter| matches!(*parameter, "ro" | "rw"));
    let mut words = Vec::new();
    if !has_console {
        words.push(CONSOLE.to_owned());
    }
    if !given.trim().is_empty() {
        words.push(given.trim().to_owned());
    }
    if let Some(root) = root.filter(|_| !names_root(given)) {
        words.push(if root == 0 { "root=/dev/vda".to_owned() } else { format!("root=/dev/vda{root}") });
        words.extend((!has_mode).then(|| "rw".to_owned()));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_has_a_console_and_a_root() {
        for (given, root, whole) in [
            ("", Some(0), "console=ttyS0 root=/dev/vda rw"),
            ("quiet", Some(2), "console=ttyS0 quiet root=/dev/vda2 rw"),
            (" ro ", Some(2), "console=ttyS0 ro root=/dev/vda2"),
            ("console=ttyS0 root=/dev/vda rw", Some(1), "console=ttyS0 root=/dev/vda rw"),
            ("console=ttyS0,115200n8 root=LABEL=x", None, "console=ttyS0,115200n8 root=LABEL=x"),
            ("console=hvc0 x=\"a  b\"", None, "console=ttyS0 console=hvc0 x=\"a  b\""),
        ] {
            assert_eq!(complete_cmdline(given, root), whole);
        }
        assert!(names_root("ro root=/dev/vda") && !names_root("rootwait nfsroot=x"));
    }
}
