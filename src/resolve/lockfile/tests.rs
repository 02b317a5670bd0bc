//! Tests of the lock file.

use std::collections::BTreeMap;

use super::*;
use crate::network_record::{RecordedAnswer, RecordedRequest};
use crate::project::FileReach;
use crate::specfile::Overrides;

fn spec(folder: &Path, base: &str) -> Spec {
    let path = folder.join("kiln.toml");
    fs::write(&path, format!("[image]\nname = 'web'\nversion = '1'\n[base]\n{base}\n")).unwrap();
    Spec::load(&path, FileReach::Project, &Overrides::default()).unwrap()
}

#[test]
fn an_entry_counts_for_the_base_it_was_written_for() {
    let folder = tempfile::tempdir().unwrap();
    let first = spec(folder.path(), "image = 'debian@stable'");
    let mut pins = LockFile::beside(&first).unwrap();
    assert!(pins.base.is_empty());
    assert!(matches!(pins.find(&first), Err(PinError::Missing { .. })));
    pins.enter(&first, Some("debian@12".into()), Some(Sha256Digest::new([0xab; 32])));
    assert!(pins.save(&first).unwrap());
    let read = LockFile::beside(&first).unwrap();
    assert_eq!(read, pins);
    assert!(!read.save(&first).unwrap(), "nothing has changed");
    assert_eq!(read.find(&first).unwrap().image.as_deref(), Some("debian@12"));
    let other = spec(folder.path(), "image = 'debian@candidate'");
    let error = read.find(&other).unwrap_err();
    assert!(error.to_string().contains("`image debian@stable`"), "{error}");
    let pinned = spec(folder.path(), &format!("image = 'debian@stable'\nsha256 = '{}'", "cd".repeat(32)));
    assert!(matches!(read.find(&pinned), Err(PinError::Stale { .. })));
}

#[test]
fn what_a_spec_says_is_the_same_on_every_host() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(source(&spec(folder.path(), "file = '../a/disk.qcow2'")), "file ../a/disk.qcow2");
    assert_eq!(source(&spec(folder.path(), "spec = '../a'\nvariant = 'small'")), "spec ../a variant small");
    let digest = "ab".repeat(32);
    let url = spec(folder.path(), &format!("url = 'https://example.org/a.qcow2'\nsha256 = '{digest}'"));
    assert_eq!(source(&url), "url https://example.org/a.qcow2");
}

#[test]
fn a_download_is_locked_with_what_says_which_file_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let by = |trust: &str| {
        let base = format!("url = 'https://example.org/a.qcow2'\n{trust}").replace(' ', "");
        spec(folder.path(), &base)
    };
    let (one, two) = ("ab".repeat(32), "cd".repeat(32));
    let signed = |sums: &str, signature: &str, key: &str| {
        let sums = format!("sums = 'https://example.org/{sums}'");
        format!("{sums}\nsums-signature = 'https://example.org/{signature}'\nsums-key = '{key}'")
    };
    let listed = |sums: &str, sha256: &str| format!("sums = 'https://example.org/{sums}'\nsums-sha256 = '{sha256}'");
    let all = [
        format!("sha256 = '{one}'"),
        listed("SUMS", &one),
        listed("SUMS", &two),
        listed("OTHER", &one),
        signed("SUMS", "SUMS.sig", "a.pub"),
        signed("SUMS", "SUMS.asc", "a.pub"),
        signed("SUMS", "SUMS.sig", "b.pub"),
    ];
    for (locked, trust) in all.iter().enumerate() {
        let mut pins = LockFile::beside(&by(trust)).unwrap();
        pins.enter(&by(trust), None, Some(one.parse().unwrap()));
        for (now, trust) in all.iter().enumerate() {
            let found = pins.find(&by(trust));
            assert_eq!(found.is_ok(), locked == now, "{locked} {now}: {found:?}");
        }
        // An entry of an older kiln, without that field.
        pins.base[0].trust = None;
        assert!(all.iter().all(|trust| pins.find(&by(trust)).is_ok()), "{locked}");
    }
}

#[test]
fn what_kiln_has_not_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let spec = spec(folder.path(), "image = 'debian'");
    let cut = "schema = 1\n[[base]]\nspec = 'kiln.toml'\nsource = 'image debian'\nsha256 = 'abab'";
    let download = |url: &str, sha256: &str, more: &str| {
        let entry = "schema = 1\n[[network]]\nspec = 'kiln.toml'\nrecorded = '2026-01-02T03:04:05Z'\ndownloads = [\n";
        format!("{entry}{{ url = '{url}', sha256 = '{sha256}', bytes = 1{more} }},\n]\n")
    };
    let digest = "ab".repeat(32);
    fs::write(folder.path().join(FILE), download("http://a.example/", &digest, "")).unwrap();
    assert_eq!(LockFile::beside(&spec).unwrap().network(&spec).unwrap().answers[0].status, 200);
    let hostile = [
        download("http://a.example/", "ab", ""),
        download("file:///etc/passwd", &digest, ""),
        download("http://a.example/", &digest, r#", headers = { a = "b\r\nc: d" }"#),
        download("http://a.example/", &digest, ", status = 70000"),
        download("http://a.example/", &digest, "").replace("2026-01-02T03:04:05Z", "today"),
    ];
    let others = ["schema = 2", "schema = 'x'", "base = []", "[[", "schema = 1\n[[base]]\nspec = 1", cut];
    for text in others.into_iter().chain(hostile.iter().map(String::as_str)) {
        fs::write(folder.path().join(FILE), text).unwrap();
        assert!(matches!(LockFile::beside(&spec), Err(PinError::Damaged { .. })), "{text}");
    }
}

