//! KVM, in a guest whose processor QEMU emulates together with its SVM: slow, and the way that hosts with hardware take.

use std::fs;
use std::path::Path;

use crate::bench::{Bench, debian, run};

/// QEMU with its libraries and firmware, kiln and a base go into the guest, which has no network.
const OUTER: &str = r#"
[machine]
accel = "tcg"
boot = "direct"
memory = "5GiB"
disk = "8GiB"
[[step]]
copy = "nested/"
to = "/opt/nested"
[[step]]
name = "nested"
run = ["sh", "-eu", "/opt/nested/run.sh"]
timeout = "60m"
"#;

const INNER: &str = r#"
[image]
name = "inner"
version = "1"
[base]
file = "base.qcow2"
[machine]
accel = "kvm"
boot = "direct"
memory = "512MiB"
cpus = 1
[[step]]
run = "echo one >/root/one"
[[step]]
run = "cat /root/one"
[[output]]
format = "qcow2"
compression = "none"
"#;

const SCRIPT: &str = r#"
cd /opt/nested
modprobe kvm_amd
mount -t tmpfs -o size=3g tmp /mnt
export TMPDIR=/mnt KILN_STORE=/mnt/store KILN_CACHE=/mnt/cache HOME=/root
cat >/usr/local/bin/qemu-system-x86_64 <<'END'
#!/bin/sh
exec env LD_LIBRARY_PATH=/opt/nested/lib /opt/nested/qemu -L /opt/nested/share "$@"
END
chmod 755 /usr/local/bin/qemu-system-x86_64
./kiln doctor | grep 'kvm '
./kiln build --progress plain -v inner.toml
sed -i 's/^run = "cat/run = "true \&\& cat/; s/^version = "1"/version = "2"/' inner.toml
./kiln build --progress plain -v inner.toml
"#;

/// Copies QEMU, the libraries that it is linked to, and the firmware that it loads.
const COPY_QEMU: &str = r#"
mkdir -p lib share
cp -L "$(command -v qemu-system-x86_64)" qemu
cp -L $(ldd qemu | awk '$3 ~ /^\// { print $3 }') lib/
for file in bios-256k.bin kvmvapic.bin linuxboot.bin linuxboot_dma.bin pvh.bin; do
    cp -L /usr/share/seabios/$file share/ 2>/dev/null || cp -L /usr/share/qemu/$file share/
done
"#;

#[test]
#[ignore = "boots a VM"]
fn kvm_is_found_builds_and_goes_on_from_its_checkpoint() {
    let bench = Bench::new();
    let folder = bench.path("nested");
    fs::create_dir(&folder).unwrap();
    assert!(run("sh", &["-euc", COPY_QEMU], &folder).status.success());
    fs::copy(debian(), folder.join("base.qcow2")).unwrap();
    fs::copy(Path::new(env!("CARGO_BIN_EXE_kiln")), folder.join("kiln")).unwrap();
    fs::write(folder.join("inner.toml"), INNER).unwrap();
    fs::write(folder.join("run.sh"), SCRIPT).unwrap();
    let output =
        bench.kiln(&["build", "--no-cache", "--progress", "plain", bench.spec("nested", OUTER).to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    bench.nothing_left();
    println!("{}", text.lines().filter(|line| line.contains(" ok ")).collect::<Vec<_>>().join("\n"));
    assert!(text.contains("KVM works here"), "{text}");
    assert!(text.contains("the guest goes on from a checkpoint"), "{text}");
}
