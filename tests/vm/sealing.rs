//! Sealing in a real guest: what is left mounted and running loses nothing and writes nothing.

use std::fs;
use std::path::PathBuf;

use kiln::wire::sealing::{IdentityForm, MachineIdentity, OPERATIONS};

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

/// Returns whether the test makes an identity. It does not make those that it has no business with: what the guest is using, and what belongs to users and lines of files.
pub fn is_made(identity: &MachineIdentity) -> bool {
    let is_used = identity.paths.iter().any(|path| {
        ["~", "/etc/machine-id", "/etc/ssh/", "/etc/iscsi/", "/boot/", "/efi/"]
            .iter()
            .any(|start| path.starts_with(start))
    });
    identity.form == IdentityForm::File && !is_used
}

/// Returns the paths of identities but for those of each user.
pub fn paths(identities: impl Iterator<Item = &'static MachineIdentity>) -> Vec<String> {
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

/// Builds an image of what steps leave behind, of every identity and of `more`, and returns its file and its log.
pub fn image_with_identities(bench: &Bench, more: &str) -> (PathBuf, String) {
    let debs = root().join("fixtures/cache/identities");
    assert!(debs.exists(), "{} is not there: run fixtures/identities/build", debs.display());
    run("cp", &["-r", debs.to_str().unwrap(), "debs"], bench.folder.path());
    let spec = bench.spec("identities", &format!("{LEFT_BEHIND}{PACKAGES}{}{more}{NOTHING_LOST}", made_by_hand()));
    let image = bench.builds(&spec);
    let log = fs::read_to_string(image.with_file_name("build.log")).unwrap();
    (image, log)
}

/// Checks what the log says about the image of [`image_with_identities`].
pub fn assert_sealed(log: &str) {
    println!("{}", log.lines().filter(|line| line.contains("seal")).collect::<Vec<_>>().join("\n"));
    for text in ["/usr/local/bin/noisy` (process ", "had left mounted: ", "/tmp/chroot/data", "/var/cache/man"] {
        assert!(log.contains(text), "no `{text}` in {log}");
    }
    for warned in ["/etc/ssl/private/ssl-cert-snakeoil.key", "/etc/popularity-contest.conf", "/etc/krb5.keytab"] {
        assert!(log.contains(&format!("will have the same {warned} ")), "no warning of {warned} in {log}");
    }
}
