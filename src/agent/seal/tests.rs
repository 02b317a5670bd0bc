//! Tests of the operations on generated trees: the layouts of several distributions, and files that are hard to remove.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::files::SealRoot;
use super::{find_operations, operations, times};
use crate::agent::sys;
use crate::wire::sealing::{OPERATIONS, SealOperation};

const APPEND_ONLY: u64 = 0x20;
const IMMUTABLE: u64 = 0x10;

/// A tree of files in a folder of its own.
struct MadeTree(tempfile::TempDir);

impl MadeTree {
    /// Creates files with content, and folders where the path ends with a slash.
    fn new(files: &[(&str, &str)]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        tree.add(files);
        tree
    }

    fn debian(files: &[(&str, &str)]) -> Self {
        let tree = Self::new(files);
        tree.add(&[("/run/systemd/system/", ""), ("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")]);
        tree
    }

    fn add(&self, files: &[(&str, &str)]) {
        for (path, content) in files {
            let place = self.place(path);
            let folder = if path.ends_with('/') { &place } else { place.parent().unwrap() };
            fs::create_dir_all(folder).unwrap();
            if !path.ends_with('/') {
                fs::write(&place, content).unwrap();
            }
        }
    }

    fn place(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_matches('/'))
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.place(path)).ok()
    }

    fn root(&self, mounts: &[&str]) -> SealRoot {
        SealRoot::new(self.0.path().to_owned(), mounts.iter().map(|path| self.place(path)).collect())
    }

    fn seal(&self, operation: &str) {
        let operation = OPERATIONS.iter().find(|known| known.name == operation).unwrap();
        operations::carry_out(&self.root(&[]), operation).unwrap();
    }

    /// Carries out every operation that mounts nothing.
    fn seal_all(&self) {
        for operation in &OPERATIONS {
            let files = if operation.name == "random-seed" { &[] } else { operation.files };
            let SealOperation { name, description, identities, .. } = *operation;
            let without_mounts = SealOperation { name, description, identities, files };
            operations::carry_out(&self.root(&[]), &without_mounts).unwrap();
        }
    }

    /// Returns the paths of all files and links, sorted.
    fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut open = vec![self.0.path().to_owned()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    open.push(entry.path());
                } else {
                    found.push(format!("/{}", entry.path().strip_prefix(self.0.path()).unwrap().display()));
                }
            }
        }
        found.sort();
        found
    }
}

#[test]
fn the_machine_id_becomes_what_the_init_system_wants() {
    let systemd = MadeTree::debian(&[("/var/lib/dbus/", "")]);
    symlink("/etc/machine-id", systemd.place("/var/lib/dbus/machine-id")).unwrap();
    let other = MadeTree::new(&[("/etc/machine-id", "0123\n"), ("/var/lib/dbus/machine-id", "0123\n")]);
    let none = MadeTree::new(&[("/etc/passwd", "")]);
    for tree in [&systemd, &other, &none] {
        tree.seal("machine-id");
    }
    assert_eq!(systemd.read("/etc/machine-id").as_deref(), Some("uninitialized\n"));
    assert!(systemd.place("/var/lib/dbus/machine-id").is_symlink());
    assert_eq!(other.read("/etc/machine-id").as_deref(), Some(""));
    assert_eq!(other.read("/var/lib/dbus/machine-id"), None);
    assert_eq!(none.files(), ["/etc/passwd"]);
}

#[test]
fn what_cloud_init_generated_goes_with_its_state() {
    let generated = "# This file is generated from information provided by the datasource.\n";
    let files = [
        ("/etc/cloud/cloud.cfg", "x"),
        ("/etc/netplan/50-cloud-init.yaml", generated),
        ("/etc/netplan/01-own.yaml", generated),
        ("/etc/ssh/sshd_config.d/50-cloud-init.conf", "PasswordAuthentication no\n"),
        ("/var/lib/cloud/data/instance-id", "kiln-build"),
        ("/var/log/cloud-init.log", "x"),
    ];
    let tree = MadeTree::debian(&files);
    tree.seal("cloud-init");
    assert_eq!(
        tree.files(),
        [
            "/etc/cloud/cloud.cfg",
            "/etc/machine-id",
            "/etc/netplan/01-own.yaml",
            "/etc/ssh/sshd_config.d/50-cloud-init.conf"
        ]
    );
    // No program would create the configuration anew.
    let purged = MadeTree::debian(&files[1..]);
    purged.seal("cloud-init");
    assert!(purged.read("/etc/netplan/50-cloud-init.yaml").is_some() && !purged.place("/var/lib/cloud").exists());
}

