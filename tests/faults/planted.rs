//! Agents that are planted, since cloud-init does not start them.

use std::fs;
use std::path::Path;

use crate::support::Kiln;
use crate::support::ext4::{ext4_image, kernel};
use crate::{STEP, refused, refused_at_once};

const REASON: &str = "cloud-init is not installed";
const TEST: &str = "[[test]]\nrun = 'true'\n";
const REBOOT: &str = "[[step]]\nreboot = true\n";

/// A base image with a root file system and no cloud-init, the drivers of a kernel, and these files, which are all kernels.
fn base(files: &[&str]) -> Vec<u8> {
    let kernel = kernel("6.1 (x)");
    let root = [
        ("etc/os-release", &b"ID=debian\n"[..]),
        ("lib/modules/6.1/modules.dep", b""),
        ("lib/modules/6.1/modules.builtin", b"virtio_pci.ko\nvirtio_blk.ko\nvirtio_console.ko\next4.ko\n"),
    ];
    let kernels = files.iter().map(|path| (*path, &kernel[..]));
    ext4_image(&root.into_iter().chain(kernels).collect::<Vec<_>>())
}

fn on_base(machine: &str, rest: &str) -> Kiln {
    let steps = format!("[[step]]\nrun = 'breaks {REASON}'\n{rest}");
    Kiln::new().file("base.qcow2", base(&["boot/vmlinuz"])).machine(machine).spec(&steps).build()
}

/// What the guests did that matters here.
fn deeds(log: &[String]) -> Vec<&str> {
    let words = ["start", "plant", "step", "reboot", "seal", "bye"];
    log.iter().map(|line| line.split(' ').next().unwrap()).filter(|word| words.contains(word)).collect()
}

#[test]
fn i1_the_agent_is_planted_in_the_build_and_in_the_copy_that_is_tested() {
    let kiln = on_base("", &format!("{REBOOT}{TEST}"));
    let ended = kiln.stderr_has(format!("planted in the guest by a direct boot before the first one: {REASON}")).run();
    assert!(ended.stderr.contains(&format!("planted in a copy of the image: {REASON}")), "{}", ended.stderr);
    assert!(!ended.stderr.contains("will not start"), "{}", ended.stderr);
    let log = ended.place().fake_log();
    let [planting, build] = [&["start", "plant", "bye"][..], &["start", "step", "reboot", "seal", "bye"]];
    assert_eq!(deeds(&log), [planting, build, planting, &["start", "step"]].concat());
}

#[test]
fn i1_a_spec_can_ask_for_either_start_of_the_agent() {
    let kiln = on_base("agent = 'cloud-init'", "").fails(5).stderr_has("kiln.toml:8").stderr_has(REASON);
    refused_at_once(kiln.stderr_has("help: leave `agent` out"));
    let ended = on_base("agent = 'planted'", "").stderr_has("the spec asks for it").run();
    assert_eq!(deeds(&ended.place().fake_log())[..2], ["start", "plant"]);
}

#[test]
fn i1_a_direct_boot_needs_no_agent_on_the_disk() {
    let ended = on_base("boot = 'direct'", REBOOT).run();
    assert_eq!(deeds(&ended.place().fake_log()), ["start", "step", "reboot", "seal", "bye"]);
}

#[test]
fn i1_a_cloud_init_that_a_step_removes_is_replaced_before_a_reboot_and_in_tests() {
    let steps = format!("[[step]]\nname = 'harden'\nrun = 'breaks {REASON}'\n{REBOOT}");
    let kiln = Kiln::new().spec(&steps).build();
    let ended = kiln.stderr_has("step 1 `harden`").stderr_has("it is planted for `reboot` steps and tests").run();
    assert_eq!(deeds(&ended.place().fake_log()), ["start", "step", "plant", "reboot", "seal", "bye"]);
    // Its disk has no kernel, so that no copy can be planted.
    let tested = Kiln::new().spec(&format!("{steps}{TEST}")).build().fails(9).stderr_has("the tests cannot run");
    refused(tested.stderr_has("cannot be planted").stderr_has("--no-test"));
}

