//! Tags, removal, and what versions are made from, through the binary.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

use support::{Ended, Kiln};

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// web@1, web@2 and web@3, as far as they are asked for.
fn versions(versions: &[&str]) -> Ended {
    let mut built = Kiln::new().spec("[[step]]\nrun = 'echo hello'").build().run();
    for version in versions.iter().filter(|version| **version != "1") {
        built = built.then(["build", ".", "--version", version]).run();
    }
    built
}

#[test]
fn a_version_is_tagged_promoted_rolled_back_and_kept() {
    let built = versions(&["1", "2"]);
    let tagged = built.then(["tag", "web@1", "stable"]).stderr_has("web@stable is 1 now").run();
    assert_eq!(tagged.stdout, "", "a change has no result");
    built.then(["tag", "web", "candidate"]).stderr_has("web@candidate is 2 now").run();
    built.then(["tag", "web@candidate", "stable"]).stderr_has("web@stable is 2 now, it was 1").run();
    let inspect = || json(&built.then(["inspect", "web@stable", "--json"]).run().stdout)["image"]["version"].clone();
    assert_eq!(inspect(), "2");
    let starts = built.place().starts();
    built.then(["tag", "web", "stable", "--rollback"]).stderr_has("web@stable is 1 again, it was 2").run();
    assert_eq!(inspect(), "1");
    built.then(["tag", "web", "stable", "--rollback"]).fails(8).stderr_has("no other version before").run();
    let history = json(&built.then(["tag", "web@stable", "--history", "--json"]).run().stdout);
    let steps: Vec<_> = history.as_array().unwrap().iter().map(|change| change["how"].as_str().unwrap()).collect();
    assert_eq!(steps, ["rollback", "set", "set"]);
    assert_eq!(history[1]["promoted"], "candidate");
    let list = built.then(["list"]).stdout_has("stable").stdout_has("base.qcow2").run();
    assert_eq!(list.stdout.lines().count(), 3);
    let listed = json(&built.then(["list", "--json"]).run().stdout);
    assert_eq!((&listed[1]["version"], &listed[1]["tags"][0]), (&"1".into(), &"stable".into()));
    built.then(["remove", "web@1"]).fails(8).stderr_has("web@1 is web@stable").stderr_has("--delete stable").run();
    built.then(["tag", "web", "--delete", "stable"]).stderr_has("web@stable is no more").run();
    built.then(["remove", "web@1"]).run();
    assert_eq!(built.place().published(), ["web@2"]);
    assert_eq!(built.place().starts(), starts);
}

#[test]
fn mistakes_with_tags_are_told_with_what_was_meant() {
    let built = versions(&["1"]);
    built.then(["tag", "web", "stable"]).run();
    built.then(["tag", "web@stabel", "candidate"]).fails(8).stderr_has("did you mean `stable`?").run();
    built.then(["tag", "wbe", "stable"]).fails(8).stderr_has("did you mean `web`?").run();
    built.then(["tag", "web", "1"]).fails(8).stderr_has("web@1 is a version").run();
    built.then(["tag", "web", "a/b"]).fails(2).stderr_has("neither a version nor a tag").run();
    built.then(["tag", "web", "--rollback"]).fails(2).stderr_has("needs the tag").run();
    built.then(["tag", "web", "stable", "--rollback", "--delete"]).fails(2).stderr_has("cannot be used with").run();
    let starts = built.place().starts();
    built.then(["build", ".", "--version", "stable"]).fails(8).stderr_has("web@stable is a tag").run();
    assert_eq!(built.place().starts(), starts, "it is told before anything boots");
}

#[test]
fn a_base_is_removed_by_force_alone_and_a_tag_is_followed() {
    let base = versions(&["1"]);
    base.then(["tag", "web", "stable"]).run();
    let spec = "[image]\nname = 'shop'\nversion = '1'\n[base]\nimage = 'web@stable'\n[machine]\naccel = 'tcg'\n";
    let shop = base.place().kiln().file("shop/kiln.toml", spec).args(["build", "shop"]).run();
    shop.then(["list"]).stdout_has("web@1 <- base.qcow2").run();
    let listed = json(&shop.then(["list", "--json"]).run().stdout);
    assert_eq!(listed[0]["lineage"], serde_json::json!(["web@1", "base.qcow2"]));
    assert_eq!(
        (&listed[0]["base"]["source"], &listed[0]["base"]["image"]["version"]),
        (&"web@stable".into(), &"1".into())
    );
    shop.then(["tag", "web@stable", "-d"]).run();
    shop.then(["remove", "web@1"]).fails(8).stderr_has("web@1 is the base of shop@1").stderr_has("--force").run();
    shop.then(["remove", "web@1", "--force"]).run();
    shop.then(["outdated", "shop"]).stdout_has("web@stable is no more, it was made from web@1").run();
    shop.then(["list"]).stdout_has("web@1 (gone)").run();
    shop.then(["verify", "shop"]).run();
    assert!(!fs::exists(shop.place().store().join("web")).unwrap());
}

