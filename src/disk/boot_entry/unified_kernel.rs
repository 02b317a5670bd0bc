//! Reads the sections of a unified kernel image, a PE file with the command line of its kernel.
//!
//! Sources: the PE format's "COFF File Header" and "Section Table"; UAPI.5, "Unified Kernel Image".

use std::collections::HashMap;

use crate::disk::bytes::{le16, le32};
use crate::disk::tree::Tree;

/// How many bytes of the beginning of a file are read; the section table is within them.
const HEAD: usize = 16 << 10;
/// The longest section that is read, in bytes.
const MAX_SECTION: u32 = 64 << 10;
/// The highest offset of a section, in bytes: a file is read from its beginning.
const MAX_OFFSET: u32 = 512 << 20;
/// The sections that are read.
const WANTED: [&str; 2] = [".cmdline", ".osrel"];

/// The strings in a unified kernel image.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct UnifiedKernel {
    /// The command line; `None` if the image has several profiles.
    pub(super) command_line: Option<String>,
    /// The content of its os-release(5).
    pub(super) os_release: String,
}

/// A section, as described by its header.
#[derive(Debug, PartialEq, Eq)]
struct PeSection {
    name: String,
    offset: u32,
    length: u32,
}

/// Reads a unified kernel image; `None` if the file is not one.
pub(super) fn read_unified_kernel(tree: &Tree<'_>, path: &str) -> Option<UnifiedKernel> {
    let head = tree.read_range(path, 0, HEAD).ok().flatten()?;
    let sections = read_sections(&head)?;
    let has_profiles = sections.iter().any(|section| section.name == ".profile");
    let mut texts: HashMap<&str, String> = HashMap::new();
    for section in sections.iter().filter(|section| WANTED.contains(&section.name.as_str())) {
        if section.length > MAX_SECTION || section.offset > MAX_OFFSET {
            return None;
        }
        let bytes = tree.read_range(path, section.offset.into(), section.length as usize).ok().flatten()?;
        let text = String::from_utf8_lossy(&bytes);
        texts.entry(&section.name).or_insert_with(|| text.trim_matches(['\0', '\n', ' ']).to_owned());
    }
    let command_line = texts.remove(".cmdline").unwrap_or_default();
    let os_release = texts.remove(".osrel").unwrap_or_default();
    Some(UnifiedKernel { command_line: (!has_profiles).then_some(command_line), os_release })
}

/// Reads the section table of a PE file.
fn read_sections(head: &[u8]) -> Option<Vec<PeSection>> {
    let header = usize::try_from(le32(head, 0x3c)?).ok()?;
    let coff = head.get(header..)?.strip_prefix(b"PE\0\0").filter(|_| head.starts_with(b"MZ"))?;
    let count = usize::from(le16(coff, 2)?);
    let table = coff.get(20 + usize::from(le16(coff, 16)?)..)?;
    let entries: Vec<PeSection> = table.chunks_exact(40).take(count).filter_map(read_section).collect();
    (entries.len() == count).then_some(entries)
}

fn read_section(entry: &[u8]) -> Option<PeSection> {
    let name = entry.get(..8)?.split(|byte| *byte == 0).next()?;
    // The size in memory is exact; the size in the file is rounded up.
    let length = le32(entry, 8)?.min(le32(entry, 16)?);
    Some(PeSection { name: String::from_utf8_lossy(name).into_owned(), offset: le32(entry, 20)?, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_table_of_a_pe_file_is_read() {
        let mut head = vec![0; 0x200];
        head[..2].copy_from_slice(b"MZ");
        head[0x3c] = 0x80;
        head[0x80..0x84].copy_from_slice(b"PE\0\0");
        head[0x86] = 1;
        head[0x94] = 0x10;
        let entry = 0x80 + 24 + 0x10;
        head[entry..entry + 8].copy_from_slice(b".cmdline");
        head[entry + 8] = 5;
        head[entry + 17] = 2;
        head[entry + 21] = 4;
        let expected = PeSection { name: ".cmdline".into(), offset: 0x400, length: 5 };
        assert_eq!(read_sections(&head), Some(vec![expected]));
        head[0x86] = 200;
        assert_eq!(read_sections(&head), None, "more sections than there is room for");
        assert_eq!(read_sections(b"MZxxxx"), None);
        assert_eq!(read_sections(&[]), None);
    }
}
