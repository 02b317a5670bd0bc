use super::*;
use crate::masking::{SecretParts, written_forms};

const VALUE: &[u8] = b"p@ss word+/?~and more";

fn search() -> SecretScan {
    searched(&[("token", VALUE)]).scan()
}

fn searched(secrets: &[(&str, &[u8])]) -> SearchedSecrets {
    SearchedSecrets::new(secrets.iter().copied()).unwrap()
}

fn shell(script: &str) -> Vec<u8> {
    let output = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}");
    output.stdout
}

#[test]
fn o3_every_form_is_found_wherever_the_pieces_are_cut() {
    let text = String::from_utf8(VALUE.to_vec()).unwrap();
    let forms = [
        ("as it is", VALUE.to_vec()),
        ("in hex", shell(&format!("printf '%s' '{text}' | od -An -v -tx1 | tr -d ' \\n'"))),
        ("in base64", shell(&format!("printf '%s' '{text}' | base64"))),
        ("in base64", shell(&format!("printf 'x%s' '{text}' | base64"))),
        ("in base64", shell(&format!("printf 'user:%s more' '{text}' | base64"))),
        ("percent-encoded", b"p%40ss%20word%2B%2F%3F~and%20more".to_vec()),
    ];
    for (form, written) in forms {
        let disk = [vec![b'.'; 1000], written, vec![b'.'; 1000]].concat();
        for size in [1, 7, 64, 999, 1001, 4096] {
            let mut search = search();
            let pieces = disk.chunks(size).scan(0, |at, piece| Some((std::mem::replace(at, *at + piece.len()), piece)));
            pieces.for_each(|(at, piece)| search.look(at as u64, piece));
            let found = search.take_leaks();
            let leak = found.first().unwrap_or_else(|| panic!("{form} in pieces of {size}"));
            assert_eq!((leak.name.as_str(), leak.form), ("token", form));
            let LeakPlace::Disk(at) = leak.place else { panic!("{leak}") };
            assert!((1000..1010).contains(&at), "{leak}");
        }
    }
}

#[test]
fn o3_what_is_apart_is_no_secret() {
    let mut search = search();
    search.look(0, &VALUE[..10]);
    search.look(4096, &VALUE[10..]);
    assert_eq!(search.take_leaks(), []);
}

#[test]
fn o3_every_line_of_a_key_is_searched_for_and_a_pin_is_too_short() {
    let key = b"-----BEGIN KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ7kQz4rO0Yp3v\nq8Xz71Pk\n-----END KEY-----\n";
    assert!(SearchedSecrets::new([("pin", &b"1234"[..])].into_iter()).is_none());
    let mut search = searched(&[("key", key), ("pin", b"1234")]).scan();
    for (text, count) in [("-----BEGIN KEY-----\n", 0), ("MC4CAQAwBQYDK2VwBCIEIJ7kQz4rO0Yp3v", 1), ("q8Xz71Pk", 1)] {
        search.look(0, text.as_bytes());
        assert_eq!(search.take_leaks().len(), count, "{text}");
    }
}

#[test]
fn o3_the_end_of_a_long_token_is_found_without_its_beginning() {
    let token: String =
        (0..300_u32).map(|n| char::from(b"aB3-x9Zq"[(n as usize * 5 % 8) ^ (n as usize / 50)])).collect();
    let mut search = searched(&[("token", token.as_bytes())]).scan();
    search.look(0, &token.as_bytes()[230..]);
    assert_eq!(search.take_leaks()[0].name, "token");
}

#[test]
fn o3_values_of_structured_secrets_are_searched_for_and_public_ones_are_not() {
    let value =
        b"# a comment that is longer than everything else here\nDB_USER=application\nDB_PASSWORD=Horse77Battery\n";
    let searched = searched(&[("env", value)]);
    assert_eq!(searched.scan_text(b"# a comment that is longer than everything else here", LeakPlace::Disk), []);
    assert_eq!(searched.scan_text(b"user: application", LeakPlace::Disk), []);
    assert_eq!(searched.scan_text(b"password: Horse77Battery", LeakPlace::Disk)[0].name, "env");
}

