//! Direct boots: the guest's own kernel, with kiln's agent as the first process.

use std::fs;

use crate::bench::{Bench, manifest};

const STEPS: &str = r#"
[machine]
boot = "direct"
memory = "512MiB"
disk = "8GiB"
[[step]]
name = "no init runs"
run = '''
[ "$SYSTEMD_OFFLINE" = 1 ] && [ ! -d /run/systemd/system ]
grep -q ' /boot/efi ' /proc/self/mountinfo
[ -L /dev/fd ] && [ -c /dev/pts/ptmx ] && [ -w /dev/shm ]
[ "$(uname -n)" = "$(cat /etc/hostname)" ]
[ "$(df -Pk / | awk 'NR == 2 { print $2 }')" -gt 7000000 ]
[ -e "/dev/disk/by-uuid/$(findmnt -no UUID /)" ]
update-grub && grep -q 'root=PARTUUID=' /boot/grub/grub.cfg && ! grep -q 'root=/dev/' /boot/grub/grub.cfg
cat /proc/sys/kernel/random/boot_id >/root/boot
useradd -m dev
'''
[[step]]
name = "services are enabled and not started"
run = '''
printf '[Service]\nExecStart=/bin/sleep 1000\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/mine.service
systemctl enable mine.service
invoke-rc.d cron restart 2>&1 | grep -q 'policy-rc.d denied'
'''
[[step]]
name = "of Debian alone, and succeeds when tried again"
when = "base.os == 'debian' and base.version >= '12' and base.codename == 'bookworm'"
retry = 2
timeout = "20s"
run = '''
[ "$DEBIAN_FRONTEND" = noninteractive ]
if [ ! -e /run/tried ]; then touch /run/tried; sleep 1000; fi
rm /run/tried
'''
[[step]]
name = "of another system"
when = "'fedora' in base.like"
run = "exit 1"
[[step]]
reboot = true
[[step]]
name = "rebooted"
run = '''
[ "$(cat /root/boot)" != "$(cat /proc/sys/kernel/random/boot_id)" ]
rm /root/boot
'''
[[test]]
name = "the image boots in full"
run = "[ ! -e /usr/sbin/policy-rc.d ] && id dev && systemctl is-active mine.service"
"#;

#[test]
#[ignore = "boots a VM"]
fn a_direct_boot_runs_steps_and_reboots_and_its_image_boots_in_full() {
    let bench = Bench::new();
    let image = bench.builds(&bench.spec("direct", STEPS));
    let log = fs::read_to_string(image.with_file_name("build.log")).unwrap();
    println!("{}", log.lines().filter(|line| line.contains(" ok ")).collect::<Vec<_>>().join("\n"));
    assert!(log.contains("direct boot: kernel 6."), "{log}");
    assert!(log.contains("try 1 of 3 took longer than 20s") && log.contains("of another system  skipped"), "{log}");
    assert_eq!(manifest(&image)["contents"]["complete"], true);
}
