//! Faults with real guests, by the names of their rows.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;

use crate::bench::Bench;

/// Starts a build and waits until its guest says this.
fn build_that_says(bench: &Bench, spec: &Path, text: &str) -> (Child, PathBuf) {
    let log = bench.path("log");
    let mut build = bench.command(&["build", spec.to_str().unwrap()]);
    let mut child = build.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    while !fs::read_to_string(&log).unwrap().contains(&format!("| {text}")) {
        assert!(child.try_wait().unwrap().is_none(), "{}", fs::read_to_string(&log).unwrap());
        sleep(Duration::from_millis(10));
    }
    (child, log)
}

fn detected(what: &str, since: Instant, most: Duration) {
    let took = since.elapsed();
    println!("detected: {what} {:.2} s", took.as_secs_f64());
    assert!(took < most, "{what}: {took:?}");
}

#[test]
#[ignore = "boots a VM"]
fn g8_a_panic_is_noticed() {
    let bench = Bench::new();
    let spec = bench.spec("panic", "[[step]]\nrun = \"echo now; sleep 1; echo c >/proc/sysrq-trigger\"\n");
    let (mut child, log) = build_that_says(&bench, &spec, "now");
    let panics = Instant::now() + Duration::from_secs(1);
    assert_eq!(child.wait().unwrap().code(), Some(7));
    detected("panic of a real guest", panics, Duration::from_secs(10));
    assert!(fs::read_to_string(log).unwrap().contains("panicked"));
    bench.nothing_left();
}

/// A real QEMU with a real KVM that cannot execute what the guest needs, where this host has one: kiln, which knows better
/// than to use it, is lied to by a program between them.
#[test]
#[ignore = "boots a VM"]
fn h2_a_kvm_that_fails_under_the_guest_is_noticed() {
    let mut bench = Bench::cold();
    let spec = bench.spec("lied-to", "[machine]\naccel = \"tcg\"\n[[step]]\nrun = \"true\"\n");
    let doctor = bench.kiln(&["doctor"]);
    let told = String::from_utf8_lossy(&doctor.stdout);
    if !told.contains("KVM here does not run a stock kernel") {
        println!("SKIPPED: KVM works here, or there is none:\n{told}");
        return;
    }
    let between = bench.path("qemu");
    let script = "#!/bin/sh\ncase $* in *accel*) ;; *) exec qemu-system-x86_64 \"$@\" ;; esac\n\
                  for word; do shift; case $word in tcg,*) word=kvm ;; max) word=qemu64 ;; esac; set -- \"$@\" \"$word\"; done\n\
                  exec qemu-system-x86_64 \"$@\" -bios \"${0%/*}/firmware\"\n";
    fs::write(&between, script).unwrap();
    // A firmware whose first instruction is popcnt eax, eax.
    let mut firmware = vec![0xf4; 0x10000];
    firmware[0xfff0..0xfff4].copy_from_slice(&[0xf3, 0x0f, 0xb8, 0xc0]);
    fs::write(bench.path("firmware"), firmware).unwrap();
    fs::set_permissions(&between, fs::Permissions::from_mode(0o755)).unwrap();
    bench.qemu = Some(between);
    let began = Instant::now();
    let stderr = bench.fails(&spec, 4);
    detected("KVM internal error, QEMU's start included,", began, Duration::from_secs(30));
    assert!(stderr.contains("as it does when KVM fails"), "{stderr}");
}

#[test]
#[ignore = "boots a VM"]
fn g12_a_full_guest_disk_is_the_steps_failure_with_a_hint() {
    let bench = Bench::new();
    let spec = bench.spec("full", "[[step]]\nrun = \"dd if=/dev/zero of=/full bs=1M\"\n");
    let stderr = bench.fails(&spec, 7);
    assert!(stderr.contains("No space left on device") && stderr.contains("`machine.disk`"), "{stderr}");
}

/// A file system of this size in memory, until it is dropped.
struct Small(PathBuf);

