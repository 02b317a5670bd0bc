//! Sealing in a real guest: what is left mounted and running loses nothing and writes nothing, and clones are not each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use kiln::wire::sealing::{IdentityForm, IdentityRenewal, MachineIdentity, OPERATIONS};

use crate::bench::{Bench, root, run};

/// What steps leave mounted, running and protected.
const LEFT_BEHIND: &str = r#"
[machine]
memory = "512MiB"
[[step]]
name = "leaves mounts, processes and protected files"
run = '''
mkdir -p /srv/data /tmp/chroot/data /tmp/chroot/dev /tmp/plain /var/cache/man
echo precious >/srv/data/file
mount --bind /srv/data /tmp/chroot/data
mount --rbind /dev /tmp/chroot/dev
mount -t tmpfs tmpfs /var/cache/man
echo x >/var/log/audited.log
chattr +a /var/log/audited.log
echo x >/tmp/plain/immutable
chattr +i /tmp/plain/immutable
printf '#!/bin/sh\nwhile :; do date >>/var/log/noisy.log; touch /var/tmp/noisy; sleep 0.05; done\n' >/usr/local/bin/noisy
chmod 755 /usr/local/bin/noisy
setsid /usr/local/bin/noisy </dev/null >/dev/null 2>&1 &
'''
"#;

/// The tests of that.
const NOTHING_LOST: &str = r#"
[[test]]
name = "nothing behind a mount is lost"
run = "grep -q precious /srv/data/file && [ -c /dev/null ] && [ -d /var/cache/man ]"
[[test]]
name = "temporary files are gone"
run = "[ ! -e /tmp/chroot ] && [ ! -e /tmp/plain ] && [ ! -e /var/tmp/noisy ]"
[[test]]
name = "logs are empty and as protected as before"
run = "[ ! -s /var/log/noisy.log ] && [ ! -s /var/log/audited.log ] && lsattr /var/log/audited.log | cut -d' ' -f1 | grep -q a"
"#;

/// Packages that make identities when they are installed, as the guest's own tools see them.
const PACKAGES: &str = r#"
[[step]]
copy = "debs/"
to = "/root/debs"
[[step]]
name = "install packages"
run = '''
export DEBIAN_FRONTEND=noninteractive
dpkg -i /root/debs/*.deb
rm -r /root/debs
grep -i 6b696c6e /etc/nvme/hostnqn
'''
"#;

/// Has a clone make what it makes at its first boot, and prints a digest of every identity.
const COLLECT: &str = r#"
[machine]
memory = "512MiB"
[[step]]
name = "collect"
run = '''
/lib/open-iscsi/startup-checks.sh
ssh-keygen -A
systemd-creds setup
for file in @paths@; do
    if [ -f "$file" ] && [ -s "$file" ]; then echo "$(sha256sum <"$file") $file"; fi
done >/root/identities
nvme show-hostnqn >/root/hostnqn || true
'''
[[step]]
fetch = "/root/identities"
to = "identities"
"#;

/// Identities that this test has no business with: what the guest is using, and what belongs to users and lines of files.
fn is_made(identity: &MachineIdentity) -> bool {
    let is_used = identity.paths.iter().any(|path| {
        ["~", "/etc/machine-id", "/etc/ssh/", "/etc/iscsi/", "/boot/", "/efi/"]
            .iter()
            .any(|start| path.starts_with(start))
    });
    identity.form == IdentityForm::File && !is_used
}

fn paths(identities: impl Iterator<Item = &'static MachineIdentity>) -> Vec<String> {
    identities
        .flat_map(|identity| identity.paths)
        .filter(|path| !path.starts_with('~'))
        .map(|path| (*path).to_owned())
        .collect()
}

/// A step that makes every identity which no package here makes.
fn made_by_hand() -> String {
    let identities = OPERATIONS.iter().flat_map(|operation| operation.identities);
    let made = paths(identities.filter(|identity| is_made(identity))).join(" ").replace('*', "made");
    format!(
        "[[step]]\nname = 'makes identities'\nrun = '''\nfor file in {made}; do\n    mkdir -p \"${{file%/*}}\"\n    \
         [ -e \"$file\" ] || echo shared >\"$file\"\ndone\n'''\n"
    )
}

