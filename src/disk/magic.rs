//! Which disk formats a file's bytes look like, whatever its name or its spec says.
//!
//! A file that looks like two formats at once is how a reader that guesses is made to open host files (CVE-2024-40767
//! and its family), so all signatures are looked for, not the first.
//!
//! Sources of the offsets: QEMU's `docs/interop` for qcow2, qed and Parallels; `VMware` "Virtual Disk Format 5.0";
//! Microsoft's VHD and VHDX specifications; UEFI 2.10 section 5.3 for GPT; ECMA-119 for ISO 9660.

/// What is read from the beginning for [`find`]; the farthest signature is ISO 9660's.
pub(super) const HEAD: usize = 64 << 10;
/// What is read from the end: the footer of a VHD and of a DMG is the last sector.
pub(super) const TAIL: usize = 512;

/// A format whose signature was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// A partition table, as a raw disk has at its start.
    PartitionTable,
    /// Another disk format, by the name `qemu-img` knows it by.
    Disk(&'static str),
    /// An ISO 9660 medium.
    Iso,
    /// A compressed file or an archive.
    Packed(&'static str),
}

impl Found {
    /// As it is called in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Found::Qcow2 => "qcow2",
            Found::PartitionTable => "a raw disk",
            Found::Disk(name) | Found::Packed(name) => name,
            Found::Iso => "an ISO 9660 medium",
        }
    }
}

const AT_START: [(usize, &[u8], Found); 23] = [
    (0, b"QFI\xfb", Found::Qcow2),
    (0, b"QED\0", Found::Disk("qed")),
    (0, b"KDMV", Found::Disk("vmdk")),
    (0, b"COWD", Found::Disk("vmdk")),
    (0, b"# Disk DescriptorFile", Found::Disk("vmdk")),
    (0, b"vhdxfile", Found::Disk("vhdx")),
    (0, b"conectix", Found::Disk("vpc")),
    (0x40, b"\x7f\x10\xda\xbe", Found::Disk("vdi")),
    (0, b"LUKS\xba\xbe", Found::Disk("luks")),
    (0, b"WithoutFreeSpace", Found::Disk("parallels")),
    (0, b"WithouFreSpacExt", Found::Disk("parallels")),
    (0, b"Bochs Virtual HD Image", Found::Disk("bochs")),
    (0, b"#!/bin/sh\n#V2.0 Format", Found::Disk("cloop")),
    (512, b"EFI PART", Found::PartitionTable),
    (0x8001, b"CD001", Found::Iso),
    (0, b"\x1f\x8b", Found::Packed("gzip")),
    (0, b"\xfd7zXZ\0", Found::Packed("xz")),
    (0, b"\x28\xb5\x2f\xfd", Found::Packed("zstd")),
    (0, b"BZh", Found::Packed("bzip2")),
    (0, b"PK\x03\x04", Found::Packed("zip")),
    (0, b"7z\xbc\xaf\x27\x1c", Found::Packed("7z")),
    (257, b"ustar", Found::Packed("tar")),
    (0, b"hsqs", Found::Packed("squashfs")),
];

const AT_END: [(&[u8], Found); 2] = [(b"conectix", Found::Disk("vpc")), (b"koly", Found::Disk("dmg"))];

/// Every format the bytes look like, each once.
///
/// The end is looked at only where the beginning is not qcow2's: the last sector of a qcow2 file is the guest's data,
/// and a guest may well keep a VHD.
pub(super) fn find(head: &[u8], tail: &[u8]) -> Vec<Found> {
    let mut found = Vec::new();
    for (at, bytes, format) in AT_START {
        if head.get(at..).is_some_and(|rest| rest.starts_with(bytes)) && !found.contains(&format) {
            found.push(format);
        }
    }
    let ends = AT_END.iter().filter(|(bytes, format)| tail.starts_with(bytes) && !found.contains(format));
    let ends: Vec<Found> = ends.map(|(_, format)| *format).collect();
    if !found.contains(&Found::Qcow2) {
        found.extend(ends);
    }
    found
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
        assert_eq!(find(&[0; 512], b"conectix"), [Found::Disk("vpc")]);
        assert_eq!(find(b"QFI\xfb", b"conectix"), [Found::Qcow2]);
        assert_eq!(find(&[], &[]), []);
    }
}
