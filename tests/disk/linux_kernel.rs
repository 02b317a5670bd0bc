//! The kernel of a disk and its modules, from a file system that e2fsprogs has made.

use std::fs;
use std::path::Path;

use kiln::disk::linux_kernel::{KernelError, LinuxKernel, read_kernel};
use kiln::disk::tree::Tree;
use kiln::specfile::BaseFormat;

use crate::{Scratch, chain, tool};

/// The beginning of a kernel of this version, as the boot protocol has it.
fn kernel(version: &str) -> Vec<u8> {
    let mut image = vec![0; 64 << 10];
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x3000_u16.to_le_bytes());
    image[0x3200..0x3200 + version.len()].copy_from_slice(version.as_bytes());
    image
}

/// Writes files below the root of the disk.
fn put(scratch: &Scratch, files: &[(&str, &[u8])]) {
    for (path, content) in files {
        let path = scratch.path("tree").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

fn read(scratch: &Scratch, drivers: &[&str], optional: &[&str]) -> Result<LinuxKernel, KernelError> {
    put(scratch, &[("etc/os-release", b"ID=debian\n")]);
    let disk = scratch.path("disk");
    tool("mke2fs", &["-q", "-F", "-t", "ext4", "-d", &scratch.text("tree"), &scratch.text("disk"), "16M"]);
    let chain = chain(&[(Path::new(&disk), BaseFormat::Raw)]);
    read_kernel(&Tree::open(&chain).unwrap(), drivers, optional)
}

#[test]
fn the_newest_kernel_with_modules_is_read_and_modules_come_after_those_they_need() {
    let scratch = Scratch::new();
    let zstd = zstd::bulk::compress(b"the ring", 3).unwrap();
    put(
        &scratch,
        &[
            ("boot/vmlinuz-6.1.9", &kernel("6.1.9 (x) #1")),
            ("boot/vmlinuz-6.1.10", &kernel("6.1.10 (x) #1")),
            // Its modules are not there.
            ("boot/vmlinuz-7.0", &kernel("7.0 (x) #1")),
            ("boot/vmlinuz-no-kernel", b"text"),
            ("usr/lib/modules/6.1.9/modules.dep", b""),
            (
                "usr/lib/modules/6.1.10/modules.dep",
                b"kernel/virtio-pci.ko: kernel/virtio_ring.ko.zst kernel/virtio.ko\n\
                  kernel/virtio_ring.ko.zst: kernel/virtio.ko\nkernel/virtio.ko:\n",
            ),
            ("usr/lib/modules/6.1.10/modules.builtin", b"kernel/fs/ext4/ext4.ko\n"),
            ("usr/lib/modules/6.1.10/kernel/virtio-pci.ko", b"the bus"),
            ("usr/lib/modules/6.1.10/kernel/virtio_ring.ko.zst", &zstd),
            ("usr/lib/modules/6.1.10/kernel/virtio.ko", b"the core"),
        ],
    );
    std::os::unix::fs::symlink("usr/lib", scratch.path("tree").join("lib")).unwrap();
    let found = read(&scratch, &["virtio_pci", "ext4"], &["virtio_ring", "missing"]).unwrap();
    assert_eq!((found.release.as_str(), found.image), ("6.1.10", kernel("6.1.10 (x) #1")));
    let modules: Vec<_> = found.modules.iter().map(|module| (module.name.as_str(), &module.content[..])).collect();
    assert_eq!(
        modules,
        [("virtio", &b"the core"[..]), ("virtio_ring", &b"the ring"[..]), ("virtio_pci", &b"the bus"[..])]
    );
}

#[test]
fn a_disk_without_a_kernel_or_a_driver_is_an_error() {
    let scratch = Scratch::new();
    assert!(matches!(read(&scratch, &["ext4"], &[]), Err(KernelError::NoKernel)));
    let modules = "kernel/virtio.ko:\n";
    put(&scratch, &[("boot/vmlinuz", &kernel("6.1-x y")), ("lib/modules/6.1-x/modules.dep", modules.as_bytes())]);
    let error = read(&scratch, &["virtio_console"], &[]).unwrap_err();
    assert_eq!(error.to_string(), "the kernel 6.1-x of the image has no driver `virtio_console`");
    // It is in the list, and not on the disk.
    let error = read(&scratch, &["virtio"], &[]).unwrap_err();
    assert!(matches!(error, KernelError::NoDriver { .. }), "{error}");
}
