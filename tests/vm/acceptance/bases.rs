//! Bases of other makes than the one that every run of the tests boots.

use std::fs;

use super::base;
use super::listing::{HARD, assert_lists_are_equal, found_in_a_guest};
use crate::bench::{Bench, manifest, root, run};

/// rpm's database instead of dpkg's, with one package.
const RPM: &str = r#"
[[step]]
name = "rpm"
run = """
cd /tmp
printf '%s\n' 'Name: kiln-greeting' 'Epoch: 2' 'Version: 1.0' 'Release: 3' 'Summary: x' 'License: MIT' 'BuildArch: noarch' \
    '%description' 'x' '%files' >greeting.spec
rpmbuild --quiet -bb --define '_rpmdir /tmp' greeting.spec
rpm --force-debian --justdb --nodeps -i noarch/kiln-greeting-1.0-3.noarch.rpm
mv /var/lib/dpkg/status /var/lib/dpkg/status.away
"""
"#;

/// Each test would fail if it saw what another one did.
const TRACES: &str = r#"
[[test]]
run = "[ ! -e /srv/trace ] && [ ! -e /run/trace ] && touch /srv/trace /run/trace"
[[test]]
run = "[ ! -e /srv/trace ] && [ ! -e /run/trace ] && touch /srv/trace /run/trace "
[[test]]
run = "[ ! -e /srv/trace ] && [ ! -e /run/trace ] && touch /srv/trace /run/trace  "
needs-fresh-boot = true
"#;

#[test]
#[ignore = "boots a VM"]
fn e1_the_list_of_files_on_btrfs_is_what_a_guest_finds_in_the_image() {
    let bench = Bench::new();
    bench.builds(&bench.spec("ext4", HARD));
    let btrfs = bench.builds(&bench.spec_over(&base("debian-12-btrfs"), "btrfs", &format!("{HARD}{RPM}{TRACES}")));
    assert_lists_are_equal(&btrfs, &found_in_a_guest(&bench, &btrfs));
    // Of a disk that kiln does not read there are no texts, and the lists say the rest.
    let diff = bench.kiln(&["diff", "ext4", "btrfs"]);
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stderr));
    assert!(String::from_utf8_lossy(&diff.stdout).contains("/etc/fstab"));
    let manifest = manifest(&btrfs);
    assert_eq!((&manifest["os"]["id"], &manifest["os"]["version"]), (&"debian".into(), &"12".into()));
    assert_eq!(manifest["package_type"], "rpm");
    assert_eq!(manifest["packages"].as_array().unwrap().len(), 1, "{}", manifest["packages"]);
    assert_eq!(manifest["packages"][0]["version"], "2:1.0-3");
    let bill = fs::read_to_string(btrfs.with_file_name("sbom.cdx.json")).unwrap();
    assert!(bill.contains("pkg:rpm/debian/kiln-greeting@1.0-3?arch=noarch&distro=debian-12&epoch=2"), "{bill}");
}

/// A file in each file system.
const SPLIT: &str = r#"
[machine]
cpus = 1
[[step]]
run = "for folder in /etc /boot /usr/local /var/lib /home; do echo new >$folder/new; done"
[[test]]
run = "cat /etc/new /boot/new /usr/local/new /var/lib/new /home/new"
"#;

/// Mounts the disk, whose partitions `fixtures/split/build` has chosen, and lists it.
const LIST_SPLIT: &str = r#"
qemu-img convert -O raw "$1" raw
mkdir tree
trap 'umount -R tree' EXIT
part() { mount -o "ro,$4,loop,offset=$(($1 << 20)),sizelimit=$(($2 << 20))" raw "tree$3"; }
part 2528 1024 / norecovery
part 128 400 /boot noload
part 528 1200 /usr noload
part 1728 600 /var noload
part 2328 200 /home defaults
python3 "$2" tree
"#;

#[test]
#[ignore = "boots a VM"]
fn e1_the_list_of_many_file_systems_is_what_the_host_finds_in_them() {
    let bench = Bench::new();
    let image = bench.builds(&bench.spec_over(&base("debian-12-split"), "split", SPLIT));
    let manifest = manifest(&image);
    assert_eq!(manifest["contents"], serde_json::json!({ "complete": true, "missing": [] }));
    let list = root().join("tests/vm/list.py");
    let args = ["-euc", LIST_SPLIT, "sh", image.to_str().unwrap(), list.to_str().unwrap()];
    let found = run("sh", &args, bench.folder.path());
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let listed = run("sh", &["-c", "zstd -dc files.zst | sed 's/ mtime=.*//'"], image.parent().unwrap());
    // The kernel here may have no FAT.
    let lines = |text: Vec<u8>| {
        let text = String::from_utf8(text).unwrap();
        text.lines().filter(|line| !line.starts_with("path=/boot/efi")).map(str::to_owned).collect::<Vec<_>>()
    };
    let (found, listed) = (lines(found.stdout), lines(listed.stdout));
    for (one, other) in listed.iter().zip(&found) {
        assert_eq!(one, other);
    }
    assert_eq!(listed.len(), found.len());
    println!("split: {} files, the same as on the host", listed.len());
}

#[test]
#[ignore = "boots a VM"]
fn a_guest_without_systemd_is_built_and_tested() {
    let bench = Bench::new();
    let base = base("debian-12-sysvinit");
    let spec = bench.path("sysvinit.toml");
    let text = format!(
        "[image]\nname = \"sysvinit\"\nversion = \"1\"\n[base]\nfile = \"{}\"\n[[step]]\nrun = \"[ ! -d /run/systemd/system ]\"\n[[test]]\nrun = \"[ ! -d /run/systemd/system ]\"\n",
        base.display()
    );
    fs::write(&spec, text).unwrap();
    bench.builds(&spec);
}
