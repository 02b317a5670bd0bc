//! Examines a Linux kernel that is a file of this host, beside a disk.
//!
//! Sources: the kernel's `Documentation/arch/x86/boot.rst` (the setup header of a `bzImage`); ELF-64 Object File Format;
//! `include/standard-headers/elf.h` and `hw/i386/x86-common.c` of QEMU, which starts an ELF kernel at the address in its note
//! `XEN_ELFNOTE_PHYS32_ENTRY` (PVH, `CONFIG_PVH` of the kernel) and in no other way.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::linux_kernel::{HEAD, MAX_RELEASE, has_setup_header, parse_release, plain_release};

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const ELFCLASS64: u8 = 2;
const EM_X86_64: u16 = 62;
const PT_NOTE: u32 = 4;
/// The most program headers that are read; a kernel has about five.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// The most notes that are read, in bytes; a kernel has some hundreds.
const MAX_NOTES: u64 = 1 << 20;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// How the string begins in an ELF kernel that `/proc/version` shows.
const BANNER: &[u8] = b"Linux version ";
/// How much of an ELF kernel is searched at a time.
const PIECE: usize = 1 << 20;
/// The longest kernel that is searched for its release, in bytes: with debug information, some have several hundred MiB.
const MAX_SEARCH: u64 = 2 << 30;

/// The header of an ELF file.
#[repr(C)]
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
struct ElfHeader {
    magic: [u8; 4],
    class: u8,
    ident: [u8; 11],
    e_type: U16,
    e_machine: U16,
    e_version: U32,
    e_entry: U64,
    e_phoff: U64,
    e_shoff: U64,
    e_flags: U32,
    e_ehsize: U16,
    e_phentsize: U16,
    e_phnum: U16,
}

/// The header of a segment of an ELF file.
#[repr(C)]
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
struct ProgramHeader {
    p_type: U32,
    p_flags: U32,
    p_offset: U64,
    p_vaddr: U64,
    p_paddr: U64,
    p_filesz: U64,
}

/// The beginning of a note whose name has four bytes.
#[repr(C)]
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
struct ShortNote {
    n_namesz: U32,
    n_descsz: U32,
    n_type: U32,
    name: [u8; 4],
}

/// The reason why QEMU cannot start a file as a kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelFileFlaw {
    /// It is no Linux kernel for x86-64.
    #[error("is no Linux kernel: it is neither a bzImage nor an ELF file for x86-64")]
    NoKernel,
    /// It is an ELF kernel that QEMU does not start.
    #[error("is an ELF kernel without a PVH entry, which QEMU needs")]
    NoPvhEntry,
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
}

/// Checks that QEMU can start a file as a kernel.
///
/// # Errors
/// When it cannot, or the file cannot be read.
pub fn check_kernel(file: &File) -> Result<(), KernelFileFlaw> {
    let head = read_head(file)?;
    if has_setup_header(&head) {
        return Ok(());
    }
    let elf = elf_header(&head).ok_or(KernelFileFlaw::NoKernel)?;
    if has_pvh_entry(file, elf)? { Ok(()) } else { Err(KernelFileFlaw::NoPvhEntry) }
}

/// Returns the release of a kernel, as `uname -r` prints it; `None` if the file does not show it.
///
/// # Errors
/// When the file cannot be read.
pub fn find_release(file: &File) -> io::Result<Option<String>> {
    let head = read_head(file)?;
    if has_setup_header(&head) { Ok(parse_release(&head)) } else { find_banner(file) }
}

fn read_head(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD];
    let count = read_some(file, &mut head, 0)?;
    head.truncate(count);
    Ok(head)
}

