//! Recognizes the disk formats of a file's bytes, whatever its name or its spec says.
//!
//! A file that looks like two formats at once can make a reader that guesses open host files (CVE-2024-40767 and its
//! family), so all signatures are searched for, not only the first.
//!
//! Sources of the offsets: QEMU's `docs/interop` for qcow2, qed and Parallels; `VMware` "Virtual Disk Format 5.0";
//! Microsoft's VHD and VHDX specifications; UEFI 2.10 section 5.3 for GPT; ECMA-119 for ISO 9660, ECMA-167 for UDF.

/// How many bytes of the beginning [`find`] needs; the farthest signature is that of an optical medium.
pub(super) const HEAD: usize = 64 << 10;
/// How many bytes of the end [`find`] needs: the footer of a VHD and of a DMG is the last sector.
pub(super) const TAIL: usize = 512;

/// A format whose signature was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskSignature {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// A partition table, as a raw disk has at its start.
    PartitionTable,
    /// Another disk format, by its name in `qemu-img`.
    Disk(&'static str),
    /// An ISO 9660 or UDF medium.
    Iso,
    /// A compressed file or an archive.
    Packed(&'static str),
}

impl DiskSignature {
    /// Returns the name for messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DiskSignature::Qcow2 => "qcow2",
            DiskSignature::PartitionTable => "a raw disk",
            DiskSignature::Disk(name) | DiskSignature::Packed(name) => name,
            DiskSignature::Iso => "an optical medium (ISO 9660 or UDF)",
        }
    }
}

/// A guess at what a file without the signature of a disk format is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileLook {
    /// A raw disk that a BIOS boots.
    BootSector,
    /// A page of a web server, such as one that reports a missing file.
    Page,
    /// A text file.
    Text,
    /// An executable of Linux.
    Program,
    /// None of the others.
    Unknown,
}

impl FileLook {
    /// Guesses from the beginning of a file what it is.
    pub(super) fn of(start: &[u8]) -> Self {
        let text = std::str::from_utf8(&start[..start.len().min(512)]).ok();
        let text = text.filter(|text| text.chars().all(|c| !c.is_control() || c.is_whitespace()));
        match text.map(|text| text.trim_start().to_ascii_lowercase()) {
            _ if starts_at(start, BOOT_SIGNATURE) => Self::BootSector,
            _ if start.starts_with(b"\x7fELF") => Self::Program,
            Some(text) if text.starts_with("<!doctype") || text.starts_with("<html") || text.starts_with("<?xml") => {
                Self::Page
            }
            Some(_) => Self::Text,
            None => Self::Unknown,
        }
    }
}

impl std::fmt::Display for FileLook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BootSector => "a raw disk",
            Self::Page => "a web page",
            Self::Text => "a text file",
            Self::Program => "a program",
            Self::Unknown => "not a qcow2 file",
        })
    }
}

const AT_START: [(usize, &[u8], DiskSignature); 26] = [
    (0, b"QFI\xfb", DiskSignature::Qcow2),
    (0, b"QED\0", DiskSignature::Disk("qed")),
    (0, b"KDMV", DiskSignature::Disk("vmdk")),
    (0, b"COWD", DiskSignature::Disk("vmdk")),
    (0, b"# Disk DescriptorFile", DiskSignature::Disk("vmdk")),
    (0, b"vhdxfile", DiskSignature::Disk("vhdx")),
    (0, b"conectix", DiskSignature::Disk("vpc")),
    (0x40, b"\x7f\x10\xda\xbe", DiskSignature::Disk("vdi")),
    (0, b"LUKS\xba\xbe", DiskSignature::Disk("luks")),
    (0, b"WithoutFreeSpace", DiskSignature::Disk("parallels")),
    (0, b"WithouFreSpacExt", DiskSignature::Disk("parallels")),
    (0, b"Bochs Virtual HD Image", DiskSignature::Disk("bochs")),
    (0, b"#!/bin/sh\n#V2.0 Format", DiskSignature::Disk("cloop")),
    (512, b"EFI PART", DiskSignature::PartitionTable),
    (0x8001, b"CD001", DiskSignature::Iso),
    (0x8001, b"BEA01", DiskSignature::Iso),
    (0x8001, b"NSR02", DiskSignature::Iso),
    (0x8001, b"NSR03", DiskSignature::Iso),
    (0, b"\x1f\x8b", DiskSignature::Packed("gzip")),
    (0, b"\xfd7zXZ\0", DiskSignature::Packed("xz")),
    (0, b"\x28\xb5\x2f\xfd", DiskSignature::Packed("zstd")),
    (0, b"BZh", DiskSignature::Packed("bzip2")),
    (0, b"PK\x03\x04", DiskSignature::Packed("zip")),
    (0, b"7z\xbc\xaf\x27\x1c", DiskSignature::Packed("7z")),
    (257, b"ustar", DiskSignature::Packed("tar")),
    (0, b"hsqs", DiskSignature::Packed("squashfs")),
];

