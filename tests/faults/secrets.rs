//! Secrets end nowhere.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use kiln::masking::written_forms;

use crate::support::{Kiln, Place, qemu_img};
use crate::{fault, files_with, refused, refused_at_once};

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
    let kiln = Kiln::new().spec(SECRET_SPEC).build().args(["--secret-env", "TOKEN"]);
    let said = "the secret `token` comes from the environment variable TOKEN, which is not set";
    refused_at_once(kiln.fails(3).stderr_has(said).stderr_has("kiln.toml:9:"));
}

#[test]
fn o3_a_spec_takes_only_variables_that_the_user_allows() {
    let said = "the secret `token` comes from the environment variable TOKEN, which specs are not allowed to take";
    for verb in ["build", "check", "plan", "shell"] {
        let kiln = Kiln::new().spec(SECRET_SPEC).args([verb, ".", "--secret-env", "OTHER"]).env("TOKEN", SECRET);
        let kiln = kiln.fails(3).stderr_has("kiln.toml:9:").stderr_has(said);
        let ended = refused_at_once(kiln.stderr_has("--secret-env TOKEN").stderr_has("secret-env = [\"TOKEN\"]"));
        assert!(!ended.stderr.contains(SECRET) && !ended.stderr.contains("ok, "), "{}", ended.stderr);
    }
    for verb in ["check", "plan"] {
        Kiln::new().spec(SECRET_SPEC).args([verb, "."]).secret("TOKEN", SECRET).run();
    }
}

#[test]
fn o3_every_secret_that_cannot_be_had_is_reported_with_the_other_inputs() {
    let spec = "[secrets]\nunset = { env = 'TOKEN' }\ngone = { file = 'gone.key' }\nlarge = { file = 'large.key' }\n\
                folder = { file = '.' }\nfine = { file = 'fine.key' }\nunused = { file = 'unused.key' }\n[[step]]\n\
                name = 'greet'\nrun = 'true'\nsecrets = ['unset', 'gone', 'large', 'folder', 'fine']\n";
    let with_script = format!("{spec}[[step]]\nname = 'other'\nscript = 'no.sh'\n");
    for (spec, has_script) in [(spec, false), (&with_script, true)] {
        for verb in ["build", "check", "plan"] {
            let kiln = Kiln::new().file("large.key", vec![b'x'; 65_537]).file("fine.key", SECRET.as_bytes());
            let kiln = kiln.spec(spec).args([verb, ".", "--secret-env", "TOKEN"]).fails(3);
            let mut kiln = kiln
                .stderr_has("the secret `unset` comes from the environment variable TOKEN, which is not set")
                .stderr_has("the secret `gone` cannot be read from")
                .stderr_has("the secret `large` is larger than 64 KiB")
                .stderr_has("it is not a regular file")
                .stderr_has("large = { file = 'large.key' }");
            if has_script {
                kiln = kiln.stderr_has("no.sh");
            }
            let ended = kiln.run();
            assert_eq!(ended.place().starts(), 0, "nothing is booted");
            let stderr = &ended.stderr;
            assert!(!stderr.contains("unused") && !stderr.contains(SECRET) && !stderr.contains("ok, "), "{stderr}");
        }
    }
}

/// Keys hold no values: a digest of a short secret could be guessed.
#[test]
fn o3_an_image_that_is_up_to_date_says_that_secrets_were_not_compared() {
    let note = "the values of secrets (`token`) are not part of the build key";
    let built = Kiln::new().spec(SECRET_SPEC).build().secret("TOKEN", SECRET).run();
    assert!(!built.stderr.contains(note), "{}", built.stderr);
    let again = built.then(["build", "."]).secret("TOKEN", "another-value-of-it").stderr_has("up to date");
    again.stderr_has(note).run();
    // A secret that no step reads has no part in the image.
    let unused = SECRET_SPEC.replace("secrets = ['token']", "").replace("secret token", "true");
    let built = Kiln::new().spec(&unused).build().secret("TOKEN", SECRET).run();
    let again = built.then(["build", "."]).secret("TOKEN", SECRET).stderr_has("up to date").run();
    assert!(!again.stderr.contains("not part of the build key"), "{}", again.stderr);
}

