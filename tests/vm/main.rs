//! Real boots of a real Debian under a real QEMU. Slow, so ignored by a plain `cargo test`; `scripts/test` runs them, two at a
//! time, after it has made the base images. Most share a cache, so that what boots alike boots once.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

mod acceptance;
mod bench;
mod cache;
mod contents;
mod direct;
mod faults;
mod files;
mod locked_network;
mod planted;
mod sealing;
mod separate_kernel;
mod steps;

use bench::{Bench, manifest, root, run};

#[test]
#[ignore = "boots a VM"]
fn hello_is_sealed_checksummed_and_up_to_date() {
    let bench = Bench::cold();
    let spec = root().join("images/hello");
    let image = bench.builds(&spec);
    let folder = image.parent().unwrap();
    assert!(run("sha256sum", &["-c", "--strict", "SHA256SUMS"], folder).status.success());
    assert!(run("qemu-img", &["check", "-q", image.to_str().unwrap()], folder).status.success());
    let manifest = manifest(&image);
    assert_eq!(manifest["tests"][0]["ok"], true);
    assert!(manifest["packages"].as_array().unwrap().iter().any(|package| package["name"] == "systemd"));
    assert_eq!(manifest["content_sha256"].as_str().unwrap().len(), 64);
    // No output is the disk itself, so its digest is computed for who asks: it is what anybody finds who looks.
    assert!(manifest["disk_sha256"].is_null());
    let chunks = run("sha256sum", &["disk.chunks"], folder).stdout;
    assert!(chunks.starts_with(manifest["disk_chunks_sha256"].as_str().unwrap().as_bytes()));
    let digest = bench.kiln(&["inspect", "hello", "--disk-sha256"]).stdout;
    run("qemu-img", &["convert", "-O", "raw", image.to_str().unwrap(), bench.path("raw").to_str().unwrap()], folder);
    let sum = run("sha256sum", &[bench.path("raw").to_str().unwrap()], folder);
    assert_eq!(sum.stdout[..64], digest[..64]);
    no_trace(&bench);
    let list = run("sh", &["-c", "zstd -dc files.zst | sed 's/ mtime=.*//' | sha256sum"], folder);
    assert!(list.stdout.starts_with(manifest["content_sha256"].as_str().unwrap().as_bytes()));
    let list = run("zstd", &["-dc", "files.zst"], folder).stdout;
    let list = String::from_utf8(list).unwrap();
    let step = |path: &str| list.lines().find(|line| line.starts_with(&format!("path={path} "))).expect(path);
    assert!(step("/etc/motd").ends_with(" step=1"), "{}", step("/etc/motd"));
    assert!(step("/etc/systemd/system/hello.service").ends_with(" step=2"));
    assert!(!step("/usr/bin/env").contains(" step="));
    let read = run(root().join("fixtures/evidence/validate").to_str().unwrap(), &[folder.to_str().unwrap()], folder);
    println!("{}", String::from_utf8_lossy(&read.stdout));
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let began = Instant::now();
    assert_eq!(bench.builds(&spec), image);
    assert!(began.elapsed() < Duration::from_secs(20), "an image that is up to date was built again");
}

#[test]
#[ignore = "boots a VM"]
fn what_is_not_reproducible_is_named_with_its_step() {
    let bench = Bench::new();
    let spec = bench.spec(
        "dated",
        "[[step]]\nrun = 'echo same >/etc/same'\n[[step]]\nname = 'the culprit'\nrun = 'date >/etc/built'\n\
         [[step]]\nrun = 'touch /etc/later'\n",
    );
    let checked = bench.kiln(&["build", "--check-reproducible", spec.to_str().unwrap()]);
    let told = String::from_utf8_lossy(&checked.stderr);
    assert_eq!(checked.status.code(), Some(8), "{told}");
    assert!(told.contains("| /etc/built: sha256; written by step 2 `the culprit`"), "{told}");
    assert!(told.contains("not reproducible: 1 file differs"), "{told}");
}

