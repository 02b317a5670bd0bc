//! An initramfs in the "newc" format of cpio, as the kernel unpacks it.
//!
//! Source: the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`. The same entries give the same bytes.

/// The name of the last entry.
const TRAILER: &str = "TRAILER!!!";
const DIRECTORY: u32 = 0o040_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const REGULAR_FILE: u32 = 0o100_000;

/// An initramfs that is being written.
#[derive(Debug, Default)]
pub struct InitramfsWriter {
    bytes: Vec<u8>,
    inodes: u32,
}

/// The fields of an entry's header that differ between the entries of an initramfs.
#[derive(Debug, Default, Clone, Copy)]
struct EntryFields {
    mode: u32,
    /// The number of the device, for a device.
    device: (u32, u32),
}

impl InitramfsWriter {
    /// Adds a directory. Its parent comes first.
    pub fn add_directory(&mut self, path: &str) {
        self.add(path, EntryFields { mode: DIRECTORY, ..EntryFields::default() }, &[]);
    }

    /// Adds a character device.
    pub fn add_device(&mut self, path: &str, major: u32, minor: u32) {
        self.add(path, EntryFields { mode: CHARACTER_DEVICE, device: (major, minor) }, &[]);
    }

    /// Adds a regular file with these permission bits.
    pub fn add_file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.add(path, EntryFields { mode: REGULAR_FILE | permissions, ..EntryFields::default() }, content);
    }

    /// Returns the whole archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.add(TRAILER, EntryFields::default(), &[]);
        self.bytes
    }

    fn add(&mut self, path: &str, fields: EntryFields, content: &[u8]) {
        let name = path.trim_start_matches('/');
        self.inodes += 1;
        let (major, minor) = fields.device;
        let header = [
            self.inodes,
            fields.mode,
            0, // owner
            0, // group
            1, // links
            0, // time
            length(content.len()),
            0,
            0,
            major,
            minor,
            length(name.len() + 1),
            0, // no checksum
        ];
        self.bytes.extend(b"070701");
        for field in header {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Returns a length as the header holds it. The limits of everything that goes into an initramfs are far below 4 GiB.
fn length(length: usize) -> u32 {
    u32::try_from(length).expect("a file of an initramfs is shorter than 4 GiB")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn cpio_reads_what_was_written() {
        let mut writer = InitramfsWriter::default();
        writer.add_directory("/kiln");
        writer.add_file("/kiln/boot", 0o644, b"root 1 ext4\n");
        writer.add_file("/init", 0o755, b"x");
        let archive = writer.finish();
        assert!(archive.len().is_multiple_of(4));
        let folder = tempfile::tempdir().unwrap();
        let mut cpio = Command::new("cpio");
        cpio.args(["-i", "--quiet"]).current_dir(folder.path()).stdin(Stdio::piped());
        let mut child = cpio.spawn().expect("cpio is installed (scripts/setup)");
        child.stdin.take().unwrap().write_all(&archive).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(std::fs::read_to_string(folder.path().join("kiln/boot")).unwrap(), "root 1 ext4\n");
        assert_eq!(std::fs::read_to_string(folder.path().join("init")).unwrap(), "x");
    }
}
