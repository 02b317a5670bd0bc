//! Identities that must differ in each clone of an image, by operation.
//!
//! Sources: the operations of virt-sysprep(1), `cloud-init clean`, "Building Images Safely" of systemd, and the maintainer
//! scripts and units of the packages named here, in Debian, Ubuntu, Fedora, openSUSE and Alpine.

use super::{IdentityForm, IdentityMaker, IdentityPin, IdentityRenewal, MachineIdentity};

use IdentityForm::{File, FileWith, Lines};
use IdentityPin::Loose;
use IdentityRenewal::{Always, By, Never, WhenMissing};

/// A file that is there in a direct boot if systemd is the init of the guest, which does not run.
pub const SYSTEMD_IS_INIT: &str = "/run/kiln/systemd-is-init";

type Paths = &'static [&'static str];

/// Creates an identity that consists of one or several whole files, on which nothing else depends.
const fn file(name: &'static str, paths: Paths, renewal: IdentityRenewal) -> MachineIdentity {
    MachineIdentity { name, paths, form: File, pin: Loose, renewal }
}

/// Creates a systemd unit that creates an identity anew if it is missing.
const fn unit(name: &'static str, files: Paths) -> IdentityMaker {
    IdentityMaker { name, files, placeholder: None }
}

pub(super) const CLOUD_INIT: &[MachineIdentity] = &[
    file("cloud-init's instance ID", &["/var/lib/cloud/data/instance-id"], WhenMissing("cloud-init")),
    file("cloud-init's user data", &["/var/lib/cloud/instance/user-data.txt"], WhenMissing("cloud-init")),
];

pub(super) const MACHINE_ID: &[MachineIdentity] = &[
    file(
        "machine ID",
        &["/etc/machine-id"],
        By(&[
            // The next boot is then a first boot for systemd (machine-id(5)); other programs expect an empty file.
            IdentityMaker {
                name: "systemd",
                files: &["/run/systemd/system", SYSTEMD_IS_INIT],
                placeholder: Some("uninitialized\n"),
            },
            IdentityMaker { name: "D-Bus", files: &["/etc/machine-id"], placeholder: Some("") },
        ]),
    ),
    file("D-Bus machine ID", &["/var/lib/dbus/machine-id"], WhenMissing("D-Bus")),
    file(
        "host ID of gethostid(3) and ZFS",
        &["/etc/hostid"],
        Never("let the last step remove it, and where ZFS needs it, a service run `zgenhostid` at first boot"),
    ),
];

pub(super) const SSH_HOSTKEYS: &[MachineIdentity] = &[
    file(
        "SSH host keys",
        &["/etc/ssh/ssh_host_*_key", "/etc/ssh/ssh_host_*_key.pub"],
        Always {
            makers: &[
                unit("cloud-init", &["/usr/bin/cloud-init", "/usr/local/bin/cloud-init"]),
                unit("sshd-keygen@.service", &["/usr/lib/systemd/system/sshd-keygen@.service"]),
                unit("sshd-gen-keys-start", &["/usr/sbin/sshd-gen-keys-start"]),
                unit("sshdgenkeys.service", &["/usr/lib/systemd/system/sshdgenkeys.service"]),
                unit("OpenRC's sshd", &["/etc/init.d/sshd"]),
            ],
            user: "/usr/sbin/sshd",
            remedy: "keep cloud-init, or let a service run `ssh-keygen -A` before it at first boot",
        },
    ),
    file(
        "Dropbear host keys",
        &["/etc/dropbear/dropbear_*_host_key"],
        Never("let the last step remove it, and start Dropbear with `-R`, which makes missing host keys"),
    ),
];

pub(super) const SSH_USERDIR: &[MachineIdentity] = &[file(
    "private SSH keys of users",
    &["~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ed25519", "~/.ssh/id_dsa"],
    Never("let the last step remove it, and `ssh-keygen` make one in each clone"),
)];