impl Small {
    fn mount(folder: &Path, size: &str) -> Option<Self> {
        fs::create_dir(folder).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "kiln"]).arg(folder);
        mount.output().is_ok_and(|output| output.status.success()).then(|| Self(folder.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
#[ignore = "boots a VM"]
fn h8_a_full_host_disk_under_the_guest_ends_the_build() {
    let mut bench = Bench::cold();
    // Room for what a boot writes: a slow one has the time to write all inode tables of the grown file system, 96 MiB.
    let Some(small) = Small::mount(&bench.path("small"), "400m") else {
        println!("SKIPPED: only root may mount a small file system");
        return;
    };
    bench.cache = small.0.join("cache");
    // What is written is not empty and does not compress, so it has to lie somewhere.
    let fill =
        "[machine]\ndisk = \"8GiB\"\n[[step]]\nrun = \"echo now; dd if=/dev/urandom of=/fill bs=1M count=900; sync\"\n";
    let (mut child, log) = build_that_says(&bench, &bench.spec("filled", fill), "now");
    let room = || statvfs(&small.0).unwrap();
    while room().blocks_available() > 16 && child.try_wait().unwrap().is_none() {
        sleep(Duration::from_millis(10));
    }
    let full = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(4));
    detected("full disk of the host", full, Duration::from_secs(30));
    let stderr = fs::read_to_string(log).unwrap();
    assert!(stderr.contains("No space left on device") && stderr.contains("KILN_CACHE"), "{stderr}");
    bench.nothing_left();
    assert!(!bench.path("store/filled").exists());
}

/// Two secrets: as they are, in hex, what of base64 does not depend on what stands around it, in the three ways in which it
/// may fall, and as in a URL.
const CANARIES: [&str; 11] = [
    "correct-horse-battery",
    "636f72726563742d686f7273652d62617474657279",
    "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5",
    "NvcnJlY3QtaG9yc2UtYmF0dGVye",
    "jb3JyZWN0LWhvcnNlLWJhdHRlcn",
    "tr0ub4dor & three/more",
    "747230756234646f7220262074687265652f6d6f7265",
    "dHIwdWI0ZG9yICYgdGhyZWUvbW9yZ",
    "RyMHViNGRvciAmIHRocmVlL21vcm",
    "0cjB1YjRkb3IgJiB0aHJlZS9tb3Jl",
    "tr0ub4dor%20%26%20three%2Fmore",
];

fn files_with_a_canary(place: &Path) -> String {
    let mut grep = Command::new("grep");
    grep.env("LC_ALL", "C").arg("-rlaFi").args(CANARIES.iter().flat_map(|form| ["-e", form])).arg(place);
    String::from_utf8(grep.output().unwrap().stdout).unwrap()
}

const SECRETS: &str = "[secrets]\ntoken = { env = \"TOKEN\" }\nkey = { file = \"key\" }\n";

/// What a step does with its secrets: prints them, hands them to programs, writes them in every form and removes that.
const USES: &str = r#"#!/bin/sh -eu
for secret in token key; do
    value=$(cat "$KILN_SECRETS/$secret")
    echo "it is $value"
    echo "it is $value" >&2
    echo "it is $value" >/dev/console
    printf '%04090d%s\n' 0 "$value"
    printf 'user:%s' "$value" | base64
    printf %s "$value" | od -An -v -tx1 | tr -d ' \n'
    SECRET=$value sh -c 'test "$SECRET" = "$1"' sh "$value"
    mkdir -p /var/tmp/used
    echo "$value" >/var/tmp/used/raw
    printf %s "$value" | base64 >/var/tmp/used/base64
    printf %s "$value" | od -An -v -tx1 | tr -d ' \n' >/var/tmp/used/hex
    printf %s "$value" | sed 's/ /%20/g; s/&/%26/g; s,/,%2F,g' >/var/tmp/used/url
    sync
    rm -r /var/tmp/used
done
"#;

fn spec_with_secrets(bench: &Bench, name: &str, steps: &str) -> PathBuf {
    fs::write(bench.path("key"), "tr0ub4dor & three/more").unwrap();
    bench.spec(name, &format!("{SECRETS}{steps}"))
}

#[test]
#[ignore = "boots a VM"]
fn o3_o4_a_secret_that_was_used_and_removed_is_nowhere() {
    let bench = Bench::cold();
    fs::write(bench.path("use.sh"), USES).unwrap();
    let both = "secrets = [\"token\", \"key\"]";
    let steps = format!(
        "[[step]]\nrun = '''\n{USES}'''\n{both}\n[[step]]\nscript = \"use.sh\"\n{both}\n[[step]]\nreboot = true\n\
         [[step]]\nscript = \"use.sh\"\n{both}\n[[step]]\nrun = \"ls /\"\n[[output]]\nformat = \"raw\"\n"
    );
    let (spec, said) = (spec_with_secrets(&bench, "secret", &steps), bench.path("said"));
    let mut build = bench.command(&["build", "-v", spec.to_str().unwrap()]);
    let log = fs::File::create(&said).unwrap();
    let mut child = build.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let status = loop {
        let lines = bench.processes();
        assert!(!lines.iter().any(|(_, line)| CANARIES.iter().any(|form| line.contains(form))), "{lines:?}");
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => sleep(Duration::from_millis(20)),
        }
    };
    assert!(status.success(), "{}", fs::read_to_string(said).unwrap());
    bench.nothing_left();
    let names = fs::read_dir(bench.path("store/secret/1")).unwrap().map(|entry| entry.unwrap().path());
    assert!(names.into_iter().any(|name| name.extension().is_some_and(|is| is == "raw")), "raw can be searched");
    for place in [&bench.path("store"), &bench.cache, &said] {
        assert_eq!(files_with_a_canary(place), "", "a canary is found");
    }
    println!("canaries: {} forms of 2 secrets looked for after 3 steps that used them, 0 found", CANARIES.len());
}

