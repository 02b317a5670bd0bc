//! Images whose cloud-init does not start the agent: built, tested and sealed by an agent that is planted in them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bench::{Bench, manifest, run};

/// Steps that leave an image without a working cloud-init and without vfat, which the boot partition of the base needs.
pub const PURGE: &str = r#"
[machine]
boot = "direct"
memory = "512MiB"
[[step]]
run = '''
dpkg --purge --force-all cloud-init
echo 'install vfat /bin/false' >/etc/modprobe.d/hardened.conf
sed -i '\,/boot/efi,d' /etc/fstab
'''
"#;

const BUILD: &str = r#"
[machine]
memory = "512MiB"
disk = "3GiB"
[[step]]
name = "the guest is up, and its root has grown"
run = '''
systemctl is-active multi-user.target kiln-agent.service
[ "$(df -Pk / | awk 'NR == 2 { print $2 }')" -gt 2500000 ]
[ ! -e /usr/bin/cloud-init ] && [ ! -e /run/kiln/seed ] && ! grep -q vfat /proc/mounts
echo built >/root/built
'''
[[output]]
format = "raw"
[[test]]
run = "[ \"$(cat /root/built)\" = built ] && systemctl is-active multi-user.target"
"#;

/// Strings of the agent and of its unit, and their name, which journals have.
const TRACES: [&str; 5] =
    ["Agent of a kiln build", "kiln-agent: cannot power off", "--planted", "/run/kiln/scripts", "kiln-agent"];

/// Checks that no block of a raw disk has the agent or its unit.
pub fn assert_no_trace(disk: &Path) {
    for trace in TRACES {
        let found = run("grep", &["-c", "-a", "-F", "-e", trace, disk.to_str().unwrap()], Path::new("/"));
        assert_eq!(found.status.code(), Some(1), "{} has `{trace}`", disk.display());
    }
}

/// Builds an image without a working cloud-init.
pub fn purged(bench: &Bench) -> PathBuf {
    bench.builds(&bench.spec("purged", PURGE))
}

#[test]
#[ignore = "boots a VM"]
fn an_image_without_cloud_init_and_vfat_is_built_on_tested_and_sealed() {
    let bench = Bench::new();
    let image = bench.builds(&bench.spec_over(&purged(&bench), "planted", BUILD));
    let log = fs::read_to_string(image.with_file_name("build.log")).unwrap();
    assert_eq!(log.matches("the agent was planted in").count(), 2, "{log}");
    assert!(log.contains("planted in a copy of the image: cloud-init is not installed"), "{log}");
    let manifest = manifest(&image);
    assert_eq!(manifest["machine"]["agent"], "planted");
    assert_eq!(manifest["tests"][0]["ok"], true);
    assert_no_trace(&image);
}
