//! Kernels beside a disk: files that are none, kernels that do not reach the root, and versions that keep their kernel.

use std::fs;

use crate::support::ext4::{ext4_image, kernel};
use crate::support::{Ended, Kiln, make_writable};
use crate::{STEP, fifo, open_gate, refused, refused_at_once};

const TEST: &str = "[[test]]\nrun = 'true'\n";
const BUILTIN: &str = "kernel/virtio_pci.ko\nkernel/virtio_blk.ko\nkernel/virtio_console.ko\nkernel/ext4.ko\n";

/// A build over a disk without a kernel and with these files, and a kernel beside it. The spec has these keys in `[base]`.
fn over(files: &[(&str, &[u8])], keys: &str, machine: &str, rest: &str) -> Kiln {
    let base = ext4_image(&[&[("etc/os-release", &b"ID=debian\n"[..])], files].concat());
    let kiln = Kiln::new().file("base.qcow2", base).file("vmlinuz", kernel("6.1.9 (x) #1"));
    let kiln = kiln.file("initrd", "the initrd").machine(machine).spec(rest);
    add_keys(&kiln, keys);
    kiln.build()
}

fn beside(keys: &str, rest: &str) -> Kiln {
    over(&[], keys, "", rest)
}

/// The arguments of QEMU that name what it starts, by the log of the fake one.
fn started(ended: &Ended) -> Vec<String> {
    let words = ["-kernel", "-initrd", "-append"];
    let log = ended.place().fake_log();
    log.iter().filter(|line| words.iter().any(|word| line.starts_with(word))).cloned().collect()
}

#[test]
fn i8_a_file_that_is_no_kernel_is_refused_with_its_place() {
    let kiln = beside("kernel = 'initrd'\n", STEP).fails(5).stderr_has("is no Linux kernel");
    refused_at_once(kiln.stderr_has("kiln.toml:5:10"));
    let place = beside("kernel = 'initrd'\n", STEP).place().clone();
    refused_at_once(place.kiln().args(["check", "."]).fails(5).stderr_has("is no Linux kernel"));
}

#[test]
fn i8_a_kernel_or_initrd_that_is_missing_or_a_folder_is_named() {
    let kiln = beside("kernel = 'gone'\n", STEP).fails(5).stderr_has("cannot read the kernel");
    refused_at_once(kiln.stderr_has("kiln.toml:5:10").stderr_has("No such file"));
    let kiln = beside("kernel = 'vmlinuz'\ninitrd = 'home'\n", STEP).fails(5);
    refused_at_once(kiln.stderr_has("home is not a file").stderr_has("kiln.toml:6:10"));
}

#[test]
fn i8_a_kernel_outside_of_the_project_is_refused() {
    let kiln = beside("kernel = '/etc/hostname'\n", STEP).fails(3);
    refused_at_once(kiln.stderr_has("`base.kernel`").stderr_has("--allow-outside"));
}

#[test]
fn i8_an_initrd_without_a_kernel_is_an_error() {
    let kiln = beside("initrd = 'initrd'\n", STEP).fails(3);
    let ended = kiln.stderr_has("`initrd` is for a `kernel`, which is not there").stderr_has("kiln.toml:5:10").run();
    assert_eq!(ended.place().starts(), 0);
}

/// A build over a disk that kiln cannot read, of which it expects that cloud-init works, with these keys in `[base]`.
fn over_unknown(keys: &str) -> Kiln {
    let kiln = Kiln::new().file("vmlinuz", kernel("6.1 (x)")).spec(STEP);
    add_keys(&kiln, keys);
    kiln.build()
}

fn add_keys(kiln: &Kiln, keys: &str) {
    let spec = kiln.place().join("kiln.toml");
    let text = fs::read_to_string(&spec).unwrap().replacen("[base]\n", &format!("[base]\n{keys}"), 1);
    fs::write(spec, text).unwrap();
}

#[test]
fn i8_a_root_that_nothing_names_is_an_error() {
    let kiln = over_unknown("kernel = 'vmlinuz'\n").fails(5).stderr_has("the root of the base image is not known");
    refused_at_once(kiln.stderr_has("name the root in `base.cmdline`"));
}

#[test]
fn i9_a_kernel_without_drivers_of_the_machine_names_one() {
    let files = [("lib/modules/6.1.9/modules.builtin", &b"kernel/virtio_pci.ko\n"[..])];
    let kiln = over(&files, "kernel = 'vmlinuz'\n", "boot = 'direct'", STEP).fails(5);
    let said = "the kernel 6.1.9 beside the image has no driver `virtio_blk`";
    refused_at_once(kiln.stderr_has(said).stderr_has("`base.initrd`"));
}

#[test]
fn i9_a_kernel_without_drivers_and_lists_gives_up_in_the_guest() {
    let kiln = over(&[], "kernel = 'vmlinuz'\n", "boot = 'direct'", STEP).fake("gives-up-direct-boot").fails(6);
    let said = "the direct boot failed: no block device with the serial `kiln-disk` appeared in the guest";
    refused(kiln.stderr_has(said).stderr_has("help: the kernel needs the drivers virtio_pci, virtio_blk"));
}

#[test]
fn i9_a_command_line_with_another_root_is_shown() {
    let kiln = over_unknown("kernel = 'vmlinuz'\ncmdline = 'root=/dev/vdz'\n").fake("panics-at-boot").fails(6);
    let said =
        "the guest did not boot with the kernel beside its disk and `console=ttyS0 root=/dev/vdz`: the guest's kernel";
    refused(kiln.stderr_has(said).stderr_has("help: check the `root=` of `base.cmdline`"));
}

