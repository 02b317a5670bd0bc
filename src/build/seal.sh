#!/bin/sh
# Generalises the guest, from inside, just before it powers off. Runs as `sh -u seal.sh OPERATION...`.
#
# One function an operation, by the names of `spec::seal::OPERATIONS` with `_` for `-`. Each leaves the file system as a
# first boot expects it, and none fails because something is not there. First everything that still writes is stopped,
# since a service that logs its own end would undo the work.

quiet() { "$@" >/dev/null 2>&1 || true; }
empty() { for f in "$@"; do [ -f "$f" ] && : >"$f"; done; }

# One a line. Each process costs tens of milliseconds under software emulation, so there is one for all.
homes=$(cut -d: -f6 /etc/passwd | sort -u)
each_home() {
    printf '%s\n' "$homes" | while read -r h; do
        if [ "$h" != / ] && [ -d "$h" ]; then "$@" "$h"; fi
    done
}

settle() {
    if [ -d /run/systemd/system ]; then
        # Leaves only what early boot started, and of that nothing that writes when it ends. The agent's unit ignores
        # isolation. So do terminals, whose end is written to wtmp: they are named.
        stop='systemd-random-seed.service systemd-update-utmp.service systemd-timesyncd.service'
        after=
        for f in /run/systemd/units/invocation:*.service; do
            [ -L "$f" ] || continue
            unit=${f##*invocation:}
            after="$after $unit"
            case $unit in getty@* | serial-getty@*) stop="$stop $unit" ;; esac
        done
        # Isolating waits for the target alone, and that for the end of nothing but what it comes after: without the
        # list a service could still write behind our back.
        printf '[Unit]\nRequires=sysinit.target\nAllowIsolate=yes\nConflicts=%s\nAfter=sysinit.target %s\n' \
            "$stop" "$stop $after" >/run/systemd/system/kiln-seal.target
        quiet journalctl --relinquish-var &
        quiet systemctl isolate kiln-seal.target
        wait
    else
        for s in rsyslog cron ssh; do [ -x "/etc/init.d/$s" ] && quiet "/etc/init.d/$s" stop; done
    fi
}

