//! Signatures, and what becomes of a version that somebody has changed. In a program of their own: they start thousands of
//! others, and each that is forked holds the locks of whoever runs beside it for a moment.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln::sign::{SignatureTrust, Signer};
use support::Kiln;

fn ssh_key(folder: &Path) -> PathBuf {
    let key = folder.join("release");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
    assert!(made.expect("ssh-keygen is there: scripts/setup").success());
    key
}

#[test]
fn no_bit_of_an_ssh_signature_can_change() {
    let folder = tempfile::tempdir().unwrap();
    let key = ssh_key(folder.path());
    let trust = SignatureTrust::Key(key.with_extension("pub"));
    let signature = Signer::open(&key).unwrap().sign(b"sums", "").unwrap();
    let bits = (0..signature.len()).flat_map(|at| (0..8).map(move |bit| (at, bit)));
    let missed: Vec<_> = bits
        .filter(|(at, bit)| {
            let mut changed = signature.clone();
            changed[*at] ^= 1 << bit;
            trust.check(b"sums", &changed).is_ok()
        })
        .collect();
    assert!(missed.is_empty(), "{missed:?} of {}", String::from_utf8_lossy(&signature));
}

#[test]
fn a_changed_byte_anywhere_is_noticed_and_its_file_named() {
    let kiln = Kiln::new().spec("[[step]]\nrun = 'echo hello'");
    let key = ssh_key(kiln.place().path());
    let public = key.with_extension("pub");
    let built = kiln.args(["build", ".", "--sign"]).args([&key]).run();
    let verify = || built.then(["verify", "web", "--key"]).args([&public]);
    verify().stdout_has("ok SHA256SUMS.sig, signed by").stdout_has("ok manifest.json").run();
    let folder = built.place().store().join("web/1");
    let files = ["web-1.qcow2", "manifest.json", "provenance.json", "sbom.cdx.json", "SHA256SUMS", "SHA256SUMS.sig"];
    let (mut tried, mut named) = (0, 0);
    for name in files {
        let path = folder.join(name);
        let sound = fs::read(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        for at in (0..sound.len()).step_by(sound.len().div_ceil(40)) {
            let mut changed = sound.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            tried += 1;
            let ended = verify().fails(8).run();
            named += usize::from(ended.stderr.contains(name));
        }
        fs::write(&path, sound).unwrap();
    }
    verify().run();
    println!("tampering: {tried} bytes of {} files changed, {named} noticed with the file's name", files.len());
    assert!(tried > 200 && named == tried, "{named} of {tried}");
}

#[test]
fn a_version_that_is_up_to_date_is_signed_and_bad_keys_are_told_before_anything_boots() {
    let kiln = Kiln::new().spec("");
    let key = ssh_key(kiln.place().path());
    let public = key.with_extension("pub");
    let built = kiln.build().run();
    built.then(["verify", "web", "--key"]).args([&public]).fails(8).stderr_has("SHA256SUMS.sig is missing").run();
    let starts = built.place().starts();
    let signed = built.then(["build", ".", "-o", "out", "--sign"]).args([&key]).run();
    signed.then(["verify", "web"]).stderr_has("SHA256SUMS.sig is not checked").run();
    signed.then(["verify", "web", "--key"]).args([&public]).run();
    assert!(signed.place().join("out/SHA256SUMS.sig").is_file());
    built.then(["build", ".", "--replace", "--sign", "kiln.toml"]).fails(2).stderr_has("neither an OpenSSH nor").run();
    built.then(["build", ".", "--sign", "no-such-key"]).fails(2).stderr_has("cannot read").run();
    assert_eq!(built.place().starts(), starts);
}
