//! Faults with real guests, by the names of their rows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bench::Bench;

#[test]
#[ignore = "boots a VM"]
fn g8_a_panic_is_noticed() {
    let bench = Bench::new();
    let spec = bench.spec("panic", "[[step]]\nrun = \"echo c >/proc/sysrq-trigger\"\n");
    let stderr = bench.fails(&spec, 7);
    assert!(stderr.contains("panicked"), "{stderr}");
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
    let Some(small) = Small::mount(&bench.path("small"), "150m") else {
        println!("SKIPPED: only root may mount a small file system");
        return;
    };
    bench.cache = small.0.join("cache");
    // What is written is not empty and does not compress, so it has to lie somewhere.
    let fill = "[machine]\ndisk = \"8GiB\"\n[[step]]\nrun = \"dd if=/dev/urandom of=/fill bs=1M count=400; sync\"\n";
    let stderr = bench.fails(&bench.spec("filled", fill), 4);
    assert!(stderr.contains("No space left on device") && stderr.contains("KILN_CACHE"), "{stderr}");
    assert!(!bench.path("store/filled").exists());
}

/// As it is, in hex, and what of base64 does not depend on what stands around it, in the three ways in which it may fall.
const CANARY: [&str; 5] = [
    "correct-horse-battery",
    "636f72726563742d686f7273652d62617474657279",
    "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5",
    "NvcnJlY3QtaG9yc2UtYmF0dGVye",
    "jb3JyZWN0LWhvcnNlLWJhdHRlcn",
];

fn files_with_a_canary(folder: &Path) -> String {
    let mut grep = Command::new("grep");
    grep.env("LC_ALL", "C").arg("-rlaFi").args(CANARY.iter().flat_map(|form| ["-e", form])).arg(folder);
    String::from_utf8(grep.output().unwrap().stdout).unwrap()
}

const SECRET: &str = "[secrets]\ntoken = { env = \"TOKEN\" }\n";

#[test]
#[ignore = "boots a VM"]
fn o3_o4_a_secret_that_was_used_and_removed_is_nowhere() {
    let bench = Bench::cold();
    let uses = "t=$(cat $KILN_SECRETS/token); echo the token is $t; echo $t >/root/t; echo $t | base64 >/var/tmp/t; \
                sync; rm /root/t /var/tmp/t";
    let steps = format!(
        "[[step]]\nrun = '{uses}'\nsecrets = [\"token\"]\n[[step]]\nscript = \"use.sh\"\nsecrets = [\"token\"]\n\
         [[step]]\nrun = \"ls /\"\n[[output]]\nformat = \"raw\"\n"
    );
    fs::write(bench.path("use.sh"), "#!/bin/sh -eu\ncat $KILN_SECRETS/token >/dev/null\n").unwrap();
    let image = bench.builds(&bench.spec("secret", &format!("{SECRET}{steps}")));
    assert!(image.extension().is_some_and(|extension| extension == "raw"));
    for folder in [&bench.path("store"), &bench.cache] {
        assert_eq!(files_with_a_canary(folder), "", "the canary is found");
    }
}

#[test]
#[ignore = "boots a VM"]
fn o3_a_secret_that_is_left_keeps_the_image_out_of_the_store() {
    let bench = Bench::new();
    let steps = "[[step]]\nrun = \"base64 <$KILN_SECRETS/token >/etc/app.conf\"\nsecrets = [\"token\"]\n";
    let stderr = bench.fails(&bench.spec("leaky", &format!("{SECRET}{steps}")), 8);
    assert!(stderr.contains("the secret `token` is in the image, in base64, at byte"), "{stderr}");
    assert!(!bench.path("store/leaky").exists());
    assert_eq!(files_with_a_canary(&bench.cache.join("layers")), "");
}

#[test]
#[ignore = "boots a VM"]
fn o5_a_guest_that_only_says_it_is_sealed_is_not_published() {
    let bench = Bench::new();
    let steps = "[[step]]\nrun = \"echo key >/etc/ssh/ssh_host_ed25519_key; ln -sf /bin/true /usr/bin/rm\"\n";
    let stderr = bench.fails(&bench.spec("liar", steps), 8);
    assert!(stderr.contains("the sealed image still holds /") && stderr.contains("under [seal]"), "{stderr}");
    assert!(!bench.path("store/liar").exists());
}

/// From the fault to kiln's answer, and to the end of all processes.
#[test]
#[ignore = "boots a VM"]
fn h4_h5_h6_qemu_or_kiln_killed_and_kiln_interrupted_leave_nothing() {
    let bench = Bench::new();
    let spec = bench.spec("endless", "[[step]]\nrun = \"echo now; sleep 3600\"\n");
    for (what, signal, code, most) in [
        ("QEMU killed", Signal::SIGKILL, Some(4), Duration::from_secs(1)),
        ("kiln interrupted", Signal::SIGINT, Some(130), Duration::from_secs(5)),
        ("kiln killed", Signal::SIGKILL, None, Duration::from_secs(1)),
    ] {
        let log = bench.path("log");
        let mut build = bench.command(&["build", spec.to_str().unwrap()]);
        let mut child = build.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        while !fs::read_to_string(&log).unwrap().contains("| now") {
            assert!(child.try_wait().unwrap().is_none(), "{}", fs::read_to_string(&log).unwrap());
            sleep(Duration::from_millis(50));
        }
        let kiln = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let qemu = bench.processes().into_iter().find(|(_, line)| line.contains("qemu-system")).expect("QEMU runs").0;
        let began = Instant::now();
        kill(if what == "QEMU killed" { qemu } else { kiln }, signal).unwrap();
        let status = child.wait().unwrap();
        let answered = began.elapsed();
        assert_eq!(status.code(), code, "{what}");
        while !bench.processes().is_empty() && began.elapsed() < 10 * most {
            sleep(Duration::from_millis(10));
        }
        let gone = began.elapsed();
        println!(
            "{what}: answered after {:.2} s, nothing left after {:.2} s",
            answered.as_secs_f64(),
            gone.as_secs_f64()
        );
        assert!(gone < most, "{what}: {gone:?}");
    }
    assert!(!bench.path("store/endless").exists());
}