#[test]
fn users_keep_their_keys_and_lose_what_the_build_wrote() {
    let tree = MadeTree::debian(&[
        ("/etc/passwd", "root:x:0:0::/root:/bin/sh\ndev:x:1:1::/srv/dev:/bin/sh\nbin:x:2:2::/:/bin/false\n"),
        ("/root/.ssh/known_hosts", "x"),
        ("/root/.bash_history", "x"),
        ("/srv/dev/.ssh/known_hosts", "x"),
        ("/srv/dev/.ssh/authorized_keys", "x"),
        ("/srv/dev/.ssh/id_ed25519", "x"),
        ("/srv/dev/.zsh_history", "x"),
        ("/srv/dev/.mysql_history", "x"),
        ("/srv/dev/.local/share/fish/fish_history", "x"),
        ("/.bash_history", "of nobody"),
    ]);
    tree.seal("ssh-userdir");
    tree.seal("bash-history");
    assert!(!tree.place("/root/.ssh").exists());
    assert_eq!(
        tree.files(),
        [
            "/.bash_history",
            "/etc/machine-id",
            "/etc/passwd",
            "/srv/dev/.ssh/authorized_keys",
            "/srv/dev/.ssh/id_ed25519"
        ]
    );
}

#[test]
fn logs_are_emptied_and_rotated_ones_removed() {
    let tree = MadeTree::debian(&[
        ("/var/log/syslog", "x"),
        ("/var/log/syslog.1", "x"),
        ("/var/log/apt/history.log", "x"),
        ("/var/log/apt/history.log.2.gz", "x"),
        ("/var/log/folder.old/log", "x"),
        ("/var/log/journal/0123/system.journal", "x"),
        ("/var/log/sub/mounted/log", "x"),
    ]);
    symlink("/etc/machine-id", tree.place("/var/log/link")).unwrap();
    let logfiles = find_operations(&["logfiles".to_owned()]).unwrap();
    operations::carry_out(&tree.root(&["/var/log/sub/mounted"]), logfiles[0]).unwrap();
    assert_eq!(tree.read("/var/log/syslog").as_deref(), Some(""));
    assert_eq!(tree.read("/var/log/apt/history.log").as_deref(), Some(""));
    assert_eq!(tree.read("/var/log/sub/mounted/log").as_deref(), Some("x"), "another file system");
    assert!(tree.read("/etc/machine-id").unwrap().starts_with("0123"), "a link is not followed");
    assert!(!tree.place("/var/log/syslog.1").exists() && !tree.place("/var/log/apt/history.log.2.gz").exists());
    assert_eq!(tree.read("/var/log/folder.old/log").as_deref(), Some(""), "a folder is no rotated log");
    assert!(tree.place("/var/log/journal").is_dir() && !tree.place("/var/log/journal/0123").exists());
}

#[test]
fn nothing_behind_a_mount_is_lost() {
    let tree =
        MadeTree::debian(&[("/tmp/a/file", "x"), ("/tmp/chroot/data/file", "precious"), ("/tmp/chroot/etc/x", "x")]);
    let root = tree.root(&["/tmp/chroot/data"]);
    let tmp_files = find_operations(&["tmp-files".to_owned()]).unwrap();
    operations::carry_out(&root, tmp_files[0]).unwrap();
    assert_eq!(tree.files(), ["/etc/machine-id", "/tmp/chroot/data/file"]);
    assert!(!tree.place("/tmp/a").exists() && !tree.place("/tmp/chroot/etc").exists());
    assert!(root.take_notes()[0].contains("a file system is mounted there"));
}

/// Sets attributes of chattr(1); returns false if the test's file system does not support them.
fn set_flags(place: &Path, flags: u64) -> bool {
    File::open(place).and_then(|file| sys::set_inode_flags(&file, sys::inode_flags(&file)? | flags)).is_ok()
}