#[test]
fn o3_the_configuration_allows_variables_and_is_checked() {
    let configured = |text: &str| {
        let kiln = Kiln::new().file("home/.config/kiln/config.toml", text).spec(SECRET_SPEC);
        kiln.build().env("TOKEN", SECRET)
    };
    let ended = configured("secret-env = ['TOKEN']").run();
    assert_eq!(ended.place().published(), ["web@1"]);
    refused_at_once(configured("\nsecret-environment = []").fails(2).stderr_has("config.toml:2: unknown field"));
    let elsewhere = Kiln::new().file("xdg/kiln/config.toml", "secret-env = ['TOKEN']").spec(SECRET_SPEC);
    let folder = elsewhere.place().join("xdg");
    elsewhere.build().env("XDG_CONFIG_HOME", folder).env("TOKEN", SECRET).run();
}

#[test]
fn o3_a_fifo_is_no_secret() {
    let kiln = Kiln::new().spec(&SECRET_SPEC.replace("env = 'TOKEN'", "file = 'gate'")).build();
    crate::fifo(kiln.place());
    let kiln = kiln.fails(3).stderr_has("the secret `token` cannot be read").stderr_has("kiln.toml:9:");
    refused_at_once(kiln.stderr_has("it is not a regular file"));
}

#[test]
fn o3_a_secret_is_shown_and_kept_nowhere() {
    let ended =
        Kiln::new().spec(SECRET_SPEC).build().secret("TOKEN", SECRET).args(["-v"]).stderr_has("| [secret]").run();
    let failed = ended.place().kiln().file("kiln.toml", {
        let spec = fs::read_to_string(ended.place().join("kiln.toml")).expect("read");
        spec.replace("secret token", "secret token; exit 1")
    });
    let failed = failed.args(["build", ".", "--version", "2"]).secret("TOKEN", SECRET).fails(7).run();
    for text in [&ended.stdout, &ended.stderr, &failed.stdout, &failed.stderr] {
        assert!(!text.contains(SECRET), "{text}");
    }
    assert_eq!(files_with(ended.place().path(), SECRET), [""; 0].map(PathBuf::from));
}

/// In two writes, across the limit of a line, on standard output, standard error and the console.
const SHOWN_EVERYWHERE: &str = "secret token; long token; halves token; console token; secret token";

fn assert_nowhere(place: &Place, secret: &str) {
    for form in written_forms(secret.as_bytes()) {
        let text = String::from_utf8(form.bytes).expect("the form of a text");
        assert_eq!(files_with(place.path(), &text), [""; 0].map(PathBuf::from), "{}", form.how);
    }
}

#[test]
fn o3_a_secret_that_is_shown_everywhere_is_kept_nowhere() {
    for secret in [SECRET, "p@ss 'word' & \"more\""] {
        let spec = SECRET_SPEC.replace("secret token", SHOWN_EVERYWHERE);
        let ended = Kiln::new().spec(&spec).build().secret("TOKEN", secret).args(["-v", "--progress", "json"]).run();
        let failing = SECRET_SPEC.replace("secret token", &format!("{SHOWN_EVERYWHERE}; exit 1"));
        let failed = ended.place().kiln().spec(&failing).args(["build", ".", "-v", "--version", "2"]);
        let failed = failed.secret("TOKEN", secret).fails(7).run();
        for text in [&ended.stdout, &ended.stderr, &failed.stdout, &failed.stderr] {
            assert!(!text.contains(secret), "{text}");
        }
        assert!(ended.stderr.contains("[secret]") && failed.stderr.contains("| [secret]"), "{}", failed.stderr);
        assert_nowhere(ended.place(), secret);
        let console = fs::read_to_string(ended.place().join("store/web/1/console.log")).expect("published");
        assert_eq!(console.matches("token [secret]").count(), 2, "{console}");
        for (path, mode) in [("", 0o700), ("web-2", 0o700), ("web-2/build.log", 0o600), ("web-2/console.log", 0o600)] {
            let kept = fs::metadata(ended.place().cache().join("failed").join(path)).expect("kept");
            assert_eq!(kept.permissions().mode() & 0o777, mode, "{path}");
        }
    }
}

