//! The list of files of an image, compared with what an independent program finds in it.

use std::fs;
use std::path::Path;

use crate::bench::{Bench, manifest, root, run};

/// Where the partitions of the base images are (`fixtures/debian/build`), bytes.
const ESP: (u64, u64) = (8192 * 512, 253_952 * 512);
const ROOT_START: u64 = 262_144 * 512;
/// Room for what the guest finds in an image.
const TEXT: u64 = 32 << 20;

/// What is hard to list: attributes of all sorts, devices, names, a file with holes, and files on the ESP. One processor a
/// guest: several with two each on a host of two, all emulated, once left a guest waiting for a timer for ever.
pub(crate) const HARD: &str = r#"
[machine]
cpus = 1
[[step]]
name = "hard"
run = """
cd /srv
mknod null c 1 3; mknod block b 259 300; mkfifo pipe
printf 'not ASCII' >"$(printf 'a b\\\\c\\377')"
ln -s ../nowhere link; ln /usr/bin/env hard; truncate -s 5M holes; echo end >>holes
chmod 4711 holes; chown 70000:4000000000 pipe
python3 -c 'import os; os.setxattr("holes", "user.note", b"x" * 600); os.setxattr("holes", "trusted.b", b"")'
echo esp >/boot/efi/a-long-name.txt; mkdir /boot/efi/loader; echo >/boot/efi/loader/UPPER.CFG
"""
"#;

#[test]
#[ignore = "boots a VM"]
fn e1_the_list_of_files_is_what_a_guest_finds_in_the_image() {
    let bench = Bench::new();
    let image = bench.builds(&bench.spec("ext4", HARD));
    assert_lists_are_equal(&image, &found_in_a_guest(&bench, &image));
}

/// Compares the published list with the one that a guest has made of the image.
pub(crate) fn assert_lists_are_equal(image: &Path, found: &[u8]) {
    let folder = image.parent().unwrap();
    let listed = run("sh", &["-c", "zstd -dc files.zst | sed 's/ mtime=.*//'"], folder).stdout;
    let (listed, found) = (str::from_utf8(&listed).unwrap(), str::from_utf8(found).unwrap());
    for (one, other) in listed.lines().zip(found.lines()) {
        assert_eq!(one, other, "{}", image.display());
    }
    assert_eq!(listed.len(), found.len());
    println!("{}: {} files, the same as in a guest", image.display(), listed.lines().count() - 1);
    let list = String::from_utf8(run("zstd", &["-dc", "files.zst"], folder).stdout).unwrap();
    for path in ["/srv/pipe", "/srv/holes", "/boot/efi/a-long-name.txt", "/boot/efi/loader/UPPER.CFG"] {
        let line = list.lines().find(|line| line.starts_with(&format!("path={path} "))).expect(path);
        assert!(line.ends_with(" step=1"), "{line}");
    }
}

/// Returns the canonical text of an image as an independent program makes it, in a guest that mounts it read-only.
pub(crate) fn found_in_a_guest(bench: &Bench, image: &Path) -> Vec<u8> {
    let folder = bench.path("lister");
    fs::create_dir(&folder).unwrap();
    let script = fs::read_to_string(root().join("tests/vm/list.py")).unwrap();
    let script: String = script.lines().map(|line| format!("    {line}\n")).collect();
    let user_data = format!(
        "#cloud-config\nssh_genkeytypes: []\nwrite_files:\n- path: /root/list.py\n  content: |\n{script}\
         runcmd:\n\
         - [sh, -xc, \"exec >/dev/ttyS0 2>&1; d=/dev/disk/by-id/virtio-image; mount -o ro,noload $d-root /mnt || mount -o ro $d-root /mnt; \
         mount -o ro $d-esp /mnt/boot/efi; python3 /root/list.py /mnt >/root/text; umount -R /mnt; dd if=/root/text of=$d-text; sync; poweroff\"]\n"
    );
    fs::write(folder.join("user-data"), user_data).unwrap();
    fs::write(folder.join("meta-data"), "instance-id: lister\n").unwrap();
    // Without it the guest waits two minutes for a network that it does not have.
    fs::write(folder.join("network-config"), "config: disabled\n").unwrap();
    let made =
        "truncate -s 2M seed && mformat -i seed -v CIDATA :: && mcopy -i seed user-data meta-data network-config ::";
    assert!(run("sh", &["-c", made], &folder).status.success());
    let overlay = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    let base = root().join("fixtures/cache/debian-12.qcow2");
    let made = run("qemu-img", &[&overlay[..], &[base.to_str().unwrap(), "disk"]].concat(), &folder);
    assert!(made.status.success());
    let mut args: Vec<String> = "1200 qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 1024 -machine q35 -nodefaults \
        -display none -serial stdio -no-reboot -drive file=disk,if=none,id=disk,cache=unsafe \
        -device virtio-blk-pci,drive=disk,bootindex=1 \
        -drive file=seed,format=raw,if=virtio,readonly=on"
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let size = manifest(image)["outputs"][0]["virtual_bytes"].as_u64().unwrap();
    fs::File::create(folder.join("text")).unwrap().set_len(TEXT).unwrap();
    // No table of partitions goes with them: the guest would not know which root is its own.
    args.extend(part(image, "image-root", ROOT_START, size - ROOT_START - (1 << 20)));
    args.extend(part(image, "image-esp", ESP.0, ESP.1));
    let text =
        ["-drive", "file=text,format=raw,if=none,id=text", "-device", "virtio-blk-pci,drive=text,serial=image-text"];
    args.extend(text.map(str::to_owned));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let console = run("timeout", &args, &folder);
    let mut text = fs::read(folder.join("text")).unwrap();
    let end = text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    text.truncate(end);
    assert!(text.starts_with(b"kiln tree 1\n"), "{}", String::from_utf8_lossy(&console.stdout));
    text
}

/// QEMU's arguments for a part of an image as a disk of its own.
fn part(image: &Path, serial: &str, start: u64, length: u64) -> [String; 4] {
    let node = serde_json::json!({
        "driver": "raw", "node-name": format!("part{serial}"), "offset": start, "size": length, "read-only": true,
        "file": { "driver": "qcow2", "read-only": true, "file": { "driver": "file", "filename": image, "read-only": true } },
    });
    let device = format!("virtio-blk-pci,drive=part{serial},serial={serial}");
    ["-blockdev".into(), node.to_string(), "-device".into(), device]
}
