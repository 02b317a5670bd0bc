//! Direct boots: their images compared with those of full boots, and roots that kiln cannot read.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::base;
use crate::bench::{Bench, debian, manifest, root, run};

/// Files, packages, users and the state of services.
const STEPS: &str = r#"
[[step]]
copy = "debs/"
to = "/root/debs"
[[step]]
run = '''
dpkg -i /root/debs/*.deb
useradd -m -s /bin/bash -G sudo dev
groupadd -r app
printf '[Service]\nExecStart=/bin/sleep 1000\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/mine.service
systemctl enable mine.service
systemctl mask apt-daily.timer
echo kiln-guest >/etc/hostname
ln -sf /usr/share/zoneinfo/Europe/Paris /etc/localtime
update-alternatives --install /usr/bin/hello hello /bin/echo 10
'''
"#;

/// What a boot of Debian writes by itself (`docs/spec.md`).
const WRITTEN_BY_A_BOOT: [&str; 7] = [
    "/var/lib/dbus/machine-id",
    "/var/lib/systemd/linger",
    "/var/lib/systemd/timers",
    "/var/lib/systemd/timesync",
    "/var/log/btmp",
    "/var/log/lastlog",
    "/var/log/wtmp",
];

#[test]
#[ignore = "boots a VM"]
fn a_direct_boot_gives_the_files_of_a_full_boot_but_for_what_a_boot_writes() {
    let bench = Bench::new();
    let debs = root().join("fixtures/cache/debs");
    run("cp", &["-r", debs.to_str().unwrap(), "debs"], bench.folder.path());
    for boot in ["full", "direct"] {
        bench.builds(&bench.spec_over(&debian(), boot, &format!("[machine]\nboot = \"{boot}\"\n{STEPS}")));
    }
    let diff = bench.kiln(&["diff", "full", "direct", "--json"]);
    let diff: Value = serde_json::from_slice(&diff.stdout).unwrap();
    let changes = diff["files"].as_array().unwrap();
    let paths: BTreeSet<&str> = changes.iter().map(|change| change["path"].as_str().unwrap()).collect();
    assert_eq!(paths, BTreeSet::from(WRITTEN_BY_A_BOOT), "{diff:#}");
}

#[test]
#[ignore = "boots a VM"]
fn a_root_of_xfs_is_booted_directly_with_the_initrd_of_its_boot() {
    let bench = Bench::new();
    let steps = r#"
[machine]
boot = "direct"
memory = "768MiB"
[[step]]
run = '''
[ ! -d /run/systemd/system ]
for folder in /etc /boot /usr/local /var/lib /home; do echo new >$folder/new; done
cat /proc/sys/kernel/random/boot_id >/root/boot
'''
[[step]]
reboot = true
[[step]]
run = '''
[ "$(cat /root/boot)" != "$(cat /proc/sys/kernel/random/boot_id)" ]
cat /etc/new /boot/new /usr/local/new /var/lib/new /home/new
'''
[[test]]
run = "cat /etc/new /boot/new /usr/local/new /var/lib/new /home/new"
"#;
    let image = bench.builds(&bench.spec_over(&base("debian-12-split"), "split", steps));
    let log = fs::read_to_string(image.with_file_name("build.log")).unwrap();
    assert!(log.contains("direct boot: kernel 6."), "{log}");
    assert_eq!(manifest(&image)["machine"]["boot"], "direct");
}
