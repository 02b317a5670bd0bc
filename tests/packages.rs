//! Packages as outputs of a build, with the fake QEMU: which files there are, what vouches for them, and sizes they cannot hold.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::{Ended, Kiln};

const GIB: u64 = 1 << 30;
const ALL: [&str; 7] = ["gcp", "ova", "vagrant", "vagrant-v2", "incus", "containerdisk", "proxmox"];

fn outputs(formats: &[&str]) -> String {
    formats.iter().map(|format| format!("[[output]]\nformat = '{format}'\n")).collect()
}

/// A build of these outputs, of a disk that Google takes and that is not empty, at a fixed time.
fn built(formats: &[&str]) -> Ended {
    let kiln = Kiln::new().env("SOURCE_DATE_EPOCH", "1767323045");
    let (raw, base) = (kiln.place().join("disk.raw"), kiln.place().join("base.qcow2"));
    let disk = fs::File::create(&raw).expect("made");
    disk.set_len(GIB).expect("sparse");
    let text: Vec<u8> = (0..100_000_u32).flat_map(|number| format!("{number} ").into_bytes()).collect();
    for place in [0, 3 << 20, GIB / 2 - 5, GIB - text.len() as u64] {
        disk.write_all_at(&text, place).expect("written");
    }
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    support::qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &path(&raw), &path(&base)]);
    kiln.spec(&outputs(formats)).build().run()
}

fn version(ended: &Ended) -> std::path::PathBuf {
    ended.place().store().join("web/1")
}

fn manifest(ended: &Ended) -> Value {
    serde_json::from_slice(&fs::read(version(ended).join("manifest.json")).expect("published")).expect("JSON")
}

/// File and format of each output that the manifest lists.
fn listed(ended: &Ended) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let outputs = manifest(ended)["outputs"].as_array().expect("a list").clone();
    outputs.iter().map(|output| (text(&output["file"]), text(&output["format"]))).collect()
}

fn tar(arguments: &[&str], archive: &Path) -> Vec<u8> {
    let ended = Command::new("tar").args(arguments).arg(archive).output().expect("tar runs");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    ended.stdout
}

/// `KILN_PACKAGES` names a folder that gets the version's files, for others to read.
#[test]
fn every_package_is_published_with_its_sum_and_its_disk_once() {
    let ended = built(&ALL);
    let files = [
        ("web-1.gcp.tar.gz", "gcp"),
        ("web-1.ova", "ova"),
        ("web-1.box", "vagrant"),
        ("web-1.v2.box", "vagrant-v2"),
        ("web-1.qcow2", "qcow2"),
        ("web-1.incus.tar.xz", "incus"),
        ("web-1.oci.tar", "containerdisk"),
        ("web-1.proxmox.sh", "proxmox"),
    ];
    let listed = listed(&ended);
    assert_eq!(listed.iter().map(|(file, format)| (&**file, &**format)).collect::<Vec<_>>(), files);
    // The raw disk and the vmdk are nobody's output.
    let there = support::names(&version(&ended));
    assert!(!there.iter().any(|file| ["web-1.raw", "web-1.vmdk"].contains(&&**file)), "{there:?}");
    ended.then(["verify", "web@1"]).run();
    ended.place().assert_no_leftovers();
    let disk = tar(&["-xzOf"], &version(&ended).join("web-1.gcp.tar.gz"));
    let sha256 = Command::new("sha256sum").arg(version(&ended).join("web-1.qcow2")).output().expect("it runs").stdout;
    let script = fs::read_to_string(version(&ended).join("web-1.proxmox.sh")).expect("published");
    assert!(script.contains(&*String::from_utf8_lossy(&sha256[..64])), "{script}");
    assert_eq!(disk.len() as u64, GIB);
    if let Some(folder) = std::env::var_os("KILN_PACKAGES") {
        fs::create_dir_all(&folder).expect("made");
        for file in there {
            fs::copy(version(&ended).join(&file), Path::new(&folder).join(&file)).expect("copied");
        }
    }
}