#[test]
fn o3_a_fetched_file_or_name_that_holds_a_secret_is_not_published() {
    for (from, said) in [
        ("/secret/token", "the secret `token` is in the file out/report, as it is, at byte 0"),
        ("/named-as/token", "the secret `token` is in the name of a file in out/report, as it is"),
    ] {
        let spec = format!("{SECRET_SPEC}[[step]]\nfetch = '{from}'\nto = 'out/report'\n[[step]]\nrun = 'true'\n");
        let kiln = Kiln::new().spec(&spec).build().secret("TOKEN", SECRET);
        let ended = refused(kiln.fails(8).stderr_has(said).stderr_has("step 2"));
        assert!(!ended.stderr.contains(SECRET), "{}", ended.stderr);
        assert_nowhere(ended.place(), SECRET);
    }
}

#[test]
fn o3_a_kept_disk_that_holds_a_secret_is_said_to() {
    let spec = SECRET_SPEC.replace("secret token", "exit 1");
    let kiln = Kiln::new().spec(&spec).args(["build", ".", "--on-failure", "keep"]).secret("TOKEN", SECRET);
    let ended = kiln.fails(7).stderr_has("the guest's disk is kept: ").start().finish_killed();
    let work = ended.place().cache().join("work");
    let kept = fs::read_dir(work).expect("work").next().expect("kept").expect("kept").path();
    for (path, mode) in [(kept.clone(), 0o700), (kept.join("overlay.qcow2"), 0o600), (kept.join("build.log"), 0o600)] {
        assert_eq!(fs::metadata(&path).expect("kept").permissions().mode() & 0o777, mode, "{}", path.display());
    }
}

#[test]
fn o3_qemu_gets_no_variable_of_kiln() {
    let gate = "[[step]]\nname = 'greet'\nrun = 'await GATE'\n";
    let kiln = Kiln::new();
    let fifo = crate::fifo(kiln.place());
    let live = kiln.spec(&gate.replace("GATE", &fifo.display().to_string())).build().env("OTHER_TOKEN", SECRET).start();
    live.stderr_shows("greet");
    let environment = fs::read(format!("/proc/{}/environ", live.place().qemu())).expect("it runs");
    let environment = String::from_utf8_lossy(&environment);
    assert!(environment.contains("LC_ALL=C") && !environment.contains("TOKEN"), "{environment}");
    crate::open_gate(&fifo);
    live.finish();
}

#[test]
fn o3_a_secret_on_the_disk_keeps_the_image_out_of_the_store() {
    let disk = [vec![b'.'; 3 << 20], format!("password={SECRET}").into_bytes(), vec![b'.'; 1 << 20]].concat();
    let kiln = Kiln::new().file("disk", &disk[..4 << 20]).spec(SECRET_SPEC);
    let (disk, base) = (kiln.place().join("disk"), kiln.place().join("base.qcow2"));
    let paths = [&disk, &base].map(|path| path.to_str().expect("UTF-8"));
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", paths[0], paths[1]]);
    let said = "the secret `token` is in the image, as it is, at byte 3145737 of its disk (sector 6144)";
    refused(kiln.build().secret("TOKEN", SECRET).fails(8).stderr_has(said));
}

/// Builds with a secret over a disk with this file, in the mode of the fake guest.
fn over_file(mode: &str, name: &str, content: &[u8]) -> Kiln {
    over_files(mode, SECRET_SPEC, &[(name, content)])
}

