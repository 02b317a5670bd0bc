//! The life of a step in a real guest: what it leaves behind, what its user has, and what ends it.

use std::fs;

use crate::bench::{Bench, manifest};
use crate::sealing::{assert_sealed, image_with_identities};

/// All of these share one boot, whose checkpoint the other tests of this file begin with.
const MACHINE: &str = "[machine]\nmemory = \"512MiB\"\n";

const HABITS: &str = r#"
[[step]]
name = "a child that writes on"
cache = false
timeout = "1m"
run = '''
( while :; do echo tick; sleep 0.2; done ) &
sleep 1
cat /proc/self/cgroup
echo "step: $(cat /proc/self/oom_score_adj)"
echo "agent: $(cat /proc/$(systemctl show -P MainPID kiln-agent.service)/oom_score_adj)"
'''
[[step]]
name = "waits for cloud-init"
timeout = "3m"
run = '''
cloud-init status --wait
until [ -e /var/lib/cloud/instance/boot-finished ]; do sleep 1; done
'''
[[step]]
name = "copes with an OOM kill"
timeout = "5m"
run = 'tail /dev/zero || echo "child ended with $?"'
[[step]]
name = "ends what a command line tells, and not itself"
run = '''
sleep 6666 &
pkill -f "sleep 6666"
! pgrep -f "sleep 6666"
'''
[[step]]
name = "makes a user"
run = '''
useradd -m -s /bin/bash dev
echo 'FROM_ETC="the system"' >>/etc/environment
'''
[[step]]
name = "as that user"
user = "dev"
run = '''
echo "from etc: $FROM_ETC; runtime: $XDG_RUNTIME_DIR"
mkdir -p ~/.config/systemd/user
printf '[Service]\nType=oneshot\nExecStart=/bin/true\n[Install]\nWantedBy=default.target\n' \
    >~/.config/systemd/user/mine.service
systemctl --user enable mine.service
'''
[[step]]
name = "leaves a process of a user"
run = "su -l dev -c 'sleep 7777 >/dev/null 2>&1 & echo started'"
[[test]]
name = "looks for a command line that nothing has"
run = "! pgrep -f no-such-daemon"
[[test]]
name = "cloud-init has finished in a test"
run = "cloud-init status --wait >/dev/null || [ $? = 2 ]"
timeout = "5m"
[[test]]
name = "the unit of the user is enabled"
run = "[ -L /home/dev/.config/systemd/user/default.target.wants/mine.service ]"
"#;

#[test]
#[ignore = "boots a VM"]
fn g16_g17_g19_habits_of_steps_and_what_they_leave_is_sealed() {
    let bench = Bench::new();
    let (image, log) = image_with_identities(&bench, HABITS);
    assert_sealed(&log);
    for text in [
        "kiln-agent.service/steps/step-5-",
        "step: 0",
        "agent: -1000",
        "status: done",
        "child ended with 137",
        "from etc: the system; runtime: /run/user/1000",
        "ended what steps had left running:",
        "`sleep 7777` (process ",
    ] {
        assert!(log.contains(text), "no `{text}` in {log}");
    }
    let manifest = manifest(&image);
    let steps = manifest["steps"].as_array().unwrap();
    let writes_on = steps.iter().find(|step| step["name"] == "a child that writes on").unwrap();
    let seconds = writes_on["seconds"].as_f64().unwrap();
    println!("a step of 1 s with a child that writes on took {seconds:.2} s");
    assert!(seconds < 20.0, "{seconds}");
}