pub(super) const DHCP_CLIENT_STATE: &[MachineIdentity] = &[
    file(
        "DUID and secret of dhcpcd",
        &["/var/lib/dhcpcd/duid", "/var/lib/dhcpcd/secret", "/etc/dhcpcd.duid", "/etc/dhcpcd.secret"],
        WhenMissing("dhcpcd"),
    ),
    MachineIdentity {
        name: "DUID of dhclient",
        paths: &["/var/lib/dhcp/*.leases", "/var/lib/dhclient/*", "/var/lib/NetworkManager/dhclient*"],
        form: FileWith("default-duid"),
        pin: Loose,
        renewal: WhenMissing("dhclient"),
    },
    file("DUID of wide-dhcpv6", &["/var/lib/dhcpv6/dhcp6c_duid"], WhenMissing("dhcp6c")),
    file("DUID of wicked", &["/var/lib/wicked/duid.xml", "/var/lib/wicked/iaid.xml"], WhenMissing("wicked")),
    file("NetworkManager's secret key", &["/var/lib/NetworkManager/secret_key"], WhenMissing("NetworkManager")),
];

pub(super) const NET_HWADDR: &[MachineIdentity] = &[
    file("udev's names of network cards", &["/etc/udev/rules.d/70-persistent-net.rules"], WhenMissing("udev")),
    MachineIdentity {
        name: "MAC addresses in network scripts",
        paths: &["/etc/sysconfig/network-scripts/ifcfg-*"],
        form: Lines("HWADDR="),
        pin: Loose,
        renewal: WhenMissing("no program; the card is known by its name"),
    },
];

pub(super) const RESOLV_CONF: &[MachineIdentity] = &[
    MachineIdentity {
        name: "DNS server of the build's network",
        paths: &["/etc/resolv.conf"],
        form: Lines("nameserver 10.0.2.3"),
        pin: Loose,
        renewal: WhenMissing("the DHCP client"),
    },
    MachineIdentity {
        name: "DNS server of the build's network (IPv6)",
        paths: &["/etc/resolv.conf"],
        form: Lines("nameserver fec0::3"),
        pin: Loose,
        renewal: WhenMissing("the DHCP client"),
    },
];

pub(super) const RANDOM_SEED: &[MachineIdentity] = &[
    file("systemd's random seed", &["/var/lib/systemd/random-seed"], WhenMissing("systemd")),
    file("systemd's credential secret", &["/var/lib/systemd/credential.secret"], WhenMissing("systemd")),
    file(
        "random seed of the ESP",
        &["/boot/efi/loader/random-seed", "/efi/loader/random-seed", "/boot/loader/random-seed"],
        WhenMissing("systemd-boot"),
    ),
    file(
        "random seeds of other init systems",
        &[
            "/var/lib/urandom/random-seed",
            "/var/lib/random-seed",
            "/var/lib/misc/random-seed",
            "/var/lib/seedrng/seed.*",
        ],
        WhenMissing("the init system"),
    ),
    file("Pollinate's stamp", &["/var/cache/pollinate/seeded"], WhenMissing("Pollinate")),
];

pub(super) const STORAGE_IDS: &[MachineIdentity] = &[
    // Without it, libnvme derives the name from the machine's own UUID (DMI) each time.
    file("NVMe host NQN", &["/etc/nvme/hostnqn"], WhenMissing("libnvme")),
    file("NVMe host ID", &["/etc/nvme/hostid"], WhenMissing("libnvme")),
    MachineIdentity {
        name: "iSCSI initiator name",
        paths: &["/etc/iscsi/initiatorname.iscsi"],
        form: FileWith("InitiatorName="),
        pin: Loose,
        renewal: By(&[
            IdentityMaker {
                name: "open-iscsi's start-up check",
                files: &["/usr/lib/open-iscsi/startup-checks.sh", "/lib/open-iscsi/startup-checks.sh"],
                placeholder: Some("GenerateName=yes\n"),
            },
            unit("iscsi-init.service", &["/usr/lib/systemd/system/iscsi-init.service"]),
        ]),
    },
    file("multipath's names of disks", &["/etc/multipath/bindings"], WhenMissing("multipathd")),
];

