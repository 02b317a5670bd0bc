//! The operations of sealing: the single source of what `kiln seal --list` prints, what `[seal] skip` accepts, what the
//! agent does in the guest and what kiln then looks for in the image.
//!
//! Names follow virt-sysprep if it has the operation. The files that an operation treats are given by
//! [patterns](super::path_pattern).

pub mod identities;

use identities as made;

/// An operation of sealing.
#[derive(Debug)]
pub struct SealOperation {
    /// The name in a spec.
    pub name: &'static str,
    /// A one-line description.
    pub description: &'static str,
    /// Identities that all clones of the image would share.
    pub identities: &'static [MachineIdentity],
    /// The other files that it treats, in this order and after the identities.
    pub files: &'static [FileTreatment],
}

/// Something that must differ in each clone of an image.
#[derive(Debug)]
pub struct MachineIdentity {
    /// The name of the identity.
    pub name: &'static str,
    /// Patterns of the files with the identity.
    pub paths: &'static [&'static str],
    /// The part of such a file that is the identity.
    pub form: IdentityForm,
    /// What prevents the identity from being removed.
    pub pin: IdentityPin,
    /// How the identity is created anew.
    pub renewal: IdentityRenewal,
}

/// The part of a file that is an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityForm {
    /// The whole file.
    File,
    /// The whole file, if it has a line that begins with this string.
    FileWith(&'static str),
    /// Only the lines that begin with this string.
    Lines(&'static str),
}

/// A dependency of other data in an image on an identity, so that removing the identity would break that data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityPin {
    /// Nothing depends on the identity.
    Loose,
    /// A line of the same file that begins with this string depends on it.
    Line(&'static str),
    /// One of these files depends on it.
    File(&'static [&'static str]),
}