fn has_flags(place: &Path, flags: u64) -> bool {
    File::open(place).and_then(|file| sys::inode_flags(&file)).is_ok_and(|found| found & flags == flags)
}

#[test]
fn append_only_and_immutable_files_are_no_obstacle() {
    let tree = MadeTree::debian(&[
        ("/var/log/audit/audit.log", "x"),
        ("/tmp/immutable/file", "x"),
        ("/etc/ssh/ssh_host_rsa_key", "x"),
    ]);
    if !set_flags(&tree.place("/var/log/audit/audit.log"), APPEND_ONLY) {
        println!("SKIPPED: the file system has no such attributes, or the test is not run by root");
        return;
    }
    for path in ["/tmp/immutable/file", "/tmp/immutable", "/etc/ssh", "/etc/ssh/ssh_host_rsa_key", "/etc/machine-id"] {
        assert!(set_flags(&tree.place(path), IMMUTABLE), "{path}");
    }
    tree.seal_all();
    assert_eq!(tree.files(), ["/etc/machine-id", "/var/log/audit/audit.log"]);
    assert_eq!(tree.read("/var/log/audit/audit.log").as_deref(), Some(""));
    assert!(has_flags(&tree.place("/var/log/audit/audit.log"), APPEND_ONLY), "it is append-only in the image too");
    assert!(has_flags(&tree.place("/etc/ssh"), IMMUTABLE) && has_flags(&tree.place("/etc/machine-id"), IMMUTABLE));
    for path in ["/var/log/audit/audit.log", "/etc/ssh", "/etc/machine-id"] {
        let file = File::open(tree.place(path)).unwrap();
        sys::set_inode_flags(&file, sys::inode_flags(&file).unwrap() & !(APPEND_ONLY | IMMUTABLE)).unwrap();
    }
}

/// Files that Debian packages create at installation.
const DEBIAN_PACKAGES: [(&str, &str); 18] = [
    ("/etc/ssh/ssh_host_ed25519_key", "x"),
    ("/etc/ssh/ssh_host_ed25519_key.pub", "x"),
    ("/etc/nvme/hostnqn", "nqn.2014-08.org.nvmexpress:uuid:6b696c6e-0000-4000-8000-000000000001\n"),
    ("/etc/nvme/hostid", "x"),
    ("/etc/iscsi/initiatorname.iscsi", "## x\nInitiatorName=iqn.1993-08.org.debian:01:187bb6704796\n"),
    ("/usr/lib/open-iscsi/startup-checks.sh", "x"),
    ("/etc/ssl/private/ssl-cert-snakeoil.key", "x"),
    ("/etc/resolv.conf", "search example.org\nnameserver 10.0.2.3\nnameserver 192.0.2.1\n"),
    ("/var/lib/dhcp/dhclient.eth0.leases", "default-duid \"x\";\n"),
    ("/var/lib/mysql/auto.cnf", "x"),
    ("/var/lib/snmp/snmpd.conf", "engineBoots 3\noldEngineID 0x80001f88\n"),
    ("/etc/popularity-contest.conf", "MY_HOSTID=\"x\"\nDAY=\"1\"\n"),
    ("/etc/puppetlabs/puppet/ssl/private_keys/a.pem", "x"),
    ("/etc/salt/pki/minion/minion.pem", "x"),
    ("/var/lib/docker/engine-id", "x"),
    ("/etc/multipath/wwids", "x"),
    ("/var/lib/systemd/random-seed", "x"),
    ("/var/lib/NetworkManager/secret_key", "x"),
];

