//! The kernel of a disk and its modules, from a file system that e2fsprogs has made.

use std::fs;
use std::path::Path;

use kiln::disk::boot_files::{
    BootDrivers, BootFiles, RootAccess, SeparateKernel, find_boot_files, find_root_access, find_root_partition,
};
use kiln::disk::linux_kernel::KernelError;
use kiln::specfile::BaseFormat;

use crate::support::ext4::kernel;
use crate::{Scratch, chain, tool};

/// Writes files below the root of the disk.
fn put(scratch: &Scratch, files: &[(&str, &[u8])]) {
    for (path, content) in files {
        let path = scratch.path("tree").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

fn read(scratch: &Scratch, drivers: &[&str], optional: &[&str]) -> Result<BootFiles, KernelError> {
    put(scratch, &[("etc/os-release", b"ID=debian\n")]);
    let disk = scratch.path("disk");
    tool("mke2fs", &["-q", "-F", "-t", "ext4", "-d", &scratch.text("tree"), &scratch.text("disk"), "16M"]);
    let chain = chain(&[(Path::new(&disk), BaseFormat::Raw)]);
    find_boot_files(&chain, drivers, optional)
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
    let found = read(&scratch, &["virtio_pci"], &["virtio_ring", "missing"]).unwrap();
    assert_eq!((found.kernel.release.as_str(), found.kernel.image), ("6.1.10", kernel("6.1.10 (x) #1")));
    let BootDrivers::Modules(modules) = found.access.drivers else { panic!("the root is readable") };
    let modules: Vec<_> = modules.iter().map(|module| (module.name.as_str(), &module.content[..])).collect();
    assert_eq!(
        modules,
        [("virtio", &b"the core"[..]), ("virtio_ring", &b"the ring"[..]), ("virtio_pci", &b"the bus"[..])]
    );
}

#[test]
fn a_disk_without_a_kernel_or_a_driver_is_an_error() {
    let scratch = Scratch::new();
    assert!(matches!(read(&scratch, &[], &[]), Err(KernelError::NoKernel)));
    let modules = "kernel/virtio.ko:\nkernel/fs/ext4/ext4.ko:\n";
    put(&scratch, &[("boot/vmlinuz", &kernel("6.1-x y")), ("lib/modules/6.1-x/modules.dep", modules.as_bytes())]);
    let error = read(&scratch, &["virtio_console"], &[]).unwrap_err();
    assert_eq!(error.to_string(), "the kernel 6.1-x of the image has no driver `virtio_console`");
    // It is in the list, and not on the disk.
    let error = read(&scratch, &["virtio"], &[]).unwrap_err();
    assert!(matches!(error, KernelError::NoDriver { .. }), "{error}");
}

/// Makes a disk with an ext4 file system for `/boot` and another one of xfs, which has the type of a root.
fn split_disk(scratch: &Scratch) -> std::path::PathBuf {
    let disk = scratch.path("disk");
    fs::File::create(&disk).unwrap().set_len(400 << 20).unwrap();
    tool(
        "sh",
        &[
            "-c",
            "printf 'label: gpt\nsize=32MiB, type=linux\ntype=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n' | sfdisk -q \"$0\"",
            &scratch.text("disk"),
        ],
    );
    tool(
        "mke2fs",
        &["-q", "-F", "-t", "ext4", "-d", &scratch.text("tree"), "-E", "offset=1048576", &scratch.text("disk"), "32M"],
    );
    tool("truncate", &["-s", "320M", &scratch.text("root")]);
    tool("mkfs.xfs", &["-q", "-f", &scratch.text("root")]);
    tool(
        "dd",
        &[
            &format!("if={}", scratch.text("root")),
            &format!("of={}", scratch.text("disk")),
            "bs=1M",
            "seek=33",
            "conv=notrunc,sparse",
            "status=none",
        ],
    );
    disk
}

#[test]
fn the_kernel_of_a_root_that_kiln_cannot_read_comes_from_boot_with_its_initrd() {
    let scratch = Scratch::new();
    put(
        &scratch,
        &[
            ("vmlinuz-6.1.9", &kernel("6.1.9 (x) #1")),
            ("initrd.img-6.1.9", b"the old one"),
            ("vmlinuz-6.1.10", &kernel("6.1.10 (x) #1")),
            ("initramfs-6.1.10.img", b"the new one"),
            // It has no initrd.
            ("vmlinuz-7.0", &kernel("7.0 (x) #1")),
        ],
    );
    let disk = split_disk(&scratch);
    let found = find_boot_files(&chain(&[(&disk, BaseFormat::Raw)]), &["virtio_pci"], &[]).unwrap();
    assert_eq!(
        (found.kernel.release.as_str(), found.access.root.number, found.access.root.file_system),
        ("6.1.10", 2, "xfs")
    );
    assert_eq!(found.access.drivers, BootDrivers::Initrd(b"the new one".to_vec()));
    for initrd in ["initrd.img-6.1.9", "initramfs-6.1.10.img"] {
        fs::remove_file(scratch.path("tree").join(initrd)).unwrap();
    }
    let disk = split_disk(&scratch);
    let error = find_boot_files(&chain(&[(&disk, BaseFormat::Raw)]), &["virtio_pci"], &[]).unwrap_err();
    assert!(matches!(error, KernelError::NoInitrd), "{error}");
}

/// Finds the root of a disk and the drivers of a kernel that is not on it.
fn access(scratch: &Scratch, initrd: Option<&[u8]>) -> Result<RootAccess, KernelError> {
    put(scratch, &[("etc/os-release", b"ID=debian\n")]);
    let disk = scratch.path("disk");
    tool("mke2fs", &["-q", "-F", "-t", "ext4", "-d", &scratch.text("tree"), &scratch.text("disk"), "16M"]);
    let kernel = SeparateKernel { release: Some("6.1.9".into()), initrd: initrd.map(<[u8]>::to_vec) };
    let chain = chain(&[(Path::new(&disk), BaseFormat::Raw)]);
    assert_eq!(find_root_partition(&chain), Some(0), "the whole disk");
    find_root_access(&chain, kernel, &["virtio_pci"], &["virtio_rng"])
}

#[test]
fn a_kernel_beside_a_disk_has_modules_of_the_disk_or_an_initrd_or_all_built_in() {
    let scratch = Scratch::new();
    let none = access(&scratch, None).unwrap();
    assert_eq!((none.drivers, none.root.number), (BootDrivers::Modules(Vec::new()), 0));
    assert_eq!(access(&scratch, Some(b"initrd")).unwrap().drivers, BootDrivers::Initrd(b"initrd".to_vec()));
    // Modules of another release are not its own.
    put(&scratch, &[("lib/modules/6.1.10/modules.builtin", b"kernel/virtio_pci.ko\n")]);
    assert_eq!(access(&scratch, None).unwrap().drivers, BootDrivers::Modules(Vec::new()));
    // Without a list of what is built in, what is no module counts as built in.
    put(
        &scratch,
        &[("lib/modules/6.1.9/modules.dep", b"a/virtio-rng.ko:\n"), ("lib/modules/6.1.9/a/virtio-rng.ko", b"rng")],
    );
    let BootDrivers::Modules(modules) = access(&scratch, Some(b"initrd")).unwrap().drivers else {
        panic!("modules fit")
    };
    assert_eq!(modules.iter().map(|module| module.name.as_str()).collect::<Vec<_>>(), ["virtio_rng"]);
    put(&scratch, &[("lib/modules/6.1.9/modules.builtin", b"kernel/ext4.ko\n")]);
    assert_eq!(access(&scratch, Some(b"initrd")).unwrap().drivers, BootDrivers::Initrd(b"initrd".to_vec()));
    let error = access(&scratch, None).unwrap_err();
    assert!(error.to_string().starts_with("the kernel 6.1.9 beside the image has no driver `virtio_pci`"), "{error}");
}