#[test]
fn o3_every_form_that_is_searched_for_is_masked() {
    let json = br#"{"type": "x", "private_key": "-----BEGIN PRIVATE KEY-----\nXWSrEPevGIUGwK8j3DZ8EmqwLMTkPLGvs+L2z3tAbte6NZus0DMwntFlboI6s7zG\nbzo4KZ396eo0tkAS/aF\n-----END PRIVATE KEY-----\n"}"#;
    for value in
        [&b"S3cr/t+P@ss\"w'o<r>d&x=y\\z $Q%1"[..], b"AlnumSecretZq7193xKLm4", json, b"A=b\nTOKEN='it is \xc3\xa9'\n"]
    {
        let (parts, mask) = (SecretParts::new(value), crate::masking::SecretMask::new([value]));
        for form in parts.units().filter(|unit| unit.len() >= SHORTEST).flat_map(|unit| parts.forms_of(unit)) {
            let wraps = if form.is_wrapped() { &["", "\n", "\r\n", "\\n", "\\r\\n", "\\\\n"][..] } else { &[""] };
            for wrap in wraps {
                let lines: Vec<&[u8]> = form.bytes.chunks(19).collect();
                let text = [b"\x1f", &lines.join(wrap.as_bytes())[..], b"\x1f"].concat();
                let shown = String::from_utf8_lossy(&mask.mask_bytes(&text)).into_owned();
                let left = shown
                    .replace("[secret]", "")
                    .replace(['\x1f', '\n', '\r'], "")
                    .replace("\\n", "")
                    .replace("\\r", "");
                assert!(left.len() < 2, "{} {wrap:?}: {shown}", form.how);
            }
        }
    }
}

#[test]
fn o3_wrapped_forms_are_found_wherever_the_line_ends() {
    let searched = searched(&[("token", VALUE)]);
    for form in written_forms(VALUE).iter().filter(|form| form.is_wrapped()) {
        for at in 1..form.bytes.len() {
            let wrapped = [&form.bytes[..at], b"\n", &form.bytes[at..]].concat();
            let leak = searched.scan_text(&wrapped, LeakPlace::Disk);
            assert_eq!(leak.first().map(|leak| leak.form), Some(form.how), "{at}");
        }
    }
}

#[test]
fn o3_a_folder_is_searched_with_its_names_links_and_compressed_files() {
    let folder = tempfile::tempdir().unwrap();
    let searched = searched(&[("token", b"hunter2-hunter2")]);
    let scan = || searched.scan_folder(folder.path(), &|path| path.ends_with("disk.raw")).unwrap().leaks.named;
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("logs")).unwrap();
    fs::write(at("disk.raw"), "hunter2-hunter2").unwrap();
    fs::write(at("clean"), "hunter2").unwrap();
    assert_eq!(scan(), []);
    fs::write(at("logs/a"), "so: hunter2-hunter2").unwrap();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    io::Write::write_all(&mut packed, b"so: hunter2-hunter2").unwrap();
    fs::write(at("logs/b.gz"), packed.finish().unwrap()).unwrap();
    fs::write(at("logs/hunter2-hunter2.log"), "").unwrap();
    std::os::unix::fs::symlink("/srv/hunter2-hunter2", at("link")).unwrap();
    let mut places: Vec<_> = scan().into_iter().map(|leak| leak.to_string()).collect();
    places.sort();
    let expected = [
        "the secret `token` is in the file logs/a, as it is, at byte 4",
        "the secret `token` is in the file logs/b.gz, as it is, at byte 4 of what it unpacks to",
        "the secret `token` is in the name of a file in logs, as it is",
        "the secret `token` is in the name of a file, as it is",
    ];
    assert_eq!(places, expected);
}