/// Digests of the identities of a clone, by path.
fn clone_of(bench: &Bench, image: &Path, name: &str) -> BTreeMap<String, String> {
    let all = paths(OPERATIONS.iter().flat_map(|operation| operation.identities)).join(" ");
    let built = bench.builds(&bench.spec_over(image, name, &COLLECT.replace("@paths@", &all)));
    let listed = fs::read_to_string(built.with_file_name("identities")).unwrap();
    listed
        .lines()
        .filter_map(|line| line.split_once("  - "))
        .map(|(sha, path)| (path.to_owned(), sha.to_owned()))
        .collect()
}

#[test]
#[ignore = "boots a VM"]
fn g19_what_steps_leave_is_sealed_and_two_clones_share_no_identity() {
    let bench = Bench::new();
    let debs = root().join("fixtures/cache/identities");
    assert!(debs.exists(), "{} is not there: run fixtures/identities/build", debs.display());
    run("cp", &["-r", debs.to_str().unwrap(), "debs"], bench.folder.path());
    let spec = bench.spec("identities", &format!("{LEFT_BEHIND}{PACKAGES}{}{NOTHING_LOST}", made_by_hand()));
    let image = bench.builds(&spec);
    let log = fs::read_to_string(image.with_file_name("build.log")).unwrap();
    println!("{}", log.lines().filter(|line| line.contains("seal")).collect::<Vec<_>>().join("\n"));
    for text in ["/usr/local/bin/noisy` (process ", "had left mounted: ", "/tmp/chroot/data", "/var/cache/man"] {
        assert!(log.contains(text), "no `{text}` in {log}");
    }
    for warned in ["/etc/ssl/private/ssl-cert-snakeoil.key", "/etc/popularity-contest.conf", "/etc/krb5.keytab"] {
        assert!(log.contains(&format!("will have the same {warned} ")), "no warning of {warned} in {log}");
    }
    let one = clone_of(&bench, &image, "one");
    let other = clone_of(&bench, &image, "other");
    let shared: BTreeSet<&String> =
        one.iter().filter(|(path, sha)| other.get(*path) == Some(*sha)).map(|(path, _)| path).collect();
    let is_warned = |path: &str| log.contains(&format!("the same {path} ")) || is_of_warned(path);
    let unexpected: Vec<_> = shared.iter().filter(|path| !is_warned(path) && !is_of_the_build(path)).collect();
    assert!(unexpected.is_empty(), "both clones have {unexpected:?}");
    for path in
        ["/etc/ssh/ssh_host_ed25519_key", "/etc/iscsi/initiatorname.iscsi", "/var/lib/systemd/credential.secret"]
    {
        assert!(one.contains_key(path) && one.get(path) != other.get(path), "{path}: {one:?}");
    }
    assert!(!one.contains_key("/etc/nvme/hostnqn") && !one.contains_key("/etc/nvme/hostid"));
    println!("{} identities, {} of them in a clone, {} shared and warned of", made_count(), one.len(), shared.len());
    assert!(made_count() >= 20);
}

/// Returns whether two clones that are builds have this in common: the seed, the network, and the UUID of the machine, from which
/// systemd takes the machine ID (machine-id(5)).
fn is_of_the_build(path: &str) -> bool {
    path.starts_with("/var/lib/cloud/") || path.ends_with("/machine-id") || path == "/etc/resolv.conf"
}

/// Returns whether a file belongs to an identity that nothing in this image makes anew: one warning stands for all its files.
fn is_of_warned(path: &str) -> bool {
    let identities = OPERATIONS.iter().flat_map(|operation| operation.identities);
    let mut warned = identities.filter(|identity| {
        matches!(identity.renewal, IdentityRenewal::Never | IdentityRenewal::By(_))
            && identity.paths[0] != "/etc/machine-id"
    });
    warned.any(|identity| {
        identity.paths.iter().any(|pattern| kiln::wire::path_pattern::matches(pattern, path.as_bytes()))
    })
}

/// Returns how many identities of the table the test makes that are made anew.
fn made_count() -> usize {
    let identities = OPERATIONS.iter().flat_map(|operation| operation.identities);
    identities
        .filter(|identity| is_made(identity) && matches!(identity.renewal, IdentityRenewal::WhenMissing(_)))
        .count()
}
