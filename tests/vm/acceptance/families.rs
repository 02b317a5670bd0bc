//! A family of images with real guests.

use std::fs;
use std::time::Instant;

use serde_json::Value;

use crate::bench::{Bench, debian};

/// `root` on Debian, two images on it, another on one of those; each with a step of its own.
fn family(bench: &Bench) {
    for (name, base) in [
        ("root", format!("file = '{}'", debian().display())),
        ("left", "spec = '../root'".to_owned()),
        ("right", "spec = '../root'".to_owned()),
        ("a", "spec = '../left'".to_owned()),
    ] {
        let folder = bench.path(&format!("family/{name}"));
        fs::create_dir_all(&folder).unwrap();
        let text = format!(
            "[image]\nname = '{name}'\nversion = '1'\n[base]\n{base}\n\
             [[step]]\nrun = 'echo {name} >>/etc/lineage'\n[[step]]\nfetch = '/etc/lineage'\nto = 'lineage'\n"
        );
        fs::write(folder.join("kiln.toml"), text).unwrap();
    }
}

/// What each image was made to contain, by its generations.
#[test]
#[ignore = "boots a VM"]
fn a_family_is_built_bases_first_and_a_change_reaches_what_is_below() {
    let bench = Bench::cold();
    family(&bench);
    let all = bench.path("family");
    let began = Instant::now();
    let built = bench.kiln(&["build", all.to_str().unwrap()]);
    let stderr = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{stderr}");
    println!("four images in {:.1} s", began.elapsed().as_secs_f64());
    bench.nothing_left();
    let read =
        |image: &str, file: &str| fs::read_to_string(bench.path("store").join(image).join("1").join(file)).unwrap();
    let lineage = |image: &str| read(image, "lineage").split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!((lineage("right"), lineage("a")), ("root right".into(), "root left a".into()));
    let manifest = |image: &str| serde_json::from_str::<Value>(&read(image, "manifest.json")).unwrap();
    let chunks = manifest("left")["disk_chunks_sha256"].clone();
    assert!(chunks.is_string());
    assert_eq!(manifest("a")["base"]["image"]["disk_chunks_sha256"], chunks);
    let spec = bench.path("family/left/kiln.toml");
    fs::write(&spec, fs::read_to_string(&spec).unwrap().replace("echo left", "echo other")).unwrap();
    let again = bench.kiln(&["build", all.to_str().unwrap(), "--replace"]);
    let stderr = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success(), "{stderr}");
    for (image, fate) in [("root", "up to date"), ("left", "published "), ("right", "up to date"), ("a", "published ")]
    {
        assert!(stderr.contains(&format!("\n{fate}  {image}@1")), "{image}: {stderr}");
    }
    assert_eq!(lineage("a"), "root other a");
}