/// The way in which an identity is created anew in a clone.
#[derive(Debug, Clone, Copy)]
pub enum IdentityRenewal {
    /// The program that uses it creates it if it is missing.
    WhenMissing(&'static str),
    /// The first of these programs that is in the image creates it.
    By(&'static [IdentityMaker]),
    /// The first of these programs that is in the image creates it. It is removed even if there is none, since sharing it is
    /// worse than lacking it.
    Always {
        /// The programs.
        makers: &'static [IdentityMaker],
        /// The program that does not work without it.
        user: &'static str,
        /// The remedy if none of the makers exists.
        remedy: &'static str,
    },
    /// No program creates it: it is kept, with a warning that contains this remedy.
    Never(&'static str),
}

/// A program that creates an identity anew.
#[derive(Debug)]
pub struct IdentityMaker {
    /// The name of the program.
    pub name: &'static str,
    /// Files of which one exists if the program is installed.
    pub files: &'static [&'static str],
    /// The content that it expects in the file; `None` if the file has to be missing.
    pub placeholder: Option<&'static str>,
}

/// The treatment of files that are no identities. Missing files are no errors.
#[derive(Debug, Clone, Copy)]
pub enum FileTreatment {
    /// Removes what the pattern matches, folders with all their content.
    Remove(&'static str),
    /// Removes regular files.
    RemoveFiles(&'static str),
    /// Removes the folders that are empty.
    RemoveEmptyFolder(&'static str),
    /// Removes files that mention one of the words in any case, if the file `maker` exists, whose owner creates them anew.
    RemoveGenerated {
        /// The pattern of the files.
        pattern: &'static str,
        /// The words, in lower case.
        words: &'static [&'static str],
        /// The file of the program that generates them.
        maker: &'static str,
    },
    /// Empties files.
    Empty(&'static str),
    /// Mounts a tmpfs over a folder if the init system is not systemd: a seed that is saved during shutdown disappears with
    /// it.
    HideFromShutdown(&'static str),
}

use FileTreatment::{Empty, HideFromShutdown, Remove, RemoveEmptyFolder, RemoveFiles, RemoveGenerated};

/// Creates the treatment of a configuration that cloud-init generated for the build's own instance.
const fn generated(pattern: &'static str) -> FileTreatment {
    RemoveGenerated { pattern, words: &["cloud-init", "datasource"], maker: "/etc/cloud/cloud.cfg" }
}

/// All operations, in the order in which they run.
pub static OPERATIONS: [SealOperation; 26] = [
    SealOperation {
        name: "cloud-init",
        description: "cloud-init's state, logs and the files it generated, so that the image's first boot is a first boot",
        identities: made::CLOUD_INIT,
        files: &[
            generated("/etc/netplan/50-cloud-init.yaml"),
            generated("/etc/network/interfaces.d/50-cloud-init*"),
            generated("/etc/systemd/network/10-cloud-init-*"),
            generated("/etc/NetworkManager/system-connections/cloud-init-*"),
            generated("/etc/NetworkManager/conf.d/*cloud-init.conf"),
            generated("/etc/sysconfig/network-scripts/ifcfg-eth0"),
            generated("/etc/cloud/cloud.cfg.d/90-installer-network.cfg"),
            generated("/etc/sudoers.d/90-cloud-init-users"),
            generated("/etc/ssh/sshd_config.d/50-cloud-init.conf"),
            generated("/etc/apt/sources.list.d/cloud-init.list"),
            Remove("/etc/udev/rules.d/70-persistent-net.rules.cloud-init"),
            Remove("/var/lib/cloud"),
            Remove("/run/cloud-init"),
            Remove("/var/log/cloud-init.log"),
            Remove("/var/log/cloud-init-output.log"),
        ],
    },
    SealOperation {
        name: "machine-id",
        description: "/etc/machine-id and D-Bus's copy, made anew at first boot",
        identities: made::MACHINE_ID,
        files: &[],
    },
    SealOperation {
        name: "ssh-hostkeys",
        description: "host keys of OpenSSH, made anew at first boot; warns of those that are not",
        identities: made::SSH_HOSTKEYS,
        files: &[],
    },
    SealOperation {
        name: "ssh-userdir",
        description: "known_hosts of root and of users; authorized keys stay, and private keys are warned of",
        identities: made::SSH_USERDIR,
        files: &[Remove("~/.ssh/known_hosts"), Remove("~/.ssh/known_hosts.old"), RemoveEmptyFolder("~/.ssh")],
    },
    SealOperation {
        name: "dhcp-client-state",
        description: "leases, DUIDs and keys of dhclient, dhcpcd, systemd-networkd, NetworkManager and wicked",
        identities: made::DHCP_CLIENT_STATE,
        files: &[
            Remove("/var/lib/dhcp/*.leases"),
            Remove("/var/lib/dhclient/*"),
            Remove("/var/lib/dhcpcd/*.lease"),
            Remove("/var/lib/dhcpcd/*.lease6"),
            Remove("/var/lib/NetworkManager/*lease*"),
            Remove("/var/lib/NetworkManager/timestamps"),
            Remove("/var/lib/wicked/lease-*.xml"),
            Remove("/run/systemd/netif/leases/*"),
        ],
    },
    SealOperation {
        name: "net-hwaddr",
        description: "network cards bound to the build machine's MAC address",
        identities: made::NET_HWADDR,
        files: &[],
    },
    SealOperation {
        name: "resolv-conf",
        description: "the DNS server of the build's network in /etc/resolv.conf",
        identities: made::RESOLV_CONF,
        files: &[],
    },
    SealOperation {
        name: "random-seed",
        description: "random seeds of systemd, other init systems, Pollinate and the ESP, and systemd's credential secret",
        identities: made::RANDOM_SEED,
        files: &[
            HideFromShutdown("/var/lib/urandom"),
            HideFromShutdown("/var/lib/seedrng"),
            HideFromShutdown("/var/lib/misc"),
        ],
    },
    SealOperation {
        name: "storage-ids",
        description: "names of NVMe hosts and iSCSI initiators, and records of multipath and blkid",
        identities: made::STORAGE_IDS,
        files: &[Remove("/etc/multipath/wwids"), Remove("/etc/blkid.tab"), Remove("/etc/blkid/blkid.tab")],
    },
    SealOperation {
        name: "lvm-system-devices",
        description: "LVM's list of the build machine's disks",
        identities: &[],
        files: &[Remove("/etc/lvm/devices/system.devices"), Remove("/etc/lvm/devices/backup/*")],
    },
    SealOperation {
        name: "tls-keys",
        description: "self-signed certificates and keys that packages made, where something makes them anew; warns of others",
        identities: made::TLS_KEYS,
        files: &[],
    },
    SealOperation {
        name: "yum-uuid",
        description: "IDs by which yum, dnf and zypper are counted, and registrations with vendors, which are warned of",
        identities: made::YUM_UUID,
        files: &[],
    },
    SealOperation {
        name: "sssd-db-log",
        description: "caches of SSSD",
        identities: &[],
        files: &[Remove("/var/lib/sss/db/*"), Remove("/var/lib/sss/mc/*")],
    },
    SealOperation {
        name: "container-ids",
        description: "IDs of container engines and keys of Kubernetes nodes",
        identities: made::CONTAINER_IDS,
        files: &[],
    },
    SealOperation {
        name: "database-ids",
        description: "IDs and keys of database servers, where they make them anew; warns of others",
        identities: made::DATABASE_IDS,
        files: &[],
    },
    SealOperation {
        name: "agent-ids",
        description: "IDs and keys of agents for configuration, monitoring and VPNs; warns of those that nothing makes anew",
        identities: made::AGENT_IDS,
        files: &[],
    },
    SealOperation {
        name: "logfiles",
        description: "log files and the journal",
        identities: &[],
        files: &[Remove("/var/log/journal/*"), RemoveFiles("/var/log/**/*.{gz,xz,old,[0-9]}"), Empty("/var/log/**/*")],
    },
    SealOperation {
        name: "bash-history",
        description: "history files of shells, interpreters, database clients, less and vim",
        identities: &[],
        files: &[
            Remove("~/.bash_history"),
            Remove("~/.ash_history"),
            Remove("~/.sh_history"),
            Remove("~/.ksh_history"),
            Remove("~/.mksh_history"),
            Remove("~/.zsh_history"),
            Remove("~/.zhistory"),
            Remove("~/.histfile"),
            Remove("~/.history"),
            Remove("~/.local/share/fish/*_history"),
            Remove("~/.python_history"),
            Remove("~/.local/state/python_history"),
            Remove("~/.node_repl_history"),
            Remove("~/.irb_history"),
            Remove("~/.local/share/irb/irb_history"),
            Remove("~/.php_history"),
            Remove("~/.gdb_history"),
            Remove("~/.mysql_history"),
            Remove("~/.mariadb_history"),
            Remove("~/.psql_history"),
            Remove("~/.sqlite_history"),
            Remove("~/.rediscli_history"),
            Remove("~/.dbshell"),
            Remove("~/.mongodb/mongosh/mongosh_repl_history"),
            Remove("~/.lesshst"),
            Remove("~/.local/state/lesshst"),
            Remove("~/.viminfo"),
        ],
    },
    SealOperation {
        name: "package-manager-cache",
        description: "downloaded packages and package lists of apt, dnf, zypper, apk and pacman",
        identities: &[],
        files: &[
            Remove("/var/cache/apt/archives/*.deb"),
            Remove("/var/cache/apt/archives/partial/*"),
            Remove("/var/cache/apt/*.bin"),
            Remove("/var/lib/apt/lists/*"),
            Remove("/var/cache/dnf/*"),
            Remove("/var/cache/libdnf5/*"),
            Remove("/var/cache/yum/*"),
            Remove("/var/cache/zypp/*"),
            Remove("/var/cache/apk/*"),
            Remove("/var/cache/pacman/pkg/*"),
        ],
    },
    SealOperation {
        name: "tmp-files",
        description: "/tmp and /var/tmp, but not what is mounted below them",
        identities: &[],
        files: &[Remove("/tmp/*"), Remove("/var/tmp/*")],
    },
    SealOperation {
        name: "crash-data",
        description: "crash dumps and core files",
        identities: &[],
        files: &[
            Remove("/var/crash/*"),
            Remove("/var/lib/systemd/coredump/*"),
            Remove("/var/lib/systemd/pstore/*"),
            Remove("/var/spool/abrt/*"),
        ],
    },
    SealOperation {
        name: "mail-spool",
        description: "local mail",
        identities: &[],
        files: &[Remove("/var/spool/mail/*"), Remove("/var/mail/*")],
    },
    SealOperation {
        name: "utmp",
        description: "records of logins and boots",
        identities: &[],
        files: &[
            Empty("/var/log/wtmp"),
            Empty("/var/log/btmp"),
            Empty("/var/log/lastlog"),
            Remove("/var/lib/lastlog/lastlog2.db"),
            Remove("/var/lib/wtmpdb/wtmp.db"),
        ],
    },
    SealOperation {
        name: "backup-files",
        description: "old copies such as /etc/passwd- and *.dpkg-old",
        identities: &[],
        files: &[
            Remove("/etc/passwd-"),
            Remove("/etc/shadow-"),
            Remove("/etc/group-"),
            Remove("/etc/gshadow-"),
            Remove("/etc/subuid-"),
            Remove("/etc/subgid-"),
            RemoveFiles("/etc/**/*.{dpkg-old,rpmsave,ucf-old}"),
        ],
    },
    SealOperation {
        name: "caches",
        description: "ldconfig's aux-cache, font and man page caches that vary from run to run",
        identities: &[],
        files: &[
            Remove("/var/cache/ldconfig/aux-cache"),
            Remove("/var/cache/debconf/*-old"),
            Remove("/var/lib/dpkg/*-old"),
            Remove("/var/cache/fontconfig/*"),
            Remove("/var/cache/man/*"),
        ],
    },
    SealOperation {
        name: "timers",
        description: "stamps that systemd's timers and cron keep of their last run",
        identities: &[],
        files: &[
            Remove("/var/lib/systemd/timers/*"),
            Remove("/var/lib/systemd/timesync/clock"),
            Remove("/var/spool/anacron/*"),
            Remove("/var/lib/apt/periodic/*"),
            Remove("/var/lib/logrotate/status"),
        ],
    },
];

impl MachineIdentity {
    /// Returns the files that pin the identity.
    #[must_use]
    pub fn pinning_files(&self) -> &'static [&'static str] {
        match self.pin {
            IdentityPin::File(files) => files,
            IdentityPin::Loose | IdentityPin::Line(_) => &[],
        }
    }

    /// Returns the remedy that keeps clones from sharing the identity, if it is in an image and is not removed.
    #[must_use]
    pub fn remedy(&self, is_pinned: bool) -> String {
        match (self.renewal, self.form) {
            (IdentityRenewal::Never(remedy), _) => remedy.to_owned(),
            _ if is_pinned => {
                "other files of the image depend on it, so let the first boot make it together with them".to_owned()
            }
            (_, IdentityForm::File) => {
                "let the last step remove it, and a service make it at first boot if it is needed".to_owned()
            }
            (_, IdentityForm::FileWith(line) | IdentityForm::Lines(line)) => {
                format!(
                    "let the last step remove its line `{line}`, and a service write it at first boot if it is needed"
                )
            }
        }
    }
}

impl IdentityForm {
    /// Returns whether a file of this content is the identity, or contains it.
    #[must_use]
    pub fn is_in(&self, content: &[u8]) -> bool {
        match self {
            Self::File => true,
            Self::FileWith(beginning) | Self::Lines(beginning) => has_line(content, beginning),
        }
    }
}

/// Returns whether a line begins with this string, after blanks.
#[must_use]
pub fn has_line(content: &[u8], beginning: &str) -> bool {
    content.split(|byte| *byte == b'\n').any(|line| line.trim_ascii_start().starts_with(beginning.as_bytes()))
}

impl IdentityRenewal {
    /// Returns the programs that may create the identity anew, if that depends on the image.
    #[must_use]
    pub fn makers(&self) -> &'static [IdentityMaker] {
        match self {
            Self::By(makers) | Self::Always { makers, .. } => makers,
            Self::WhenMissing(_) | Self::Never(_) => &[],
        }
    }

    /// Returns whether a file of this content is a placeholder that a program replaces.
    #[must_use]
    pub fn is_placeholder(&self, content: &[u8]) -> bool {
        let content = content.trim_ascii();
        let mut placeholders = self.makers().iter().filter_map(|maker| maker.placeholder);
        placeholders.any(|placeholder| placeholder.trim().as_bytes() == content)
    }

    /// Returns whether a program creates the identity anew in an image; `exists` returns whether the image has a file.
    ///
    /// # Errors
    /// Those of `exists`.
    pub fn is_certain<E>(&self, exists: &mut dyn FnMut(&str) -> Result<bool, E>) -> Result<bool, E> {
        match self {
            Self::WhenMissing(_) => Ok(true),
            Self::Never(_) => Ok(false),
            Self::By(makers) | Self::Always { makers, .. } => Ok(find_maker(makers, exists)?.is_some()),
        }
    }
}

/// Returns the first of several programs that is installed.
///
/// # Errors
/// Those of `exists`.
pub fn find_maker<E>(
    makers: &'static [IdentityMaker],
    exists: &mut dyn FnMut(&str) -> Result<bool, E>,
) -> Result<Option<&'static IdentityMaker>, E> {
    for maker in makers {
        for file in maker.files {
            if exists(file)? {
                return Ok(Some(maker));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_operation_does_something_and_has_a_name_of_its_own() {
        let names: BTreeSet<_> = OPERATIONS.iter().map(|operation| operation.name).collect();
        assert_eq!(names.len(), OPERATIONS.len());
        for operation in &OPERATIONS {
            assert!(!operation.identities.is_empty() || !operation.files.is_empty(), "{}", operation.name);
            assert!(!operation.description.contains('\n') && operation.description.len() < 120, "{}", operation.name);
        }
    }

    #[test]
    fn a_line_is_found_behind_blanks() {
        assert!(has_line(b"a\n  MY_HOSTID=1\n", "MY_HOSTID="));
        assert!(!has_line(b"# MY_HOSTID=1\n", "MY_HOSTID="));
    }

    #[test]
    fn a_placeholder_is_no_identity() {
        let machine_id = &made::MACHINE_ID[0].renewal;
        for (content, expected) in [("uninitialized\n", true), ("", true), ("0123456789abcdef", false)] {
            assert_eq!(machine_id.is_placeholder(content.as_bytes()), expected, "{content}");
        }
        assert!(!IdentityRenewal::Never("").is_placeholder(b""));
    }
}