/// Mounts that no boot makes, and one that a boot makes and the guest does not have.
const MOUNTS: &str = r#"
[[step]]
name = "mounts"
run = '''
mkfs.ext4 -q -U 33333333-3333-3333-3333-333333333333 /dev/vda14
mkdir /data
echo 'UUID=33333333-3333-3333-3333-333333333333 /data ext4 defaults 0 0' >>/etc/fstab
umount /boot/efi
mkdir -p /srv/efi /srv/source /opt/table /opt/unit /opt/run
echo seen | tee /opt/table/seen /opt/unit/seen >/opt/run/seen
mount --bind /srv/efi /boot/efi
echo '/srv/source /opt/table none bind,noauto 0 0' >>/etc/fstab
mount /opt/table
mkdir -p /run/systemd/system
for unit in /etc/systemd/system/opt-unit.mount /run/systemd/system/opt-run.mount; do
    where=/opt/$(basename "$unit" .mount | cut -d- -f2)
    printf '[Mount]\nWhat=/srv/source\nWhere=%s\nType=none\nOptions=bind\n' "$where" >"$unit"
done
systemctl daemon-reload
systemctl start opt-unit.mount opt-run.mount
[ "$(grep -c ' /srv/' /proc/self/mountinfo)" = 4 ]
'''
"#;

#[test]
#[ignore = "boots a VM"]
fn e1_what_a_boot_mounts_otherwise_than_the_guest_is_declared() {
    let bench = Bench::new();
    let image = bench.builds(&bench.spec("mounts", &format!("{MACHINE}{MOUNTS}")));
    let log = fs::read_to_string(image.with_file_name("build.log")).unwrap();
    let unmounted = log.lines().find(|line| line.contains("unmounted what steps had left mounted")).unwrap();
    for target in ["/boot/efi", "/opt/table", "/opt/unit", "/opt/run"] {
        assert!(unmounted.contains(target), "{unmounted}");
    }
    let manifest = manifest(&image);
    assert_eq!(manifest["contents"]["complete"], false);
    let missing = manifest["contents"]["missing"].as_array().unwrap();
    assert_eq!(missing.len(), 2, "{missing:?}");
    for words in ["FAT on partition 15 (label \"ESP\") on /boot/efi", "ext4 on partition 14 on /data"] {
        let is_it = |text: &serde_json::Value| text.as_str().unwrap().contains(&format!("a boot mounts {words}"));
        assert!(missing.iter().any(is_it), "{missing:?}");
    }
    assert!(manifest["content_sha256"].is_null() && !image.with_file_name("files.zst").exists());
    assert!(bench.kiln(&["diff", "--exit-code", "mounts", "mounts"]).status.code() != Some(0));
}

#[test]
#[ignore = "boots a VM"]
fn g17_a_step_that_takes_all_memory_is_ended_and_named() {
    let bench = Bench::new();
    let spec = bench.spec("oom", &format!("{MACHINE}[[step]]\nname = \"greedy\"\nrun = \"exec tail /dev/zero\"\n"));
    let stderr = bench.fails(&spec, 7);
    assert!(stderr.contains("step 1 `greedy`") && stderr.contains("OOM killer, which chose `tail`"), "{stderr}");
    assert!(stderr.contains("`machine.memory`"), "{stderr}");
}

#[test]
#[ignore = "boots a VM"]
fn g18_a_reboot_is_that_of_the_step_that_asked() {
    let bench = Bench::new();
    for (name, asks) in [
        ("reboots", "systemctl reboot"),
        ("powers-off", "systemctl poweroff"),
        ("later", "shutdown -r +1"),
        ("by-timer", "systemd-run --on-active=1min systemctl reboot"),
    ] {
        let steps = format!(
            "{MACHINE}[[step]]\nname = \"asks\"\nrun = \"{asks}\"\n[[step]]\nname = \"innocent\"\nrun = \"sleep 60\"\n"
        );
        let stderr = bench.fails(&bench.spec(name, &steps), 7);
        assert!(stderr.contains("step 1 `asks`") && stderr.contains("`reboot = true`"), "{asks}: {stderr}");
    }
    let last = format!("{MACHINE}[[step]]\nname = \"asks\"\nrun = \"systemctl reboot\"\n");
    let stderr = bench.fails(&bench.spec("last", &last), 7);
    assert!(stderr.contains("step 1 `asks`"), "{stderr}");
    let plan = bench.kiln(&["plan", "--json", bench.path("last.toml").to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&plan.stdout).contains("\"cached\": false"));
}