#[test]
#[ignore = "boots a VM"]
fn o3_a_secret_that_is_left_keeps_the_image_out_of_the_store() {
    let bench = Bench::new();
    let steps = "[[step]]\nrun = \"base64 <$KILN_SECRETS/token >/etc/app.conf\"\nsecrets = [\"token\"]\n";
    let stderr = bench.fails(&spec_with_secrets(&bench, "leaky", steps), 8);
    assert!(stderr.contains("the secret `token` is in the image, in base64, at byte"), "{stderr}");
    assert!(!bench.path("store/leaky").exists());
    assert_eq!(files_with_a_canary(&bench.cache.join("layers")), "");
}

#[test]
#[ignore = "boots a VM"]
fn o5_a_guest_that_only_says_it_is_sealed_is_not_published() {
    let bench = Bench::new();
    // A service of early boot goes on while the guest is sealed.
    let steps = "[[step]]\nrun = '''\nsystemd-run --unit=systemd-liar --property=DefaultDependencies=no \
                 sh -c 'while :; do echo key >/etc/ssh/ssh_host_ed25519_key; sleep 0.02; done'\n'''\n";
    let stderr = bench.fails(&bench.spec("liar", steps), 8);
    assert!(stderr.contains("the sealed image still holds /") && stderr.contains("in the last step"), "{stderr}");
    assert!(!bench.path("store/liar").exists());
}

/// From the fault to kiln's answer, and to the end of all processes.
#[test]
#[ignore = "boots a VM"]
fn h4_h5_h6_qemu_or_kiln_killed_and_kiln_interrupted_leave_nothing() {
    // Its own cache: until the next build a killed one leaves a folder there, which other tests would find.
    let bench = Bench::cold();
    let spec = bench.spec("endless", "[[step]]\nrun = \"echo now; sleep 3600\"\n");
    for (what, signal, code, most) in [
        ("QEMU killed", Signal::SIGKILL, Some(4), Duration::from_secs(1)),
        ("kiln interrupted", Signal::SIGINT, Some(130), Duration::from_secs(5)),
        ("kiln killed", Signal::SIGKILL, None, Duration::from_secs(1)),
    ] {
        // The machine may be busy with something else: the best of some attempts shows what kiln needs.
        let is_in_time = (0..3).any(|_| {
            let (answered, gone) = end_a_build(&bench, &spec, what == "QEMU killed", signal, code);
            println!("{what}: answered after {answered:.2?}, nothing left after {gone:.2?}");
            gone < most
        });
        assert!(is_in_time, "{what}: something is left after {most:?}");
    }
    assert!(!bench.path("store/endless").exists());
}

/// Sends a signal to a build that runs a step, or to its QEMU. Returns when kiln ended, and when no process of it was left.
fn end_a_build(bench: &Bench, spec: &Path, to_qemu: bool, signal: Signal, code: Option<i32>) -> (Duration, Duration) {
    let (mut child, _) = build_that_says(bench, spec, "now");
    let kiln = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let qemu = bench.processes().into_iter().find(|(_, line)| line.contains("qemu-system")).expect("QEMU runs").0;
    let began = Instant::now();
    kill(if to_qemu { qemu } else { kiln }, signal).unwrap();
    let status = child.wait().unwrap();
    let answered = began.elapsed();
    assert_eq!(status.code(), code);
    while !bench.processes().is_empty() && began.elapsed() < Duration::from_secs(60) {
        sleep(Duration::from_millis(10));
    }
    (answered, began.elapsed())
}