const PARAMETERS: &str = "-append console=ttyS0 quiet root=/dev/vda rw";
const PLANTING: &str = "-append console=ttyS0 panic=0 console=ttyS0 quiet root=/dev/vda rw";

#[test]
fn i10_a_version_keeps_its_kernel_for_tests_and_for_images_that_are_built_on_it() {
    let keys = "kernel = 'vmlinuz'\ninitrd = 'initrd'\ncmdline = 'quiet'\n";
    let built = over(&[], keys, "agent = 'planted'", &format!("{STEP}{TEST}")).run();
    let once = [
        ["-kernel base-kernel", "-initrd initramfs", PLANTING],
        ["-kernel base-kernel", "-initrd base-initrd", PARAMETERS],
    ]
    .concat();
    assert_eq!(started(&built), once.repeat(2), "the build and its test");
    let version = built.place().store().join("web/1");
    assert_eq!(fs::read(version.join("web-1.kernel")).unwrap(), kernel("6.1.9 (x) #1"));
    assert_eq!(fs::read(version.join("web-1.initrd")).unwrap(), b"the initrd");
    built.then(["verify", "web"]).stdout_has("ok web-1.kernel").stdout_has("ok web-1.initrd").run();
    for file in ["vmlinuz", "initrd"] {
        fs::remove_file(built.place().join(file)).unwrap();
    }
    let tested = built.then(["test", "web"]).run();
    assert_eq!(started(&tested), once.repeat(3));
    let child = "[image]\nname = 'child'\nversion = '1'\n[base]\nimage = 'web'\n[machine]\nagent = 'planted'\n[[step]]\nrun = 'echo child'\n";
    let child = tested.then(["build", "child.toml"]).file("child.toml", child).run();
    assert_eq!(started(&child), once.repeat(4), "the kernel of the parent");
    assert!(child.place().store().join("child/1/child-1.kernel").exists());
    let damaged = version.join("web-1.kernel");
    make_writable(&damaged);
    fs::write(damaged, "other").unwrap();
    child.then(["verify", "web"]).fails(8).stderr_has("web-1.kernel differs from its checksum").run();
}

#[test]
fn i10_a_child_with_its_own_kernel_has_nothing_of_its_parents() {
    let built = beside("kernel = 'vmlinuz'\ninitrd = 'initrd'\ncmdline = 'quiet'\n", STEP).run();
    let before = started(&built).len();
    let own =
        "[image]\nname = 'own'\nversion = '1'\n[base]\nimage = 'web'\nkernel = 'vmlinuz'\n[machine]\nboot = 'direct'\n";
    let own = built.then(["build", "own.toml"]).file("own.toml", own).file("vmlinuz", kernel("6.2 (x) #1")).run();
    let append = "-append console=ttyS0 panic=0 console=ttyS0 root=/dev/vda rw";
    assert_eq!(started(&own)[before..], ["-kernel base-kernel", "-initrd initramfs", append]);
    let version = own.place().store().join("own/1");
    assert_eq!(fs::read(version.join("own-1.kernel")).unwrap(), kernel("6.2 (x) #1"));
    assert!(!version.join("own-1.initrd").exists());
}

#[test]
fn i10_a_layer_of_one_kernel_is_not_used_with_another() {
    let files = [("lib/modules/6.1.9/modules.builtin", BUILTIN.as_bytes())];
    let built = over(&files, "kernel = 'vmlinuz'\n", "boot = 'direct'", STEP).run();
    let starts = built.place().starts();
    let same = built.then(["build", "."]).run();
    assert_eq!(same.place().starts(), starts, "it is up to date");
    let other = same.then(["build", ".", "--replace"]).file("vmlinuz", kernel("6.1.9 (y) #2")).run();
    assert_eq!(other.place().starts(), starts + 1);
    let log = other.place().fake_log();
    assert_eq!(log.iter().filter(|line| line.starts_with("step ")).count(), 2, "the step runs again");
    let plan = other.then(["plan", "."]).stdout_has("-kernel base-kernel").run();
    assert!(plan.stdout.contains("cmdline  console=ttyS0 root=/dev/vda rw"), "{}", plan.stdout);
    let spec = fs::read_to_string(plan.place().join("kiln.toml")).unwrap();
    let spec = spec.replace("kernel = ", "cmdline = 'quiet'\nkernel = ");
    plan.then(["plan", "."]).file("kiln.toml", spec).stdout_has("changed  the command line of the kernel").run();
}

#[test]
fn i10_a_kernel_that_changes_during_the_build_is_an_error() {
    let kiln = beside("kernel = 'vmlinuz'\n", "");
    let gate = fifo(kiln.place());
    let spec = kiln.place().join("kiln.toml");
    let text = fs::read_to_string(&spec).unwrap();
    let step = format!("[[step]]\nname = 'slow'\nrun = 'await {}'\n", gate.display());
    fs::write(spec, text + &step).unwrap();
    let live =
        kiln.fails(5).stderr_has("cannot read the kernel or initrd").stderr_has("changed during the build").start();
    live.stderr_shows("slow");
    fs::write(live.place().join("vmlinuz"), kernel("6.6.6 (x) #1")).unwrap();
    open_gate(&gate);
    live.finish().place().assert_nothing_published();
}
