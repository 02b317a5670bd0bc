//! Real builds that are killed at random moments.

use std::fs;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::bench::{Bench, Dice};

/// Real builds, from a boot or from a checkpoint, that make a new version or replace the one there is, and kiln or its QEMU
/// killed anywhere in them, `KILN_VM_KILLS` times (5 if that is not set).
#[test]
#[ignore = "boots a VM"]
fn h4_h5_a_real_build_killed_anywhere_loses_nothing() {
    let wanted = std::env::var("KILN_VM_KILLS").map_or(5, |text| text.parse().unwrap());
    let bench = Bench::cold();
    let spec = |text: &str| {
        let steps =
            format!("[[step]]\nrun = \"echo {text} >/etc/first\"\n[[step]]\nrun = \"echo more >/etc/second\"\n");
        bench.spec("web", &steps)
    };
    let began = Instant::now();
    bench.builds(&spec("whole"));
    let cold = began.elapsed();
    let began = Instant::now();
    assert!(bench.kiln(&["build", "--replace", spec("again").to_str().unwrap()]).status.success());
    let warm = began.elapsed();
    let digest = |version: &str| fs::read(bench.path("store/web").join(version).join("manifest.json"));
    let (mut dice, mut before, mut after, mut qemus) = (Dice::new(1), 0, 0, 0);
    for number in 0..wanted {
        let spec = spec(&number.to_string());
        let (version, old) = (format!("n{number}"), digest("1").unwrap());
        let replaces = dice.roll(2) == 0;
        let boots = dice.roll(5) == 0;
        let mut args = vec!["build", spec.to_str().unwrap()];
        args.extend(if replaces { vec!["--replace"] } else { vec!["--version", &version] });
        args.extend(boots.then_some("--no-cache"));
        let mut build = bench.command(&args);
        let mut child = build.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let most = if boots { cold } else { warm };
        sleep(Duration::from_millis(dice.roll(u64::try_from(most.as_millis()).unwrap() * 9 / 8)));
        let qemu = bench.processes().into_iter().find(|(_, line)| line.contains("qemu-system"));
        match qemu.filter(|_| dice.roll(2) == 0) {
            Some((qemu, _)) => {
                let _ = kill(qemu, Signal::SIGKILL);
                qemus += 1;
            }
            None => child.kill().unwrap(),
        }
        child.wait().unwrap();
        let died = Instant::now();
        while !bench.processes().is_empty() && died.elapsed() < Duration::from_secs(1) {
            sleep(Duration::from_millis(10));
        }
        assert_eq!(bench.processes(), [], "processes are left");
        let done = if replaces { digest("1").unwrap() != old } else { digest(&version).is_ok() };
        *(if done { &mut after } else { &mut before }) += 1;
        assert!(bench.kiln(&["verify", "web@1"]).status.success(), "the image of before is damaged");
        if done && !replaces {
            let new = format!("web@{version}");
            assert!(bench.kiln(&["verify", &new]).status.success(), "{new} is damaged");
            assert!(bench.kiln(&["remove", &new]).status.success());
        }
    }
    // What the killed ones left is swept up, and a build is what it would have been.
    assert!(bench.kiln(&["build", "--replace", spec("end").to_str().unwrap()]).status.success());
    bench.nothing_left();
    println!("real kills: {wanted} tried ({qemus} of QEMU), {before} before, {after} after, 0 neither, 0 orphans");
    assert_eq!(before + after, wanted);
}
