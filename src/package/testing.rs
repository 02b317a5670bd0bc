//! Common parts of the tests of packages: facts, and a reader of plain archives that is not the writer.

use crate::size::ByteSize;
use crate::specfile::FirmwareKind;

use super::PackageFacts;
use super::content::PackageContent;

/// Returns an image with every character that needs care in some format.
pub(super) fn facts() -> PackageFacts {
    PackageFacts {
        name: "web".into(),
        version: "1.4.0+b1".into(),
        description: "nginx & \"our\" <site>".into(),
        disk_size: (2 << 30) + (1 << 20),
        cpus: 2,
        memory: ByteSize::mib(1536),
        firmware: FirmwareKind::Bios,
        time: 1_767_323_045,
    }
}

/// A member of an archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) kind: char,
    pub(super) owner: (u64, u64),
    pub(super) modified: u64,
    pub(super) data: Vec<u8>,
}

/// Reads an archive of small members.
pub(super) fn members(archive: &[u8]) -> Vec<Member> {
    let mut found = Vec::new();
    let mut at = 0;
    while archive[at] != 0 {
        let header = &archive[at..at + 512];
        let text = |from: usize, to: usize| {
            let field = header[from..to].split(|byte| matches!(byte, 0 | b' ')).next().unwrap_or_default();
            String::from_utf8(field.to_vec()).unwrap()
        };
        let number = |from, to| u64::from_str_radix(&text(from, to), 8).unwrap();
        let sum =
            header.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) });
        assert_eq!(sum.sum::<u64>(), number(148, 156), "the checksum of a header");
        let size = usize::try_from(number(124, 136)).unwrap();
        found.push(Member {
            name: text(0, 100),
            kind: header[156].into(),
            owner: (number(108, 116), number(116, 124)),
            modified: number(136, 148),
            data: archive[at + 512..at + 512 + size].to_vec(),
        });
        at += 512 + size.next_multiple_of(512);
    }
    assert!(
        archive[at..].iter().all(|byte| *byte == 0)
            && archive.len() - at >= 1024
            && archive.len().is_multiple_of(10240)
    );
    found
}

pub(super) fn members_of(archive: &PackageContent) -> Vec<Member> {
    members(&archive.to_vec().unwrap())
}

pub(super) fn names(members: &[Member]) -> Vec<&str> {
    members.iter().map(|member| &*member.name).collect()
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    crate::digest::Sha256Digest::of(bytes).to_string()
}