/// Reads as much as there is, and returns how much that was. An offset that no file can have is behind the end of the file.
fn read_some(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() && offset <= i64::MAX.cast_unsigned() - buffer.len() as u64 {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn elf_header(head: &[u8]) -> Option<&ElfHeader> {
    let (header, _) = ElfHeader::ref_from_prefix(head).ok()?;
    let is_x86_64 = header.magic == ELF_MAGIC && header.class == ELFCLASS64 && header.e_machine.get() == EM_X86_64;
    is_x86_64.then_some(header)
}

/// Returns whether a segment of notes has the note of a PVH entry.
fn has_pvh_entry(file: &File, elf: &ElfHeader) -> io::Result<bool> {
    for number in 0..elf.e_phnum.get().min(MAX_PROGRAM_HEADERS) {
        let offset = elf.e_phoff.get().saturating_add(u64::from(number) * u64::from(elf.e_phentsize.get()));
        let mut bytes = [0; size_of::<ProgramHeader>()];
        read_some(file, &mut bytes, offset)?;
        let header: ProgramHeader = zerocopy::transmute!(bytes);
        if header.p_type.get() == PT_NOTE && has_pvh_note(&read_notes(file, &header)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read_notes(file: &File, header: &ProgramHeader) -> io::Result<Vec<u8>> {
    let length = usize::try_from(header.p_filesz.get().min(MAX_NOTES)).expect("at most a mebibyte");
    let mut notes = vec![0; length];
    let count = read_some(file, &mut notes, header.p_offset.get())?;
    notes.truncate(count);
    Ok(notes)
}

/// Looks for the note at every place where one can begin, whatever the notes before it are.
fn has_pvh_note(notes: &[u8]) -> bool {
    (0..notes.len()).step_by(4).filter_map(|at| ShortNote::ref_from_prefix(&notes[at..]).ok()).any(|(note, _)| {
        note.name == *b"Xen\0" && note.n_namesz.get() == 4 && note.n_type.get() == XEN_ELFNOTE_PHYS32_ENTRY
    })
}

/// Searches an ELF kernel for its banner, and returns the release in it.
fn find_banner(file: &File) -> io::Result<Option<String>> {
    let longest = BANNER.len() + MAX_RELEASE + 1;
    let mut piece = vec![0; PIECE + longest];
    let mut at = 0;
    while at < MAX_SEARCH {
        let count = read_some(file, &mut piece, at)?;
        if let Some(release) = release_of_banner(&piece[..count]) {
            return Ok(Some(release));
        }
        if count < piece.len() {
            break;
        }
        at += PIECE as u64;
    }
    Ok(None)
}

/// Returns the release in the first banner with one; the kernel also has strings that only begin as a banner does.
fn release_of_banner(bytes: &[u8]) -> Option<String> {
    let windows = bytes.windows(BANNER.len()).enumerate();
    let mut places = windows.filter(|(_, window)| *window == BANNER).map(|(place, _)| place + BANNER.len());
    places.find_map(|place| release_at(&bytes[place..]))
}

/// Returns the release that these bytes begin with, before a space.
fn release_at(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().take(MAX_RELEASE + 1).position(|byte| *byte == b' ')?;
    let is_number = bytes[0].is_ascii_digit();
    if is_number { plain_release(&bytes[..end]) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// An ELF kernel with one segment of notes, which has a note of this type.
    fn elf(note: u32) -> Vec<u8> {
        let mut elf = vec![0; 256];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 4;
        elf[72] = 128;
        elf[96] = 40;
        for (at, word) in [(128, 4), (132, 4), (136, 6), (148, 4), (152, 8), (156, note)] {
            elf[at..at + 4].copy_from_slice(&u32::to_le_bytes(word));
        }
        elf[140..144].copy_from_slice(b"GNU\0");
        elf[160..164].copy_from_slice(b"Xen\0");
        elf
    }

    #[test]
    fn i8_only_what_qemu_starts_is_a_kernel() {
        let flaw = |bytes: &[u8]| check_kernel(&file(bytes)).err().map(|flaw| flaw.to_string());
        assert_eq!(flaw(&elf(XEN_ELFNOTE_PHYS32_ENTRY)), None);
        assert!(flaw(&elf(1)).is_some_and(|flaw| flaw.contains("without a PVH entry")));
        let mut huge = elf(1);
        huge[32..40].fill(0xff);
        huge[56..58].fill(0xff);
        assert!(flaw(&huge).is_some_and(|flaw| flaw.contains("without a PVH entry")));
        let text = vec![b'x'; 70_000];
        let mut arm = elf(XEN_ELFNOTE_PHYS32_ENTRY);
        arm[18] = 183;
        for bad in [&arm[..], b"", b"\x7fELF", &text] {
            assert!(flaw(bad).is_some_and(|flaw| flaw.contains("no Linux kernel")));
        }
    }

    #[test]
    fn the_release_of_an_elf_kernel_is_in_its_banner() {
        let find = |bytes: &[u8]| find_release(&file(bytes)).unwrap();
        let with = |text: &str, at: usize| [&elf(18)[..], &vec![0; at], text.as_bytes()].concat();
        let banner = "Linux version 6.1.9-fc (build@host) #1";
        for at in [0, PIECE - 300, PIECE, PIECE + 10] {
            assert_eq!(find(&with(banner, at)).as_deref(), Some("6.1.9-fc"), "at {at}");
        }
        assert_eq!(find(&with(&format!("Linux version %s\0{banner}"), 9)).as_deref(), Some("6.1.9-fc"));
        for bad in ["Linux version ", "Linux version 6.1.9", "Linux version 6/../x y", "Linux version 6\u{1b}[2J x"] {
            assert_eq!(find(&with(bad, 0)), None, "{bad}");
        }
    }
}
