//! The step cache with real machines: whatever was cached, evicted, damaged or cut off, an image is what it is without.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use crate::bench::{Bench, Dice, manifest, root};

/// Random bytes, the generation (at byte 40, QEMU's docs/specs/vmgenid.rst), and the time.
const TELL: &str = "echo told $(head -c8 /dev/urandom | od -An -tx1 | tr -d ' ') \
    $(od -An -tx1 -j40 -N16 /sys/firmware/qemu_fw_cfg/by_name/etc/vmgenid_guid/raw | tr -d ' \\\\n') $(date +%s)";

/// What a build of [`layered`] tells.
struct Built {
    cached: Vec<bool>,
    content: String,
    told: Vec<String>,
    stderr: String,
    took: Duration,
}

/// Builds a spec of two steps that are cached, `last` being the content of the second, and of one that is not.
fn layered(bench: &Bench, version: &str, last: &str, options: &[&str]) -> Built {
    let spec = bench.spec(
        "layered",
        &format!(
            "[vars]\ncolour = \"red\"\n[[step]]\nrun = \"echo one >/etc/one\"\n[[step]]\nrun = \"echo {last} >/etc/two\"\n\
             [[step]]\nname = \"tell\"\ncache = false\nrun = \"{TELL}\"\n"
        ),
    );
    let (began, since) = (Instant::now(), seconds());
    let output = bench.kiln(&[&["build", "--version", version, spec.to_str().unwrap()], options].concat());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    bench.nothing_left();
    let image = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let log = fs::read_to_string(image.with_file_name("build.log")).unwrap();
    let told = log.lines().find_map(|line| line.split_once("told ")).map(|(_, told)| told.to_owned());
    let told: Vec<String> = told.unwrap().split(' ').map(str::to_owned).collect();
    let clock: u64 = told[2].parse().unwrap();
    assert!((since..=seconds()).contains(&clock), "the guest's clock is {clock}, and the build began at {since}");
    let manifest = manifest(&image);
    let cached = manifest["steps"].as_array().unwrap().iter().map(|step| step["cached"].as_bool().unwrap());
    let content = manifest["content_sha256"].as_str().unwrap().to_owned();
    Built { cached: cached.collect(), content, told, stderr, took: began.elapsed() }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn layers(bench: &Bench) -> Vec<PathBuf> {
    let entries = fs::read_dir(bench.cache.join("layers")).into_iter().flatten();
    let mut layers: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    layers.sort();
    layers
}

#[test]
#[ignore = "boots a VM"]
fn a_changed_last_step_goes_on_from_a_checkpoint_to_the_same_image() {
    let bench = Bench::cold();
    let cold = layered(&bench, "1", "two", &[]);
    assert_eq!(cold.cached, [false, false, false]);
    let twins = ["2", "3"].map(|version| layered(&bench, version, "two", &[]));
    for twin in &twins {
        assert_eq!(twin.cached, [true, true, false], "{}", twin.stderr);
        assert_eq!(twin.content, cold.content);
        assert!(twin.took < cold.took, "{:?} {:?}", cold.took, twin.took);
    }
    // One checkpoint, two machines: other random bytes, and another generation.
    let [one, two] = twins.map(|twin| twin.told);
    assert!(one[0] != two[0] && one[1] != two[1], "{one:?} {two:?}");
    let changed = layered(&bench, "4", "three", &[]);
    assert_eq!(changed.cached, [true, false, false], "{}", changed.stderr);
    let reference = layered(&bench, "5", "three", &["--no-cache"]);
    assert_eq!(reference.cached, [false, false, false]);
    assert_eq!(changed.content, reference.content);
    for ram in layers(&bench).iter().map(|layer| layer.join("ram")).filter(|ram| ram.exists()) {
        fs::File::options().write(true).open(ram).unwrap().set_len(100_000).unwrap();
    }
    let damaged = layered(&bench, "6", "three", &[]);
    assert!(damaged.stderr.contains("checkpoint is not used"), "{}", damaged.stderr);
    assert_eq!(damaged.content, reference.content);
}

/// QEMU 7.2 knows no mapped-ram.
#[test]
#[ignore = "boots a VM"]
fn an_older_qemu_goes_on_from_a_stream_and_another_boots() {
    let qemu = root().join("fixtures/cache/qemu-7.2/usr/bin/qemu-system-x86_64");
    if !qemu.exists() {
        println!("SKIPPED: {} is not there; fixtures/qemu-7.2/build says why", qemu.display());
        return;
    }
    let older = Bench { qemu: Some(qemu), ..Bench::cold() };
    let cold = layered(&older, "1", "two", &[]);
    let formats = layers(&older).into_iter().map(|layer| fs::read_to_string(layer.join("layer.json")).unwrap());
    let streams = formats.filter(|facts| facts.contains("\"format\": \"stream\"")).count();
    assert!(streams > 0 && !cold.stderr.contains("no checkpoints"), "{}", cold.stderr);
    let resumed = layered(&older, "2", "two", &[]);
    assert_eq!(resumed.cached, [true, true, false], "{}", resumed.stderr);
    assert!(!resumed.stderr.contains("checkpoint is not used"), "{}", resumed.stderr);
    assert_eq!(resumed.content, cold.content);
    assert!(resumed.told[0] != cold.told[0] && resumed.told[1] != cold.told[1]);
    // The newer QEMU takes the disks, not the memory.
    let newer = Bench { qemu: None, ..older };
    let foreign = layered(&newer, "3", "two", &[]);
    assert!(foreign.stderr.contains("another machine's"), "{}", foreign.stderr);
    assert_eq!(foreign.content, cold.content);
}

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
                    let most = if layers(&bench).is_empty() { 60_000 } else { 12_000 };
                    cut += usize::from(killed(&bench, steps, &version, Duration::from_millis(dice.roll(most))));
                }
                6 => {
                    let size = format!("{}MiB", dice.roll(1500));
                    assert!(bench.kiln(&["gc", "--keep-cache", &size]).status.success());
                }
                _ => damage(&mut dice, &layers(&bench)),
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