#[test]
fn export_makes_every_package_with_the_bytes_that_a_build_gives_it() {
    let ended = built(&ALL);
    let out = ended.place().join("out/");
    for format in ALL {
        let made = ended.then(["export", "web", "--format", format, "-o", out.to_str().expect("UTF-8")]).run().stdout;
        let files: Vec<_> = listed(&ended).into_iter().filter(|(_, of)| of == format).collect();
        assert!(!files.is_empty());
        for (file, _) in files {
            assert!(made.lines().any(|line| Path::new(line) == out.join(&file)), "{made}");
            let [here, there] = [&version(&ended), &out].map(|folder| fs::read(folder.join(&file)).expect("there"));
            assert!(here == there, "{file}");
        }
    }
    // The raw disk and the vmdk inside packages are gone with the scratch folder.
    let published = listed(&ended).into_iter().map(|(file, _)| file).collect::<std::collections::BTreeSet<_>>();
    assert!(support::names(&out).into_iter().eq(published), "{:?}", support::names(&out));
}

/// `KILN_TREE` names a folder that gets the tree, for others to read.
#[test]
fn export_adds_to_a_simplestreams_tree_once() {
    let ended = built(&["qcow2"]);
    let tree = std::env::var_os("KILN_TREE").map_or_else(|| ended.place().join("tree"), Into::into);
    let add = || ended.then(["export", "web", "--simplestreams", "-o", tree.to_str().expect("UTF-8")]);
    let list = || -> Value {
        serde_json::from_slice(&fs::read(tree.join("streams/v1/images.json")).expect("there")).expect("JSON")
    };
    let printed = add().run().stdout;
    let first = list();
    let versions = &first["products"]["web:1:default:amd64"]["versions"];
    let items = versions["202601020304"]["items"].as_object().unwrap_or_else(|| panic!("{first}"));
    for item in items.values() {
        let path = tree.join(item["path"].as_str().expect("a path"));
        assert!(printed.lines().any(|line| Path::new(line) == path), "{printed}");
        assert_eq!(fs::metadata(&path).expect("there").len(), item["size"].as_u64().expect("a size"));
        let sum = Command::new("sha256sum").arg(&path).output().expect("it runs").stdout;
        assert_eq!(&*String::from_utf8_lossy(&sum[..64]), item["sha256"].as_str().expect("a sum"));
    }
    assert_eq!(add().run().stdout, printed);
    assert_eq!((list(), support::names(&tree)), (first, vec!["images".to_owned(), "streams".to_owned()]));
}

#[test]
fn the_same_disk_at_the_same_time_is_the_same_bytes() {
    // The vmdk in an OVA has a random number, by which its snapshots would know it.
    let formats: Vec<_> = ALL.into_iter().filter(|format| *format != "ova").collect();
    let sums = || {
        let outputs = manifest(&built(&formats))["outputs"].clone();
        outputs.as_array().expect("a list").iter().map(|output| output["sha256"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(sums(), sums());
}

#[test]
fn a_package_shares_the_disk_of_another_output() {
    let spec = "[[output]]\nformat = 'qcow2'\ncompression = 'zlib'\n[[output]]\nformat = 'incus'\n";
    let shared = Kiln::new().spec(spec).build().run();
    assert_eq!(
        listed(&shared).into_iter().map(|(file, _)| file).collect::<Vec<_>>(),
        ["web-1.qcow2", "web-1.incus.tar.xz"]
    );
    let spec = "[[output]]\nformat = 'qcow2'\n[[output]]\nformat = 'proxmox'\n";
    let apart = Kiln::new().spec(spec).build().run();
    let files: Vec<_> = listed(&apart).into_iter().map(|(file, _)| file).collect();
    assert_eq!(files, ["web-1.qcow2", "web-1.zlib.qcow2", "web-1.proxmox.sh"]);
}

#[test]
fn the_disk_of_a_package_is_tested_as_well() {
    let spec = format!("{}[[test]]\nrun = 'true'\n", outputs(&["vagrant"]));
    let ended = Kiln::new().spec(&spec).build().run();
    let tests = manifest(&ended)["tests"].clone();
    assert_eq!((&tests[0]["ok"], &tests[0]["format"]), (&json!(true), &json!("qcow2")));
}

/// Fault row O2: before a guest starts.
#[test]
fn o2_a_size_that_a_format_cannot_hold_is_refused_before_anything_boots() {
    let kiln = Kiln::new().machine("disk = '1025MiB'").spec(&outputs(&["gcp"]));
    let ended = kiln.build().fails(8).stderr_has("whole GiB").stderr_has("machine.disk = \"2GiB\"").run();
    assert_eq!(ended.place().starts(), 0);
    ended.place().kiln().args(["check", "."]).fails(8).run();
}
