//! Image files in every format, with the fake QEMU: what a build publishes, and what `kiln export` makes later.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use support::{Ended, Kiln, make_writable, qemu_img};

/// Formats with QEMU's names for them, and whether their disks are whole MiB.
const FORMATS: [(&str, &str, bool); 6] = [
    ("qcow2", "qcow2", false),
    ("raw", "raw", false),
    ("vmdk", "vmdk", true),
    ("vdi", "vdi", true),
    ("vhdx", "vhdx", true),
    ("vhd", "vpc", true),
];
/// A base of no whole MiB, with some text and a hole.
const SIZE: usize = (5 << 20) + 12 * 512;

/// A build of these formats over a base with data.
fn build(formats: &[&str]) -> Kiln {
    let outputs: String = formats.iter().map(|format| format!("[[output]]\nformat = '{format}'\n")).collect();
    let mut disk = vec![0; SIZE];
    disk[..700_000].copy_from_slice(&b"0123456789".repeat(70_000));
    disk[SIZE - 4..].copy_from_slice(b"end.");
    let kiln = Kiln::new().spec(&outputs).file("base.raw", disk);
    let paths = ["base.raw", "base.qcow2"].map(|name| kiln.place().join(name).into_os_string().into_string().unwrap());
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &paths[0], &paths[1]]);
    kiln.build()
}

fn manifest(ended: &Ended) -> Value {
    let text = fs::read(ended.place().store().join("web/1/manifest.json")).expect("published");
    serde_json::from_slice(&text).expect("JSON")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A folder that nothing but exports go to.
fn out(ended: &Ended) -> PathBuf {
    let folder = ended.place().join("out");
    fs::create_dir_all(&folder).expect("made");
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).expect("there").map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_format_holds_the_disk_and_is_made_again_with_the_same_bytes() {
    let built = build(&FORMATS.map(|(format, ..)| format)).run();
    built.then(["verify", "web"]).run();
    let manifest = manifest(&built);
    let (folder, out) = (built.place().store().join("web/1"), out(&built));
    for (index, (format, driver, whole)) in FORMATS.into_iter().enumerate() {
        let name = format!("web-1.{format}");
        let size = if whole { 6 << 20 } else { SIZE };
        let listed = &manifest["outputs"][index];
        assert_eq!((&listed["file"], &listed["format"]), (&name.clone().into(), &format.into()));
        assert_eq!(listed["virtual_bytes"], size);
        let base = built.place().join("base.raw");
        qemu_img(&["compare", "-q", "-f", "raw", "-F", driver, text(&base), text(&folder.join(&name))]);
        let exported = built.then(["export", "web", "--format", format, "--json", "-o", text(&out)]).run();
        let exported: Value = serde_json::from_str(&exported.stdout).expect("JSON");
        let exported = &exported[0];
        assert_eq!(exported["file"], text(&out.join(&name)));
        for key in ["format", "bytes", "virtual_bytes", "sha256"] {
            assert_eq!(exported[key], listed[key], "{key} of {format}");
        }
    }
    assert_eq!(names(&out).len(), FORMATS.len());
}

#[test]
fn any_format_can_be_the_source_of_any_other() {
    for (source, ..) in FORMATS {
        let built = build(&[source]).run();
        let (base, out) = (built.place().join("base.raw"), out(&built));
        for (format, driver, _) in FORMATS {
            // Under a name of its own, since that of a folder is not used twice.
            let file = out.join(format!("mine.{format}"));
            let printed = built.then(["export", "web@1", "--format", format, "-o", text(&file)]).run().stdout;
            assert_eq!(printed, format!("{}\n", file.display()));
            qemu_img(&["compare", "-q", "-f", "raw", "-F", driver, text(&base), text(&file)]);
        }
        let zlib = built.then(["export", "web", "--format", "qcow2", "--compression", "zlib", "-o", text(&out)]).run();
        qemu_img(&["compare", "-q", "-f", "raw", "-F", "qcow2", text(&base), zlib.stdout.trim()]);
    }
}

#[test]
fn o1_an_export_overwrites_only_on_demand_and_leaves_nothing_else() {
    let built = build(&["qcow2"]).run();
    let out = out(&built);
    let file = out.join("web-1.vdi");
    let export = || built.then(["export", "web", "--format", "vdi", "-o", text(&out)]);
    fs::write(&file, "mine").expect("written");
    export().fails(8).stderr_has("--replace").run();
    assert_eq!(fs::read(&file).expect("there"), b"mine");
    export().args(["--replace"]).run();
    let made = fs::read(&file).expect("there");
    let before = fs::metadata(&file).expect("there").modified().unwrap();
    // The same bytes are left alone.
    export().run();
    assert_eq!((fs::read(&file).unwrap() == made, fs::metadata(&file).unwrap().modified().unwrap()), (true, before));
    // A folder that is not there yet.
    let new = format!("{}/", text(&out.join("new/deep")));
    built.then(["export", "web", "--format", "vhd", "-o", &new]).run();
    assert_eq!(
        (names(&out), names(Path::new(&new))),
        (vec!["new".into(), "web-1.vdi".into()], vec!["web-1.vhd".into()])
    );
    built.then(["export", "web", "--format", "vdi", "--compression", "zstd"]).fails(2).stderr_has("zstd").run();
    built.then(["export", "web", "--format", "vmkd"]).fails(2).stderr_has("vmdk").run();
}

#[test]
fn d1_a_damaged_image_is_not_the_source_of_an_export() {
    let built = build(&["qcow2"]).run();
    let image = built.place().store().join("web/1/web-1.qcow2");
    make_writable(&image);
    let mut bytes = fs::read(&image).expect("published");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&image, bytes).expect("damaged");
    let out = out(&built);
    let export = built.then(["export", "web", "--format", "vmdk", "-o", text(&out)]);
    export.fails(8).stderr_has("web-1.qcow2 differs from its checksum").run();
    assert_eq!(names(&out), [""; 0]);
}

#[test]
fn a_build_needs_no_program_but_qemu() {
    let outputs = "[[output]]\nformat = 'qcow2'\ncompression = 'none'\n[[output]]\nformat = 'containerdisk'\n";
    let built = Kiln::new().spec(outputs).build().env("PATH", "/nowhere").run();
    for compression in ["zlib", "zstd"] {
        let file = out(&built).join(compression);
        let export = ["export", "web", "--format", "qcow2", "--compression", compression, "-o", text(&file)];
        built.then(export).env("PATH", "/nowhere").run();
        qemu_img(&["check", "-q", "-f", "qcow2", text(&file)]);
    }
}
