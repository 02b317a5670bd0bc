//! What is in an image, by its manifest and by others who look: the list of files of mounts that kiln cannot read.

use std::fs;

use crate::bench::{Bench, manifest, root, run};

/// An xfs file system in place of the ESP, which a BIOS does not need: a unit of systemd mounts it, another one shows a part of
/// it at a second place, and neither is in a table of the disk. Something is hidden below each mount.
const UNITS: &str = r#"
[machine]
cpus = 1
[[step]]
copy = "data.img"
to = "/root/data.img"
[[step]]
copy = "list.py"
to = "/root/list.py"
[[step]]
name = "units"
run = """
umount /boot/efi
sed -i '/efi/d' /etc/fstab
dd if=/root/data.img of=/dev/vda15 bs=1M conv=fsync
rm /root/data.img
mkdir -p /srv/hidden /mnt/hidden
unit() {
    printf '[Mount]\nWhat=%s\nWhere=%s\nType=%s\nOptions=%s\n[Install]\nWantedBy=local-fs.target\n' "$2" "$1" "$3" "$4" \
        >"/etc/systemd/system/$(systemd-escape -p --suffix=mount "$1")"
}
unit /srv /dev/vda15 xfs defaults
systemctl daemon-reload
systemctl enable --now srv.mount
mkdir /srv/part
unit /mnt /srv/part none bind
systemctl daemon-reload
systemctl enable --now mnt.mount
cd /srv/part
mkfifo pipe; ln -s ../nowhere link; echo a >a; ln a b; truncate -s 5M holes; echo end >>holes; chmod 4711 holes
python3 -c 'import os; os.setxattr("holes", "user.note", b"x" * 600)'
python3 /root/list.py /srv >/root/srv.txt
python3 /root/list.py /mnt >/root/mnt.txt
"""
[[step]]
fetch = "/root/srv.txt"
to = "srv.txt"
[[step]]
fetch = "/root/mnt.txt"
to = "mnt.txt"
"#;

#[test]
#[ignore = "boots a VM"]
fn e1_what_units_mount_is_listed_by_the_guest_where_kiln_cannot_read_it() {
    let bench = Bench::new();
    let image = bench.path("data.img");
    fs::File::create(&image).unwrap().set_len(48 << 20).unwrap();
    // Smaller than what mkfs.xfs makes for anybody but xfs's own tests.
    let made = "TEST_DIR=1 TEST_DEV=1 QA_CHECK_FS=1 mkfs.xfs -q -f data.img";
    assert!(run("sh", &["-c", made], bench.folder.path()).status.success());
    fs::copy(root().join("tests/vm/list.py"), bench.path("list.py")).unwrap();
    let image = bench.builds(&bench.spec("units", UNITS));
    let folder = image.parent().unwrap();
    let manifest = manifest(&image);
    assert_eq!(manifest["contents"], serde_json::json!({ "complete": true, "missing": [] }));
    let list = String::from_utf8(run("zstd", &["-dc", "files.zst"], folder).stdout).unwrap();
    for (target, fetched) in [("/srv", "srv.txt"), ("/mnt", "mnt.txt")] {
        let expected = fs::read_to_string(folder.join(fetched)).unwrap();
        let below = |line: &str| {
            let path = line.strip_prefix("path=")?.strip_prefix(target)?;
            let path = if path.starts_with(' ') { format!("/{path}") } else { path.to_owned() };
            let line = path.starts_with('/').then(|| format!("path={path}"))?;
            line.split_once(" mtime=").map(|(line, _)| line.to_owned())
        };
        let found: Vec<String> = list.lines().filter_map(below).collect();
        let expected: Vec<&str> = expected.lines().skip(1).collect();
        assert_eq!(found, expected, "{target}");
    }
    for listed in ["path=/etc/passwd ", "path=/boot/efi ", "path=/proc ", "path=/usr/bin/env "] {
        assert!(list.lines().any(|line| line.starts_with(listed)), "{listed}");
    }
    for hidden in ["path=/proc/", "path=/run/kiln", "path=/boot/efi/", "/hidden "] {
        assert!(!list.lines().any(|line| line.contains(hidden)), "{hidden}");
    }
}