/// Builds with a secret over a disk with these files in `/opt`.
fn over_files(mode: &str, spec: &str, files: &[(&str, &[u8])]) -> Kiln {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    fs::create_dir_all(folder.path().join("tree/opt")).expect("made");
    fs::create_dir_all(folder.path().join("tree/usr/bin")).expect("made");
    fs::write(folder.path().join("tree/usr/bin/cloud-init"), "").expect("written");
    for (name, content) in files {
        fs::write(folder.path().join("tree/opt").join(name), content).expect("written");
    }
    // In ext2, a block of block numbers lies between the first twelve blocks of a file and the others.
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext2", "-b", "1024", "-d", &path("tree"), &path("raw"), "16M"])
        .status()
        .expect("e2fsprogs is installed");
    assert!(made.success());
    qemu_img(&["convert", "-O", "qcow2", &path("raw"), &path("qcow2")]);
    let kiln = fault(mode).spec(spec).secret("TOKEN", SECRET);
    fs::write(kiln.place().join("base.qcow2"), fs::read(path("qcow2")).expect("made")).expect("written");
    kiln
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(content).expect("packed");
    packed.finish().expect("packed")
}

#[test]
fn o3_a_secret_in_a_file_that_lies_in_pieces_or_is_compressed_is_not_published() {
    let in_pieces = [&vec![b'x'; 12 * 1024 - 8][..], SECRET.as_bytes(), &[b'y'; 5000]].concat();
    for (name, content, said) in [
        ("cut", in_pieces, "the secret `token` is in the image, as it is, at byte 12280 of its file /opt/cut"),
        (
            "conf.gz",
            gzip(format!("password = {SECRET}").as_bytes()),
            "the secret `token` is in the image, as it is, at byte 11 of what its file /opt/conf.gz unpacks to",
        ),
        (
            "conf.zst",
            [b"\x50\x2a\x4d\x18\x04\0\0\0....", &zstd::encode_all(SECRET.as_bytes(), 3).expect("packed")[..]].concat(),
            "the secret `token` is in the image, as it is, at byte 0 of what its file /opt/conf.zst unpacks to",
        ),
    ] {
        refused(over_file("mounts-whole-disk", name, &content).fails(8).stderr_has(said));
    }
}

#[test]
fn o3_every_secret_that_is_found_is_named_with_its_file() {
    let other = "Horse77Battery";
    let spec = SECRET_SPEC
        .replace("[[step]]", "other = { env = 'OTHER' }\n[[step]]")
        .replace("['token']", "['token', 'other']");
    let second = gzip(format!("password = {other}").as_bytes());
    let files: [(&str, &[u8]); 3] = [("a", SECRET.as_bytes()), ("b.gz", &second), ("c", SECRET.as_bytes())];
    let kiln = over_files("mounts-whole-disk", &spec, &files).secret("OTHER", other).fails(8);
    refused(
        kiln.stderr_has("secrets were found in 3 places")
            .stderr_has("the secret `token` is in the image, as it is, at byte 0 of its file /opt/a")
            .stderr_has(
                "the secret `other` is in the image, as it is, at byte 11 of what its file /opt/b.gz unpacks to",
            )
            .stderr_has("the secret `token` is in the image, as it is, at byte 0 of its file /opt/c"),
    );
}

#[test]
fn o3_a_compressed_file_that_is_not_searched_to_its_end_is_named() {
    let mut damaged = gzip(&[b'.'; 100]);
    // The header alone.
    damaged.truncate(10);
    damaged.extend([0xff; 100]);
    let said = "compressed files were not searched for secrets to their end: /opt/bad.gz (it cannot be unpacked";
    let ended = over_file("mounts-whole-disk", "bad.gz", &damaged).stderr_has(said).run();
    assert_eq!(ended.place().published(), ["web@1"]);
}

#[test]
fn o3_files_that_kiln_cannot_read_are_said_to_be_unsearched() {
    let said = "the contents of files that kiln cannot read were not searched for secrets, only the disk as it is";
    let ended = over_file("mounts-xfs", "motd", b"hello").stderr_has(said).run();
    assert_eq!(ended.place().published(), ["web@1"]);
    let refused_names = over_file("mounts-xfs", "conf.gz", &gzip(SECRET.as_bytes())).stderr_has(said).fails(8);
    refused(refused_names.stderr_has("unpacks to"));
}