cloud_init() {
    if [ -e /etc/cloud/cloud.cfg ]; then
        rm -rf /var/lib/cloud /run/cloud-init
        rm -f /var/log/cloud-init.log /var/log/cloud-init-output.log
        # What cloud-init generated for the build's own instance.
        for f in /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init* \
            /etc/systemd/network/10-cloud-init-* /etc/NetworkManager/system-connections/cloud-init-* \
            /etc/NetworkManager/conf.d/*cloud-init.conf /etc/sysconfig/network-scripts/ifcfg-eth0 \
            /etc/cloud/cloud.cfg.d/90-installer-network.cfg /etc/sudoers.d/90-cloud-init-users \
            /etc/ssh/sshd_config.d/50-cloud-init.conf /etc/apt/sources.list.d/cloud-init.list; do
            [ -e "$f" ] && grep -qiE 'cloud-init|datasource' "$f" && rm -f "$f"
        done
        rm -f /etc/udev/rules.d/70-persistent-net.rules.cloud-init
    fi
}

machine_id() {
    # "uninitialized" makes the next boot a first boot for systemd (machine-id(5)); others want the file empty.
    if [ -e /etc/machine-id ] || [ -d /run/systemd/system ]; then
        if [ -d /run/systemd/system ]; then echo uninitialized >/etc/machine-id; else : >/etc/machine-id; fi
    fi
    [ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
}

ssh_hostkeys() { rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub; }

known_hosts() {
    if [ -d "$1/.ssh" ]; then
        rm -f "$1/.ssh/known_hosts" "$1/.ssh/known_hosts.old"
        rmdir "$1/.ssh" 2>/dev/null
    fi
}
ssh_userdir() {
    each_home known_hosts
    true
}

dhcp_client_state() {
    rm -rf /var/lib/dhcp/*.leases /var/lib/dhclient/* /var/lib/dhcpcd/*.lease /var/lib/NetworkManager/*lease* \
        /var/lib/NetworkManager/secret_key /var/lib/NetworkManager/timestamps /run/systemd/netif/leases/*
}

net_hwaddr() {
    rm -f /etc/udev/rules.d/70-persistent-net.rules
    for f in /etc/sysconfig/network-scripts/ifcfg-*; do [ -f "$f" ] && sed -i '/^HWADDR=/d' "$f"; done
    true
}

random_seed() {
    rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret /var/lib/urandom/random-seed \
        /boot/efi/loader/random-seed /efi/loader/random-seed /boot/loader/random-seed
    # sysvinit writes a new one on its way down: into a file system that goes with it.
    if [ -d /var/lib/urandom ] && [ ! -d /run/systemd/system ]; then mount -t tmpfs tmpfs /var/lib/urandom; fi
}

logfiles() {
    rm -rf /var/log/journal/*
    find /var/log -xdev -type f \( -name '*.gz' -o -name '*.xz' -o -name '*.old' -o -name '*.[0-9]' \) -delete
    find /var/log -xdev -type f -size +0 -exec sh -c 'for f; do : >"$f"; done' sh {} +
}

histories() { rm -f "$1/.bash_history" "$1/.ash_history" "$1/.zsh_history" "$1/.python_history" "$1/.lesshst" "$1/.viminfo"; }
bash_history() { each_home histories; }

package_manager_cache() {
    rm -rf /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/* /var/cache/apt/*.bin /var/lib/apt/lists/* \
        /var/cache/dnf/* /var/cache/yum/* /var/cache/zypp/* /var/cache/apk/* /var/cache/pacman/pkg/*
}

tmp_files() {
    # With the private ones of services that still run: they are not stopped any more, only killed.
    find /tmp /var/tmp -xdev -mindepth 1 -maxdepth 1 -exec rm -rf {} +
}

crash_data() { rm -rf /var/crash/* /var/lib/systemd/coredump/* /var/lib/systemd/pstore/* /var/spool/abrt/*; }
mail_spool() { rm -rf /var/spool/mail/* /var/mail/*; }

utmp() {
    empty /var/log/wtmp /var/log/btmp /var/log/lastlog
    rm -f /var/lib/lastlog/lastlog2.db /var/lib/wtmpdb/wtmp.db
}

backup_files() {
    rm -f /etc/passwd- /etc/shadow- /etc/group- /etc/gshadow- /etc/subuid- /etc/subgid-
    find /etc -xdev -type f \( -name '*.dpkg-old' -o -name '*.rpmsave' -o -name '*.ucf-old' \) -delete
}

caches() {
    rm -f /var/cache/ldconfig/aux-cache /var/cache/debconf/*-old /var/lib/dpkg/*-old
    rm -rf /var/cache/fontconfig/* /var/cache/man/*
}

timers() {
    rm -f /var/lib/systemd/timers/* /var/lib/systemd/timesync/clock /var/spool/anacron/* /var/lib/apt/periodic/* \
        /var/lib/logrotate/status
}

settle
for operation in "$@"; do
    "$operation" || { echo "seal: $operation failed" >&2; exit 1; }
done
# Times later than the one that the build is told to be of. What has changed, and when, is said first: setting a time is a
# change itself. Records end with NUL, since names may hold anything else.
if [ -n "${EPOCH-}" ]; then
    mounts=$(awk '$1 !~ /^#/ && $2 ~ /^\/[^ ]/ && $3 != "swap" { print $2 }' /etc/fstab 2>/dev/null)
    # Names with spaces are written with a backslash there, and are left out.
    # shellcheck disable=SC2086
    find / $mounts -xdev -newermt "@$EPOCH" -printf '%C@ %p\0' -exec touch --no-dereference --date="@$EPOCH" {} + 2>/dev/null || true
fi
# What deleted files leave in free blocks is discarded, so that it is neither converted nor published.
sync
quiet fstrim -a