/// A spec in a folder of its own.
fn spec(kiln: Kiln, name: &str, base: &str, rest: &str) -> Kiln {
    let text = format!("[image]\nname = '{name}'\nversion = '1'\n[base]\n{base}\n[machine]\naccel = 'tcg'\n{rest}\n");
    kiln.file(&format!("{name}/kiln.toml"), text)
}

/// What is outdated, a line each without its columns' spaces.
fn outdated(ended: &Ended, args: &[&str]) -> Vec<String> {
    let ended = ended.then(["outdated"]).args(args).run();
    let lines = ended.stdout.lines().skip(1);
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn what_was_made_from_something_older_is_outdated() {
    let kiln = spec(Kiln::new(), "root", "file = '../base.qcow2'", "");
    let kiln = spec(kiln, "web", "image = 'root@stable'", "");
    let kiln = spec(kiln, "shop", "spec = '../web'", "").file(".git/HEAD", "");
    let built = kiln.args(["build", "root"]).run();
    built.then(["tag", "root", "stable"]).run();
    built.then(["build", "shop"]).run();
    assert_eq!(outdated(&built, &[]), [""; 0]);
    assert_eq!(outdated(&built, &["."]), [""; 0]);
    let starts = built.place().starts();
    built.then(["outdated", "--exit-code"]).stderr_has("nothing is outdated").run();
    // A new root, with another disk; what follows the tag is not concerned until that is moved.
    let text = fs::read_to_string(built.place().join("root/kiln.toml")).unwrap();
    let grown = text.replace("version = '1'", "version = '2'").replace("[machine]", "[machine]\ndisk = '32MiB'");
    fs::write(built.place().join("root/kiln.toml"), grown).unwrap();
    built.then(["build", "root"]).run();
    assert_eq!(outdated(&built, &[]), [""; 0]);
    built.then(["tag", "root", "stable"]).run();
    let expected = ["shop@1 web@1, its base, is outdated", "web@1 root@stable is root@2 now, it was made from root@1"];
    assert_eq!(outdated(&built, &[]), expected);
    assert_eq!(outdated(&built, &["."]), expected, "the specs have nothing to add");
    built.then(["outdated", "--exit-code"]).fails(1).run();
    let listed = json(&built.then(["outdated", "--json"]).run().stdout);
    assert_eq!((&listed[1]["name"], &listed[1]["reasons"][0]["reason"]), (&"web".into(), &"tag-moved".into()));
    assert_eq!(listed[1]["reasons"][0]["now"], "root@2");
    assert_eq!(built.place().starts(), starts + 1, "only root was built");
    built.then(["build", "shop", "--replace"]).run();
    assert_eq!(outdated(&built, &["."]), [""; 0]);
}

#[test]
fn what_was_made_from_a_file_that_changed_or_a_spec_that_changed_is_outdated() {
    let step = "[[step]]\nname = 'greet'\nrun = 'echo hello'\n[[step]]\nname = 'bring'\ncopy = 'page'\nto = '/srv/'";
    let kiln = spec(Kiln::new(), "web", "file = '../base.qcow2'", step).file("web/page", "one");
    let built = spec(kiln, "new", "file = '../base.qcow2'", "").args(["build", "web"]).run();
    assert_eq!(outdated(&built, &[]), [""; 0]);
    assert_eq!(outdated(&built, &["web"]), [""; 0]);
    assert_eq!(outdated(&built, &["."]), ["new@1 not built yet"]);
    fs::write(built.place().join("web/page"), "two").unwrap();
    assert_eq!(outdated(&built, &[]), [""; 0], "the store knows nothing of the specs' files");
    assert_eq!(outdated(&built, &["web"]), ["web@1 changed: step 2 bring (what is copied)"]);
    let base = built.place().join("base.qcow2");
    support::make_writable(&base);
    support::qemu_img(&["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "17M"]);
    // As the spec says it: a link may lead elsewhere by now.
    let said = built.place().join("web/../base.qcow2");
    assert_eq!(outdated(&built, &[]), [format!("web@1 its base image has changed: {}", said.display())]);
    assert_eq!(outdated(&built, &["web"]), ["web@1 changed: the base image"]);
    fs::remove_file(&base).unwrap();
    let gone = format!("web@1 its base image is gone: {}", said.display());
    assert_eq!((outdated(&built, &[]), outdated(&built, &["web"])), (vec![gone.clone()], vec![gone]));
    fs::remove_dir_all(built.place().cache()).unwrap();
    built.then(["outdated"]).stderr_has("the place of its base base.qcow2 is not known here").run();
}

#[test]
fn the_newest_are_kept_with_what_they_need() {
    let built = versions(&["1", "2", "3"]);
    built.then(["tag", "web@1", "stable"]).run();
    let ended = built.then(["gc", "--keep", "1", "--dry-run"]).stderr_has("would remove 1 version").run();
    assert_eq!(ended.stdout, "");
    for row in ["kept      web@3  among the newest", "would go  web@2", "kept      web@1  tagged stable"] {
        assert!(ended.stderr.contains(row), "{row}: {}", ended.stderr);
    }
    assert_eq!(built.place().published().len(), 3);
    built.then(["gc", "--keep", "1"]).stderr_has("removed 1 version").stderr_has("layer").run();
    assert_eq!(built.place().published(), ["web@1", "web@3"]);
    built.then(["gc", "--keep", "0"]).fails(2).run();
    built.then(["gc", "web"]).fails(2).stderr_has("--keep").run();
    built.then(["gc", "--keep", "1", "wbe"]).fails(8).stderr_has("did you mean `web`?").run();
}

/// Starts a server that answers each request with the head that belongs to its path, and returns its port and the requests.
fn index_server() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let request = head[0].trim_end_matches(" HTTP/1.1").to_owned();
            let (status, headers) = match request.split('/').next_back() {
                Some("same") => (200, "ETag: \"old\"\r\n"),
                Some("changed") => (200, "ETag: \"new\"\r\n"),
                Some("silent") => (200, ""),
                _ => (404, ""),
            };
            seen.lock().unwrap().push(request);
            let _ = write!(stream, "HTTP/1.1 {status} X\r\n{headers}Content-Length: 9\r\nConnection: close\r\n\r\n");
        }
    });
    (port, requests)
}

