//! Secrets end nowhere.

use std::fs;
use std::path::PathBuf;

use crate::support::{Kiln, qemu_img};
use crate::{files_with, refused, refused_at_once};

const SECRET: &str = "hunter2-hunter2-hunter2";
const SECRET_SPEC: &str = "[secrets]\ntoken = { env = 'TOKEN' }\n\
                           [[step]]\nname = 'greet'\nrun = 'secret token'\nsecrets = ['token']\n";

#[test]
fn s10_what_looks_like_a_secret_in_the_spec_is_warned_of() {
    let spec = "[[step]]\nname = 'greet'\nrun = 'echo AKIAABCDEFGHIJKLMNOP'\n";
    let ended = Kiln::new().spec(spec).build().stderr_has("kiln.toml:10: this looks like an AWS access key").run();
    assert_eq!(ended.place().published(), ["web@1"]);
}

#[test]
fn s10_an_unset_secret_is_told_before_anything_boots() {
    let kiln = Kiln::new().spec(SECRET_SPEC).build();
    refused_at_once(kiln.fails(3).stderr_has("`token`").stderr_has("TOKEN"));
}

#[test]
fn o3_a_secret_is_shown_and_kept_nowhere() {
    let ended = Kiln::new().spec(SECRET_SPEC).build().env("TOKEN", SECRET).args(["-v"]).stderr_has("| [secret]").run();
    let failed = ended.place().kiln().file("kiln.toml", {
        let spec = fs::read_to_string(ended.place().join("kiln.toml")).expect("read");
        spec.replace("secret token", "secret token; exit 1")
    });
    let failed = failed.args(["build", ".", "--version", "2"]).env("TOKEN", SECRET).fails(7).run();
    for text in [&ended.stdout, &ended.stderr, &failed.stdout, &failed.stderr] {
        assert!(!text.contains(SECRET), "{text}");
    }
    assert_eq!(files_with(ended.place().path(), SECRET), [""; 0].map(PathBuf::from));
}

#[test]
fn o3_a_secret_on_the_disk_keeps_the_image_out_of_the_store() {
    let disk = [vec![b'.'; 3 << 20], format!("password={SECRET}").into_bytes(), vec![b'.'; 1 << 20]].concat();
    let kiln = Kiln::new().file("disk", &disk[..4 << 20]).spec(SECRET_SPEC);
    let (disk, base) = (kiln.place().join("disk"), kiln.place().join("base.qcow2"));
    let paths = [&disk, &base].map(|path| path.to_str().expect("UTF-8"));
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", paths[0], paths[1]]);
    let said = "the secret `token` is in the image, as it is, at byte 3145737 of its disk (sector 6144)";
    refused(kiln.build().env("TOKEN", SECRET).fails(8).stderr_has(said));
}
