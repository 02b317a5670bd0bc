//! The step cache with real machines: whatever was cached, evicted, damaged or cut off, an image is what it is without.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::bench::{Bench, manifest};

/// Random bytes, the generation (at byte 40, QEMU's docs/specs/vmgenid.rst), and the time.
const TELL: &str = "echo told $(head -c8 /dev/urandom | od -An -tx1 | tr -d ' ') \
    $(od -An -tx1 -j40 -N16 /sys/firmware/qemu_fw_cfg/by_name/etc/vmgenid_guid/raw | tr -d ' \\\\n') $(date +%s)";

/// What a build of [`layered`] tells.
pub(crate) struct Built {
    pub(crate) cached: Vec<bool>,
    pub(crate) content: String,
    pub(crate) told: Vec<String>,
    pub(crate) stderr: String,
    took: Duration,
}

/// Builds a spec of two steps that are cached, `last` being the content of the second, and of one that is not.
pub(crate) fn layered(bench: &Bench, version: &str, last: &str, options: &[&str]) -> Built {
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
}
