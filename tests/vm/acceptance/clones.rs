//! Two clones of an image with everything that makes a machine one among many: they share nothing of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use kiln::wire::sealing::{IdentityRenewal, OPERATIONS};

use crate::bench::Bench;
use crate::first_boot;
use crate::sealing::{image_with_identities, is_made, paths};

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

/// Digests of the identities of a clone, by path.
fn clone_of(bench: &Bench, image: &Path, name: &str) -> BTreeMap<String, String> {
    let all = paths(OPERATIONS.iter().flat_map(|operation| operation.identities)).join(" ");
    let spec = bench.spec_over(image, name, &COLLECT.replace("@paths@", &all));
    // The second clone would find the first one's boot in the cache.
    let built = bench.kiln(&["build", "--no-cache", spec.to_str().unwrap()]);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let listed = fs::read_to_string(bench.path(&format!("store/{name}/1/identities"))).unwrap();
    listed
        .lines()
        .filter_map(|line| line.split_once("  - "))
        .map(|(sha, path)| (path.to_owned(), sha.to_owned()))
        .collect()
}

#[test]
#[ignore = "boots a VM"]
fn two_clones_of_an_image_share_no_identity() {
    let bench = Bench::new();
    let (image, log) = image_with_identities(&bench, "");
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
    let [one, other] = ["first", "second"].map(|name| first_boot(&bench, &image, name));
    assert!(one.iter().zip(&other).all(|(one, other)| one != other), "{one:?} and {other:?}");
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
        matches!(identity.renewal, IdentityRenewal::Never(_) | IdentityRenewal::By(_))
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
