//! Tags, removal, and what versions are made from, through the binary.

mod support;

use std::fs;

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
    shop.then(["list"]).stdout_has("web@1 (gone)").run();
    shop.then(["verify", "shop"]).run();
    assert!(!fs::exists(shop.place().store().join("web")).unwrap());
}