/// Looks into the raw disk from outside, with e2fsprogs, for what a build must not leave.
fn no_trace(bench: &Bench) {
    let raw = fs::File::open(bench.path("raw")).unwrap();
    let root = bench.path("root.ext4");
    let start = root_start(&bench.path("raw"));
    let dd = ["dd", "status=none", "bs=1M", &format!("skip={}", start >> 20), &format!("of={}", root.display())]
        .map(str::to_owned);
    assert!(Command::new(&dd[0]).args(&dd[1..]).arg("conv=sparse").stdin(raw).status().unwrap().success());
    let root = root.to_str().unwrap();
    let ask = |request: &str| String::from_utf8(run("debugfs", &["-R", request, root], Path::new("/")).stdout).unwrap();
    assert!(run("e2fsck", &["-fn", root], Path::new("/")).status.success(), "the root file system is not clean");
    assert_eq!(ask("cat /etc/machine-id").trim(), "uninitialized");
    for gone in ["/var/lib/cloud", "/var/lib/systemd/random-seed", "/etc/netplan/50-cloud-init.yaml", "/run/kiln"] {
        assert!(!ask(&format!("stat {gone}")).contains("Inode:"), "{gone} is in the image");
    }
    assert!(!ask("ls /etc/ssh").contains("ssh_host_"), "host keys are in the image");
    assert!(!ask("ls /var/log").contains("cloud-init"), "cloud-init's logs are in the image");
    assert!(!ask("ls /tmp").contains("systemd-private"), "folders of services that ran are in the image");
    assert!(
        !ask("ls -p /var/log/journal").lines().any(|line| line.split('/').nth(5).is_some_and(|name| name.len() == 32))
    );
    let names = run(
        "sh",
        &["-c", &format!("debugfs -R 'ls -p /' {root} 2>/dev/null; grep -a -c kiln-agent {root} || true")],
        Path::new("/"),
    );
    println!("traces: {}", String::from_utf8_lossy(&names.stdout).lines().last().unwrap_or_default());
}

fn root_start(raw: &Path) -> u64 {
    let table = run("sfdisk", &["--json", raw.to_str().unwrap()], Path::new("/"));
    let table: Value = serde_json::from_slice(&table.stdout).unwrap();
    let partitions = table["partitiontable"]["partitions"].as_array().unwrap();
    partitions.iter().map(|partition| partition["start"].as_u64().unwrap() * 512).max().unwrap()
}

#[test]
#[ignore = "boots a VM"]
fn every_verb_does_what_the_contract_says() {
    let bench = Bench::new();
    let tree = bench.path("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/file"), "content\n").unwrap();
    std::os::unix::fs::symlink("sub/file", tree.join("link")).unwrap();
    fs::hard_link(tree.join("sub/file"), tree.join("hard")).unwrap();
    let large = fs::File::create(bench.path("large")).unwrap();
    let noise: Vec<u8> = (0..64u64 << 17).flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()).collect();
    std::io::Write::write_all(&mut &large, &noise).unwrap();
    fs::write(
        bench.path("script.sh"),
        "#!/bin/sh\nset -eu\n[ \"$1\" = --fast ]\n[ \"$who\" = world ]\nid -un >/tmp/script\n",
    )
    .unwrap();
    let spec = bench.spec("verbs", VERBS);
    let image = bench.builds(&spec);
    let fetched = fs::read_to_string(image.with_file_name("report.txt")).unwrap();
    let sum = run("sha256sum", &[bench.path("large").to_str().unwrap()], Path::new("/"));
    let sum = String::from_utf8(sum.stdout).unwrap();
    assert_eq!(fetched.lines().next(), sum.split(' ').next());
    assert!(fetched.lines().any(|line| line == "after the reboot"), "{fetched}");
    let log = fs::read_to_string(image.with_file_name("build.log")).unwrap();
    assert!(!log.contains("correct-horse"), "the log shows the secret");
    let manifest = manifest(&image);
    assert_eq!(manifest["fetched"][0]["file"], "report.txt");
    // 8 GiB were asked for, and the root file system has them.
    assert_eq!(manifest["outputs"][0]["virtual_bytes"], 8u64 << 30);
    assert!(fetched.lines().any(|line| line.parse::<u64>().is_ok_and(|kilobytes| kilobytes > 7 << 20)), "{fetched}");
}

const VERBS: &str = r#"
[machine]
disk = "8GiB"
[vars]
who = "world"
[secrets]
token = { env = "TOKEN" }
[[step]]
copy = "tree/"
to = "/srv/tree"
owner = "nobody:nogroup"
[[step]]
run = """
[ "$(cat /srv/tree/link)" = content ] && [ "$(readlink /srv/tree/link)" = sub/file ]
[ "$(stat -c %i /srv/tree/hard)" = "$(stat -c %i /srv/tree/sub/file)" ]
[ "$(stat -c %U:%G /srv/tree/sub/file)" = nobody:nogroup ]
"""
[[step]]
copy = "large"
to = "/srv/"
[[step]]
script = "script.sh"
args = ["--fast"]
[[step]]
name = "as somebody else, with a secret"
run = "cat $KILN_SECRETS/token; [ \"$(cat $KILN_SECRETS/token)\" = correct-horse-battery ] && [ \"$(id -un)\" = nobody ]"
user = "nobody"
secrets = ["token"]
[[step]]
name = "the secret is gone"
run = "[ -z \"${KILN_SECRETS:-}\" ] && ! grep -rq --exclude-dir=scripts correct-horse /run/kiln /tmp /var/log /srv/tree"
[[step]]
run = ["sh", "-c", "cat /proc/sys/kernel/random/boot_id >/root/boot"]
[[step]]
reboot = true
[[step]]
name = "rebooted"
run = """
[ "$(cat /root/boot)" != "$(cat /proc/sys/kernel/random/boot_id)" ]
{ sha256sum /srv/large | cut -d ' ' -f 1; echo after the reboot; df -Pk / | awk 'NR == 2 { print $2 }'; } >/root/report
"""
[[step]]
fetch = "/root/report"
to = "report.txt"
"#;