#[test]
fn n29_indices_that_have_changed_upstream_are_listed_if_servers_may_be_asked() {
    let (port, requests) = index_server();
    let unreachable = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let line = |host: String, path: &str| {
        let sha256 = "0".repeat(64);
        format!(
            "{{ url = 'http://{host}/{path}', sha256 = '{sha256}', bytes = 9, headers = {{ etag = '\"old\"' }}, steps = ['a'] }},"
        )
    };
    let paths = ["same", "changed", "gone", "silent", "a_1.deb"];
    let mut lines: Vec<String> = paths.iter().map(|path| line(format!("127.0.0.1:{port}"), path)).collect();
    lines.extend(["same", "other"].map(|path| line(format!("localhost:{unreachable}"), path)));
    lines.push(line(format!("127.0.0.2:{port}"), "changed"));
    let lock = format!(
        "schema = 1\n[[network]]\nspec = 'kiln.toml'\nrecorded = '2026-01-01T00:00:00Z'\ndownloads = [\n{}\n]\n",
        lines.join("\n")
    );
    let spec = "[network]\nallow = ['127.0.0.1', 'localhost']\n[[step]]\nname = 'a'\nrun = 'true'";
    let kiln = Kiln::new().machine("network = 'locked'").spec(spec).file("kiln.lock", lock);
    let place = Arc::clone(kiln.place());
    for args in [&["outdated", "."][..], &["outdated", ".", "--offline"], &["outdated", ".", "--json"]] {
        let quiet = place.kiln().args(args).run();
        assert!(!quiet.stdout.contains("indices"), "{}", quiet.stdout);
    }
    place.kiln().args(["outdated", "--online"]).fails(2).run();
    place.kiln().args(["outdated", ".", "--online", "--offline"]).fails(2).run();
    assert_eq!(*requests.lock().unwrap(), [""; 0], "nothing is asked without --online");

    let asked = place.kiln().args(["outdated", ".", "--online", "--json"]).run();
    let listed = json(&asked.stdout);
    let reason = &listed[0]["reasons"][1];
    let [changed, gone] = ["changed", "gone"].map(|path| format!("http://127.0.0.1:{port}/{path}"));
    assert_eq!(reason["reason"], "indices-changed");
    assert_eq!(reason["host"], "127.0.0.1");
    assert_eq!(reason["urls"], serde_json::json!([changed, gone]));
    assert_eq!(listed[0]["reasons"].as_array().unwrap().len(), 2);
    assert_eq!(asked.stderr.matches("cannot ask whether the indices of localhost have changed").count(), 1);
    assert!(asked.stderr.contains("cannot compare 1 recorded indices"), "{}", asked.stderr);
    // Neither packages nor hosts that the spec does not allow.
    let expected = ["changed", "gone", "same", "silent"].map(|path| format!("HEAD /{path}"));
    assert_eq!(*requests.lock().unwrap(), expected);
    let text = format!("indices of 127.0.0.1 have changed since they were recorded: {changed}, {gone}");
    place.kiln().args(["outdated", ".", "--online"]).stdout_has(text).run();
}
