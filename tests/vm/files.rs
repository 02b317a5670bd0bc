//! Files into a real guest and out of it, and what steps may do to cloud-init.

use std::fs;

use crate::bench::Bench;

/// The machine of the other tests of steps, whose boot is in the cache.
const MACHINE: &str = "[machine]\nmemory = \"512MiB\"\nagent = \"cloud-init\"\n";

const FILES: &str = r#"
[[step]]
name = "what is there before"
run = "mkdir -p /srv/www && echo old >/srv/www/old.html && useradd -m dev && chmod 711 /home/dev"
[[step]]
copy = "site"
to = "/srv/www"
[[step]]
write = "theme = dark\n"
to = "/home/dev/.config/app/app.conf"
owner = "dev:dev"
[[step]]
copy = "overlay/"
to = "/"
[[step]]
name = "the user can add to his own settings"
user = "dev"
run = "touch /home/dev/.config/app/other.conf /home/dev/.config/new /home/dev/new"
[[step]]
name = "where files are, and whose"
run = '''
[ "$(cat /srv/www/index.html)" = new ] && [ "$(cat /srv/www/old.html)" = old ] && [ ! -e /srv/www/site ]
[ "$(stat -c '%U:%G %a' /home/dev/.config /home/dev/.config/app | sort -u)" = "dev:dev 755" ]
[ "$(stat -c '%U:%G %a' /home/dev)" = "dev:dev 711" ]
[ "$(stat -c %a /tmp)" = 1777 ]
cat /home/dev/.profile.d /tmp/copied
'''
[[step]]
fetch = "/proc/version"
to = "kernel.txt"
[[step]]
fetch = "/sys/class/dmi/id/sys_vendor"
to = "vendor.txt"
[[step]]
name = "a log in use"
run = '''
head -c 40000000 /dev/urandom >/var/tmp/busy.log
setsid sh -c 'while :; do date >>/var/tmp/busy.log; sleep 0.05; done' </dev/null >/dev/null 2>&1 &
uname -r >/root/release
'''
[[step]]
fetch = "/var/tmp/busy.log"
to = "busy.log"
[[step]]
fetch = "/root/release"
to = "release.txt"
[[step]]
name = "lists no cloud"
run = "pkill -f busy.log; echo 'datasource_list: [ Ec2 ]' >/etc/cloud/cloud.cfg.d/99-ec2.cfg"
[[step]]
name = "hardens"
run = "rm /etc/cloud/cloud.cfg.d/99-ec2.cfg; echo 'install vfat /bin/false' >/etc/modprobe.d/cis.conf"
[[step]]
name = "masks"
run = "rm /etc/modprobe.d/cis.conf; systemctl mask cloud-init-local.service"
[[step]]
name = "disables"
run = """
systemctl unmask cloud-init-local.service
systemctl disable cloud-init-local cloud-init cloud-config cloud-final
"""
[[step]]
name = "enables"
run = "systemctl enable cloud-init-local cloud-init cloud-config cloud-final"
[[step]]
name = "purges"
run = "apt-get purge -y cloud-init && rm -rf /etc/cloud /var/lib/cloud"
"#;

fn inputs(bench: &Bench) {
    for folder in ["site", "overlay/home/dev", "overlay/tmp"] {
        fs::create_dir_all(bench.path(folder)).unwrap();
    }
    for (name, text) in
        [("site/index.html", "new\n"), ("overlay/home/dev/.profile.d", "x\n"), ("overlay/tmp/copied", "x\n")]
    {
        fs::write(bench.path(name), text).unwrap();
    }
}

#[test]
#[ignore = "boots a VM"]
fn files_land_where_they_should_and_an_image_without_cloud_init_is_told() {
    let bench = Bench::new();
    inputs(&bench);
    let image = bench.builds(&bench.spec("files", &format!("{MACHINE}{FILES}")));
    let fetched = |name: &str| fs::read(image.with_file_name(name)).unwrap();
    let release = String::from_utf8(fetched("release.txt")).unwrap();
    let version = String::from_utf8(fetched("kernel.txt")).unwrap();
    assert!(version.starts_with("Linux version") && version.contains(release.trim()), "{version}");
    assert_eq!(String::from_utf8(fetched("vendor.txt")).unwrap().trim(), "QEMU");
    assert!(fetched("busy.log").len() >= 40_000_000);
    let log = fs::read_to_string(image.with_file_name("build.log")).unwrap();
    let follows = "so cloud-init will not start kiln's agent when the guest boots again: no `reboot` step can follow";
    for text in [
        "`lists no cloud`: the datasource_list in /etc/cloud/cloud.cfg.d/99-ec2.cfg lacks NoCloud",
        "`hardens`: /etc/modprobe.d/cis.conf keeps the module vfat from being loaded",
        "`masks`: the unit cloud-init-local.service is masked",
        "`disables`: the units of cloud-init are disabled",
        "`purges`: cloud-init is not installed",
        "busy.log grew while it was read",
    ] {
        assert!(log.contains(text), "no `{text}` in {log}");
    }
    assert_eq!(log.matches(follows).count(), 5, "{log}");
    without_boot(&bench);
}

/// A build on that image, whose spec asks for cloud-init, boots nothing.
fn without_boot(bench: &Bench) {
    let child = bench.path("child.toml");
    let head = "[image]\nname = \"child\"\nversion = \"1\"\n[base]\nimage = \"files\"\n";
    fs::write(&child, format!("{head}{MACHINE}")).unwrap();
    let stderr = bench.fails(&child, 5);
    assert!(stderr.contains("the spec asks for `agent = \"cloud-init\"`, but cloud-init is not installed"), "{stderr}");
}