pub(super) const TLS_KEYS: &[MachineIdentity] = &[
    file(
        "ssl-cert's snakeoil key",
        &["/etc/ssl/private/ssl-cert-snakeoil.key", "/etc/ssl/certs/ssl-cert-snakeoil.pem"],
        By(&[unit(
            "ssl-cert.service",
            &["/usr/lib/systemd/system/ssl-cert.service", "/lib/systemd/system/ssl-cert.service"],
        )]),
    ),
    file(
        "mod_ssl's key",
        &["/etc/pki/tls/private/localhost.key", "/etc/pki/tls/certs/localhost.crt"],
        By(&[unit("httpd-init.service", &["/usr/lib/systemd/system/httpd-init.service"])]),
    ),
    file(
        "Cockpit's key",
        &[
            "/etc/cockpit/ws-certs.d/0-self-signed.key",
            "/etc/cockpit/ws-certs.d/0-self-signed.cert",
            "/etc/cockpit/ws-certs.d/0-self-signed-ca.pem",
        ],
        WhenMissing("Cockpit"),
    ),
    file(
        "Dovecot's key",
        &["/etc/pki/dovecot/private/dovecot.pem", "/etc/pki/dovecot/certs/dovecot.pem"],
        By(&[unit("dovecot-init.service", &["/usr/lib/systemd/system/dovecot-init.service"])]),
    ),
    file(
        "Postfix's key",
        &["/etc/pki/tls/private/postfix.key"],
        Never("let the last step remove it, and a service make a key and its certificate at first boot"),
    ),
    file(
        "BIND's control key",
        &["/etc/rndc.key", "/etc/bind/rndc.key"],
        By(&[unit("named-setup-rndc.service", &["/usr/lib/systemd/system/named-setup-rndc.service"])]),
    ),
    file(
        "Unbound's control keys",
        &[
            "/etc/unbound/unbound_control.key",
            "/etc/unbound/unbound_control.pem",
            "/etc/unbound/unbound_server.key",
            "/etc/unbound/unbound_server.pem",
        ],
        By(&[unit("unbound-keygen.service", &["/usr/lib/systemd/system/unbound-keygen.service"])]),
    ),
    file(
        "xrdp's keys",
        &["/etc/xrdp/rsakeys.ini"],
        Never("let the last step remove it, and a service run `xrdp-keygen xrdp auto` at first boot"),
    ),
    file(
        "CUPS's keys",
        &["/etc/cups/ssl/*.key"],
        Never("let the last step remove it, and a service make a key and its certificate at first boot"),
    ),
];

pub(super) const YUM_UUID: &[MachineIdentity] = &[
    file("UUID of yum", &["/var/lib/yum/uuid"], WhenMissing("yum")),
    file("dnf's counting windows", &["/var/lib/dnf/repos/*/countme"], WhenMissing("dnf")),
    file("zypper's anonymous ID", &["/var/lib/zypp/AnonymousUniqueId"], WhenMissing("zypper")),
    file("Smolt's UUID", &["/etc/smolt/uuid", "/etc/sysconfig/hw-uuid"], WhenMissing("Smolt")),
    file(
        "registration with Red Hat",
        &["/etc/pki/consumer/key.pem", "/etc/sysconfig/rhn/systemid"],
        Never("let the last step run `subscription-manager clean`, and register each clone"),
    ),
    file(
        "registration with SUSE",
        &["/etc/zypp/credentials.d/SCCcredentials"],
        Never("let the last step run `SUSEConnect --cleanup`, and register each clone"),
    ),
    file(
        "registration with Ubuntu Pro",
        &["/var/lib/ubuntu-advantage/private/machine-token.json"],
        Never("let the last step run `pro detach --assume-yes`, and attach each clone"),
    ),
];

