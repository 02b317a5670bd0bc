//! A `KubeVirt` containerDisk: an OCI image of one layer with one file, the disk, below `/disk`.
//!
//! It is an OCI image layout (image-layout.md of the OCI's image-spec) in one tar archive, which skopeo and podman call
//! `oci-archive`: one file to keep and to sign, and `tar -x` extracts the folder.
//!
//! ```text
//! oci-layout
//! index.json ──> blobs/sha256/MANIFEST ──> blobs/sha256/CONFIG
//!                                      └─> blobs/sha256/LAYER = tar: disk/, disk/NAME.qcow2
//! ```
//! The layer is not compressed, but the disk in it is. So its digest is also that of its content, which the config has to
//! contain.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::content::PackageContent;
use super::tar::{Archive, Format, TarOwner};
use super::{PackageError, PackageFacts};
use crate::digest::Sha256Digest;
use crate::progress::Progress;

/// The user `qemu` in `KubeVirt`'s own images, which reads the disk.
const OWNER: TarOwner = TarOwner(107, 107);
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A blob with its digest.
struct Blob {
    content: PackageContent,
    sha256: Sha256Digest,
}

impl Blob {
    fn new(content: PackageContent, progress: &Progress<'_>) -> Result<Self, PackageError> {
        let sha256 = content.sha256(progress)?;
        Ok(Self { content, sha256 })
    }

    /// Creates a blob of JSON. Serialised maps have their keys in order.
    fn json(value: &Value, progress: &Progress<'_>) -> Result<Self, PackageError> {
        Self::new(value.to_string().into_bytes().into(), progress)
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.sha256)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest(), "size": self.content.len() })
    }
}

/// Creates the archive of a qcow2 file. The disk is read once for its digest first; `progress` counts these bytes.
///
/// # Errors
/// When the disk's file cannot be read, or the work is cancelled.
pub fn archive(
    facts: &PackageFacts,
    disk: PackageContent,
    progress: &Progress<'_>,
) -> Result<PackageContent, PackageError> {
    let layer = Blob::new(layer(facts, disk)?, progress)?;
    let config = Blob::json(&config(facts, &layer), progress)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": config.descriptor(CONFIG),
        "layers": [layer.descriptor(LAYER)],
        "annotations": labels(facts),
    });
    let manifest = Blob::json(&manifest, progress)?;
    let mut index = manifest.descriptor(MANIFEST);
    index["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    // The name by which skopeo finds it: a tag cannot contain the `+` that a version may contain.
    index["annotations"] = json!({ "org.opencontainers.image.ref.name": facts.version.replace('+', "_") });
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [index],
    });
    let mut archive = Archive::new(Format::OldGnu, facts.time);
    let root = TarOwner::default();
    archive.file("oci-layout", root, json!({ "imageLayoutVersion": "1.0.0" }).to_string().into_bytes())?;
    archive.file("index.json", root, index.to_string().into_bytes())?;
    for folder in ["blobs", "blobs/sha256"] {
        archive.folder(folder, root)?;
    }
    let mut blobs = [manifest, config, layer];
    blobs.sort_by_key(|blob| blob.sha256);
    for blob in blobs {
        archive.file(&format!("blobs/sha256/{}", blob.sha256), root, blob.content)?;
    }
    Ok(archive.finish())
}

fn layer(facts: &PackageFacts, disk: PackageContent) -> Result<PackageContent, PackageError> {
    let mut layer = Archive::new(Format::OldGnu, facts.time);
    layer.folder("disk", OWNER)?;
    layer.file(&format!("disk/{}.qcow2", facts.name), OWNER, disk)?;
    Ok(layer.finish())
}

fn config(facts: &PackageFacts, layer: &Blob) -> Value {
    let created = created(facts);
    json!({
        "architecture": "amd64", "os": "linux", "created": created,
        "config": { "Labels": labels(facts) },
        "rootfs": { "type": "layers", "diff_ids": [layer.digest()] },
        "history": [{ "created": created, "created_by": "kiln" }],
    })
}

/// Returns the annotations that the image-spec has predefined (annotations.md).
fn labels(facts: &PackageFacts) -> Value {
    let mut labels = json!({
        "org.opencontainers.image.created": created(facts),
        "org.opencontainers.image.title": facts.name,
        "org.opencontainers.image.version": facts.version,
    });
    if !facts.description.is_empty() {
        labels["org.opencontainers.image.description"] = json!(facts.description);
    }
    labels
}

/// Returns the creation time as RFC 3339.
fn created(facts: &PackageFacts) -> String {
    let seconds = i64::try_from(facts.time).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::testing::{facts, members, members_of, names, sha256};
    use super::*;

    #[test]
    fn from_the_index_to_the_disk_every_digest_is_right() {
        let archive = archive(&facts(), b"qcow2".to_vec().into(), &Progress::unwatched()).unwrap();
        let found = members_of(&archive);
        let order = names(&found);
        assert_eq!(order[..4], ["oci-layout", "index.json", "blobs/", "blobs/sha256/"]);
        assert!(order[4..].is_sorted() && order.len() == 7);
        let files: BTreeMap<_, _> = found.iter().map(|member| (&*member.name, &*member.data)).collect();
        let parsed = |name: &str| serde_json::from_slice::<Value>(files[name]).unwrap();
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let name = format!("blobs/sha256/{digest}");
            assert_eq!(sha256(files[&*name]), digest);
            assert_eq!(descriptor["size"], files[&*name].len());
            name
        };
        let index = parsed("index.json");
        assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "1.4.0_b1");
        let manifest = parsed(&blob(&index["manifests"][0]));
        let config = parsed(&blob(&manifest["config"]));
        let layer = &manifest["layers"][0];
        assert_eq!(config["rootfs"]["diff_ids"], json!([layer["digest"]]));
        assert_eq!(config["created"], "2026-01-02T03:04:05Z");
        let inside = members(files[&*blob(layer)]);
        assert_eq!(names(&inside), ["disk/", "disk/web.qcow2"]);
        assert!(inside.iter().all(|member| member.owner == (107, 107)));
        assert_eq!(inside[1].data, b"qcow2");
    }
}