#[test]
#[ignore = "boots a VM"]
fn a_step_that_fails_or_takes_too_long_is_named() {
    let bench = Bench::new();
    let failing = bench.spec("failing", "[[step]]\nname = \"break it\"\nrun = \"echo before; ls /nowhere\"\n");
    let stderr = bench.fails(&failing, 7);
    for said in ["break it", "failing.toml:6", "exit status 2", "cannot access '/nowhere'", "build.log"] {
        assert!(stderr.contains(said), "`{said}` is not in: {stderr}");
    }
    // The guest can be entered where it failed, from the checkpoint of its boot.
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo 'cat /etc/debian_version; tty; exit 4' | \"$0\" shell \"$1\" --at 'break it'"]);
    shell.args([env!("CARGO_BIN_EXE_kiln"), failing.to_str().unwrap()]);
    shell.env("KILN_STORE", bench.path("store")).env("KILN_CACHE", &bench.cache).env("HOME", bench.folder.path());
    let entered = shell.output().unwrap();
    let stderr = String::from_utf8_lossy(&entered.stderr);
    assert_eq!(entered.status.code(), Some(4), "{stderr}");
    assert!(entered.stdout.starts_with(b"12.") && entered.stdout.ends_with(b"not a tty\n"), "{entered:?}");
    assert!(!stderr.contains("before"), "the step ran: {stderr}");
    bench.nothing_left();
    let slow = bench.spec("slow", "[[step]]\nrun = \"sleep 600\"\ntimeout = \"2s\"\n");
    let stderr = bench.fails(&slow, 7);
    assert!(stderr.contains("took longer than 2s"), "{stderr}");
    assert!(!bench.path("store/failing").exists() && !bench.path("store/slow").exists());
}

#[test]
#[ignore = "boots a VM"]
fn uefi_boots_and_an_image_gets_an_identity_at_first_boot() {
    let bench = Bench::new();
    let spec = bench.spec("uefi", "[machine]\nfirmware = \"uefi\"\n[[step]]\nrun = \"[ -d /sys/firmware/efi ]\"\n[[test]]\nrun = \"[ -d /sys/firmware/efi ]\"\n");
    let image = bench.builds(&spec);
    println!("{:?}", first_boot(&bench, &image, "one"));
}

/// Boots a clone under BIOS as a new machine with cloud-init's own defaults, and returns its identity: the machine-id and its
/// host key.
fn first_boot(bench: &Bench, image: &Path, name: &str) -> [String; 2] {
    let seed = bench.path(&format!("{name}.seed"));
    let user_data = "#cloud-config\nssh_genkeytypes: [ed25519]\nruncmd:\n- [sh, -c, \"echo ID=$(cat /etc/machine-id) \
                     KEY=$(cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub)= >/dev/ttyS0; poweroff\"]\n";
    let folder = bench.path(&format!("{name}.d"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("user-data"), user_data).unwrap();
    fs::write(folder.join("meta-data"), format!("instance-id: {name}\n")).unwrap();
    let seed = seed.to_str().unwrap();
    let made = run(
        "sh",
        &[
            "-c",
            &format!(
                "truncate -s 2M {seed} && mformat -i {seed} -v CIDATA :: && mcopy -i {seed} user-data meta-data ::"
            ),
        ],
        &folder,
    );
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let overlay = bench.path(&format!("{name}.qcow2"));
    let created = run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image.to_str().unwrap(), overlay.to_str().unwrap()],
        &folder,
    );
    assert!(created.status.success());
    let disk = format!("file={},if=virtio,cache=unsafe", overlay.display());
    let seed = format!("file={seed},format=raw,if=virtio,readonly=on");
    let args = [
        "1200",
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "1024",
        "-machine",
        "q35",
        "-nodefaults",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-no-reboot",
        "-drive",
        &disk,
        "-drive",
        &seed,
    ];
    let console = String::from_utf8_lossy(&run("timeout", &args, &folder).stdout).into_owned();
    let found = |key: &str| {
        let rest =
            &console[console.rfind(key).unwrap_or_else(|| panic!("{name} did not say {key}: {console}")) + key.len()..];
        rest.split_whitespace().next().unwrap_or_default().to_owned()
    };
    let identity = [found("ID="), found("KEY=")];
    assert!(identity[0].len() == 32 && identity[1].len() > 60, "{identity:?}");
    identity
}