#[test]
fn what_debians_packages_make_is_made_anew_or_stays() {
    let tree = MadeTree::debian(&DEBIAN_PACKAGES);
    fs::set_permissions(tree.place("/etc/iscsi/initiatorname.iscsi"), PermissionsExt::from_mode(0o600)).unwrap();
    tree.seal_all();
    assert_eq!(
        tree.files(),
        [
            "/etc/iscsi/initiatorname.iscsi",
            "/etc/machine-id",
            "/etc/popularity-contest.conf",
            "/etc/resolv.conf",
            "/etc/ssl/private/ssl-cert-snakeoil.key",
            "/usr/lib/open-iscsi/startup-checks.sh",
            "/var/lib/snmp/snmpd.conf",
        ]
    );
    let read = |path: &str| tree.read(path).unwrap();
    assert_eq!(read("/etc/iscsi/initiatorname.iscsi"), "GenerateName=yes\n");
    assert_eq!(fs::metadata(tree.place("/etc/iscsi/initiatorname.iscsi")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(read("/etc/resolv.conf"), "search example.org\nnameserver 192.0.2.1\n");
    assert_eq!(read("/var/lib/snmp/snmpd.conf"), "engineBoots 3\n");
    assert_eq!(read("/etc/popularity-contest.conf"), "MY_HOSTID=\"x\"\nDAY=\"1\"\n");
}

#[test]
fn what_depends_on_an_identity_keeps_it() {
    let tree = MadeTree::debian(&[
        ("/var/lib/snmp/snmpd.conf", "oldEngineID 0x80001f88\nusmUser 1 3 0x80001f88 0x61\n"),
        ("/etc/puppetlabs/puppet/ssl/private_keys/a.pem", "x"),
        ("/etc/puppetlabs/puppetserver/ca/ca_key.pem", "x"),
    ]);
    tree.seal_all();
    assert!(tree.read("/var/lib/snmp/snmpd.conf").unwrap().contains("oldEngineID"));
    assert!(tree.place("/etc/puppetlabs/puppet/ssl/private_keys/a.pem").exists());
}

#[test]
fn fedoras_files_are_where_fedora_has_them() {
    let tree = MadeTree::debian(&[
        ("/etc/sysconfig/network-scripts/ifcfg-eth0", "DEVICE=eth0\nHWADDR=52:54:00:6b:69:6c\n"),
        ("/etc/iscsi/initiatorname.iscsi", "InitiatorName=iqn.1994-05.com.redhat:1\n"),
        ("/usr/lib/systemd/system/iscsi-init.service", "x"),
        ("/etc/pki/tls/private/localhost.key", "x"),
        ("/usr/lib/systemd/system/httpd-init.service", "x"),
        ("/etc/lvm/devices/system.devices", "x"),
        ("/var/lib/dnf/repos/fedora-1/countme", "x"),
        ("/var/cache/libdnf5/fedora/x", "x"),
        ("/etc/pki/consumer/key.pem", "x"),
        ("/boot/loader/random-seed", "x"),
        ("/etc/passwd-", "x"),
        ("/etc/yum.repos.d/a.repo.rpmsave", "x"),
    ]);
    tree.seal_all();
    assert_eq!(
        tree.files(),
        [
            "/etc/machine-id",
            "/etc/pki/consumer/key.pem",
            "/etc/sysconfig/network-scripts/ifcfg-eth0",
            "/usr/lib/systemd/system/httpd-init.service",
            "/usr/lib/systemd/system/iscsi-init.service",
        ]
    );
    assert_eq!(tree.read("/etc/sysconfig/network-scripts/ifcfg-eth0").as_deref(), Some("DEVICE=eth0\n"));
}

#[test]
fn alpines_and_opensuses_files_are_where_those_have_them() {
    let alpine = MadeTree::new(&[
        ("/var/lib/misc/random-seed", "x"),
        ("/var/lib/seedrng/seed.credit", "x"),
        ("/var/lib/dhcpcd/duid", "x"),
        ("/var/cache/apk/APKINDEX.1.tar.gz", "x"),
        ("/etc/ssh/ssh_host_rsa_key", "x"),
        ("/etc/init.d/sshd", "x"),
        ("/root/.ash_history", "x"),
        ("/etc/passwd", "root:x:0:0:root:/root:/bin/ash\n"),
    ]);
    alpine.seal_all();
    assert_eq!(alpine.files(), ["/etc/init.d/sshd", "/etc/passwd"]);
    let opensuse = MadeTree::debian(&[
        ("/var/lib/wicked/duid.xml", "x"),
        ("/var/lib/wicked/lease-eth0-dhcp-ipv4.xml", "x"),
        ("/var/lib/zypp/AnonymousUniqueId", "x"),
        ("/var/cache/zypp/raw/x", "x"),
        ("/etc/zypp/credentials.d/SCCcredentials", "x"),
    ]);
    opensuse.seal_all();
    assert_eq!(opensuse.files(), ["/etc/machine-id", "/etc/zypp/credentials.d/SCCcredentials"]);
}

#[test]
fn the_rest_of_the_operations_remove_what_they_say() {
    for (operation, gone, kept) in [
        (
            "dhcp-client-state",
            "/var/lib/NetworkManager/internal-1.lease",
            "/var/lib/NetworkManager/NetworkManager.state",
        ),
        ("package-manager-cache", "/var/lib/apt/lists/deb.debian.org_x", "/var/lib/apt/extended_states"),
        ("crash-data", "/var/crash/core", "/var/crashes/core"),
        ("mail-spool", "/var/mail/root", "/var/mailx"),
        ("utmp", "/var/lib/wtmpdb/wtmp.db", "/var/lib/wtmpdb/other"),
        ("backup-files", "/etc/a/b/c.conf.dpkg-old", "/etc/a/b/c.conf"),
        ("caches", "/var/cache/man/index.db", "/var/cache/other/x"),
        ("timers", "/var/lib/systemd/timers/stamp-apt.timer", "/var/lib/systemd/linger/dev"),
        ("sssd-db-log", "/var/lib/sss/db/config.ldb", "/var/lib/sss/keytabs/x"),
        ("container-ids", "/etc/docker/key.json", "/etc/docker/daemon.json"),
        ("agent-ids", "/var/lib/filebeat/meta.json", "/var/lib/filebeat/registry/x"),
    ] {
        let tree = MadeTree::debian(&[(gone, "x"), (kept, "x")]);
        tree.seal(operation);
        assert!(!tree.place(gone).exists(), "{operation} {gone}");
        assert!(tree.place(kept).exists(), "{operation} {kept}");
    }
}

#[test]
fn an_operation_that_is_not_known_is_refused() {
    assert!(find_operations(&["machine-id".to_owned(), "other".to_owned()]).unwrap_err().text.contains("`other`"));
}

#[test]
fn a_file_that_cannot_be_removed_is_named_with_its_operation() {
    let tree = MadeTree::debian(&[("/etc/passwd", "root:x:0:0::/etc/passwd:/bin/sh\n")]);
    // A home that is a file contains nothing.
    tree.seal("bash-history");
    let looping = tree.place("/var/log");
    fs::create_dir_all(tree.place("/var")).unwrap();
    symlink("log", &looping).unwrap();
    let logfiles = find_operations(&["logfiles".to_owned()]).unwrap();
    let refusal = operations::carry_out(&tree.root(&[]), logfiles[0]).unwrap_err();
    assert!(
        refusal.text.starts_with("the operation `logfiles` failed: ") && refusal.text.contains("var/log"),
        "{refusal:?}"
    );
}

#[test]
fn later_times_are_set_back_and_recorded() {
    let tree = MadeTree::new(&[("/etc/new", "x"), ("/etc/old", "x"), ("/mnt/other/new", "x")]);
    let set = |path: &str, seconds: i64| sys::set_mtime(&tree.place(path), seconds * 1_000_000_000).unwrap();
    for (path, seconds) in [("/etc/new", 5000), ("/etc/old", 10), ("/mnt/other/new", 5000)] {
        set(path, seconds);
    }
    let mut records = Vec::new();
    let mounts = [tree.0.path().to_owned(), tree.place("/mnt/other")];
    times::set_back(tree.0.path(), &mounts[..1], 1000, &mut records).unwrap();
    let mtime = |path: &str| fs::metadata(tree.place(path)).unwrap().mtime();
    assert_eq!((mtime("/etc/new"), mtime("/etc/old"), mtime("/etc")), (1000, 10, 1000));
    let records = String::from_utf8(records).unwrap();
    let paths: HashSet<&str> =
        records.split_terminator('\0').filter_map(|record| record.split_once(' ')).map(|r| r.1).collect();
    assert!(
        paths.contains("/etc/new") && paths.contains("/mnt/other/new") && !paths.contains("/etc/old"),
        "{records:?}"
    );
    set("/mnt/other/new", 5000);
    times::set_back(tree.0.path(), &mounts[1..], 1000, &mut Vec::new()).unwrap();
    assert_eq!(mtime("/mnt/other/new"), 1000);
}