pub(super) const CONTAINER_IDS: &[MachineIdentity] = &[
    file("Docker's engine ID", &["/var/lib/docker/engine-id", "/etc/docker/key.json"], WhenMissing("Docker")),
    file(
        "key of a Docker swarm node",
        &["/var/lib/docker/swarm/certificates/swarm-node.key"],
        Never("let the last step run `docker swarm leave --force`, and let each clone join the swarm"),
    ),
    file(
        "containerd's UUID",
        &[
            "/var/lib/containerd/io.containerd.grpc.v1.introspection/uuid",
            "/var/lib/containerd/io.containerd.service.v1.introspection-service/uuid",
        ],
        WhenMissing("containerd"),
    ),
    file(
        "kubelet's own certificate",
        &["/var/lib/kubelet/pki/kubelet.key", "/var/lib/kubelet/pki/kubelet.crt"],
        WhenMissing("kubelet"),
    ),
    file(
        "keys of a Kubernetes cluster",
        &["/etc/kubernetes/pki/ca.key", "/var/lib/rancher/*/server/tls/server-ca.key"],
        Never("install the programs in the image, and make the cluster at first boot"),
    ),
    file("password of a K3s or RKE2 node", &["/etc/rancher/node/password"], WhenMissing("K3s or RKE2")),
];

pub(super) const DATABASE_IDS: &[MachineIdentity] = &[
    file("MySQL's server UUID", &["/var/lib/mysql/auto.cnf", "/var/lib/mysql/data/auto.cnf"], WhenMissing("MySQL")),
    file(
        "MySQL's TLS keys",
        &[
            "/var/lib/mysql/ca-key.pem",
            "/var/lib/mysql/ca.pem",
            "/var/lib/mysql/server-key.pem",
            "/var/lib/mysql/server-cert.pem",
            "/var/lib/mysql/client-key.pem",
            "/var/lib/mysql/client-cert.pem",
            "/var/lib/mysql/private_key.pem",
            "/var/lib/mysql/public_key.pem",
        ],
        By(&[unit("MySQL", &["/usr/sbin/mysqld"])]),
    ),
    file(
        "PostgreSQL's system identifier",
        &["/var/lib/postgresql/*/*/global/pg_control", "/var/lib/pgsql/data/global/pg_control"],
        Never("install the server in the image, and make its cluster at first boot with `initdb`"),
    ),
    file(
        "RabbitMQ's cookie",
        &["/var/lib/rabbitmq/.erlang.cookie"],
        Never("stop RabbitMQ and remove it in the last step; the server makes another one when it starts"),
    ),
    file("GlusterFS's UUID", &["/var/lib/glusterd/glusterd.info"], WhenMissing("glusterd")),
    file(
        "Samba's domain secrets and SID",
        &["/var/lib/samba/private/secrets.tdb"],
        Never("let each clone join its domain, or provision it, at first boot"),
    ),
    file(
        "Kerberos keys of the host",
        &["/etc/krb5.keytab"],
        Never("let the last step remove it, and let each clone join its domain"),
    ),
];

/// Keys of a Puppet server's certificate authority, without which its own certificate cannot be created anew.
const PUPPET_CA: Paths = &[
    "/etc/puppetlabs/puppetserver/ca/ca_key.pem",
    "/etc/puppetlabs/puppet/ssl/ca/ca_key.pem",
    "/var/lib/puppet/ssl/ca/ca_key.pem",
];

