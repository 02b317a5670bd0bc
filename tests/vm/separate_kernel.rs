//! A disk that is one ext4 file system without partitions, kernel and boot loader, and its kernel beside it.

use std::fs;
use std::path::Path;

use crate::bench::{Bench, debian, manifest, run};

/// Makes `disk.ext4`, `kernel` and `initrd` of the Debian base in a folder: the root without its kernels, and with an
/// `/etc/fstab` that names no partition.
const SPLIT: &str = r#"
qemu-img convert -O raw "$1" whole
read -r start sectors <<END
$(sfdisk --json whole | python3 -c '
import json, sys
parts = json.load(sys.stdin)["partitiontable"]["partitions"]
root = max(parts, key=lambda part: part["size"])
print(root["start"], root["size"])')
END
dd if=whole of=disk.ext4 bs=512 skip="$start" count="$sectors" conv=sparse iflag=fullblock status=none
rm whole
release=$(debugfs -R 'ls -p /lib/modules' disk.ext4 2>/dev/null | cut -d / -f 6 | grep '^[0-9]')
printf '# none\n' >fstab
debugfs -w disk.ext4 2>/dev/null <<END
dump /boot/vmlinuz-$release kernel
dump /boot/initrd.img-$release initrd
rm /boot/vmlinuz-$release
rm /boot/initrd.img-$release
rm /etc/fstab
write fstab /etc/fstab
END
[ -s kernel ] && [ -s initrd ]
"#;

const BASE: &str = r#"
[image]
name = "microvm"
version = "1"
[base]
file = "disk.ext4"
format = "raw"
kernel = "kernel"
initrd = "initrd"
cmdline = "quiet"
[machine]
boot = "direct"
memory = "512MiB"
[[step]]
run = '''
[ "$(findmnt -no SOURCE /)" = /dev/vda ] && [ -z "$(ls /boot/vmlinuz* 2>/dev/null)" ]
echo built >/root/built
'''
[[test]]
name = "the image boots with its kernel"
run = "grep -q 'console=ttyS0 quiet root=/dev/vda rw' /proc/cmdline && [ \"$(cat /root/built)\" = built ]"
"#;

const CHILD: &str = r#"
[image]
name = "child"
version = "1"
[base]
image = "microvm"
[machine]
boot = "direct"
memory = "512MiB"
[[step]]
run = '[ "$(cat /root/built)" = built ] && touch /root/child'
"#;

#[test]
#[ignore = "boots a VM"]
fn a_disk_without_a_boot_loader_boots_with_the_kernel_beside_it() {
    let bench = Bench::new();
    let split = run("sh", &["-euc", SPLIT, "split", debian().to_str().unwrap()], bench.folder.path());
    assert!(split.status.success(), "{}", String::from_utf8_lossy(&split.stderr));
    let spec = |name: &str, text: &str| {
        fs::write(bench.path(name), text).unwrap();
        bench.path(name)
    };
    let image = bench.builds(&spec("base.toml", BASE));
    let of_base = manifest(&image);
    assert_eq!(of_base["tests"][0]["ok"], true);
    assert_eq!(of_base["kernel"]["cmdline"], "console=ttyS0 quiet root=/dev/vda rw");
    let child = manifest(&bench.builds(&spec("child.toml", CHILD)));
    for (pointer, file) in [("/kernel/sha256", "kernel"), ("/kernel/initrd/sha256", "initrd")] {
        let sum = String::from_utf8(run("sha256sum", &[file], bench.folder.path()).stdout).unwrap();
        let digest = sum.split(' ').next().unwrap();
        assert_eq!(of_base.pointer(pointer).unwrap(), digest);
        assert_eq!(child.pointer(pointer).unwrap(), digest, "the child has the files of its base");
    }
    assert!(run("sha256sum", &["-c", "--strict", "SHA256SUMS"], Path::new(image.parent().unwrap())).status.success());
}