/// A cached reboot is not seen again, but its disk has the agent until it is sealed.
#[test]
fn i1_the_manifest_says_when_the_agent_was_planted() {
    let late = format!("[[step]]\nrun = 'breaks {REASON}'\n{REBOOT}");
    let kiln = Kiln::new().spec(&late).build();
    let built = kiln.run();
    assert_eq!(recorded_agent(&built.place().store()), "planted-later");
    let spec = fs::read_to_string(built.place().join("kiln.toml")).unwrap();
    let changed = built.then(["build", ".", "--replace"]).file("kiln.toml", spec + "[[step]]\nrun = 'echo more'\n");
    let cached = changed.fake("agent-on-disk").stderr_has("reboot  cached").run();
    assert_eq!(recorded_agent(&cached.place().store()), "planted-later");
    assert_eq!(recorded_agent(&on_base("", "").run().place().store()), "planted");
    let never = Kiln::new().spec(REBOOT).build().run();
    assert_eq!(recorded_agent(&never.place().store()), serde_json::Value::Null);
}

#[test]
fn i1_a_start_of_the_agent_that_kiln_does_not_know_is_no_guess() {
    let built = on_base("", TEST).run();
    let manifest = built.place().store().join("web/1/manifest.json");
    let text = fs::read_to_string(&manifest).unwrap().replace(r#""agent": "planted""#, r#""agent": "conjured""#);
    let tested =
        built.then(["test", "web"]).fails(8).stderr_has("a start of the agent that this version of kiln does not know");
    fs::remove_file(&manifest).unwrap();
    fs::write(&manifest, text).unwrap();
    tested.stderr_has("conjured").run();
}

/// The start of the agent that the manifest of a version names.
fn recorded_agent(store: &Path) -> serde_json::Value {
    let manifest = fs::read(store.join("web/1/manifest.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&manifest).unwrap()["machine"]["agent"].clone()
}

#[test]
fn i4_an_image_without_a_kernel_cannot_have_the_agent_planted() {
    let kiln = Kiln::new().file("base.qcow2", base(&["boot/readme"])).spec(STEP).build().fails(5);
    let kiln = kiln.stderr_has("kiln's agent cannot be planted in the image: no Linux kernel");
    refused_at_once(kiln.stderr_has("planting starts the kernel"));
}

#[test]
fn i1_an_init_that_kiln_does_not_know_is_named() {
    let kiln = on_base("", "").fake("unknown-init").fails(5).stderr_has("/usr/bin/runit");
    refused(kiln.stderr_has("cannot be planted").stderr_has("exited with code 1"));
}

#[test]
fn i1_a_guest_in_emergency_mode_runs_no_steps() {
    let kiln = on_base("", "").fake("emergency").fails(6).stderr_has("booted into emergency mode");
    let ended = refused(kiln);
    assert_eq!(deeds(&ended.place().fake_log()), ["start", "plant", "bye", "start"]);
}

#[test]
fn i1_the_layers_of_a_planted_build_have_the_agent() {
    let built = on_base("", REBOOT).run();
    let before = built.place().fake_log().len();
    let again = built.then(["build", ".", "--replace"]).run();
    assert_eq!(again.place().fake_log().len(), before, "it is up to date");
    let spec = fs::read_to_string(built.place().join("kiln.toml")).unwrap();
    let changed =
        built.then(["build", ".", "--replace"]).file("kiln.toml", spec + "[[step]]\nrun = 'echo more'\n").run();
    assert_eq!(deeds(&changed.place().fake_log()[before..]), ["start", "step", "seal", "bye"]);
}

#[test]
fn i1_an_image_whose_agent_was_planted_is_tested_so_again() {
    let built = on_base("agent = 'planted'", TEST).run();
    let before = built.place().fake_log().len();
    let tested = built.then(["test", "web"]).stderr_has("planted in a copy of the image").run();
    assert_eq!(deeds(&tested.place().fake_log()[before..]), ["start", "plant", "bye", "start", "step"]);
}

#[test]
fn i1_an_agent_that_is_left_on_the_disk_keeps_the_image_out_of_the_store() {
    let left = base(&["boot/vmlinuz", "usr/lib/kiln-agent"]);
    let kiln = Kiln::new().file("base.qcow2", left).machine("boot = 'direct'").spec(STEP).build();
    let said = "the sealed image still holds kiln's agent, or what starts it, in /usr/lib/kiln-agent";
    refused(kiln.fake("mounts-whole-disk").fails(8).stderr_has(said));
}
