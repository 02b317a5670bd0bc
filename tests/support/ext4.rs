//! Base images of one ext4 file system without a table of partitions, and kernels for them.

use std::fs;
use std::process::Command;

use super::qemu_img;

/// A qcow2 file with these files in it.
pub fn ext4_image(files: &[(&str, &[u8])]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    for (file, content) in files {
        let file = folder.path().join("tree").join(file);
        fs::create_dir_all(file.parent().expect("below the tree")).expect("made");
        fs::write(file, content).expect("written");
    }
    let made =
        Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d", &path("tree"), &path("raw"), "16M"]).output();
    let made = made.expect("mke2fs is installed (scripts/setup)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    qemu_img(&["convert", "-O", "qcow2", &path("raw"), &path("qcow2")]);
    fs::read(path("qcow2")).expect("made")
}

/// The beginning of a kernel of this version, as the boot protocol has it (`Documentation/arch/x86/boot.rst`).
pub fn kernel(version: &str) -> Vec<u8> {
    let mut image = vec![0; 64 << 10];
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x3000_u16.to_le_bytes());
    image[0x3200..0x3200 + version.len()].copy_from_slice(version.as_bytes());
    image
}