const AT_END: [(&[u8], DiskSignature); 2] =
    [(b"conectix", DiskSignature::Disk("vpc")), (b"koly", DiskSignature::Disk("dmg"))];

/// The last two bytes of a sector that a BIOS boots.
const BOOT_SIGNATURE: (usize, &[u8]) = (510, b"\x55\xaa");

/// Returns every format whose signature the bytes have, each once.
///
/// The end is only examined if the beginning is not qcow2's: the last sector of a qcow2 file is the guest's data, and a
/// guest may well keep a VHD. A boot signature is significant only if the beginning is qcow2's: disks, media and file
/// systems of all kinds have one.
pub(super) fn find(head: &[u8], tail: &[u8]) -> Vec<DiskSignature> {
    let mut found = Vec::new();
    for (at, bytes, format) in AT_START {
        if starts_at(head, (at, bytes)) && !found.contains(&format) {
            found.push(format);
        }
    }
    if is_vmdk_descriptor(head) && !found.contains(&DiskSignature::Disk("vmdk")) {
        found.push(DiskSignature::Disk("vmdk"));
    }
    let ends = AT_END.iter().filter(|(bytes, format)| tail.starts_with(bytes) && !found.contains(format));
    let ends: Vec<DiskSignature> = ends.map(|(_, format)| *format).collect();
    if !found.contains(&DiskSignature::Qcow2) {
        found.extend(ends);
    } else if starts_at(head, BOOT_SIGNATURE) && !found.contains(&DiskSignature::PartitionTable) {
        found.push(DiskSignature::PartitionTable);
    }
    found
}

fn starts_at(head: &[u8], (at, bytes): (usize, &[u8])) -> bool {
    head.get(at..).is_some_and(|rest| rest.starts_with(bytes))
}

/// Returns whether QEMU would take this text for a vmdk descriptor, which names files of the host: QEMU does so whatever
/// comments precede the version, and requires none.
fn is_vmdk_descriptor(head: &[u8]) -> bool {
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with(b"#"));
    first.is_some_and(|line| matches!(line, b"version=1" | b"version=2" | b"version=3"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signature_is_found_where_it_belongs() {
        for (at, bytes, format) in AT_START {
            let mut head = vec![0; HEAD];
            head[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(find(&head, &[]), [format]);
        }
        assert_eq!(find(&[0; 512], b"conectix"), [DiskSignature::Disk("vpc")]);
        assert_eq!(find(b"QFI\xfb", b"conectix"), [DiskSignature::Qcow2]);
        assert_eq!(find(&[], &[]), []);
    }

    #[test]
    fn b12_a_boot_signature_is_a_second_format_in_a_qcow2_header_alone() {
        let mut head = vec![0; HEAD];
        head[510..512].copy_from_slice(b"\x55\xaa");
        assert_eq!(find(&head, &[]), []);
        head[..4].copy_from_slice(b"QFI\xfb");
        assert_eq!(find(&head, &[]), [DiskSignature::Qcow2, DiskSignature::PartitionTable]);
    }

    #[test]
    fn b6_a_vmdk_descriptor_is_known_by_its_version_whatever_stands_before_it() {
        for text in
            ["version=1\n", "#\nversion=1\n", "# x\r\n  \r\n\nversion=2\r\n", "#Disk descriptorfile\nversion=3\nCID="]
        {
            assert_eq!(find(text.as_bytes(), &[]), [DiskSignature::Disk("vmdk")], "{text}");
        }
        for text in ["version=4\n", "a=b\nversion=1\n", "# version=1\n", "version=1 and more\n", "#", "\n"] {
            assert_eq!(find(text.as_bytes(), &[]), [], "{text}");
        }
    }
}
