//! The oldest QEMU that kiln takes.

use std::fs;

use crate::bench::{Bench, root};
use crate::cache::layered;

/// QEMU 7.2 knows no mapped-ram.
#[test]
#[ignore = "boots a VM"]
fn an_older_qemu_goes_on_from_a_stream_and_another_boots() {
    let qemu = root().join("fixtures/cache/qemu-7.2/usr/bin/qemu-system-x86_64");
    if !qemu.exists() {
        println!("SKIPPED: {} is not there; fixtures/qemu-7.2/build says why", qemu.display());
        return;
    }
    let mut bench = Bench::cold();
    bench.qemu = Some(qemu);
    let cold = layered(&bench, "1", "two", &[]);
    let formats = bench.layers().into_iter().map(|layer| fs::read_to_string(layer.join("layer.json")).unwrap());
    let streams = formats.filter(|facts| facts.contains("\"format\": \"stream\"")).count();
    assert!(streams > 0 && !cold.stderr.contains("no checkpoints"), "{}", cold.stderr);
    let resumed = layered(&bench, "2", "two", &[]);
    assert_eq!(resumed.cached, [true, true, false], "{}", resumed.stderr);
    assert!(!resumed.stderr.contains("checkpoint is not used"), "{}", resumed.stderr);
    assert_eq!(resumed.content, cold.content);
    assert!(resumed.told[0] != cold.told[0] && resumed.told[1] != cold.told[1]);
    // The newer QEMU has another machine type, so its guests are others.
    bench.qemu = None;
    let foreign = layered(&bench, "3", "two", &[]);
    assert_eq!(foreign.cached, [false, false, false], "{}", foreign.stderr);
    assert_eq!(foreign.content, cold.content);
}