fn record(urls: &[&str]) -> NetworkRecord {
    let answers = urls.iter().map(|url| RecordedAnswer {
        request: RecordedRequest { url: (*url).to_owned(), ..RecordedRequest::default() },
        status: 200,
        sha256: Sha256Digest::of(url),
        bytes: 1,
        headers: BTreeMap::new(),
        steps: ["a".to_owned()].into(),
    });
    NetworkRecord { answers: answers.collect(), ..NetworkRecord::default() }
}

#[test]
fn the_downloads_of_a_spec_are_recorded_beside_everything_else() {
    let folder = tempfile::tempdir().unwrap();
    let first = spec(folder.path(), "image = 'debian@stable'");
    let other = Spec { variant: Some("small".into()), ..first.clone() };
    LockFile::update(&first, |pins| pins.enter(&first, Some("debian@12".into()), None)).unwrap();
    let urls = ["http://a.example/1", "http://b.example/"];
    assert!(record_network(&first, &record(&urls)).unwrap());
    assert!(!record_network(&first, &record(&urls)).unwrap(), "nothing has changed");
    assert!(record_network(&other, &record(&urls[..1])).unwrap());
    LockFile::update(&first, |pins| pins.enter(&first, Some("debian@13".into()), None)).unwrap();
    let mut pins = LockFile::beside(&first).unwrap();
    assert_eq!(pins.find(&first).unwrap().image.as_deref(), Some("debian@13"));
    assert_eq!(pins.network(&first), Some(record(&urls)));
    assert_eq!(pins.network(&other), Some(record(&urls[..1])));
    assert_eq!(pins.refresh(&first, Some(&"b.example".parse().unwrap())), 1);
    assert_eq!(pins.network(&first).unwrap().answers, record(&urls[..1]).answers);
    assert_eq!((pins.refresh(&first, None), pins.network(&first)), (1, None));
    assert_eq!(pins.network(&other), Some(record(&urls[..1])));
}

#[test]
fn a_record_that_could_not_be_read_again_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let spec = spec(folder.path(), "image = 'debian'");
    let mut hostile = record(&["http://a.example/1"]);
    hostile.answers[0].headers = [("etag".to_owned(), "a\r\nb".to_owned())].into();
    assert!(matches!(record_network(&spec, &hostile), Err(PinError::Unrecordable { .. })));
    let mut large = record(&["http://a.example/1"]);
    large.answers[0].steps = (0..2200).map(|step| format!("{step:8000}")).collect();
    assert!(matches!(record_network(&spec, &large), Err(PinError::Unrecordable { .. })));
    assert!(!folder.path().join(FILE).exists());
}

#[test]
fn records_of_several_builds_at_once_are_all_kept() {
    let folder = tempfile::tempdir().unwrap();
    let first = spec(folder.path(), "image = 'debian'");
    let variants: Vec<Spec> =
        (0..8).map(|number| Spec { variant: Some(number.to_string()), ..first.clone() }).collect();
    thread::scope(|scope| {
        for spec in &variants {
            scope.spawn(|| record_network(spec, &record(&["http://a.example/1"])).unwrap());
        }
    });
    let pins = LockFile::beside(&first).unwrap();
    assert!(variants.iter().all(|spec| pins.network(spec).is_some()));
}

#[test]
fn locked_builds_record_nothing_new() {
    let folder = tempfile::tempdir().unwrap();
    let spec = spec(folder.path(), "image = 'debian'");
    let urls: Vec<String> = (0..7).map(|number| format!("http://a.example/{number}")).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    check_recorded(&spec, Some(&record(&urls)), &record(&urls[..3])).unwrap();
    check_recorded(&spec, None, &record(&[])).unwrap();
    let error = check_recorded(&spec, Some(&record(&urls[..1])), &record(&urls)).unwrap_err();
    assert!(error.to_string().contains("no answer to 6 requests"), "{error}");
    assert_eq!(error.evidence().len(), NAMED_URLS + 1);
    assert_eq!(error.evidence()[0], urls[1]);
    let error = check_recorded(&spec, None, &record(&urls[..1])).unwrap_err();
    assert!(error.to_string().contains("no answer to a request"), "{error}");
}
