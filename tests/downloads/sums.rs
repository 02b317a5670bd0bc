//! Lists of checksums: by their own digest, and signed.

use std::sync::atomic::{AtomicU16, Ordering};

use super::*;
use kiln::download::{ChecksumList, Location, SumsTrust};
use kiln::error::{Fault, Kind};
use sha2::Sha512;

fn sha512(bytes: &[u8]) -> String {
    Sha512::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A server of named files.
fn files(files: Vec<(&'static str, Vec<u8>)>) -> Server {
    Server::start(move |seen, reply| match files.iter().find(|(name, _)| seen.path == format!("/{name}")) {
        Some((_, body)) => reply.file(seen, body),
        None => reply.head(404, &[("Content-Length", "0")]),
    })
}

fn sums_request(server: &Server, list: &str, trust: SumsTrust) -> DownloadRequest {
    let sums = ChecksumList { urls: vec![server.url(list).parse().unwrap()], trust, file: None };
    DownloadRequest { pin: DownloadPin::Sums(sums), ..request(&[server.url("web.img")], b"") }
}

fn pinned(list: &[u8]) -> SumsTrust {
    SumsTrust::Checksum(sha256(list).parse().unwrap())
}

#[test]
fn a_list_with_a_digest_of_its_own_says_what_a_file_is() {
    let body = noise(10_000).to_vec();
    let list = format!("{}  other.img\n{} *web.img\n", sha256(b"other"), sha256(&body));
    let list512 = format!("# ours\nSHA512 (web.img) = {}\n", sha512(&body));
    let server = files(vec![
        ("web.img", body.clone()),
        ("SHA256SUMS", list.clone().into_bytes()),
        ("SHA512SUMS", list512.clone().into_bytes()),
    ]);
    for (name, list) in [("SHA256SUMS", &list), ("SHA512SUMS", &list512)] {
        let mut bench = Bench::new();
        let request = sums_request(&server, name, pinned(list.as_bytes()));
        let before = server.seen().len();
        for reach in [NetworkMode::Online, NetworkMode::Online, NetworkMode::Offline] {
            let found = bench.fetch_by(reach, &request).unwrap();
            assert_eq!(found.sha256.to_string(), sha256(&body));
            assert_eq!(found.path.parent().unwrap().file_name().unwrap().to_str(), Some(sha256(&body).as_str()));
        }
        assert_eq!(server.seen().len() - before, 2);
        // Another list is not taken.
        let error = bench.fetch(&sums_request(&server, name, pinned(b"another"))).unwrap_err();
        assert!(matches!(problems(&error)[..], [TransferError::Digest { .. }]), "{error}");
    }
}

#[test]
fn a_list_must_name_the_file_once_and_rightly() {
    let (one, two) = (sha256(b"one"), sha256(b"two"));
    for (list, expected) in [
        (format!("{one}  other.img\n"), "SHA256SUMS does not name web.img"),
        (format!("{one}  a/web.img\n{two}  web.img.xz\n"), "SHA256SUMS does not name web.img"),
        (format!("{one}  web.img\n{two}  web.img\n"), "SHA256SUMS has several checksums for web.img"),
        (format!("{}  web.img\n", &one[1..]), "SHA256SUMS does not name web.img"),
        (String::new(), "SHA256SUMS does not name web.img"),
    ] {
        let server = files(vec![("web.img", b"one".to_vec()), ("SHA256SUMS", list.clone().into_bytes())]);
        let error = Bench::new().fetch(&sums_request(&server, "SHA256SUMS", pinned(list.as_bytes()))).unwrap_err();
        assert_eq!((error.to_string(), error.kind()), (server.url(expected), Kind::Base));
    }
    // The file is not what the list says.
    let list = format!("{two}  web.img\n");
    let server = files(vec![("web.img", b"one".to_vec()), ("SHA256SUMS", list.clone().into_bytes())]);
    let error = Bench::new().fetch(&sums_request(&server, "SHA256SUMS", pinned(list.as_bytes()))).unwrap_err();
    assert!(matches!(problems(&error)[..], [TransferError::Digest { .. }]), "{error}");
}

/// Runs a tool in a folder.
fn run(folder: &Path, program: &str, args: &[&str]) {
    let mut command = Command::new(program);
    command.args(args).current_dir(folder).env("GNUPGHOME", folder).stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.stderr(Stdio::null()).status();
    assert!(status.expect("scripts/setup installs it").success(), "{program} {args:?}");
}

/// Two public keys, and what the first one's owner says of a list.
fn signed_by(tool: &str, folder: &Path, list: &[u8]) -> (PathBuf, PathBuf, Vec<u8>) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(folder.join("list"), list).unwrap();
    match tool {
        "ssh-keygen" => {
            for name in ["one", "two"] {
                run(folder, tool, &["-q", "-t", "ed25519", "-N", "", "-f", name]);
            }
            run(folder, tool, &["-Y", "sign", "-n", "kiln", "-f", "one", "list"]);
            (folder.join("one.pub"), folder.join("two.pub"), fs::read(folder.join("list.sig")).unwrap())
        }
        "minisign" => {
            for name in ["one", "two"] {
                run(folder, tool, &["-G", "-W", "-s", name, "-p", &format!("{name}.pub")]);
            }
            run(folder, tool, &["-S", "-s", "one", "-m", "list", "-x", "list.sig"]);
            (folder.join("one.pub"), folder.join("two.pub"), fs::read(folder.join("list.sig")).unwrap())
        }
        _ => {
            let armour = if tool == "armour" { "--armor" } else { "--no-armor" };
            for name in ["one", "two"] {
                let user = format!("{name}@example.org");
                run(
                    folder,
                    "gpg",
                    &["--batch", "--passphrase", "", "--quick-gen-key", &user, "ed25519", "sign", "never"],
                );
                run(folder, "gpg", &["--export", armour, "--output", name, &user]);
            }
            run(
                folder,
                "gpg",
                &["--batch", "-u", "one@example.org", armour, "--output", "list.sig", "--detach-sign", "list"],
            );
            run(folder, "gpgconf", &["--kill", "all"]);
            (folder.join("one"), folder.join("two"), fs::read(folder.join("list.sig")).unwrap())
        }
    }
}

#[test]
fn a_signed_list_is_believed_if_the_right_one_signed_it() {
    let body = noise(10_000).to_vec();
    let list = format!("{}  web.img\n", sha256(&body)).into_bytes();
    for tool in ["ssh-keygen", "minisign", "gpg", "armour"] {
        let folder = tempfile::tempdir().unwrap();
        let (key, other_key, signature) = signed_by(tool, folder.path(), &list);
        let server = files(vec![
            ("web.img", body.clone()),
            ("SUMS", list.clone()),
            ("SUMS.sig", signature.clone()),
            ("OTHER", [&list[..], b"\n"].concat()),
        ]);
        let at = Location::Url(server.url("SUMS.sig").parse().unwrap());
        let trust =
            |key: &Path, signature: &Location| SumsTrust::Signature { signature: signature.clone(), key: key.into() };
        let mut bench = Bench::new();
        let request = sums_request(&server, "SUMS", trust(&key, &at));
        assert!(matches!(bench.fetch_by(NetworkMode::Offline, &request), Err(DownloadError::Offline(_))));
        for reach in [NetworkMode::Online, NetworkMode::Offline] {
            assert_eq!(bench.fetch_by(reach, &request).unwrap().sha256.to_string(), sha256(&body), "{tool}");
        }
        let file = Location::File(folder.path().join("list.sig"));
        bench.fetch(&sums_request(&server, "SUMS", trust(&key, &file))).unwrap();
        for bad in [
            sums_request(&server, "SUMS", trust(&other_key, &at)),
            sums_request(&server, "OTHER", trust(&key, &at)),
            sums_request(&server, "SUMS", trust(&key, &Location::Url(server.url("SUMS").parse().unwrap()))),
        ] {
            let error = bench.fetch(&bad).unwrap_err();
            assert!(matches!(error, DownloadError::Signature { .. }), "{tool}: {error}");
            assert_eq!(error.kind().exit_code(), 5, "{tool}: {error}");
        }
    }
}

#[test]
fn a_list_of_checksums_is_not_told_as_a_download_of_the_file() {
    let body = noise(10_000).to_vec();
    let list = format!("{}  web.img\n", sha256(&body)).into_bytes();
    let folder = tempfile::tempdir().unwrap();
    let (key, _, signature) = signed_by("ssh-keygen", folder.path(), &list);
    let server = files(vec![("web.img", body.clone()), ("SUMS", list.clone()), ("SUMS.sig", signature)]);
    let at = Location::Url(server.url("SUMS.sig").parse().unwrap());
    for trust in [pinned(&list), SumsTrust::Signature { signature: at, key }] {
        let request = sums_request(&server, "SUMS", trust);
        let bench = Bench::new();
        assert_eq!(told_bytes(&bench.downloads(NetworkMode::Online), &request), body.len() as u64);
        assert_eq!(told_bytes(&bench.downloads(NetworkMode::Online), &request), 0);
    }
}

#[test]
fn while_the_server_of_a_signed_list_is_down_the_last_good_one_counts() {
    let body = noise(10_000).to_vec();
    let list = format!("{}  web.img\n", sha256(&body)).into_bytes();
    let folder = tempfile::tempdir().unwrap();
    let (key, other_key, signature) = signed_by("ssh-keygen", folder.path(), &list);
    let signature_file = folder.path().join("list.sig");
    let answer = Arc::new(AtomicU16::new(200));
    let server = {
        let (answer, list, body) = (answer.clone(), list.clone(), body.clone());
        Server::start(move |seen, reply| match (answer.load(Ordering::SeqCst), seen.path.as_str()) {
            (_, "/web.img") => reply.file(seen, &body),
            (200, "/SUMS") => reply.file(seen, &list),
            (200, "/SUMS.sig") => reply.file(seen, &signature),
            // Not that of the list.
            (0, _) => reply.file(seen, b"another"),
            (status, _) => reply.head(status, &[("Content-Length", "0")]),
        })
    };
    let at = Location::Url(server.url("SUMS.sig").parse().unwrap());
    let request = |key: &Path, signature: &Location| {
        sums_request(&server, "SUMS", SumsTrust::Signature { signature: signature.clone(), key: key.into() })
    };
    let mut bench = Bench::new();
    answer.store(503, Ordering::SeqCst);
    assert!(matches!(bench.fetch(&request(&key, &at)), Err(DownloadError::Failed { .. })), "there is none yet");
    answer.store(200, Ordering::SeqCst);
    bench.fetch(&request(&key, &at)).unwrap();
    answer.store(503, Ordering::SeqCst);
    for signature in [&at, &Location::File(signature_file)] {
        let downloads = bench.downloads(NetworkMode::Online);
        let (request, mut warnings) = (request(&key, signature), Vec::new());
        let mut warn = |text: String| warnings.push(text);
        let cancel = CancellationToken::new();
        let (mut unheard, mut quiet) = (|_| {}, |_| {});
        let watch = DownloadWatch::new(&cancel, &mut unheard, &mut quiet);
        let found = downloads.fetch(&request, &mut watch.with_warnings(&mut warn));
        assert_eq!(found.unwrap().sha256.to_string(), sha256(&body));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        for text in [server.url("SUMS"), "503".into(), "good the last time".into()] {
            assert!(warnings[0].contains(&text), "{text}: {warnings:?}");
        }
    }
    // Not for somebody else's key, and not when a server that works says that it is gone, or has something else.
    assert!(matches!(bench.fetch(&request(&other_key, &at)), Err(DownloadError::Failed { .. })));
    answer.store(404, Ordering::SeqCst);
    assert!(matches!(bench.fetch(&request(&key, &at)), Err(DownloadError::Failed { .. })));
    answer.store(0, Ordering::SeqCst);
    assert!(matches!(bench.fetch(&request(&key, &at)), Err(DownloadError::Signature { .. })));
}
