//! A kernel beside a disk, of any bytes: its release is a name that can be a part of a path and be shown, and nothing that is
//! no kernel has an entry.

use std::io::Write;

use kiln::disk::kernel_file::{KernelFileFlaw, check_kernel, find_release};

pub fn check(bytes: &[u8]) {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("written");
    let is_elf = bytes.starts_with(b"\x7fELF");
    match check_kernel(&file) {
        Ok(()) => {}
        Err(KernelFileFlaw::NoKernel) => {}
        Err(KernelFileFlaw::NoPvhEntry) => assert!(is_elf, "an ELF kernel without its magic number"),
        Err(KernelFileFlaw::Unreadable(error)) => panic!("a file in memory cannot be read: {error}"),
    }
    if let Some(release) = find_release(&file).expect("a file in memory") {
        let is_plain = release.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
        assert!(is_plain && (1..=64).contains(&release.len()) && release != "." && release != "..", "{release:?}");
        let is_there = bytes.windows(release.len()).any(|window| window == release.as_bytes());
        assert!(is_there, "{release:?} is not in the file");
    }
}
