//! Direct boots: disks that cannot be booted so, and guests that do not come up.

use crate::support::Kiln;
use crate::support::ext4::{ext4_image, kernel};
use crate::{BOOT_TIMEOUT, STEP, refused, refused_at_once};

const FULL: &str = "help: build it with `boot = \"full\"` under [machine]";
const NO_KERNEL: &str = "help: name a kernel that is a file beside the disk as `base.kernel`";
/// The drivers of the machine and of the root, as a kernel has them that needs no modules.
const BUILTIN: &str = "kernel/virtio_pci.ko\nkernel/virtio_blk.ko\nkernel/virtio_console.ko\nkernel/ext4.ko\n";

/// A direct build over a disk with these files.
fn over(files: &[(&str, &[u8])], settings: &str, spec: &str) -> Kiln {
    let base = ext4_image(&[&[("etc/os-release", &b"ID=debian\n"[..])], files].concat());
    let machine = format!("boot = 'direct'\n{settings}");
    Kiln::new().file("base.qcow2", base).machine(&machine).spec(spec).build()
}

/// A direct build over a disk with a kernel.
fn direct(settings: &str, spec: &str) -> Kiln {
    let files = [
        ("boot/vmlinuz-6.1.9", &kernel("6.1.9 (x) #1")[..]),
        ("lib/modules/6.1.9/modules.builtin", BUILTIN.as_bytes()),
    ];
    over(&files, settings, spec)
}

#[test]
fn i3_a_kernel_without_its_modules_is_no_kernel_for_a_direct_boot() {
    let files = [
        ("boot/vmlinuz-6.1.9", &kernel("6.1.9 (x) #1")[..]),
        ("lib/modules/6.1.10/modules.builtin", BUILTIN.as_bytes()),
    ];
    refused_at_once(
        over(&files, "", STEP).fails(5).stderr_has("no Linux kernel with its modules").stderr_has(NO_KERNEL),
    );
}

#[test]
fn i3_a_kernel_without_a_driver_of_the_machine_names_it() {
    let files = [
        ("boot/vmlinuz-6.1.9", &kernel("6.1.9 (x) #1")[..]),
        ("lib/modules/6.1.9/modules.builtin", b"kernel/virtio_pci.ko\n"),
    ];
    let said = "the kernel 6.1.9 of the image has no driver `virtio_blk`";
    refused_at_once(over(&files, "", STEP).fails(5).stderr_has(said).stderr_has(FULL));
}

#[test]
fn i4_a_direct_boot_of_a_disk_without_a_kernel_says_what_to_do() {
    let kiln = Kiln::new().machine("boot = 'direct'").spec(STEP).build();
    refused_at_once(kiln.fails(5).stderr_has(FULL));
}

#[test]
fn i5_a_kernel_that_panics_ends_the_direct_boot() {
    let kiln = direct("", STEP).fake("panics-at-boot").fails(6);
    let said = "the direct boot failed: the guest's kernel panicked";
    refused(kiln.stderr_has(said).stderr_has("Unable to mount root fs").stderr_has(FULL));
}

#[test]
fn i6_a_first_process_that_gives_up_is_quoted() {
    let kiln = direct("", STEP).fake("gives-up-direct-boot").fails(6);
    let said = "the direct boot failed: no block device with the serial `kiln-disk` appeared in the guest";
    refused(kiln.stderr_has(said).stderr_has(FULL));
}

#[test]
fn i6_a_direct_boot_that_never_speaks_is_given_up() {
    let kiln = direct(BOOT_TIMEOUT, STEP).fake("never-boots").fails(6);
    refused(kiln.stderr_has("the direct boot failed: the agent did not answer within 4s of boot").stderr_has(FULL));
}

#[test]
fn i7_a_step_that_needs_a_service_names_the_full_boot() {
    let step = "[[step]]\nrun = 'echo Running in chroot, ignoring command start; exit 1'\n";
    let kiln = direct("", step).fails(7);
    refused(kiln.stderr_has("help: no service runs in a direct boot: build with `boot = \"full\"` under [machine]"));
}
