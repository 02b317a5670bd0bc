//! The sealing operations by name: what `[seal] skip` accepts and `kiln seal --list` prints.
//!
//! Names follow virt-sysprep where it has the operation. How each is done is `build::seal`'s.

/// Name and one line of every operation, in the order in which they run.
pub const OPERATIONS: [(&str, &str); 17] = [
    (
        "cloud-init",
        "cloud-init's state, logs and the files it generated, so that the image's first boot is a first boot",
    ),
    ("machine-id", "/etc/machine-id and D-Bus's copy, made anew at first boot"),
    ("ssh-hostkeys", "OpenSSH's host keys, made anew at first boot"),
    ("ssh-userdir", "root's and users' known_hosts and authorized keys that the build left behind"),
    ("dhcp-client-state", "leases of dhclient, systemd-networkd and NetworkManager"),
    ("net-hwaddr", "network cards bound to the build machine's MAC address"),
    ("random-seed", "systemd's random seed and credential secret, and the ESP's random seed"),
    ("logfiles", "log files and the journal"),
    ("bash-history", "shells' history files"),
    ("package-manager-cache", "downloaded packages and package lists of apt, dnf, zypper and apk"),
    ("tmp-files", "/tmp and /var/tmp"),
    ("crash-data", "crash dumps and core files"),
    ("mail-spool", "local mail"),
    ("utmp", "records of logins and boots"),
    ("backup-files", "old copies such as /etc/passwd- and *.dpkg-old"),
    ("caches", "ldconfig's aux-cache, font and man page caches that vary from run to run"),
    ("timers", "stamps that systemd's timers and cron keep of their last run"),
];
