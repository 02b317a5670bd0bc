//! The agent planted in images of several makes: built, rebooted, tested and sealed, with no trace on the disk.

use std::path::{Path, PathBuf};

use super::base;
use crate::bench::{Bench, debian, manifest};
use crate::planted::{PURGE, assert_no_trace, purged};

/// A build with a reboot and a test, of this guest. Returns the image.
fn assert_planted(bench: &Bench, base: &Path, name: &str, agent: &str, check: &str) -> PathBuf {
    let text = format!(
        r#"
[machine]
memory = "512MiB"
agent = "{agent}"
[[step]]
run = '''{check}
cat /proc/sys/kernel/random/boot_id >/root/boot'''
[[step]]
reboot = true
[[step]]
run = '[ "$(cat /root/boot)" != "$(cat /proc/sys/kernel/random/boot_id)" ]'
[[output]]
format = "raw"
[[test]]
run = '''{check}
[ -s /root/boot ]'''
"#
    );
    let image = bench.builds(&bench.spec_over(base, name, &text));
    assert_no_trace(&image);
    image
}

#[test]
#[ignore = "boots a VM"]
fn a_guest_whose_cloud_init_is_disabled() {
    let bench = Bench::new();
    let disable = "[machine]\nboot = \"direct\"\n[[step]]\nrun = \"touch /etc/cloud/cloud-init.disabled\"\n";
    let disabled = bench.builds(&bench.spec("disabled", disable));
    assert_planted(&bench, &disabled, "disabled-built", "auto", "[ ! -e /run/cloud-init/instance-data.json ]");
}

#[test]
#[ignore = "boots a VM"]
fn a_guest_without_cloud_init_reboots() {
    let bench = Bench::new();
    assert_planted(&bench, &purged(&bench), "purged-built", "auto", "[ ! -e /usr/bin/cloud-init ]");
}

#[test]
#[ignore = "boots a VM"]
fn a_guest_without_systemd() {
    let bench = Bench::new();
    let purged = bench.builds(&bench.spec_over(&base("debian-12-sysvinit"), "sysvinit-purged", PURGE));
    let check = "[ ! -d /run/systemd/system ] && grep -q '^kiln:' /etc/inittab";
    assert_planted(&bench, &purged, "sysvinit-planted", "auto", check);
}

/// kiln cannot see that this one has no cloud-init. `/var/lib` and `/usr/local` are file systems of their own.
#[test]
#[ignore = "boots a VM"]
fn a_guest_with_a_root_of_xfs() {
    let bench = Bench::new();
    let purged = bench.builds(&bench.spec_over(&base("debian-12-split"), "xfs-purged", PURGE));
    assert_planted(&bench, &purged, "xfs-planted", "planted", "[ ! -e /usr/bin/cloud-init ]");
}

#[test]
#[ignore = "boots a VM"]
fn a_guest_whose_cloud_init_works_can_be_planted_as_well() {
    let bench = Bench::new();
    assert_planted(&bench, &debian(), "asked", "planted", "[ ! -e /run/kiln/seed ]");
}

/// The agent is started by cloud-init first, and by systemd after the reboot.
#[test]
#[ignore = "boots a VM"]
fn a_guest_from_which_a_step_removes_cloud_init() {
    let bench = Bench::new();
    let purge = "dpkg --purge --force-all cloud-init";
    let image =
        assert_planted(&bench, &debian(), "purges", "auto", &format!("[ ! -e /usr/bin/cloud-init ] || {purge}"));
    assert_eq!(manifest(&image)["machine"]["agent"], "planted-later");
}