pub(super) const AGENT_IDS: &[MachineIdentity] = &[
    file(
        "Salt minion's keys and ID",
        &["/etc/salt/pki/minion/minion.pem", "/etc/salt/pki/minion/minion.pub", "/etc/salt/minion_id"],
        WhenMissing("the minion"),
    ),
    MachineIdentity {
        name: "Puppet agent's keys",
        paths: &[
            "/etc/puppetlabs/puppet/ssl/private_keys/*.pem",
            "/etc/puppetlabs/puppet/ssl/public_keys/*.pem",
            "/etc/puppetlabs/puppet/ssl/certs/*.pem",
            "/var/lib/puppet/ssl/private_keys/*.pem",
            "/var/lib/puppet/ssl/public_keys/*.pem",
            "/var/lib/puppet/ssl/certs/*.pem",
        ],
        form: File,
        pin: IdentityPin::File(PUPPET_CA),
        renewal: WhenMissing("the agent"),
    },
    file(
        "Chef client's key",
        &["/etc/chef/client.pem"],
        Never("let the last step remove it, and let each clone register at first boot"),
    ),
    file(
        "CFEngine's key",
        &["/var/cfengine/ppkeys/localhost.priv"],
        Never("let the last step remove it, and a service run `cf-key` at first boot"),
    ),
    MachineIdentity {
        name: "SNMP engine ID",
        paths: &["/var/lib/snmp/snmpd.conf", "/var/lib/net-snmp/snmpd.conf"],
        form: Lines("oldEngineID"),
        // Users' keys are derived from it.
        pin: IdentityPin::Line("usmUser"),
        renewal: WhenMissing("snmpd"),
    },
    MachineIdentity {
        name: "popularity-contest's host ID",
        paths: &["/etc/popularity-contest.conf"],
        form: FileWith("MY_HOSTID="),
        pin: Loose,
        renewal: Never(
            "let the last step remove its line `MY_HOSTID=`, and `dpkg-reconfigure popularity-contest` make one",
        ),
    },
    file("Whoopsie's ID", &["/var/lib/whoopsie/whoopsie-id"], WhenMissing("Whoopsie")),
    file("freshclam's UUID", &["/var/lib/clamav/freshclam.dat"], WhenMissing("freshclam")),
    file("Beats' UUIDs", &["/var/lib/*beat/meta.json"], WhenMissing("the Beat")),
    file("Netdata's ID", &["/var/lib/netdata/registry/netdata.public.unique.id"], WhenMissing("Netdata")),
    file(
        "Wazuh agent's key",
        &["/var/ossec/etc/client.keys"],
        Never("let the last step remove it, and let each clone enroll at first boot"),
    ),
    file(
        "CrowdStrike's agent ID",
        &["/opt/CrowdStrike/falconstore"],
        Never("let the last step run `/opt/CrowdStrike/falconctl -d -f --aid`"),
    ),
    file("GitLab Runner's system ID", &["/etc/gitlab-runner/.runner_system_id"], WhenMissing("GitLab Runner")),
    file(
        "IDs of Consul and Nomad nodes",
        &[
            "/opt/consul/data/node-id",
            "/opt/consul/node-id",
            "/var/lib/consul/node-id",
            "/opt/nomad/data/client/client-id",
            "/opt/nomad/data/client/secret-id",
            "/var/lib/nomad/client/client-id",
            "/var/lib/nomad/client/secret-id",
        ],
        WhenMissing("the agent"),
    ),
    file("Tailscale's node key", &["/var/lib/tailscale/tailscaled.state"], WhenMissing("tailscaled")),
    file(
        "ZeroTier's identity",
        &["/var/lib/zerotier-one/identity.secret", "/var/lib/zerotier-one/identity.public"],
        WhenMissing("zerotier-one"),
    ),
    file("Open vSwitch's system ID", &["/etc/openvswitch/system-id.conf"], WhenMissing("ovs-ctl")),
    file(
        "snapd's device keys",
        &["/var/lib/snapd/device/private-keys-v1/*"],
        Never("install snaps at first boot, where snapd makes its keys"),
    ),
    MachineIdentity {
        name: "UUIDs of libvirt's networks",
        paths: &["/etc/libvirt/qemu/networks/*.xml"],
        form: FileWith("<uuid>"),
        pin: Loose,
        renewal: Never("let the last step remove its line `<uuid>`; libvirt makes one when it reads the file"),
    },
    file(
        "mail name",
        &["/etc/mailname"],
        Never("let the first boot write it, unless all clones are to send mail under one name"),
    ),
];
