//! Image files in every format, booted by a real QEMU, and made again by `kiln export`.

use std::path::Path;

use crate::bench::{Bench, manifest, run};

/// Formats of disk files, with QEMU's names for them.
const FORMATS: [(&str, &str); 6] =
    [("qcow2", "qcow2"), ("raw", "raw"), ("vmdk", "vmdk"), ("vdi", "vdi"), ("vhdx", "vhdx"), ("vhd", "vpc")];

#[test]
#[ignore = "boots a VM"]
fn a_real_image_boots_from_every_disk_format_and_export_makes_the_same_files() {
    let bench = Bench::new();
    let outputs: String = FORMATS.iter().map(|(format, _)| format!("[[output]]\nformat = \"{format}\"\n")).collect();
    let steps = "[[step]]\nrun = \"echo here >/srv/mark\"\n[[test]]\nrun = \"grep -qx here /srv/mark\"\n";
    let image = bench.builds(&bench.spec("formats", &format!("{steps}{outputs}")));
    let (folder, manifest) = (image.parent().unwrap(), manifest(&image));
    let tests: Vec<_> = manifest["tests"].as_array().unwrap().iter().collect();
    let booted: Vec<_> = tests.iter().map(|test| test["format"].as_str().unwrap()).collect();
    assert_eq!(booted, FORMATS.map(|(format, _)| format));
    for test in tests {
        assert_eq!(test["ok"], true, "{test}");
        println!("{}: {} s", test["name"], test["seconds"]);
    }
    let raw = folder.join("formats-1.raw");
    let sum = run("sha256sum", &[raw.to_str().unwrap()], Path::new("/")).stdout;
    assert_eq!(&*String::from_utf8_lossy(&sum[..64]), manifest["disk_sha256"].as_str().unwrap());
    let out = bench.path("out/");
    for (index, (format, driver)) in FORMATS.into_iter().enumerate() {
        let path = folder.join(format!("formats-1.{format}"));
        let files = [raw.to_str().unwrap(), path.to_str().unwrap()];
        let same = run("qemu-img", &[&["compare", "-f", "raw", "-F", driver][..], &files].concat(), folder);
        assert!(same.status.success(), "{format}: {}", String::from_utf8_lossy(&same.stdout));
        let exported = bench.kiln(&["export", "formats", "--format", format, "--json", "-o", out.to_str().unwrap()]);
        assert!(exported.status.success(), "{format}: {}", String::from_utf8_lossy(&exported.stderr));
        let exported: serde_json::Value = serde_json::from_slice(&exported.stdout).unwrap();
        assert_eq!(exported[0]["sha256"], manifest["outputs"][index]["sha256"], "{format}");
    }
}
