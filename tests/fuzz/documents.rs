//! A store with one version and a cache with one layer, in order: path and content of every file.

use std::io;

use kiln::digest::sha256_data;
use kiln::plan::key::CacheKey;
use serde_json::json;

const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// All of them; those with something to read first, the empty disks last.
pub fn all() -> io::Result<Vec<(String, String)>> {
    let layer = format!("layers/{}.0123456789abcdef", CacheKey::root());
    let documents = [
        ("store/web/1/manifest.json".into(), manifest()),
        ("store/web/1/SHA256SUMS".into(), format!("{EMPTY}  manifest.json\n\\{EMPTY}  a\\\\b\n{EMPTY}  web-1.qcow2\n")),
        ("store/web/tags.json".into(), tags()),
        (format!("{layer}/layer.json"), facts()?),
        (format!("{layer}/disk.qcow2"), String::new()),
        (format!("{layer}/ram"), String::new()),
        (format!("{layer}/fetched/a/b"), String::new()),
        ("store/web/1/web-1.qcow2".into(), String::new()),
    ];
    Ok(documents.into())
}

fn manifest() -> String {
    json!({
        "schema": 1, "sequence": 7, "kiln": "0.1.0", "build_key": "00", "disk_sha256": EMPTY, "content_sha256": null,
        "image": {"name": "web", "version": "1", "description": "", "labels": {"a": "b"}},
        "base": {"source": "base.qcow2", "sha256": EMPTY, "format": "qcow2"},
        "machine": {"accel": "tcg", "qemu": "10.0.2", "cpus": 2, "memory": 1_073_741_824, "firmware": "bios"},
        "steps": [{"name": "one", "verb": "run", "key": "00", "cached": false, "seconds": 1.5}],
        "outputs": [{"file": "web-1.qcow2", "format": "qcow2", "bytes": 0, "virtual_bytes": 1, "sha256": EMPTY}],
        "packages": [{"name": "a", "version": "1", "arch": "amd64"}],
        "tests": [{"name": "t", "ok": true, "seconds": 0.1}],
        "fetched": [{"file": "f/g", "bytes": 0, "sha256": EMPTY}],
        "started": "2026-01-02T03:04:05Z", "finished": "2026-01-02T03:05:05Z", "source_date_epoch": 1
    })
    .to_string()
}

fn tags() -> String {
    let at = "2026-01-02T03:04:05Z";
    json!({
        "schema": 1, "tags": {"stable": "1"},
        "history": [
            {"at": at, "tag": "stable", "from": null, "to": "1", "how": "set", "promoted": "candidate"},
            {"at": at, "tag": "stable", "from": "1", "to": null, "how": "delete"},
            {"at": at, "tag": "stable", "from": null, "to": "1", "how": "rollback"},
        ]
    })
    .to_string()
}

fn facts() -> io::Result<String> {
    let sha256 = sha256_data(&tempfile::tempfile()?)?;
    let sealed = json!({"bytes": 0, "sha256": sha256});
    let facts = json!({
        "schema": 1, "key": CacheKey::root(), "id": "0123456789abcdef", "parent": null, "seconds": 1.5, "disk": sealed,
        "memory": {"file": sealed, "format": "stream", "machine": EMPTY, "hello": {}}, "fetched": [{"file": "a/b", "bytes": 0, "sha256": sha256}]
    });
    Ok(facts.to_string())
}
