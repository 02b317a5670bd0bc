//! Random histories of builds, kills, evictions and damage with real machines and one step cache.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use crate::bench::{Bench, Dice, manifest};

/// Builds of four specs that begin alike, in any order: whole ones, ones whose kiln is killed somewhere, and between them
/// evictions and damage. `KILN_HISTORIES` says how many; one if it does not.
#[test]
#[ignore = "boots a VM"]
fn random_histories_end_in_the_images_that_no_cache_makes() {
    let wanted = std::env::var("KILN_HISTORIES").map_or(1, |text| text.parse().unwrap());
    let (reference, mut expected) = (Bench::cold(), HashMap::new());
    let (mut builds, mut cut) = (0, 0);
    for number in 1..=wanted {
        let bench = Bench::cold();
        let mut dice = Dice::new(number);
        for event in 1..=6 {
            let steps = *dice.of(&["ab", "abc", "acb", "b"]);
            let version = format!("{number}.{event}");
            let what = if event == 6 { 0 } else { dice.roll(8) };
            println!("history {number}, event {event}: {what} with {steps}");
            match what {
                0..=2 => {
                    let expected =
                        expected.entry(steps).or_insert_with(|| content_of(&reference, steps, steps, &["--no-cache"]));
                    let found = content_of(&bench, steps, &version, &[]);
                    assert_eq!(found, *expected, "history {number}, event {event}, {steps}");
                    builds += 1;
                }
                3..=5 => {
                    // Somewhere between its start and its end; a boot takes most of the first build.
                    let most = if bench.layers().is_empty() { 60_000 } else { 12_000 };
                    cut += usize::from(killed(&bench, steps, &version, Duration::from_millis(dice.roll(most))));
                }
                6 => {
                    let size = format!("{}MiB", dice.roll(1500));
                    assert!(bench.kiln(&["gc", "--keep-cache", &size]).status.success());
                }
                _ => damage(&mut dice, &bench.layers()),
            }
        }
    }
    println!("{wanted} histories: {builds} images as without a cache, {cut} builds killed");
}

fn spec_of(bench: &Bench, steps: &str) -> PathBuf {
    let text: String = steps.chars().map(|step| format!("[[step]]\nrun = \"echo {step} >>/etc/trail\"\n")).collect();
    bench.spec("random", &text)
}

fn content_of(bench: &Bench, steps: &str, version: &str, options: &[&str]) -> String {
    let spec = spec_of(bench, steps);
    let output = bench.kiln(&[&["build", "--version", version, spec.to_str().unwrap()], options].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bench.nothing_left();
    let image = String::from_utf8(output.stdout).unwrap();
    manifest(Path::new(image.trim()))["content_sha256"].as_str().unwrap().to_owned()
}

/// Kills a build after a while; whether it was still running. Its QEMU goes with it.
fn killed(bench: &Bench, steps: &str, version: &str, after: Duration) -> bool {
    let spec = spec_of(bench, steps);
    let mut build = bench.command(&["build", "--version", version, spec.to_str().unwrap()]);
    let mut child = build.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    sleep(after);
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    sleep(Duration::from_secs(1));
    assert_eq!(bench.processes(), [], "processes are left");
    running
}

/// Cuts or changes a file of a layer.
fn damage(dice: &mut Dice, layers: &[PathBuf]) {
    use std::os::unix::fs::FileExt;
    if layers.is_empty() {
        return;
    }
    let file = dice.of(layers).join(dice.of(&["disk.qcow2", "ram", "layer.json"]));
    let Ok(file) = fs::File::options().write(true).open(file) else { return };
    let at = dice.roll(file.metadata().unwrap().len());
    if dice.roll(2) == 0 {
        file.set_len(at).unwrap();
    } else {
        file.write_all_at(b"damage", at).unwrap();
    }
}
